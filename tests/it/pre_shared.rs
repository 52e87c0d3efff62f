//! PRE events where several tenants, or several replicas, share something.

use std::sync::Arc;
use std::time::Instant;

use carillon::proto::internal::{PreVerdictKind, PublishBatchRequest, PublishResponse};
use carillon::proto::public::{
    CircuitBreaker, CircuitState, CreateEventTypeRequest, DeliveryPolicy, DisableSubscriptionRequest, EventPhase,
    GetSubscriptionRequest, PrePolicy, RateLimit, Subscription, SubscriptionState, UnsubscribeRequest,
};
use pbjson_types::Duration;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::tenant::{assert_refused, publish_request, quick_policy};
use crate::harness::{Answer, Receiver, Tenant, World, eventually, within};
use crate::pre_receivers::said;

const TYPE: &str = "CUSTOM_PRE_SHARED";

/// A tenant with a PRE type and one listener to it; its subscription's id.
async fn listened(world: &World, receiver: &Receiver, path: &str, policy: DeliveryPolicy) -> (Tenant, String) {
    let tenant = world.tenant().await;
    let request = CreateEventTypeRequest { name: TYPE.to_owned(), phase: EventPhase::Pre.into(), ..Default::default() };
    tenant.types().create_event_type(request).await.expect("a PRE type can be declared");
    let mut request = tenant.subscribe_request(TYPE, &receiver.url(path));
    request.delivery_policy = Some(policy);
    let answer = tenant.events().subscribe(request).await.expect("a listener can be subscribed").into_inner();
    receiver.trust(path, &answer.signing_secret);
    (tenant, answer.subscription.expect("it is set").id)
}

/// Publishes at a replica.
async fn publish(tenant: &Tenant, replica: usize) -> Result<PublishResponse, Status> {
    let mut publisher = tenant.publishers[replica].clone();
    publisher.publish(publish_request(TYPE, &json!({}))).await.map(tonic::Response::into_inner)
}

/// Begins so many publishes.
fn publish_at_once(tenant: &Tenant, many: usize) -> JoinSet<Result<tonic::Response<PublishResponse>, Status>> {
    let one = |_| {
        let mut publisher = tenant.publisher();
        async move { publisher.publish(publish_request(TYPE, &json!({}))).await }
    };
    (0..many).map(one).collect()
}

#[tokio::test]
async fn listeners_that_hang_leave_other_tenants_room_to_publish() {
    let world = World::start_with(1, "[pending]\nphases_max = 4\n").await;
    let receiver = Receiver::start().await;
    let (busy, _) = listened(&world, &receiver, "/hangs", quick_policy()).await;
    let (other, _) = listened(&world, &receiver, "/well", quick_policy()).await;
    let gate = Arc::new(Semaphore::new(0));
    receiver.answers("/hangs", [Answer::Gated(gate.clone())]);
    // Twice as many as there are places: some are refused, and it does not matter which.
    let mut publishing = publish_at_once(&busy, 8);
    for _ in 0..6 {
        let refused = publishing.join_next().await.expect("one of eight").expect("no panic");
        let status = assert_refused(refused, Code::ResourceExhausted, "QUOTA_EXCEEDED");
        assert_eq!(status.get_details_error_info().expect("it is set").metadata["quota"], "pending.phases_max");
        assert!(status.get_details_retry_info().is_some_and(|retry| retry.retry_delay.is_some()), "phases end");
    }
    receiver.receives("/hangs", 2).await;
    for _ in 0..3 {
        publish(&other, 0).await.expect("another tenant has places of its own");
    }
    gate.add_permits(3);
    while let Some(published) = publishing.join_next().await {
        published.expect("no panic").expect("its listener agreed");
    }
    publish(&busy, 0).await.expect("there is room again");
}

#[tokio::test]
async fn events_that_are_large_are_bounded_by_their_bytes_and_leave_other_tenants_room() {
    let world = World::start_with(1, "[pending]\nphases_bytes_max = 1048576\n").await;
    let receiver = Receiver::start().await;
    let (busy, _) = listened(&world, &receiver, "/hangs", quick_policy()).await;
    let (other, _) = listened(&world, &receiver, "/well", quick_policy()).await;
    let gate = Arc::new(Semaphore::new(0));
    receiver.answers("/hangs", [Answer::Gated(gate.clone())]);
    let large = publish_request(TYPE, &json!({ "text": "x".repeat(400_000) }));
    let (mut publisher, request) = (busy.publisher(), large.clone());
    let asking = tokio::spawn(async move { publisher.publish(request).await });
    receiver.receives("/hangs", 1).await;
    let status = assert_refused(busy.try_publish(large.clone()).await, Code::ResourceExhausted, "QUOTA_EXCEEDED");
    assert_eq!(status.get_details_error_info().expect("it is set").metadata["quota"], "pending.phases_bytes_max");
    publish(&other, 0).await.expect("another tenant has room of its own");
    gate.add_permits(2);
    asking.await.expect("no panic").expect("its listener agreed");
    busy.try_publish(large).await.expect("there is room again");
}

#[tokio::test]
async fn g15_what_listeners_may_answer_as_enrichments_is_bounded_with_their_events() {
    let settings = "[pending]\nphases_bytes_max = 1048576\n[executor]\nresponse_bytes_max = 400000\n";
    let world = World::start_with(1, settings).await;
    let receiver = Receiver::start().await;
    let (busy, _) = listened(&world, &receiver, "/hangs", quick_policy()).await;
    let mut enriching = busy.subscribe_request(TYPE, &receiver.url("/enriches"));
    enriching.pre_policy = Some(PrePolicy { enrich_paths: vec!["/plan".to_owned()], ..Default::default() });
    busy.events().subscribe(enriching).await.expect("a listener can be subscribed");
    let gate = Arc::new(Semaphore::new(0));
    receiver.answers("/hangs", [Answer::Gated(gate.clone())]);
    let mut publisher = busy.publisher();
    let asking = tokio::spawn(async move { publisher.publish(publish_request(TYPE, &json!({}))).await });
    receiver.receives("/hangs", 1).await;
    let refused = publish(&busy, 0).await;
    let status = assert_refused(refused, Code::ResourceExhausted, "QUOTA_EXCEEDED");
    assert_eq!(status.get_details_error_info().expect("it is set").metadata["quota"], "pending.phases_bytes_max");
    gate.add_permits(1);
    asking.await.expect("no panic").expect("its listener agreed");
}

#[tokio::test]
async fn g09_a_batch_takes_no_more_room_for_enrichments_than_leaves_some_to_other_tenants() {
    let settings = "[pending]\nphases_bytes_max = 1048576\n[executor]\nresponse_bytes_max = 65536\n";
    let world = World::start_with(1, settings).await;
    let receiver = Receiver::start().await;
    let (busy, _) = listened(&world, &receiver, "/hangs", quick_policy()).await;
    let (other, _) = listened(&world, &receiver, "/well", quick_policy()).await;
    for tenant in [&busy, &other] {
        let mut enriching = tenant.subscribe_request(TYPE, &receiver.url("/enriches"));
        enriching.pre_policy = Some(PrePolicy { enrich_paths: vec!["/plan".to_owned()], ..Default::default() });
        tenant.events().subscribe(enriching).await.expect("a listener can be subscribed");
    }
    let gate = Arc::new(Semaphore::new(0));
    receiver.answers("/hangs", [Answer::Gated(gate.clone())]);
    let requests = (0..64).map(|_| publish_request(TYPE, &json!({}))).collect();
    let mut publisher = busy.publisher();
    let batch = tokio::spawn(async move { publisher.publish_batch(PublishBatchRequest { requests }).await });
    receiver.receives("/hangs", 4).await;
    publish(&other, 0).await.expect("another tenant has room of its own");
    gate.add_permits(64);
    let published = batch.await.expect("no panic").expect("its listeners agree, in turn").into_inner();
    assert_eq!(published.responses.len(), 64);
}

#[tokio::test]
async fn g09_questions_that_hang_leave_other_tenants_some_and_are_bounded() {
    let world = World::start_with(1, "[pending]\nquestions_max = 4\n").await;
    let receiver = Receiver::start().await;
    let (busy, _) = listened(&world, &receiver, "/hangs", quick_policy()).await;
    let (other, _) = listened(&world, &receiver, "/well", quick_policy()).await;
    let gate = Arc::new(Semaphore::new(0));
    receiver.answers("/hangs", [Answer::Gated(gate.clone())]);
    let mut publishing = publish_at_once(&busy, 6);
    // Half of them; the others wait for their turn.
    receiver.receives("/hangs", 2).await;
    for _ in 0..3 {
        publish(&other, 0).await.expect("another tenant has a turn of its own");
    }
    assert_eq!(receiver.received("/hangs").len(), 2);
    gate.add_permits(6);
    while let Some(published) = publishing.join_next().await {
        published.expect("no panic").expect("its listener agreed");
    }
    assert_eq!(receiver.received("/hangs").len(), 6);
}

fn asked_once(extra: DeliveryPolicy) -> DeliveryPolicy {
    DeliveryPolicy { max_attempts: 1, ..extra }
}

fn seconds(seconds: i64) -> Duration {
    Duration { seconds, nanos: 0 }
}

fn breaker(failure_threshold: i32, open: i64) -> DeliveryPolicy {
    let circuit_breaker = Some(CircuitBreaker { failure_threshold, open_duration: Some(seconds(open)) });
    asked_once(DeliveryPolicy { circuit_breaker, ..quick_policy() })
}

fn only_failures(after: i64) -> DeliveryPolicy {
    asked_once(DeliveryPolicy { auto_disable_after: Some(seconds(after)), ..quick_policy() })
}

/// Fails unless a publish was refused because its listener was not to be had; what is said of that.
fn unavailable(refused: Result<PublishResponse, Status>) -> String {
    said(&assert_refused(refused, Code::Unavailable, "PRE_LISTENER_UNAVAILABLE"))
}

async fn shown(tenant: &Tenant, id: &str) -> Subscription {
    let request = GetSubscriptionRequest { subscription_id: id.to_owned() };
    tenant.events().get_subscription(request).await.expect("it exists").into_inner().subscription.expect("it is shown")
}

async fn is_disabled_as_failing(tenant: &Tenant, id: &str) {
    eventually("its subscription is disabled", || async {
        let subscription = shown(tenant, id).await;
        let failing = subscription.state() == SubscriptionState::Disabled && subscription.state_reason == "FAILING";
        if failing { Ok(()) } else { Err(subscription) }
    })
    .await;
}

/// Waits until it was that long ago.
async fn passed(since: Instant, seconds: u64) {
    eventually("time passes", || async {
        let passed = since.elapsed();
        if passed > std::time::Duration::from_secs(seconds) { Ok(()) } else { Err(passed) }
    })
    .await;
}

#[tokio::test]
async fn one_success_at_any_replica_ends_the_time_of_only_failures() {
    let (world, receiver) = (World::shared().await, Receiver::start().await);
    let (tenant, id) = listened(world, &receiver, "/mixed", only_failures(1)).await;
    for _ in 0..2 {
        receiver.answers("/mixed", [Answer::Status(500)]);
        unavailable(publish(&tenant, 0).await);
        let failed = Instant::now();
        receiver.answers("/mixed", [Answer::Status(200)]);
        publish(&tenant, 1).await.expect("it is well");
        passed(failed, 1).await;
        receiver.answers("/mixed", [Answer::Status(500)]);
        unavailable(publish(&tenant, 0).await);
        receiver.answers("/mixed", [Answer::Status(200)]);
        let published = publish(&tenant, 0).await.expect("it is well");
        assert_eq!(published.pre_verdicts.len(), 1, "it still has its say");
        assert_eq!(shown(&tenant, &id).await.state(), SubscriptionState::Active);
    }
    // Nothing but failures, wherever they are heard, is another matter.
    receiver.answers("/mixed", [Answer::Status(500)]);
    unavailable(publish(&tenant, 0).await);
    passed(Instant::now(), 1).await;
    unavailable(publish(&tenant, 1).await);
    is_disabled_as_failing(&tenant, &id).await;
}

#[tokio::test]
async fn how_a_receiver_does_is_remembered_over_a_restart() {
    let mut world = World::start(1).await;
    let receiver = Receiver::start().await;
    let (mut failing, id) = listened(&world, &receiver, "/fails", only_failures(1)).await;
    let (mut pausing, _) = listened(&world, &receiver, "/pauses", asked_once(quick_policy())).await;
    let (mut broken, _) = listened(&world, &receiver, "/broken", breaker(1, 3_600)).await;
    receiver.answers("/fails", [Answer::Status(500)]);
    receiver.answers("/broken", [Answer::Status(500)]);
    receiver.answers("/pauses", [wants_pause(600)]);
    for tenant in [&failing, &pausing, &broken] {
        unavailable(publish(tenant, 0).await);
    }
    let failed = Instant::now();
    world.replace(0).await;
    for tenant in [&mut failing, &mut pausing, &mut broken] {
        tenant.reconnect(&world);
    }
    let refused = unavailable(publish(&pausing, 0).await);
    assert!(refused.contains("Retry-After"), "{refused}");
    let refused = unavailable(publish(&broken, 0).await);
    assert!(refused.contains("circuit is open"), "{refused}");
    assert_eq!((receiver.received("/pauses").len(), receiver.received("/broken").len()), (1, 1));
    passed(failed, 1).await;
    unavailable(publish(&failing, 0).await);
    is_disabled_as_failing(&failing, &id).await;
}

#[tokio::test]
async fn failures_at_all_replicas_are_counted_together() {
    let (world, receiver) = (World::shared().await, Receiver::start().await);
    let (tenant, id) = listened(world, &receiver, "/ill", breaker(4, 3_600)).await;
    receiver.answers("/ill", [Answer::Status(500)]);
    for replica in [0, 1, 0, 1] {
        let failed = unavailable(publish(&tenant, replica).await);
        assert!(!failed.contains("circuit"), "{failed}");
    }
    for replica in [0, 1] {
        let refused = unavailable(publish(&tenant, replica).await);
        assert!(refused.contains("circuit is open"), "replica {replica}: {refused}");
    }
    assert_eq!(receiver.received("/ill").len(), 4, "as many as the policy says");
    let circuit = shown(&tenant, &id).await.circuit.expect("it is shown");
    assert_eq!((circuit.state(), circuit.failures), (CircuitState::Open, 4));
    tenant.told("SUBSCRIPTION_CIRCUIT_OPENED", &id).await;
}

#[tokio::test]
async fn one_probe_at_a_time_finds_out_for_all_replicas() {
    let (world, receiver) = (World::shared().await, Receiver::start().await);
    let (tenant, id) = listened(world, &receiver, "/probed", breaker(1, 1)).await;
    receiver.answers("/probed", [Answer::Status(500)]);
    unavailable(publish(&tenant, 0).await);
    let gate = Arc::new(Semaphore::new(0));
    receiver.answers("/probed", [Answer::Gated(gate.clone())]);
    let probe = loop {
        let mut publisher = tenant.publisher();
        let mut task = tokio::spawn(async move { publisher.publish(publish_request(TYPE, &json!({}))).await });
        tokio::select! {
            refused = &mut task => drop(refused.expect("no panic").expect_err("its circuit is open")),
            _ = receiver.receives("/probed", 2) => break task,
        }
    };
    for replica in [1, 0, 1] {
        let refused = unavailable(publish(&tenant, replica).await);
        assert!(refused.contains("half open"), "replica {replica}: {refused}");
    }
    assert_eq!(receiver.received("/probed").len(), 2, "one asks for all");
    gate.add_permits(100);
    probe.await.expect("no panic").expect("it is well again");
    for replica in [1, 0] {
        publish(&tenant, replica).await.expect("every replica knows");
    }
    tenant.told("SUBSCRIPTION_CIRCUIT_CLOSED", &id).await;
}

/// An answer of a receiver that wants no calls for so many seconds.
fn wants_pause(seconds: u32) -> Answer {
    Answer::Full(503, vec![("retry-after", seconds.to_string())], Vec::new())
}

#[tokio::test]
async fn a_pause_that_a_receiver_asks_for_is_told_as_such_and_kept_by_every_replica() {
    let (world, receiver) = (World::shared().await, Receiver::start().await);
    let (tenant, id) = listened(world, &receiver, "/busy", asked_once(quick_policy())).await;
    receiver.answers("/busy", [wants_pause(600)]);
    unavailable(publish(&tenant, 0).await);
    for replica in [0, 1] {
        let refused = unavailable(publish(&tenant, replica).await);
        assert!(refused.contains("Retry-After") && !refused.contains("circuit"), "replica {replica}: {refused}");
    }
    assert_eq!(receiver.received("/busy").len(), 1, "it is left alone");
    assert_eq!(shown(&tenant, &id).await.circuit.map(|circuit| circuit.state()), Some(CircuitState::Closed));

    // One that ends within the publisher's time is waited for.
    let (tenant, _) = listened(world, &receiver, "/soon", asked_once(quick_policy())).await;
    receiver.answers("/soon", [wants_pause(1), Answer::Status(200)]);
    unavailable(publish(&tenant, 0).await);
    let asked = Instant::now();
    publish(&tenant, 1).await.expect("it is asked after its pause");
    assert!(asked.elapsed() > std::time::Duration::from_millis(800), "{:?}", asked.elapsed());
    assert_eq!(receiver.received("/soon").len(), 2);

    // So is one that begins while a question waits for its rate.
    let rate_limit = Some(RateLimit { count: 1, interval: Some(seconds(1)) });
    let policy = asked_once(DeliveryPolicy { rate_limit, ..quick_policy() });
    let (tenant, _) = listened(world, &receiver, "/rated", policy).await;
    receiver.answers("/rated", [wants_pause(2), Answer::Status(200)]);
    let (one, other) = tokio::join!(publish(&tenant, 0), publish(&tenant, 0));
    let (agreed, failed): (Vec<_>, Vec<_>) = [one, other].into_iter().partition(Result::is_ok);
    assert_eq!((agreed.len(), failed.len()), (1, 1), "{agreed:?} {failed:?}");
}

#[tokio::test]
async fn a_listener_that_is_disabled_or_deleted_at_any_replica_is_not_waited_for() {
    let (world, receiver) = (World::shared().await, Receiver::start().await);
    let (tenant, agrees) = listened(world, &receiver, "/agrees", DeliveryPolicy::default()).await;
    let mut hang = Vec::new();
    // One is retried at this moment, the others have been asked and do not answer.
    for (path, answer) in [("/disabled", Answer::Hang), ("/deleted", Answer::Hang), ("/fails", Answer::Status(503))] {
        let mut request = tenant.subscribe_request(TYPE, &receiver.url(path));
        let later = Some(seconds(20));
        request.delivery_policy =
            Some(DeliveryPolicy { initial_backoff: later, max_backoff: later, ..Default::default() });
        let made = tenant.events().subscribe(request).await.expect("a listener can be subscribed").into_inner();
        receiver.answers(path, [answer]);
        hang.push(made.subscription.expect("it is set").id);
    }
    let mut request = publish_request(TYPE, &json!({}));
    request.pre_timeout = Some(seconds(30));
    let mut publisher = tenant.publishers[0].clone();
    let publishing = tokio::spawn(async move { publisher.publish(request).await });
    for path in ["/agrees", "/disabled", "/deleted", "/fails"] {
        receiver.receives(path, 1).await;
    }
    let elsewhere = &tenant.at[1].events;
    for id in [&hang[0], &hang[2]] {
        let disable = DisableSubscriptionRequest { subscription_id: id.clone(), ..Default::default() };
        elsewhere.clone().disable_subscription(disable).await.expect("it is active");
    }
    let unsubscribe = UnsubscribeRequest { subscription_id: hang[1].clone(), ..Default::default() };
    elsewhere.clone().unsubscribe(unsubscribe).await.expect("it is subscribed");
    let answer = within("the publisher", publishing).await.expect("no panic").expect("who is left agrees").into_inner();
    assert!(answer.position > 0, "{answer:?}");
    for verdict in &answer.pre_verdicts {
        let left = verdict.subscription_id == agrees;
        let expected = if left { PreVerdictKind::Succeeded } else { PreVerdictKind::Skipped };
        assert_eq!(verdict.verdict(), expected, "{verdict:?}");
    }
    assert_eq!(answer.pre_verdicts.len(), 4);
}
