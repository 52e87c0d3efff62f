//! Writes what happened: one settle of one tenant, tried until it is written or fenced.
//!
//! While one settle of a tenant is under way, further results gather for the next: group commit without a timer. The only
//! writer of outcomes, attempts, deferred work and dead letters beside callers' own changes.

use super::run::{Input, Life, Shared, caught};
use super::tenant::Batch;
use crate::store::StoreError;
use crate::store::settle::{Fate, Fenced};
use crate::telemetry::measured;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// Starts a settle. It reports by [`Input::Settled`].
pub(super) fn spawn(shared: &Arc<Shared>, life: Life, batch: Batch) {
    let shared = shared.clone();
    tokio::spawn(async move {
        let mut wait = FIRST_WAIT;
        loop {
            let store = &shared.parts.store;
            // Writing twice is harmless: a statement whose answer was lost finds its own rows and leaves them.
            let settle = async {
                // Before what the attempts have come to: where that is written, the tokens that they took are.
                store.keep_rates(life.tenant, life.token, &batch.rates).await?;
                store.settle(life.tenant, life.token, batch.cursor, &batch.changes).await
            };
            match caught(Box::pin(settle)).await {
                Ok(fenced) => {
                    if fenced == Fenced::No {
                        count(&batch);
                    }
                    shared.tell(Input::Settled { life, batch, fenced });
                    return;
                }
                Err(StoreError::PartitionMissing) => {
                    let days: BTreeSet<_> = batch.changes.iter().map(|change| change.day).collect();
                    for day in days {
                        if let Err(error) = store.ensure_partitions(day, 0).await {
                            tracing::warn!(%error, %day, "a partition cannot be made");
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(tenant = %life.tenant, changes = batch.changes.len(), %error, "settling failed; it is tried again");
                }
            }
            // The dispatcher has stopped waiting for it: the work is pending again for the next owner.
            if shared.inputs.is_closed() {
                return;
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    });
}

fn count(batch: &Batch) {
    for change in &batch.changes {
        match change.fate {
            // Work that was moved aside without an attempt is no failure.
            Fate::Deferred { .. } if change.tried.is_some() => measured().dispatch.deferred.inc(),
            Fate::Dead { .. } => measured().dispatch.dead_letters.inc(),
            _ => 0,
        };
    }
}
