//! Running it: health, metrics, configuration that is refused, and shutting down.

use std::sync::Arc;

use carillon::proto::internal::WaitEventRequest;
use carillon::proto::public::InvocationState;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustix::process::Signal;
use serde_json::json;
use tokio::sync::Semaphore;
use tonic::Code;

use crate::harness::receiver::Answer;
use crate::harness::tenant::{assert_refused, publish_request};
use crate::harness::{Receiver, World, eventually, within};

/// What a URL answers: status and body.
pub async fn get(url: &str) -> (u16, String) {
    let client: Client<_, Empty<bytes::Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let response = within(url, client.get(url.parse().expect("a URL"))).await.expect("an answer");
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test]
async fn the_ops_port_serves_health_and_metrics() {
    let world = World::shared().await;
    let ops = &world.replicas[0].addresses.ops;
    assert_eq!(get(&format!("http://{ops}/livez")).await.0, 200);
    eventually("the replica is ready", || async {
        let (status, body) = get(&format!("http://{ops}/readyz")).await;
        if status == 200 { Ok(()) } else { Err((status, body)) }
    })
    .await;
    let (status, metrics) = get(&format!("http://{ops}/metrics")).await;
    assert_eq!(status, 200);
    assert!(metrics.contains("# TYPE carillon_"), "{metrics}");
    assert_eq!(get(&format!("http://{ops}/nothing")).await.0, 404);
}

#[tokio::test]
async fn a_replica_that_is_told_to_end_finishes_what_it_delivers() {
    let mut world = World::start(1).await;
    let tenant = world.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_DRAINED").await;
    tenant.subscribe("CUSTOM_DRAINED", &receiver, "/hook").await;
    for n in 0..20 {
        tenant.publish("CUSTOM_DRAINED", &json!({"n": n})).await;
    }
    world.replicas[0].process.signal(Signal::TERM);
    let status = world.replicas[0].process.ended("the replica drains").await;
    assert!(status.success(), "{status}: {}", world.replicas[0].process.log_tail());
    let before = receiver.received("/hook").len();
    let index = world.add_replica().await;
    let received = receiver.receives("/hook", 20).await;
    let mut ids: Vec<_> = received.iter().map(|one| one.header("webhook-id").to_owned()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 20, "{before} were delivered before the drain ended, replica {index} did not do the rest");
}

#[tokio::test]
async fn a_replica_that_waits_for_a_hanging_receiver_gives_everybody_else_away_at_once() {
    let mut world = World::start_with(2, "[dispatch]\ndrain_ms = 60000\n[server]\ndrain_timeout_ms = 70000\n").await;
    let receiver = Receiver::start().await;
    // The two replicas share the tenants, so each has some; more hang until the second one has one of those.
    let in_flight = format!("http://{}/metrics", world.replicas[1].addresses.ops);
    let mut hanging = 0;
    let idle = |text: &str| text.lines().any(|line| line == "carillon_dispatch_in_flight 0");
    while idle(&get(&in_flight).await.1) {
        let (tenant, path) = (world.tenant().await, format!("/hanging{hanging}"));
        receiver.answers(&path, [Answer::Hang]);
        tenant.declare("CUSTOM_HANGS").await;
        tenant.subscribe("CUSTOM_HANGS", &receiver, &path).await;
        tenant.publish("CUSTOM_HANGS", &json!({})).await;
        receiver.receives(&path, 1).await;
        hanging += 1;
    }
    let mut tenants = Vec::new();
    for n in 0..8 {
        let tenant = world.tenant().await;
        tenant.declare("CUSTOM_HANDED").await;
        tenant.subscribe("CUSTOM_HANDED", &receiver, &format!("/hook{n}")).await;
        tenants.push(tenant);
    }
    world.replicas[1].process.signal(Signal::TERM);
    for (n, tenant) in tenants.iter().enumerate() {
        tenant.publish("CUSTOM_HANDED", &json!({})).await;
        receiver.receives(&format!("/hook{n}"), 1).await;
    }
    assert!(world.replicas[1].process.is_running(), "it waits for its own, and nobody waits with it");
}

#[tokio::test]
async fn a_drain_sends_those_who_only_wait_elsewhere_and_gives_deliveries_away_beside_its_calls() {
    // Calls and deliveries may each take half a minute: a drain that did one after the other would take a whole one.
    let mut world = World::start_with(2, "[dispatch]\ndrain_ms = 1000\n[server]\ndrain_timeout_ms = 30000\n").await;
    let tenant = world.tenant().await;
    let receiver = Receiver::start().await;
    let gate = Arc::new(Semaphore::new(0));
    receiver.answers("/hook", [Answer::Gated(gate.clone())]);
    tenant.declare("CUSTOM_WAITED").await;
    tenant.subscribe("CUSTOM_WAITED", &receiver, "/hook").await;
    let event_id = tenant.publish("CUSTOM_WAITED", &json!({})).await.event_id;
    receiver.receives("/hook", 1).await;
    let mut publisher = tenant.publishers[1].clone();
    let wait = WaitEventRequest { event_id: event_id.clone(), ..Default::default() };
    let waiting = tokio::spawn(async move { publisher.wait_event(wait).await });
    // The call has begun where another one on the same connection has been answered since.
    tenant.publishers[1].clone().publish(publish_request("CUSTOM_WAITED", &json!({}))).await.expect("it is accepted");
    world.replicas[1].process.signal(Signal::TERM);
    let refused = within("the wait ends with the drain", waiting).await.expect("no panic");
    assert_refused(refused, Code::Unavailable, "SERVER_DRAINING");
    let status = world.replicas[1].process.ended("the replica drains").await;
    assert!(status.success(), "{status}: {}", world.replicas[1].process.log_tail());
    let log = world.replicas[1].process.log();
    let after = log.split("draining").nth(1).expect("it says that it drains");
    assert!(!after.contains("took dispatch shards"), "{after}");
    gate.add_permits(8);
    tenant.all_invocations_become(&event_id, InvocationState::Succeeded).await;
}
