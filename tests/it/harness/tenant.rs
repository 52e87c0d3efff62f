//! A tenant with everything a test needs to act for it: an app, keys, a publisher, and clients of each replica.

use carillon::proto::cloudevents::CloudEvent;
use carillon::proto::cloudevents::cloud_event::Data;
use carillon::proto::internal::admin_service_client::AdminServiceClient;
use carillon::proto::internal::publish_service_client::PublishServiceClient;
use carillon::proto::internal::{
    CreateApiKeyRequest, CreateAppRequest, CreatePublisherIdentityRequest, CreateTenantRequest, PublishRequest,
    PublishResponse, Role,
};
use carillon::proto::public::event_service_client::EventServiceClient;
use carillon::proto::public::event_type_service_client::EventTypeServiceClient;
use carillon::proto::public::invocation_service_client::InvocationServiceClient;
use carillon::proto::public::{
    CreateEventTypeRequest, DeliveryPolicy, EventView, Invocation, InvocationState, ListEventsRequest,
    ListInvocationsRequest, SubscribeRequest, SubscribeResponse, Target, UndeleteSubscriptionRequest,
    UnsubscribeRequest, WebhookMode, WebhookTarget, target,
};
use serde_json::Value;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::connect::{Bearer, Identity};
use super::receiver::{Answer, Receiver};
use super::wait::eventually;
use super::world::World;

pub type Public = InterceptedService<Channel, Bearer>;

/// Clients of one replica with one API key.
#[derive(Clone)]
pub struct Clients {
    pub events: EventServiceClient<Public>,
    pub types: EventTypeServiceClient<Public>,
    pub invocations: InvocationServiceClient<Public>,
}

impl Clients {
    /// Clients of a replica for a key's secret.
    pub fn new(world: &World, replica: usize, secret: &str) -> Self {
        let channel = world.public(replica);
        let bearer = Bearer::new(secret);
        Self {
            events: EventServiceClient::with_interceptor(channel.clone(), bearer.clone()),
            types: EventTypeServiceClient::with_interceptor(channel.clone(), bearer.clone()),
            invocations: InvocationServiceClient::with_interceptor(channel, bearer),
        }
    }
}

/// A tenant of a world.
pub struct Tenant {
    /// The tenant's slug.
    pub slug: String,
    /// The slug of its first app.
    pub app: String,
    /// An API key's secret, role admin.
    pub key: String,
    /// The publisher's certificate.
    pub identity: Identity,
    /// Clients per replica, role admin.
    pub at: Vec<Clients>,
    /// Publishers per replica.
    pub publishers: Vec<PublishServiceClient<Channel>>,
}

impl Tenant {
    /// Makes a tenant through the administration service.
    pub async fn create(world: &World) -> Self {
        let slug = format!("t-{}", uuid::Uuid::new_v4().simple());
        let mut admin = admin(world);
        let request = CreateTenantRequest { slug: slug.clone(), ..Default::default() };
        admin.create_tenant(request).await.expect("a tenant can be made");
        let app = "shop".to_owned();
        let request = CreateAppRequest { tenant: slug.clone(), slug: app.clone(), ..Default::default() };
        admin.create_app(request).await.expect("an app can be made");
        let key = create_key(world, &slug, "", Role::Admin).await;
        let uri = format!("spiffe://carillon.test/publisher/{slug}");
        let request = CreatePublisherIdentityRequest {
            tenant: slug.clone(),
            subject: format!("uri:{uri}"),
            event_types: Vec::new(),
            ..Default::default()
        };
        admin.create_publisher_identity(request).await.expect("a publisher can be registered");
        let identity = Identity::issue(&world.ca, &uri);
        let mut tenant = Self { slug, app, key, identity, at: Vec::new(), publishers: Vec::new() };
        tenant.reconnect(world);
        tenant
    }

    /// Makes the clients anew, after replicas came, went or moved.
    pub fn reconnect(&mut self, world: &World) {
        let replicas = 0..world.replicas.len();
        self.at = replicas.clone().map(|replica| Clients::new(world, replica, &self.key)).collect();
        self.publishers =
            replicas.map(|replica| PublishServiceClient::new(world.internal(replica, &self.identity))).collect();
    }

    /// The first replica's event service.
    pub fn events(&self) -> EventServiceClient<Public> {
        self.at[0].events.clone()
    }

    /// The first replica's catalogue.
    pub fn types(&self) -> EventTypeServiceClient<Public> {
        self.at[0].types.clone()
    }

    /// The first replica's invocation service.
    pub fn invocations(&self) -> InvocationServiceClient<Public> {
        self.at[0].invocations.clone()
    }

    /// The first replica's publish service.
    pub fn publisher(&self) -> PublishServiceClient<Channel> {
        self.publishers[0].clone()
    }

    /// Declares a custom event type without a schema.
    pub async fn declare(&self, name: &str) {
        self.declare_with_schema(name, "").await;
    }

    /// Declares a custom event type.
    pub async fn declare_with_schema(&self, name: &str, schema: &str) {
        let request = CreateEventTypeRequest { name: name.to_owned(), schema: schema.to_owned(), ..Default::default() };
        self.types().create_event_type(request).await.expect("an event type can be declared");
        self.told("EVENT_TYPE_CREATED", name).await;
    }

    /// Waits until the log tells of a change, so that what a test publishes next has the positions after it.
    pub async fn told(&self, event_type: &str, subject: &str) {
        let filter = format!("event.subject == '{subject}'");
        eventually(&format!("{event_type} of {subject} is in the log"), || async {
            let request = ListEventsRequest {
                event_types: vec![event_type.to_owned()],
                filter: filter.clone(),
                ..Default::default()
            };
            let page = self.events().list_events(request).await.expect("a page").into_inner();
            if page.events.is_empty() { Err(page.end_of_log) } else { Ok(()) }
        })
        .await;
    }

    /// Position of the log's last event.
    pub async fn end_of_log(&self) -> i64 {
        let mut request =
            ListEventsRequest { page_size: 1_000, view: EventView::Metadata.into(), ..Default::default() };
        let mut end = 0;
        loop {
            let page = self.events().list_events(request.clone()).await.expect("a page").into_inner();
            end = page.events.last().map_or(end, |event| event.position);
            if page.end_of_log {
                return end;
            }
            request.cursor = page.next_cursor;
        }
    }

    /// A request that subscribes a URI to an event type, with fast retries.
    pub fn subscribe_request(&self, event_type: &str, uri: &str) -> SubscribeRequest {
        SubscribeRequest {
            app: self.app.clone(),
            event_type: event_type.to_owned(),
            target: Some(webhook(uri, WebhookMode::Structured)),
            delivery_policy: Some(quick_policy()),
            ..Default::default()
        }
    }

    /// Ends a subscription.
    pub async fn unsubscribe(&self, id: &str) {
        let request = UnsubscribeRequest { subscription_id: id.to_owned(), ..Default::default() };
        self.events().unsubscribe(request).await.expect("it is subscribed");
    }

    /// Brings an ended subscription back.
    pub async fn undelete(&self, id: &str, replay_missed: bool) {
        let request =
            UndeleteSubscriptionRequest { subscription_id: id.to_owned(), replay_missed, ..Default::default() };
        self.events().undelete_subscription(request).await.expect("it is deleted");
    }

    /// Subscribes a receiver's path, which then verifies what it gets.
    pub async fn subscribe(&self, event_type: &str, receiver: &Receiver, path: &str) -> SubscribeResponse {
        let request = self.subscribe_request(event_type, &receiver.url(path));
        let answer = self.events().subscribe(request).await.expect("a receiver can be subscribed").into_inner();
        receiver.trust(path, &answer.signing_secret);
        self.told("SUBSCRIPTION_CREATED", &answer.subscription.as_ref().expect("it is set").id).await;
        answer
    }

    /// A tenant of the shared world with a receiver that answers CUSTOM_RUN at `/hook`.
    pub async fn with_listener(answers: Vec<Answer>) -> (Self, Receiver) {
        let tenant = World::shared().await.tenant().await;
        let receiver = Receiver::start().await;
        receiver.answers("/hook", answers);
        tenant.declare("CUSTOM_RUN").await;
        tenant.subscribe("CUSTOM_RUN", &receiver, "/hook").await;
        (tenant, receiver)
    }

    /// Publishes an event of JSON data.
    pub async fn publish(&self, event_type: &str, data: &Value) -> PublishResponse {
        self.try_publish(publish_request(event_type, data)).await.expect("a valid event is accepted")
    }

    /// Publishes what may be refused.
    pub async fn try_publish(&self, request: PublishRequest) -> Result<PublishResponse, Status> {
        self.publisher().publish(request).await.map(tonic::Response::into_inner)
    }

    /// Every invocation of an event.
    pub async fn invocations_of(&self, event_id: &str) -> Vec<Invocation> {
        let request = ListInvocationsRequest { event_id: event_id.to_owned(), page_size: 1_000, ..Default::default() };
        self.invocations().list_invocations(request).await.expect("invocations are listed").into_inner().invocations
    }

    /// Waits until every invocation of an event is in a state.
    pub async fn all_invocations_become(&self, event_id: &str, state: InvocationState) -> Vec<Invocation> {
        eventually(&format!("every invocation of {event_id} is {state:?}"), || async {
            let all = self.invocations_of(event_id).await;
            if !all.is_empty() && all.iter().all(|invocation| invocation.state() == state) { Ok(all) } else { Err(all) }
        })
        .await
    }
}

/// The administration service of the first replica.
pub fn admin(world: &World) -> AdminServiceClient<Channel> {
    AdminServiceClient::new(world.internal(0, &world.operator))
}

/// Makes an API key and returns its secret.
pub async fn create_key(world: &World, tenant: &str, app: &str, role: Role) -> String {
    let request =
        CreateApiKeyRequest { tenant: tenant.to_owned(), app: app.to_owned(), role: role.into(), ..Default::default() };
    admin(world).create_api_key(request).await.expect("a key can be made").into_inner().secret
}

/// A webhook target.
pub fn webhook(uri: &str, mode: WebhookMode) -> Target {
    let webhook = WebhookTarget { uri: uri.to_owned(), mode: mode.into(), ..Default::default() };
    Target { kind: Some(target::Kind::Webhook(webhook)) }
}

/// Retries within milliseconds, so that tests of retries are quick.
pub fn quick_policy() -> DeliveryPolicy {
    DeliveryPolicy {
        max_attempts: 4,
        initial_backoff: Some(millis(5)),
        max_backoff: Some(millis(50)),
        timeout: Some(pbjson_types::Duration { seconds: 10, nanos: 0 }),
        ..Default::default()
    }
}

/// A duration below a second.
pub fn millis(millis: i32) -> pbjson_types::Duration {
    pbjson_types::Duration { seconds: 0, nanos: millis * 1_000_000 }
}

/// A request that publishes JSON data.
pub fn publish_request(event_type: &str, data: &Value) -> PublishRequest {
    PublishRequest { event: Some(cloud_event(event_type, data)), ..Default::default() }
}

/// A CloudEvent of JSON data.
pub fn cloud_event(event_type: &str, data: &Value) -> CloudEvent {
    CloudEvent {
        source: "/test".to_owned(),
        spec_version: "1.0".to_owned(),
        r#type: event_type.to_owned(),
        data: Some(Data::TextData(data.to_string())),
        ..Default::default()
    }
}

/// The reason that an error carries; fails where it carries none.
pub fn reason(status: &Status) -> String {
    let info = status.get_details_error_info();
    let Some(info) = info else { panic!("no ErrorInfo in {status:?}") };
    assert_eq!(info.domain, "carillon.dev", "{status:?}");
    info.reason
}

/// Fails unless a call was refused with a code and a reason.
pub fn assert_refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, expected: &str) -> Status {
    let status = result.expect_err("the call should be refused");
    assert_eq!((status.code(), reason(&status).as_str()), (code, expected), "{status:?}");
    status
}
