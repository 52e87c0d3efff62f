//! DisableSubscription: stops a subscription from executing.

use super::change_state;
use crate::api::registry::{RegistryDeps, authorised, invalid};
use crate::api::repeat::Repeat;
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::proto::public::{DisableSubscriptionRequest, DisableSubscriptionResponse};
use crate::store::subscriptions::{StateChange, StateChanged};
use crate::wire::subscription::{parse_id, to_proto};
use tonic::Request;

pub(crate) async fn handle(
    deps: &RegistryDeps,
    request: Request<DisableSubscriptionRequest>,
) -> Result<DisableSubscriptionResponse, ApiError> {
    let (caller, mut request) = authorised(request, Role::Subscriber)?;
    let request_id = std::mem::take(&mut request.request_id);
    let repeat = Repeat::by(&caller, "DisableSubscription", &request_id, &request)?.sealed(&deps.keyring);
    let id = parse_id("subscription_id", &request.subscription_id).map_err(invalid)?;
    if let Some(answer) = repeat.first(&deps.store).await? {
        return Ok(answer);
    }
    let answer =
        |changed: &StateChanged| DisableSubscriptionResponse { subscription: Some(to_proto(&changed.subscription)) };
    let changed = change_state(deps, &caller, id, &request.etag, StateChange::Disable, repeat.keeping(answer)).await?;
    repeat.answer(changed, answer)
}
