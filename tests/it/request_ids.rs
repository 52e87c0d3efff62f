//! `request_id`: every mutation takes one; a retry gets the first answer and changes nothing, the same id with another body is refused,
//! and of racing calls one makes the change.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::future::Future;
use std::sync::Mutex;

use carillon::proto::internal::admin_service_client::AdminServiceClient;
use carillon::proto::internal::{
    CancelEventRequest, CreateApiKeyRequest, CreateAppRequest, CreatePublisherIdentityRequest, CreateTenantRequest,
    DeleteAppRequest, DeletePublisherIdentityRequest, ListAuditRecordsRequest, PublishRequest, RevokeApiKeyRequest,
    Role, Tenant as ProtoTenant, UpdateTenantRequest,
};
use carillon::proto::public::{
    AddEventTypeSchemaRequest, CancelInvocationRequest, CreateEventTypeRequest, DeleteEventTypeRequest, DeliveryPolicy,
    DisableSubscriptionRequest, EnableSubscriptionRequest, EventType, InvocationState, RedriveInvocationsRequest,
    RetryInvocationRequest, RotateSubscriptionSecretRequest, Subscription, UndeleteEventTypeRequest,
    UndeleteSubscriptionRequest, UnsubscribeRequest, UpdateEventTypeRequest, UpdateSubscriptionRequest,
    UpdateWatchRequest, WatchRequest,
};
use prost::Message as _;
use serde_json::json;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::harness::tenant::{Clients, admin, assert_refused, publish_request, quick_policy};
use crate::harness::{Answer, Receiver, Tenant, World};
use crate::update_watch::{Open, kind};

/// What reads, streams or tries, and so changes nothing that a retry could change twice.
const READS: [&str; 9] = ["Get", "List", "Watch", "Check", "Validate", "Explain", "Test", "Wait", "ServerReflection"];
/// What has something else that makes retries safe.
const OTHERWISE: [(&str, &str); 2] = [("Publish", "idempotency_key"), ("PublishBatch", "requests")];
/// What the audit log does not hold.
const NOT_AUDITED: [&str; 2] = ["CancelEvent", "UpdateWatch"];

/// Every mutation, as the descriptors name them: its request must take an id.
fn mutations() -> BTreeSet<String> {
    let files = prost_types::FileDescriptorSet::decode(carillon::proto::DESCRIPTORS).expect("descriptors");
    let mut found = BTreeSet::new();
    for file in files.file.iter().filter(|file| file.package().starts_with("carillon.")) {
        for method in file.service.iter().flat_map(|service| &service.method) {
            if READS.iter().any(|prefix| method.name().starts_with(prefix)) {
                continue;
            }
            let input = method.input_type().rsplit('.').next().expect("a name");
            let message = file.message_type.iter().find(|message| message.name() == input);
            let fields: Vec<_> = message
                .expect("it is in the same file")
                .field
                .iter()
                .map(prost_types::FieldDescriptorProto::name)
                .collect();
            match OTHERWISE.iter().find(|(name, _)| *name == method.name()) {
                Some((name, instead)) => assert!(fields.contains(instead), "{name} has no {instead}"),
                None => {
                    assert!(fields.contains(&"request_id"), "{} takes no request_id", method.name());
                    found.insert(method.name().to_owned());
                }
            }
        }
    }
    found
}

/// Calls that are sent at the same time.
const RACERS: usize = 6;

/// How the first calls are made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    /// Several at the same time, on both replicas.
    Raced,
    /// By itself: a racing one is told how far the first one is.
    Alone,
}

struct Stage<'a> {
    world: &'a World,
    tried: Mutex<BTreeSet<String>>,
}

impl Stage<'_> {
    /// How often a change is on record.
    async fn recorded(&self, tenant: &str, rpc: &str) -> usize {
        let request = ListAuditRecordsRequest { tenant: tenant.to_owned(), page_size: 1_000, ..Default::default() };
        let page = admin(self.world).list_audit_records(request).await;
        let records = page.map(|page| page.into_inner().audit_records).unwrap_or_default();
        records.iter().filter(|record| record.action == rpc).count()
    }

    /// Tries one RPC: `call` sends it to a replica with an id, with another body where the last is true. Answers its answer.
    async fn tries<R, F>(&self, tenant: &str, rpc: &str, first: First, call: impl Fn(usize, String, bool) -> F) -> R
    where
        R: Debug + PartialEq,
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let id = format!("{rpc} 1");
        let before = self.recorded(tenant, rpc).await;
        let racers = if first == First::Raced { RACERS } else { 1 };
        let calls = (0..racers).map(|n| call(n % 2, id.clone(), false));
        let mut answers = Vec::new();
        for answer in futures::future::join_all(calls).await {
            answers.push(answer.unwrap_or_else(|status| panic!("{rpc}: {status:?}")).into_inner());
        }
        for replica in 0..2 {
            let again = call(replica, id.clone(), false).await;
            answers.push(again.unwrap_or_else(|status| panic!("{rpc}, repeated: {status:?}")).into_inner());
        }
        assert!(answers.windows(2).all(|two| two[0] == two[1]), "{rpc}: {answers:#?}");
        if !NOT_AUDITED.contains(&rpc) {
            assert_eq!(self.recorded(tenant, rpc).await, before + 1, "{rpc} was made once");
        }
        let other = call(1, id, true).await.map(Response::into_inner);
        assert_refused(other, Code::FailedPrecondition, "REQUEST_ID_REUSED");
        assert!(self.tried.lock().expect("no panic").insert(rpc.to_owned()), "{rpc} is tried twice");
        answers.remove(0)
    }
}

#[tokio::test]
async fn every_mutation_is_made_once_and_its_retry_gets_the_first_answer() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    let stage = Stage { world, tried: Mutex::default() };
    administration(&stage, &tenant).await;
    event_types(&stage, &tenant).await;
    subscriptions(&stage, &tenant).await;
    invocations(&stage, &tenant).await;
    watches(&stage, &tenant).await;
    assert_eq!(stage.tried.into_inner().expect("no panic"), mutations(), "each is tried");
}

async fn administration(stage: &Stage<'_>, tenant: &Tenant) {
    let (world, slug) = (stage.world, tenant.slug.as_str());
    let at = |replica| AdminServiceClient::<Channel>::new(world.internal(replica, &world.operator));
    let new = format!("{slug}-new");
    stage
        .tries(&new, "CreateTenant", First::Raced, |replica, request_id, other| {
            let slug = if other { format!("{new}-other") } else { new.clone() };
            let mut admin = at(replica);
            async move { admin.create_tenant(CreateTenantRequest { slug, request_id, ..Default::default() }).await }
        })
        .await;
    stage
        .tries(slug, "UpdateTenant", First::Raced, |replica, request_id, other| {
            let display_name = if other { "Other" } else { "Changed" }.to_owned();
            let changed = ProtoTenant { slug: slug.to_owned(), display_name, ..Default::default() };
            let request = UpdateTenantRequest { tenant: Some(changed), request_id, ..Default::default() };
            let mut admin = at(replica);
            async move { admin.update_tenant(request).await }
        })
        .await;
    stage
        .tries(slug, "CreateApp", First::Raced, |replica, request_id, other| {
            let app = if other { "second" } else { "first" }.to_owned();
            let request = CreateAppRequest { tenant: slug.to_owned(), slug: app, request_id, ..Default::default() };
            let mut admin = at(replica);
            async move { admin.create_app(request).await }
        })
        .await;
    let key = stage
        .tries(slug, "CreateApiKey", First::Raced, |replica, request_id, other| {
            let role = if other { Role::Admin } else { Role::Viewer }.into();
            let request = CreateApiKeyRequest { tenant: slug.to_owned(), role, request_id, ..Default::default() };
            let mut admin = at(replica);
            async move { admin.create_api_key(request).await }
        })
        .await;
    let list = carillon::proto::public::ListSubscriptionsRequest::default();
    let mut viewer = Clients::new(world, 1, &key.secret).events;
    viewer.list_subscriptions(list).await.expect("the secret of the repeated answer is the key's");
    let api_key = key.api_key.expect("it is set").id;
    stage
        .tries(slug, "RevokeApiKey", First::Raced, |replica, request_id, other| {
            let api_key_id = if other { "key_00000000000000000000000000".to_owned() } else { api_key.clone() };
            let request = RevokeApiKeyRequest { tenant: slug.to_owned(), api_key_id, request_id };
            let mut admin = at(replica);
            async move { admin.revoke_api_key(request).await }
        })
        .await;
    let made = stage
        .tries(slug, "CreatePublisherIdentity", First::Raced, |replica, request_id, other| {
            let subject = format!("dns:{slug}{}.example", if other { "-other" } else { "" });
            let tenant = slug.to_owned();
            let request = CreatePublisherIdentityRequest { tenant, subject, request_id, ..Default::default() };
            let mut admin = at(replica);
            async move { admin.create_publisher_identity(request).await }
        })
        .await;
    let identity = made.publisher_identity.expect("it is set").id;
    stage
        .tries(slug, "DeletePublisherIdentity", First::Raced, |replica, request_id, other| {
            let absent = "pub_00000000000000000000000000".to_owned();
            let publisher_identity_id = if other { absent } else { identity.clone() };
            let tenant = slug.to_owned();
            let request = DeletePublisherIdentityRequest { tenant, publisher_identity_id, request_id };
            let mut admin = at(replica);
            async move { admin.delete_publisher_identity(request).await }
        })
        .await;
    stage
        .tries(slug, "DeleteApp", First::Raced, |replica, request_id, other| {
            let app = if other { "shop" } else { "first" }.to_owned();
            let mut admin = at(replica);
            let request = DeleteAppRequest { tenant: slug.to_owned(), app, request_id };
            async move { admin.delete_app(request).await }
        })
        .await;
}

async fn event_types(stage: &Stage<'_>, tenant: &Tenant) {
    const NAME: &str = "CUSTOM_REPEATED";
    let slug = tenant.slug.as_str();
    let at = |replica: usize| tenant.at[replica].types.clone();
    let name = |other: bool| if other { "CUSTOM_OTHER" } else { NAME }.to_owned();
    stage
        .tries(slug, "CreateEventType", First::Raced, |replica, request_id, other| {
            let mut types = at(replica);
            let request = CreateEventTypeRequest { name: name(other), request_id, ..Default::default() };
            async move { types.create_event_type(request).await }
        })
        .await;
    stage
        .tries(slug, "UpdateEventType", First::Raced, |replica, request_id, other| {
            let description = if other { "other" } else { "changed" }.to_owned();
            let event_type = EventType { name: NAME.to_owned(), description, ..Default::default() };
            let request = UpdateEventTypeRequest { event_type: Some(event_type), request_id, ..Default::default() };
            let mut types = at(replica);
            async move { types.update_event_type(request).await }
        })
        .await;
    stage
        .tries(slug, "AddEventTypeSchema", First::Raced, |replica, request_id, other| {
            let schema = if other { "{\"title\": \"b\"}" } else { "{}" }.to_owned();
            let mut types = at(replica);
            let request = AddEventTypeSchemaRequest { event_type: NAME.to_owned(), schema, request_id };
            async move { types.add_event_type_schema(request).await }
        })
        .await;
    stage
        .tries(slug, "DeleteEventType", First::Raced, |replica, request_id, other| {
            let mut types = at(replica);
            let request = DeleteEventTypeRequest { name: name(other), request_id, ..Default::default() };
            async move { types.delete_event_type(request).await }
        })
        .await;
    stage
        .tries(slug, "UndeleteEventType", First::Raced, |replica, request_id, other| {
            let mut types = at(replica);
            let request = UndeleteEventTypeRequest { name: name(other), request_id };
            async move { types.undelete_event_type(request).await }
        })
        .await;
}

async fn subscriptions(stage: &Stage<'_>, tenant: &Tenant) {
    let slug = tenant.slug.as_str();
    let at = |replica: usize| tenant.at[replica].events.clone();
    let made = stage
        .tries(slug, "Subscribe", First::Raced, |replica, request_id, other| {
            let path = if other { "other" } else { "hook" };
            let mut request = tenant.subscribe_request("CUSTOM_REPEATED", &format!("http://127.0.0.1:9/{path}"));
            request.request_id = request_id;
            let mut events = at(replica);
            async move { events.subscribe(request).await }
        })
        .await;
    let id = made.subscription.expect("it is set").id;
    let subscription_id = |other: bool| if other { "sub_00000000000000000000000000".to_owned() } else { id.clone() };
    stage
        .tries(slug, "UpdateSubscription", First::Raced, |replica, request_id, other| {
            let display_name = if other { "other" } else { "changed" }.to_owned();
            let subscription = Subscription { id: id.clone(), display_name, ..Default::default() };
            let request =
                UpdateSubscriptionRequest { subscription: Some(subscription), request_id, ..Default::default() };
            let mut events = at(replica);
            async move { events.update_subscription(request).await }
        })
        .await;
    let rotated = stage
        .tries(slug, "RotateSubscriptionSecret", First::Raced, |replica, request_id, other| {
            let request = RotateSubscriptionSecretRequest {
                subscription_id: subscription_id(other),
                request_id,
                ..Default::default()
            };
            let mut events = at(replica);
            async move { events.rotate_subscription_secret(request).await }
        })
        .await;
    assert!(rotated.signing_secret.starts_with("whsec_"), "a retry gets the secret too");
    stage
        .tries(slug, "DisableSubscription", First::Raced, |replica, request_id, other| {
            let request = DisableSubscriptionRequest {
                subscription_id: subscription_id(other),
                request_id,
                ..Default::default()
            };
            let mut events = at(replica);
            async move { events.disable_subscription(request).await }
        })
        .await;
    stage
        .tries(slug, "EnableSubscription", First::Raced, |replica, request_id, other| {
            let request =
                EnableSubscriptionRequest { subscription_id: subscription_id(other), request_id, ..Default::default() };
            let mut events = at(replica);
            async move { events.enable_subscription(request).await }
        })
        .await;
    stage
        .tries(slug, "Unsubscribe", First::Raced, |replica, request_id, other| {
            let request =
                UnsubscribeRequest { subscription_id: subscription_id(other), request_id, ..Default::default() };
            let mut events = at(replica);
            async move { events.unsubscribe(request).await }
        })
        .await;
    stage
        .tries(slug, "UndeleteSubscription", First::Raced, |replica, request_id, other| {
            let request = UndeleteSubscriptionRequest {
                subscription_id: subscription_id(other),
                request_id,
                ..Default::default()
            };
            let mut events = at(replica);
            async move { events.undelete_subscription(request).await }
        })
        .await;
}

async fn invocations(stage: &Stage<'_>, tenant: &Tenant) {
    const EVENT: &str = "CUSTOM_DEAD";
    let slug = tenant.slug.as_str();
    let receiver = Receiver::start().await;
    receiver.answers("/dead", [Answer::Status(500)]);
    tenant.declare(EVENT).await;
    let mut request = tenant.subscribe_request(EVENT, &receiver.url("/dead"));
    request.delivery_policy = Some(DeliveryPolicy { max_attempts: 1, ..quick_policy() });
    tenant.events().subscribe(request).await.expect("subscribed");
    let mut dead = Vec::new();
    for n in 0..3 {
        let event = tenant.publish(EVENT, &json!({ "n": n })).await.event_id;
        dead.push(tenant.all_invocations_become(&event, InvocationState::DeadLettered).await.remove(0).id);
    }
    let at = |replica: usize| tenant.at[replica].invocations.clone();
    stage
        .tries(slug, "RetryInvocation", First::Alone, |replica, request_id, other| {
            let mut invocations = at(replica);
            let invocation_id = dead[usize::from(other)].clone();
            async move { invocations.retry_invocation(RetryInvocationRequest { invocation_id, request_id }).await }
        })
        .await;
    stage
        .tries(slug, "CancelInvocation", First::Alone, |replica, request_id, other| {
            let mut invocations = at(replica);
            let invocation_id = dead[1 + usize::from(other)].clone();
            async move { invocations.cancel_invocation(CancelInvocationRequest { invocation_id, request_id }).await }
        })
        .await;
    let redriven = stage
        .tries(slug, "RedriveInvocations", First::Alone, |replica, request_id, other| {
            let mut invocations = at(replica);
            let request = RedriveInvocationsRequest { limit: 1 + i32::from(other), request_id, ..Default::default() };
            async move { invocations.redrive_invocations(request).await }
        })
        .await;
    assert_eq!(redriven.redriven_count, 1);

    let later = carillon::clock::now() + chrono::TimeDelta::hours(1);
    let scheduled = PublishRequest { deliver_at: Some(later.into()), ..publish_request(EVENT, &json!({})) };
    let event = tenant.try_publish(scheduled).await.expect("scheduled").event_id;
    stage
        .tries(slug, "CancelEvent", First::Raced, |replica, request_id, other| {
            let event_id = if other { "evt_00000000000000000000000000".to_owned() } else { event.clone() };
            let mut publisher = tenant.publishers[replica].clone();
            async move { publisher.cancel_event(CancelEventRequest { event_id, request_id }).await }
        })
        .await;
}

async fn watches(stage: &Stage<'_>, tenant: &Tenant) {
    let mut watch = Open::at(tenant, 0, WatchRequest { filters: vec![kind("a")], ..Default::default() }).await;
    let answer = stage
        .tries(&tenant.slug, "UpdateWatch", First::Raced, |replica, request_id, other| {
            let mut events = tenant.at[replica].events.clone();
            let add = vec![kind(if other { "c" } else { "b" })];
            // By itself a second one would be refused: the filter is gone.
            let remove = vec!["a".to_owned()];
            let request =
                UpdateWatchRequest { watch_id: watch.id.clone(), add, remove, request_id, ..Default::default() };
            async move { events.update_watch(request).await }
        })
        .await;
    assert_eq!((watch.changed().await, &watch.cursor), (answer.filter_version, &answer.cursor));
    let more = UpdateWatchRequest { watch_id: watch.id.clone(), add: vec![kind("d")], ..Default::default() };
    let next = tenant.events().update_watch(more).await.expect("a change").into_inner();
    assert_eq!(next.filter_version, answer.filter_version + 1, "the former one was made once");
    assert_eq!(watch.changed().await, next.filter_version);
}

#[tokio::test]
async fn what_changed_nothing_is_answered_alike_whatever_happens_in_between() {
    let tenant = World::shared().await.tenant().await;
    let made = tenant.events().subscribe(tenant.subscribe_request("USER_CREATE", "http://127.0.0.1:9/a")).await;
    let id = made.expect("subscribed").into_inner().subscription.expect("it is set").id;
    let enable = EnableSubscriptionRequest {
        subscription_id: id.clone(),
        request_id: "enable".to_owned(),
        ..Default::default()
    };
    let first = tenant.events().enable_subscription(enable.clone()).await.expect("it is active already").into_inner();
    let disable = DisableSubscriptionRequest { subscription_id: id.clone(), ..Default::default() };
    let disabled = tenant.events().disable_subscription(disable).await.expect("disabled").into_inner();
    // A retry that comes late enables nothing.
    let late = tenant.events().enable_subscription(enable).await.expect("answered").into_inner();
    assert_eq!(late, first);
    let get = carillon::proto::public::GetSubscriptionRequest { subscription_id: id };
    let shown = tenant.events().get_subscription(get).await.expect("it exists").into_inner().subscription;
    assert_eq!(shown.expect("it is set").etag, disabled.subscription.expect("it is set").etag);
}

#[tokio::test]
async fn an_id_has_one_shape_and_is_one_calls_of_its_tenant() {
    let world = World::shared().await;
    let (one, other) = (world.tenant().await, world.tenant().await);
    let create = |name: &str, id: &str| CreateEventTypeRequest {
        name: name.to_owned(),
        request_id: id.to_owned(),
        ..Default::default()
    };
    for wrong in ["\n", "ä", &"x".repeat(257)] {
        let refused = one.types().create_event_type(create("CUSTOM_A", wrong)).await;
        assert_refused(refused, Code::InvalidArgument, "FIELD_INVALID");
    }
    one.types().create_event_type(create("CUSTOM_A", "same")).await.expect("made");
    other.types().create_event_type(create("CUSTOM_B", "same")).await.expect("another tenant's");
    let delete =
        DeleteEventTypeRequest { name: "CUSTOM_A".to_owned(), request_id: "same".to_owned(), ..Default::default() };
    let refused = one.types().delete_event_type(delete.clone()).await;
    assert_refused(refused, Code::FailedPrecondition, "REQUEST_ID_REUSED");
    // Also where both requests have the same fields.
    one.types()
        .delete_event_type(DeleteEventTypeRequest { request_id: "gone".to_owned(), ..delete })
        .await
        .expect("gone");
    let undelete = UndeleteEventTypeRequest { name: "CUSTOM_A".to_owned(), request_id: "gone".to_owned() };
    let refused = one.types().undelete_event_type(undelete).await;
    assert_refused(refused, Code::FailedPrecondition, "REQUEST_ID_REUSED");
}
