//! What becomes of an event that is due: it is claimed where there is room for it, and goes into the log or asks its listeners.
//!
//! A delayed event of a type that has no seat left (`seats`) is not claimed. It stays where it is, as one that may be cancelled, and its
//! time to be decided begins when it is claimed and matched.

use super::ask::{Listener, NOT_ACTIVE, undecided};
use super::phase::Phase;
use super::running::Handle;
use super::seats::{Seat, asked_at_once};
use super::turns::Left;
use super::{Core, listeners, put_in_order};
use crate::domain::event::LogEntry;
use crate::domain::event_type::{EventTypeName, Phase as TypePhase};
use crate::domain::ids::{EventId, SubscriptionNo, TenantId};
use crate::domain::places::Place;
use crate::domain::pre::{AbortReason, Aborted, Verdict, VerdictKind};
use crate::publish::PublishError;
use crate::publish::prepare::{phase_of, prepare};
use crate::publish::registry::TenantRegistry;
use crate::store::StoreError;
use crate::store::pending::{NewPending, PendingCommit, PendingEvent, PendingState, WaitsFor};
use crate::telemetry::measured;
use std::collections::HashMap;
use std::sync::Arc;

/// Events that are claimed in one turn of a tenant.
pub(super) const CLAIM_MAX: u32 = 64;
/// How often a turn reads on behind types that are full.
const READS_MAX: u32 = 8;
/// How often an event is matched again because the registry moved on.
const ROUNDS_MAX: u32 = 20;

/// What a claimed event has of this process until it is in the log, or its phase has ended.
pub(super) struct Room {
    _bytes: Place,
    /// None where the type has no listeners to ask, or the event is taken over.
    _seat: Option<(Seat, Option<Place>)>,
    /// Behind what it tells of, since fields are dropped in their order.
    _tells: TellsRoom,
}

/// Says so when there is room again.
struct TellsRoom {
    core: Arc<Core>,
    tenant: TenantId,
    state: PendingState,
}

impl Drop for TellsRoom {
    fn drop(&mut self) {
        self.core.freed.note(self.tenant, self.state);
    }
}

impl Core {
    /// Claims the first of what is due of a tenant, as far as there is room for it: in memory, and of delayed events with their listeners.
    pub(super) async fn claim_due(
        self: &Arc<Self>,
        tenant: TenantId,
        state: PendingState,
    ) -> Result<(Vec<(PendingEvent, Room)>, Left), StoreError> {
        // A phase that runs here goes on, also where its lease could not be renewed in time: only another replica may take it over.
        let mut without: Vec<EventId> =
            self.phases.iter().map(|phase| *phase.key()).filter(|key| key.0 == tenant).map(|key| key.1).collect();
        let (mut full, registry, memory) = match state {
            PendingState::Scheduled => {
                (self.seats.full(tenant), Some(self.registry.tenant(tenant).await?), &self.due_room)
            }
            _ => (Vec::new(), None, &self.taken_over_room),
        };
        let now = self.store.now();
        let (mut rooms, mut fits, mut shared, mut reads) = (HashMap::new(), true, false, 0);
        let more = loop {
            reads += 1;
            let (known, limit) =
                (full.len(), CLAIM_MAX.saturating_sub(u32::try_from(rooms.len()).unwrap_or(CLAIM_MAX)));
            let found = self.store.due_pending(tenant, state, now, &without, &full, limit).await?;
            for due in &found {
                if full.contains(&due.event_type) {
                    continue;
                }
                let seats = registry.as_ref().and_then(|registry| self.seats_of(registry, &due.event_type));
                let is_on_its_way = seats.is_some() && self.seats.has_taken(tenant, &due.event_type);
                let seat = seats.map(|seats| {
                    let seat = self.seats.take(tenant, &due.event_type, seats)?;
                    let place = self.due_places.take(tenant);
                    shared |= place.is_none();
                    // The first of a type waits for no place that others have.
                    (place.is_some() || !is_on_its_way).then_some((seat, place))
                });
                if let Some(None) = seat {
                    full.push(due.event_type.clone());
                    continue;
                }
                let Some(bytes) = memory.take_some_or_first(tenant, due.bytes) else {
                    shared = true;
                    // A listener that takes its time holds up its own type, and others that do not fit beside it. Where none of the type is
                    // on its way, the others behind it wait too: they would keep a large one from ever being the first of its tenant.
                    if is_on_its_way {
                        full.push(due.event_type.clone());
                        continue;
                    }
                    fits = false;
                    break;
                };
                rooms.insert(due.event, (bytes, seat.flatten()));
                without.push(due.event);
            }
            let more = found.len() >= limit as usize;
            // Behind those of a type that has no seat left are others.
            if !fits || !more || full.len() == known || reads == READS_MAX {
                break more;
            }
        };
        let left = if !rooms.is_empty() && (more || !fits) {
            // Once these are on their way there is room again.
            Left::More
        } else if fits && full.is_empty() {
            Left::Nothing
        } else if shared {
            Left::NoRoom
        } else {
            Left::Busy
        };
        if rooms.is_empty() {
            return Ok((Vec::new(), left));
        }
        let events: Vec<EventId> = rooms.keys().copied().collect();
        let claimed = self.store.claim_pending(tenant, state, now, self.lease(), &events).await?;
        let with_room = |row: PendingEvent| {
            let (bytes, seat) = rooms.remove(&row.entry.event.id)?;
            let tells = TellsRoom { core: self.clone(), tenant, state };
            Some((row, Room { _bytes: bytes, _seat: seat, _tells: tells }))
        };
        let claimed: Vec<_> = claimed.into_iter().filter_map(with_room).collect();
        // What another replica is about to claim is not looked at over and over.
        let left = if claimed.is_empty() { Left::Busy } else { left };
        Ok((claimed, left))
    }

    /// How many events of a type may be on their way at the same time; none where it has no listeners to ask.
    fn seats_of(&self, registry: &TenantRegistry, name: &EventTypeName) -> Option<usize> {
        let is_pre = matches!(phase_of(&self.registry, registry, name), Ok(TypePhase::Pre));
        let (_, listeners) = registry.listeners(name);
        listeners.filter(|_| is_pre)?.iter().map(|entry| asked_at_once(&entry.subscription.policy)).min()
    }

    /// Brings one claimed event on its way. What fails now is claimed again when the lease ends.
    pub(super) async fn bring(self: &Arc<Self>, row: PendingEvent, room: Room) {
        let event = row.entry.event.id;
        let done = match row.state {
            PendingState::Gated => self.take_over(row, room).await,
            PendingState::Scheduled => self.publish_due(row, room).await,
            PendingState::Aborted | PendingState::Cancelled => Ok(()),
        };
        if let Err(error) = done {
            tracing::warn!(%event, %error, "a pending event could not be brought on its way; it is tried again");
        }
    }

    /// Goes on with a phase whose owner has gone silent: what is decided stays, who has not answered is asked again.
    ///
    /// Of a delayed event nobody waits for the answer: where its first owner has left none, its time begins anew.
    async fn take_over(self: &Arc<Self>, mut row: PendingEvent, room: Room) -> Result<(), StoreError> {
        let (tenant, event) = (row.tenant, row.entry.event.id);
        let mut verdicts = self.store.pending_verdicts(tenant, event).await?;
        let anew = self.store.now() + row.pre_timeout;
        if row.deliver_at.is_some()
            && verdicts.is_empty()
            && self.store.renew_deadline(tenant, event, row.token, anew).await?
        {
            row.deadline_at = Some(anew);
        }
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
        self.phase(row, listeners, verdicts, attempted, room);
        Ok(())
    }

    /// Asks listeners. `attempted` is what former owners that asked before have written down, where there were any.
    fn phase(
        self: &Arc<Self>,
        row: PendingEvent,
        listeners: Vec<Listener>,
        verdicts: Vec<Verdict>,
        attempted: Option<i32>,
        room: Room,
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
        self.spawn_in(phase, Handle::new(), room);
    }

    /// Publishes a delayed event: matched now, and checked by the schema version it was accepted with, or the latest where it had none.
    async fn publish_due(self: &Arc<Self>, row: PendingEvent, room: Room) -> Result<(), StoreError> {
        for _ in 0..ROUNDS_MAX {
            let registry = self.registry.tenant(row.tenant).await?;
            let event = row.entry.event.clone();
            let version = event.schema_version;
            let prepared = prepare(&self.registry, &registry, event, version, None, Some(self.event_bytes_max)).await;
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
                    self.phase(row, listeners, Vec::new(), None, room);
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
        let Some(place) = self.write_in_turn(tenant, |patience| self.store.commit_pending(&commit, patience)).await?
        else {
            return Ok(false);
        };
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
    use crate::pending::Config;
    use crate::pending::tests::World;
    use sqlx::Executor as _;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_delayed_event_that_is_in_the_log_is_not_looked_for_any_more() {
        let world = World::new().await;
        let tenant = world.database.tenant("acme").await;
        world.wait(tenant, PendingState::Scheduled, 1).await;
        let core = &world.core;
        let (row, room) = core.claim_due(tenant, PendingState::Scheduled).await.expect("claimed").0.remove(0);
        // What waits cannot be read within the wall of a tenant, and is committed outside of it.
        let sql = "CREATE POLICY unreadable ON pending_events AS RESTRICTIVE FOR SELECT USING
                     (1 / CASE WHEN coalesce(current_setting('carillon.tenant', true), '') = '' THEN 1 ELSE 0 END = 1)";
        world.database.connection().await.execute(sql).await.expect("a policy");
        let event = row.entry.event.id;
        core.store.pending_event(tenant, event).await.expect_err("it cannot be read");
        core.publish_due(row, room).await.expect("it is in the log");
        assert!(core.store.event(tenant, event).await.expect("readable").is_some());
        world.end().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_due_behind_many_whose_listener_has_its_hands_full_is_claimed_in_the_same_turn() {
        let world = World::with(Config { lease_ms: 600_000, ..Config::default() }).await;
        let (tenant, scheduled) = (world.database.tenant("acme").await, PendingState::Scheduled);
        world.asks_at_once(tenant, 1).await;
        world.wait(tenant, scheduled, 2 * CLAIM_MAX).await;
        let other = "UPDATE pending_events SET event_type = 'CUSTOM_OTHER', due_at = due_at + interval '1 min'
                      WHERE event_id IN (SELECT event_id FROM pending_events LIMIT $1)";
        let behind = sqlx::query(other).bind(i64::from(CLAIM_MAX) - 1);
        behind.execute(&mut world.database.connection().await).await.expect("they are behind");
        let (held, left) = world.core.claim_due(tenant, scheduled).await.expect("claimed");
        let others = held.iter().filter(|(row, _)| row.entry.event.event_type.as_str() == "CUSTOM_OTHER").count();
        assert_eq!((held.len(), others), (CLAIM_MAX as usize, CLAIM_MAX as usize - 1));
        assert_eq!(left, Left::More, "as many as a turn may claim");
        let (none, left) = world.core.claim_due(tenant, scheduled).await.expect("looked for");
        assert_eq!((none.len(), left), (0, Left::Busy), "its listener is busy");
        drop(held);
        world.end().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn g09_a_type_with_slow_listeners_takes_neither_every_place_nor_all_memory_from_other_types() {
        let config = Config { lease_ms: 600_000, phases_max: 8, due_bytes_max: 2 << 20, ..Config::default() };
        let world = World::with(config).await;
        let (tenant, scheduled) = (world.database.tenant("acme").await, PendingState::Scheduled);
        world.asks_at_once(tenant, 32).await;
        world.wait(tenant, scheduled, 8).await;
        let other = "UPDATE pending_events SET event_type = 'CUSTOM_OTHER', due_at = due_at + interval '1 min'
                      WHERE event_id IN (SELECT event_id FROM pending_events LIMIT 3)";
        world.database.connection().await.execute(other).await.expect("they are behind");
        let claim = async || {
            let (held, left) = world.core.claim_due(tenant, scheduled).await.expect("claimed");
            let others = held.iter().filter(|(row, _)| row.entry.event.event_type.as_str() == "CUSTOM_OTHER").count();
            let counts = (held.len() - others, others, left);
            (held, counts)
        };
        let (held, counts) = claim().await;
        assert_eq!(counts, (2, 3, Left::NoRoom), "half of the places");
        drop(held);
        let again = "UPDATE pending_events SET due_at = now() - interval '1 h'";
        world.database.connection().await.execute(again).await.expect("they are due");
        let others = [world.core.due_places.take(tenant), world.core.due_places.take(tenant)];
        let (held, counts) = claim().await;
        assert_eq!(counts, (1, 3, Left::NoRoom), "the first of a type waits for no place");
        drop((held, others));
        let heavy = "UPDATE pending_events SET due_at = now() - interval '1 h' + CASE event_type WHEN 'CUSTOM_OTHER' THEN interval '1 min'
                            ELSE interval '0' END, data_kind = 2,
                            data = CASE event_type WHEN 'CUSTOM_OTHER' THEN data ELSE convert_to(repeat('x', 400000), 'UTF8') END";
        world.database.connection().await.execute(heavy).await.expect("they are heavy");
        let (held, counts) = claim().await;
        assert_eq!(counts, (1, 3, Left::NoRoom), "half of the memory");
        drop(held);
        world.end().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn g15_no_more_is_claimed_of_what_is_due_than_there_is_room_for_in_memory() {
        let world = World::with(Config { due_bytes_max: 2 << 20, ..Config::default() }).await;
        let (one, other) = (world.database.tenant("a").await, world.database.tenant("b").await);
        let scheduled = PendingState::Scheduled;
        for tenant in [one, other] {
            world.wait(tenant, scheduled, 8).await;
        }
        world.wait(one, PendingState::Gated, 1).await;
        let heavy = "UPDATE pending_events SET data_kind = 2, data = convert_to(repeat('x', 200000), 'UTF8')";
        world.database.connection().await.execute(heavy).await.expect("they are heavy");
        let held = world.core.claim_due(one, scheduled).await.expect("claimed");
        assert_eq!((held.0.len(), held.1), (2, Left::More), "half of the room, and there is more");
        let none = world.core.claim_due(one, scheduled).await.expect("looked for");
        assert_eq!((none.0.len(), none.1), (0, Left::NoRoom), "it has its part");
        let taken_over = world.core.claim_due(one, PendingState::Gated).await.expect("claimed");
        let others = world.core.claim_due(other, scheduled).await.expect("claimed");
        assert_eq!((taken_over.0.len(), others.0.len()), (1, 1), "each finds some");
        drop((held, taken_over, others));
        let held = world.core.due_room.take(one);
        let heavier = "UPDATE pending_events SET data = convert_to(repeat('x', 2000000), 'UTF8'), due_at = now()";
        world.database.connection().await.execute(heavier).await.expect("they are heavier");
        let (alone, left) = world.core.claim_due(other, scheduled).await.expect("claimed");
        assert_eq!((alone.len(), left), (1, Left::More), "one goes whatever it takes, also while others have some");
        drop((alone, held));
        world.end().await;
    }
}
