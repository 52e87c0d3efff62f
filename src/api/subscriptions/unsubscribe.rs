//! Unsubscribe: ends a subscription; it is kept and can be restored.

use super::refused;
use crate::api::registry::{RegistryDeps, authorised, invalid, principal};
use crate::api::repeat::Repeat;
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::proto::public::{UnsubscribeRequest, UnsubscribeResponse};
use crate::store::subscriptions::{Selector, StateChange, StateChanged, SubscriptionRefusal};
use crate::wire;
use crate::wire::subscription::{Unsubscribed, parse_unsubscribe, to_proto};
use tonic::Request;

pub(crate) async fn handle(
    deps: &RegistryDeps,
    request: Request<UnsubscribeRequest>,
) -> Result<UnsubscribeResponse, ApiError> {
    let (caller, mut request) = authorised(request, Role::Subscriber)?;
    let request_id = std::mem::take(&mut request.request_id);
    let repeat = Repeat::by(&caller, "Unsubscribe", &request_id, &request)?.sealed(&deps.keyring);
    let etag = wire::etag(&request.etag);
    let allow_missing = request.allow_missing;
    let (selector, named) = match parse_unsubscribe(request).map_err(invalid)? {
        Unsubscribed::Id(id) => (Selector::Id(id), id.to_string()),
        Unsubscribed::Target { app, event_type, target } => {
            let named = event_type.as_str().to_owned();
            (Selector::Target { app, event_type, target }, named)
        }
    };
    if let Some(answer) = repeat.first(&deps.store).await? {
        return Ok(answer);
    }
    let answer = |changed: &StateChanged| UnsubscribeResponse { subscription: Some(to_proto(&changed.subscription)) };
    // It adds none.
    let (by, max) = (principal(&caller), i64::MAX);
    let kept = repeat.keeping(answer);
    let changed = deps.store.change_subscription_state(by, selector, etag, StateChange::Delete, max, kept).await;
    match changed {
        Ok(changed) => {
            deps.announce(caller.tenant).await;
            repeat.answer(changed, answer)
        }
        Err(SubscriptionRefusal::NotFound | SubscriptionRefusal::NotSubscribed(_)) if allow_missing => {
            let nothing = UnsubscribeResponse::default();
            repeat.keep(&deps.store, &nothing).await?;
            Ok(nothing)
        }
        Err(refusal) => Err(refused(deps, &caller, &named, refusal).await),
    }
}
