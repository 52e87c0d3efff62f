//! Metrics: what is served is what is documented, and it counts what happens.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::json;

use crate::harness::tenant::publish_request;
use crate::harness::{Answer, Receiver, World, eventually};
use crate::operations::get;
use carillon::proto::public::InvocationState;

pub async fn scrape(world: &World) -> String {
    let (status, text) = get(&format!("http://{}/metrics", world.replicas[0].addresses.ops)).await;
    assert_eq!(status, 200);
    text
}

/// The value of a series, given as it is written; 0 where it is not there.
pub fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().expect("a number"))
}

/// The documented name of each metric that is served.
fn served(text: &str) -> BTreeSet<String> {
    let typed = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    typed
        .map(|(name, kind)| match kind {
            "counter" => format!("{name}_total"),
            "info" => format!("{name}_info"),
            _ => name.to_owned(),
        })
        .collect()
}

#[tokio::test]
async fn every_metric_is_documented_and_counts_what_happens() {
    let world = World::start(1).await;
    let tenant = world.tenant().await;
    let receiver = Receiver::start().await;
    receiver.answers("/dead", [Answer::Status(503)]);
    tenant.declare("CUSTOM_COUNTED").await;
    tenant.subscribe("CUSTOM_COUNTED", &receiver, "/hook").await;
    let mut failing = tenant.subscribe_request("CUSTOM_COUNTED", &receiver.url("/dead"));
    failing.delivery_policy.as_mut().expect("it is set").max_attempts = 2;
    tenant.events().subscribe(failing).await.expect("valid");
    let mut unfit = tenant.subscribe_request("CUSTOM_COUNTED", &receiver.url("/never"));
    unfit.filter = "data.missing > 1".to_owned();
    tenant.events().subscribe(unfit).await.expect("valid");

    let mut request = publish_request("CUSTOM_COUNTED", &json!({"n": 1}));
    request.idempotency_key = "counted".to_owned();
    let published = tenant.try_publish(request.clone()).await.expect("valid");
    assert!(tenant.try_publish(request).await.expect("a repetition").duplicate);
    eventually("one invocation succeeds and one is dead", || async {
        let states: BTreeSet<_> =
            tenant.invocations_of(&published.event_id).await.iter().map(|one| one.state().as_str_name()).collect();
        let wanted = [InvocationState::Succeeded, InvocationState::DeadLettered].map(|state| state.as_str_name());
        if states == BTreeSet::from(wanted) { Ok(()) } else { Err(states) }
    })
    .await;
    let exact: [(&str, f64); 9] = [
        ("carillon_publish_duplicates_total", 1.0),
        ("carillon_dispatch_attempts_total{outcome=\"succeeded\"}", 1.0),
        ("carillon_dispatch_attempt_duration_seconds_count", 3.0),
        ("carillon_dispatch_deferred_total", 1.0),
        ("carillon_dispatch_dead_letters_total", 1.0),
        ("carillon_dispatch_lag_events", 0.0),
        ("carillon_dispatch_in_flight", 0.0),
        ("carillon_dispatch_shards", 64.0),
        ("carillon_publish_queue_calls", 0.0),
    ];
    // Levels of the dispatcher are noted once a second.
    let text = eventually("the metrics say what happened", || async {
        let text = scrape(&world).await;
        match exact.iter().find(|(series, expected)| (value(&text, series) - *expected).abs() > 0.5) {
            None if value(&text, "carillon_dispatch_tenants") < 1.0 => Err("no tenant is dispatched".to_owned()),
            None => Ok(text),
            Some((series, expected)) => Err(format!("{series} is {}, not {expected}", value(&text, series))),
        }
    })
    .await;
    // The event itself, and those that Carillon publishes about the dead letter.
    assert!(value(&text, "carillon_publish_events_total") >= 1.0);
    assert!(value(&text, "carillon_publish_batch_events_count") >= 1.0);
    assert!(value(&text, "carillon_publish_commit_duration_seconds_count") >= 1.0);
    assert!(value(&text, "carillon_filter_errors_total{place=\"subscription\"}") >= 1.0);
    assert!(value(&text, "carillon_store_connections") >= 1.0);
    assert!(!text.contains(&tenant.slug) && !text.contains("127.0.0.1"), "a label tells too much: {text}");

    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md")).expect("the page");
    let listed = page.lines().filter_map(|line| line.strip_prefix("| `carillon_")?.split_once('`'));
    let listed: BTreeSet<_> = listed.map(|(name, _)| format!("carillon_{name}")).collect();
    assert_eq!(served(&text), listed, "docs/metrics.md lists other metrics than are served");
}

#[tokio::test]
async fn watches_are_counted_while_they_are_open() {
    let world = World::start(1).await;
    let tenant = world.tenant().await;
    tenant.declare("CUSTOM_COUNTED").await;
    tenant.publish("CUSTOM_COUNTED", &json!({"n": 1})).await;
    let request = carillon::proto::public::WatchRequest {
        start: Some(carillon::proto::public::watch_request::Start::Earliest(true)),
        ..Default::default()
    };
    let mut stream = tenant.events().watch(request).await.expect("it opens").into_inner();
    let created = stream.message().await.expect("it is alive").expect("it goes on");
    assert!(!created.cursor.is_empty());
    stream.message().await.expect("it is alive").expect("the event, read from the database");
    tenant.publish("CUSTOM_COUNTED", &json!({"n": 2})).await;
    stream.message().await.expect("it is alive").expect("the second event, out of the ring");
    let text = scrape(&world).await;
    assert!(value(&text, "carillon_watch_streams") >= 1.0, "{text}");
    assert!(value(&text, "carillon_watch_messages_total") >= 3.0, "{text}");
    assert!(value(&text, "carillon_watch_sent_bytes_total") >= 100.0, "{text}");
    assert!(value(&text, "carillon_watch_fallen_out_total") >= 1.0, "{text}");
    assert!(value(&text, "carillon_watch_ring_entries") >= 1.0, "{text}");
    assert!(value(&text, "carillon_watch_ring_bytes") >= 100.0, "{text}");
    drop(stream);
    eventually("the watch is no longer counted", || async {
        let text = scrape(&world).await;
        if value(&text, "carillon_watch_streams") < 1.0 { Ok(()) } else { Err(text) }
    })
    .await;
}
