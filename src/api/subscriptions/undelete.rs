//! UndeleteSubscription: restores a deleted subscription as active.

use super::{change_state, gap_to_proto, missed};
use crate::api::registry::{RegistryDeps, authorised, invalid};
use crate::api::repeat::Repeat;
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::proto::public::{UndeleteSubscriptionRequest, UndeleteSubscriptionResponse};
use crate::store::subscriptions::{StateChange, StateChanged};
use crate::wire::subscription::{parse_id, to_proto};
use tonic::Request;

pub(crate) async fn handle(
    deps: &RegistryDeps,
    request: Request<UndeleteSubscriptionRequest>,
) -> Result<UndeleteSubscriptionResponse, ApiError> {
    let (caller, mut request) = authorised(request, Role::Subscriber)?;
    let request_id = std::mem::take(&mut request.request_id);
    let repeat = Repeat::by(&caller, "UndeleteSubscription", &request_id, &request)?.sealed(&deps.keyring);
    let id = parse_id("subscription_id", &request.subscription_id).map_err(invalid)?;
    if let Some(answer) = repeat.first(&deps.store).await? {
        return Ok(answer);
    }
    let answer = |changed: &StateChanged| UndeleteSubscriptionResponse {
        subscription: Some(to_proto(&changed.subscription)),
        replay_gap: changed.gap.map(gap_to_proto),
    };
    let changed = change_state(
        deps,
        &caller,
        id,
        "",
        StateChange::Undelete(missed(request.replay_missed)),
        repeat.keeping(answer),
    )
    .await?;
    repeat.answer(changed, answer)
}
