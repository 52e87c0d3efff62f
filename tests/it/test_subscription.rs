//! `TestSubscription`: one real call, marked as a test, of which nothing is recorded.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use carillon::proto::internal::Role;
use carillon::proto::public::{
    AddEventTypeSchemaRequest, Attempt, CreateEventTypeRequest, DeliveryPolicy, DisableSubscriptionRequest, EventPhase,
    ListEventsRequest, ListInvocationsRequest, MatchReason, OutcomeClass, PrePolicy, TestSubscriptionRequest,
    TestSubscriptionResponse, UnsubscribeRequest,
};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::harness::tenant::{Clients, assert_refused, cloud_event, create_key, publish_request, quick_policy, reason};
use crate::harness::{Answer, Receiver, Tenant, World};

const NAME: &str = "CUSTOM_TRIED";

fn request(id: &str, data: &Value) -> TestSubscriptionRequest {
    TestSubscriptionRequest { subscription_id: id.to_owned(), data: data.to_string().into(), ..Default::default() }
}

async fn run(tenant: &Tenant, request: TestSubscriptionRequest) -> TestSubscriptionResponse {
    tenant.at[1].events.clone().test_subscription(request).await.expect("an answer").into_inner()
}

fn header<'a>(answer: &'a TestSubscriptionResponse, name: &str) -> &'a str {
    let headers = &answer.request.as_ref().expect("it was sent").headers;
    headers.iter().find(|header| header.name == name).map_or("", |header| header.value.as_str())
}

#[tokio::test]
async fn a_test_run_is_a_real_signed_call_with_its_whole_trace_and_leaves_nothing_behind() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare(NAME).await;
    let mut subscribe = tenant.subscribe_request(NAME, &receiver.url("/hook"));
    subscribe.filter = "data.n > 5".to_owned();
    let target = subscribe.target.as_mut().and_then(|target| target.kind.as_mut());
    if let Some(carillon::proto::public::target::Kind::Webhook(webhook)) = target {
        webhook.headers.insert("x-token".to_owned(), "planted-secret".to_owned());
    }
    let subscribed = tenant.events().subscribe(subscribe).await.expect("valid").into_inner();
    receiver.trust("/hook", &subscribed.signing_secret);
    let id = subscribed.subscription.expect("it is set").id;

    let answer = run(&tenant, request(&id, &json!({"n": 3}))).await;
    let attempt = answer.attempt.clone().expect("it is set");
    assert_eq!(
        (attempt.outcome(), attempt.status_code, attempt.number),
        (OutcomeClass::Succeeded, 200, 1),
        "{answer:?}"
    );
    let explanation = answer.r#match.clone().expect("it is set");
    assert_eq!((explanation.fires, explanation.reason()), (false, MatchReason::Filter));
    assert_eq!(explanation.deciding[0].expression, "data.n > 5");
    assert_eq!(answer.answer.as_ref().map(|answer| answer.status_code), Some(200));
    assert!(answer.header_time.is_some() && attempt.duration.is_some());

    let received = receiver.receives("/hook", 1).await.remove(0);
    assert_eq!(received.verified, Some(true), "the signature is real");
    assert_eq!((received.header("carillon-test"), received.header("x-token")), ("true", "planted-secret"));
    assert_eq!(received.json()["carillontest"], json!(true));
    assert_eq!(received.json()["data"], json!({"n": 3}));
    let sent = answer.request.clone().expect("it was sent");
    assert_eq!((sent.method.as_str(), sent.uri.as_str()), ("POST", receiver.url("/hook").as_str()));
    assert_eq!(serde_json::from_slice::<Value>(&sent.body).expect("JSON"), received.json());
    assert_eq!(sent.body_bytes, i64::try_from(sent.body.len()).expect("small"));
    assert_eq!((header(&answer, "webhook-signature"), header(&answer, "x-token")), ("(redacted)", "(redacted)"));
    assert_eq!(header(&answer, "webhook-id"), received.header("webhook-id"));
    assert!(!format!("{answer:?}").contains("planted-secret"));

    // The log also holds what Carillon tells of the subscription itself.
    let request = ListEventsRequest { event_types: vec![NAME.to_owned()], ..Default::default() };
    let events = tenant.events().list_events(request).await.expect("a page").into_inner();
    assert!(events.events.is_empty(), "no event was recorded");
    let invocations = tenant.invocations().list_invocations(ListInvocationsRequest::default()).await.expect("a page");
    assert!(invocations.into_inner().invocations.is_empty(), "no invocation was recorded");
}

#[tokio::test]
async fn failures_are_told_and_a_disabled_subscription_can_be_tried() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare(NAME).await;
    receiver.answers("/hook", [Answer::Status(503)]);
    let id = tenant.subscribe(NAME, &receiver, "/hook").await.subscription.expect("it is set").id;
    let disable = DisableSubscriptionRequest { subscription_id: id.clone(), etag: String::new(), ..Default::default() };
    tenant.events().disable_subscription(disable).await.expect("it is active");
    let mut whole = request(&id, &json!({}));
    whole.data = Bytes::new();
    whole.event = Some(cloud_event(NAME, &json!({"n": 1})));
    let answer = run(&tenant, whole).await;
    let attempt = answer.attempt.clone().expect("it is set");
    assert_eq!((attempt.outcome(), attempt.status_code), (OutcomeClass::Throttled, 503), "{answer:?}");
    assert_eq!(answer.r#match.map(|one| one.reason()), Some(MatchReason::State));
    assert_eq!(receiver.receives("/hook", 1).await.len(), 1, "a test is never tried again");

    let closed = tenant.subscribe_request(NAME, "http://127.0.0.1:9/closed");
    let closed = tenant.events().subscribe(closed).await.expect("valid").into_inner().subscription.expect("set").id;
    let answer = run(&tenant, request(&closed, &json!({}))).await;
    assert_eq!(answer.attempt.as_ref().map(Attempt::outcome), Some(OutcomeClass::Unreachable));
    assert!(answer.request.is_some() && answer.answer.is_none(), "{answer:?}");
}

#[tokio::test]
async fn the_answer_of_a_pre_listener_is_judged_as_a_publish_judges_it() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    let declare = CreateEventTypeRequest {
        name: NAME.to_owned(),
        phase: EventPhase::Pre.into(),
        schema: r#"{"properties":{"plan":{"enum":["free","paid"]}}}"#.to_owned(),
        ..Default::default()
    };
    tenant.types().create_event_type(declare).await.expect("a PRE type can be declared");
    let mut subscribe = tenant.subscribe_request(NAME, &receiver.url("/pre"));
    subscribe.pre_policy = Some(PrePolicy { enrich_paths: vec!["/plan".to_owned()], ..Default::default() });
    subscribe.delivery_policy = Some(DeliveryPolicy { max_attempts: 1, ..quick_policy() });
    let id = tenant.events().subscribe(subscribe).await.expect("valid").into_inner().subscription.expect("set").id;
    tenant.told("SUBSCRIPTION_CREATED", &id).await;
    let data = json!({"plan": "free"});
    let tries = [
        (200, json!({"decision": "reject", "reason": "nope"}), OutcomeClass::Rejected, "nope"),
        (409, json!({"reason": "taken"}), OutcomeClass::Rejected, "taken"),
        (200, json!({"patch": {"zone": "eu"}}), OutcomeClass::Failed, "/zone"),
        (200, json!({"patch": {"plan": "gold"}}), OutcomeClass::Failed, "schema"),
        (200, json!({"decision": "maybe"}), OutcomeClass::Failed, "neither accept nor reject"),
        (200, json!({"patch": {"plan": "paid"}}), OutcomeClass::Succeeded, ""),
    ];
    for (status, body, outcome, told) in tries {
        let headers = vec![("content-type", "application/json".to_owned())];
        receiver.answers("/pre", [Answer::Full(status, headers, body.to_string().into_bytes())]);
        let attempt = run(&tenant, request(&id, &data)).await.attempt.expect("it is set");
        assert_eq!((attempt.outcome(), attempt.status_code), (outcome, i32::from(status)), "{body} {attempt:?}");
        assert!(attempt.error.contains(told), "{body} {attempt:?}");
        assert_eq!(attempt.error.is_empty(), told.is_empty(), "{body} {attempt:?}");
        let published = tenant.try_publish(publish_request(NAME, &data)).await;
        let same = match published {
            Ok(_) => OutcomeClass::Succeeded,
            Err(status) if reason(&status) == "PRE_REJECTED" => OutcomeClass::Rejected,
            Err(status) if reason(&status) == "PRE_LISTENER_UNAVAILABLE" => OutcomeClass::Failed,
            Err(status) => panic!("{body} {status:?}"),
        };
        assert_eq!(same, outcome, "a publish decides the same: {body}");
    }
}

#[tokio::test]
async fn a_test_that_the_calls_deadline_ends_has_its_trace() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    for (name, phase) in [(NAME, EventPhase::Post), ("CUSTOM_TRIED_BEFORE", EventPhase::Pre)] {
        let declare = CreateEventTypeRequest { name: name.to_owned(), phase: phase.into(), ..Default::default() };
        tenant.types().create_event_type(declare).await.expect("it can be declared");
        receiver.answers(&format!("/{name}"), [Answer::Hang]);
        let mut subscribe = tenant.subscribe_request(name, &receiver.url(&format!("/{name}")));
        let timeout = Some(pbjson_types::Duration { seconds: 60, nanos: 0 });
        subscribe.delivery_policy = Some(DeliveryPolicy { timeout, ..quick_policy() });
        let id = tenant.events().subscribe(subscribe).await.expect("valid").into_inner().subscription.expect("set").id;
        let mut request = tonic::Request::new(request(&id, &json!({})));
        request.set_timeout(Duration::from_secs(5));
        let answer = tenant.events().test_subscription(request).await.expect("an answer").into_inner();
        let attempt = answer.attempt.clone().expect("it is set");
        assert_eq!(attempt.outcome(), OutcomeClass::Timeout, "{answer:?}");
        let said = "The call's deadline ended the test; the subscription's own timeout is 60000 ms.";
        assert!(attempt.error.ends_with(said), "{attempt:?}");
        assert!(answer.request.is_some() && answer.answer.is_none() && answer.r#match.is_some(), "{answer:?}");
    }
}

#[tokio::test]
async fn one_test_of_a_subscription_runs_at_a_time() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    let gate = Arc::new(Semaphore::new(0));
    receiver.answers("/hook", [Answer::Gated(gate.clone())]);
    tenant.declare(NAME).await;
    let id = tenant.subscribe(NAME, &receiver, "/hook").await.subscription.expect("it is set").id;
    let mut first = tenant.events();
    let running = tokio::spawn({
        let request = request(&id, &json!({}));
        async move { first.test_subscription(request).await }
    });
    receiver.receives("/hook", 1).await;
    let second = tenant.events().test_subscription(request(&id, &json!({}))).await;
    assert_refused(second, Code::ResourceExhausted, "QUOTA_EXCEEDED");
    gate.add_permits(10);
    running.await.expect("it ends").expect("an answer");
    let third = tenant.events().test_subscription(request(&id, &json!({}))).await.expect("its place is free again");
    assert_eq!(third.into_inner().attempt.expect("it is set").outcome(), OutcomeClass::Succeeded);
}

#[tokio::test]
async fn tests_that_hang_leave_another_tenant_room_for_its_own() {
    let world = World::start(1).await;
    let (busy, other, receiver) = (world.tenant().await, world.tenant().await, Receiver::start().await);
    let gate = Arc::new(Semaphore::new(0));
    let mut running = tokio::task::JoinSet::new();
    busy.declare(NAME).await;
    // As many as there are places at all.
    for n in 0..16 {
        let path = format!("/hangs-{n}");
        receiver.answers(&path, [Answer::Gated(gate.clone())]);
        let subscribed = busy.events().subscribe(busy.subscribe_request(NAME, &receiver.url(&path))).await;
        let id = subscribed.expect("valid").into_inner().subscription.expect("it is set").id;
        let mut events = busy.events();
        running.spawn(async move { events.test_subscription(request(&id, &json!({}))).await });
    }
    for _ in 0..8 {
        let refused = running.join_next().await.expect("one of sixteen").expect("no panic");
        let status = assert_refused(refused, Code::ResourceExhausted, "QUOTA_EXCEEDED");
        assert_eq!(status.get_details_error_info().expect("it is set").metadata["quota"], "test_runs");
        assert!(status.get_details_retry_info().is_some_and(|retry| retry.retry_delay.is_some()), "they end");
    }
    other.declare(NAME).await;
    let id = other.subscribe(NAME, &receiver, "/well").await.subscription.expect("it is set").id;
    other.events().test_subscription(request(&id, &json!({}))).await.expect("another tenant finds a place");
    gate.add_permits(100);
    while let Some(done) = running.join_next().await {
        done.expect("no panic").expect("an answer");
    }
}

#[tokio::test]
async fn data_that_no_publish_would_take_reaches_no_listener() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare_with_schema(NAME, r#"{"properties": {"n": {"type": "integer"}}}"#).await;
    let schema = r#"{"properties": {"n": {"type": "string"}}, "required": ["n"]}"#.to_owned();
    let second = AddEventTypeSchemaRequest { event_type: NAME.to_owned(), schema, ..Default::default() };
    tenant.types().add_event_type_schema(second).await.expect("valid");
    let latest = tenant.subscribe(NAME, &receiver, "/latest").await.subscription.expect("it is set").id;
    let mut pinned = tenant.subscribe_request(NAME, &receiver.url("/pinned"));
    pinned.schema_version = 1;
    let pinned = tenant.events().subscribe(pinned).await.expect("valid").into_inner();
    let pinned = pinned.subscription.expect("it is set").id;

    let (text, number) = (json!({"n": "x"}), json!({"n": 1}));
    for (id, good, bad) in [(&latest, &text, &number), (&pinned, &number, &text)] {
        run(&tenant, request(id, good)).await;
        let whole = TestSubscriptionRequest {
            event: Some(cloud_event(NAME, bad)),
            data: Bytes::new(),
            subscription_id: id.clone(),
        };
        for (request, field) in [(request(id, bad), "data/n"), (whole, "event.data/n")] {
            let refused = tenant.events().test_subscription(request).await;
            let refused = assert_refused(refused, Code::InvalidArgument, "SCHEMA_VIOLATION");
            let fields = refused.get_details_bad_request().expect("it names the place").field_violations;
            assert_eq!(fields[0].field, field, "{refused:?}");
        }
    }
    let published = tenant.try_publish(publish_request(NAME, &number)).await;
    assert_refused(published, Code::InvalidArgument, "SCHEMA_VIOLATION");
    for path in ["/latest", "/pinned"] {
        assert_eq!(receiver.received(path).len(), 1, "{path}: of what was refused there is no call");
    }
}

#[tokio::test]
async fn bad_requests_are_refused() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare(NAME).await;
    let id = tenant.subscribe(NAME, &receiver, "/hook").await.subscription.expect("it is set").id;
    let both = TestSubscriptionRequest { event: Some(cloud_event(NAME, &json!({}))), ..request(&id, &json!({})) };
    let neither = TestSubscriptionRequest { data: Bytes::new(), ..request(&id, &json!({})) };
    let broken = TestSubscriptionRequest { data: b"{".as_slice().into(), ..request(&id, &json!({})) };
    let event = Some(cloud_event("CUSTOM_OTHER", &json!({})));
    let foreign_type = TestSubscriptionRequest { event, data: Bytes::new(), subscription_id: id.clone() };
    for (request, code, reason) in [
        (both, Code::InvalidArgument, "FIELD_INVALID"),
        (neither, Code::InvalidArgument, "FIELD_INVALID"),
        (broken, Code::InvalidArgument, "FIELD_INVALID"),
        (foreign_type, Code::InvalidArgument, "FIELD_INVALID"),
        (request("", &json!({})), Code::InvalidArgument, "FIELD_INVALID"),
        (request("sub_0000000000000000000000000w", &json!({})), Code::NotFound, "SUBSCRIPTION_NOT_FOUND"),
    ] {
        assert_refused(tenant.events().test_subscription(request).await, code, reason);
    }
    let other = world.tenant().await;
    let foreign = other.events().test_subscription(request(&id, &json!({}))).await;
    assert_refused(foreign, Code::NotFound, "SUBSCRIPTION_NOT_FOUND");
    let viewer = create_key(world, &tenant.slug, "", Role::Viewer).await;
    let seen = Clients::new(world, 0, &viewer).events.test_subscription(request(&id, &json!({}))).await;
    assert_refused(seen, Code::PermissionDenied, "ROLE_INSUFFICIENT");
    let unsubscribe = UnsubscribeRequest { subscription_id: id.clone(), ..Default::default() };
    tenant.events().unsubscribe(unsubscribe).await.expect("it is subscribed");
    let deleted = tenant.events().test_subscription(request(&id, &json!({}))).await;
    assert_refused(deleted, Code::FailedPrecondition, "SUBSCRIPTION_STATE");
    assert!(receiver.received("/hook").is_empty());
}
