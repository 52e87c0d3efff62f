//! RotateSubscriptionSecret: a new signing secret beside the present ones.

use super::{refused, secret_or_new};
use crate::api::registry::{RegistryDeps, authorised, invalid, principal, unsealed};
use crate::api::status::ApiError;
use crate::clock;
use crate::domain::access::Role;
use crate::proto::public::{RotateSubscriptionSecretRequest, RotateSubscriptionSecretResponse};
use crate::wire::FieldError;
use crate::wire::subscription::{parse_id, parse_secret};
use crate::wire::time::{parse_duration, timestamp_to_proto};
use std::time::Duration;
use tonic::Request;

const OVERLAP_DEFAULT: Duration = Duration::from_hours(24);
const OVERLAP_MAX: Duration = Duration::from_hours(7 * 24);

pub(crate) async fn handle(
    deps: &RegistryDeps,
    request: Request<RotateSubscriptionSecretRequest>,
) -> Result<RotateSubscriptionSecretResponse, ApiError> {
    let (caller, request) = authorised(request, Role::Subscriber)?;
    let id = parse_id("subscription_id", &request.subscription_id).map_err(invalid)?;
    let secret = parse_secret("signing_secret", &request.signing_secret).map_err(invalid)?;
    let overlap = request.overlap.map(|overlap| parse_duration("overlap", &overlap)).transpose().map_err(invalid)?;
    let overlap = overlap.unwrap_or(OVERLAP_DEFAULT);
    if overlap > OVERLAP_MAX {
        return Err(invalid(FieldError::new("overlap", "must be 0 to 7 days")));
    }
    let secret = secret_or_new(secret);
    let stored = deps.keyring.seal_secret(caller.tenant, id, clock::new_uuid(), &secret).map_err(unsealed)?;
    let previous_expire_at = deps.store.now() + overlap;
    match deps.store.rotate_secret(principal(&caller), id, stored, previous_expire_at).await {
        Ok(_) => {
            deps.announce(caller.tenant).await;
            Ok(RotateSubscriptionSecretResponse {
                signing_secret: secret.reveal(),
                previous_expire_time: Some(timestamp_to_proto(previous_expire_at)),
            })
        }
        Err(refusal) => Err(refused(deps, &caller, &id.to_string(), refusal).await),
    }
}
