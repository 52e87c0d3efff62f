//! Receivers of PRE events that do badly: what their answers mean beyond the event that they were asked about.

use std::sync::Arc;

use carillon::proto::internal::{CreateAppRequest, PreVerdictKind, PublishRequest, Role};
use carillon::proto::public::{
    CircuitBreaker, CircuitState, CreateEventTypeRequest, DeliveryPolicy, EventPhase, GetSubscriptionRequest,
    PreFailurePolicy, PrePolicy, RateLimit, SubscribeRequest, Subscription, SubscriptionState,
    UpdateSubscriptionRequest, WebhookMode,
};
use pbjson_types::Duration;
use serde_json::json;
use tokio::sync::Semaphore;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::harness::database::Cluster;
use crate::harness::tenant::{
    Clients, admin, assert_refused, create_key, millis, publish_request, quick_policy, webhook,
};
use crate::harness::{Answer, Receiver, Tenant, World, eventually, within};

const TYPE: &str = "CUSTOM_PRE_ASKED";

async fn declare(tenant: &Tenant) {
    let request = CreateEventTypeRequest { name: TYPE.to_owned(), phase: EventPhase::Pre.into(), ..Default::default() };
    tenant.types().create_event_type(request).await.expect("a PRE type can be declared");
}

async fn listen(tenant: &Tenant, receiver: &Receiver, path: &str, policy: DeliveryPolicy) -> String {
    let mut request = tenant.subscribe_request(TYPE, &receiver.url(path));
    request.delivery_policy = Some(policy);
    let answer = tenant.events().subscribe(request).await.expect("a listener can be subscribed").into_inner();
    receiver.trust(path, &answer.signing_secret);
    answer.subscription.expect("it is set").id
}

async fn shown(tenant: &Tenant, id: &str) -> Subscription {
    let request = GetSubscriptionRequest { subscription_id: id.to_owned() };
    tenant.events().get_subscription(request).await.expect("it exists").into_inner().subscription.expect("it is shown")
}

#[tokio::test]
async fn a_listener_that_answers_410_is_disabled_and_asked_no_more() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    declare(&tenant).await;
    let gone = listen(&tenant, &receiver, "/gone", quick_policy()).await;
    receiver.answers("/gone", [Answer::Status(410)]);
    let refused = tenant.try_publish(publish_request(TYPE, &json!({}))).await;
    let status = assert_refused(refused, Code::Unavailable, "PRE_LISTENER_UNAVAILABLE");
    assert!(status.get_details_retry_info().is_none(), "no retry of the key helps: {status:?}");
    eventually("its subscription is disabled", || async {
        let subscription = shown(&tenant, &gone).await;
        let disabled = subscription.state() == SubscriptionState::Disabled && subscription.state_reason == "GONE";
        if disabled { Ok(()) } else { Err(subscription) }
    })
    .await;
    tenant.told("SUBSCRIPTION_DISABLED", &gone).await;
    tenant.publish(TYPE, &json!({})).await;
    assert_eq!(receiver.received("/gone").len(), 1, "it is asked once");
}

#[tokio::test]
async fn a_receiver_that_answers_410_says_nothing_of_the_one_that_has_replaced_it() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    declare(&tenant).await;
    let id = listen(&tenant, &receiver, "/old", quick_policy()).await;
    let gate = Arc::new(Semaphore::new(0));
    receiver.answers("/old", [Answer::GatedStatus(gate.clone(), 410)]);
    let mut publisher = tenant.publisher();
    let asked = tokio::spawn(async move { publisher.publish(publish_request(TYPE, &json!({}))).await });
    receiver.receives("/old", 1).await;
    let target = Some(webhook(&receiver.url("/new"), WebhookMode::Structured));
    let subscription = Some(Subscription { id: id.clone(), target, ..Default::default() });
    let update = UpdateSubscriptionRequest { subscription, ..Default::default() };
    tenant.events().update_subscription(update).await.expect("the receiver is another one");
    gate.add_permits(1);
    let refused = asked.await.expect("no panic").map(tonic::Response::into_inner);
    assert_refused(refused, Code::Unavailable, "PRE_LISTENER_UNAVAILABLE");
    // What the answer leads to is not waited for: it would come among these.
    for asked in 1..=20 {
        tenant.publish(TYPE, &json!({})).await;
        assert_eq!(receiver.received("/new").len(), asked, "the gate stays closed");
    }
    assert_eq!(shown(&tenant, &id).await.state(), SubscriptionState::Active);
}

#[tokio::test]
async fn a_key_of_another_app_learns_that_a_place_is_taken_but_not_by_whom() {
    let world = World::shared().await;
    let (tenant, receiver) = (world.tenant().await, Receiver::start().await);
    declare(&tenant).await;
    let enriches = |app: &str, path: &str| SubscribeRequest {
        app: app.to_owned(),
        pre_policy: Some(PrePolicy { enrich_paths: vec!["/plan".to_owned()], ..Default::default() }),
        ..tenant.subscribe_request(TYPE, &receiver.url(path))
    };
    let first = tenant.events().subscribe(enriches(&tenant.app, "/first")).await.expect("the place is free");
    let first = first.into_inner().subscription.expect("it is set").id;
    let app = CreateAppRequest { tenant: tenant.slug.clone(), slug: "other".to_owned(), ..Default::default() };
    admin(world).create_app(app).await.expect("valid");
    let key = create_key(world, &tenant.slug, "other", Role::Subscriber).await;
    let refused = Clients::new(world, 0, &key).events.subscribe(enriches("other", "/other")).await;
    let status = assert_refused(refused, Code::AlreadyExists, "ENRICH_PATH_TAKEN");
    assert_eq!(status.get_details_error_info().expect("it is set").metadata["path"], "/plan");
    let said = format!("{status:?} {}", String::from_utf8_lossy(status.details()));
    assert!(status.get_details_resource_info().is_none() && !said.contains(&first), "{said}");
    // Whoever sees the whole tenant is told.
    let refused = tenant.events().subscribe(enriches("other", "/other")).await;
    let status = assert_refused(refused, Code::AlreadyExists, "ENRICH_PATH_TAKEN");
    assert_eq!(status.get_details_resource_info().expect("it is named").resource_name, first);
}

/// What a refused publish says of its one listener.
pub fn said(status: &tonic::Status) -> String {
    status.get_details_precondition_failure().expect("a violation per listener").violations.remove(0).description
}

#[tokio::test]
async fn an_open_circuit_fails_a_listener_without_a_call_on_every_replica_until_a_probe_succeeds() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    declare(&tenant).await;
    let breaker =
        |seconds| CircuitBreaker { failure_threshold: 2, open_duration: Some(Duration { seconds, nanos: 0 }) };
    let once = |seconds| DeliveryPolicy { max_attempts: 1, circuit_breaker: Some(breaker(seconds)), ..quick_policy() };
    let id = listen(&tenant, &receiver, "/ill", once(3_600)).await;
    receiver.answers("/ill", [Answer::Status(500)]);
    for _ in 0..2 {
        let refused = tenant.try_publish(publish_request(TYPE, &json!({}))).await;
        assert_refused(refused, Code::Unavailable, "PRE_LISTENER_UNAVAILABLE");
    }
    // Two failures have opened it: the next publisher is told at once, here and within a moment at the other replica.
    let refused = tenant.try_publish(publish_request(TYPE, &json!({}))).await;
    let status = assert_refused(refused, Code::Unavailable, "PRE_LISTENER_UNAVAILABLE");
    assert!(said(&status).contains("circuit is open"), "{status:?}");
    assert_eq!(receiver.received("/ill").len(), 2, "it was not asked");
    tenant.told("SUBSCRIPTION_CIRCUIT_OPENED", &id).await;
    let circuit = shown(&tenant, &id).await.circuit.expect("it is shown");
    assert_eq!((circuit.state(), circuit.failures), (CircuitState::Open, 2));
    eventually("the other replica knows too", || async {
        let mut publisher = tenant.publishers[1].clone();
        let refused = publisher.publish(publish_request(TYPE, &json!({}))).await.expect_err("it must agree");
        if said(&refused).contains("circuit is open") { Ok(()) } else { Err(refused) }
    })
    .await;
    let asked = receiver.received("/ill").len();

    // Another policy begins anew; a short one lets its probe through soon.
    let update = carillon::proto::public::UpdateSubscriptionRequest {
        subscription: Some(Subscription { id: id.clone(), delivery_policy: Some(once(1)), ..Default::default() }),
        update_mask: Some(pbjson_types::FieldMask { paths: vec!["delivery_policy.circuit_breaker".to_owned()] }),
        ..Default::default()
    };
    tenant.events().update_subscription(update).await.expect("changed");
    for _ in 0..2 {
        tenant.try_publish(publish_request(TYPE, &json!({}))).await.expect_err("it fails as before");
    }
    receiver.answers("/ill", [Answer::Status(200)]);
    let published = eventually("a probe finds it well", || async {
        tenant.try_publish(publish_request(TYPE, &json!({}))).await.map_err(|status| said(&status))
    })
    .await;
    assert_eq!(published.pre_verdicts[0].verdict(), PreVerdictKind::Succeeded);
    tenant.told("SUBSCRIPTION_CIRCUIT_CLOSED", &id).await;
    assert_eq!(receiver.received("/ill").len(), asked + 3, "two that failed, and the probe");
}

#[tokio::test]
async fn a_listener_that_may_fail_and_whose_circuit_is_open_is_left_out() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    declare(&tenant).await;
    let breaker = CircuitBreaker { failure_threshold: 1, open_duration: Some(Duration { seconds: 3_600, nanos: 0 }) };
    let policy = DeliveryPolicy { max_attempts: 1, circuit_breaker: Some(breaker), ..quick_policy() };
    ignored(&tenant, &receiver, "/ill", policy).await;
    receiver.answers("/ill", [Answer::Status(500)]);
    for _ in 0..3 {
        let published = tenant.publish(TYPE, &json!({})).await;
        assert_eq!(published.pre_verdicts[0].verdict(), PreVerdictKind::Failed);
    }
    assert_eq!(receiver.received("/ill").len(), 1, "asked until its circuit was open");
}

#[tokio::test]
async fn questions_at_a_time_and_over_time_are_bounded_as_deliveries_are() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    declare(&tenant).await;
    let one = DeliveryPolicy { max_in_flight: 1, ..quick_policy() };
    listen(&tenant, &receiver, "/narrow", one).await;
    let gate = Arc::new(Semaphore::new(0));
    receiver.answers("/narrow", [Answer::Gated(gate.clone())]);
    let mut publishing = Vec::new();
    for n in 0..4 {
        let mut publisher = tenant.publisher();
        let request = publish_request(TYPE, &json!({ "n": n }));
        publishing.push(tokio::spawn(async move { publisher.publish(request).await }));
    }
    receiver.receives("/narrow", 1).await;
    // Each permit lets one answer through, and only then comes the next question.
    for asked in 1..=4 {
        assert_eq!(receiver.received("/narrow").len(), asked, "one at a time");
        gate.add_permits(1);
        if asked < 4 {
            receiver.receives("/narrow", asked + 1).await;
        }
    }
    for one in publishing {
        one.await.expect("no panic").expect("it agreed");
    }

    let rate_limit = Some(RateLimit { count: 2, interval: Some(Duration { seconds: 86_400, nanos: 0 }) });
    let tenant = World::shared().await.tenant().await;
    declare(&tenant).await;
    listen(&tenant, &receiver, "/slow", DeliveryPolicy { rate_limit, ..quick_policy() }).await;
    for _ in 0..2 {
        tenant.publish(TYPE, &json!({})).await;
    }
    let refused = tenant.try_publish(publish_request(TYPE, &json!({}))).await;
    let status = assert_refused(refused, Code::Unavailable, "PRE_LISTENER_UNAVAILABLE");
    assert!(said(&status).contains("rate limit"), "{status:?}");
    assert_eq!(receiver.received("/slow").len(), 2);
}

#[tokio::test]
async fn a_rate_limit_is_one_of_all_replicas_together() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    declare(&tenant).await;
    let day = Some(Duration { seconds: 86_400, nanos: 0 });
    let policy = DeliveryPolicy { rate_limit: Some(RateLimit { count: 4, interval: day }), ..quick_policy() };
    listen(&tenant, &receiver, "/shared", policy).await;
    let publish = async |replica: usize| {
        let mut publisher = tenant.publishers[replica].clone();
        publisher.publish(publish_request(TYPE, &json!({}))).await
    };
    for replica in [0, 1, 0, 1] {
        publish(replica).await.expect("there are tokens left");
    }
    for replica in [0, 1] {
        let status = assert_refused(publish(replica).await, Code::Unavailable, "PRE_LISTENER_UNAVAILABLE");
        assert!(said(&status).contains("rate limit"), "{status:?}");
    }
    assert_eq!(receiver.received("/shared").len(), 4);
}

#[tokio::test]
async fn tokens_that_are_to_come_are_waited_for_at_either_replica_and_each_is_given_once() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    declare(&tenant).await;
    let second = Some(Duration { seconds: 1, nanos: 0 });
    let policy = DeliveryPolicy { rate_limit: Some(RateLimit { count: 2, interval: second }), ..quick_policy() };
    listen(&tenant, &receiver, "/waits", policy).await;
    let started = std::time::Instant::now();
    let publishing = (0..6).map(|n| {
        let mut publisher = tenant.publishers[n % 2].clone();
        async move { publisher.publish(publish_request(TYPE, &json!({ "n": n }))).await }
    });
    for published in futures::future::join_all(publishing).await {
        published.expect("it waited for its token");
    }
    let took = started.elapsed();
    assert!(took >= std::time::Duration::from_millis(1_900), "four of six came at two a second: {took:?}");
}

#[tokio::test]
async fn a_refusal_aborts_however_long_its_body_is() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    declare(&tenant).await;
    ignored(&tenant, &receiver, "/long", quick_policy()).await;
    receiver.answers("/long", [Answer::Full(409, Vec::new(), b"no ".repeat(40_000))]);
    let refused = tenant.try_publish(publish_request(TYPE, &json!({}))).await;
    assert_refused(refused, Code::FailedPrecondition, "PRE_REJECTED");
}

#[tokio::test]
async fn g4_a_decision_that_rejects_aborts_whatever_stands_beside_it() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    declare(&tenant).await;
    ignored(&tenant, &receiver, "/refuses", quick_policy()).await;
    for body in [
        r#"{"decision":"reject","reason":{"code":7}}"#,
        r#"{"decision":"reject","reason":5}"#,
        r#"{"decision":"reject","reason":"a","reason":"b"}"#,
        r#"{"decision":"accept","decision":"reject"}"#,
        r#"{"decision":"REJECT"}"#,
        r#"{"decision":"reject"} or so"#,
    ] {
        for (status, content_type) in [(200, "application/json"), (200, "text/plain"), (403, "application/json")] {
            let headers = vec![("content-type", content_type.to_owned())];
            receiver.answers("/refuses", [Answer::Full(status, headers, body.as_bytes().to_vec())]);
            let refused = tenant.try_publish(publish_request(TYPE, &json!({}))).await;
            assert_refused(refused, Code::FailedPrecondition, "PRE_REJECTED");
        }
    }
}

#[tokio::test]
async fn a_patch_fails_its_listener_alone_whatever_names_it_has() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    declare(&tenant).await;
    let patches = [
        (r#"{"patch": {"\u0000": 1}}"#.to_owned(), "the patch changes / ,"),
        (format!(r#"{{"patch": {{"{}": 1}}}}"#, "x".repeat(60_000)), "the patch changes /xxx"),
    ];
    let answers = patches.map(|(body, said)| (Answer::Full(200, Vec::new(), body.into_bytes()), said.to_owned()));
    ignored(&tenant, &receiver, "/named", quick_policy()).await;
    for (answer, expected) in answers.clone() {
        receiver.answers("/named", [answer]);
        let published = tenant.try_publish(publish_request(TYPE, &json!({}))).await.expect("it is left out");
        let verdict = &published.pre_verdicts[0];
        assert_eq!(verdict.verdict(), PreVerdictKind::Failed);
        assert!(verdict.message.starts_with(&expected) && verdict.message.len() < 400, "{}", verdict.message);
    }
    receiver.answers("/named", [Answer::Status(200)]);
    listen(&tenant, &receiver, "/must", quick_policy()).await;
    for (answer, expected) in answers {
        receiver.answers("/must", [answer]);
        let refused = tenant.try_publish(publish_request(TYPE, &json!({}))).await;
        let status = assert_refused(refused, Code::Unavailable, "PRE_LISTENER_UNAVAILABLE");
        let violations = status.get_details_precondition_failure().expect("a violation per listener").violations;
        let failed = violations.into_iter().find(|violation| violation.r#type == "FAILED").expect("it is named");
        assert!(failed.description.starts_with(&expected), "{}", failed.description);
    }
}

#[tokio::test]
async fn a_connection_that_breaks_is_tried_again() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    declare(&tenant).await;
    listen(&tenant, &receiver, "/breaks", quick_policy()).await;
    receiver.answers("/breaks", [Answer::Reset, Answer::Reset, Answer::Status(200)]);
    let published = tenant.publish(TYPE, &json!({})).await;
    let verdict = &published.pre_verdicts[0];
    assert_eq!((verdict.verdict(), verdict.attempt_count), (PreVerdictKind::Succeeded, 3));
    assert_eq!(receiver.received("/breaks").len(), 3);
}

#[tokio::test]
async fn each_listener_that_lets_the_time_pass_has_that_counted() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    declare(&tenant).await;
    let breaker = CircuitBreaker { failure_threshold: 1, open_duration: Some(Duration { seconds: 3_600, nanos: 0 }) };
    let policy = DeliveryPolicy { circuit_breaker: Some(breaker), ..quick_policy() };
    let mut listeners = Vec::new();
    for n in 0..8 {
        let path = format!("/silent{n}");
        // The first one answers once before it falls silent.
        let busy = (n == 0).then_some(Answer::Full(503, Vec::new(), b"busy".to_vec()));
        receiver.answers(&path, busy.into_iter().chain([Answer::Hang]));
        let policy = if n == 0 { quick_policy() } else { policy.clone() };
        listeners.push(match n % 2 {
            0 => ignored(&tenant, &receiver, &path, policy).await,
            _ => listen(&tenant, &receiver, &path, policy).await,
        });
    }
    let request = PublishRequest { pre_timeout: Some(millis(600)), ..publish_request(TYPE, &json!({})) };
    let status = assert_refused(tenant.try_publish(request).await, Code::DeadlineExceeded, "PRE_DEADLINE");
    let violations = status.get_details_precondition_failure().expect("a violation per listener").violations;
    assert_eq!(violations.len(), 8);
    assert!(violations.iter().all(|violation| violation.r#type == "FAILED"), "{violations:?}");
    for id in &listeners[1..] {
        eventually("its circuit is open", || async {
            let circuit = shown(&tenant, id).await.circuit.expect("it is shown");
            if circuit.state() == CircuitState::Open { Ok(()) } else { Err(circuit) }
        })
        .await;
    }
    let event = receiver.received("/silent0")[0].json()["id"].as_str().expect("an id").to_owned();
    let invocations = tenant.invocations_of(&event).await;
    let first = invocations.iter().find(|one| one.subscription_id == listeners[0]).expect("it is recorded");
    assert_eq!(first.attempt_count, 2, "the one that was answered counts: {first:?}");
}

#[tokio::test]
async fn a_listener_whose_turn_never_comes_was_never_called() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    declare(&tenant).await;
    let narrow = DeliveryPolicy { max_in_flight: 1, ..quick_policy() };
    let id = listen(&tenant, &receiver, "/narrow", narrow).await;
    receiver.answers("/narrow", [Answer::Hang]);
    let timed = |timeout| PublishRequest { pre_timeout: Some(timeout), ..publish_request(TYPE, &json!({})) };
    let (mut publisher, long) = (tenant.publisher(), timed(Duration { seconds: 20, nanos: 0 }));
    let first = tokio::spawn(async move { publisher.publish(long).await });
    receiver.receives("/narrow", 1).await;
    let refused = tenant.try_publish(timed(millis(300))).await;
    first.abort();
    let status = assert_refused(refused, Code::DeadlineExceeded, "PRE_DEADLINE");
    assert_eq!(said(&status), "the time was up before it could be asked");
    assert_eq!(receiver.received("/narrow").len(), 1, "it was not called");
    let event = status.get_details_error_info().expect("it is set").metadata["event"].clone();
    let invocation = tenant.invocations_of(&event).await.remove(0);
    assert_eq!((invocation.subscription_id, invocation.attempt_count), (id, 0));
    assert_eq!(invocation.last_attempt, None);
}

#[tokio::test]
async fn a_listener_that_takes_longer_than_its_own_policy_allows_has_failed_while_there_is_time() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    declare(&tenant).await;
    let hurried = DeliveryPolicy { max_attempts: 1, timeout: Some(millis(300)), ..quick_policy() };
    listen(&tenant, &receiver, "/slow", hurried).await;
    receiver.answers("/slow", [Answer::Hang]);
    let timed = |timeout| PublishRequest { pre_timeout: Some(timeout), ..publish_request(TYPE, &json!({})) };
    let refused = tenant.try_publish(timed(Duration { seconds: 30, nanos: 0 })).await;
    assert_refused(refused, Code::Unavailable, "PRE_LISTENER_UNAVAILABLE");
    let refused = tenant.try_publish(timed(millis(200))).await;
    assert_refused(refused, Code::DeadlineExceeded, "PRE_DEADLINE");
}

#[tokio::test]
async fn a_silence_is_late_wherever_the_deadline_falls_and_a_failure_once_its_attempts_are_used_up() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    declare(&tenant).await;
    receiver.answers("/silent", [Answer::Hang]);
    let hurried = |max_attempts, initial_backoff, max_backoff| DeliveryPolicy {
        max_attempts,
        initial_backoff: Some(initial_backoff),
        max_backoff: Some(max_backoff),
        timeout: Some(millis(200)),
        ..quick_policy()
    };
    let [second, hour] = [1, 3_600].map(|seconds| Duration { seconds, nanos: 0 });
    for (policy, pre_timeout, code, reason) in [
        // In the wait for the second attempt, and in some attempt or wait.
        (hurried(3, hour, hour), second, Code::DeadlineExceeded, "PRE_DEADLINE"),
        (hurried(50, millis(100), millis(100)), second, Code::DeadlineExceeded, "PRE_DEADLINE"),
        // Never.
        (hurried(2, millis(10), millis(10)), hour, Code::Unavailable, "PRE_LISTENER_UNAVAILABLE"),
    ] {
        let subscription_id = listen(&tenant, &receiver, "/silent", policy).await;
        let request = PublishRequest { pre_timeout: Some(pre_timeout), ..publish_request(TYPE, &json!({})) };
        assert_refused(tenant.try_publish(request).await, code, reason);
        tenant.unsubscribe(&subscription_id).await;
    }
}

/// A listener whose failure is left out.
async fn ignored(tenant: &Tenant, receiver: &Receiver, path: &str, policy: DeliveryPolicy) -> String {
    let mut request = tenant.subscribe_request(TYPE, &receiver.url(path));
    request.delivery_policy = Some(policy);
    request.pre_policy = Some(PrePolicy { failure_policy: PreFailurePolicy::Ignore.into(), ..Default::default() });
    let answer = tenant.events().subscribe(request).await.expect("a listener can be subscribed").into_inner();
    answer.subscription.expect("it is set").id
}

#[tokio::test]
async fn listeners_are_asked_on_while_what_another_one_said_waits_for_the_database() {
    let patient = "[database]\nstatement_timeout_ms = 100000\nanswer_timeout_ms = 200000\n";
    let world = World::start_with(1, patient).await;
    let (tenant, receiver) = (world.tenant().await, Receiver::start().await);
    declare(&tenant).await;
    listen(&tenant, &receiver, "/agrees", quick_policy()).await;
    listen(&tenant, &receiver, "/silent", DeliveryPolicy { timeout: Some(millis(500)), ..quick_policy() }).await;
    receiver.answers("/silent", [Answer::Hang, Answer::Status(200)]);
    let mut holder = Cluster::superuser(&world.database_url).await;
    let lock = "BEGIN; LOCK TABLE pending_verdicts IN SHARE MODE";
    sqlx::raw_sql(lock).execute(&mut holder).await.expect("no verdict can be noted");
    let mut publisher = tenant.publisher();
    let publishing = tokio::spawn(async move { publisher.publish(publish_request(TYPE, &json!({}))).await });
    receiver.receives("/silent", 2).await;
    sqlx::raw_sql("ROLLBACK").execute(&mut holder).await.expect("verdicts can be noted");
    within("the publisher", publishing).await.expect("no panic").expect("both agree");
}
