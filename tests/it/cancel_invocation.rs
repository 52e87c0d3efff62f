//! `InvocationService.CancelInvocation`: what has not succeeded yet never runs.

use std::collections::BTreeSet;
use std::sync::Arc;

use carillon::proto::public::{CancelInvocationRequest, InvocationState};
use serde_json::json;
use tokio::sync::Semaphore;
use tonic::Code;

use crate::harness::tenant::{assert_refused, publish_request};
use crate::harness::{Answer, Receiver, World};

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
    // A call that hangs while its tenant moves to the other replica is made there again: at least once.
    let ran: BTreeSet<_> = receiver.received("/hook").iter().map(|one| one.json()["data"]["n"].as_i64()).collect();
    assert_eq!(ran, [Some(1), Some(3)].into(), "a cancelled invocation ran");
    let result = tenant.invocations().cancel_invocation(request).await;
    assert_refused(result, Code::FailedPrecondition, "INVOCATION_STATE");
}
