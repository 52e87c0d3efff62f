//! The subscription RPCs of EventService: one per file.

pub(super) mod disable;
pub(super) mod enable;
pub mod explain;
pub(super) mod get;
mod hand_written;
pub(super) mod list;
pub(super) mod rotate_secret;
pub(super) mod subscribe;
pub mod trial;
pub(super) mod undelete;
pub(super) mod unsubscribe;
pub(super) mod update;

use super::registry::{RegistryDeps, principal};
use super::status::ApiError;
use crate::clock;
use crate::domain::access::Caller;
use crate::domain::event_type::EventType;
use crate::domain::ids::SubscriptionId;
use crate::domain::quotas::Quota;
use crate::domain::signing::Scheme;
use crate::domain::subscription::{ReplayGap, State};
use crate::domain::webhook::{SigningSecret, WebhookUri};
use crate::proto::public as proto;
use crate::store::request_ids::{Once, Repeatable};
use crate::store::subscriptions::{Missed, Selector, StateChange, StateChanged, SubscriptionRefusal};
use crate::wire;
use crate::wire::subscription::state_name;
use std::time::Duration;

/// Asks the egress guard. Errors: ADDRESS_BLOCKED.
fn check_uri(deps: &RegistryDeps, field: &str, uri: &WebhookUri) -> Result<(), ApiError> {
    (deps.uri_check)(uri).map_err(|message| ApiError::AddressBlocked { field: field.to_owned(), message })
}

/// Checks that a schema version to pin to exists; versions never go away. Errors: SCHEMA_VERSION_NOT_FOUND.
fn check_version(event_type: &EventType, version: i32) -> Result<(), ApiError> {
    if version <= event_type.latest_schema {
        return Ok(());
    }
    Err(ApiError::SchemaVersionNotFound { event_type: event_type.name.as_str().to_owned(), version })
}

/// The secret that the caller brings, or a new one of a scheme.
fn secret_or_new(brought: Option<SigningSecret>, scheme: Scheme) -> SigningSecret {
    brought.unwrap_or_else(|| SigningSecret::of(scheme, clock::random_bytes()).expect("any 32 bytes make one"))
}

/// Changes the state of one subscription, and tells this process.
async fn change_state(
    deps: &RegistryDeps,
    caller: &Caller,
    id: SubscriptionId,
    etag: &str,
    change: StateChange,
    request: Repeatable<StateChanged>,
) -> Result<Once<StateChanged>, ApiError> {
    let max = subscriptions_max(deps, caller).await?;
    let selector = Selector::Id(id);
    match deps
        .store
        .change_subscription_state(principal(caller), selector, wire::etag(etag), change, max, request)
        .await
    {
        Ok(changed) => {
            deps.announce(caller.tenant).await;
            Ok(changed)
        }
        Err(refusal) => Err(refused(deps, caller, &id.to_string(), refusal).await),
    }
}

/// How many subscriptions the caller's tenant may have.
async fn subscriptions_max(deps: &RegistryDeps, caller: &Caller) -> Result<i64, ApiError> {
    let limits = deps.limits(caller.tenant).await?;
    Ok(i64::try_from(limits.get(Quota::Subscriptions)).unwrap_or(i64::MAX))
}

/// When to ask again for a subscription beyond the quota: there is room once others have gone, which takes people, not moments.
const ROOM_RETRY: Duration = Duration::from_secs(60);

/// What becomes of what a subscription missed.
fn missed(replay: bool) -> Missed {
    if replay { Missed::Replayed } else { Missed::Left }
}

/// What of it cannot be delivered any more.
fn gap_to_proto(gap: ReplayGap) -> proto::ReplayGap {
    proto::ReplayGap { from_position: gap.from, to_position: gap.to }
}

/// A refused change of a subscription as an error; `named` is how the request names it.
async fn refused(deps: &RegistryDeps, caller: &Caller, named: &str, refusal: SubscriptionRefusal) -> ApiError {
    let quota =
        |quota: &str, limit: u64, retry_delay| ApiError::QuotaExceeded { quota: quota.to_owned(), limit, retry_delay };
    match refusal {
        SubscriptionRefusal::NotFound => ApiError::SubscriptionNotFound { subscription: named.to_owned() },
        SubscriptionRefusal::NotSubscribed(name) => ApiError::NotSubscribed { event_type: name.as_str().to_owned() },
        SubscriptionRefusal::AlreadySubscribed(id) => ApiError::AlreadySubscribed { subscription: id.to_string() },
        SubscriptionRefusal::EnrichPathTaken { path, other } => {
            ApiError::EnrichPathTaken { path: path.to_string(), subscription: other.map(|id| id.to_string()) }
        }
        SubscriptionRefusal::EventTypeNotFound(name) => deps.event_type_not_found(caller.tenant, &name).await,
        // Its slug is gone with it.
        SubscriptionRefusal::AppNotFound(app) => ApiError::AppNotFound { app: app.to_string() },
        SubscriptionRefusal::State(state) => {
            let hint = if state == State::Deleted { "; undelete it first" } else { "" };
            let message = format!("the subscription is {}{hint}", state_name(state));
            ApiError::SubscriptionState { subscription: named.to_owned(), message }
        }
        SubscriptionRefusal::Etag => ApiError::EtagMismatch { resource: named.to_owned() },
        SubscriptionRefusal::TooMany(max) => {
            quota("limits.subscriptions_max", u64::try_from(max).unwrap_or_default(), Some(ROOM_RETRY))
        }
        SubscriptionRefusal::TooManyDeleted(max) => {
            quota("limits.deleted_subscriptions_max", u64::try_from(max).unwrap_or_default(), Some(ROOM_RETRY))
        }
        SubscriptionRefusal::TooManySecrets(limit) => quota("signing_secrets", limit as u64, None),
        SubscriptionRefusal::Store(error) => error.into(),
    }
}
