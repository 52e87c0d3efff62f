//! Subscribe: links a target to one event type.
//!
//! Everything that can be checked without the head lock is checked before it is taken, so that a refusal delays no publisher.

use super::{check_uri, check_version, refused, secret_or_new};
use crate::api::registry::{
    RegistryDeps, authorised, principal, refused as unparsed, request_key, unreadable, unsealed,
};
use crate::api::status::ApiError;
use crate::clock;
use crate::domain::access::Role;
use crate::domain::event_type::Phase;
use crate::domain::ids::{SubscriptionId, TenantId};
use crate::domain::subscription::{Subscription, Target};
use crate::proto::public::{SubscribeRequest, SubscribeResponse};
use crate::store::StoreError;
use crate::store::request_ids::{Once, RequestKey};
use crate::store::subscriptions::NewSubscription;
use crate::wire::pre::ONLY_PRE;
use crate::wire::subscription::{parse_subscribe, subscribe_fingerprint, to_proto};
use prost::Message as _;
use tonic::Request;

const METHOD: &str = "Subscribe";

pub(crate) async fn handle(
    deps: &RegistryDeps,
    request: Request<SubscribeRequest>,
) -> Result<SubscribeResponse, ApiError> {
    let (caller, request) = authorised(request, Role::Subscriber)?;
    let tenant = caller.tenant;
    let key = request_key(&request.request_id, METHOD, subscribe_fingerprint(&request))?;
    let parsed = parse_subscribe(request).map_err(unparsed)?;
    let app = deps.visible_app(&caller, &parsed.app).await?;
    let app = app.ok_or_else(|| ApiError::AppNotFound { app: parsed.app.clone() })?;
    if let Some(answer) = deps.first_answer(tenant, key.as_ref()).await? {
        return open_answer(deps, tenant, key.as_ref(), &answer);
    }
    let Target::Webhook(webhook) = &parsed.target;
    check_uri(deps, "target.webhook.uri", &webhook.uri)?;
    let event_type = deps.event_type(tenant, &parsed.event_type).await?;
    if event_type.event_type().deleted_at.is_some() {
        return Err(deps.event_type_not_found(tenant, &parsed.event_type).await);
    }
    check_version(event_type.event_type(), parsed.schema_version)?;
    let pre_policy = match (event_type.event_type().phase, parsed.pre_policy) {
        (Phase::Pre, given) => Some(given.unwrap_or_default()),
        (Phase::Post, None) => None,
        (Phase::Post, Some(_)) => return Err(ApiError::field("pre_policy", ONLY_PRE)),
    };

    let id = SubscriptionId(clock::new_uuid());
    let secret = secret_or_new(parsed.secret);
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
    // The answer shows the secret, so it is sealed as the secret itself is.
    let keyring = deps.keyring.clone();
    let seal_key = key.clone();
    let revealed = secret.reveal();
    let seal = move |made: &Subscription| {
        let answer = response(made, revealed).encode_to_vec();
        let sealed = keyring.seal_bytes(&answer, &place(tenant, seal_key.as_ref()));
        sealed.map_err(|_| StoreError::Corrupt { what: "answer to keep" })
    };
    let max = i64::from(deps.config.subscriptions_max);
    match deps.store.subscribe(principal(&caller), new, max, key.clone(), seal).await {
        Ok(Once::Made(made)) => {
            deps.announce(tenant).await;
            Ok(response(&made, secret.reveal()))
        }
        Ok(Once::Before(answer)) => open_answer(deps, tenant, key.as_ref(), &answer),
        Err(refusal) => Err(refused(deps, &caller, &parsed.app, refusal).await),
    }
}

fn response(made: &Subscription, signing_secret: String) -> SubscribeResponse {
    SubscribeResponse { subscription: Some(to_proto(made)), signing_secret }
}

/// Where a kept answer belongs, so that it opens nowhere else.
fn place(tenant: TenantId, key: Option<&RequestKey>) -> Vec<u8> {
    let mut place = tenant.0.as_bytes().to_vec();
    place.extend_from_slice(METHOD.as_bytes());
    place.extend(key.into_iter().flat_map(|key| key.id.bytes()));
    place
}

fn open_answer(
    deps: &RegistryDeps,
    tenant: TenantId,
    key: Option<&RequestKey>,
    answer: &[u8],
) -> Result<SubscribeResponse, ApiError> {
    let answer = deps.keyring.open_bytes(answer, &place(tenant, key)).map_err(unsealed)?;
    SubscribeResponse::decode(answer.as_slice()).map_err(unreadable)
}
