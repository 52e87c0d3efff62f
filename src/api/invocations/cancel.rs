//! CancelInvocation: a pending or waiting invocation, or a dead letter, will not run.

use super::InvocationDeps;
use crate::api::registry::{authorised, invalid, principal};
use crate::api::repeat::Repeat;
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::proto::public::{CancelInvocationRequest, CancelInvocationResponse};
use crate::store::invocation_changes::InvocationChange;
use crate::wire::invocation::parse_id;
use tonic::Request;

pub(super) async fn handle(
    deps: &InvocationDeps,
    request: Request<CancelInvocationRequest>,
) -> Result<CancelInvocationResponse, ApiError> {
    let (caller, mut request) = authorised(request, Role::Subscriber)?;
    let request_id = std::mem::take(&mut request.request_id);
    let repeat = Repeat::by(&caller, "CancelInvocation", &request_id, &request)?;
    let by = principal(&caller);
    let id = parse_id("invocation_id", &request.invocation_id).map_err(invalid)?;
    let answer = |invocation| CancelInvocationResponse { invocation: Some(invocation) };
    if let Some(kept) = repeat.first_bytes(&deps.store).await? {
        return deps.repeated(&repeat, &by, id, &kept, answer).await;
    }
    match deps.store.cancel_invocation(&by, id, repeat.keeping(|(): &()| ())).await? {
        InvocationChange::Before(kept) => deps.repeated(&repeat, &by, id, &kept, answer).await,
        change => {
            let changed = deps.changed(id, change)?;
            deps.answer(&repeat, answer(changed)).await
        }
    }
}
