//! Subscribe: links a target to one event type.
//!
//! Everything that can be checked without the head lock is checked before it is taken, so that a refusal delays no publisher.

use super::{check_uri, check_version, refused, secret_or_new, subscriptions_max};
use crate::api::compiling::compiling;
use crate::api::registry::{RegistryDeps, authorised, principal, refused as unparsed, unsealed};
use crate::api::repeat::Repeat;
use crate::api::status::ApiError;
use crate::clock;
use crate::domain::access::Role;
use crate::domain::catalogue::Catalogue;
use crate::domain::event_type::Phase;
use crate::domain::ids::SubscriptionId;
use crate::domain::signing::Scheme;
use crate::domain::subscription::{Subscription, Target};
use crate::domain::webhook::SigningSecret;
use crate::proto::public::{SubscribeRequest, SubscribeResponse};
use crate::store::subscriptions::{NewSubscription, SubscriptionQuota};
use crate::wire::pre::{ONLY_PRE, UNORDERED};
use crate::wire::subscription::{expression_bytes, parse_subscribe, to_proto};
use tonic::Request;

pub(crate) async fn handle(
    deps: &RegistryDeps,
    request: Request<SubscribeRequest>,
) -> Result<SubscribeResponse, ApiError> {
    let (caller, mut request) = authorised(request, Role::Subscriber)?;
    let tenant = caller.tenant;
    let id = std::mem::take(&mut request.request_id);
    // The answer shows the secret.
    let repeat = Repeat::by(&caller, "Subscribe", &id, &request)?.sealed(&deps.keyring);
    let bytes = expression_bytes(&request.filter, request.delivery_policy.as_ref());
    let parsed = compiling(tenant, bytes, move || parse_subscribe(request)).await?.map_err(unparsed)?;
    let app = deps.visible_app(&caller, &parsed.app).await?;
    let app = app.ok_or_else(|| ApiError::AppNotFound { app: parsed.app.clone() })?;
    if let Some(answer) = repeat.first(&deps.store).await? {
        return Ok(answer);
    }
    // These tell of every app's subscriptions.
    if caller.app.is_some() && Catalogue::tells_of_subscriptions(parsed.event_type.as_str()) {
        return Err(ApiError::EventTypeForbidden { event_type: parsed.event_type.to_string() });
    }
    let Target::Webhook(webhook) = &parsed.target;
    check_uri(deps, "target.webhook.uri", &webhook.uri)?;
    let event_type = deps.event_type(tenant, &parsed.event_type).await?;
    if event_type.event_type().deleted_at.is_some() {
        return Err(deps.event_type_not_found(tenant, &parsed.event_type).await);
    }
    check_version(event_type.event_type(), parsed.schema_version)?;
    let pre_policy = match (event_type.event_type().phase, parsed.pre_policy) {
        (Phase::Pre, _) if parsed.policy.ordering().is_some() => {
            return Err(ApiError::field("delivery_policy.ordering", UNORDERED));
        }
        (Phase::Pre, given) => Some(given.unwrap_or_default()),
        (Phase::Post, None) => None,
        (Phase::Post, Some(_)) => return Err(ApiError::field("pre_policy", ONLY_PRE)),
    };

    let id = SubscriptionId(clock::new_uuid());
    let secret = secret_or_new(parsed.secret, parsed.scheme.unwrap_or(Scheme::V1));
    let stored_secret = deps.keyring.seal_secret(tenant, id, clock::new_uuid(), &secret).map_err(unsealed)?;
    let new = NewSubscription {
        id,
        app: app.id,
        event_type: parsed.event_type,
        display_name: parsed.display_name,
        filter: parsed.filter,
        schema_version: parsed.schema_version,
        target: parsed.target,
        policy: parsed.policy,
        pre_policy,
        secret: stored_secret,
    };
    let kept = secret.clone();
    let kept = repeat.keeping(move |made| response(made, &kept));
    let live = subscriptions_max(deps, &caller).await?;
    let quota = SubscriptionQuota { live, deleted: i64::from(deps.config.deleted_subscriptions_max) };
    match deps.store.subscribe(principal(&caller), new, quota, kept).await {
        Ok(made) => {
            deps.announce(tenant).await;
            repeat.answer(made, |made| response(made, &secret))
        }
        Err(refusal) => Err(refused(deps, &caller, &parsed.app, refusal).await),
    }
}

fn response(made: &Subscription, secret: &SigningSecret) -> SubscribeResponse {
    SubscribeResponse {
        subscription: Some(to_proto(made)),
        signing_secret: secret.reveal(),
        public_key: secret.public_key().unwrap_or_default(),
    }
}
