//! `InvocationService.RedriveInvocations`: dead letters run again.

use carillon::proto::public::{
    DisableSubscriptionRequest, InvocationState, ListInvocationsRequest, RedriveInvocationsRequest,
};
use serde_json::json;
use tonic::Code;

use crate::harness::tenant::assert_refused;
use crate::harness::{Answer, Tenant};

#[tokio::test]
async fn what_always_fails_is_dead_lettered_with_an_event_and_can_be_redriven() {
    let (tenant, receiver) = Tenant::with_listener(vec![Answer::Status(500)]).await;
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
    let mut absent = ListInvocationsRequest { subscription_id: dead[0].subscription_id.clone(), ..Default::default() };
    assert_eq!(
        tenant.invocations().list_invocations(absent.clone()).await.expect("it exists").into_inner().invocations.len(),
        1
    );
    absent.subscription_id = "sub_00000000000000000000000000".to_owned();
    let listed = tenant.invocations().list_invocations(absent.clone()).await;
    assert_refused(listed, Code::NotFound, "SUBSCRIPTION_NOT_FOUND");
    let request = RedriveInvocationsRequest { subscription_id: absent.subscription_id, ..Default::default() };
    let redriven = tenant.invocations().redrive_invocations(request).await;
    assert_refused(redriven, Code::NotFound, "SUBSCRIPTION_NOT_FOUND");
    // Of one that does not execute nothing can run again; its invocations are listed all the same.
    let disable = DisableSubscriptionRequest { subscription_id: dead[0].subscription_id.clone(), ..Default::default() };
    tenant.events().disable_subscription(disable).await.expect("it is active");
    let request = RedriveInvocationsRequest { subscription_id: dead[0].subscription_id.clone(), ..Default::default() };
    let redriven = tenant.invocations().redrive_invocations(request.clone()).await;
    assert_refused(redriven, Code::FailedPrecondition, "SUBSCRIPTION_STATE");
    tenant.unsubscribe(&dead[0].subscription_id).await;
    let redriven = tenant.invocations().redrive_invocations(request).await;
    let status = assert_refused(redriven, Code::FailedPrecondition, "SUBSCRIPTION_STATE");
    assert!(status.message().contains("DELETED"), "{status:?}");
    let listed = ListInvocationsRequest { subscription_id: dead[0].subscription_id.clone(), ..Default::default() };
    assert_eq!(
        tenant.invocations().list_invocations(listed).await.expect("it exists").into_inner().invocations.len(),
        1
    );
    let request = RedriveInvocationsRequest { subscription_id: "sub_x".to_owned(), ..Default::default() };
    assert_refused(tenant.invocations().redrive_invocations(request).await, Code::InvalidArgument, "FIELD_INVALID");
}

#[tokio::test]
async fn only_dead_letters_of_events_within_the_times_run_again() {
    let (tenant, receiver) = Tenant::with_listener(vec![Answer::Status(500)]).await;
    let mut dead = Vec::new();
    for n in 0..3 {
        let event_id = tenant.publish("CUSTOM_RUN", &json!({"n": n})).await.event_id;
        dead.extend(tenant.all_invocations_become(&event_id, InvocationState::DeadLettered).await);
    }
    receiver.answers("/hook", [Answer::Status(200)]);
    let request = RedriveInvocationsRequest {
        subscription_id: dead[0].subscription_id.clone(),
        start_time: dead[1].create_time,
        end_time: dead[2].create_time,
        ..Default::default()
    };
    let redriven = tenant.invocations().redrive_invocations(request).await.expect("valid").into_inner();
    assert_eq!((redriven.redriven_count, redriven.more), (1, false));
    tenant.all_invocations_become(&dead[1].event_id, InvocationState::Succeeded).await;
    for other in [&dead[0], &dead[2]] {
        tenant.all_invocations_become(&other.event_id, InvocationState::DeadLettered).await;
    }
}
