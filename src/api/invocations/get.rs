//! GetInvocation: one invocation with every attempt, oldest first.

use super::InvocationDeps;
use crate::api::registry::{authorised, invalid, principal};
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::proto::public::{GetInvocationRequest, GetInvocationResponse};
use crate::wire::invocation::{attempt_to_proto, parse_id, to_proto};
use tonic::Request;

pub(super) async fn handle(
    deps: &InvocationDeps,
    request: Request<GetInvocationRequest>,
) -> Result<GetInvocationResponse, ApiError> {
    let (caller, request) = authorised(request, Role::Viewer)?;
    let id = parse_id("invocation_id", &request.invocation_id).map_err(invalid)?;
    let found = deps.store.invocation(&principal(&caller), id).await?;
    let (invocation, attempts) = found.ok_or(ApiError::InvocationNotFound { invocation: request.invocation_id })?;
    Ok(GetInvocationResponse {
        invocation: Some(to_proto(&invocation)),
        attempts: attempts.iter().map(attempt_to_proto).collect(),
    })
}
