//! The composition root: builds the parts in order, serves, and stops them in reverse.
//!
//! Order: database, keys, sockets, services. A part that cannot be built stops the start with its cause; nothing is accepted before
//! everything can answer.

mod connections;
mod error;
mod files;
mod measure;
mod memory;
mod tokens;

pub use error::AppError;

use crate::api::admin::{AdminDeps, AdminService};
use crate::api::auth::{ApiKeys, Certificates, Credentials, Issuers, Tokens};
use crate::api::call::{CallLimits, CallMetrics, Calls, Door};
use crate::api::connections::Connections;
use crate::api::event_service::EventService;
use crate::api::event_types::EventTypeService;
use crate::api::events::watch::ending_reason;
use crate::api::events::websocket::WatchSocket;
use crate::api::events::{EventsDeps, WatchRoute};
use crate::api::health::{Health, Reflection, name_of};
use crate::api::invocations::{InvocationDeps, InvocationService};
use crate::api::publish::PublishApi;
use crate::api::registry::RegistryDeps;
use crate::api::server::{Port, Server, Speaks, listen};
use crate::api::services::Services;
use crate::api::subscriptions::explain::Explains;
use crate::api::subscriptions::trial::Trials;
use crate::api::tls::{Tls, TlsError, TlsWatch};
use crate::api::{ops, web};
use crate::config::Config;
use crate::dispatch::{self, Dispatch};
use crate::domain::catalogue::Catalogue;
use crate::domain::cursor::CursorSealer;
use crate::executor::Executor;
use crate::feed::{Feed, News};
use crate::pending::{self, Pending};
use crate::proto::internal::admin_service_server::AdminServiceServer;
use crate::proto::internal::publish_service_server::PublishServiceServer;
use crate::proto::public::event_service_server::EventServiceServer;
use crate::proto::public::event_type_service_server::EventTypeServiceServer;
use crate::proto::public::invocation_service_server::InvocationServiceServer;
use crate::publish::registry::Registry;
use crate::publish::writer::{Writer, WriterTasks};
use crate::store::Store;
use crate::store::connect;
use crate::store::secrets::Keyring;
use crate::store::settings::CURSOR_KEY;
use crate::telemetry::Metrics;
use crate::watch::{Standing, Watches};
use crate::wire::page::PageTokens;
use futures::FutureExt as _;
use std::error::Error;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How often the dispatcher is looked at.
const DISPATCH_INTERVAL: Duration = Duration::from_secs(1);
/// How often the partitions of the coming days are made sure of, and the clocks compared.
const UPKEEP_INTERVAL: Duration = Duration::from_hours(1);
/// News of heads that registries may be behind.
const HEADS_MAX: usize = 4_096;
/// How long background tasks may take to end.
const TASKS_PATIENCE: Duration = Duration::from_secs(5);
/// Connections of the ops port: probes and scrapers.
const OPS_CONNECTIONS_MAX: usize = 16;

/// Where a running server listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// gRPC and gRPC-Web.
    pub public: SocketAddr,
    /// gRPC over mutual TLS.
    pub internal: SocketAddr,
    /// Plain HTTP.
    pub ops: SocketAddr,
}

/// A running server.
pub struct App {
    addresses: Addresses,
    server: Server,
    health: Vec<Health>,
    engine: Engine,
    store: Store,
    tasks: TaskTracker,
    tasks_stop: CancellationToken,
    drain_timeout: Duration,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl App {
    /// Builds everything and serves.
    pub async fn start(config: Config) -> Result<Self, AppError> {
        let (config, by_memory) = memory::affordable(config);
        let (config, by_files) = files::affordable(config);
        let (config, by_connections) = connections::affordable(config);
        // Read first: a key that does not fit must not wait for the database.
        let keyring = Keyring::new(config.secrets.read()?)?;
        let catalogue = Arc::new(catalogue(&config)?);
        let executor = Executor::new(&config.executor)?;
        let (public_tls, internal_tls) = tls(&config)?;
        let issuers = tokens::issuers(&config).await?;
        let store = connect::open(&config.database).await?.with_keyring(keyring.clone());
        let cursor_key = store.setting_or_create(CURSOR_KEY, &keyring).await?;
        let (page_tokens, sealer) = (PageTokens::new(&cursor_key), CursorSealer::new(&cursor_key));

        // Opened before anything takes part in the work, and accepted from when everything can answer: a replica that cannot have its
        // ports must not take shards from others first.
        let public_listener = listen("public_listen", config.server.public_listen).await?;
        let internal_listener = listen("internal_listen", config.server.internal_listen).await?;
        let ops_listener = listen("ops_listen", config.server.ops_listen).await?;

        let metrics = Metrics::default();
        let tls_watch = TlsWatch::new(public_tls.iter().chain([&internal_tls]).cloned().collect(), &metrics);
        let server = Server::new(&config.server);
        issuers.measure(&metrics);
        let api_keys = ApiKeys::new(store.clone());
        let tokens = Tokens::new(store.clone(), issuers.clone(), config.auth.token_bytes_max);
        let credentials = Credentials::new(api_keys.clone(), tokens);
        let certificates = Certificates::new(store.clone(), config.operators.subjects.clone());
        let limits = CallLimits {
            timeout_max: Duration::from_millis(config.server.request_timeout_max_ms),
            watch: config.watch.clone(),
            message_bytes_max: config.server.message_bytes_max,
            header_count_max: config.server.header_count_max,
            per_credential_max: config.server.calls_per_credential_max,
            requests_bytes_max: config.server.requests_bytes_max,
            answers_bytes_max: config.server.answers_bytes_max,
            draining: server.draining(),
            streams_end: server.streams_end(),
        };
        let call_metrics = CallMetrics::new(&metrics);
        let reflection = if config.server.reflection { Reflection::Served } else { Reflection::Hidden };

        let feed = Feed::default().bounded(config.publish.queue_bytes_max);
        let heads = feed.subscribe(HEADS_MAX);
        let engine = Engine::start(&config, &store, keyring.clone(), catalogue.clone(), executor.clone(), &feed, {
            let credentials = credentials.clone();
            CursorParts { sealer: sealer.clone(), credentials }
        });
        engine.measure(&metrics, &store);
        let bytes_max = config.server.message_bytes_max;

        let registry = RegistryDeps {
            store: store.clone(),
            keyring: keyring.clone(),
            catalogue,
            feed: feed.clone(),
            page_tokens: page_tokens.clone(),
            registry: engine.registry.clone(),
            trials: {
                let pending = engine.pending.clone();
                Trials::new(Arc::new(move |registry, listener, call, entry, deadline| {
                    let pending = pending.clone();
                    async move { pending.trial(&registry, listener, &call, entry, deadline).await }.boxed()
                }))
            },
            explains: Explains::default(),
            uri_check: {
                let guard = executor.guard().clone();
                Arc::new(move |uri| guard.check_uri(uri).map_err(|blocked| blocked.to_string()))
            },
            config: config.limits,
        };
        let events = EventsDeps::new(store.clone(), sealer, engine.watches.clone());
        let invocations = InvocationDeps { store: store.clone(), feed: feed.clone(), page_tokens: page_tokens.clone() };
        let event_types = EventTypeService::new(registry.clone());
        let public = Services::default()
            .with(EventTypeServiceServer::new(event_types).max_decoding_message_size(bytes_max))
            .with(WatchRoute::new(
                EventServiceServer::new(EventService::new(registry, events.clone()))
                    .max_decoding_message_size(bytes_max),
                events.clone(),
            ))
            .with(
                InvocationServiceServer::new(InvocationService::new(invocations)).max_decoding_message_size(bytes_max),
            );
        let names = vec![
            name_of::<EventTypeServiceServer<EventTypeService>>(),
            name_of::<EventServiceServer<EventService>>(),
            name_of::<InvocationServiceServer<InvocationService>>(),
        ];
        let (public_health, public) = Health::add(public, names, reflection).await;

        let deps = AdminDeps {
            store: store.clone(),
            page_tokens,
            api_keys,
            certificates: certificates.clone(),
            keyring,
            limits: config.quotas(),
            feed: feed.clone(),
        };
        let publish =
            PublishApi::new(engine.writer.clone(), engine.pending.clone(), store.clone(), feed, server.draining());
        let internal = Services::default()
            .with(AdminServiceServer::new(AdminService::new(deps)).max_decoding_message_size(bytes_max))
            .with(PublishServiceServer::new(publish).max_decoding_message_size(bytes_max));
        let names = vec![name_of::<AdminServiceServer<AdminService>>(), name_of::<PublishServiceServer<PublishApi>>()];
        let (internal_health, internal) = Health::add(internal, names, reflection).await;

        let keepalive = Duration::from_millis(config.server.keepalive_ms);
        let origins = &config.server.cors_origins;
        let public =
            Calls::new(Door::Public(Box::new(credentials.clone())), limits.clone(), call_metrics.clone(), public);
        let burst = config.server.control_frames_burst;
        let socket = WatchSocket::new(events, credentials, origins, keepalive, burst, public.in_flight());
        let internal = Calls::new(Door::Internal(certificates), limits, call_metrics, internal);

        let addresses = Addresses {
            public: public_listener.local_addr().map_err(AppError::Address)?,
            internal: internal_listener.local_addr().map_err(AppError::Address)?,
            ops: ops_listener.local_addr().map_err(AppError::Address)?,
        };
        let connections = || Connections::new(config.server.connections_max, config.server.connections_per_peer_max);
        server.serve(Port {
            name: "public",
            listener: public_listener,
            tls: public_tls.clone(),
            speaks: Speaks::Both,
            routes: web::public(public, socket, &config.server.cors_origins),
            connections: connections(),
        });
        server.serve(Port {
            name: "internal",
            listener: internal_listener,
            tls: Some(Arc::clone(&internal_tls)),
            speaks: Speaks::Two,
            routes: web::internal(internal),
            connections: connections(),
        });
        server.serve(Port {
            name: "ops",
            listener: ops_listener,
            tls: None,
            speaks: Speaks::Both,
            routes: ops::routes(store.clone(), metrics, tls_watch.clone(), issuers.clone(), server.draining()),
            connections: Connections::new(OPS_CONNECTIONS_MAX, OPS_CONNECTIONS_MAX),
        });

        let app = Self {
            addresses,
            server,
            health: vec![public_health, internal_health],
            engine,
            store,
            tasks: TaskTracker::new(),
            tasks_stop: CancellationToken::new(),
            drain_timeout: Duration::from_millis(config.server.drain_timeout_ms),
        };
        app.keep_dispatching();
        app.keep_certificates(tls_watch, Duration::from_millis(config.server.certificates_interval_ms));
        app.keep_issuers(&issuers);
        app.keep_store();
        app.keep_registry(heads);
        tracing::info!(
            public = %app.addresses.public,
            internal = %app.addresses.internal,
            ops = %app.addresses.ops,
            "serving"
        );
        [by_memory, by_files, by_connections].iter().flatten().for_each(memory::Lowered::tell);
        Ok(app)
    }

    /// Where it listens: with port 0 in the configuration, the ports that were given.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Stops the parts in reverse: callers first, the database last. Always returns.
    pub async fn stop(self) {
        tracing::info!("draining");
        for health in &self.health {
            health.stop().await;
        }
        // Watches end themselves with a cursor to resume from, and deliveries go to other replicas, while calls end; then the writer.
        self.engine.watches.drain();
        self.engine.dispatch.drain();
        self.server.stop(self.drain_timeout).await;
        self.tasks_stop.cancel();
        self.tasks.close();
        self.engine.stop().await;
        if tokio::time::timeout(TASKS_PATIENCE, self.tasks.wait()).await.is_err() {
            tracing::warn!(tasks = self.tasks.len(), "background tasks did not end in time");
        }
        if tokio::time::timeout(TASKS_PATIENCE, self.store.close()).await.is_err() {
            tracing::warn!("database connections did not close in time");
        }
        tracing::info!("stopped");
    }

    /// A replica whose dispatcher has ended by itself would accept events and never deliver them: it ends instead, so that its
    /// supervisor starts it anew and other replicas take its work.
    fn keep_dispatching(&self) {
        let (tasks, draining) = (self.engine.dispatch.tasks(), self.engine.dispatch.draining());
        self.every(DISPATCH_INTERVAL, move || {
            let ended = tasks.iter().any(tokio::task::AbortHandle::is_finished) && !draining.is_cancelled();
            async move {
                if ended {
                    tracing::error!("the dispatcher has ended by itself; the process ends, to be started anew");
                    std::process::exit(70);
                }
            }
        });
    }

    /// New connections get new certificates without a restart.
    fn keep_certificates(&self, watch: TlsWatch, interval: Duration) {
        self.every(interval, move || {
            let watch = watch.clone();
            // Files may be on a mount that hangs.
            let looked = tokio::task::spawn_blocking(move || watch.look());
            async move {
                let _ = looked.await;
            }
        });
    }

    /// New keys of token issuers are known without a restart.
    fn keep_issuers(&self, issuers: &Issuers) {
        for task in issuers.tasks() {
            self.tasks.spawn(self.tasks_stop.clone().run_until_cancelled_owned(task));
        }
    }

    /// Partitions exist before their day begins, and the two clocks stay compared.
    fn keep_store(&self) {
        let store = self.store.clone();
        self.every(UPKEEP_INTERVAL, move || {
            let store = store.clone();
            async move {
                let done = async {
                    store.measure_clock().await?;
                    store.ensure_coming_partitions().await
                };
                if let Err(error) = done.await {
                    tracing::warn!(error = &error as &dyn Error, "upkeep of the database failed; it is tried again");
                }
            }
        });
    }

    /// Registries follow the heads, also of tenants that publish nothing here.
    fn keep_registry(&self, heads: mpsc::Receiver<News>) {
        let (follow, stop) = (self.engine.registry.clone().follow(heads), self.tasks_stop.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = follow => {}
            }
        });
    }

    /// Runs a step now and then until the server stops.
    fn every<F, S>(&self, period: Duration, step: F)
    where
        F: Fn() -> S + Send + Sync + 'static,
        S: Future<Output = ()> + Send + 'static,
    {
        let stop = self.tasks_stop.clone();
        self.tasks.spawn(async move {
            let mut ticks = interval(period);
            // The first tick is at once, and the start has just done the step.
            ticks.tick().await;
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    _ = ticks.tick() => {}
                }
                // A step that is dropped halfway is tried again by the next start.
                tokio::select! {
                    () = stop.cancelled() => return,
                    done = AssertUnwindSafe(async { step().await }).catch_unwind() => {
                        // Reported where it panicked; the next tick tries again.
                        drop(done);
                    }
                }
            }
        });
    }
}

/// What moves events: the writer, the dispatcher and the watches.
struct Engine {
    registry: Registry,
    writer: Writer,
    writer_tasks: WriterTasks,
    pending: Pending,
    dispatch: Dispatch,
    watches: Watches,
}

/// What watches check cursors and credentials with.
struct CursorParts {
    sealer: CursorSealer,
    credentials: Credentials,
}

impl Engine {
    fn start(
        config: &Config,
        store: &Store,
        keyring: Keyring,
        catalogue: Arc<Catalogue>,
        executor: Executor,
        feed: &Feed,
        cursors: CursorParts,
    ) -> Self {
        let owed = store.owed();
        let registry = Registry::new(
            owed.clone(),
            Arc::new(keyring),
            catalogue,
            config.publish.registry_tenants_max,
            config.publish.schemas_bytes_max,
        )
        .limited(config.quotas());
        let (writer, writer_tasks) =
            Writer::start(owed.clone(), registry.clone(), feed.clone(), config.publish.clone());
        let parts = pending::Parts {
            store: store.clone(),
            registry: registry.clone(),
            executor: executor.clone(),
            feed: feed.clone(),
        };
        let pending = Pending::start(parts, config.pending.clone(), &config.publish);
        let parts = dispatch::Parts {
            store: owed,
            registry: registry.clone(),
            writer: writer.clone(),
            executor,
            feed: feed.clone(),
        };
        let dispatch = Dispatch::start(parts, config.dispatch.clone());
        let credentials = cursors.credentials;
        let check = Arc::new(move |caller: &crate::domain::access::Caller| {
            let (credentials, caller) = (credentials.clone(), caller.clone());
            async move {
                match credentials.still_valid(&caller).await {
                    Ok(true) => Standing::Valid,
                    Ok(false) => Standing::Revoked,
                    Err(_) => Standing::Unknown,
                }
            }
            .boxed()
        });
        let replica = dispatch.replica();
        let watches =
            Watches::start(replica, store.clone(), cursors.sealer, feed, config.watch.clone(), check, ending_reason);
        Self { registry, writer, writer_tasks, pending, dispatch, watches }
    }

    async fn stop(self) {
        self.watches.stop().await;
        self.pending.stop().await;
        self.dispatch.stop().await;
        drop(self.writer);
        // A connection that outlived the drain may still hold a writer; what was accepted is committed by then.
        let _ = tokio::time::timeout(TASKS_PATIENCE, self.writer_tasks.join()).await;
    }
}

/// The built-in system event types with the operator's.
fn catalogue(config: &Config) -> Result<Catalogue, AppError> {
    match &config.catalogue.file {
        None => Ok(Catalogue::builtin()),
        Some(file) => {
            let text = std::fs::read_to_string(file).map_err(AppError::CatalogueFile)?;
            Ok(Catalogue::with_operator_file(&text)?)
        }
    }
}

/// TLS of the public port, where configured, and of the internal port.
fn tls(config: &Config) -> Result<(Option<Arc<Tls>>, Arc<Tls>), TlsError> {
    let public = match &config.server.tls.certificate_file {
        Some(_) => Some(Arc::new(Tls::public(config.server.tls.clone())?)),
        None => None,
    };
    Ok((public, Arc::new(Tls::internal(config.server.internal_tls.clone())?)))
}

#[cfg(test)]
mod tests;
