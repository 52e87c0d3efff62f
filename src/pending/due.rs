//! What is due: delayed events whose time has come, and PRE events whose owner has gone silent.
//!
//! One timer per replica, set by the pulse to the first time of all and by what is scheduled here. Tenants with something due take turns
//! (`turns`), each in a task of its own: one whose log is locked holds up nobody else, and neither does one with much that is due. PRE
//! events have turns of their own, since somebody waits for them. Whoever claims an event owns it until the lease ends; an event is born
//! by a statement that names the claim's token, so it is born once.

use super::ask::{Listener, NOT_ACTIVE, undecided};
use super::phase::Phase;
use super::running::Handle;
use super::turns::Turns;
use super::{Core, listeners, put_in_order};
use crate::domain::event::LogEntry;
use crate::domain::ids::{EventId, SubscriptionNo, TenantId};
use crate::domain::places::{Place, Places};
use crate::domain::pre::{AbortReason, Aborted, Verdict, VerdictKind};
use crate::publish::PublishError;
use crate::publish::prepare::prepare;
use crate::store::StoreError;
use crate::store::pending::{NewPending, PendingCommit, PendingEvent, PendingState, WaitsFor};
use crate::telemetry::measured;
use chrono::{DateTime, Utc};
use futures::StreamExt as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

/// Events that are claimed in one turn of a tenant.
const CLAIM_MAX: u32 = 64;
/// Due events that a look reads, over all tenants. Where there are more, it looks for each tenant by itself.
const LOOK_MAX: u32 = 256;
/// Tenants that are found at a time then.
const FOUND_MAX: u32 = 1_000;
/// Tenants whose due events of one kind are brought on their way at the same time.
const TENANTS_MAX: usize = 64;
/// Claimed events of one kind that are brought on their way at the same time beyond one of each tenant; one tenant alone gets half of them.
const AT_ONCE: usize = 8;
/// After a look that failed, or that found something due.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Between two looks for each tenant, at least: they cost something where there are many.
const LOOK_APART: Duration = Duration::from_millis(100);
/// How often an event is matched again because the registry moved on.
const ROUNDS_MAX: u32 = 20;

/// Runs until the server stops.
pub(super) async fn run(core: Arc<Core>) {
    let mut next = core.feed.pending_due();
    let mut due = Due::new(core.clone(), TENANTS_MAX);
    loop {
        let due_at = *next.borrow_and_update();
        let soonest = due.look_from;
        let look = async {
            match due_at {
                Some(at) => {
                    let wait = (at - core.store.now()).to_std().unwrap_or_default();
                    sleep_until(soonest.max(Instant::now() + wait)).await;
                }
                None => std::future::pending().await,
            }
        };
        // Every arm is cancel-safe: a signal, channels that keep their values, a timer.
        tokio::select! {
            () = core.stop.cancelled() => return,
            changed = next.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            Some(ended) = due.ended.recv() => due.end(ended),
            () = look => {
                // From here on what is noted counts, and what this look finds beside it.
                core.feed.set_pending_due(None);
                let again = core.store.now() + LOOK_AGAIN;
                match due.look().await {
                    Ok(Some(at)) => core.feed.note_pending_due(at),
                    Ok(None) => {}
                    Err(error) => {
                        tracing::warn!(%error, "pending events that are due could not be looked at; it is tried again");
                        due.look_from = Instant::now() + LOOK_AGAIN;
                        core.feed.note_pending_due(again);
                    }
                }
            }
        }
        due.begin();
    }
}

/// What is known to be due at this replica, and whose turn it is.
struct Due {
    core: Arc<Core>,
    kinds: [Kind; 2],
    /// Not to look before.
    look_from: Instant,
    ended: mpsc::UnboundedReceiver<Ended>,
    tell: mpsc::UnboundedSender<Ended>,
}

/// What waits for the same, and for nothing that waits for something else.
struct Kind {
    state: PendingState,
    turns: Turns,
    places: Places,
}

/// A turn that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ended {
    tenant: TenantId,
    state: PendingState,
    /// Whether it has left something that is due.
    more: bool,
}

/// A tenant's turn; it ends with its task, also where that panics.
struct Turn {
    ended: Ended,
    tell: mpsc::UnboundedSender<Ended>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Nobody listens while the server stops.
        let _ = self.tell.send(self.ended);
    }
}

impl Due {
    /// Takes how many tenants have their turn at the same time.
    fn new(core: Arc<Core>, tenants_max: usize) -> Self {
        let (tell, ended) = mpsc::unbounded_channel();
        let kind = |state| Kind { state, turns: Turns::new(tenants_max), places: Places::new(AT_ONCE) };
        let kinds = [PendingState::Gated, PendingState::Scheduled].map(kind);
        Self { core, kinds, look_from: Instant::now(), ended, tell }
    }

    /// Lets each tenant that has something due wait for its turn. Answers when to look again.
    async fn look(&mut self) -> Result<Option<DateTime<Utc>>, StoreError> {
        let (store, now) = (&self.core.store, self.core.store.now());
        let first = store.first_due(now, LOOK_MAX).await?;
        for kind in &mut self.kinds {
            for (tenant, _) in first.iter().filter(|(_, state)| *state == kind.state) {
                kind.turns.wait(*tenant);
            }
        }
        if first.len() >= LOOK_MAX as usize {
            self.look_from = Instant::now() + LOOK_APART;
            for kind in &mut self.kinds {
                let mut after = TenantId(Uuid::nil());
                loop {
                    let found = store.tenants_with_due(kind.state, now, after, FOUND_MAX).await?;
                    for tenant in &found {
                        kind.turns.wait(*tenant);
                    }
                    match found.last() {
                        Some(last) if found.len() >= FOUND_MAX as usize => after = *last,
                        _ => break,
                    }
                }
            }
        }
        let next = store.next_pending_due(now).await?;
        // What could not be done by then is found once more.
        let again = (!first.is_empty()).then(|| now + LOOK_AGAIN);
        Ok(next.into_iter().chain(again).min())
    }

    /// Begins turns as long as there are places.
    fn begin(&mut self) {
        for Kind { state, turns, places } in &mut self.kinds {
            while let Some(tenant) = turns.next() {
                // One event at a time, whatever others do, and more where there is room.
                let places: Vec<Place> = std::iter::from_fn(|| places.take(tenant)).collect();
                let turn = Turn { ended: Ended { tenant, state: *state, more: false }, tell: self.tell.clone() };
                self.core.tasks.spawn(self.core.clone().take_turn(turn, places));
            }
        }
    }

    fn end(&mut self, ended: Ended) {
        for kind in self.kinds.iter_mut().filter(|kind| kind.state == ended.state) {
            kind.turns.end(ended.tenant, ended.more);
        }
    }
}

impl Core {
    /// Claims the first of what is due of a tenant and brings each event on its way.
    async fn take_turn(self: Arc<Self>, mut turn: Turn, places: Vec<Place>) {
        let Ended { tenant, state, .. } = turn.ended;
        if self.stop.is_cancelled() {
            return;
        }
        // A phase that runs here goes on, also where its lease could not be renewed in time: only another replica may take it over.
        let running: Vec<EventId> =
            self.phases.iter().map(|phase| *phase.key()).filter(|key| key.0 == tenant).map(|key| key.1).collect();
        let (now, lease) = (self.store.now(), self.lease());
        match self.store.claim_pending(tenant, state, now, lease, &running, CLAIM_MAX).await {
            Ok(claimed) => {
                turn.ended.more = claimed.len() >= CLAIM_MAX as usize;
                let claimed = futures::stream::iter(claimed);
                claimed.for_each_concurrent(places.len() + 1, |row| self.bring(row)).await;
            }
            Err(error) => {
                tracing::warn!(%tenant, %error, "pending events that are due could not be claimed; it is tried again");
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
        let mut listeners = listeners(&registry, &row.entry.matched);
        listeners.extend(self.gone_since(&registry, &verdicts).await?);
        put_in_order(&mut listeners);
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
                    waits_for: WaitsFor::Listeners { deadline_at, lease: self.lease() },
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
    use crate::pending::tests::World;
    use sqlx::Executor as _;

    #[tokio::test(flavor = "multi_thread")]
    async fn one_look_finds_every_tenant_with_something_due_however_much_another_one_has() {
        let world = World::new().await;
        let mut due = Due::new(world.core.clone(), TENANTS_MAX);
        for (slug, many) in [("a", 2 * LOOK_MAX), ("b", LOOK_MAX), ("c", 1), ("d", LOOK_MAX), ("e", 1)] {
            let tenant = world.database.tenant(slug).await;
            world.wait(tenant, PendingState::Scheduled, many).await;
        }
        let asking = world.database.tenant("f").await;
        world.wait(asking, PendingState::Gated, 1).await;
        due.look().await.expect("readable");
        let waiting = due.kinds.each_mut().map(|kind| std::iter::from_fn(|| kind.turns.next()).collect::<Vec<_>>());
        assert_eq!((&waiting[0], waiting[1].len()), (&vec![asking], 5));
        world.end().await;
    }

    /// Who comes when all places are taken by tenants with much to do is served before these are done.
    #[tokio::test(flavor = "multi_thread")]
    async fn g9_tenants_with_much_that_is_due_hold_up_neither_one_with_little_nor_what_has_lost_its_owner() {
        let world = World::new().await;
        let mut due = Due::new(world.core.clone(), 2);
        for slug in ["a", "b", "c", "d"] {
            let tenant = world.database.tenant(slug).await;
            world.wait(tenant, PendingState::Scheduled, 3 * CLAIM_MAX).await;
        }
        due.look().await.expect("readable");
        due.begin();
        let late = world.database.tenant("late").await;
        world.wait(late, PendingState::Scheduled, 1).await;
        world.wait(late, PendingState::Gated, 1).await;
        due.look().await.expect("readable");
        due.begin();
        let mut turns: Vec<Ended> = Vec::new();
        while turns.iter().filter(|turn| !turn.more).count() < 6 {
            let ended = due.ended.recv().await.expect("turns are taken");
            turns.push(ended);
            due.end(ended);
            due.begin();
        }
        let place = |state| turns.iter().position(|turn| turn.tenant == late && turn.state == state);
        // Three turns of each of the four with something to do, and one without.
        assert_eq!(turns.len(), 4 * 4 + 2, "{turns:?}");
        assert!(place(PendingState::Gated) < Some(4) && place(PendingState::Scheduled) < Some(8), "{turns:?}");
        let mut connection = world.database.connection().await;
        let left = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM pending_events");
        assert_eq!(left.fetch_one(&mut connection).await.expect("a count"), 0, "all are in the log");
        world.end().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_delayed_event_that_is_in_the_log_is_not_looked_for_any_more() {
        let world = World::new().await;
        let tenant = world.database.tenant("acme").await;
        world.wait(tenant, PendingState::Scheduled, 1).await;
        let (core, now) = (&world.core, world.core.store.now());
        let claimed = core.store.claim_pending(tenant, PendingState::Scheduled, now, core.lease(), &[], 1).await;
        let row = claimed.expect("claimed").remove(0);
        // What waits cannot be read within the wall of a tenant, and is committed outside of it.
        let sql = "CREATE POLICY unreadable ON pending_events AS RESTRICTIVE FOR SELECT USING
                     (1 / CASE WHEN coalesce(current_setting('carillon.tenant', true), '') = '' THEN 1 ELSE 0 END = 1)";
        world.database.connection().await.execute(sql).await.expect("a policy");
        let event = row.entry.event.id;
        core.store.pending_event(tenant, event).await.expect_err("it cannot be read");
        core.publish_due(row).await.expect("it is in the log");
        assert!(core.store.event(tenant, event).await.expect("readable").is_some());
        world.end().await;
    }
}
