//! EnableSubscription: makes a disabled subscription fire again.

use super::{change_state, missed};
use crate::api::registry::{RegistryDeps, authorised, invalid};
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::proto::public::{EnableSubscriptionRequest, EnableSubscriptionResponse};
use crate::store::subscriptions::StateChange;
use crate::wire::subscription::{parse_id, to_proto};
use tonic::Request;

pub(crate) async fn handle(
    deps: &RegistryDeps,
    request: Request<EnableSubscriptionRequest>,
) -> Result<EnableSubscriptionResponse, ApiError> {
    let (caller, request) = authorised(request, Role::Subscriber)?;
    let id = parse_id("subscription_id", &request.subscription_id).map_err(invalid)?;
    let changed =
        change_state(deps, &caller, id, &request.etag, StateChange::Enable(missed(request.replay_missed))).await?;
    Ok(EnableSubscriptionResponse { subscription: Some(to_proto(&changed)) })
}
