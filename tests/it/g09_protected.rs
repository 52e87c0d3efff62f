//! G9 for receivers that do badly: a rate limit, a circuit breaker, a receiver's own wish and automatic disabling hold up their own
//! subscription, lose nothing, use up no attempt, and delay nobody else.

use carillon::proto::public::{
    CircuitBreaker, CircuitState, DeliveryPolicy, DisableSubscriptionRequest, GetSubscriptionRequest, InvocationState,
    ListInvocationsRequest, RateLimit, Subscription, SubscriptionState, UpdateSubscriptionRequest,
};
use pbjson_types::Duration;
use rustix::process::Signal;
use serde_json::json;

use crate::harness::World;
use crate::harness::receiver::{Answer, Receiver};
use crate::harness::tenant::{Tenant, millis, publish_request, quick_policy};
use crate::harness::wait::eventually;

const EVENT: &str = "CUSTOM_PROTECTED";

async fn subscribe(tenant: &Tenant, receiver: &Receiver, path: &str, policy: DeliveryPolicy) -> Subscription {
    let mut request = tenant.subscribe_request(EVENT, &receiver.url(path));
    request.delivery_policy = Some(policy);
    let answer = tenant.events().subscribe(request).await.expect("the policy is accepted").into_inner();
    receiver.trust(path, &answer.signing_secret);
    answer.subscription.expect("the answer shows it")
}

/// The subscription as each replica shows it.
async fn shown(tenant: &Tenant, id: &str) -> Vec<Subscription> {
    let mut all = Vec::new();
    for clients in &tenant.at {
        let request = GetSubscriptionRequest { subscription_id: id.to_owned() };
        let answer = clients.events.clone().get_subscription(request).await.expect("it exists");
        all.push(answer.into_inner().subscription.expect("it is shown"));
    }
    all
}

async fn becomes(tenant: &Tenant, id: &str, what: &str, holds: impl Fn(&Subscription) -> bool) {
    eventually(&format!("every replica shows {what}"), || async {
        let all = shown(tenant, id).await;
        if all.iter().all(&holds) { Ok(()) } else { Err(all) }
    })
    .await;
}

#[tokio::test]
async fn a_rate_limit_lets_its_count_through_and_holds_up_nobody_else() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare(EVENT).await;
    let receiver = Receiver::start().await;
    let rate_limit = Some(RateLimit { count: 5, interval: Some(Duration { seconds: 86_400, nanos: 0 }) });
    let limited = subscribe(&tenant, &receiver, "/limited", DeliveryPolicy { rate_limit, ..quick_policy() }).await;
    let rate_limit = Some(RateLimit { count: 2, interval: Some(millis(100)) });
    subscribe(&tenant, &receiver, "/steady", DeliveryPolicy { rate_limit, ..quick_policy() }).await;
    subscribe(&tenant, &receiver, "/free", quick_policy()).await;
    for n in 0..20 {
        tenant.publish(EVENT, &json!({ "n": n })).await;
    }
    receiver.receives("/free", 20).await;
    receiver.receives("/steady", 20).await;
    assert_eq!(receiver.received("/limited").len(), 5);
    // What waits for a token of tomorrow goes at once where the limit is taken away.
    let update = UpdateSubscriptionRequest {
        subscription: Some(Subscription {
            id: limited.id,
            delivery_policy: Some(quick_policy()),
            ..Default::default()
        }),
        update_mask: Some(pbjson_types::FieldMask { paths: vec!["delivery_policy.rate_limit".to_owned()] }),
        ..Default::default()
    };
    tenant.events().update_subscription(update).await.expect("the limit can be taken away");
    assert_eq!(receiver.receives("/limited", 20).await.len(), 20);
}

#[tokio::test]
async fn what_is_left_of_a_rate_over_a_day_is_what_the_next_replica_may_spend() {
    let mut world = World::start_with(1, "[dispatch]\nlease_ms = 1000\n").await;
    let mut tenant = world.tenant().await;
    tenant.declare(EVENT).await;
    let receiver = Receiver::start().await;
    let rate_limit = Some(RateLimit { count: 5, interval: Some(Duration { seconds: 86_400, nanos: 0 }) });
    subscribe(&tenant, &receiver, "/limited", DeliveryPolicy { rate_limit, ..quick_policy() }).await;
    subscribe(&tenant, &receiver, "/free", quick_policy()).await;
    for n in 0..20 {
        tenant.publish(EVENT, &json!({ "n": n })).await;
    }
    eventually("what was delivered is recorded", || async {
        let request = ListInvocationsRequest {
            states: vec![InvocationState::Succeeded.into()],
            page_size: 1_000,
            ..Default::default()
        };
        let listed = tenant.invocations().list_invocations(request).await.expect("a page").into_inner();
        if listed.invocations.len() == 25 { Ok(()) } else { Err(listed.invocations.len()) }
    })
    .await;
    world.replace(0).await;
    tenant.reconnect(&world);
    for n in 20..40 {
        tenant.publish(EVENT, &json!({ "n": n })).await;
    }
    receiver.receives("/free", 40).await;
    assert_eq!(receiver.received("/limited").len(), 5);
}

#[tokio::test]
async fn an_open_circuit_stops_attempts_and_a_probe_that_succeeds_lets_everything_through() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare(EVENT).await;
    let receiver = Receiver::start().await;
    for (event, path) in [("SUBSCRIPTION_CIRCUIT_OPENED", "/opened"), ("SUBSCRIPTION_CIRCUIT_CLOSED", "/closed")] {
        tenant.subscribe(event, &receiver, path).await;
    }
    let breaker =
        |seconds, nanos| CircuitBreaker { failure_threshold: 3, open_duration: Some(Duration { seconds, nanos }) };
    let policy = |breaker| DeliveryPolicy {
        circuit_breaker: Some(breaker),
        max_in_flight: 1,
        max_attempts: 50,
        ..quick_policy()
    };
    for path in ["/stopped", "/probed"] {
        receiver.answers(path, [Answer::Status(500)]);
    }
    let stopped = subscribe(&tenant, &receiver, "/stopped", policy(breaker(3_600, 0))).await;
    let probed = subscribe(&tenant, &receiver, "/probed", policy(breaker(0, 200_000_000))).await;
    let mut events = Vec::new();
    for n in 0..10 {
        events.push(tenant.publish(EVENT, &json!({ "n": n })).await.event_id);
    }
    becomes(&tenant, &stopped.id, "an open circuit", |subscription| {
        subscription.circuit.is_some_and(|circuit| circuit.state() == CircuitState::Open && circuit.failures == 3)
    })
    .await;
    let opened = receiver.receives("/opened", 2).await;
    assert!(opened.iter().any(|event| event.json()["data"]["subscription"] == stopped.id.as_str()), "{opened:?}");
    receiver.receives("/probed", 5).await;
    receiver.answers("/probed", [Answer::Status(200)]);
    becomes(&tenant, &probed.id, "a closed circuit", |subscription| {
        subscription.circuit.is_some_and(|circuit| circuit.state() == CircuitState::Closed && circuit.since.is_some())
    })
    .await;
    let closed = receiver.receives("/closed", 1).await;
    assert_eq!(closed[0].json()["data"]["subscription"], probed.id.as_str());
    for event in &events {
        eventually("everything that waited has arrived", || async {
            let all = tenant.invocations_of(event).await;
            let of_probed = all.iter().find(|invocation| invocation.subscription_id == probed.id);
            let done = of_probed.is_some_and(|invocation| invocation.state() == InvocationState::Succeeded);
            if done { Ok(()) } else { Err(all) }
        })
        .await;
    }
    assert_eq!(receiver.received("/stopped").len(), 3, "not one attempt more");
}

#[tokio::test]
async fn a_receivers_wish_slows_its_whole_subscription_down() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare(EVENT).await;
    let receiver = Receiver::start().await;
    let wish = Answer::Full(429, vec![("retry-after", "3600".to_owned())], Vec::new());
    receiver.answers("/throttled", [wish]);
    // One that does not say for how long is given the time between its attempts.
    receiver.answers("/slowed", [Answer::Status(503)]);
    let policy = DeliveryPolicy { max_in_flight: 1, ..quick_policy() };
    let throttled = subscribe(&tenant, &receiver, "/throttled", policy.clone()).await;
    let minute = Some(Duration { seconds: 60, nanos: 0 });
    let slow = DeliveryPolicy { initial_backoff: minute, max_backoff: minute, ..policy };
    subscribe(&tenant, &receiver, "/slowed", slow).await;
    subscribe(&tenant, &receiver, "/free", quick_policy()).await;
    for n in 0..5 {
        tenant.publish(EVENT, &json!({ "n": n })).await;
    }
    receiver.receives("/free", 5).await;
    let last = tenant.publish(EVENT, &json!({ "n": 5 })).await;
    receiver.receives("/free", 6).await;
    receiver.receives("/slowed", 1).await;
    assert_eq!((receiver.received("/throttled").len(), receiver.received("/slowed").len()), (1, 1));
    let waiting = tenant.invocations_of(&last.event_id).await;
    assert!(waiting.iter().all(|invocation| invocation.attempt_count <= 1), "{waiting:?}");
    // A caller's decision does not wait for the receiver's.
    let disable = DisableSubscriptionRequest { subscription_id: throttled.id.clone(), ..Default::default() };
    tenant.events().disable_subscription(disable).await.expect("it can be disabled");
    eventually("what waited is cancelled", || async {
        let all = tenant.invocations_of(&last.event_id).await;
        let of_it = all.iter().find(|invocation| invocation.subscription_id == throttled.id);
        let cancelled = of_it.is_some_and(|invocation| invocation.state() == InvocationState::Cancelled);
        if cancelled { Ok(()) } else { Err(all) }
    })
    .await;
}

#[tokio::test]
async fn g9_a_pause_that_a_receiver_has_asked_for_is_kept_by_the_replica_that_takes_over() {
    let mut world = World::start(1).await;
    let mut tenant = world.tenant().await;
    tenant.declare(EVENT).await;
    let receiver = Receiver::start().await;
    receiver.answers("/paused", [Answer::Full(503, vec![("retry-after", "600".to_owned())], Vec::new())]);
    let paused = subscribe(&tenant, &receiver, "/paused", DeliveryPolicy { max_in_flight: 1, ..quick_policy() }).await;
    subscribe(&tenant, &receiver, "/free", quick_policy()).await;
    tenant.publish(EVENT, &json!({ "n": 0 })).await;
    receiver.receives("/paused", 1).await;
    receiver.receives("/free", 1).await;
    eventually("its end is shown", || async {
        let shown = shown(&tenant, &paused.id).await.remove(0);
        shown.paused_until.map(drop).ok_or(shown)
    })
    .await;
    let staying = world.add_replica().await;
    tenant.reconnect(&world);
    world.replicas[0].process.signal(Signal::TERM);
    for n in 1..=3 {
        let request = publish_request(EVENT, &json!({ "n": n }));
        tenant.publishers[staying].clone().publish(request).await.expect("the other replica takes it");
    }
    eventually("the first replica has ended", || {
        let running = world.replicas[0].process.is_running();
        async move { if running { Err("it runs") } else { Ok(()) } }
    })
    .await;
    let request = publish_request(EVENT, &json!({ "n": 4 }));
    tenant.publishers[staying].clone().publish(request).await.expect("the other replica takes it");
    receiver.receives("/free", 5).await;
    assert_eq!(receiver.received("/paused").len(), 1);
}

#[tokio::test]
async fn nothing_but_failures_disables_a_subscription_with_an_event() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare(EVENT).await;
    let receiver = Receiver::start().await;
    tenant.subscribe("SUBSCRIPTION_DISABLED", &receiver, "/disabled").await;
    receiver.answers("/failing", [Answer::Status(500)]);
    let auto_disable_after = Some(Duration { seconds: 1, nanos: 0 });
    let policy =
        DeliveryPolicy { auto_disable_after, max_attempts: 50, max_backoff: Some(millis(200)), ..quick_policy() };
    let failing = subscribe(&tenant, &receiver, "/failing", policy).await;
    for n in 0..3 {
        tenant.publish(EVENT, &json!({ "n": n })).await;
    }
    becomes(&tenant, &failing.id, "a disabled subscription", |subscription| {
        subscription.state() == SubscriptionState::Disabled && subscription.state_reason == "FAILING"
    })
    .await;
    let event = receiver.receives("/disabled", 1).await.remove(0).json();
    assert_eq!(
        (event["data"]["reason"].as_str(), event["data"]["subscription"].as_str()),
        (Some("FAILING"), Some(failing.id.as_str()))
    );
}
