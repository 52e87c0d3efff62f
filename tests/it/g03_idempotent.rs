//! G3: one idempotency key makes at most one event, and every retry gets the first answer.

use std::collections::HashSet;

use futures::future::join_all;
use serde_json::json;
use tonic::Code;

use crate::harness::tenant::{assert_refused, publish_request};
use crate::harness::{Receiver, World};

#[tokio::test]
async fn a_hundred_racers_on_two_replicas_make_one_event() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_RACED").await;
    tenant.subscribe("CUSTOM_RACED", &receiver, "/hook").await;
    let mut request = publish_request("CUSTOM_RACED", &json!({"n": 1}));
    request.idempotency_key = "race".to_owned();
    let racers = (0..100).map(|racer| {
        let (mut publisher, request) = (tenant.publishers[racer % 2].clone(), request.clone());
        async move { publisher.publish(request).await.expect("every racer gets the answer").into_inner() }
    });
    let answers = join_all(racers).await;
    assert_eq!(answers.iter().filter(|answer| !answer.duplicate).count(), 1);
    let same: HashSet<_> = answers
        .iter()
        .map(|answer| (answer.event_id.clone(), answer.position, answer.invocations[0].invocation_id.clone()))
        .collect();
    assert_eq!(same.len(), 1, "{same:?}");
    assert_eq!(tenant.publish("CUSTOM_RACED", &json!({"n": 2})).await.position, same.iter().next().expect("one").1 + 1);
    receiver.receives("/hook", 2).await;
    assert_eq!(receiver.received("/hook").len(), 2);
}

#[tokio::test]
async fn the_same_key_with_another_body_is_refused() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_RACED").await;
    let mut request = publish_request("CUSTOM_RACED", &json!({"n": 1}));
    request.idempotency_key = "key".to_owned();
    let first = tenant.try_publish(request.clone()).await.expect("the first");
    let mut other = publish_request("CUSTOM_RACED", &json!({"n": 2}));
    other.idempotency_key = "key".to_owned();
    assert_refused(tenant.try_publish(other).await, Code::FailedPrecondition, "REQUEST_ID_REUSED");
    let again = tenant.publishers[1].clone().publish(request).await.expect("the retry").into_inner();
    assert!(again.duplicate);
    assert_eq!((again.event_id, again.commit_time), (first.event_id, first.commit_time));
}

#[tokio::test]
async fn the_publishers_own_id_serves_as_key_together_with_the_source() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_RACED").await;
    let mut request = publish_request("CUSTOM_RACED", &json!({"n": 1}));
    request.event.as_mut().expect("it is set").id = "order-17".to_owned();
    let first = tenant.try_publish(request.clone()).await.expect("the first");
    let again = tenant.try_publish(request.clone()).await.expect("the retry");
    assert_eq!((again.event_id.as_str(), again.duplicate), (first.event_id.as_str(), true));
    request.event.as_mut().expect("it is set").source = "/another".to_owned();
    let other = tenant.try_publish(request).await.expect("another source");
    assert_ne!(other.event_id, first.event_id);
}
