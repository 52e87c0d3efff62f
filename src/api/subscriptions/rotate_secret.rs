//! RotateSubscriptionSecret: a new signing secret beside the present ones.

use super::{refused, secret_or_new};
use crate::api::registry::{RegistryDeps, authorised, invalid, principal, unsealed};
use crate::api::repeat::Repeat;
use crate::api::status::ApiError;
use crate::clock;
use crate::domain::access::{Caller, Role};
use crate::domain::ids::SubscriptionId;
use crate::domain::signing::Scheme;
use crate::proto::public::{RotateSubscriptionSecretRequest, RotateSubscriptionSecretResponse};
use crate::wire::FieldError;
use crate::wire::subscription::{parse_id, parse_scheme, parse_secret};
use crate::wire::time::{parse_duration, timestamp_to_proto};
use std::time::Duration;
use tonic::Request;

const OVERLAP_DEFAULT: Duration = Duration::from_hours(24);
const OVERLAP_MAX: Duration = Duration::from_hours(7 * 24);

pub(crate) async fn handle(
    deps: &RegistryDeps,
    request: Request<RotateSubscriptionSecretRequest>,
) -> Result<RotateSubscriptionSecretResponse, ApiError> {
    let (caller, mut request) = authorised(request, Role::Subscriber)?;
    let request_id = std::mem::take(&mut request.request_id);
    // The answer shows the secret.
    let repeat = Repeat::by(&caller, "RotateSubscriptionSecret", &request_id, &request)?.sealed(&deps.keyring);
    let id = parse_id("subscription_id", &request.subscription_id).map_err(invalid)?;
    let secret = parse_secret("signing_secret", &request.signing_secret).map_err(invalid)?;
    let scheme = parse_scheme("signature_scheme", request.signature_scheme, secret.as_ref()).map_err(invalid)?;
    let overlap = request.overlap.map(|overlap| parse_duration("overlap", &overlap)).transpose().map_err(invalid)?;
    let overlap = overlap.unwrap_or(OVERLAP_DEFAULT);
    if overlap > OVERLAP_MAX {
        return Err(invalid(FieldError::new("overlap", "must be 0 to 7 days")));
    }
    if let Some(answer) = repeat.first(&deps.store).await? {
        return Ok(answer);
    }
    let scheme = match scheme {
        Some(scheme) => scheme,
        None => present_scheme(deps, &caller, id).await?,
    };
    let secret = secret_or_new(secret, scheme);
    let stored = deps.keyring.seal_secret(caller.tenant, id, clock::new_uuid(), &secret).map_err(unsealed)?;
    let previous_expire_at = deps.store.now() + overlap;
    let response = RotateSubscriptionSecretResponse {
        signing_secret: secret.reveal(),
        public_key: secret.public_key().unwrap_or_default(),
        previous_expire_time: Some(timestamp_to_proto(previous_expire_at)),
    };
    let kept = response.clone();
    let kept = repeat.keeping(move |(): &()| kept);
    match deps.store.rotate_secret(principal(&caller), id, stored, previous_expire_at, kept).await {
        Ok(done) => {
            deps.announce(caller.tenant).await;
            repeat.answer(done, |()| response)
        }
        Err(refusal) => Err(refused(deps, &caller, &id.to_string(), refusal).await),
    }
}

/// How the newest secret signs. Of a subscription that is not there, or of no secret that opens, nothing is said here: what follows
/// answers.
async fn present_scheme(deps: &RegistryDeps, caller: &Caller, id: SubscriptionId) -> Result<Scheme, ApiError> {
    let Some(found) = deps.store.subscription(caller.tenant, caller.app, id).await? else { return Ok(Scheme::V1) };
    let registry = deps.registry.refresh(caller.tenant, found.registry_version).await?;
    Ok(registry.subscription(found.no).and_then(|entry| entry.scheme()).unwrap_or(Scheme::V1))
}
