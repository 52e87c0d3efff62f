//! `InvocationService`: what happened to each delivery, and doing it again.

use std::sync::Arc;

use carillon::proto::public::{
    CancelInvocationRequest, GetInvocationRequest, InvocationState, ListInvocationsRequest, OutcomeClass,
    RedriveInvocationsRequest, RetryInvocationRequest,
};
use serde_json::json;
use tokio::sync::Semaphore;
use tonic::Code;

use crate::harness::tenant::{assert_refused, publish_request};
use crate::harness::{Answer, Receiver, Tenant, World, eventually};

async fn tenant_with(answers: Vec<Answer>) -> (Tenant, Receiver) {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    receiver.answers("/hook", answers);
    tenant.declare("CUSTOM_RUN").await;
    tenant.subscribe("CUSTOM_RUN", &receiver, "/hook").await;
    (tenant, receiver)
}

#[tokio::test]
async fn a_failed_attempt_is_retried_and_every_attempt_is_recorded() {
    let answers = vec![
        Answer::Status(500),
        Answer::Full(503, vec![("retry-after", "0".to_owned())], b"busy".to_vec()),
        Answer::Status(204),
    ];
    let (tenant, receiver) = tenant_with(answers).await;
    let published = tenant.publish("CUSTOM_RUN", &json!({})).await;
    tenant.all_invocations_become(&published.event_id, InvocationState::Succeeded).await;
    let request = GetInvocationRequest { invocation_id: published.invocations[0].invocation_id.clone() };
    let answer = tenant.at[1].invocations.clone().get_invocation(request).await.expect("recorded").into_inner();
    let outcomes: Vec<_> =
        answer.attempts.iter().map(|attempt| (attempt.number, attempt.outcome(), attempt.status_code)).collect();
    assert_eq!(
        outcomes,
        [(1, OutcomeClass::Failed, 500), (2, OutcomeClass::Throttled, 503), (3, OutcomeClass::Succeeded, 204)]
    );
    assert_eq!(answer.attempts[1].response_excerpt, "busy");
    assert_eq!(answer.invocation.expect("it is set").attempt_count, 3);
    let received = receiver.received("/hook");
    assert_eq!(received.len(), 3);
    assert!(received.iter().all(|one| one.header("webhook-id") == published.invocations[0].invocation_id));
    assert!(received.iter().all(|one| one.verified == Some(true)));
}

#[tokio::test]
async fn what_always_fails_is_dead_lettered_with_an_event_and_can_be_redriven() {
    let (tenant, receiver) = tenant_with(vec![Answer::Status(500)]).await;
    tenant.subscribe("INVOCATION_DEAD_LETTERED", &receiver, "/operator").await;
    let published = tenant.publish("CUSTOM_RUN", &json!({})).await;
    let dead = tenant.all_invocations_become(&published.event_id, InvocationState::DeadLettered).await;
    assert_eq!((dead[0].attempt_count, receiver.received("/hook").len()), (4, 4));
    let told = receiver.receives("/operator", 1).await;
    assert!(String::from_utf8_lossy(&told[0].body).contains(&dead[0].id), "the event names the invocation");

    receiver.answers("/hook", [Answer::Status(200)]);
    let request = RedriveInvocationsRequest { subscription_id: dead[0].subscription_id.clone(), ..Default::default() };
    let redriven = tenant.at[1].invocations.clone().redrive_invocations(request).await.expect("valid").into_inner();
    assert_eq!((redriven.redriven_count, redriven.more), (1, false));
    tenant.all_invocations_become(&published.event_id, InvocationState::Succeeded).await;
    assert_eq!(receiver.received("/hook").len(), 5);
}

#[tokio::test]
async fn a_dead_letter_can_be_retried_by_hand_and_a_success_cannot() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    receiver.answers("/hook", [Answer::Status(400), Answer::Status(200)]);
    tenant.declare("CUSTOM_RUN").await;
    let mut request = tenant.subscribe_request("CUSTOM_RUN", &receiver.url("/hook"));
    request.delivery_policy.as_mut().expect("it is set").max_attempts = 1;
    tenant.events().subscribe(request).await.expect("valid");
    let published = tenant.publish("CUSTOM_RUN", &json!({})).await;
    let dead = tenant.all_invocations_become(&published.event_id, InvocationState::DeadLettered).await;
    assert_eq!(dead[0].last_attempt.as_ref().expect("it is set").outcome(), OutcomeClass::Failed);
    assert_eq!(receiver.received("/hook").len(), 1);
    let request = RetryInvocationRequest { invocation_id: dead[0].id.clone(), ..Default::default() };
    tenant.invocations().retry_invocation(request.clone()).await.expect("a dead letter can be retried");
    tenant.all_invocations_become(&published.event_id, InvocationState::Succeeded).await;
    let result = tenant.invocations().retry_invocation(request).await;
    assert_refused(result, Code::FailedPrecondition, "INVOCATION_STATE");
}

#[tokio::test]
async fn a_waiting_invocation_can_be_cancelled_for_good() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    let gate = Arc::new(Semaphore::new(0));
    receiver.answers("/hook", [Answer::Gated(gate.clone())]);
    tenant.declare("CUSTOM_RUN").await;
    tenant.declare("CUSTOM_OTHER").await;
    tenant.subscribe("CUSTOM_OTHER", &receiver, "/other").await;
    let mut request = tenant.subscribe_request("CUSTOM_RUN", &receiver.url("/hook"));
    request.delivery_policy.as_mut().expect("it is set").max_in_flight = 1;
    tenant.events().subscribe(request).await.expect("valid");
    let first = tenant.publish("CUSTOM_RUN", &json!({"n": 1})).await;
    receiver.receives("/hook", 1).await;
    let second = tenant.publish("CUSTOM_RUN", &json!({"n": 2})).await;
    let request =
        CancelInvocationRequest { invocation_id: second.invocations[0].invocation_id.clone(), ..Default::default() };
    let cancelled = tenant.at[1].invocations.clone().cancel_invocation(request.clone()).await.expect("it is pending");
    let cancelled = cancelled.into_inner().invocation.expect("it is set");
    assert_eq!((cancelled.state(), cancelled.cancel_reason.as_str()), (InvocationState::Cancelled, "CALLER"));
    // The replica that runs the tenant learns of the change like of new events; when rounds of those have come through
    // both replicas, it has.
    for round in 1..=5 {
        for publisher in &tenant.publishers {
            publisher.clone().publish(publish_request("CUSTOM_OTHER", &json!({}))).await.expect("published");
        }
        receiver.receives("/other", round * 2).await;
    }
    gate.add_permits(10);
    tenant.all_invocations_become(&first.event_id, InvocationState::Succeeded).await;
    let last = tenant.publish("CUSTOM_RUN", &json!({"n": 3})).await;
    tenant.all_invocations_become(&last.event_id, InvocationState::Succeeded).await;
    let numbers: Vec<_> = receiver.received("/hook").iter().map(|one| one.json()["data"]["n"].clone()).collect();
    assert_eq!(numbers, [json!(1), json!(3)], "a cancelled invocation ran");
    let result = tenant.invocations().cancel_invocation(request).await;
    assert_refused(result, Code::FailedPrecondition, "INVOCATION_STATE");
}

#[tokio::test]
async fn lists_filter_by_state_and_page_newest_first() {
    let (tenant, _receiver) = tenant_with(vec![Answer::Status(200)]).await;
    let mut events = Vec::new();
    for n in 0..5 {
        events.push(tenant.publish("CUSTOM_RUN", &json!({"n": n})).await.event_id);
    }
    for event_id in &events {
        tenant.all_invocations_become(event_id, InvocationState::Succeeded).await;
    }
    let mut request =
        ListInvocationsRequest { page_size: 2, states: vec![InvocationState::Succeeded.into()], ..Default::default() };
    let mut listed = Vec::new();
    loop {
        let page = tenant.invocations().list_invocations(request.clone()).await.expect("a page").into_inner();
        listed.extend(page.invocations.into_iter().map(|invocation| invocation.event_id));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    events.reverse();
    assert_eq!(listed, events);
    let request = ListInvocationsRequest { states: vec![InvocationState::DeadLettered.into()], ..Default::default() };
    let none = tenant.invocations().list_invocations(request).await.expect("a page").into_inner().invocations;
    assert!(none.is_empty());
}

#[tokio::test]
async fn a_receiver_that_is_gone_disables_its_subscription() {
    let (tenant, receiver) = tenant_with(vec![Answer::Status(410)]).await;
    let published = tenant.publish("CUSTOM_RUN", &json!({})).await;
    let dead = tenant.all_invocations_become(&published.event_id, InvocationState::DeadLettered).await;
    let request = carillon::proto::public::GetSubscriptionRequest { subscription_id: dead[0].subscription_id.clone() };
    eventually("the subscription is disabled as GONE", || async {
        let answer = tenant.events().get_subscription(request.clone()).await.expect("it is there").into_inner();
        let subscription = answer.subscription.expect("it is set");
        if subscription.state_reason == "GONE" { Ok(()) } else { Err(subscription) }
    })
    .await;
    assert!(tenant.publish("CUSTOM_RUN", &json!({})).await.invocations.is_empty());
    assert_eq!(receiver.received("/hook").len(), 1);
}
