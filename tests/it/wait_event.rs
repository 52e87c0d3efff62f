//! `PublishService.WaitEvent`: the publisher waits for the listeners, on any replica.

use std::sync::Arc;
use std::time::Duration;

use carillon::proto::internal::WaitEventRequest;
use carillon::proto::public::InvocationState;
use chrono::TimeDelta;
use serde_json::json;
use tokio::sync::Semaphore;
use tonic::Code;

use crate::delayed::{self, cancel, later};
use crate::harness::tenant::{assert_refused, millis};
use crate::harness::{Answer, Receiver, World, within};

#[tokio::test]
async fn waiting_ends_when_the_last_listener_is_done() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    let gate = Arc::new(Semaphore::new(0));
    receiver.answers("/slow", [Answer::Gated(gate.clone())]);
    tenant.declare("CUSTOM_AWAITED").await;
    tenant.subscribe("CUSTOM_AWAITED", &receiver, "/slow").await;
    tenant.subscribe("CUSTOM_AWAITED", &receiver, "/fast").await;
    let event_id = tenant.publish("CUSTOM_AWAITED", &json!({})).await.event_id;
    receiver.receives("/slow", 1).await;

    let request = WaitEventRequest { event_id: event_id.clone(), timeout: Some(millis(50)) };
    let early = tenant.publisher().wait_event(request).await.expect("a timeout is an answer").into_inner();
    assert!(!early.done);
    assert_eq!(early.invocations.len(), 2);

    // A call answers before its own deadline, however long it would wait.
    let mut hurried = tonic::Request::new(WaitEventRequest {
        event_id: event_id.clone(),
        timeout: Some(pbjson_types::Duration { seconds: 120, nanos: 0 }),
    });
    hurried.set_timeout(Duration::from_secs(2));
    assert!(!tenant.publisher().wait_event(hurried).await.expect("an answer in time").into_inner().done);

    let mut other_replica = tenant.publishers[1].clone();
    let request = WaitEventRequest { event_id, timeout: None };
    let waiting = tokio::spawn(async move { other_replica.wait_event(request).await });
    gate.add_permits(1);
    let answer = within("the waiting call", waiting).await.expect("no panic").expect("an answer").into_inner();
    assert!(answer.done);
    assert!(answer.invocations.iter().all(|invocation| invocation.state() == InvocationState::Succeeded));
}

#[tokio::test]
async fn an_event_without_listeners_is_done_at_once_and_an_absent_one_is_not_found() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_AWAITED").await;
    let event_id = tenant.publish("CUSTOM_AWAITED", &json!({})).await.event_id;
    let request = WaitEventRequest { event_id: event_id.clone(), timeout: None };
    assert!(tenant.publisher().wait_event(request).await.expect("an answer").into_inner().done);
    let request = WaitEventRequest { event_id: "evt_00000000000000000000000000".to_owned(), timeout: None };
    assert_refused(tenant.publisher().wait_event(request).await, Code::NotFound, "EVENT_NOT_FOUND");
}

#[tokio::test]
async fn without_any_time_to_wait_one_look_is_made_all_the_same() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare(delayed::TYPE).await;
    let wait = async |event_id: &str| {
        let request = WaitEventRequest { event_id: event_id.to_owned(), timeout: Some(millis(0)) };
        tenant.publisher().wait_event(request).await
    };
    let event_id = tenant.try_publish(later(TimeDelta::hours(1))).await.expect("it is accepted").event_id;
    let answer = wait(&event_id).await.expect("it is scheduled").into_inner();
    assert!(answer.event.is_none() && !answer.done, "{answer:?}");
    cancel(&tenant, 0, &event_id).await.expect("it waits");
    assert_refused(wait(&event_id).await, Code::FailedPrecondition, "RESOURCE_STATE");
    assert_refused(wait("evt_00000000000000000000000000").await, Code::NotFound, "EVENT_NOT_FOUND");
    let event_id = tenant.publish(delayed::TYPE, &json!({})).await.event_id;
    assert!(wait(&event_id).await.expect("it has no listener").into_inner().done);
}
