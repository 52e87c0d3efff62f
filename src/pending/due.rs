//! What is due: delayed events whose time has come, and PRE events whose owner has gone silent.
//!
//! One timer per replica, set by the pulse to the first time of all and by what is scheduled here, and a task for each tenant with
//! something due: one whose log is locked holds up nobody else. Whoever claims an event owns it until the lease ends; an event is born by
//! a statement that names the claim's token, so it is born once.

use super::ask::{Listener, NOT_ACTIVE, undecided};
use super::phase::Phase;
use super::running::Handle;
use super::{Core, listeners};
use crate::domain::event::LogEntry;
use crate::domain::ids::{EventId, SubscriptionNo, TenantId};
use crate::domain::places::Place;
use crate::domain::pre::{AbortReason, Aborted, Verdict, VerdictKind};
use crate::publish::PublishError;
use crate::publish::prepare::prepare;
use crate::store::StoreError;
use crate::store::pending::{NewPending, PendingCommit, PendingEvent, PendingState, WaitsFor};
use crate::telemetry::measured;
use futures::StreamExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};

/// Events of one tenant that are claimed at a time.
const CLAIM_MAX: u32 = 64;
/// Due events that one look sees, over all tenants, to choose whose are claimed.
const LOOK_MAX: u32 = 256;
/// Tenants whose due events are brought on their way at the same time.
const TENANTS_MAX: usize = 64;
/// Claimed events that are published at the same time beyond one of each tenant; one tenant alone gets half of them.
pub(super) const AT_ONCE: usize = 8;
/// After a look that failed, or that left something due: its tenant's task tells when it ends.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How often an event is matched again because the registry moved on.
const ROUNDS_MAX: u32 = 20;

/// Runs until the server stops.
pub(super) async fn run(core: Arc<Core>) {
    let mut next = core.feed.pending_due();
    loop {
        let due_at = *next.borrow_and_update();
        let due = async {
            match due_at {
                Some(at) => {
                    let wait = (at - core.store.now()).to_std().unwrap_or_default();
                    sleep_until(Instant::now() + wait).await;
                }
                None => std::future::pending().await,
            }
        };
        // Every arm is cancel-safe: a signal, a channel that keeps its value, a timer.
        tokio::select! {
            () = core.stop.cancelled() => return,
            changed = next.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = due => {
                let ended = core.due_ended.load(Ordering::Acquire);
                let look = async {
                    core.run_due().await?;
                    core.store.next_pending_due(&core.busy_with_due()).await
                };
                match look.await {
                    // A task that has ended meanwhile may have left room for what this look had to leave.
                    Ok(_) if core.due_ended.load(Ordering::Acquire) != ended => {}
                    Ok(due_at) => {
                        let now = core.store.now();
                        let later = |at| if at > now { at } else { now + LOOK_AGAIN };
                        core.feed.set_pending_due(due_at.map(later));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "pending events that are due could not be looked at; it is tried again");
                        sleep(LOOK_AGAIN).await;
                    }
                }
            }
        }
    }
}

/// A tenant whose events are brought on their way; it ends with the task, also where that panics.
struct Busy<'a> {
    core: &'a Core,
    tenant: TenantId,
    /// Whether the next look is made at once: after something was done.
    tell: bool,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.core.due_tenants.remove(&self.tenant);
        let now = self.core.store.now();
        if self.tell {
            self.core.due_ended.fetch_add(1, Ordering::AcqRel);
            self.core.feed.note_pending_due(now);
        } else {
            // What could not be done now is looked at again, and not at once.
            self.core.feed.note_pending_due(now + LOOK_AGAIN);
        }
    }
}

impl Core {
    /// Tenants that have a task: it tells when it ends.
    fn busy_with_due(&self) -> Vec<TenantId> {
        self.due_tenants.iter().map(|tenant| *tenant).collect()
    }

    /// Starts a task for each tenant that has something due and none yet, as long as there are places.
    async fn run_due(self: &Arc<Self>) -> Result<(), StoreError> {
        let mut without = self.busy_with_due();
        loop {
            // What one look sees may be of one tenant alone: the next look leaves that one out.
            let tenants = self.store.tenants_with_due(self.store.now(), &without, LOOK_MAX).await?;
            if tenants.is_empty() {
                return Ok(());
            }
            for tenant in tenants {
                if self.due_tenants.len() >= TENANTS_MAX || self.stop.is_cancelled() {
                    return Ok(());
                }
                // One event at a time, whatever others do, and more where there is room.
                let places: Vec<Place> = std::iter::from_fn(|| self.due_places.take(tenant)).collect();
                self.due_tenants.insert(tenant);
                self.tasks.spawn(self.clone().run_due_of(tenant, places));
                without.push(tenant);
            }
        }
    }

    /// Claims what is due of a tenant and brings each event on its way, until nothing is left that this replica may claim.
    async fn run_due_of(self: Arc<Self>, tenant: TenantId, places: Vec<Place>) {
        let mut ending = Busy { core: &self, tenant, tell: false };
        while !self.stop.is_cancelled() {
            // A phase that runs here goes on, also where its lease could not be renewed in time: only another replica may take it over.
            let running: Vec<EventId> =
                self.phases.iter().map(|phase| *phase.key()).filter(|key| key.0 == tenant).map(|key| key.1).collect();
            match self.store.claim_pending(tenant, self.store.now(), self.lease_until(), &running, CLAIM_MAX).await {
                Ok(claimed) if claimed.is_empty() => break,
                Ok(claimed) => {
                    ending.tell = true;
                    let claimed = futures::stream::iter(claimed);
                    claimed.for_each_concurrent(places.len() + 1, |row| self.bring(row)).await;
                }
                Err(error) => {
                    tracing::warn!(%tenant, %error, "pending events that are due could not be claimed; it is tried again");
                    ending.tell = false;
                    break;
                }
            }
        }
    }

    /// Brings one claimed event on its way. What fails now is claimed again when the lease ends.
    async fn bring(self: &Arc<Self>, row: PendingEvent) {
        let event = row.entry.event.id;
        let done = match row.state {
            PendingState::Gated => self.take_over(row).await,
            PendingState::Scheduled => self.publish_due(row).await,
            PendingState::Aborted | PendingState::Cancelled => Ok(()),
        };
        if let Err(error) = done {
            tracing::warn!(%event, %error, "a pending event could not be brought on its way; it is tried again");
        }
    }

    /// Goes on with a phase whose owner has gone silent: what is decided stays, who has not answered is asked again.
    async fn take_over(self: &Arc<Self>, row: PendingEvent) -> Result<(), StoreError> {
        let mut verdicts = self.store.pending_verdicts(row.tenant, row.entry.event.id).await?;
        let registry = self.registry.reload(row.tenant).await?;
        let listeners = listeners(&registry, &row.entry.matched);
        let decided = |no: &SubscriptionNo| verdicts.iter().any(|verdict| verdict.subscription_no == *no);
        let gone: Vec<SubscriptionNo> = row
            .entry
            .matched
            .iter()
            .filter(|no| registry.subscription(**no).is_none() && !decided(no))
            .copied()
            .collect();
        if !gone.is_empty() {
            let ids = self.store.subscription_ids(row.tenant, &gone).await?;
            let now = self.store.now();
            verdicts.extend(ids.into_iter().map(|named| undecided(named, VerdictKind::Skipped, NOT_ACTIVE, now)));
        }
        let attempted = Some(row.attempted);
        self.phase(row, listeners, verdicts, attempted);
        Ok(())
    }

    /// Asks listeners. `attempted` is what former owners that asked before have written down, where there were any.
    fn phase(
        self: &Arc<Self>,
        row: PendingEvent,
        listeners: Vec<Listener>,
        verdicts: Vec<Verdict>,
        attempted: Option<i32>,
    ) {
        let phase = Phase {
            tenant: row.tenant,
            deadline: self.instant_of(row.deadline_at.unwrap_or(row.entry.committed_at)),
            entry: row.entry,
            token: row.token,
            deliver_at: row.deliver_at,
            attempted,
            listeners,
            verdicts,
            abandonable: false,
        };
        self.spawn(phase, Handle::new());
    }

    /// Publishes a delayed event: checked and matched now, by the schema version it was accepted with.
    async fn publish_due(self: &Arc<Self>, row: PendingEvent) -> Result<(), StoreError> {
        for _ in 0..ROUNDS_MAX {
            let registry = self.registry.tenant(row.tenant).await?;
            let event = row.entry.event.clone();
            let version = event.schema_version;
            let prepared = prepare(&self.registry, &registry, event, version, None, self.event_bytes_max).await;
            let prepared = match prepared {
                Ok(prepared) => prepared,
                Err(PublishError::Store(error)) => return Err(error),
                Err(error) => return self.give_up(&row, &error).await,
            };
            if prepared.is_gated() {
                let deadline_at = self.store.now() + row.pre_timeout;
                let new = NewPending {
                    tenant: row.tenant,
                    event: prepared.event,
                    matched: prepared.matched,
                    refused: prepared.refused,
                    registry_version: prepared.registry_version,
                    key: None,
                    waits_for: WaitsFor::Listeners { deadline_at, lease_until: self.lease_until() },
                    pre_timeout: row.pre_timeout,
                    max: i64::MAX,
                };
                // Before the gate, which says whether they are those of the match.
                let listeners = listeners(&registry, &new.matched);
                if self.store.gate_pending(row.token, &new).await? {
                    let NewPending { event, matched, refused, .. } = new;
                    let entry = LogEntry { event, matched, refused, ..LogEntry::clone(&row.entry) };
                    let row = PendingEvent { entry: Arc::new(entry), deadline_at: Some(deadline_at), ..row };
                    self.phase(row, listeners, Vec::new(), None);
                    return Ok(());
                }
            } else if self.commit_due(row.tenant, row.token, prepared).await? {
                return Ok(());
            }
            // Either the registry moved on, or the event is not this replica's any more.
            let mine = self.store.pending_event(row.tenant, row.entry.event.id).await?;
            if mine.is_none_or(|mine| mine.token != row.token || mine.state != PendingState::Scheduled) {
                return Ok(());
            }
            self.registry.reload(row.tenant).await?;
        }
        Ok(())
    }

    async fn commit_due(
        &self,
        tenant: TenantId,
        token: i64,
        prepared: crate::publish::prepare::Prepared,
    ) -> Result<bool, StoreError> {
        let commit = PendingCommit {
            tenant,
            event: prepared.event,
            token,
            registry_version: Some(prepared.registry_version),
            matched: prepared.matched,
            refused: prepared.refused,
            verdicts: Vec::new(),
        };
        let Some(place) = self.write(|| self.store.commit_pending(&commit)).await? else { return Ok(false) };
        measured().publish.events.inc();
        let PendingCommit { event, matched, refused, .. } = commit;
        let (position, committed_at) = (place.position, place.committed_at);
        let entry = Arc::new(LogEntry { position, committed_at, event, matched, refused });
        self.feed.send_committed(tenant, vec![entry]);
        Ok(true)
    }

    async fn give_up(&self, row: &PendingEvent, error: &PublishError) -> Result<(), StoreError> {
        tracing::warn!(event = %row.entry.event.id, tenant = %row.tenant, %error, "a delayed event cannot be published any more");
        let (event, reason) = (row.entry.event.id, AbortReason::Unpublishable);
        let aborted = Aborted { event, reason, message: error.to_string(), verdicts: Vec::new() };
        self.abort((row.tenant, row.token), &row.entry, row.deliver_at, &aborted).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::catalogue::Catalogue;
    use crate::executor::{self, Executor};
    use crate::feed::Feed;
    use crate::pending::{Config, Parts, Pending};
    use crate::publish;
    use crate::publish::registry::Registry;
    use crate::store::secrets::Keyring;
    use crate::store::tests::Database;
    use sqlx::{AssertSqlSafe, Executor as _};

    #[tokio::test(flavor = "multi_thread")]
    async fn one_look_finds_every_tenant_with_something_due_however_much_another_one_has() {
        let database = Database::new().await;
        let mut connection = database.connection().await;
        for (slug, many) in [("a", 2 * LOOK_MAX), ("b", LOOK_MAX), ("c", 1), ("d", LOOK_MAX), ("e", 1)] {
            let tenant = database.tenant(slug).await;
            // Each tenant's after all of those before it.
            let sql = format!(
                "INSERT INTO pending_events (tenant_id, event_id, state, token, due_at, pre_timeout_ms, created_at, event_type,
                        schema_version, source, event_time, extensions, data_kind, data, matched, refused, root_id, depth, lineage)
                 SELECT '{}', gen_random_uuid(), 1, 1, now() - interval '1 h' + (ascii('{slug}') || ' s')::interval, 1, now(),
                        'CUSTOM_TESTED', 0, 's', now(), '', 0, '', '{{}}', '{{}}', gen_random_uuid(), 0, '{{}}'
                   FROM generate_series(1, {many})",
                tenant.0
            );
            connection.execute(AssertSqlSafe(sql)).await.expect("they wait");
        }
        let keyring = Arc::new(Keyring::new(vec![("k1".to_owned(), [7; 32])]).expect("a keyring"));
        let registry = Registry::new(database.store.clone(), keyring, Arc::new(Catalogue::builtin()), 100, 100);
        let executor = Executor::new(&executor::Config::default()).expect("an executor");
        let parts = Parts { store: database.store.clone(), registry, executor, feed: Feed::default() };
        let pending = Pending::start(parts, Config::default(), &publish::Config::default());
        // Nothing can be claimed, so whoever is found stays busy.
        connection.execute("BEGIN; LOCK TABLE pending_events IN SHARE MODE").await.expect("locked");
        pending.core.run_due().await.expect("readable");
        assert_eq!(pending.core.busy_with_due().len(), 5);
        connection.execute("ROLLBACK").await.expect("free");
        pending.stop().await;
        database.end().await;
    }
}
