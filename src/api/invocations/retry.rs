//! RetryInvocation: a waiting invocation runs now, a dead letter gets a fresh set of attempts.

use super::InvocationDeps;
use crate::api::registry::{authorised, invalid, principal};
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::proto::public::{RetryInvocationRequest, RetryInvocationResponse};
use crate::wire::invocation::parse_id;
use tonic::Request;

pub(super) async fn handle(
    deps: &InvocationDeps,
    request: Request<RetryInvocationRequest>,
) -> Result<RetryInvocationResponse, ApiError> {
    let (caller, request) = authorised(request, Role::Subscriber)?;
    let id = parse_id("invocation_id", &request.invocation_id).map_err(invalid)?;
    let change = deps.store.retry_invocation(&principal(&caller), id).await?;
    Ok(RetryInvocationResponse { invocation: Some(deps.changed(id, change)?) })
}
