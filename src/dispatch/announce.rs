//! Operator events: what an operator should know of dispatching, published into the tenant's own log.
//!
//! Dead letters are announced from their rows, or from what a caller who removed one left of it; changes of the registry from the
//! outbox that their transactions write. So a crash loses none; the idempotency key makes a repetition harmless. The event of a dead
//! letter is caused by the invocation it tells about, and that of a circuit by the one whose attempt opened or closed it: a
//! subscription that fails on its own failures is in its own lineage, and does not fire again. A circuit is announced before its row
//! is written; one that changes while its owner crashes is found by the failures that follow. That the budget of a chain is used up is told
//! after the first event that shows it, and before that is marked as published.

use super::Parts;
use super::run::{self, Input, Life, Shared};
use super::tenant::{Failing, HealthNote};
use crate::domain::announcement::Announcement;
use crate::domain::event::Lineage;
use crate::domain::health::HealthRow;
use crate::domain::ids::{EventId, SubscriptionNo, TenantId};
use crate::domain::invocation::OutcomeClass;
use crate::domain::subscription::{Circuit, CircuitState, Subscription};
use crate::feed::{Head, News};
use crate::publish::PublishError;
use crate::publish::writer::Published;
use crate::store::announcements::Waiting;
use crate::store::dispatch::{DeadLetter, Place};
use crate::store::subscriptions::ServerReason;
use crate::store::{Store, StoreError};
use crate::telemetry::measured;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use uuid::Uuid;

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
        let gone: BTreeSet<(SubscriptionNo, i64)> = letters
            .iter()
            .filter(|letter| letter.class == OutcomeClass::Gone)
            .filter_map(|letter| Some((letter.place.subscription_no, letter.version?)))
            .collect();
        for (subscription_no, version) in gone {
            disable_and_tell(shared, tenant, subscription_no, ServerReason::Gone { version }).await?;
        }
        let places: Vec<(Place, i32)> = letters.iter().map(|letter| (letter.place, letter.attempt)).collect();
        let mut announcements = Vec::with_capacity(letters.len());
        for letter in &letters {
            announcements.extend(dead_letter(&shared.parts.store, tenant, letter).await?);
        }
        publish(shared, tenant, announcements).await?;
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
        let ids: Vec<Uuid> = waiting.iter().map(|waiting| waiting.id).collect();
        let keyed = |Waiting { id, announcement }| (announcement, format!("announcement/{id}"));
        publish(shared, tenant, waiting.into_iter().map(keyed).collect()).await?;
        if !ids.is_empty() {
            store.forget_announcements(tenant, &ids).await?;
        }
        if last {
            return Ok(());
        }
    }
}

/// The announcement of a dead letter, and its key; none where retention has taken the event.
async fn dead_letter(
    store: &Store,
    tenant: TenantId,
    letter: &DeadLetter,
) -> Result<Option<(Announcement, String)>, StoreError> {
    let Some(entry) = store.event(tenant, letter.event).await? else { return Ok(None) };
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
    let (event_type, subject) = ("INVOCATION_DEAD_LETTERED".to_owned(), invocation.to_string());
    let lineage = Some(entry.event.lineage.caused_by(invocation));
    let key = format!("dead-letter/{invocation}/{}", letter.attempt);
    Ok(Some((Announcement { event_type, subject, data, lineage }, key)))
}

/// Publishes announcements, and tells of chains whose budget does not reach for what they fire.
async fn publish(
    shared: &Shared,
    tenant: TenantId,
    announcements: Vec<(Announcement, String)>,
) -> Result<(), AnnounceError> {
    let published = write(shared, tenant, announcements).await?;
    let mut first = BTreeMap::new();
    for Published { entry, .. } in &published {
        if let Some(no) = entry.over_budget() {
            first.entry(entry.event.lineage.root).or_insert((entry, no));
        }
    }
    if first.is_empty() {
        return Ok(());
    }
    let Parts { store, registry, writer, .. } = &shared.parts;
    let roots: Vec<EventId> = first.keys().copied().collect();
    // Of most of what is refused it is told already.
    let untold = store.untold_budgets(tenant, &roots).await?;
    if untold.is_empty() {
        return Ok(());
    }
    let (registry, budget) = (registry.tenant(tenant).await?, writer.config().chain_invocations_max);
    let exhausted = |root: &EventId| {
        let (entry, no) = first.get(root)?;
        let found = registry.subscription(*no);
        let subscription = found.as_ref().map(|found| &found.subscription);
        let told = Announcement::chain_budget_exhausted(entry, *no, subscription, budget);
        Some((told, format!("chain-budget/{root}")))
    };
    write(shared, tenant, untold.iter().filter_map(exhausted).collect()).await?;
    store.mark_budgets_told(tenant, &untold).await?;
    Ok(())
}

/// Publishes announcements in one commit, each under a key that makes a repetition harmless. One that is refused for good is left out and
/// counted: only a bound below what its event needs does this, and it must not hold up the others.
async fn write(
    shared: &Shared,
    tenant: TenantId,
    announcements: Vec<(Announcement, String)>,
) -> Result<Vec<Published>, AnnounceError> {
    let Parts { registry, writer, .. } = &shared.parts;
    let mut events = Vec::with_capacity(announcements.len());
    for (Announcement { event_type, subject, data, lineage }, key) in announcements {
        let missing = StoreError::Corrupt { what: "system catalogue" };
        let known = registry.catalogue().get(&event_type).ok_or(missing)?;
        let name = known.event_type.name.clone();
        match writer.prepare_system(tenant, name, subject, &data, lineage, &key).await {
            Ok(prepared) => events.push(prepared),
            Err(error) if error.may_pass() => return Err(error.into()),
            Err(error) => {
                measured().dispatch.announcements_refused.inc();
                tracing::error!(%tenant, event_type, %error, "an operator event cannot be published; it is left out");
            }
        }
    }
    if events.is_empty() { Ok(Vec::new()) } else { Ok(writer.write(tenant, events).await?) }
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

/// Disables a subscription because of its receiver. One that was changed since stays: a later delivery tells whether that helped. The
/// announcement of it is written with it, and published as that of any other change.
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
    let registry = shared.parts.registry.tenant(life.tenant).await?;
    let told = |note: &HealthNote| {
        let (state, lineage) = note.told.as_ref()?;
        let subscription = registry.subscription(note.row.subscription_no)?;
        Some(circuit(&subscription.subscription, &note.row, *state, lineage))
    };
    publish(shared, life.tenant, notes.iter().filter_map(told).collect()).await?;
    // Of each subscription the last one: a statement may write a row once.
    let mut last: HashMap<SubscriptionNo, HealthRow> = HashMap::new();
    last.extend(notes.iter().map(|note| (note.row.subscription_no, note.row)));
    let rows: Vec<HealthRow> = last.into_values().collect();
    shared.parts.store.keep_health(life.tenant, life.token, &rows).await?;
    Ok(())
}

/// The announcement of a circuit that has opened or closed, and its key.
fn circuit(
    subscription: &Subscription,
    row: &HealthRow,
    state: CircuitState,
    lineage: &Lineage,
) -> (Announcement, String) {
    let since = row.circuit.since.unwrap_or_default();
    let verb = if state == CircuitState::Closed { "closed" } else { "opened" };
    let circuit = Circuit { state, ..row.circuit };
    let announcement = Announcement::circuit_changed(subscription, &circuit);
    let key = format!("circuit-{verb}/{}/{}", subscription.id, since.timestamp_micros());
    (Announcement { lineage: Some(lineage.clone()), ..announcement }, key)
}
