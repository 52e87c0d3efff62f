//! The demo's stage: event types with their schemas, a receiver, and the subscriptions that call it.
//!
//! Which subscriptions there are, and which of them a payload must fire, are two readings of the same three rules.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};

use http::StatusCode;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::payloads::{Kind, Payload};
use crate::cli::client::{PublicClient, call};
use crate::cli::error::CliError;
use crate::cli::event_types::all_schemas;
use crate::cli::output::progress;
use crate::cli::receiver::{Delivery, Keys, Receiver};
use crate::cli::subscribe::webhook;
use crate::cli::subscriptions::webhook_of;
use crate::clock;
use crate::domain::webhook::{SigningSecret, VerificationKey};
use crate::proto::public::{
    AddEventTypeSchemaRequest, CreateEventTypeRequest, ListSubscriptionsRequest, SubscribeRequest, Subscription,
    UndeleteEventTypeRequest, UnsubscribeRequest, WebhookMode,
};

/// The display name of the demo's subscriptions, by which it finds those that a run left behind.
const DISPLAY_NAME: &str = "carillon demo";

/// Every so many kinds get a second listener, in binary mode.
const BINARY_EVERY: usize = 4;

/// The schema versions of one kind.
#[derive(Debug, Clone, Copy)]
pub struct Versions {
    /// The real schema.
    pub real: i32,
    /// What the kind's payloads share, where some are older than the real schema.
    pub shared_shape: Option<i32>,
}

/// What is set up for one run.
#[derive(Debug)]
pub struct Stage {
    app: String,
    run: String,
    versions: Vec<Versions>,
    listeners: Vec<Listener>,
    /// By path.
    secrets: HashMap<String, SigningSecret>,
    /// What ends the subscriptions.
    undo: Vec<UnsubscribeRequest>,
    receiver: Receiver,
    deliveries: Option<mpsc::Receiver<Delivery>>,
}

/// For which payloads a listener fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fires {
    Always,
    /// Where `action` is `created`.
    OnCreated,
}

#[derive(Debug)]
struct Listener {
    event_type: String,
    path: String,
    fires: Fires,
    mode: WebhookMode,
}

impl Stage {
    /// Starts the receiver. Who opens a stage strikes it, whatever happens on it.
    pub async fn open(app: &str, kinds: &[Kind]) -> Result<Self, CliError> {
        let listeners = listeners(kinds);
        let secrets: HashMap<String, SigningSecret> =
            listeners.iter().filter_map(|listener| Some((listener.path.clone(), new_secret()?))).collect();
        let by_path =
            secrets.iter().filter_map(|(path, secret)| Some((path.clone(), VerificationKey::of(secret)?))).collect();
        let keys = Keys { by_path, others: Vec::new() };
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (receiver, deliveries) = Receiver::start(anywhere, keys, StatusCode::NO_CONTENT).await?;
        let (versions, undo) = (Vec::new(), Vec::new());
        let (app, run) = (app.to_owned(), clock::new_uuid().simple().to_string());
        Ok(Self { app, run, versions, listeners, secrets, undo, receiver, deliveries: Some(deliveries) })
    }

    /// The run's name, unlike that of every other.
    pub fn run(&self) -> &str {
        &self.run
    }

    /// The source of the run's events.
    pub fn source(&self) -> String {
        format!("https://api.github.com/#{}", self.run)
    }

    /// The filter that only the run's events pass, so that runs beside each other see nothing of each other.
    pub fn filter(&self) -> String {
        format!("event.source == \"{}\"", self.source())
    }

    /// Declares the event types and subscribes the receiver.
    pub async fn set(&mut self, client: &PublicClient, kinds: &[Kind]) -> Result<(), CliError> {
        remove_left_behind(client, &self.app).await?;
        let bar = progress(kinds.len() as u64, "declaring event types");
        for kind in kinds {
            self.versions.push(declare(client, kind).await?);
            bar.inc(1);
        }
        bar.finish_and_clear();

        let bar = progress(self.listeners.len() as u64, "subscribing");
        for listener in &self.listeners {
            let mut filter = self.filter();
            if listener.fires == Fires::OnCreated {
                filter.push_str(" && data.action == \"created\"");
            }
            let (app, event_type) = (self.app.clone(), listener.event_type.clone());
            let target = Some(webhook(self.receiver.url(&listener.path), listener.mode, []));
            // Noted first: a call that is broken off may have made it all the same.
            self.undo.push(UnsubscribeRequest {
                app: app.clone(),
                event_type: event_type.clone(),
                target: target.clone(),
                allow_missing: true,
                ..UnsubscribeRequest::default()
            });
            let request = SubscribeRequest {
                app,
                event_type,
                target,
                display_name: DISPLAY_NAME.to_owned(),
                filter,
                signing_secret: self.secrets.get(&listener.path).map(SigningSecret::reveal).unwrap_or_default(),
                ..SubscribeRequest::default()
            };
            call("Subscribe", client.events().subscribe(client.request(request))).await?;
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// The schema versions, in the order of the kinds.
    pub fn versions(&self) -> &[Versions] {
        &self.versions
    }

    /// What the receiver gets; can be taken once, and then gives a closed channel.
    pub fn take_deliveries(&mut self) -> mpsc::Receiver<Delivery> {
        self.deliveries.take().unwrap_or_else(|| mpsc::channel(1).1)
    }

    /// The paths that a payload must be delivered to.
    pub fn expected_paths(&self, kind: &Kind, payload: &Payload) -> Vec<String> {
        let fires = |listener: &&Listener| {
            listener.event_type == kind.event_type
                && (listener.fires == Fires::Always || payload.action() == Some("created"))
        };
        self.listeners.iter().filter(fires).map(|listener| listener.path.clone()).collect()
    }

    /// Unsubscribes and ends the receiver; the event types stay for the next run.
    pub async fn strike(self, client: &PublicClient) -> Result<(), CliError> {
        let mut ended = Ok(());
        for request in self.undo {
            // Every one is tried, so that a single failure leaves no more behind than it must.
            ended = ended.and(unsubscribe(client, request).await);
        }
        self.receiver.stop().await;
        ended
    }
}

/// One structured listener for every kind; one more that fires on created things where a kind has them; one more in binary
/// mode for every fourth kind.
fn listeners(kinds: &[Kind]) -> Vec<Listener> {
    let mut listeners = Vec::new();
    for (number, kind) in kinds.iter().enumerate() {
        let mut add = |path: &str, fires, mode| {
            let (event_type, path) = (kind.event_type.clone(), format!("/{path}/{}", kind.name));
            listeners.push(Listener { event_type, path, fires, mode });
        };
        add("all", Fires::Always, WebhookMode::Structured);
        if kind.payloads.iter().any(|payload| payload.action() == Some("created")) {
            add("created", Fires::OnCreated, WebhookMode::Structured);
        }
        if number % BINARY_EVERY == 0 {
            add("binary", Fires::Always, WebhookMode::Binary);
        }
    }
    listeners
}

fn new_secret() -> Option<SigningSecret> {
    SigningSecret::from_bytes(clock::random_bytes::<32>().to_vec())
}

/// Makes sure that the event type exists with the schemas that the demo wants, whatever an earlier run has left.
async fn declare(client: &PublicClient, kind: &Kind) -> Result<Versions, CliError> {
    let mut types = client.event_types();
    let request = CreateEventTypeRequest {
        name: kind.event_type.clone(),
        display_name: format!("GitHub {}", kind.name),
        description: format!("The GitHub webhook event `{}`.", kind.name),
        schema: kind.shared_shape.clone().unwrap_or_else(|| kind.schema.clone()),
        ..CreateEventTypeRequest::default()
    };
    match call("CreateEventType", types.create_event_type(client.request(request))).await {
        Ok(_) => {}
        Err(error) if error.reason().as_deref() == Some("EVENT_TYPE_EXISTS") => {
            let request =
                client.request(UndeleteEventTypeRequest { name: kind.event_type.clone(), ..Default::default() });
            // It fails where the type is not retired, which is how it should be.
            let _state = types.undelete_event_type(request).await;
        }
        Err(error) => return Err(error),
    }
    let registered = all_schemas(client, &kind.event_type).await?;
    let shared_shape = match &kind.shared_shape {
        Some(schema) => Some(version_of(client, kind, &registered, schema).await?),
        None => None,
    };
    Ok(Versions { real: version_of(client, kind, &registered, &kind.schema).await?, shared_shape })
}

/// The version that a schema is registered as; registers it where it is not yet.
async fn version_of(
    client: &PublicClient,
    kind: &Kind,
    registered: &[crate::proto::public::EventTypeSchema],
    schema: &str,
) -> Result<i32, CliError> {
    if let Some(found) = registered.iter().find(|registered| registered.schema == schema) {
        return Ok(found.version);
    }
    let request = AddEventTypeSchemaRequest {
        event_type: kind.event_type.clone(),
        schema: schema.to_owned(),
        ..AddEventTypeSchemaRequest::default()
    };
    let mut types = client.event_types();
    let added = types.add_event_type_schema(client.request(request));
    let schema = call("AddEventTypeSchema", added).await?.schema;
    schema.map(|schema| schema.version).ok_or(CliError::Answer { rpc: "AddEventTypeSchema", what: "schema" })
}

/// Ends the subscriptions of runs that could not do so themselves. A run that is not at its end listens.
async fn remove_left_behind(client: &PublicClient, app: &str) -> Result<(), CliError> {
    let mut request =
        ListSubscriptionsRequest { page_size: 1000, app: app.to_owned(), ..ListSubscriptionsRequest::default() };
    let mut left_behind = Vec::new();
    loop {
        let page = client.request(request.clone());
        let answer = call("ListSubscriptions", client.events().list_subscriptions(page)).await?;
        let demos = answer.subscriptions.into_iter().filter(|subscription| subscription.display_name == DISPLAY_NAME);
        for subscription in demos {
            // On loopback a connection is made or refused at once.
            if let Some(address) = receiver_of(&subscription)
                && TcpStream::connect(address).await.is_err()
            {
                left_behind.push(subscription.id);
            }
        }
        request.page_token = answer.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    for subscription_id in left_behind {
        let request = UnsubscribeRequest { subscription_id, allow_missing: true, ..UnsubscribeRequest::default() };
        unsubscribe(client, request).await?;
    }
    Ok(())
}

/// Where the receiver of a demo's subscription listens; none for what somebody else subscribed under that name.
fn receiver_of(subscription: &Subscription) -> Option<SocketAddr> {
    let uri: http::Uri = webhook_of(subscription)?.uri.parse().ok()?;
    uri.authority()?.as_str().parse().ok().filter(|address: &SocketAddr| address.ip().is_loopback())
}

async fn unsubscribe(client: &PublicClient, request: UnsubscribeRequest) -> Result<(), CliError> {
    call("Unsubscribe", client.events().unsubscribe(client.request(request))).await.map(drop)
}
