//! Watches that were opened while the database could not be written to. They stream like others, since reading is all that takes;
//! other replicas, which change and resume them, know of them once their rows are written.

use super::slot::Slot;
use super::{NO_PANIC, Shared};
use crate::store::StoreError;
use crate::store::watches::FilterVersion;
use chrono::{DateTime, Utc};
use std::sync::{Arc, Weak};

/// A watch whose rows are still to be written.
#[derive(Debug)]
pub(super) struct Unremembered {
    /// Gone with its stream: then nothing is left that a change could reach.
    slot: Weak<Slot>,
    expires_at: DateTime<Utc>,
    versions: Vec<FilterVersion>,
}

impl Shared {
    /// Makes a watch known to every replica: now, or as soon as the database can be written to.
    pub(super) async fn remember(
        &self,
        slot: &Arc<Slot>,
        expires_at: DateTime<Utc>,
        versions: Vec<FilterVersion>,
    ) -> Result<(), StoreError> {
        match self.store.create_watch(slot.tenant(), slot.id(), self.replica, expires_at, &versions).await {
            Err(StoreError::Full(_)) => {
                let watch = Unremembered { slot: Arc::downgrade(slot), expires_at, versions };
                self.unremembered.lock().expect(NO_PANIC).push(watch);
                Ok(())
            }
            done => done,
        }
    }

    /// Writes what could not be written before, up to the first that fails again: however many wait, a database that takes nothing
    /// is asked once.
    pub(super) fn remember_again(self: &Arc<Self>) {
        let mut waiting = std::mem::take(&mut *self.unremembered.lock().expect(NO_PANIC));
        waiting.retain(|watch| watch.slot.strong_count() > 0);
        if waiting.is_empty() {
            return;
        }
        let shared = Arc::clone(self);
        self.tasks.spawn(async move {
            let store = shared.store.owed();
            while let Some(watch) = waiting.pop() {
                let Some(slot) = watch.slot.upgrade() else { continue };
                let (tenant, id) = (slot.tenant(), slot.id());
                match store.create_watch(tenant, id, shared.replica, watch.expires_at, &watch.versions).await {
                    // It was written before, and the answer was lost.
                    Ok(()) | Err(StoreError::Conflict { .. }) => {}
                    Err(error) => {
                        tracing::debug!(%error, "an open watch cannot be remembered yet");
                        waiting.push(watch);
                        break;
                    }
                }
            }
            shared.unremembered.lock().expect(NO_PANIC).append(&mut waiting);
        });
    }
}
