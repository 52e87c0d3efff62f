//! G4: a PRE event becomes visible only after every matching listener succeeded; an aborted one is never listed, watched or given
//! a position.

use std::collections::BTreeMap;
use std::sync::Arc;

use carillon::proto::internal::{PreVerdictKind, PublishBatchRequest, PublishRequest, PublishResponse};
use carillon::proto::public::{
    CreateEventTypeRequest, EnableSubscriptionRequest, EventPhase, GetEventRequest, GetInvocationRequest,
    InvocationState, ListEventsRequest, ListInvocationsRequest, PreFailurePolicy, PrePolicy, SubscribeResponse,
    Subscription, UpdateSubscriptionRequest, WatchFilter, WatchRequest,
};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::tenant::{assert_refused, millis, publish_request, reason};
use crate::harness::{Answer, Receiver, Tenant, World, eventually, within};
use crate::watch::{positions, watch};

const TYPE: &str = "CUSTOM_PRE_SIGNUP";

async fn declare(tenant: &Tenant, schema: &str) {
    let request = CreateEventTypeRequest {
        name: TYPE.to_owned(),
        phase: EventPhase::Pre.into(),
        schema: schema.to_owned(),
        ..Default::default()
    };
    tenant.types().create_event_type(request).await.expect("a PRE type can be declared");
    tenant.told("EVENT_TYPE_CREATED", TYPE).await;
}

async fn gated(world: &World) -> (Tenant, Receiver) {
    let (tenant, receiver) = (world.tenant().await, Receiver::start().await);
    declare(&tenant, "").await;
    (tenant, receiver)
}

fn policy(failure: PreFailurePolicy, priority: i32, paths: &[&str]) -> PrePolicy {
    let enrich_paths = paths.iter().map(|path| (*path).to_owned()).collect();
    PrePolicy { failure_policy: failure.into(), priority, enrich_paths }
}

async fn listen(tenant: &Tenant, receiver: &Receiver, path: &str, policy: Option<PrePolicy>) -> SubscribeResponse {
    let mut request = tenant.subscribe_request(TYPE, &receiver.url(path));
    request.pre_policy = policy;
    let answer = tenant.events().subscribe(request).await.expect("a listener can be subscribed").into_inner();
    receiver.trust(path, &answer.signing_secret);
    tenant.told("SUBSCRIPTION_CREATED", &id_of(&answer)).await;
    answer
}

fn id_of(subscribed: &SubscribeResponse) -> String {
    subscribed.subscription.as_ref().expect("it is set").id.clone()
}

fn says(status: u16, body: &Value) -> Answer {
    let json = vec![("content-type", "application/json".to_owned())];
    Answer::Full(status, json, body.to_string().into_bytes())
}

fn request(data: &Value) -> PublishRequest {
    publish_request(TYPE, data)
}

fn publishing(tenant: &Tenant, replica: usize, request: PublishRequest) -> JoinHandle<Result<PublishResponse, Status>> {
    let mut publisher = tenant.publishers[replica].clone();
    tokio::spawn(async move { publisher.publish(request).await.map(tonic::Response::into_inner) })
}

async fn outcome(task: JoinHandle<Result<PublishResponse, Status>>) -> Result<PublishResponse, Status> {
    within("the publisher is answered", task).await.expect("it does not panic")
}

/// What the status says of each listener, by subscription.
fn verdicts(status: &Status) -> BTreeMap<String, (String, String)> {
    let details = status.get_details_precondition_failure().expect("a violation per listener");
    let one =
        |violation: tonic_types::PreconditionViolation| (violation.subject, (violation.r#type, violation.description));
    details.violations.into_iter().map(one).collect()
}

async fn listed(tenant: &Tenant, replica: usize) -> Vec<String> {
    // Carillon's own events tell of what the tests set up.
    let request = ListEventsRequest { event_types: vec!["CUSTOM_*".to_owned()], ..Default::default() };
    let page = tenant.at[replica].events.clone().list_events(request).await.expect("a page").into_inner();
    page.events.into_iter().map(|event| event.id).collect()
}

async fn text_of(tenant: &Tenant, event_id: &str) -> String {
    let request = GetEventRequest { event_id: event_id.to_owned() };
    let event = tenant.events().get_event(request).await.expect("the event").into_inner().event.expect("it is set");
    match event.event.and_then(|event| event.data) {
        Some(carillon::proto::cloudevents::cloud_event::Data::TextData(text)) => text,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_pending_event_is_seen_by_nobody_and_by_everybody_once_its_listeners_agree() {
    let (tenant, receiver) = gated(World::shared().await).await;
    tenant.declare("CUSTOM_ORDINARY").await;
    listen(&tenant, &receiver, "/pre", None).await;
    let gate = Arc::new(Semaphore::new(0));
    receiver.answers("/pre", [Answer::Gated(gate.clone())]);
    let mut streams = Vec::new();
    for replica in 0..2 {
        let own = WatchFilter { event_types: vec!["CUSTOM_*".to_owned()], ..Default::default() };
        streams.push(watch(&tenant, replica, WatchRequest { filters: vec![own], ..Default::default() }).await);
    }
    let publisher = publishing(&tenant, 0, request(&json!({"n": 1})));
    let asked = receiver.receives("/pre", 1).await.remove(0);
    assert_eq!(asked.verified, Some(true));
    let id = asked.json()["id"].as_str().expect("the event's id").to_owned();
    for replica in 0..2 {
        let get = GetEventRequest { event_id: id.clone() };
        let got = tenant.at[replica].events.clone().get_event(get).await;
        assert_refused(got, Code::NotFound, "EVENT_NOT_FOUND");
        assert!(listed(&tenant, replica).await.is_empty());
    }
    // What is published meanwhile overtakes it: it has no position yet.
    let first = tenant.publish("CUSTOM_ORDINARY", &json!({})).await.position;
    gate.add_permits(1);
    let answer = outcome(publisher).await.expect("its listener agreed");
    assert_eq!((answer.event_id.as_str(), answer.position, answer.invocations.len()), (id.as_str(), first + 1, 1));
    assert_eq!(answer.pre_verdicts.len(), 1);
    assert_eq!(answer.pre_verdicts[0].verdict(), PreVerdictKind::Succeeded);
    for stream in &mut streams {
        assert_eq!(positions(stream, 2).await.0, [first, first + 1]);
    }
    for replica in 0..2 {
        eventually("the event is listed", || async {
            let ids = listed(&tenant, replica).await;
            if ids.get(1) == Some(&id) { Ok(()) } else { Err(ids) }
        })
        .await;
    }
    // The invocation is over: it is not run again after the commit.
    let all = tenant.all_invocations_become(&id, InvocationState::Succeeded).await;
    assert_eq!((all.len(), all[0].attempt_count), (1, 1));
    gate.add_permits(1);
    tenant.try_publish(request(&json!({"n": 2}))).await.expect("its listener agrees");
    assert_eq!(receiver.received("/pre").iter().filter(|one| one.json()["id"] == id.as_str()).count(), 1);
}

#[tokio::test]
async fn a_refusal_aborts_and_names_every_listener() {
    let (tenant, receiver) = gated(World::shared().await).await;
    let refuses = id_of(&listen(&tenant, &receiver, "/refuses", None).await);
    let hangs = id_of(&listen(&tenant, &receiver, "/hangs", None).await);
    let agrees = id_of(&listen(&tenant, &receiver, "/agrees", None).await);
    receiver.answers("/hangs", [Answer::Hang]);
    let end = tenant.end_of_log().await;
    for (answer, expected) in [
        (says(200, &json!({"decision": "reject", "reason": "on the list"})), "on the list"),
        (says(409, &json!({"reason": "taken"})), "taken"),
        (says(422, &json!({})), "no reason given"),
    ] {
        receiver.answers("/refuses", [answer]);
        let status = assert_refused(
            tenant.try_publish(request(&json!({"n": 1}))).await,
            Code::FailedPrecondition,
            "PRE_REJECTED",
        );
        let said = verdicts(&status);
        assert_eq!(said.len(), 3, "{said:?}");
        assert_eq!(said[&refuses], ("REJECTED".to_owned(), expected.to_owned()));
        assert_eq!(said[&hangs].0, "CANCELLED");
        assert!(["SUCCEEDED", "CANCELLED"].contains(&said[&agrees].0.as_str()), "{said:?}");
    }
    assert!(listed(&tenant, 0).await.is_empty() && listed(&tenant, 1).await.is_empty());
    // What its listeners did is kept for who knows the id.
    let id = receiver.received("/refuses")[0].json()["id"].as_str().expect("an id").to_owned();
    let invocations = tenant.invocations_of(&id).await;
    let refused = invocations.iter().find(|one| one.subscription_id == refuses).expect("it is listed");
    assert_eq!((refused.state(), refused.cancel_reason.as_str()), (InvocationState::Cancelled, "PRE_REJECTED"));
    assert_eq!((refused.event_position, refused.attempt_count), (0, 1));
    let get = GetInvocationRequest { invocation_id: refused.id.clone() };
    let got = tenant.invocations().get_invocation(get).await.expect("it is read").into_inner();
    assert_eq!(got.attempts.len(), 1);
    let everything = tenant.invocations().list_invocations(ListInvocationsRequest::default()).await;
    assert!(everything.expect("a page").into_inner().invocations.is_empty(), "no other list shows it");
    // Nor does it take a position.
    assert_eq!(tenant.end_of_log().await, end);
}

#[tokio::test]
async fn a_failure_aborts_unless_it_is_to_be_ignored_and_a_refusal_always_does() {
    let (tenant, receiver) = gated(World::shared().await).await;
    let lenient = Some(policy(PreFailurePolicy::Ignore, 0, &[]));
    let ignored = id_of(&listen(&tenant, &receiver, "/ignored", lenient).await);
    let strict = id_of(&listen(&tenant, &receiver, "/strict", None).await);
    receiver.answers("/ignored", [Answer::Status(400)]);
    let answer = tenant.try_publish(request(&json!({}))).await.expect("the failure is ignored");
    let said: BTreeMap<_, _> =
        answer.pre_verdicts.iter().map(|one| (one.subscription_id.clone(), one.verdict())).collect();
    assert_eq!((said[&ignored], said[&strict]), (PreVerdictKind::Failed, PreVerdictKind::Succeeded));
    let invocations = tenant.invocations_of(&answer.event_id).await;
    let of = |id: &str| invocations.iter().find(|one| one.subscription_id == id).expect("it is listed");
    assert_eq!((of(&ignored).state(), of(&ignored).cancel_reason.as_str()), (InvocationState::Cancelled, "PRE_FAILED"));
    assert_eq!(of(&strict).state(), InvocationState::Succeeded);

    receiver.answers("/ignored", [says(200, &json!({"decision": "reject"}))]);
    let refused = tenant.try_publish(request(&json!({}))).await;
    assert_refused(refused, Code::FailedPrecondition, "PRE_REJECTED");

    receiver.answers("/ignored", [Answer::Status(204)]);
    receiver.answers("/strict", [Answer::Status(500)]);
    let failed = tenant.try_publish(request(&json!({}))).await;
    let status = assert_refused(failed, Code::Unavailable, "PRE_LISTENER_UNAVAILABLE");
    assert_eq!(verdicts(&status)[&strict].0, "FAILED");
    assert!(status.get_details_retry_info().is_none(), "the key has its answer: a new try takes a new one");
    // A failure that may pass is tried again within the time.
    receiver.answers("/strict", [Answer::Status(500), Answer::Status(503), Answer::Status(200)]);
    let answer = tenant.try_publish(request(&json!({}))).await.expect("the third attempt succeeds");
    let attempts = answer.pre_verdicts.iter().find(|one| one.subscription_id == strict).map(|one| one.attempt_count);
    assert_eq!(attempts, Some(3));
    let invocations = tenant.invocations_of(&answer.event_id).await;
    let retried = invocations.into_iter().find(|one| one.subscription_id == strict).expect("it is listed");
    let get = GetInvocationRequest { invocation_id: retried.id };
    let read = tenant.invocations().get_invocation(get).await.expect("it is read").into_inner();
    let statuses: Vec<_> = read.attempts.iter().map(|attempt| (attempt.number, attempt.status_code)).collect();
    assert_eq!(statuses, [(1, 500), (2, 503), (3, 200)], "every attempt is recorded");
    assert_eq!(listed(&tenant, 0).await.len(), 2);
}

#[tokio::test]
async fn listeners_have_one_deadline_together() {
    let (tenant, receiver) = gated(World::shared().await).await;
    let agrees = id_of(&listen(&tenant, &receiver, "/agrees", None).await);
    let hangs = id_of(&listen(&tenant, &receiver, "/hangs", None).await);
    receiver.answers("/hangs", [Answer::Hang]);
    let mut late = request(&json!({}));
    late.pre_timeout = Some(millis(400));
    let status = assert_refused(tenant.try_publish(late.clone()).await, Code::DeadlineExceeded, "PRE_DEADLINE");
    let said = verdicts(&status);
    assert_eq!((said[&hangs].0.as_str(), said[&agrees].0.as_str()), ("FAILED", "SUCCEEDED"));
    // The call's own deadline bounds it, too, and the answer still names the listeners.
    let mut hurried = tonic::Request::new(request(&json!({})));
    hurried.set_timeout(std::time::Duration::from_secs(4));
    assert_refused(tenant.publisher().publish(hurried).await, Code::DeadlineExceeded, "PRE_DEADLINE");
    late.pre_timeout = Some(millis(0));
    let status = assert_refused(tenant.try_publish(late).await, Code::InvalidArgument, "FIELD_INVALID");
    assert_eq!(status.get_details_bad_request().expect("fields").field_violations[0].field, "pre_timeout");
    assert!(listed(&tenant, 0).await.is_empty());
}

#[tokio::test]
async fn a_listener_that_cannot_be_reached_fails_the_event_at_once() {
    let (tenant, receiver) = gated(World::shared().await).await;
    let hangs = id_of(&listen(&tenant, &receiver, "/hangs", None).await);
    receiver.answers("/hangs", [Answer::Hang]);
    let gone = Receiver::start().await;
    let away = id_of(&listen(&tenant, &gone, "/away", None).await);
    drop(gone);
    let mut patient = request(&json!({}));
    patient.pre_timeout = Some(pbjson_types::Duration { seconds: 30, nanos: 0 });
    let refused = tenant.try_publish(patient).await;
    let said = verdicts(&assert_refused(refused, Code::Unavailable, "PRE_LISTENER_UNAVAILABLE"));
    // Had the time been waited for, the other one would have failed, too.
    assert_eq!((said[&away].0.as_str(), said[&hangs].0.as_str()), ("FAILED", "CANCELLED"));
}

#[tokio::test]
async fn enrichments_are_applied_within_their_places_and_checked_again() {
    let (tenant, receiver) = (World::shared().await.tenant().await, Receiver::start().await);
    let zone = json!({"additionalProperties": false});
    let schema = json!({"type": "object", "properties": {"plan": {"enum": ["free", "paid"]}, "zone": zone}});
    declare(&tenant, &schema.to_string()).await;
    let plan = policy(PreFailurePolicy::Fail, 5, &["/plan"]);
    let planner = id_of(&listen(&tenant, &receiver, "/plan", Some(plan)).await);
    let group = policy(PreFailurePolicy::Ignore, -5, &["/zone"]);
    let grouper = id_of(&listen(&tenant, &receiver, "/group", Some(group)).await);
    receiver.answers("/plan", [says(200, &json!({"patch": {"plan": "paid"}}))]);
    receiver.answers("/group", [says(200, &json!({"patch": {"zone": "eu"}}))]);
    let data = json!({"user": {"name": "Ada"}});
    let answer = tenant.try_publish(request(&data)).await.expect("both agree");
    // In the order of their priorities, behind what was there.
    let expected = r#"{"user":{"name":"Ada"},"zone":"eu","plan":"paid"}"#;
    assert_eq!(text_of(&tenant, &answer.event_id).await, expected);

    // Outside of its places: that listener failed, which is ignored here, and nothing of it is applied.
    receiver.answers("/group", [says(200, &json!({"patch": {"user": {"name": "Eve"}, "zone": "eu"}}))]);
    let answer = tenant.try_publish(request(&data)).await.expect("its failure is ignored");
    let failed = answer.pre_verdicts.iter().find(|one| one.subscription_id == grouper).expect("it is named");
    assert_eq!(failed.verdict(), PreVerdictKind::Failed);
    assert!(failed.message.contains("/user/name"), "{}", failed.message);
    assert_eq!(text_of(&tenant, &answer.event_id).await, r#"{"user":{"name":"Ada"},"plan":"paid"}"#);

    // The result must fit the schema: whose patch breaks it has failed, and who is told which place of it.
    receiver.answers("/group", [says(200, &json!({"patch": {"zone": "eu"}}))]);
    receiver.answers("/plan", [says(200, &json!({"patch": {"plan": "gold"}}))]);
    let refused = tenant.try_publish(request(&data)).await;
    let said = verdicts(&assert_refused(refused, Code::Unavailable, "PRE_LISTENER_UNAVAILABLE"));
    assert_eq!((said[&planner].0.as_str(), said[&grouper].0.as_str()), ("FAILED", "SUCCEEDED"), "{said:?}");
    assert!(said[&planner].1.contains("schema") && said[&planner].1.contains(" at /plan: "), "{said:?}");
    assert_eq!(listed(&tenant, 0).await.len(), 2);
    // However long the name is that breaks it.
    receiver.answers("/plan", [says(200, &json!({"patch": {"plan": "paid"}}))]);
    receiver.answers("/group", [says(200, &json!({"patch": {"zone": {("x".repeat(2_000)): 1}}}))]);
    let answer = tenant.try_publish(request(&data)).await.expect("its failure is ignored");
    assert_eq!(text_of(&tenant, &answer.event_id).await, r#"{"user":{"name":"Ada"},"plan":"paid"}"#);
}

#[tokio::test]
async fn no_two_active_listeners_may_enrich_the_same_place() {
    let (tenant, receiver) = gated(World::shared().await).await;
    let paths = |paths: &[&str]| Some(policy(PreFailurePolicy::Fail, 0, paths));
    let first = id_of(&listen(&tenant, &receiver, "/first", paths(&["/user"])).await);
    let mut second = tenant.subscribe_request(TYPE, &receiver.url("/second"));
    second.pre_policy = paths(&["/user/name"]);
    let taken = |result: Result<tonic::Response<_>, Status>| {
        let status =
            assert_refused(result.map(|_: tonic::Response<Subscription>| ()), Code::AlreadyExists, "ENRICH_PATH_TAKEN");
        assert_eq!(status.get_details_error_info().expect("it is set").metadata["path"], "/user/name");
        assert_eq!(status.get_details_resource_info().expect("the other one").resource_name, first);
    };
    let subscribed = tenant.events().subscribe(second.clone()).await;
    taken(subscribed.map(|answer| answer.map(|answer| answer.subscription.unwrap_or_default())));
    // A disabled one holds no place; it cannot come back while another has it.
    let disable =
        carillon::proto::public::DisableSubscriptionRequest { subscription_id: first.clone(), ..Default::default() };
    tenant.events().disable_subscription(disable).await.expect("it can be disabled");
    let second = tenant.events().subscribe(second).await.expect("the place is free").into_inner();
    let enable = EnableSubscriptionRequest { subscription_id: first.clone(), ..Default::default() };
    let status =
        assert_refused(tenant.events().enable_subscription(enable).await, Code::AlreadyExists, "ENRICH_PATH_TAKEN");
    assert_eq!(status.get_details_resource_info().expect("the other one").resource_name, id_of(&second));
    // An update is checked, too.
    let third = id_of(&listen(&tenant, &receiver, "/third", paths(&["/plan"])).await);
    let update = |id: &str, policy: PrePolicy, path: &str| UpdateSubscriptionRequest {
        subscription: Some(Subscription { id: id.to_owned(), pre_policy: Some(policy), ..Default::default() }),
        update_mask: Some(pbjson_types::FieldMask { paths: vec![path.to_owned()] }),
        ..Default::default()
    };
    let both = policy(PreFailurePolicy::Ignore, 7, &["/plan", "/user"]);
    let refused = tenant.events().update_subscription(update(&third, both.clone(), "pre_policy")).await;
    assert_refused(refused, Code::AlreadyExists, "ENRICH_PATH_TAKEN");
    let changed = tenant.events().update_subscription(update(&third, both, "pre_policy.priority")).await;
    let changed = changed.expect("only the priority changes").into_inner().subscription.expect("it is set");
    assert_eq!(changed.pre_policy, Some(policy(PreFailurePolicy::Fail, 7, &["/plan"])));
    // Only PRE types have listeners with a say.
    tenant.declare("CUSTOM_ORDINARY").await;
    let mut ordinary = tenant.subscribe_request("CUSTOM_ORDINARY", &receiver.url("/ordinary"));
    ordinary.pre_policy = paths(&[]);
    assert_refused(tenant.events().subscribe(ordinary).await, Code::InvalidArgument, "FIELD_INVALID");
}

#[tokio::test]
async fn a_retry_joins_the_running_phase_on_either_replica_and_gets_one_answer() {
    let (tenant, receiver) = gated(World::shared().await).await;
    listen(&tenant, &receiver, "/pre", None).await;
    let gate = Arc::new(Semaphore::new(0));
    receiver.answers("/pre", [Answer::Gated(gate.clone())]);
    let mut keyed = request(&json!({"n": 1}));
    keyed.idempotency_key = "signup-1".to_owned();
    let first = publishing(&tenant, 0, keyed.clone());
    receiver.receives("/pre", 1).await;
    let retries = [publishing(&tenant, 0, keyed.clone()), publishing(&tenant, 1, keyed.clone())];
    // The first caller goes away; others wait for the same answer.
    first.abort();
    let mut other = keyed.clone();
    other.event = request(&json!({"n": 2})).event;
    assert_refused(tenant.try_publish(other).await, Code::FailedPrecondition, "REQUEST_ID_REUSED");
    gate.add_permits(1);
    let mut answers = Vec::new();
    for retry in retries {
        answers.push(outcome(retry).await.expect("the listener agreed"));
    }
    answers.push(tenant.try_publish(keyed).await.expect("the first answer again"));
    for answer in &answers {
        assert_eq!((&answer.event_id, answer.position), (&answers[0].event_id, answers[0].position));
        assert!(answer.duplicate);
        assert_eq!(answer.pre_verdicts[0].verdict(), PreVerdictKind::Succeeded);
    }
    assert_eq!(receiver.received("/pre").len(), 1, "the listener was asked once");
}

#[tokio::test]
async fn after_an_abort_the_key_gets_the_same_answer_on_both_replicas() {
    let (tenant, receiver) = gated(World::shared().await).await;
    let refuses = id_of(&listen(&tenant, &receiver, "/pre", None).await);
    receiver.answers("/pre", [says(409, &json!({"reason": "taken"})), Answer::Status(200)]);
    let mut keyed = request(&json!({}));
    keyed.idempotency_key = "signup-1".to_owned();
    for replica in [0, 1, 0] {
        let answer = outcome(publishing(&tenant, replica, keyed.clone())).await;
        let status = assert_refused(answer, Code::FailedPrecondition, "PRE_REJECTED");
        assert_eq!(verdicts(&status)[&refuses], ("REJECTED".to_owned(), "taken".to_owned()));
    }
    assert_eq!(receiver.received("/pre").len(), 1);
    keyed.idempotency_key = "signup-2".to_owned();
    tenant.try_publish(keyed).await.expect("another key is another event");
}

#[tokio::test]
async fn a_publisher_that_goes_away_cancels_its_event() {
    let (tenant, receiver) = gated(World::shared().await).await;
    listen(&tenant, &receiver, "/pre", None).await;
    receiver.answers("/pre", [Answer::Hang]);
    let mut keyed = request(&json!({}));
    keyed.idempotency_key = "gone".to_owned();
    keyed.pre_timeout = Some(pbjson_types::Duration { seconds: 30, nanos: 0 });
    let publisher = publishing(&tenant, 0, keyed.clone());
    let asked = receiver.receives("/pre", 1).await.remove(0);
    publisher.abort();
    let id = asked.json()["id"].as_str().expect("an id").to_owned();
    eventually("the event is aborted long before its time", || async {
        let all = tenant.invocations_of(&id).await;
        if all.iter().any(|one| one.cancel_reason == "PRE_CANCELLED") { Ok(()) } else { Err(all) }
    })
    .await;
    let status = outcome(publishing(&tenant, 1, keyed)).await.expect_err("it was aborted");
    assert_eq!(reason(&status), "PRE_DEADLINE");
    assert!(listed(&tenant, 0).await.is_empty());
}

#[tokio::test]
async fn each_pre_event_of_a_batch_has_its_own_gate() {
    let (tenant, receiver) = gated(World::shared().await).await;
    tenant.declare("CUSTOM_ORDINARY").await;
    listen(&tenant, &receiver, "/pre", None).await;
    let ordinary = publish_request("CUSTOM_ORDINARY", &json!({}));
    let batch = || PublishBatchRequest { requests: vec![request(&json!({})), ordinary.clone(), request(&json!({}))] };
    let answers = tenant.publisher().publish_batch(batch()).await.expect("all agree").into_inner().responses;
    assert_eq!(answers.len(), 3);
    assert!(answers.iter().all(|answer| answer.position >= answers[1].position), "what needs no listener comes first");
    receiver.answers("/pre", [Answer::Status(409)]);
    let refused = tenant.publisher().publish_batch(batch()).await;
    assert_refused(refused, Code::FailedPrecondition, "PRE_REJECTED");
    assert_eq!(listed(&tenant, 0).await.len(), 4, "the ordinary event of the second batch stands");
}

#[tokio::test]
async fn the_number_of_phases_is_bounded() {
    let world = World::start_with(1, "[pending]\nphases_max = 4\n").await;
    let (tenant, receiver) = gated(&world).await;
    listen(&tenant, &receiver, "/pre", None).await;
    let gate = Arc::new(Semaphore::new(0));
    receiver.answers("/pre", [Answer::Gated(gate.clone())]);
    let running = [publishing(&tenant, 0, request(&json!({}))), publishing(&tenant, 0, request(&json!({})))];
    receiver.receives("/pre", 2).await;
    let refused = tenant.try_publish(request(&json!({}))).await;
    let status = assert_refused(refused, Code::ResourceExhausted, "QUOTA_EXCEEDED");
    assert_eq!(status.get_details_error_info().expect("it is set").metadata["quota"], "pending.phases_max");
    gate.add_permits(3);
    for one in running {
        outcome(one).await.expect("it agreed");
    }
    tenant.try_publish(request(&json!({}))).await.expect("there is room again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_told_to_end_waits_for_its_listeners() {
    let mut world = World::start(2).await;
    let (tenant, receiver) = gated(&world).await;
    listen(&tenant, &receiver, "/pre", None).await;
    let gate = Arc::new(Semaphore::new(0));
    receiver.answers("/pre", [Answer::Gated(gate.clone())]);
    let publisher = publishing(&tenant, 1, request(&json!({})));
    receiver.receives("/pre", 1).await;
    world.replicas[1].process.signal(rustix::process::Signal::TERM);
    gate.add_permits(1);
    assert_eq!(outcome(publisher).await.expect("its listener agreed").pre_verdicts.len(), 1);
    assert!(world.replicas[1].process.ended("the replica ends").await.success());
    assert_eq!((listed(&tenant, 0).await.len(), receiver.received("/pre").len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_replicas_event_is_finished_by_another_and_no_success_is_asked_again() {
    let world = World::start(2).await;
    let (tenant, receiver) = gated(&world).await;
    listen(&tenant, &receiver, "/quick", None).await;
    listen(&tenant, &receiver, "/slow", None).await;
    let gate = Arc::new(Semaphore::new(0));
    receiver.answers("/slow", [Answer::Gated(gate.clone())]);
    let mut keyed = request(&json!({"n": 1}));
    keyed.idempotency_key = "survivor".to_owned();
    keyed.pre_timeout = Some(pbjson_types::Duration { seconds: 30, nanos: 0 });
    let first = publishing(&tenant, 1, keyed.clone());
    let id = receiver.receives("/slow", 1).await[0].json()["id"].as_str().expect("an id").to_owned();
    eventually("the quick one's success is noted", || async {
        let all = tenant.invocations_of(&id).await;
        if all.iter().any(|one| one.state() == InvocationState::Succeeded) { Ok(()) } else { Err(all) }
    })
    .await;
    let mut world = world;
    world.replicas[1].process.kill();
    outcome(first).await.expect_err("its replica is dead");
    let retry = publishing(&tenant, 0, keyed);
    // The other replica takes the event over and asks whom nothing is known of.
    receiver.receives("/slow", 2).await;
    gate.add_permits(2);
    let answer = outcome(retry).await.expect("it is finished elsewhere");
    assert_eq!(answer.event_id, id);
    assert_eq!(receiver.received("/quick").len(), 1, "a listener that succeeded is not asked again");
}
