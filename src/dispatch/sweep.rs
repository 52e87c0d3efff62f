//! Housekeeping of the whole database: partitions ahead of time, expired keys, forgotten replicas.
//!
//! Run by the owner of shard 0, so by one replica at a time; two at once do no harm.

use super::Config;
use super::run::{Input, Shared};
use crate::store::{Store, StoreError};
use chrono::TimeDelta;
use std::sync::Arc;

/// One round. Deletes in batches, each its own short statement.
pub async fn run_once(store: &Store, config: &Config) -> Result<(), StoreError> {
    let now = store.now();
    store.ensure_partitions(now.date_naive(), config.partitions_ahead_days).await?;
    store.forget_replicas(now - TimeDelta::days(1)).await?;
    while store.delete_expired(now, config.sweep_rows_max).await? >= u64::from(config.sweep_rows_max) {}
    Ok(())
}

pub(super) fn spawn(shared: &Arc<Shared>) {
    let shared = shared.clone();
    tokio::spawn(async move {
        if let Err(error) = run_once(&shared.parts.store, &shared.config).await {
            tracing::warn!(%error, "housekeeping failed; it is tried again in an hour");
        }
        shared.tell(Input::Swept);
    });
}
