//! CancelInvocation: a pending or waiting invocation, or a dead letter, will not run.

use super::InvocationDeps;
use crate::api::registry::{authorised, invalid, principal};
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::proto::public::{CancelInvocationRequest, CancelInvocationResponse};
use crate::wire::invocation::parse_id;
use tonic::Request;

pub(super) async fn handle(
    deps: &InvocationDeps,
    request: Request<CancelInvocationRequest>,
) -> Result<CancelInvocationResponse, ApiError> {
    let (caller, request) = authorised(request, Role::Subscriber)?;
    let id = parse_id("invocation_id", &request.invocation_id).map_err(invalid)?;
    let change = deps.store.cancel_invocation(&principal(&caller), id).await?;
    Ok(CancelInvocationResponse { invocation: Some(deps.changed(id, change)?) })
}
