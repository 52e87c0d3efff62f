//! G9: a listener that fails, hangs or floods delays no other listener and no other tenant.

use carillon::proto::public::InvocationState;
use serde_json::json;

use crate::harness::{Answer, Receiver, World};

#[tokio::test]
async fn a_hanging_listener_delays_nobody_else() {
    let world = World::shared().await;
    let (tenant, other) = (world.tenant().await, world.tenant().await);
    let receiver = Receiver::start().await;
    receiver.answers("/hangs", [Answer::Hang]);
    receiver.answers("/fails", [Answer::Status(500)]);
    for one in [&tenant, &other] {
        one.declare("CUSTOM_SHARED").await;
    }
    tenant.subscribe("CUSTOM_SHARED", &receiver, "/hangs").await;
    tenant.subscribe("CUSTOM_SHARED", &receiver, "/fails").await;
    tenant.subscribe("CUSTOM_SHARED", &receiver, "/healthy").await;
    other.subscribe("CUSTOM_SHARED", &receiver, "/other").await;
    // More than the hanging listener's in-flight limit, so that it is stuck for good.
    for n in 0..100 {
        tenant.publish("CUSTOM_SHARED", &json!({"n": n})).await;
    }
    let last = other.publish("CUSTOM_SHARED", &json!({})).await;
    other.all_invocations_become(&last.event_id, InvocationState::Succeeded).await;
    let received = receiver.receives("/healthy", 100).await;
    let numbers: std::collections::BTreeSet<_> =
        received.iter().map(|one| one.json()["data"]["n"].as_i64().expect("a number")).collect();
    assert_eq!(numbers.len(), 100);
    assert!(receiver.received("/hangs").len() <= 32, "the in-flight limit is exceeded");
}
