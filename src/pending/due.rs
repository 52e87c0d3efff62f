//! What is due: delayed events whose time has come, and PRE events whose owner has gone silent.
//!
//! One timer per replica, set by the pulse to the first time of all and by what is scheduled here. Tenants with something due take turns
//! (`turns`), each in a task of its own: one whose log is locked holds up nobody else, and neither does one with much that is due. PRE
//! events have turns of their own, since somebody waits for them. Whoever claims an event owns it until the lease ends; an event is born
//! by a statement that names the claim's token, so it is born once (`claimed`).

use super::Core;
use super::turns::{Left, Turns};
use crate::domain::ids::TenantId;
use crate::domain::places::{Place, Places};
use crate::store::StoreError;
use crate::store::pending::PendingState;
use chrono::{DateTime, Utc};
use futures::StreamExt as _;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

/// Due events that a look reads, over all tenants. Where there are more, it looks for each tenant by itself.
const LOOK_MAX: u32 = 256;
/// Tenants that are found at a time then.
const FOUND_MAX: u32 = 1_000;
/// Tenants whose due events of one kind are brought on their way at the same time.
const TENANTS_MAX: usize = 64;
/// Claimed events of one kind that are brought on their way at the same time beyond one of each tenant; one tenant alone gets half of them.
const AT_ONCE: usize = 8;
/// After a look that failed, or that found something due; and between two looks for each tenant, at least: these cost something where
/// there are many, however long events of some stay due because their listeners have their hands full.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Between two looks where much is due, at least.
const LOOK_APART: Duration = Duration::from_millis(100);

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
        // Every arm is cancel-safe: signals, channels that keep their values, a timer.
        tokio::select! {
            () = core.stop.cancelled() => return,
            changed = next.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            Some(ended) = due.ended.recv() => due.end(ended),
            () = core.freed.any.notified() => due.free(),
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
    /// Not to look for each tenant by itself before.
    each_from: Instant,
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
    left: Left,
}

/// The tenants of events that were due here and have left it, by what they waited for: there is room for others.
#[derive(Debug, Default)]
pub(super) struct Freed {
    of: Mutex<HashSet<(TenantId, PendingState)>>,
    any: Notify,
}

impl Freed {
    pub fn note(&self, tenant: TenantId, state: PendingState) {
        self.of.lock().unwrap_or_else(PoisonError::into_inner).insert((tenant, state));
        self.any.notify_one();
    }

    fn take(&self) -> HashSet<(TenantId, PendingState)> {
        std::mem::take(&mut *self.of.lock().unwrap_or_else(PoisonError::into_inner))
    }
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
        let now = Instant::now();
        Self { core, kinds, look_from: now, each_from: now, ended, tell }
    }

    /// Lets each tenant that has something due wait for its turn. Answers when to look again.
    async fn look(&mut self) -> Result<Option<DateTime<Utc>>, StoreError> {
        let now = self.core.store.now();
        let first = self.core.store.first_due(now, LOOK_MAX).await?;
        for kind in &mut self.kinds {
            for (tenant, _) in first.iter().filter(|(_, state)| *state == kind.state) {
                kind.turns.wait(*tenant);
            }
        }
        let mut again = LOOK_AGAIN;
        if first.len() >= LOOK_MAX as usize {
            let looked = Instant::now();
            self.look_from = looked + LOOK_APART;
            if self.each_from <= looked {
                self.each_from = looked + LOOK_AGAIN;
                self.look_for_each(now).await?;
            } else {
                again = self.each_from - looked;
            }
        }
        let next = self.core.store.next_pending_due(now).await?;
        // What could not be done by then is found once more.
        let again = (!first.is_empty()).then(|| now + again);
        Ok(next.into_iter().chain(again).min())
    }

    /// Lets each tenant wait for its turn, whatever is due before.
    async fn look_for_each(&mut self, now: DateTime<Utc>) -> Result<(), StoreError> {
        for kind in &mut self.kinds {
            let mut after = TenantId(Uuid::nil());
            loop {
                let found = self.core.store.tenants_with_due(kind.state, now, after, FOUND_MAX).await?;
                for tenant in &found {
                    kind.turns.wait(*tenant);
                }
                match found.last() {
                    Some(last) if found.len() >= FOUND_MAX as usize => after = *last,
                    _ => break,
                }
            }
        }
        Ok(())
    }

    /// Begins turns as long as there are places.
    fn begin(&mut self) {
        for Kind { state, turns, places } in &mut self.kinds {
            while let Some(tenant) = turns.next() {
                // One event at a time, whatever others do, and more where there is room.
                let places: Vec<Place> = std::iter::from_fn(|| places.take(tenant)).collect();
                let turn =
                    Turn { ended: Ended { tenant, state: *state, left: Left::Nothing }, tell: self.tell.clone() };
                self.core.tasks.spawn(self.core.clone().take_turn(turn, places));
            }
        }
    }

    fn end(&mut self, ended: Ended) {
        for kind in self.kinds.iter_mut().filter(|kind| kind.state == ended.state) {
            kind.turns.end(ended.tenant, ended.left);
        }
    }

    fn free(&mut self) {
        for (tenant, state) in self.core.freed.take() {
            self.kinds.iter_mut().filter(|kind| kind.state == state).for_each(|kind| kind.turns.freed(tenant));
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
        match self.claim_due(tenant, state).await {
            Ok((claimed, left)) => {
                turn.ended.left = left;
                let claimed = futures::stream::iter(claimed);
                claimed.for_each_concurrent(places.len() + 1, |(row, room)| self.bring(row, room)).await;
            }
            Err(error) => {
                tracing::warn!(%tenant, %error, "pending events that are due could not be claimed; it is tried again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pending::room::CLAIM_MAX;
    use crate::pending::tests::World;

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
        let before = Instant::now();
        due.look().await.expect("readable");
        assert!(due.each_from >= before + LOOK_AGAIN);
        let waiting = due.kinds.each_mut().map(|kind| std::iter::from_fn(|| kind.turns.next()).collect::<Vec<_>>());
        assert_eq!((&waiting[0], waiting[1].len()), (&vec![asking], 5));
        world.end().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn each_tenant_is_looked_for_again_only_after_a_while() {
        let world = World::new().await;
        let mut due = Due::new(world.core.clone(), TENANTS_MAX);
        let (many, late) = (world.database.tenant("many").await, world.database.tenant("late").await);
        world.wait(many, PendingState::Scheduled, LOOK_MAX).await;
        world.wait(late, PendingState::Scheduled, 1).await;
        // Long enough for whatever this machine does meanwhile.
        due.each_from = Instant::now() + 600 * LOOK_AGAIN;
        due.look().await.expect("readable");
        let waiting = |due: &mut Due| std::iter::from_fn(|| due.kinds[1].turns.next()).collect::<Vec<_>>();
        assert_eq!(waiting(&mut due), [many]);
        due.each_from = Instant::now();
        due.look().await.expect("readable");
        assert_eq!(waiting(&mut due), [late], "the other one has its turn");
        world.end().await;
    }

    /// How many are left of what waits, where each turn is taken to its end, and nothing is looked for again.
    async fn left_by_turns(world: &World, due: &mut Due) -> i64 {
        while let Some(tenant) = due.kinds[1].turns.next() {
            let state = PendingState::Scheduled;
            let (claimed, left) = world.core.claim_due(tenant, state).await.expect("claimed");
            for (row, room) in claimed {
                world.core.bring(row, room).await;
            }
            due.end(Ended { tenant, state, left });
            due.free();
        }
        let left = sqlx::query_scalar("SELECT count(*) FROM pending_events");
        left.fetch_one(&mut world.database.connection().await).await.expect("a count")
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn delayed_events_that_no_listener_matches_follow_each_other_without_another_look() {
        let world = World::new().await;
        let mut due = Due::new(world.core.clone(), TENANTS_MAX);
        let tenant = world.database.tenant("acme").await;
        world.asks_at_once(tenant, 1).await;
        world.wait(tenant, PendingState::Scheduled, 3).await;
        due.look().await.expect("readable");
        assert_eq!(left_by_turns(&world, &mut due).await, 0);
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
        due.each_from = Instant::now();
        due.look().await.expect("readable");
        due.begin();
        let mut turns: Vec<Ended> = Vec::new();
        while turns.iter().filter(|turn| turn.left == Left::Nothing).count() < 6 {
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
}
