//! Tenants whose commit would hold up the others: somebody else holds their head row, for longer than a commit takes.
//!
//! Such a tenant's calls go to a task of its own, which waits for the lock and commits them as a committer does; calls that come
//! meanwhile join them. It ends with its last call, and the tenant goes with the others again.

use super::{Call, Core, fail};
use crate::domain::ids::TenantId;
use crate::store::StoreError;
use futures::FutureExt as _;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

/// Tenants that wait with a connection each; further ones wait for their turn, and what they hold counts as queued.
const TENANTS_MAX: usize = 4;
/// How long a commit waits for the lock before its calls are told to come back later: nothing is written then.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is aside.
pub(super) struct Aside {
    waiting: Mutex<HashMap<TenantId, Vec<Call>>>,
    turns: Arc<Semaphore>,
    tasks: TaskTracker,
}

impl Default for Aside {
    fn default() -> Self {
        Self { waiting: Mutex::default(), turns: Arc::new(Semaphore::new(TENANTS_MAX)), tasks: TaskTracker::new() }
    }
}

impl Aside {
    /// The tasks, to wait for their end.
    pub(super) fn tasks(&self) -> TaskTracker {
        self.tasks.clone()
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<TenantId, Vec<Call>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next calls of a tenant, up to a bound of events; none ends its task.
    fn next(&self, tenant: TenantId, events_max: usize) -> Vec<Call> {
        let mut waiting = self.waiting();
        let Some(calls) = waiting.get_mut(&tenant) else { return Vec::new() };
        let mut events = 0;
        let fits = |call: &Call| {
            let first = events == 0;
            events += call.events.len();
            first || events <= events_max
        };
        let count = calls.iter().map(fits).take_while(|fits| *fits).count();
        let next = calls.drain(..count).collect::<Vec<_>>();
        if next.is_empty() {
            waiting.remove(&tenant);
        }
        next
    }
}

impl Core {
    /// Hands calls to their tenants' own tasks.
    pub(super) fn put_aside(self: &Arc<Self>, calls: Vec<Call>) {
        let mut waiting = self.aside.waiting();
        for call in calls {
            let tenant = call.tenant;
            waiting
                .entry(tenant)
                .or_insert_with(|| {
                    self.aside.tasks.spawn(self.clone().run_aside(tenant));
                    Vec::new()
                })
                .push(call);
        }
    }

    /// Hands over the calls of tenants that are aside, and returns the others.
    pub(super) fn without_those_aside(self: &Arc<Self>, calls: Vec<Call>) -> Vec<Call> {
        let mut waiting = self.aside.waiting();
        if waiting.is_empty() {
            return calls;
        }
        let mut others = Vec::with_capacity(calls.len());
        for call in calls {
            match waiting.get_mut(&call.tenant) {
                Some(queue) => queue.push(call),
                None => others.push(call),
            }
        }
        others
    }

    async fn run_aside(self: Arc<Self>, tenant: TenantId) {
        // Closed never: the permit is only a turn.
        let _turn = self.aside.turns.clone().acquire_owned().await;
        tracing::debug!(%tenant, "the tenant's head is locked; it is published to by itself");
        let mut connection = self.store.patient_commit_connection(PATIENCE);
        loop {
            let calls = self.aside.next(tenant, self.config.commit_events_max);
            if calls.is_empty() {
                return;
            }
            if AssertUnwindSafe(self.commit(&mut connection, calls)).catch_unwind().await.is_err() {
                tracing::error!(%tenant, "a batch of publish calls was dropped by a fault of the server");
                // The calls that came meanwhile are not left behind.
                let rest = self.aside.waiting().remove(&tenant).unwrap_or_default();
                fail(rest, &StoreError::Interrupted.into());
                return;
            }
        }
    }
}
