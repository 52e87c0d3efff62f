//! Running it: health, metrics, configuration that is refused, and shutting down.

use std::process::Output;

use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustix::process::Signal;
use serde_json::json;

use crate::harness::process::Process;
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
async fn a_bad_setting_stops_the_start_and_is_named_without_its_value() {
    let world = World::shared().await;
    let good = std::fs::read_to_string(world.path("replica-1.toml")).expect("the file of the first replica");
    let cases = [
        ("surprise = 1\n".to_owned() + &good, "surprise"),
        (good.replace("[operators]", "[operators]\nsubjekts = ['x']"), "subjekts"),
        (good.replace("public_listen = \"127.0.0.1:0\"", "public_listen = \"hunter2\""), "public_listen"),
        (good.replace("certificate_file", "#"), "certificate_file"),
        (good.replace("MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=", "hunter2"), "secrets.keys"),
    ];
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (index, (text, key)) in cases.into_iter().enumerate() {
        let file = dir.path().join(format!("{index}.toml"));
        std::fs::write(&file, text).expect("a file in the temporary folder");
        let mut command = Process::carillon();
        command.arg("serve").arg("--config").arg(&file);
        let output = run(command).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{key}: it started");
        assert!(said.contains(key), "{key} is not named: {said}");
        assert!(!said.contains("hunter2"), "a value is shown: {said}");
    }
}

async fn run(command: std::process::Command) -> Output {
    let output = tokio::process::Command::from(command).kill_on_drop(true).output();
    within("carillon ends", output).await.expect("carillon runs")
}

#[tokio::test]
async fn two_migrations_at_once_both_succeed() {
    let world = World::shared().await;
    let migrate = || {
        let mut command = Process::carillon();
        command.arg("migrate").env("CARILLON_DATABASE__URL", &world.database_url);
        run(command)
    };
    let (one, other) = tokio::join!(migrate(), migrate());
    assert!(one.status.success() && other.status.success(), "{one:?} {other:?}");
}
