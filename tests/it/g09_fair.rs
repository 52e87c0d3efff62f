//! G9 among tenants: however much one of them has to deliver, to receivers that hang, the others' deliveries go on.

use std::sync::Arc;

use carillon::proto::public::{DeliveryPolicy, InvocationState};
use pbjson_types::Duration;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::harness::tenant::{Tenant, quick_policy};
use crate::harness::wait::eventually;
use crate::harness::{Answer, Receiver, World};

const EVENT: &str = "CUSTOM_FAIR";
/// Attempts in flight, of all tenants together. None counts as slow while the test runs.
const SETTINGS: &str = "[dispatch]\nin_flight_max = 32\nslow_after_ms = 60000\n";
const LISTENERS: usize = 4;
const EVENTS: usize = 50;

/// Subscribes a path that answers nothing before the gate lets it.
async fn subscribe_gated(tenant: &Tenant, receiver: &Receiver, path: &str, gate: &Arc<Semaphore>) {
    receiver.answers(path, [Answer::Gated(gate.clone())]);
    let mut request = tenant.subscribe_request(EVENT, &receiver.url(path));
    let timeout = Some(Duration { seconds: 200, nanos: 0 });
    request.delivery_policy = Some(DeliveryPolicy { timeout, max_in_flight: 32, ..quick_policy() });
    tenant.events().subscribe(request).await.expect("a receiver can be subscribed");
}

#[tokio::test]
async fn a_tenant_at_ten_times_its_share_with_hanging_receivers_stops_nobody_else() {
    let world = World::start_with(1, SETTINGS).await;
    let (noisy, second, quiet) = (world.tenant().await, world.tenant().await, world.tenant().await);
    let receiver = Receiver::start().await;
    let gate = Arc::new(Semaphore::new(0));
    for (tenant, name) in [(&noisy, "noisy"), (&second, "second")] {
        tenant.declare(EVENT).await;
        for listener in 0..LISTENERS {
            subscribe_gated(tenant, &receiver, &format!("/{name}/{listener}"), &gate).await;
        }
    }
    quiet.declare(EVENT).await;
    quiet.subscribe(EVENT, &receiver, "/quiet").await;
    let arrived = |name: &str| {
        let paths = (0..LISTENERS).map(|listener| format!("/{name}/{listener}"));
        paths.map(|path| receiver.received(&path).len()).sum::<usize>()
    };

    // Far more than its receivers take: it fills what it may fill, and so does the one after it.
    for n in 0..EVENTS {
        noisy.publish(EVENT, &json!({ "n": n })).await;
    }
    eventually("the noisy tenant has what it may have", || async {
        if arrived("noisy") == 16 { Ok(()) } else { Err(arrived("noisy")) }
    })
    .await;
    for n in 0..EVENTS {
        second.publish(EVENT, &json!({ "n": n })).await;
    }
    eventually("the second one has half of the rest", || async {
        if arrived("second") == 8 { Ok(()) } else { Err(arrived("second")) }
    })
    .await;

    for n in 0..EVENTS {
        let published = quiet.publish(EVENT, &json!({ "n": n })).await;
        if n + 1 == EVENTS {
            quiet.all_invocations_become(&published.event_id, InvocationState::Succeeded).await;
        }
    }
    receiver.receives("/quiet", EVENTS).await;
    assert_eq!((arrived("noisy"), arrived("second")), (16, 8), "the others are stuck where they were");

    // And nothing of theirs is lost by it.
    gate.add_permits(2 * LISTENERS * EVENTS);
    for name in ["noisy", "second"] {
        for listener in 0..LISTENERS {
            let received = receiver.receives(&format!("/{name}/{listener}"), EVENTS).await;
            assert_eq!(received.len(), EVENTS);
        }
    }
    assert_eq!(receiver.received("/quiet").len(), EVENTS);
}
