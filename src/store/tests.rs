//! A migrated database of one's own for tests that need a real Postgres, and the tests of the store itself.

use super::event_types::{EventTypeQuota, NewEventType};
use super::{Store, connect};
use crate::dev::{PrivatePostgres, Search};
use crate::domain::catalogue::Catalogue;
use crate::domain::event_type::{EventTypeName, Phase};
use crate::domain::ids::TenantId;
use crate::feed::Feed;
use crate::publish::registry::Registry;
use crate::publish::writer::{Writer, WriterTasks};
use crate::store::audit::Principal;
use crate::store::request_ids::{Once, Repeatable};
use crate::store::secrets::Keyring;
use crate::{clock, publish};
use sqlx::{Connection as _, PgConnection};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

mod cancelled;
mod dropped;
mod health;
mod ordered;
mod pages;
mod places;
mod plans;
mod purge;
mod rates;
mod reads;
mod restores;
mod waiting;
mod wall;
mod watches;

/// The event type that every tenant of a [`Database`] has.
pub(crate) const NAME: &str = "CUSTOM_TESTED";

/// A private Postgres with the schema.
pub(crate) struct Database {
    pub postgres: PrivatePostgres,
    pub store: Store,
}

impl Database {
    pub async fn new() -> Self {
        let path = std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
        let postgres = PrivatePostgres::throwaway(&Search::system(path, None)).await.expect("a private Postgres");
        let config =
            connect::Config { migrate_url: Some(postgres.url().into()), ..Self::config(&postgres.server_url()) };
        connect::migrate(&config, &[]).await.expect("migrations apply");
        let store = connect::open(&config).await.expect("Postgres answers");
        Self { postgres, store }
    }

    pub fn config(url: &str) -> connect::Config {
        connect::Config { url: Some(url.into()), unsafe_allow_lossy_postgres: true, ..connect::Config::default() }
    }

    /// A tenant with an event type named [`NAME`].
    pub async fn tenant(&self, slug: &str) -> TenantId {
        let tenant = self.store.create_tenant("test".into(), slug.into(), slug.into(), Repeatable::default()).await;
        let tenant = tenant.expect("a tenant").and_then(Once::made).expect("a new slug").id;
        let new = NewEventType {
            name: EventTypeName::parse(NAME).expect("a name"),
            phase: Phase::Post,
            display_name: String::new(),
            description: String::new(),
            schema: None,
            compatibility: crate::domain::schema::compatibility::Compatibility::None,
        };
        let quota = EventTypeQuota { event_types: 10, deleted_event_types: 10, schema_versions: 10 };
        let by = Principal::server(tenant);
        self.store.create_event_type(by, new, quota, Repeatable::default()).await.expect("an event type");
        tenant
    }

    /// A connection beside the store's that nothing holds back.
    pub async fn connection(&self) -> PgConnection {
        PgConnection::connect(&self.postgres.owner_url("carillon")).await.expect("Postgres answers")
    }

    /// A writer with these settings.
    pub fn writer(&self, config: publish::Config) -> (Writer, WriterTasks) {
        let keyring = Arc::new(Keyring::new(vec![("k1".to_owned(), [7; 32])]).expect("a keyring"));
        let registry = Registry::new(self.store.clone(), keyring, Arc::new(Catalogue::builtin()), 100, 1 << 20);
        Writer::start(self.store.clone(), registry, Feed::default(), config)
    }

    pub async fn end(self) {
        self.store.close().await;
        self.postgres.stop().await.expect("Postgres stops");
    }
}

/// Publishes one event.
pub(crate) async fn publish(
    writer: &Writer,
    tenant: TenantId,
    key: &str,
) -> Result<publish::writer::Published, publish::PublishError> {
    let name = EventTypeName::parse(NAME).expect("a name");
    writer.publish_system(tenant, name, "test".to_owned(), &serde_json::json!({}), None, key).await
}

impl Store {
    /// As many other calls of a tenant as take every connection that these may have, until what it returns is dropped.
    pub(crate) fn crowd(&self, tenant: TenantId) -> Vec<crate::turnstile::Pass> {
        self.engine().crowd(tenant)
    }
}

/// Looks until the predicate holds, for 20 seconds at most.
pub(crate) async fn eventually<F, R>(what: &str, mut look: F)
where
    F: FnMut() -> R,
    R: Future<Output = bool>,
{
    let until = clock::now() + Duration::from_secs(20);
    while !look().await {
        assert!(clock::now() < until, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Stands between the store and Postgres, and can go silent as a network does: nothing is closed, nothing gets through.
struct Wire {
    folder: tempfile::TempDir,
    silent: Arc<tokio::sync::watch::Sender<u64>>,
    cut: Arc<std::sync::atomic::AtomicBool>,
}

impl Wire {
    fn to(postgres: &PrivatePostgres) -> Self {
        let (url, folder) = (postgres.server_url(), tempfile::tempdir().expect("a folder"));
        let real =
            url.split("host=").nth(1).and_then(|rest| rest.split('&').next()).expect("a socket folder").to_owned();
        let port = url.split("localhost:").nth(1).and_then(|rest| rest.split('/').next()).expect("a port").to_owned();
        let name = format!(".s.PGSQL.{port}");
        let listener = tokio::net::UnixListener::bind(folder.path().join(&name)).expect("a socket");
        let (silent, cut) =
            (Arc::new(tokio::sync::watch::Sender::new(0)), Arc::<std::sync::atomic::AtomicBool>::default());
        let (told, is_cut, real) = (silent.clone(), cut.clone(), std::path::Path::new(&real).join(name));
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (mut near, real, mut told, is_cut) = (near, real.clone(), told.subscribe(), is_cut.clone());
                tokio::spawn(async move {
                    if !is_cut.load(std::sync::atomic::Ordering::SeqCst)
                        && let Ok(mut far) = tokio::net::UnixStream::connect(real).await
                    {
                        tokio::select! {
                            _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
                            _ = told.changed() => {}
                        }
                        std::future::pending::<()>().await;
                        drop(far);
                    }
                    std::future::pending::<()>().await;
                    drop(near);
                });
            }
        });
        Self { folder, silent, cut }
    }

    fn url(&self, postgres: &PrivatePostgres) -> String {
        let url = postgres.server_url();
        let real = url.split("host=").nth(1).and_then(|rest| rest.split('&').next()).expect("a socket folder");
        url.replace(real, &self.folder.path().display().to_string())
    }

    /// Every connection there is goes silent for ever, and new ones too until [`Self::mend`].
    fn cut(&self) {
        self.cut.store(true, std::sync::atomic::Ordering::SeqCst);
        self.silent.send_modify(|times| *times += 1);
    }

    fn mend(&self) {
        self.cut.store(false, std::sync::atomic::Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_takes_too_long_is_not_taken_for_a_database_that_is_away() {
    let database = Database::new().await;
    let config = connect::Config { statement_timeout_ms: 100, ..Database::config(&database.postgres.server_url()) };
    let hurried = connect::open(&config).await.expect("Postgres answers");
    let slow = sqlx::query("SELECT pg_sleep(20)").execute(hurried.engine()).await.map_err(super::StoreError::from);
    assert!(matches!(slow, Err(super::StoreError::TooSlow(_))), "{slow:?}");
    hurried.close().await;
    database.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_vanishes_holds_nothing_up_for_ever_and_the_pool_recovers() {
    let mut database = Database::new().await;
    let tenant = database.tenant("a").await;
    let wire = Wire::to(&database.postgres);
    let config = connect::Config {
        connections_max: 8,
        acquire_timeout_ms: 500,
        statement_timeout_ms: 400,
        answer_timeout_ms: 500,
        ..Database::config(&wire.url(&database.postgres))
    };
    let behind = connect::open(&config).await.expect("Postgres answers");
    let direct = std::mem::replace(&mut database.store, behind);
    let (writer, tasks) = database.writer(publish::Config::default());
    publish(&writer, tenant, "before").await.expect("published");
    let read = |store: Store| async move { store.head(tenant).await };
    let all = futures::future::join_all((0..8).map(|_| read(database.store.clone()))).await;
    assert!(all.iter().all(Result::is_ok), "every connection is in use once");

    wire.cut();
    let cut_off = publish(&writer, tenant, "during").await;
    assert!(matches!(cut_off, Err(publish::PublishError::Store(super::StoreError::Unavailable(_)))), "{cut_off:?}");
    let by = Principal::server(tenant);
    let refused = database.store.create_app(by.clone(), "shop".into(), "Shop".into(), Repeatable::default()).await;
    assert!(refused.is_err(), "a transaction ends as well");
    let all = futures::future::join_all((0..16).map(|_| read(database.store.clone()))).await;
    assert!(all.iter().all(Result::is_err), "so does every read");

    wire.mend();
    // The same request again: whatever became of the first, it is one event.
    eventually("publishing goes on", || async { publish(&writer, tenant, "during").await.is_ok() }).await;
    publish(&writer, tenant, "after").await.expect("published");
    assert_eq!(direct.head(tenant).await.expect("readable").expect("exists").position, 3);
    eventually("transactions go on", || async {
        database.store.create_app(by.clone(), "shop".into(), "Shop".into(), Repeatable::default()).await.is_ok()
    })
    .await;
    let all = futures::future::join_all((0..64).map(|_| read(database.store.clone()))).await;
    assert!(all.iter().all(Result::is_ok), "no place of the pool is lost: {all:?}");
    assert!(database.store.connections().0 <= 8);
    drop(writer);
    tasks.join().await;
    direct.close().await;
    database.end().await;
}
