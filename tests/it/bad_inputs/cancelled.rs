//! A8: every unary call of the service, cancelled at random points of its life. What it was to do is done once or can be done
//! afterwards, and whoever asks again learns which.
//!
//! The list of calls is that of the proto files: one that is added without a request here fails the test.

use std::collections::{BTreeSet, HashMap};
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use carillon::proto::internal::{
    CancelEventRequest, CreateApiKeyRequest, CreateApiKeyResponse, CreateAppRequest, CreatePublisherIdentityRequest,
    CreatePublisherIdentityResponse, CreateTenantRequest, DeleteAppRequest, DeletePublisherIdentityRequest,
    GetTenantRequest, ListApiKeysRequest, ListAppsRequest, ListAuditRecordsRequest, ListPublisherIdentitiesRequest,
    ListTenantsRequest, PublishBatchRequest, PublishRequest, RevokeApiKeyRequest, Role, Tenant as ProtoTenant,
    UpdateTenantRequest, WaitEventRequest,
};
use carillon::proto::public::{
    AddEventTypeSchemaRequest, CancelInvocationRequest, CheckCompatibilityRequest, CreateEventTypeRequest,
    DeleteEventTypeRequest, DeliveryPolicy, DisableSubscriptionRequest, EnableSubscriptionRequest, EventType,
    ExplainMatchRequest, GetEventRequest, GetEventTypeRequest, GetInvocationRequest, GetSubscriptionRequest,
    InvocationState, ListEventTypeSchemasRequest, ListEventTypesRequest, ListEventsRequest, ListInvocationsRequest,
    ListSubscriptionsRequest, RedriveInvocationsRequest, RetryInvocationRequest, RotateSubscriptionSecretRequest,
    SubscribeRequest, SubscribeResponse, Subscription, TestSubscriptionRequest, UndeleteEventTypeRequest,
    UndeleteSubscriptionRequest, UnsubscribeRequest, UpdateEventTypeRequest, UpdateSubscriptionRequest,
    UpdateWatchRequest, ValidateEventRequest, WatchRequest, WebhookMode,
};
use prost::Message;
use serde_json::json;
use tonic::Status;
use tonic::transport::Channel;

use super::{Row, TYPE, raw};
use crate::harness::tenant::{millis, publish_request, quick_policy, webhook};
use crate::harness::{Answer, Receiver, eventually};
use crate::update_watch::{Open, kind};

/// How often each call is cancelled.
const TIMES: usize = 10;
/// Calls at the same time afterwards: more than a replica has connections to the database.
const AFTERWARDS: usize = 48;
/// What is delivered in vain.
const DEAD: &str = "CUSTOM_BAD_DEAD";

/// What requests name.
struct Cast {
    slug: String,
    app: String,
    receiver: String,
    event: String,
    watch: String,
    /// Two for each time.
    dead: Vec<String>,
    /// One for each time.
    scheduled: Vec<String>,
    /// Of each call, and of each time that it was asked again.
    answers: HashMap<&'static str, Vec<Bytes>>,
}

impl Cast {
    fn answer<M: Message + Default>(&self, rpc: &str, n: usize) -> M {
        M::decode(self.answers[rpc][n].clone()).expect("an answer of this call")
    }

    fn subscription(&self, n: usize) -> String {
        let answer: SubscribeResponse = self.answer("EventService.Subscribe", n);
        answer.subscription.expect("it is set").id
    }
}

/// The request of one time, with the id that makes it one.
type Build = fn(&Cast, usize, String) -> Vec<u8>;

/// A call and its request.
macro_rules! call {
    ($rpc:literal, |$cast:pat_param, $n:pat_param, $id:pat_param| $request:expr) => {
        ($rpc, (|$cast: &Cast, $n: usize, $id: String| $request.encode_to_vec()) as Build)
    };
}

fn name(n: usize) -> String {
    format!("CUSTOM_CANCELLED_{n}")
}

/// Every unary call, in an order in which each finds what it needs.
fn calls() -> Vec<(&'static str, Build)> {
    let mut calls = event_types();
    calls.extend(subscriptions());
    calls.extend(events());
    calls.extend(administration());
    calls
}

fn event_types() -> Vec<(&'static str, Build)> {
    vec![
        call!("EventTypeService.CreateEventType", |_, n, request_id| CreateEventTypeRequest {
            name: name(n),
            request_id,
            ..Default::default()
        }),
        call!("EventTypeService.GetEventType", |_, n, _| GetEventTypeRequest { name: name(n), ..Default::default() }),
        call!("EventTypeService.ListEventTypes", |_, _, _| ListEventTypesRequest::default()),
        call!("EventTypeService.UpdateEventType", |_, n, request_id| {
            let event_type = EventType { name: name(n), description: "changed".to_owned(), ..Default::default() };
            UpdateEventTypeRequest { event_type: Some(event_type), request_id, ..Default::default() }
        }),
        call!("EventTypeService.AddEventTypeSchema", |_, n, request_id| AddEventTypeSchemaRequest {
            event_type: name(n),
            schema: "{}".to_owned(),
            request_id,
        }),
        call!("EventTypeService.ListEventTypeSchemas", |_, n, _| ListEventTypeSchemasRequest {
            event_type: name(n),
            ..Default::default()
        }),
        call!("EventTypeService.CheckCompatibility", |_, n, _| CheckCompatibilityRequest {
            event_type: name(n),
            schema: "{}".to_owned(),
            ..Default::default()
        }),
        call!("EventTypeService.ValidateEvent", |_, n, _| ValidateEventRequest {
            event_type: name(n),
            data: "{}".into(),
            ..Default::default()
        }),
        call!("EventTypeService.DeleteEventType", |_, n, request_id| DeleteEventTypeRequest {
            name: name(n),
            request_id,
            ..Default::default()
        }),
        call!("EventTypeService.UndeleteEventType", |_, n, request_id| UndeleteEventTypeRequest {
            name: name(n),
            request_id
        }),
    ]
}

fn subscriptions() -> Vec<(&'static str, Build)> {
    vec![
        call!("EventService.Subscribe", |cast, n, request_id| SubscribeRequest {
            app: cast.app.clone(),
            event_type: name(n),
            target: Some(webhook(&cast.receiver, WebhookMode::Structured)),
            request_id,
            ..Default::default()
        }),
        call!("EventService.GetSubscription", |cast, n, _| GetSubscriptionRequest {
            subscription_id: cast.subscription(n)
        }),
        call!("EventService.ListSubscriptions", |_, _, _| ListSubscriptionsRequest::default()),
        call!("EventService.UpdateSubscription", |cast, n, request_id| {
            let (id, display_name) = (cast.subscription(n), "changed".to_owned());
            let subscription = Subscription { id, display_name, ..Default::default() };
            UpdateSubscriptionRequest { subscription: Some(subscription), request_id, ..Default::default() }
        }),
        call!("EventService.RotateSubscriptionSecret", |cast, n, request_id| RotateSubscriptionSecretRequest {
            subscription_id: cast.subscription(n),
            request_id,
            ..Default::default()
        }),
        call!("EventService.TestSubscription", |cast, n, _| TestSubscriptionRequest {
            subscription_id: cast.subscription(n),
            data: "{}".into(),
            ..Default::default()
        }),
        call!("EventService.DisableSubscription", |cast, n, request_id| DisableSubscriptionRequest {
            subscription_id: cast.subscription(n),
            request_id,
            ..Default::default()
        }),
        call!("EventService.EnableSubscription", |cast, n, request_id| EnableSubscriptionRequest {
            subscription_id: cast.subscription(n),
            request_id,
            ..Default::default()
        }),
        call!("EventService.Unsubscribe", |cast, n, request_id| UnsubscribeRequest {
            subscription_id: cast.subscription(n),
            request_id,
            ..Default::default()
        }),
        call!("EventService.UndeleteSubscription", |cast, n, request_id| UndeleteSubscriptionRequest {
            subscription_id: cast.subscription(n),
            request_id,
            ..Default::default()
        }),
        call!("EventService.UpdateWatch", |cast, n, request_id| UpdateWatchRequest {
            watch_id: cast.watch.clone(),
            add: vec![kind(["even", "odd"][n % 2])],
            remove: vec![["odd", "even"][n % 2].to_owned()],
            request_id,
            ..Default::default()
        }),
    ]
}

fn events() -> Vec<(&'static str, Build)> {
    vec![
        call!("PublishService.Publish", |_, n, idempotency_key| PublishRequest {
            idempotency_key,
            ..publish_request(TYPE, &json!({ "n": n }))
        }),
        call!("PublishService.PublishBatch", |_, n, idempotency_key| {
            let request = PublishRequest { idempotency_key, ..publish_request(TYPE, &json!({ "n": n })) };
            PublishBatchRequest { requests: vec![request] }
        }),
        call!("PublishService.WaitEvent", |cast, _, _| WaitEventRequest {
            event_id: cast.event.clone(),
            timeout: Some(millis(500)),
        }),
        call!("PublishService.CancelEvent", |cast, n, request_id| CancelEventRequest {
            event_id: cast.scheduled[n].clone(),
            request_id
        }),
        call!("EventService.GetEvent", |cast, _, _| GetEventRequest { event_id: cast.event.clone() }),
        call!("EventService.ListEvents", |_, _, _| ListEventsRequest {
            filter: "data.n > 3".to_owned(),
            ..Default::default()
        }),
        call!("EventService.ExplainMatch", |cast, _, _| ExplainMatchRequest {
            event_id: cast.event.clone(),
            ..Default::default()
        }),
        call!("InvocationService.ListInvocations", |_, _, _| ListInvocationsRequest::default()),
        call!("InvocationService.GetInvocation", |cast, n, _| GetInvocationRequest {
            invocation_id: cast.dead[n].clone()
        }),
        call!("InvocationService.RetryInvocation", |cast, n, request_id| RetryInvocationRequest {
            invocation_id: cast.dead[n].clone(),
            request_id
        }),
        call!("InvocationService.CancelInvocation", |cast, n, request_id| CancelInvocationRequest {
            invocation_id: cast.dead[TIMES + n].clone(),
            request_id
        }),
        call!("InvocationService.RedriveInvocations", |_, _, request_id| RedriveInvocationsRequest {
            limit: 1,
            request_id,
            ..Default::default()
        }),
    ]
}

fn administration() -> Vec<(&'static str, Build)> {
    vec![
        call!("AdminService.CreateTenant", |cast, n, request_id| CreateTenantRequest {
            slug: format!("{}-{n}", cast.slug),
            request_id,
            ..Default::default()
        }),
        call!("AdminService.GetTenant", |cast, _, _| GetTenantRequest { tenant: cast.slug.clone() }),
        call!("AdminService.UpdateTenant", |cast, n, request_id| {
            let (slug, display_name) = (cast.slug.clone(), format!("Cancelled {n}"));
            let tenant = ProtoTenant { slug, display_name, ..Default::default() };
            UpdateTenantRequest { tenant: Some(tenant), request_id, ..Default::default() }
        }),
        call!("AdminService.ListTenants", |_, _, _| ListTenantsRequest::default()),
        call!("AdminService.CreateApp", |cast, n, request_id| CreateAppRequest {
            tenant: cast.slug.clone(),
            slug: format!("app-{n}"),
            request_id,
            ..Default::default()
        }),
        call!("AdminService.ListApps", |cast, _, _| ListAppsRequest {
            tenant: cast.slug.clone(),
            ..Default::default()
        }),
        call!("AdminService.DeleteApp", |cast, n, request_id| DeleteAppRequest {
            tenant: cast.slug.clone(),
            app: format!("app-{n}"),
            request_id
        }),
        call!("AdminService.CreateApiKey", |cast, _, request_id| CreateApiKeyRequest {
            tenant: cast.slug.clone(),
            role: Role::Viewer.into(),
            request_id,
            ..Default::default()
        }),
        call!("AdminService.ListApiKeys", |cast, _, _| ListApiKeysRequest {
            tenant: cast.slug.clone(),
            ..Default::default()
        }),
        call!("AdminService.RevokeApiKey", |cast, n, request_id| {
            let made: CreateApiKeyResponse = cast.answer("AdminService.CreateApiKey", n);
            let api_key_id = made.api_key.expect("it is set").id;
            RevokeApiKeyRequest { tenant: cast.slug.clone(), api_key_id, request_id }
        }),
        call!("AdminService.CreatePublisherIdentity", |cast, n, request_id| CreatePublisherIdentityRequest {
            tenant: cast.slug.clone(),
            subject: format!("dns:{}-{n}.example", cast.slug),
            request_id,
            ..Default::default()
        }),
        call!("AdminService.ListPublisherIdentities", |cast, _, _| ListPublisherIdentitiesRequest {
            tenant: cast.slug.clone(),
            ..Default::default()
        }),
        call!("AdminService.DeletePublisherIdentity", |cast, n, request_id| {
            let made: CreatePublisherIdentityResponse = cast.answer("AdminService.CreatePublisherIdentity", n);
            let publisher_identity_id = made.publisher_identity.expect("it is set").id;
            DeletePublisherIdentityRequest { tenant: cast.slug.clone(), publisher_identity_id, request_id }
        }),
        call!("AdminService.ListAuditRecords", |cast, _, _| ListAuditRecordsRequest {
            tenant: cast.slug.clone(),
            ..Default::default()
        }),
    ]
}

/// Polls a call at most so often, and for as long; then drops it, which resets its stream.
async fn cancelled(call: impl Future<Output = Result<Bytes, Status>>, polls: usize, time: Duration) {
    let mut call = pin!(call);
    let mut left = polls;
    let polled = std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(());
        }
        left -= 1;
        call.as_mut().poll(context).map(|_ended_before| ())
    });
    let _in_time = tokio::time::timeout(time, polled).await;
}

/// The channels of each replica and the header to send.
struct Doors {
    public: Vec<Channel>,
    publish: Vec<Channel>,
    admin: Vec<Channel>,
    authorization: Vec<String>,
}

impl Doors {
    async fn call(&self, rpc: &raw::Rpc, replica: usize, body: Bytes) -> Result<Bytes, Status> {
        let (channels, authorization) = match rpc.name.split('.').next() {
            Some("AdminService") => (&self.admin, &[][..]),
            Some("PublishService") => (&self.publish, &[][..]),
            _ => (&self.public, &self.authorization[..]),
        };
        raw::call(channels[replica].clone(), &rpc.path, authorization, body).await
    }
}

#[tokio::test]
async fn a8_every_call_that_is_cancelled_anywhere_leaves_the_service_whole() {
    let rpcs: HashMap<String, raw::Rpc> =
        raw::rpcs().into_iter().filter(|rpc| rpc.unary).map(|rpc| (rpc.name.clone(), rpc)).collect();
    let known: BTreeSet<&str> = calls().iter().map(|(rpc, _)| *rpc).collect();
    let declared: BTreeSet<&str> = rpcs.keys().map(String::as_str).collect();
    assert_eq!(known, declared, "left: tried here; right: declared in the proto files");

    let mut row = Row::open().await;
    let receiver = Receiver::start().await;
    let watch = Open::at(&row.tenant, 0, WatchRequest { filters: vec![kind("odd")], ..Default::default() }).await;
    let mut cast = prepare(&mut row, &receiver, watch.id.clone()).await;
    let replicas = 0..row.world.replicas.len();
    let doors = Doors {
        public: replicas.clone().map(|replica| row.world.public(replica)).collect(),
        publish: replicas.clone().map(|replica| row.world.internal(replica, &row.tenant.identity)).collect(),
        admin: replicas.map(|replica| row.world.internal(replica, &row.world.operator)).collect(),
        authorization: vec![format!("Bearer {}", row.tenant.key)],
    };
    for (name, build) in calls() {
        let rpc = &rpcs[name];
        // How long the last one took that was not cancelled: moments are spread over a little more.
        let mut took = Duration::from_millis(20);
        for n in 0..TIMES {
            let body = Bytes::from(build(&cast, n, format!("{name} {n}")));
            let polls = if n % 2 == 0 { rand::random_range(1..8) } else { usize::MAX };
            let time = took.mul_f64(rand::random_range(0.0..1.3));
            cancelled(doors.call(rpc, n % 2, body.clone()), polls, time).await;
            let sent = Instant::now();
            // Whoever asks again is answered, on each replica; with the id of a change alike.
            let answer =
                eventually(&format!("{name}, cancelled after {polls} polls or {time:?}, is answered"), || async {
                    let first = doors.call(rpc, 1 - n % 2, body.clone()).await;
                    let second = doors.call(rpc, n % 2, body.clone()).await;
                    match (first, second) {
                        (Ok(first), Ok(second)) if first == second || !rpc.request_id => Ok(first),
                        other => Err(other),
                    }
                })
                .await;
            took = sent.elapsed() / 2;
            cast.answers.entry(name).or_default().push(answer);
        }
        row.accepted +=
            if matches!(name, "PublishService.Publish" | "PublishService.PublishBatch") { TIMES } else { 0 };
    }
    // No connection to the database was lost on the way: each replica answers more calls at the same time than it has of them.
    let (publish, list) = (&rpcs["PublishService.Publish"], &rpcs["EventService.ListEvents"]);
    let afterwards = (0..AFTERWARDS).map(|n| {
        let publish_request = publish_request(TYPE, &json!({ "n": n }));
        let (doors, replica) = (&doors, n % 2);
        async move {
            let listed = doors.call(list, replica, Bytes::from(ListEventsRequest::default().encode_to_vec())).await;
            let published = doors.call(publish, replica, Bytes::from(publish_request.encode_to_vec())).await;
            listed.and(published)
        }
    });
    for answer in futures::future::join_all(afterwards).await {
        row.accepted += 1;
        row.ensure("afterwards", answer.is_ok(), answer.err());
    }
    row.close().await;
}

/// Makes what the requests name.
async fn prepare(row: &mut Row, receiver: &Receiver, watch: String) -> Cast {
    let tenant = &row.tenant;
    tenant.declare(DEAD).await;
    receiver.answers("/dead", [Answer::Status(500)]);
    let mut request = tenant.subscribe_request(DEAD, &receiver.url("/dead"));
    request.delivery_policy = Some(DeliveryPolicy { max_attempts: 1, ..quick_policy() });
    tenant.events().subscribe(request).await.expect("subscribed");
    let (mut dead, mut scheduled) = (Vec::new(), Vec::new());
    for n in 0..2 * TIMES {
        let event = tenant.publish(DEAD, &json!({ "n": n })).await.event_id;
        dead.push(tenant.all_invocations_become(&event, InvocationState::DeadLettered).await.remove(0).id);
    }
    let later = carillon::clock::now() + chrono::TimeDelta::hours(1);
    for n in 0..TIMES {
        let request = PublishRequest { deliver_at: Some(later.into()), ..publish_request(DEAD, &json!({ "n": n })) };
        scheduled.push(tenant.try_publish(request).await.expect("scheduled").event_id);
    }
    let event = tenant.publish(TYPE, &json!({ "n": 0 })).await.event_id;
    row.accepted += 1;
    Cast {
        slug: row.tenant.slug.clone(),
        app: row.tenant.app.clone(),
        receiver: receiver.url("/hook"),
        event,
        watch,
        dead,
        scheduled,
        answers: HashMap::new(),
    }
}
