//! Housekeeping of the whole database: partitions ahead of time, retention, expired keys and watches, what was deleted long ago, what chains
//! of expired events have spent, old audit records, forgotten replicas.
//!
//! Run by the owner of shard 0, so by one replica at a time; two at once do no harm. Retention is a duty besides, which only its
//! holder does.

use super::Config;
use super::run::{self, Input, Shared};
use crate::domain::ids::ReplicaId;
use crate::store::{Store, StoreError};
use chrono::{Days, NaiveDate, TimeDelta};
use std::sync::Arc;

/// The duty's name.
const RETENTION: &str = "retention";
/// How long a round may take before another replica believes that its holder has died.
const RETENTION_LEASE: TimeDelta = TimeDelta::minutes(30);

/// Subscriptions or event types that one statement purges at most: an event type has schemas by the hundred.
const PURGED_AT_A_TIME: u32 = 500;

/// One round. Deletes in batches, each its own short statement.
pub async fn run_once(store: &Store, config: &Config) -> Result<(), StoreError> {
    let now = store.now();
    store.ensure_partitions(now.date_naive(), config.partitions_ahead_days).await?;
    store.forget_replicas(now - TimeDelta::days(1)).await?;
    while store.delete_expired(now, config.sweep_rows_max).await? >= u64::from(config.sweep_rows_max) {}
    while store.delete_expired_watches(now, config.sweep_rows_max).await? >= u64::from(config.sweep_rows_max) {}
    Ok(())
}

/// One round of retention, where no other replica is at it.
pub async fn retain_once(store: &Store, config: &Config, replica: ReplicaId) -> Result<(), StoreError> {
    let before = retained_from(store, config)?;
    if !store.take_duty(RETENTION, replica, RETENTION_LEASE).await? {
        return Ok(());
    }
    let retained = store.retain(before).await;
    store.end_duty(RETENTION, replica).await?;
    let retained = retained?;
    if !retained.dropped.is_empty() {
        tracing::info!(partitions = retained.dropped.len(), tenants = retained.cut, %before, "retention dropped expired days");
    }
    if let Some(day) = retained.held_from {
        tracing::warn!(%day, "expired days are kept, because a tenant's deliveries are not that far");
    }
    if !retained.locked.is_empty() {
        tracing::warn!(partitions = ?retained.locked, "expired days are in use; dropping them is tried again in an hour");
    }
    Ok(())
}

/// The first day whose events are kept: one that is partly within the retention stays.
fn retained_from(store: &Store, config: &Config) -> Result<NaiveDate, StoreError> {
    let from = store.now().date_naive().checked_sub_days(Days::new(config.retention_days.into()));
    from.ok_or(StoreError::Corrupt { what: "date" })
}

/// Removes for good what was deleted long ago, what chains have spent whose events have expired, and audit records that have had their time.
/// After retention: what the log holds an event of from before its end stays.
pub async fn purge_once(store: &Store, config: &Config) -> Result<(), StoreError> {
    let now = store.now();
    let most = config.sweep_rows_max.min(PURGED_AT_A_TIME);
    let undelete = TimeDelta::days(config.undelete_days.into());
    while store.purge_subscriptions(now - undelete, most).await? >= u64::from(most) {}
    // A PRE event that was asked about when its type was retired may have come into the log a little after that: so the day goes too.
    let logged = TimeDelta::days(i64::from(config.retention_days) + 1);
    while store.purge_event_types(now - undelete.max(logged), most).await? >= u64::from(most) {}
    let before = retained_from(store, config)?;
    while store.purge_budgets(before, config.sweep_rows_max).await? >= u64::from(config.sweep_rows_max) {}
    let audited = now - TimeDelta::days(config.audit_retention_days.into());
    while store.purge_audit_records(audited, config.sweep_rows_max).await? >= u64::from(config.sweep_rows_max) {}
    Ok(())
}

pub(super) fn spawn(shared: &Arc<Shared>) {
    let work = async move |shared: Arc<Shared>| {
        let store = &shared.parts.store;
        if let Err(error) = run_once(store, &shared.config).await {
            tracing::warn!(%error, "housekeeping failed; it is tried again in an hour");
        }
        if let Err(error) = retain_once(store, &shared.config, shared.replica).await {
            tracing::warn!(%error, "retention failed; it is tried again in an hour");
        }
        if let Err(error) = purge_once(store, &shared.config).await {
            tracing::warn!(%error, "purging what was deleted failed; it is tried again in an hour");
        }
        Ok(())
    };
    run::spawn(shared, work, |_: Result<(), StoreError>| Input::Swept);
}
