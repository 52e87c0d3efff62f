//! Operator events: what an operator should know of dispatching, published into the tenant's own log.
//!
//! Dead letters are announced from their rows, changes of the registry from the outbox that their transactions write, so that a
//! crash loses none; the idempotency key makes a repetition harmless. The event of a dead letter is caused by the invocation it
//! tells about, and that of a circuit by the one whose attempt opened or closed it: a subscription that fails on its own failures is in
//! its own lineage, and does not fire again. A circuit is announced before its row is written; one that changes while its owner crashes is
//! found by the failures that follow.

use super::run::{self, Input, Life, Shared};
use super::tenant::{Failing, HealthNote};
use crate::domain::announcement::Announcement;
use crate::domain::catalogue::Catalogue;
use crate::domain::event::Lineage;
use crate::domain::event_type::EventTypeName;
use crate::domain::health::HealthRow;
use crate::domain::ids::{SubscriptionNo, TenantId};
use crate::domain::invocation::OutcomeClass;
use crate::domain::subscription::{Circuit, CircuitState};
use crate::feed::{Head, News};
use crate::publish::PublishError;
use crate::store::StoreError;
use crate::store::announcements::Waiting;
use crate::store::dispatch::DeadLetter;
use crate::store::subscriptions::ServerReason;
use chrono::{DateTime, Utc};
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

const PAGE: u32 = 100;

/// Why an operator event was not published.
#[derive(Debug, thiserror::Error)]
enum AnnounceError {
    #[error("reading or marking what is announced failed")]
    Store(#[from] StoreError),
    #[error("publishing an operator event failed")]
    Publish(#[from] PublishError),
}

/// Announces what waits of a tenant: changes in their order, then dead letters, oldest first. Reports by [`Input::Announced`].
pub(super) fn spawn(shared: &Arc<Shared>, life: Life) {
    let work = async move |shared: Arc<Shared>| told(life.tenant, announce(&shared, life.tenant).await);
    run::spawn(shared, work, move |result| Input::Announced { life, result });
}

async fn announce(shared: &Shared, tenant: TenantId) -> Result<(), AnnounceError> {
    let store = &shared.parts.store;
    publish_changes(shared, tenant).await?;
    loop {
        let letters = store.unannounced(tenant, PAGE).await?;
        let last = letters.len() < PAGE as usize;
        // The dead letter is the record that the receiver is gone: it counts as announced only once its subscription is disabled,
        // which writes the announcement of that.
        let gone: BTreeMap<SubscriptionNo, DateTime<Utc>> = letters
            .iter()
            .filter(|letter| letter.class == OutcomeClass::Gone)
            .map(|letter| (letter.place.subscription_no, letter.dead_at))
            .collect();
        for (subscription_no, gone_at) in gone {
            disable_gone(shared, tenant, subscription_no, gone_at).await?;
        }
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

/// Publishes announcements of changes, a page in one commit, and deletes them then.
async fn publish_changes(shared: &Shared, tenant: TenantId) -> Result<(), AnnounceError> {
    let store = &shared.parts.store;
    loop {
        let waiting = store.announcements(tenant, PAGE).await?;
        let last = waiting.len() < PAGE as usize;
        let (mut ids, mut events) = (Vec::with_capacity(waiting.len()), Vec::with_capacity(waiting.len()));
        for Waiting { id, announcement } in waiting {
            let Announcement { event_type, subject, data, lineage } = announcement;
            let name = system_type(shared.parts.registry.catalogue(), &event_type)?;
            let key = format!("announcement/{id}");
            match shared.parts.writer.prepare_system(tenant, name, subject, &data, lineage, &key).await {
                Ok(prepared) => events.push(prepared),
                Err(error) if error.may_pass() => return Err(error.into()),
                // Only a bound below what the event needs does this: it must not hold up the announcements behind it.
                Err(error) => {
                    tracing::error!(%tenant, event_type, %error, "a change cannot be announced; it is left out");
                }
            }
            ids.push(id);
        }
        if !events.is_empty() {
            shared.parts.writer.write(tenant, events).await?;
        }
        if !ids.is_empty() {
            store.forget_announcements(tenant, &ids).await?;
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
        "error": { "class": letter.class.code(), "message": letter.error },
        "reason": if retried { "MAX_ATTEMPTS" } else { letter.class.code() },
        "first_attempt_at": letter.first_attempt_at.to_rfc3339(),
        "dead_lettered_at": letter.dead_at.to_rfc3339(),
    });
    let key = format!("dead-letter/{invocation}/{}", letter.attempt);
    let lineage = entry.event.lineage.caused_by(invocation);
    let name = system_type(shared.parts.registry.catalogue(), "INVOCATION_DEAD_LETTERED")?;
    shared.parts.writer.publish_system(tenant, name, invocation.to_string(), &data, Some(lineage), &key).await?;
    Ok(())
}

/// Disables a subscription whose receiver is gone. One that was changed since stays: a later delivery tells whether that helped.
async fn disable_gone(
    shared: &Shared,
    tenant: TenantId,
    subscription_no: SubscriptionNo,
    gone_at: DateTime<Utc>,
) -> Result<(), AnnounceError> {
    disable_and_tell(shared, tenant, subscription_no, ServerReason::Gone { at: gone_at }).await
}

/// Disables a subscription that only fails. A later failure asks for it again where this one did not get through.
pub(super) fn disable_failing(shared: &Arc<Shared>, tenant: TenantId, failing: Failing) {
    let shared = shared.clone();
    tokio::spawn(async move {
        let Failing { subscription_no, version, class } = failing;
        let reason = ServerReason::Failing { version, class: class.code() };
        if let Err(error) = disable_and_tell(&shared, tenant, subscription_no, reason).await {
            tracing::warn!(%tenant, subscription_no, %error, "a subscription that only fails could not be disabled");
        }
    });
}

/// The announcement of it is written with it, and published as that of any other change.
async fn disable_and_tell(
    shared: &Shared,
    tenant: TenantId,
    subscription_no: SubscriptionNo,
    reason: ServerReason,
) -> Result<(), AnnounceError> {
    let store = &shared.parts.store;
    let Some(change) = store.disable_by_server(tenant, subscription_no, reason).await? else { return Ok(()) };
    // The dispatcher itself hears of it as of any other change, and announces it.
    shared.parts.feed.send(&News::Head(Head {
        tenant,
        position: change.position,
        registry_version: change.registry_version,
        deferred_version: 0,
    }));
    Ok(())
}

/// Writes how receivers do, and tells operators of circuits that have opened or closed: that first, so that a crash between the two
/// loses no event. Reports by [`Input::HealthKept`].
pub(super) fn health(shared: &Arc<Shared>, life: Life, notes: Vec<HealthNote>) {
    let kept = notes.clone();
    let work = async move |shared: Arc<Shared>| told(life.tenant, tell_and_keep(&shared, life, &kept).await);
    run::spawn(shared, work, move |result| Input::HealthKept { life, notes, result });
}

fn told(tenant: TenantId, result: Result<(), AnnounceError>) -> Result<(), StoreError> {
    result.map_err(|error| match error {
        AnnounceError::Store(error) => error,
        AnnounceError::Publish(error) => {
            tracing::warn!(%tenant, %error, "an operator event could not be published; it is tried again");
            StoreError::Interrupted
        }
    })
}

async fn tell_and_keep(shared: &Shared, life: Life, notes: &[HealthNote]) -> Result<(), AnnounceError> {
    for note in notes {
        if let Some((state, lineage)) = &note.told {
            match publish_circuit(shared, life.tenant, &note.row, *state, lineage).await {
                // What never passes must not keep the row from being written.
                Err(AnnounceError::Publish(error)) if !error.may_pass() => {
                    tracing::error!(tenant = %life.tenant, %error, "a circuit cannot be announced; it is left out");
                }
                told => told?,
            }
        }
    }
    // Of each subscription the last one: a statement may write a row once.
    let mut last: HashMap<SubscriptionNo, HealthRow> = HashMap::new();
    last.extend(notes.iter().map(|note| (note.row.subscription_no, note.row)));
    let rows: Vec<HealthRow> = last.into_values().collect();
    shared.parts.store.keep_health(life.tenant, life.token, &rows).await?;
    Ok(())
}

async fn publish_circuit(
    shared: &Shared,
    tenant: TenantId,
    row: &HealthRow,
    state: CircuitState,
    lineage: &Lineage,
) -> Result<(), AnnounceError> {
    let registry = shared.parts.registry.tenant(tenant).await?;
    let Some(entry) = registry.subscription(row.subscription_no) else { return Ok(()) };
    let subscription = &entry.subscription;
    let since = row.circuit.since.unwrap_or_default();
    let verb = if state == CircuitState::Closed { "closed" } else { "opened" };
    let circuit = Circuit { state, ..row.circuit };
    let Announcement { event_type, subject, data, .. } = Announcement::circuit_changed(subscription, &circuit);
    let key = format!("circuit-{verb}/{}/{}", subscription.id, since.timestamp_micros());
    let name = system_type(shared.parts.registry.catalogue(), &event_type)?;
    shared.parts.writer.publish_system(tenant, name, subject, &data, Some(lineage.clone()), &key).await?;
    Ok(())
}

fn system_type(catalogue: &Catalogue, name: &str) -> Result<EventTypeName, StoreError> {
    let missing = StoreError::Corrupt { what: "system catalogue" };
    catalogue.get(name).map(|event_type| event_type.event_type.name.clone()).ok_or(missing)
}
