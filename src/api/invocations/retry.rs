//! RetryInvocation: a waiting invocation runs now, a dead letter gets a fresh set of attempts.

use super::InvocationDeps;
use crate::api::registry::{authorised, invalid, principal};
use crate::api::repeat::Repeat;
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::proto::public::{RetryInvocationRequest, RetryInvocationResponse};
use crate::store::invocation_changes::InvocationChange;
use crate::wire::invocation::parse_id;
use tonic::Request;

pub(super) async fn handle(
    deps: &InvocationDeps,
    request: Request<RetryInvocationRequest>,
) -> Result<RetryInvocationResponse, ApiError> {
    let (caller, mut request) = authorised(request, Role::Subscriber)?;
    let request_id = std::mem::take(&mut request.request_id);
    let repeat = Repeat::by(&caller, "RetryInvocation", &request_id, &request)?;
    let by = principal(&caller);
    let id = parse_id("invocation_id", &request.invocation_id).map_err(invalid)?;
    let answer = |invocation| RetryInvocationResponse { invocation: Some(invocation) };
    if let Some(kept) = repeat.first_bytes(&deps.store).await? {
        return deps.repeated(&repeat, &by, id, &kept, answer).await;
    }
    match deps.store.retry_invocation(&by, id, repeat.keeping(|(): &()| ())).await? {
        InvocationChange::Before(kept) => deps.repeated(&repeat, &by, id, &kept, answer).await,
        change => {
            let changed = deps.changed(id, change)?;
            deps.answer(&repeat, answer(changed)).await
        }
    }
}
