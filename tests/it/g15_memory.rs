//! G15: what is kept in memory is bounded in bytes, whatever an event is heavy with.

use std::collections::HashMap;
use std::sync::Arc;

use carillon::proto::cloudevents::cloud_event::CloudEventAttributeValue;
use carillon::proto::cloudevents::cloud_event::cloud_event_attribute_value::Attr;
use carillon::proto::internal::PublishRequest;
use carillon::proto::public::WatchRequest;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::harness::tenant::publish_request;
use crate::harness::{Answer, Receiver, World, eventually};
use crate::metrics::{scrape, value};

/// As many attributes as an event may have, each as long as it may be: 127 KB beside two bytes of data.
fn heavy() -> PublishRequest {
    let value = || CloudEventAttributeValue { attr: Some(Attr::CeString("x".repeat(4_096))) };
    let mut request = publish_request("CUSTOM_HEAVY", &json!({}));
    let attributes: HashMap<String, _> = (0..31).map(|n| (format!("a{n}"), value())).collect();
    request.event.as_mut().expect("it is set").attributes.extend(attributes);
    request
}

#[tokio::test]
async fn attributes_count_like_data_in_rings_and_where_events_wait_for_a_listener() {
    const EVENTS: u32 = 60;
    const BOUND: f64 = 1_048_576.0;
    let settings = "[dispatch]\nmemory_bytes_max = 1048576\n[watch]\nring_bytes_max = 1048576\n";
    let world = World::start_with(1, settings).await;
    let tenant = world.tenant().await;
    tenant.declare("CUSTOM_HEAVY").await;
    let (receiver, gate) = (Receiver::start().await, Arc::new(Semaphore::new(0)));
    receiver.answers("/slow", [Answer::Gated(gate.clone())]);
    let mut slow = tenant.subscribe_request("CUSTOM_HEAVY", &receiver.url("/slow"));
    slow.delivery_policy.as_mut().expect("it is set").timeout = Some(pbjson_types::Duration { seconds: 60, nanos: 0 });
    tenant.events().subscribe(slow).await.expect("valid");
    tenant.subscribe("CUSTOM_HEAVY", &receiver, "/quick").await;
    let _watch = tenant.events().watch(WatchRequest::default()).await.expect("valid");
    for _ in 0..EVENTS {
        tenant.try_publish(heavy()).await.expect("valid");
    }
    receiver.receives("/quick", EVENTS as usize).await;
    let text = eventually("the levels are noted", || async {
        let text = scrape(&world).await;
        // All of them wait for the slow one, and no more than the bound in memory: a further event, and what is encoded of one, apart.
        let (waits, bytes) =
            (value(&text, "carillon_dispatch_backlog"), value(&text, "carillon_dispatch_memory_bytes"));
        assert!(bytes < BOUND * 1.5, "{bytes} bytes in memory");
        if waits >= f64::from(EVENTS) && bytes > BOUND / 2.0 {
            Ok(text)
        } else {
            Err(format!("{waits}, {bytes} bytes"))
        }
    })
    .await;
    let (entries, bytes) = (value(&text, "carillon_watch_ring_entries"), value(&text, "carillon_watch_ring_bytes"));
    assert!((1.0..=8.0).contains(&entries) && bytes > 127_000.0 && bytes <= BOUND, "{entries} of {bytes} bytes");
    gate.add_permits(EVENTS as usize);
    receiver.receives("/slow", EVENTS as usize).await;
    eventually("nothing is left", || async {
        let bytes = value(&scrape(&world).await, "carillon_dispatch_memory_bytes");
        if bytes < 1.0 { Ok(()) } else { Err(bytes) }
    })
    .await;
}
