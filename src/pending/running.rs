//! The phases that run in this process: each a task of its own that is found by its event, and takes a place among its tenant's.

use super::Core;
use super::phase::{Ended, Phase};
use crate::domain::ids::{EventId, TenantId};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What those who wait for a phase hold on to.
#[derive(Debug)]
pub(super) struct Handle {
    /// How many wait.
    attached: watch::Sender<usize>,
    ended: watch::Sender<Option<Ended>>,
    /// A caller took the event back.
    pub cancelled: CancellationToken,
}

/// One that waits; the phase learns when it is dropped.
#[derive(Debug)]
pub(super) struct Attachment(Arc<Handle>);

impl Handle {
    pub fn new() -> Arc<Self> {
        let (attached, ended) = (watch::Sender::new(0), watch::Sender::new(None));
        Arc::new(Self { attached, ended, cancelled: CancellationToken::new() })
    }

    pub fn attach(self: &Arc<Self>) -> Attachment {
        self.attached.send_modify(|count| *count += 1);
        Attachment(self.clone())
    }

    pub fn end(&self, ended: Ended) {
        self.ended.send_replace(Some(ended));
    }

    /// Ends as elsewhere what has not ended otherwise.
    pub fn end_if_open(&self) {
        self.ended.send_if_modified(|ended| {
            let open = ended.is_none();
            if open {
                *ended = Some(Ended::Elsewhere);
            }
            open
        });
    }

    /// Returns once nobody has waited for `grace`.
    pub async fn abandoned(&self, grace: Duration) {
        let mut attached = self.attached.subscribe();
        loop {
            // The sender lives as long as this borrow: neither wait can fail.
            let _ = attached.wait_for(|count| *count == 0).await;
            if tokio::time::timeout(grace, attached.wait_for(|count| *count > 0)).await.is_err() {
                return;
            }
        }
    }
}

impl Attachment {
    /// Waits for the end; a phase that died is elsewhere.
    pub async fn ended(&self) -> Ended {
        let mut ended = self.0.ended.subscribe();
        let found = ended.wait_for(Option::is_some).await.map(|ended| ended.clone());
        found.ok().flatten().unwrap_or(Ended::Elsewhere)
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.0.attached.send_modify(|count| *count -= 1);
    }
}

impl Core {
    /// Runs a phase in a task of its own, with what it holds of this process: a publisher's its place and its room, which it may share with
    /// others of its batch, one that is due its room.
    pub(super) fn spawn_in(self: &Arc<Self>, phase: Phase, handle: Arc<Handle>, held: impl Send + 'static) {
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
