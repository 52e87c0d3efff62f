//! G9 among tenants: however much one of them has to deliver, to receivers that hang, the others' deliveries go on.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use carillon::proto::internal::PublishBatchRequest;
use carillon::proto::public::{DeliveryPolicy, InvocationState};
use pbjson_types::Duration;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::harness::tenant::{Tenant, publish_request, quick_policy};
use crate::harness::wait::eventually;
use crate::harness::{Answer, Receiver, World};

const EVENT: &str = "CUSTOM_FAIR";
/// Attempts in flight, of all tenants together. None counts as slow while the test runs.
const SETTINGS: &str = "[dispatch]\nin_flight_max = 32\nslow_after_ms = 60000\n";
const LISTENERS: usize = 4;
const EVENTS: usize = 50;
/// How often it is measured at most, and the middle of that counts: what a machine that is busy with something else does to one of them it
/// does not do to most.
const ROUNDS: usize = 5;
/// Blocks of events that a latency is measured over, with the noisy tenant and without it, and how many events each has.
const BLOCKS: usize = 6;
const BLOCK: usize = 50;
/// Events of the noisy tenant for each of the quiet one.
const TIMES: usize = 10;
/// How many times as long the quiet tenant's deliveries may take beside the noisy one.
const RATIO_MAX: f64 = 2.0;

/// Subscribes a path that answers nothing before the gate lets it.
async fn subscribe_gated(tenant: &Tenant, receiver: &Receiver, path: &str, gate: &Arc<Semaphore>) {
    receiver.answers(path, [Answer::Gated(gate.clone())]);
    let mut request = tenant.subscribe_request(EVENT, &receiver.url(path));
    let timeout = Some(Duration { seconds: 200, nanos: 0 });
    request.delivery_policy = Some(DeliveryPolicy { timeout, max_in_flight: 32, ..quick_policy() });
    tenant.events().subscribe(request).await.expect("a receiver can be subscribed");
}

/// Publishes a block of events of the quiet tenant, and for each of them the noisy one's share, where there is one; waits for their
/// receipt at the path. Adds how long each took from the call to its receipt, milliseconds.
async fn measure(quiet: &Tenant, (receiver, path): (&Receiver, &str), noisy: Option<&Tenant>, took_ms: &mut Vec<f64>) {
    let before = receiver.received(path).len();
    let mut called = HashMap::new();
    for n in 0..BLOCK {
        let noise = async {
            if let Some(noisy) = noisy {
                let request = || publish_request(EVENT, &json!({ "n": n }));
                let batch = PublishBatchRequest { requests: (0..TIMES).map(|_| request()).collect() };
                noisy.publisher().publish_batch(batch).await.expect("it is not over a quota");
            }
        };
        let (data, at) = (json!({ "n": n }), Instant::now());
        let (published, ()) = tokio::join!(quiet.publish(EVENT, &data), noise);
        called.insert(published.invocations[0].invocation_id.clone(), at);
    }
    let received = receiver.receives(path, before + BLOCK).await;
    let took = received[before..].iter().map(|one| one.at - called[one.header("webhook-id")]);
    took_ms.extend(took.map(|took| took.as_secs_f64() * 1_000.0));
}

fn p99(mut took_ms: Vec<f64>) -> f64 {
    took_ms.sort_by(f64::total_cmp);
    took_ms[took_ms.len() * 99 / 100]
}

/// In how many of these rounds, each alone and beside the noisy tenant, the deliveries took no longer than they may.
fn within(found: &[(f64, f64)]) -> usize {
    found.iter().filter(|(alone, beside)| *beside <= alone * RATIO_MAX).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_at_ten_times_its_share_with_hanging_receivers_leaves_anothers_p99_within_twice() {
    // One service has the noisy tenant, and one has never heard of it.
    let (world, calm) = (World::start_with(1, SETTINGS).await, World::start_with(1, SETTINGS).await);
    let (noisy, quiet, lone) = (world.tenant().await, world.tenant().await, calm.tenant().await);
    let receiver = Receiver::start().await;
    let gate = Arc::new(Semaphore::new(0));
    noisy.declare(EVENT).await;
    for listener in 0..LISTENERS {
        subscribe_gated(&noisy, &receiver, &format!("/noisy/{listener}"), &gate).await;
    }
    let (at_quiet, at_lone) = ((&receiver, "/quiet"), (&receiver, "/lone"));
    for (tenant, (receiver, path)) in [(&quiet, at_quiet), (&lone, at_lone)] {
        tenant.declare(EVENT).await;
        tenant.subscribe(EVENT, receiver, path).await;
        // Connections and statements are warm before anything counts.
        measure(tenant, (receiver, path), None, &mut Vec::new()).await;
    }
    let mut found = Vec::new();
    for _ in 0..ROUNDS {
        // In turn, so that whatever else the machine does falls on both.
        let (mut alone, mut beside) = (Vec::new(), Vec::new());
        for _ in 0..BLOCKS {
            measure(&lone, at_lone, None, &mut alone).await;
            measure(&quiet, at_quiet, Some(&noisy), &mut beside).await;
        }
        found.push((p99(alone), p99(beside)));
        // Where most are on one side, so is the middle.
        if within(&found).max(found.len() - within(&found)) > ROUNDS / 2 {
            break;
        }
    }
    let stuck: usize = (0..LISTENERS).map(|listener| receiver.received(&format!("/noisy/{listener}")).len()).sum();
    assert_eq!(stuck, 16, "the noisy tenant has what it may have, and no answer");
    assert!(within(&found) > ROUNDS / 2, "p99 alone and beside the noisy tenant, milliseconds: {found:.1?}");
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

/// Publishes one event after the other, each once the one before has been received, for so long.
async fn goes_on(tenant: &Tenant, (receiver, path): (&Receiver, &str), long: std::time::Duration) {
    let (began, before) = (Instant::now(), receiver.received(path).len());
    for n in 1.. {
        tenant.publish(EVENT, &json!({ "n": n })).await;
        receiver.receives(path, before + n).await;
        if began.elapsed() > long {
            break;
        }
    }
}

#[tokio::test]
async fn g9_a_listener_with_one_slow_attempt_goes_on_beside_a_tenant_whose_receivers_hang() {
    let settings = "[dispatch]\nin_flight_max = 32\nslow_after_ms = 100\nslow_in_flight_max = 8\n";
    let world = World::start_with(1, settings).await;
    let (noisy, quiet) = (world.tenant().await, world.tenant().await);
    let receiver = Receiver::start().await;
    let gate = Arc::new(Semaphore::new(0));
    for tenant in [&noisy, &quiet] {
        tenant.declare(EVENT).await;
    }
    for listener in 0..LISTENERS {
        subscribe_gated(&noisy, &receiver, &format!("/noisy/{listener}"), &gate).await;
    }
    subscribe_gated(&quiet, &receiver, "/quiet", &gate).await;
    receiver.answers("/quiet", [Answer::Gated(gate.clone()), Answer::Status(200)]);
    quiet.publish(EVENT, &json!({})).await;
    receiver.receives("/quiet", 1).await;
    for n in 0..EVENTS {
        noisy.publish(EVENT, &json!({ "n": n })).await;
    }
    // Long enough for whatever hangs to count as slow.
    goes_on(&quiet, (&receiver, "/quiet"), std::time::Duration::from_secs(4)).await;
    let stuck: usize = (0..LISTENERS).map(|listener| receiver.received(&format!("/noisy/{listener}")).len()).sum();
    assert!(stuck <= 32 + 8, "{stuck} run, which is more than may");
    gate.add_permits(1 + LISTENERS * EVENTS);
    for listener in 0..LISTENERS {
        receiver.receives(&format!("/noisy/{listener}"), EVENTS).await;
    }
}
