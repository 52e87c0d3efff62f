//! UpdateSubscription: another name, filter, pinned schema version, webhook or delivery policy.

use super::{check_uri, check_version, refused};
use crate::api::registry::{RegistryDeps, authorised, invalid, principal, refused as unparsed};
use crate::api::repeat::Repeat;
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::domain::subscription::{State, Subscription};
use crate::proto::public::{UpdateSubscriptionRequest, UpdateSubscriptionResponse};
use crate::store::subscriptions::SubscriptionRefusal;
use crate::wire::subscription::{parse_id, parse_patch, to_proto};
use crate::wire::{FieldError, etag};
use tonic::Request;

/// How often a patch is applied again to what somebody else changed meanwhile.
const TRIES_MAX: u32 = 5;

pub(crate) async fn handle(
    deps: &RegistryDeps,
    request: Request<UpdateSubscriptionRequest>,
) -> Result<UpdateSubscriptionResponse, ApiError> {
    let (caller, mut request) = authorised(request, Role::Subscriber)?;
    let request_id = std::mem::take(&mut request.request_id);
    let repeat = Repeat::of(caller.tenant, "UpdateSubscription", &request_id, &request)?;
    let sent = request.subscription.ok_or_else(|| invalid(FieldError::new("subscription", "is required")))?;
    let id = parse_id("subscription.id", &sent.id).map_err(invalid)?;
    let etag = etag(&sent.etag);
    let patch = parse_patch(sent, request.update_mask.as_ref()).map_err(unparsed)?;
    if let Some(uri) = patch.uri() {
        check_uri(deps, "subscription.target.webhook.uri", uri)?;
    }
    if let Some(answer) = repeat.first(&deps.store).await? {
        return Ok(answer);
    }
    let answer = |changed: &Subscription| UpdateSubscriptionResponse { subscription: Some(to_proto(changed)) };
    let named = id.to_string();
    let mut tries = 1;
    loop {
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
        let changed = patch.apply(found).map_err(invalid)?;
        match deps.store.update_subscription(principal(&caller), changed, repeat.keeping(answer)).await {
            Ok(changed) => {
                deps.announce(caller.tenant).await;
                return repeat.answer(changed, answer);
            }
            // Somebody changed it between the read and the lock. Without an etag the caller's patch goes on top of that.
            Err(SubscriptionRefusal::Etag) if etag.is_none() && tries < TRIES_MAX => tries += 1,
            Err(refusal) => return Err(refused(deps, &caller, &named, refusal).await),
        }
    }
}
