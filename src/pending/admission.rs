//! Room for the events of a batch that wait, taken before anything of the batch is committed: a refusal then has no effect.

use super::{Core, Pending, PendingError};
use crate::domain::ids::TenantId;
use crate::domain::places::Place;
use std::sync::Arc;

/// Events of one batch that are accepted at the same time.
const AT_ONCE: usize = 64;

/// What phases hold of this process: their places, and the room of their events.
pub(super) type Held = Arc<(Vec<Place>, Place)>;

/// The room that a batch has.
#[derive(Debug)]
pub struct Admission {
    at_once: usize,
    /// None where no listeners are asked.
    pub(super) held: Option<Held>,
}

impl Admission {
    /// How many of the events may be accepted at the same time: each that asks listeners has a place then.
    pub fn at_once(&self) -> usize {
        self.at_once
    }
}

impl Pending {
    /// Lets so many delayed events, and PRE events of these sizes in memory, be accepted by [`Self::schedule`] and [`Self::publish`], or
    /// refuses all of them. PRE events share the places that there are, and ask in turn where those are too few.
    ///
    /// What waits already is counted here, and not again for each event: batches that come at the same time may together go over the
    /// bounds of the tenant.
    ///
    /// Errors: [`PendingError::Full`].
    pub async fn admit(&self, tenant: TenantId, scheduled: usize, gated: &[usize]) -> Result<Admission, PendingError> {
        let core = &self.core;
        if scheduled == 0 && gated.is_empty() {
            return Ok(Admission { at_once: AT_ONCE, held: None });
        }
        let (scheduled_max, phases_max) = (core.config.scheduled_max as usize, core.config.phases_max as usize);
        let waiting = self.store.count_pending(tenant, core.config.scheduled_max, core.config.phases_max).await?;
        if scheduled > scheduled_max.saturating_sub(waiting.scheduled) {
            return Err(core.scheduled_full());
        }
        if gated.is_empty() {
            return Ok(Admission { at_once: AT_ONCE, held: None });
        }
        let most = gated.len().min(AT_ONCE).min(phases_max.saturating_sub(waiting.gated));
        let held = core.hold(tenant, most, gated.iter().sum())?;
        Ok(Admission { at_once: held.0.len(), held: Some(held) })
    }
}

impl Core {
    /// Takes up to so many places for phases, and the room for their events.
    pub(super) fn hold(&self, tenant: TenantId, most: usize, bytes: usize) -> Result<Held, PendingError> {
        let places: Vec<Place> = std::iter::from_fn(|| self.places.take(tenant)).take(most).collect();
        if places.is_empty() {
            return Err(self.phases_full());
        }
        let limit = u64::try_from(self.room.max()).unwrap_or(u64::MAX);
        let full = PendingError::Full { quota: "pending.phases_bytes_max", limit };
        Ok(Arc::new((places, self.room.take_some(tenant, bytes).ok_or(full)?)))
    }

    pub(super) fn scheduled_full(&self) -> PendingError {
        PendingError::Full { quota: "pending.scheduled_max", limit: self.config.scheduled_max.into() }
    }

    pub(super) fn phases_full(&self) -> PendingError {
        PendingError::Full { quota: "pending.phases_max", limit: self.config.phases_max.into() }
    }
}
