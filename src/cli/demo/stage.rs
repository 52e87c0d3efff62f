//! The demo's stage: event types with their schemas, a receiver, and the subscriptions that call it.
//!
//! Which subscriptions there are, and which of them a payload must fire, are two readings of the same three rules.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};

use http::StatusCode;
use tokio::sync::mpsc;

use super::payloads::{Kind, Payload};
use crate::cli::client::{PublicClient, call};
use crate::cli::error::CliError;
use crate::cli::event_types::all_schemas;
use crate::cli::output::progress;
use crate::cli::receiver::{Delivery, Keys, Receiver};
use crate::cli::subscribe::webhook;
use crate::clock;
use crate::domain::webhook::{SigningSecret, VerificationKey};
use crate::proto::public::{
    AddEventTypeSchemaRequest, CreateEventTypeRequest, ListSubscriptionsRequest, SubscribeRequest,
    UndeleteEventTypeRequest, UnsubscribeRequest, WebhookMode,
};

/// The display name of the demo's subscriptions, by which it finds those that an earlier run left behind.
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
    versions: Vec<Versions>,
    /// By event type: (path, whether only `created` actions fire it).
    listeners: HashMap<String, Vec<(String, Fires)>>,
    subscriptions: Vec<String>,
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

struct Listener {
    event_type: String,
    path: String,
    fires: Fires,
    mode: WebhookMode,
}

impl Stage {
    /// Declares the event types, starts the receiver and subscribes it.
    pub async fn set(client: &PublicClient, app: &str, kinds: &[Kind]) -> Result<Self, CliError> {
        remove_left_behind(client, app).await?;
        let bar = progress(kinds.len() as u64, "declaring event types");
        let mut versions = Vec::new();
        for kind in kinds {
            versions.push(declare(client, kind).await?);
            bar.inc(1);
        }
        bar.finish_and_clear();

        let listeners = listeners(kinds);
        let secrets: HashMap<String, SigningSecret> =
            listeners.iter().filter_map(|listener| Some((listener.path.clone(), new_secret()?))).collect();
        let by_path =
            secrets.iter().filter_map(|(path, secret)| Some((path.clone(), VerificationKey::of(secret)?))).collect();
        let keys = Keys { by_path, others: Vec::new() };
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (receiver, deliveries) = Receiver::start(anywhere, keys, StatusCode::NO_CONTENT).await?;
        let mut stage = Self {
            versions,
            listeners: HashMap::new(),
            subscriptions: Vec::new(),
            receiver,
            deliveries: Some(deliveries),
        };
        let bar = progress(listeners.len() as u64, "subscribing");
        for listener in listeners {
            let filter = if listener.fires == Fires::OnCreated { "data.action == \"created\"" } else { "" };
            let request = SubscribeRequest {
                app: app.to_owned(),
                event_type: listener.event_type.clone(),
                target: Some(webhook(stage.receiver.url(&listener.path), listener.mode, [])),
                display_name: DISPLAY_NAME.to_owned(),
                filter: filter.to_owned(),
                signing_secret: secrets.get(&listener.path).map(SigningSecret::reveal).unwrap_or_default(),
                ..SubscribeRequest::default()
            };
            let answer = call("Subscribe", client.events().subscribe(client.request(request))).await?;
            stage.subscriptions.extend(answer.subscription.map(|subscription| subscription.id));
            stage.listeners.entry(listener.event_type).or_default().push((listener.path, listener.fires));
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(stage)
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
        let listeners = self.listeners.get(&kind.event_type).map(Vec::as_slice).unwrap_or_default();
        let fires = |fires: &Fires| *fires == Fires::Always || payload.action() == Some("created");
        listeners.iter().filter(|(_, when)| fires(when)).map(|(path, _)| path.clone()).collect()
    }

    /// Unsubscribes and ends the receiver; the event types stay for the next run.
    pub async fn strike(self, client: &PublicClient) -> Result<(), CliError> {
        let mut ended = Ok(());
        for subscription_id in self.subscriptions {
            // Every one is tried, so that a single failure leaves no more behind than it must.
            ended = ended.and(unsubscribe(client, subscription_id).await);
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

/// Ends the subscriptions of an earlier run that could not do so itself.
async fn remove_left_behind(client: &PublicClient, app: &str) -> Result<(), CliError> {
    let mut request =
        ListSubscriptionsRequest { page_size: 1000, app: app.to_owned(), ..ListSubscriptionsRequest::default() };
    let mut left_behind = Vec::new();
    loop {
        let page = client.request(request.clone());
        let answer = call("ListSubscriptions", client.events().list_subscriptions(page)).await?;
        let ours = answer.subscriptions.into_iter().filter(|subscription| subscription.display_name == DISPLAY_NAME);
        left_behind.extend(ours.map(|subscription| subscription.id));
        request.page_token = answer.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    for subscription_id in left_behind {
        unsubscribe(client, subscription_id).await?;
    }
    Ok(())
}

async fn unsubscribe(client: &PublicClient, subscription_id: String) -> Result<(), CliError> {
    let request = UnsubscribeRequest { subscription_id, allow_missing: true, ..UnsubscribeRequest::default() };
    call("Unsubscribe", client.events().unsubscribe(client.request(request))).await.map(drop)
}
