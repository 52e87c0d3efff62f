//! UpdateSubscription: another name, filter, pinned schema version, webhook or delivery policy.

use super::{check_uri, check_version, refused};
use crate::api::compiling::compiling;
use crate::api::registry::{RegistryDeps, authorised, invalid, principal, refused as unparsed};
use crate::api::repeat::Repeat;
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::domain::subscription::{State, Subscription};
use crate::proto::public::{UpdateSubscriptionRequest, UpdateSubscriptionResponse};
use crate::store::subscriptions::SubscriptionRefusal;
use crate::wire::subscription::{expression_bytes, parse_id, parse_patch, to_proto};
use crate::wire::{FieldError, etag};
use tonic::Request;

pub(crate) async fn handle(
    deps: &RegistryDeps,
    request: Request<UpdateSubscriptionRequest>,
) -> Result<UpdateSubscriptionResponse, ApiError> {
    let (caller, mut request) = authorised(request, Role::Subscriber)?;
    let request_id = std::mem::take(&mut request.request_id);
    let repeat = Repeat::by(&caller, "UpdateSubscription", &request_id, &request)?.sealed(&deps.keyring);
    let sent = request.subscription.ok_or_else(|| invalid(FieldError::new("subscription", "is required")))?;
    let id = parse_id("subscription.id", &sent.id).map_err(invalid)?;
    let etag = etag(&sent.etag);
    let bytes = expression_bytes(&sent.filter, sent.delivery_policy.as_ref());
    let mask = request.update_mask;
    let parse = move || parse_patch(sent, mask.as_ref());
    let patch = compiling(caller.tenant, bytes, parse).await?.map_err(unparsed)?;
    if let Some(uri) = patch.uri() {
        check_uri(deps, "subscription.target.webhook.uri", uri)?;
    }
    if let Some(answer) = repeat.first(&deps.store).await? {
        return Ok(answer);
    }
    let answer = |changed: &Subscription| UpdateSubscriptionResponse { subscription: Some(to_proto(changed)) };
    let named = id.to_string();
    let found = deps.store.subscription(caller.tenant, caller.app, id).await?;
    let found = found.ok_or_else(|| ApiError::SubscriptionNotFound { subscription: named.clone() })?;
    if etag.is_some_and(|etag| etag != found.registry_version) {
        return Err(ApiError::EtagMismatch { resource: named });
    }
    if found.state == State::Deleted {
        return Err(refused(deps, &caller, &named, SubscriptionRefusal::State(State::Deleted)).await);
    }
    if patch.is_empty() {
        let unchanged = answer(&found);
        repeat.keep(&deps.store, &unchanged).await?;
        return Ok(unchanged);
    }
    if let Some(version) = patch.schema_version() {
        check_version(deps.event_type(caller.tenant, &found.event_type).await?.event_type(), version)?;
    }
    // On top of what is stored by then: what somebody else changes meanwhile stays.
    let change = move |present: Subscription| patch.apply(present);
    match deps.store.update_subscription(principal(&caller), id, etag, change, repeat.keeping(answer)).await {
        Ok(changed) => {
            let changed = changed.map_err(unparsed)?;
            deps.announce(caller.tenant).await;
            repeat.answer(changed, answer)
        }
        Err(refusal) => Err(refused(deps, &caller, &named, refusal).await),
    }
}
