//! Room for the events of a batch that wait, taken before anything of the batch is committed: a refusal then has no effect.

use super::{Core, Pending, PendingError};
use crate::domain::event::Event;
use crate::domain::event_type::EventTypeName;
use crate::domain::ids::TenantId;
use crate::domain::places::Place;
use crate::publish::registry::{Entry, TenantRegistry};
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
    /// Lets so many delayed events, and these PRE events, be accepted by [`Self::schedule`] and [`Self::publish`], or refuses all of them.
    /// PRE events share the places that there are, and ask in turn where those are too few.
    ///
    /// What waits already is counted here, and not again for each event. Nothing is locked for that, nor where a single event is accepted:
    /// calls that come at the same moment may together go over the bounds of the tenant.
    ///
    /// Errors: [`PendingError::Full`].
    pub async fn admit(
        &self,
        registry: &TenantRegistry,
        scheduled: usize,
        gated: &[&Event],
    ) -> Result<Admission, PendingError> {
        let (core, tenant) = (&self.core, registry.tenant());
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
        let bytes = gated.iter().map(|event| event.memory_bytes()).sum();
        let enrichment = |event: &&Event| core.enrichment_bytes(active(registry, &event.event_type).iter());
        let enrichment = gated.iter().map(enrichment).max();
        let held = core.hold(tenant, most, bytes, enrichment.unwrap_or_default())?;
        Ok(Admission { at_once: held.0.len(), held: Some(held) })
    }
}

/// The ACTIVE listeners of a type.
pub(super) fn active(registry: &TenantRegistry, event_type: &EventTypeName) -> Arc<Vec<Arc<Entry>>> {
    registry.listeners(event_type).1.unwrap_or_default()
}

impl Core {
    /// Bytes that the enrichments of these listeners may have until their event is decided, beside the event.
    pub(super) fn enrichment_bytes<'a>(&self, listeners: impl Iterator<Item = &'a Arc<Entry>>) -> usize {
        let policies = listeners.filter_map(|one| one.subscription.pre_policy.as_ref());
        let all = policies.filter(|policy| !policy.enrich_paths.is_empty()).count() * self.executor.answer_bytes_max();
        all.min(self.enrichment_bytes_max())
    }

    /// Bytes that the enrichments of one event may have together.
    pub(super) fn enrichment_bytes_max(&self) -> usize {
        2 * self.event_bytes_max
    }

    /// Takes up to so many places for phases, and room for the bytes of all their events and of the enrichments of each place: fewer places
    /// where there is no room for these.
    pub(super) fn hold(
        &self,
        tenant: TenantId,
        most: usize,
        bytes: usize,
        enrichment: usize,
    ) -> Result<Held, PendingError> {
        let mut places: Vec<Place> = std::iter::from_fn(|| self.places.take(tenant)).take(most).collect();
        if places.is_empty() {
            return Err(self.phases_full());
        }
        // No more than the part of one alone, also while nobody else holds any.
        while places.len() > 1 && enrichment > 0 && bytes + places.len() * enrichment > self.room.max() / 2 {
            places.truncate(places.len() / 2);
        }
        loop {
            let all = bytes + places.len() * enrichment;
            let is_last = places.len() == 1 || enrichment == 0;
            // Whoever holds none waits for nobody: that may be more than its part.
            let room =
                if is_last { self.room.take_some_or_first(tenant, all) } else { self.room.take_some(tenant, all) };
            if let Some(room) = room {
                return Ok(Arc::new((places, room)));
            }
            if is_last {
                let limit = u64::try_from(self.room.max()).unwrap_or(u64::MAX);
                return Err(PendingError::Full { quota: "pending.phases_bytes_max", limit });
            }
            places.truncate(places.len() / 2);
        }
    }

    pub(super) fn scheduled_full(&self) -> PendingError {
        PendingError::Full { quota: "pending.scheduled_max", limit: self.config.scheduled_max.into() }
    }

    pub(super) fn phases_full(&self) -> PendingError {
        PendingError::Full { quota: "pending.phases_max", limit: self.config.phases_max.into() }
    }
}
