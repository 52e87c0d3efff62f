//! Operator events: what an operator should know of dispatching, published into the tenant's own log.
//!
//! Dead letters are announced from their rows, so that a crash between the settle and the event loses none; the idempotency key
//! makes a repetition harmless. The event is caused by the invocation it tells about: a subscription that fails on its own
//! failures is in its own lineage, and does not fire again.

use super::run::{Input, Life, Shared};
use crate::domain::catalogue::Catalogue;
use crate::domain::event_type::EventTypeName;
use crate::domain::ids::{SubscriptionNo, TenantId};
use crate::domain::invocation::OutcomeClass;
use crate::feed::{Head, News};
use crate::publish::PublishError;
use crate::store::StoreError;
use crate::store::dispatch::DeadLetter;
use serde_json::json;
use std::sync::Arc;

const PAGE: u32 = 100;

/// Why an operator event was not published.
#[derive(Debug, thiserror::Error)]
enum AnnounceError {
    #[error("reading or marking dead letters failed")]
    Store(#[from] StoreError),
    #[error("publishing an operator event failed")]
    Publish(#[from] PublishError),
}

/// Announces a tenant's dead letters, oldest first. Reports by [`Input::Announced`].
pub(super) fn dead_letters(shared: &Arc<Shared>, life: Life) {
    let shared = shared.clone();
    tokio::spawn(async move {
        let result = match announce(&shared, life.tenant).await {
            Ok(()) => Ok(()),
            Err(AnnounceError::Store(error)) => Err(error),
            Err(AnnounceError::Publish(error)) => {
                tracing::warn!(tenant = %life.tenant, %error, "dead letters could not be announced; they are tried again");
                Err(StoreError::Interrupted)
            }
        };
        shared.tell(Input::Announced { life, result });
    });
}

async fn announce(shared: &Shared, tenant: TenantId) -> Result<(), AnnounceError> {
    let store = &shared.parts.store;
    loop {
        let letters = store.unannounced(tenant, PAGE).await?;
        let last = letters.len() < PAGE as usize;
        let mut places = Vec::with_capacity(letters.len());
        for letter in letters {
            publish_dead_letter(shared, tenant, &letter).await?;
            places.push(letter.place);
        }
        if !places.is_empty() {
            store.mark_announced(tenant, &places).await?;
        }
        if last {
            return Ok(());
        }
    }
}

async fn publish_dead_letter(shared: &Shared, tenant: TenantId, letter: &DeadLetter) -> Result<(), AnnounceError> {
    let Some(entry) = shared.parts.store.event(tenant, letter.event).await? else { return Ok(()) };
    let invocation = letter.invocation();
    let retried = letter.class.is_retryable();
    let data = json!({
        "invocation": invocation.to_string(),
        "subscription": letter.subscription.to_string(),
        "app": letter.app_slug,
        "event": letter.event.to_string(),
        "event_type": entry.event.event_type.as_str(),
        "attempts": letter.attempt.max(1),
        "error": { "class": class_name(letter.class), "message": letter.error },
        "reason": if retried { "MAX_ATTEMPTS" } else { class_name(letter.class) },
        "first_attempt_at": letter.first_attempt_at.to_rfc3339(),
        "dead_lettered_at": letter.dead_at.to_rfc3339(),
    });
    let key = format!("dead-letter/{invocation}/{}", letter.attempt);
    let lineage = entry.event.lineage.caused_by(invocation);
    let name = system_type(shared.parts.registry.catalogue(), "INVOCATION_DEAD_LETTERED")?;
    shared.parts.writer.publish_system(tenant, name, invocation.to_string(), &data, Some(lineage), &key).await?;
    Ok(())
}

/// Disables a subscription whose receiver is gone, and says so. A later delivery that is refused again repeats what failed here.
pub(super) fn disable_gone(shared: &Arc<Shared>, tenant: TenantId, subscription_no: SubscriptionNo) {
    let shared = shared.clone();
    tokio::spawn(async move {
        if let Err(error) = disable(&shared, tenant, subscription_no).await {
            tracing::warn!(%tenant, subscription_no, %error, "a subscription whose receiver is gone could not be disabled");
        }
    });
}

async fn disable(shared: &Shared, tenant: TenantId, subscription_no: SubscriptionNo) -> Result<(), AnnounceError> {
    let store = &shared.parts.store;
    let Some(change) = store.disable_gone(tenant, subscription_no).await? else { return Ok(()) };
    shared.parts.feed.send(&News::Head(Head {
        tenant,
        position: change.position,
        registry_version: change.registry_version,
        deferred_version: 0,
    }));
    let registry = shared.parts.registry.refresh(tenant, change.registry_version).await?;
    let Some(entry) = registry.subscription(subscription_no) else { return Ok(()) };
    let subscription = &entry.subscription;
    let data = json!({
        "subscription": subscription.id.to_string(),
        "app": subscription.app_slug,
        "event_type": subscription.event_type.as_str(),
        "name": subscription.display_name,
        "target_kind": subscription.target.kind(),
        "effective_position": change.position,
        "actor": "carillon",
        "reason": "GONE",
        "error": { "class": class_name(OutcomeClass::Gone), "message": "the receiver answered 410 Gone" },
        "disabled_at": subscription.updated_at.to_rfc3339(),
    });
    let key = format!("disabled/{}/{}", subscription.id, change.registry_version);
    let name = system_type(shared.parts.registry.catalogue(), "SUBSCRIPTION_DISABLED")?;
    shared.parts.writer.publish_system(tenant, name, subscription.id.to_string(), &data, None, &key).await?;
    Ok(())
}

fn system_type(catalogue: &Catalogue, name: &str) -> Result<EventTypeName, StoreError> {
    let missing = StoreError::Corrupt { what: "system catalogue" };
    catalogue.get(name).map(|event_type| event_type.event_type.name.clone()).ok_or(missing)
}

fn class_name(class: OutcomeClass) -> &'static str {
    match class {
        OutcomeClass::Succeeded => "SUCCEEDED",
        OutcomeClass::Rejected => "REJECTED",
        OutcomeClass::Failed => "FAILED",
        OutcomeClass::Throttled => "THROTTLED",
        OutcomeClass::Timeout => "TIMEOUT",
        OutcomeClass::Unreachable => "UNREACHABLE",
        OutcomeClass::BlockedAddress => "BLOCKED_ADDRESS",
        OutcomeClass::Gone => "GONE",
    }
}
