//! RedriveInvocations: dead letters get a fresh set of attempts, oldest first.

use super::InvocationDeps;
use crate::api::registry::{authorised, invalid, principal};
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::feed::News;
use crate::proto::public::{RedriveInvocationsRequest, RedriveInvocationsResponse};
use crate::store::invocations::InvocationFilter;
use crate::wire::invocation::{parse_subscription, parse_time};
use crate::wire::page::page_size;
use tonic::Request;

pub(super) async fn handle(
    deps: &InvocationDeps,
    request: Request<RedriveInvocationsRequest>,
) -> Result<RedriveInvocationsResponse, ApiError> {
    let (caller, request) = authorised(request, Role::Subscriber)?;
    let limit = page_size("limit", request.limit, 1_000, 10_000).map_err(invalid)?;
    let filter = InvocationFilter {
        subscription: parse_subscription("subscription_id", &request.subscription_id).map_err(invalid)?,
        from: parse_time("start_time", request.start_time.as_ref()).map_err(invalid)?,
        to: parse_time("end_time", request.end_time.as_ref()).map_err(invalid)?,
        ..InvocationFilter::default()
    };
    let redriven = deps.store.redrive_invocations(&principal(&caller), &filter, limit).await?;
    if let Some(head) = redriven.head {
        deps.feed.send(&News::Head(head));
    }
    Ok(RedriveInvocationsResponse {
        redriven_count: i32::try_from(redriven.count).unwrap_or(i32::MAX),
        more: redriven.more,
    })
}
