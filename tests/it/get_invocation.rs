//! `InvocationService.GetInvocation`: one delivery with each of its attempts.

use carillon::proto::public::{GetInvocationRequest, InvocationState, OutcomeClass};
use serde_json::json;
use tonic::Code;

use crate::harness::tenant::assert_refused;
use crate::harness::{Answer, Tenant, World};

#[tokio::test]
async fn a_failed_attempt_is_retried_and_every_attempt_is_recorded() {
    let answers = vec![
        Answer::Status(500),
        Answer::Full(503, vec![("retry-after", "0".to_owned())], b"busy".to_vec()),
        Answer::Status(204),
    ];
    let (tenant, receiver) = Tenant::with_listener(answers).await;
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
async fn an_invocation_that_there_is_not_is_not_found() {
    let tenant = World::shared().await.tenant().await;
    for (id, code, reason) in [
        (&*format!("inv_{}", "0".repeat(32)), Code::NotFound, "INVOCATION_NOT_FOUND"),
        ("inv_x", Code::InvalidArgument, "FIELD_INVALID"),
    ] {
        let request = GetInvocationRequest { invocation_id: id.to_owned() };
        assert_refused(tenant.invocations().get_invocation(request).await, code, reason);
    }
}
