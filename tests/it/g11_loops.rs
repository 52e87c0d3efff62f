//! G11: loops end. A listener of dead letters that fails itself makes another dead letter of its own, and one of circuits has a circuit of
//! its own; it is refused visibly instead of going round. Listeners that fail on each other's failures share a budget of each root.

use std::collections::BTreeSet;

use carillon::proto::public::{
    CircuitBreaker, CreateEventTypeRequest, DeliveryPolicy, DisableSubscriptionRequest, EnableSubscriptionRequest,
    Event, EventPhase, Invocation, InvocationState, ListEventsRequest,
};
use pbjson_types::Duration;
use serde_json::json;

use crate::harness::tenant::{publish_request, quick_policy};
use crate::harness::{Answer, Receiver, Tenant, World, eventually};

#[tokio::test]
async fn a_listener_of_dead_letters_that_fails_does_not_go_round() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_LOOPED").await;
    receiver.answers("/first", [Answer::Status(500)]);
    receiver.answers("/dead", [Answer::Status(500)]);
    tenant.subscribe("CUSTOM_LOOPED", &receiver, "/first").await;
    let listener = tenant.subscribe("INVOCATION_DEAD_LETTERED", &receiver, "/dead").await;
    let listener = listener.subscription.expect("it is set").id;
    tenant.publish("CUSTOM_LOOPED", &json!({})).await;
    // Every invocation of every dead letter's event ends, and the listener's last one is refused as a cycle.
    let refused = eventually("the loop is refused", || async {
        let request = ListEventsRequest {
            event_types: vec!["INVOCATION_DEAD_LETTERED".to_owned()],
            page_size: 1_000,
            ..Default::default()
        };
        let events = tenant.events().list_events(request).await.expect("a page").into_inner().events;
        let mut seen = Vec::new();
        for event in events {
            let id = event.event.expect("it is set").id;
            seen.extend(tenant.invocations_of(&id).await);
        }
        let open = |state| matches!(state, InvocationState::Pending | InvocationState::Waiting);
        let cycle = seen.iter().find(|one| one.cancel_reason == "CHAIN_CYCLE").cloned();
        match cycle {
            Some(cycle) if !seen.iter().any(|one| open(one.state())) => Ok((cycle, seen)),
            _ => Err(seen),
        }
    })
    .await;
    let (cycle, all) = refused;
    assert_eq!((cycle.state(), cycle.subscription_id.as_str()), (InvocationState::Cancelled, listener.as_str()));
    assert_eq!(cycle.attempt_count, 0, "what is refused does not run");
    let events: BTreeSet<_> = all.iter().map(|one| one.event_id.clone()).collect();
    assert!(events.len() <= 2, "it went round: {all:#?}");
}

#[tokio::test]
async fn a_replay_refuses_on_the_record_what_the_subscription_itself_has_led_to() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_LOOPED").await;
    receiver.answers("/first", [Answer::Status(500)]);
    receiver.answers("/dead", [Answer::Hang]);
    let once =
        |seconds| DeliveryPolicy { max_attempts: 1, timeout: Some(Duration { seconds, nanos: 0 }), ..quick_policy() };
    let mut first = tenant.subscribe_request("CUSTOM_LOOPED", &receiver.url("/first"));
    first.delivery_policy = Some(once(5));
    tenant.events().subscribe(first).await.expect("subscribed");
    let mut second = tenant.subscribe_request("INVOCATION_DEAD_LETTERED", &receiver.url("/dead"));
    second.delivery_policy = Some(once(3));
    let listener = tenant.events().subscribe(second).await.expect("subscribed").into_inner();
    let subscription_id = listener.subscription.expect("it is set").id;
    tenant.publish("CUSTOM_LOOPED", &json!({})).await;
    receiver.receives("/dead", 1).await;
    // Its attempt hangs while it is disabled, so it misses the dead letter that it leads to.
    let disable = DisableSubscriptionRequest { subscription_id: subscription_id.clone(), ..Default::default() };
    tenant.events().disable_subscription(disable).await.expect("it is active");
    let missed = eventually("its own dead letter is told", || async {
        let request =
            ListEventsRequest { event_types: vec!["INVOCATION_DEAD_LETTERED".to_owned()], ..Default::default() };
        let events = tenant.events().list_events(request).await.expect("a page").into_inner().events;
        if events.len() == 2 { Ok(events[1].event.as_ref().expect("it is set").id.clone()) } else { Err(events.len()) }
    })
    .await;
    assert!(tenant.invocations_of(&missed).await.is_empty(), "it missed it");
    let enable = EnableSubscriptionRequest {
        subscription_id: subscription_id.clone(),
        replay_missed: true,
        ..Default::default()
    };
    tenant.events().enable_subscription(enable).await.expect("it is disabled");
    let refused = tenant.all_invocations_become(&missed, InvocationState::Cancelled).await.remove(0);
    assert_eq!((refused.cancel_reason.as_str(), refused.subscription_id), ("CHAIN_CYCLE", subscription_id));
    assert!(refused.replay && refused.attempt_count == 0, "{:?}", (refused.replay, refused.attempt_count));
    assert_eq!(receiver.received("/dead").len(), 1, "what is refused does not run");
}

/// Carillon's events of a type, oldest first.
async fn told(tenant: &Tenant, event_type: &str) -> Vec<Event> {
    let request =
        ListEventsRequest { event_types: vec![event_type.to_owned()], page_size: 1_000, ..Default::default() };
    tenant.events().list_events(request).await.expect("a page").into_inner().events
}

fn breaking(open: i64) -> DeliveryPolicy {
    let open_duration = Some(Duration { seconds: open, nanos: 0 });
    let circuit_breaker = Some(CircuitBreaker { failure_threshold: 1, open_duration });
    DeliveryPolicy { circuit_breaker, ..quick_policy() }
}

#[tokio::test]
async fn a_listener_of_circuits_whose_own_circuit_opens_and_closes_does_not_go_round() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_LOOPED").await;
    let fails_once = || [Answer::Status(500), Answer::Status(200), Answer::Status(500), Answer::Status(200)];
    receiver.answers("/first", fails_once());
    receiver.answers("/closed", fails_once());
    let mut listener = String::new();
    for (event_type, path) in [("CUSTOM_LOOPED", "/first"), ("SUBSCRIPTION_CIRCUIT_CLOSED", "/closed")] {
        let mut request = tenant.subscribe_request(event_type, &receiver.url(path));
        request.delivery_policy = Some(breaking(1));
        let subscribed = tenant.events().subscribe(request).await.expect("subscribed").into_inner();
        listener = subscribed.subscription.expect("it is set").id;
    }
    let root = tenant.publish("CUSTOM_LOOPED", &json!({})).await.event_id;
    let closed = eventually("both circuits are told to have closed", || async {
        let closed = told(&tenant, "SUBSCRIPTION_CIRCUIT_CLOSED").await;
        if closed.len() >= 2 { Ok(closed) } else { Err(closed.len()) }
    })
    .await;
    for (event, depth) in closed.iter().zip([1, 2]) {
        assert_eq!((event.root_event_id.as_str(), event.depth), (root.as_str(), depth), "{event:?}");
    }
    let own = &closed[1].event.as_ref().expect("it is set").id;
    let refused = tenant.all_invocations_become(own, InvocationState::Cancelled).await.remove(0);
    assert_eq!((refused.cancel_reason.as_str(), &refused.subscription_id), ("CHAIN_CYCLE", &listener));
    assert_eq!(receiver.received("/closed").len(), 2, "it hears of the first circuit only, by an attempt and a probe");
}

#[tokio::test]
async fn what_a_pre_listeners_circuit_tells_follows_from_the_question() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    let pre = CreateEventTypeRequest {
        name: "CUSTOM_PRE_LOOPED".to_owned(),
        phase: EventPhase::Pre.into(),
        ..Default::default()
    };
    tenant.types().create_event_type(pre).await.expect("a PRE type can be declared");
    receiver.answers("/pre", [Answer::Status(500)]);
    let mut request = tenant.subscribe_request("CUSTOM_PRE_LOOPED", &receiver.url("/pre"));
    request.delivery_policy = Some(DeliveryPolicy { max_attempts: 1, ..breaking(3_600) });
    let id = tenant.events().subscribe(request).await.expect("subscribed").into_inner().subscription.expect("set").id;
    tenant.try_publish(publish_request("CUSTOM_PRE_LOOPED", &json!({}))).await.expect_err("it must agree");
    tenant.told("SUBSCRIPTION_CIRCUIT_OPENED", &id).await;
    let opened = told(&tenant, "SUBSCRIPTION_CIRCUIT_OPENED").await.remove(0);
    let asked = receiver.received("/pre").remove(0);
    assert_eq!((opened.depth, opened.cause_invocation_id.as_str()), (1, asked.header("webhook-id")));
    assert_eq!(opened.root_event_id, asked.json()["id"].as_str().expect("an id"));
}

/// Why an invocation was refused, where it was.
fn refusal(invocation: &Invocation) -> Option<&str> {
    match invocation.state() {
        InvocationState::Cancelled => Some(invocation.cancel_reason.as_str()),
        _ => None,
    }
}

#[tokio::test]
async fn g11_listeners_that_fail_on_each_others_failures_end_at_the_budget_of_each_root() {
    const LISTENERS: usize = 8;
    const BUDGET: usize = 20;
    let settings = format!("[publish]\nchain_invocations_max = {BUDGET}\n");
    let world = World::start_with(2, &settings).await;
    let tenant = world.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_LOOPED").await;
    let listeners = (0..LISTENERS).map(|n| ("INVOCATION_DEAD_LETTERED", format!("/dead/{n}")));
    let others = [("CUSTOM_LOOPED", "/first".to_owned()), ("CHAIN_BUDGET_EXHAUSTED", "/told".to_owned())];
    for (event_type, path) in listeners.chain(others) {
        receiver.answers(&path, [Answer::Status(500)]);
        let mut request = tenant.subscribe_request(event_type, &receiver.url(&path));
        request.delivery_policy = Some(DeliveryPolicy { max_attempts: 1, ..quick_policy() });
        tenant.events().subscribe(request).await.expect("subscribed");
    }
    let mut roots = BTreeSet::new();
    for replica in 0..2 {
        let request = publish_request("CUSTOM_LOOPED", &json!({ "replica": replica }));
        let published = tenant.publishers[replica].clone().publish(request).await.expect("published").into_inner();
        roots.insert(published.event_id);
        // Dead letters of the root's listener, of all that the budget lets through, and of the listener that is told of its end.
        let dead_letters = (BUDGET + 2) * roots.len();
        let ended = eventually("every invocation of every dead letter has ended", || async {
            let mut seen = Vec::new();
            for event in told(&tenant, "INVOCATION_DEAD_LETTERED").await {
                seen.extend(tenant.invocations_of(&event.event.expect("it is set").id).await);
            }
            let open =
                seen.iter().any(|one| matches!(one.state(), InvocationState::Pending | InvocationState::Waiting));
            if seen.len() == dead_letters * LISTENERS && !open { Ok(seen) } else { Err((seen.len(), open)) }
        })
        .await;
        // Each of them is on record: it failed, or was refused for one of two reasons.
        let of = |reason| ended.iter().filter(|one| refusal(one) == Some(reason)).count();
        let (beyond, cycles) = (of("CHAIN_BUDGET"), of("CHAIN_CYCLE"));
        let failed = ended.iter().filter(|one| one.state() == InvocationState::DeadLettered).count();
        assert_eq!((failed, failed + beyond + cycles), (BUDGET * roots.len(), ended.len()));
        assert!(beyond > 0 && cycles > 0, "{beyond} {cycles}");
        assert!(
            ended.iter().all(|one| refusal(one).is_none() || one.attempt_count == 0),
            "what is refused does not run"
        );
        let calls: usize = (0..LISTENERS).map(|n| receiver.received(&format!("/dead/{n}")).len()).sum();
        assert_eq!((calls, receiver.received("/told").len()), (BUDGET * roots.len(), roots.len()));
    }
    let exhausted = told(&tenant, "CHAIN_BUDGET_EXHAUSTED").await;
    assert_eq!(exhausted.len(), 2, "once a root");
    assert_eq!(exhausted.iter().map(|event| event.root_event_id.clone()).collect::<BTreeSet<_>>(), roots);
    for told in receiver.received("/told") {
        let data = told.json()["data"].clone();
        assert!(roots.contains(data["root_id"].as_str().expect("an id")), "{data}");
        assert_eq!((&data["budget"], &data["reason"]), (&json!(BUDGET), &json!("CHAIN_BUDGET")));
        let event = data["event"].as_str().expect("an id");
        let first = tenant.invocations_of(event).await.into_iter().find(|one| json!(one.id) == data["invocation"]);
        let first = first.expect("it names what was refused first");
        assert_eq!(
            (refusal(&first), json!(first.subscription_id)),
            (Some("CHAIN_BUDGET"), data["subscription"].clone())
        );
    }
}
