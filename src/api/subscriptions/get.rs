//! GetSubscription: one subscription, in any state.

use crate::api::registry::{RegistryDeps, authorised, invalid};
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::proto::public::{GetSubscriptionRequest, GetSubscriptionResponse};
use crate::wire::subscription::{parse_id, to_proto_for};
use tonic::Request;

pub(crate) async fn handle(
    deps: &RegistryDeps,
    request: Request<GetSubscriptionRequest>,
) -> Result<GetSubscriptionResponse, ApiError> {
    let (caller, request) = authorised(request, Role::Viewer)?;
    let id = parse_id("subscription_id", &request.subscription_id).map_err(invalid)?;
    let found = deps.store.subscription(caller.tenant, caller.app, id).await?;
    let found = found.ok_or_else(|| ApiError::SubscriptionNotFound { subscription: id.to_string() })?;
    Ok(GetSubscriptionResponse { subscription: Some(to_proto_for(caller.role, &found)) })
}
