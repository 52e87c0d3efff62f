//! `InvocationService.RetryInvocation`: one dead letter runs again.

use carillon::proto::public::{InvocationState, OutcomeClass, RetryInvocationRequest};
use serde_json::json;
use tonic::Code;

use crate::harness::tenant::assert_refused;
use crate::harness::{Answer, Receiver, World};

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
