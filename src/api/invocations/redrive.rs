//! RedriveInvocations: dead letters get a fresh set of attempts, oldest first.

use super::{InvocationDeps, inactive};
use crate::api::registry::{authorised, invalid, principal};
use crate::api::repeat::Repeat;
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::domain::subscription::State;
use crate::feed::News;
use crate::proto::public::{RedriveInvocationsRequest, RedriveInvocationsResponse};
use crate::store::invocations::InvocationFilter;
use crate::store::request_ids::Once;
use crate::wire::invocation::{parse_subscription, parse_time};
use crate::wire::page::page_size;
use tonic::Request;

pub(super) async fn handle(
    deps: &InvocationDeps,
    request: Request<RedriveInvocationsRequest>,
) -> Result<RedriveInvocationsResponse, ApiError> {
    let (caller, mut request) = authorised(request, Role::Subscriber)?;
    let request_id = std::mem::take(&mut request.request_id);
    let repeat = Repeat::by(&caller, "RedriveInvocations", &request_id, &request)?;
    let limit = page_size("limit", request.limit, 1_000, 10_000).map_err(invalid)?;
    let subscription = parse_subscription("subscription_id", &request.subscription_id).map_err(invalid)?;
    let filter = InvocationFilter {
        from: parse_time("start_time", request.start_time.as_ref()).map_err(invalid)?,
        to: parse_time("end_time", request.end_time.as_ref()).map_err(invalid)?,
        ..InvocationFilter::default()
    };
    if let Some(answer) = repeat.first(&deps.store).await? {
        return Ok(answer);
    }
    let by = principal(&caller);
    let subscription = deps.named(&by, subscription).await?;
    if let Some(named) = subscription.filter(|named| named.state != State::Active) {
        return Err(inactive(named.id, named.state));
    }
    let filter = InvocationFilter { subscription, ..filter };
    // A server that dies before the end has redriven some, and a retry is told to call again.
    let begun = repeat.keeping(|(): &()| RedriveInvocationsResponse { redriven_count: 0, more: true });
    let redriven = match deps.store.redrive_invocations(&by, &filter, limit, begun).await? {
        Once::Made(redriven) => redriven,
        Once::Before(kept) => return repeat.open(&kept),
    };
    if let Some(head) = redriven.head {
        deps.feed.send(&News::Head(head));
    }
    let answer = RedriveInvocationsResponse {
        redriven_count: i32::try_from(redriven.count).unwrap_or(i32::MAX),
        more: redriven.more,
    };
    deps.answer(&repeat, answer).await
}
