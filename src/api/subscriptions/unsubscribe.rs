//! Unsubscribe: ends a subscription; it is kept and can be restored.

use super::refused;
use crate::api::registry::{RegistryDeps, authorised, invalid, principal};
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::proto::public::{UnsubscribeRequest, UnsubscribeResponse};
use crate::store::subscriptions::{Selector, StateChange, SubscriptionRefusal};
use crate::wire;
use crate::wire::subscription::{Unsubscribed, parse_unsubscribe, to_proto};
use tonic::Request;

pub(crate) async fn handle(
    deps: &RegistryDeps,
    request: Request<UnsubscribeRequest>,
) -> Result<UnsubscribeResponse, ApiError> {
    let (caller, request) = authorised(request, Role::Subscriber)?;
    let etag = wire::etag(&request.etag);
    let allow_missing = request.allow_missing;
    let (selector, named) = match parse_unsubscribe(request).map_err(invalid)? {
        Unsubscribed::Id(id) => (Selector::Id(id), id.to_string()),
        Unsubscribed::Target { app, event_type, target } => {
            let named = event_type.as_str().to_owned();
            (Selector::Target { app, event_type, target }, named)
        }
    };
    let max = i64::from(deps.config.subscriptions_max);
    let changed =
        deps.store.change_subscription_state(principal(&caller), selector, etag, StateChange::Delete, max).await;
    match changed {
        Ok(subscription) => {
            deps.announce(caller.tenant).await;
            Ok(UnsubscribeResponse { subscription: Some(to_proto(&subscription)) })
        }
        Err(SubscriptionRefusal::NotFound | SubscriptionRefusal::NotSubscribed(_)) if allow_missing => {
            Ok(UnsubscribeResponse::default())
        }
        Err(refusal) => Err(refused(deps, &caller, &named, refusal).await),
    }
}
