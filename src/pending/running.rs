//! The phases that run in this process: each a task of its own that is found by its event, and takes a place among its tenant's.

use super::Core;
use super::phase::{Attachment, Handle, Phase};
use crate::domain::ids::{EventId, TenantId};
use crate::domain::places::Place;
use std::sync::Arc;

impl Core {
    /// Runs a phase that no publisher began here; it takes no place from those that publishers begin.
    pub(super) fn spawn(self: &Arc<Self>, phase: Phase, handle: Arc<Handle>) {
        self.spawn_in(phase, handle, None);
    }

    /// Runs a phase in a task of its own, with its place and its room.
    pub(super) fn spawn_in(self: &Arc<Self>, phase: Phase, handle: Arc<Handle>, held: Option<(Place, Place)>) {
        let core = self.clone();
        let place = (phase.tenant, phase.entry.event.id);
        self.phases.insert(place, handle.clone());
        self.tasks.spawn(async move {
            // Removed also where the phase panics; those who wait then look at the row.
            let _registered = Registered { core: &core, place, handle: &handle };
            let ended = phase.run(&core, &handle).await;
            // Before the publisher hears of the end, and comes with its next event.
            drop(held);
            handle.end(ended);
        });
    }

    pub(super) fn attach(&self, tenant: TenantId, event: EventId) -> Option<Attachment> {
        self.phases.get(&(tenant, event)).map(|handle| handle.attach())
    }
}

struct Registered<'a> {
    core: &'a Core,
    place: (TenantId, EventId),
    handle: &'a Handle,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.core.phases.remove(&self.place);
        self.handle.end_if_open();
    }
}
