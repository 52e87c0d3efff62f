//! G10: another tenant's ids answer exactly as absent ones, in every field of every call that takes one. The list of calls and
//! fields is that of the proto files: one that is added without a member here fails the test.

use std::collections::BTreeSet;

use carillon::proto::internal::{CancelEventRequest, CreateAppRequest, PublishBatchRequest, WaitEventRequest};
use carillon::proto::public::watch_request::Start;
use carillon::proto::public::{
    AddEventTypeSchemaRequest, CancelInvocationRequest, CheckCompatibilityRequest, CreateEventTypeRequest,
    DeleteEventTypeRequest, DisableSubscriptionRequest, DraftFilter, EnableSubscriptionRequest, EventType,
    ExplainMatchRequest, GetEventRequest, GetEventTypeRequest, GetInvocationRequest, GetSubscriptionRequest,
    InvocationState, ListEventTypeSchemasRequest, ListEventsRequest, ListInvocationsRequest, ListSubscriptionsRequest,
    RedriveInvocationsRequest, RetryInvocationRequest, RotateSubscriptionSecretRequest, SubscribeRequest, Subscription,
    TestSubscriptionRequest, UndeleteEventTypeRequest, UndeleteSubscriptionRequest, UnsubscribeRequest,
    UpdateEventTypeRequest, UpdateSubscriptionRequest, UpdateWatchRequest, ValidateEventRequest, WatchFilter,
    WatchRequest,
};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde_json::json;
use tonic::{Code, Status};

use crate::bad_inputs::raw;
use crate::harness::tenant::{admin, cloud_event, publish_request, reason, webhook};
use crate::harness::{Receiver, Tenant, World, within};

/// The ids that calls take.
struct Ids {
    subscription: String,
    event: String,
    invocation: String,
    event_type: String,
    app: String,
    watch: String,
    /// A place in the caller's own log.
    cursor: String,
}

type Call = fn(&Tenant, &Ids) -> BoxFuture<'static, Result<String, Status>>;

/// A call that is given an id in one field, and the reason that it is refused with; none where it finds nothing. The answer is
/// turned into text.
macro_rules! call {
    ($rpc:literal $field:literal $refused:literal, $client:ident . $method:ident, |$ids:ident| $request:expr) => {
        (
            concat!($rpc, " ", $field),
            $refused,
            (|tenant: &Tenant, $ids: &Ids| {
                let (mut client, request) = (tenant.$client(), $request);
                async move { client.$method(request).await.map(|answer| format!("{:?}", answer.into_inner())) }.boxed()
            }) as Call,
        )
    };
}

/// Fields that take a name which selects nothing of another tenant's, and why.
const HARMLESS: &[(&str, &str)] = &[
    ("EventTypeService.CreateEventType name", "a name is free in each tenant; tried below"),
    ("EventService.UpdateSubscription subscription.app", "cannot be changed"),
    ("EventService.UpdateSubscription subscription.event_type", "cannot be changed"),
    ("EventService.Watch filters.name", "the caller's own word"),
    ("EventService.UpdateWatch add.name", "the caller's own word"),
    ("EventService.UpdateWatch add.event_types", "read as those of Watch"),
    ("EventService.TestSubscription event.id", "the publisher's own word"),
    ("EventService.TestSubscription event.type", "must be the subscription's"),
    ("EventService.ExplainMatch event.id", "the publisher's own word"),
    ("PublishService.Publish event.id", "the publisher's own word, kept apart by tenant; tried below"),
    ("PublishService.PublishBatch requests.event.id", "as in Publish"),
];

fn calls() -> Vec<(&'static str, &'static str, Call)> {
    vec![
        call!("EventService.Subscribe" "app" "APP_NOT_FOUND", events.subscribe, |ids| SubscribeRequest {
            app: ids.app.clone(),
            event_type: "USER_CREATE".to_owned(),
            target: Some(webhook("http://127.0.0.1:9/hook", carillon::proto::public::WebhookMode::Raw)),
            ..Default::default()
        }),
        call!("EventService.Subscribe" "event_type" "EVENT_TYPE_NOT_FOUND", events.subscribe, |ids| SubscribeRequest {
            app: "shop".to_owned(),
            event_type: ids.event_type.clone(),
            target: Some(webhook("http://127.0.0.1:9/hook", carillon::proto::public::WebhookMode::Raw)),
            ..Default::default()
        }),
        call!("EventService.Unsubscribe" "subscription_id" "SUBSCRIPTION_NOT_FOUND", events.unsubscribe, |ids| {
            UnsubscribeRequest { subscription_id: ids.subscription.clone(), ..Default::default() }
        }),
        call!("EventService.Unsubscribe" "app" "NOT_SUBSCRIBED", events.unsubscribe, |ids| UnsubscribeRequest {
            app: ids.app.clone(),
            event_type: "USER_CREATE".to_owned(),
            target: Some(webhook("http://127.0.0.1:9/hook", carillon::proto::public::WebhookMode::Raw)),
            ..Default::default()
        }),
        call!("EventService.Unsubscribe" "event_type" "NOT_SUBSCRIBED", events.unsubscribe, |ids| UnsubscribeRequest {
            app: "shop".to_owned(),
            event_type: ids.event_type.clone(),
            target: Some(webhook("http://127.0.0.1:9/hook", carillon::proto::public::WebhookMode::Raw)),
            ..Default::default()
        }),
        call!("EventService.GetSubscription" "subscription_id" "SUBSCRIPTION_NOT_FOUND", events.get_subscription, |ids| {
            GetSubscriptionRequest { subscription_id: ids.subscription.clone() }
        }),
        call!("EventService.ListSubscriptions" "app" "APP_NOT_FOUND", events.list_subscriptions, |ids| {
            ListSubscriptionsRequest { app: ids.app.clone(), ..Default::default() }
        }),
        call!("EventService.ListSubscriptions" "event_type" "", events.list_subscriptions, |ids| {
            ListSubscriptionsRequest { event_type: ids.event_type.clone(), ..Default::default() }
        }),
        call!("EventService.UpdateSubscription" "subscription.id" "SUBSCRIPTION_NOT_FOUND", events.update_subscription, |ids| {
            UpdateSubscriptionRequest {
                subscription: Some(Subscription {
                    id: ids.subscription.clone(),
                    display_name: "x".to_owned(),
                    ..Default::default()
                }),
                update_mask: None, ..Default::default() }
        }),
        call!("EventService.EnableSubscription" "subscription_id" "SUBSCRIPTION_NOT_FOUND", events.enable_subscription, |ids| {
            EnableSubscriptionRequest { subscription_id: ids.subscription.clone(), ..Default::default() }
        }),
        call!("EventService.DisableSubscription" "subscription_id" "SUBSCRIPTION_NOT_FOUND", events.disable_subscription, |ids| {
            DisableSubscriptionRequest { subscription_id: ids.subscription.clone(), ..Default::default() }
        }),
        call!("EventService.UndeleteSubscription" "subscription_id" "SUBSCRIPTION_NOT_FOUND", events.undelete_subscription, |ids| {
            UndeleteSubscriptionRequest { subscription_id: ids.subscription.clone(), ..Default::default() }
        }),
        call!("EventService.RotateSubscriptionSecret" "subscription_id" "SUBSCRIPTION_NOT_FOUND", events.rotate_subscription_secret, |ids| {
            RotateSubscriptionSecretRequest { subscription_id: ids.subscription.clone(), ..Default::default() }
        }),
        call!("EventService.TestSubscription" "subscription_id" "SUBSCRIPTION_NOT_FOUND", events.test_subscription, |ids| {
            TestSubscriptionRequest { subscription_id: ids.subscription.clone(), data: "{}".into(), ..Default::default() }
        }),
        call!("EventService.ExplainMatch" "event_id" "EVENT_NOT_FOUND", events.explain_match, |ids| {
            ExplainMatchRequest { event_id: ids.event.clone(), ..Default::default() }
        }),
        call!("EventService.ExplainMatch" "event.type" "EVENT_TYPE_NOT_FOUND", events.explain_match, |ids| {
            ExplainMatchRequest { event: Some(cloud_event(&ids.event_type, &json!({}))), ..Default::default() }
        }),
        call!("EventService.ExplainMatch" "draft.event_type" "EVENT_TYPE_NOT_FOUND", events.explain_match, |ids| {
            let draft = DraftFilter { event_type: ids.event_type.clone(), filter: "true".to_owned(), last_events: 10 };
            ExplainMatchRequest { draft: Some(draft), ..Default::default() }
        }),
        call!("EventService.GetEvent" "event_id" "EVENT_NOT_FOUND", events.get_event, |ids| {
            GetEventRequest { event_id: ids.event.clone() }
        }),
        call!("EventService.ListEvents" "event_types" "", events.list_events, |ids| {
            ListEventsRequest { event_types: vec![ids.event_type.clone()], page_size: 1, ..Default::default() }
        }),
        call!("EventService.Watch" "filters.event_types" "", events.watch, |ids| {
            let event_types = vec![ids.event_type.clone()];
            let filter = WatchFilter { name: "a".to_owned(), event_types, ..Default::default() };
            WatchRequest { filters: vec![filter], ..Default::default() }
        }),
        call!("EventService.Watch" "watch" "WATCH_NOT_FOUND", events.watch, |ids| {
            let resume_cursor = ids.cursor.clone();
            WatchRequest { start: Some(Start::Watch(ids.watch.clone())), resume_cursor, ..Default::default() }
        }),
        call!("EventService.UpdateWatch" "watch_id" "WATCH_NOT_FOUND", events.update_watch, |ids| {
            let add = vec![WatchFilter { name: "a".to_owned(), filter: "true".to_owned(), ..Default::default() }];
            UpdateWatchRequest { watch_id: ids.watch.clone(), add, ..Default::default() }
        }),
        call!("InvocationService.ListInvocations" "event_id" "", invocations.list_invocations, |ids| {
            ListInvocationsRequest { event_id: ids.event.clone(), ..Default::default() }
        }),
        call!("InvocationService.ListInvocations" "subscription_id" "SUBSCRIPTION_NOT_FOUND", invocations.list_invocations, |ids| {
            ListInvocationsRequest { subscription_id: ids.subscription.clone(), ..Default::default() }
        }),
        call!("InvocationService.GetInvocation" "invocation_id" "INVOCATION_NOT_FOUND", invocations.get_invocation, |ids| {
            GetInvocationRequest { invocation_id: ids.invocation.clone() }
        }),
        call!("InvocationService.RetryInvocation" "invocation_id" "INVOCATION_NOT_FOUND", invocations.retry_invocation, |ids| {
            RetryInvocationRequest { invocation_id: ids.invocation.clone(), ..Default::default() }
        }),
        call!("InvocationService.CancelInvocation" "invocation_id" "INVOCATION_NOT_FOUND", invocations.cancel_invocation, |ids| {
            CancelInvocationRequest { invocation_id: ids.invocation.clone(), ..Default::default() }
        }),
        call!("InvocationService.RedriveInvocations" "subscription_id" "SUBSCRIPTION_NOT_FOUND", invocations.redrive_invocations, |ids| {
            RedriveInvocationsRequest { subscription_id: ids.subscription.clone(), ..Default::default() }
        }),
        call!("EventTypeService.GetEventType" "name" "EVENT_TYPE_NOT_FOUND", types.get_event_type, |ids| {
            GetEventTypeRequest { name: ids.event_type.clone(), ..Default::default() }
        }),
        call!("EventTypeService.GetEventType" "app" "APP_NOT_FOUND", types.get_event_type, |ids| {
            GetEventTypeRequest { name: "USER_CREATE".to_owned(), app: ids.app.clone(), ..Default::default() }
        }),
        call!("EventTypeService.UpdateEventType" "event_type.name" "EVENT_TYPE_NOT_FOUND", types.update_event_type, |ids| {
            let event_type =
                EventType { name: ids.event_type.clone(), display_name: "x".to_owned(), ..Default::default() };
            UpdateEventTypeRequest { event_type: Some(event_type), update_mask: None, ..Default::default() }
        }),
        call!("EventTypeService.DeleteEventType" "name" "EVENT_TYPE_NOT_FOUND", types.delete_event_type, |ids| {
            DeleteEventTypeRequest { name: ids.event_type.clone(), ..Default::default() }
        }),
        call!("EventTypeService.UndeleteEventType" "name" "EVENT_TYPE_NOT_FOUND", types.undelete_event_type, |ids| {
            UndeleteEventTypeRequest { name: ids.event_type.clone(), ..Default::default() }
        }),
        call!("EventTypeService.AddEventTypeSchema" "event_type" "EVENT_TYPE_NOT_FOUND", types.add_event_type_schema, |ids| {
            let (event_type, schema) = (ids.event_type.clone(), "{}".to_owned());
            AddEventTypeSchemaRequest { event_type, schema, ..Default::default() }
        }),
        call!("EventTypeService.ListEventTypeSchemas" "event_type" "EVENT_TYPE_NOT_FOUND", types.list_event_type_schemas, |ids| {
            ListEventTypeSchemasRequest { event_type: ids.event_type.clone(), ..Default::default() }
        }),
        call!("EventTypeService.CheckCompatibility" "event_type" "EVENT_TYPE_NOT_FOUND", types.check_compatibility, |ids| {
            let (event_type, schema) = (ids.event_type.clone(), "{}".to_owned());
            CheckCompatibilityRequest { event_type, schema, ..Default::default() }
        }),
        call!("EventTypeService.ValidateEvent" "event_type" "EVENT_TYPE_NOT_FOUND", types.validate_event, |ids| {
            ValidateEventRequest { event_type: ids.event_type.clone(), data: "{}".into(), ..Default::default() }
        }),
        call!("PublishService.Publish" "event.type" "EVENT_TYPE_NOT_FOUND", publisher.publish, |ids| {
            publish_request(&ids.event_type, &json!({}))
        }),
        call!("PublishService.PublishBatch" "requests.event.type" "EVENT_TYPE_NOT_FOUND", publisher.publish_batch, |ids| {
            PublishBatchRequest { requests: vec![publish_request(&ids.event_type, &json!({}))] }
        }),
        call!("PublishService.WaitEvent" "event_id" "EVENT_NOT_FOUND", publisher.wait_event, |ids| {
            WaitEventRequest { event_id: ids.event.clone(), ..Default::default() }
        }),
        call!("PublishService.CancelEvent" "event_id" "EVENT_NOT_FOUND", publisher.cancel_event, |ids| {
            CancelEventRequest { event_id: ids.event.clone(), ..Default::default() }
        }),
    ]
}

#[test]
fn every_field_of_every_call_that_selects_something_has_a_member() {
    let known: BTreeSet<String> = calls()
        .iter()
        .map(|(name, ..)| (*name).to_owned())
        .chain(HARMLESS.iter().map(|(name, _)| (*name).to_owned()))
        .collect();
    let selectors = |rpc: raw::Rpc| rpc.selectors.into_iter().map(move |field| format!("{} {field}", rpc.name));
    // Operators see every tenant; nobody else reaches their service, whatever they ask for.
    let public = raw::rpcs().into_iter().filter(|rpc| !rpc.name.starts_with("AdminService."));
    let declared: BTreeSet<String> = public.flat_map(selectors).collect();
    assert!(declared.len() > 40, "{declared:?}");
    assert_eq!(known, declared, "left: tried or explained here; right: declared in the proto files");
}

#[tokio::test]
async fn another_tenants_ids_answer_as_absent_ones() {
    let world = World::shared().await;
    let (victim, attacker) = (world.tenant().await, world.tenant().await);
    let receiver = Receiver::start().await;
    victim.declare("CUSTOM_SECRET").await;
    let request = CreateAppRequest { tenant: victim.slug.clone(), slug: "hidden".to_owned(), ..Default::default() };
    admin(world).create_app(request).await.expect("an app can be made");
    let subscription = victim.subscribe("CUSTOM_SECRET", &receiver, "/hook").await.subscription.expect("it is set");
    let mut known = publish_request("CUSTOM_SECRET", &json!({"secret": 1}));
    known.idempotency_key = "known".to_owned();
    known.event.as_mut().expect("it is set").id = "known".to_owned();
    let published = victim.try_publish(known.clone()).await.expect("valid");
    victim.all_invocations_become(&published.event_id, InvocationState::Succeeded).await;
    let mut stream = victim.events().watch(WatchRequest::default()).await.expect("a watch").into_inner();
    let created = within("the watch begins", stream.message()).await.expect("it lives").expect("it goes on");
    let Some(carillon::proto::public::watch_response::Kind::Created(created)) = created.kind else {
        panic!("unexpected {created:?}")
    };
    let page = attacker.events().list_events(ListEventsRequest::default()).await.expect("a page").into_inner();
    let own = page.next_cursor;
    let foreign = Ids {
        subscription: subscription.id.clone(),
        event: published.event_id,
        invocation: published.invocations[0].invocation_id.clone(),
        event_type: "CUSTOM_SECRET".to_owned(),
        app: "hidden".to_owned(),
        watch: created.watch_id,
        cursor: own.clone(),
    };
    let absent = Ids {
        subscription: "sub_00000000000000000000000000".to_owned(),
        event: "evt_00000000000000000000000000".to_owned(),
        invocation: "inv_00000000000000000000000000000000".to_owned(),
        event_type: "CUSTOM_ABSENT".to_owned(),
        app: "absent".to_owned(),
        watch: "wat_00000000000000000000000000".to_owned(),
        cursor: own,
    };
    let mut wrong = Vec::new();
    for (name, refused, call) in calls() {
        let text = |result: &Result<String, Status>, ids: &Ids| {
            let text = match result {
                Ok(answer) => answer.clone(),
                Err(status) => {
                    let details = String::from_utf8_lossy(status.details()).into_owned();
                    format!("{:?} {} {details}", status.code(), status.message())
                }
            };
            // The caller's own words may be repeated to it; nothing else may differ.
            [&ids.subscription, &ids.event, &ids.invocation, &ids.event_type, &ids.app, &ids.watch]
                .iter()
                .fold(text, |text, id| text.replace(id.as_str(), "<given>"))
        };
        let (of_foreign, of_absent) = (call(&attacker, &foreign).await, call(&attacker, &absent).await);
        let (told, expected) = (text(&of_foreign, &foreign), text(&of_absent, &absent));
        if told != expected {
            wrong.push(format!("{name} tells another tenant's id from an absent one: {told} {expected}"));
        }
        // An answer that never came to look would be equal as well.
        let looked = of_foreign.as_ref().err().map(reason).unwrap_or_default();
        if looked != refused {
            wrong.push(format!("{name}: {looked:?} instead of {refused:?}: {of_foreign:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let untouched = GetSubscriptionRequest { subscription_id: subscription.id.clone() };
    let read = victim.events().get_subscription(untouched).await.expect("it is there").into_inner().subscription;
    assert_eq!(read, Some(subscription));

    // Names and keys that another tenant has used are free.
    let request = CreateEventTypeRequest { name: "CUSTOM_SECRET".to_owned(), ..Default::default() };
    attacker.types().create_event_type(request).await.expect("the name is free here");
    let own = attacker.try_publish(known).await.expect("the key is free here");
    assert!(!own.duplicate && own.event_id != foreign.event && own.invocations.is_empty(), "{own:?}");
}

#[tokio::test]
async fn nobody_but_an_operator_learns_anything_from_the_administration() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    let mut answers = BTreeSet::new();
    for rpc in raw::rpcs().into_iter().filter(|rpc| rpc.name.starts_with("AdminService.")) {
        // The first field of most of these is the tenant: one's own, another's and none answer alike.
        for name in ["", tenant.slug.as_str(), "absent"] {
            let length = u8::try_from(name.len()).expect("slugs are short");
            let body = if name.is_empty() { Vec::new() } else { [&[0x0a, length], name.as_bytes()].concat() };
            let channel = world.internal(0, &tenant.identity);
            let status = raw::call(channel, &rpc.path, &[], body.into()).await.expect_err(&rpc.name);
            assert!(
                matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated),
                "{}: {status:?}",
                rpc.name
            );
            answers.insert((status.message().to_owned(), status.details().to_vec()));
        }
    }
    assert_eq!(answers.len(), 1, "the answers differ");
}
