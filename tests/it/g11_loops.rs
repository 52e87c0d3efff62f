//! G11: loops end. A listener of dead letters that fails itself makes another dead letter of its own; it is refused visibly
//! instead of going round.

use std::collections::BTreeSet;

use carillon::proto::public::{InvocationState, ListEventsRequest};
use serde_json::json;

use crate::harness::{Answer, Receiver, World, eventually};

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
