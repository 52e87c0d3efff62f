//! DisableSubscription: stops a subscription from executing.

use super::change_state;
use crate::api::registry::{RegistryDeps, authorised, invalid};
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::proto::public::{DisableSubscriptionRequest, DisableSubscriptionResponse};
use crate::store::subscriptions::StateChange;
use crate::wire::subscription::{parse_id, to_proto};
use tonic::Request;

pub(crate) async fn handle(
    deps: &RegistryDeps,
    request: Request<DisableSubscriptionRequest>,
) -> Result<DisableSubscriptionResponse, ApiError> {
    let (caller, request) = authorised(request, Role::Subscriber)?;
    let id = parse_id("subscription_id", &request.subscription_id).map_err(invalid)?;
    let changed = change_state(deps, &caller, id, &request.etag, StateChange::Disable).await?;
    Ok(DisableSubscriptionResponse { subscription: Some(to_proto(&changed)) })
}
