//! What an event that is due needs of this process before it is claimed: room in memory, and where its listeners are asked a seat with
//! them and a place.
//!
//! Every type with something due is looked at by itself, so that what many events of some wait for holds up none of another one. The
//! first of a type of which none is on its way has places of its own, and while there is no memory for it others of the tenant take none.

use super::Core;
use super::admission::active;
use super::seats::{Seat, asked_at_once};
use super::turns::Left;
use crate::domain::event_type::{EventTypeName, Phase as TypePhase};
use crate::domain::ids::{EventId, TenantId};
use crate::domain::places::Place;
use crate::publish::prepare::phase_of;
use crate::publish::registry::TenantRegistry;
use crate::store::StoreError;
use crate::store::pending::{DueEvent, PendingState};
use chrono::{DateTime, Utc};
use std::collections::HashMap;
use std::sync::Arc;

/// Events that are claimed in one turn of a tenant.
pub(super) const CLAIM_MAX: u32 = 64;

/// What an event has of this process until it is in the log, or its phase has ended.
pub(super) struct Room {
    _taken: Taken,
    /// Behind what it tells of, since fields are dropped in their order.
    _tells: Tells,
}

/// What is taken for an event.
pub(super) struct Taken {
    /// Bytes, or one of the places of what is over.
    _bytes: Place,
    /// None where the type has no listeners to ask, or the event is taken over.
    _seat: Option<(Seat, Place)>,
}

/// Says so when there is room again.
struct Tells {
    core: Arc<Core>,
    tenant: TenantId,
    state: PendingState,
}

impl Room {
    /// Of an event that waited in this state.
    pub fn new(taken: Taken, core: Arc<Core>, tenant: TenantId, state: PendingState) -> Self {
        Self { _taken: taken, _tells: Tells { core, tenant, state } }
    }
}

impl Drop for Tells {
    fn drop(&mut self) {
        self.core.freed.note(self.tenant, self.state);
    }
}

/// A type of which something is due.
struct DueType {
    /// How many events of it may be on their way at the same time; none where it has no listeners to ask.
    seats: Option<usize>,
    /// Whether any is.
    is_on_its_way: bool,
    /// How many more may be.
    free: u32,
    /// How many are looked at.
    share: u32,
    /// Of these, how many there were.
    found: u32,
    /// The others of it wait for what somebody has.
    is_short: bool,
}

impl DueType {
    fn new(seats: Option<usize>, is_on_its_way: bool, free: u32) -> Self {
        Self { seats, is_on_its_way, free, share: 0, found: 0, is_short: false }
    }
}

/// Says of how many events of each type a turn looks at: what one leaves is for those with more, and one of each whatever others have.
fn share_out(types: &mut [(EventTypeName, DueType)]) {
    types.sort_by_key(|(_, due)| due.free);
    let (mut left, mut others) = (CLAIM_MAX, u32::try_from(types.len()).unwrap_or(u32::MAX));
    for (_, due) in types {
        due.share = due.free.min((left / others).max(1));
        left = left.saturating_sub(due.share);
        others = others.saturating_sub(1).max(1);
    }
}

impl Core {
    /// The first of the PRE events of a tenant whose owner has gone silent, as many as there is room for, and what is left.
    pub(super) async fn room_for_taken_over(
        &self,
        tenant: TenantId,
        now: DateTime<Utc>,
    ) -> Result<(HashMap<EventId, Taken>, Left), StoreError> {
        // A phase that runs here goes on, also where its lease could not be renewed in time: only another replica may take it over.
        let without: Vec<EventId> =
            self.phases.iter().map(|phase| *phase.key()).filter(|key| key.0 == tenant).map(|key| key.1).collect();
        let registry = self.registry.tenant(tenant).await?;
        let found = self.store.due_gated(tenant, now, &without, CLAIM_MAX).await?;
        let mut rooms = HashMap::new();
        for due in &found {
            // Where the time is up nobody is asked.
            let listeners = active(&registry, &due.event_type);
            let bytes = due.bytes + if due.is_over { 0 } else { self.enrichment_bytes(listeners.iter()) };
            let bytes = self.taken_over_room.take_some_or_first(tenant, bytes);
            // A few that are decided at once need none.
            let over = || self.over_places.take(tenant).filter(|_| due.is_over);
            let Some(bytes) = bytes.or_else(over) else { break };
            rooms.insert(due.event, Taken { _bytes: bytes, _seat: None });
        }
        let (taken, all) = (rooms.len(), found.len());
        let left = if taken > 0 && (taken < all || all == CLAIM_MAX as usize) {
            // Once these are on their way there is room again.
            Left::More
        } else if taken < all {
            Left::NoRoom
        } else {
            Left::Nothing
        };
        Ok((rooms, left))
    }

    /// The first of a tenant's delayed events, as many as there is room for, and what is left.
    pub(super) async fn room_for_delayed(
        &self,
        tenant: TenantId,
        now: DateTime<Utc>,
    ) -> Result<(HashMap<EventId, Taken>, Left), StoreError> {
        let registry = self.registry.tenant(tenant).await?;
        let (mut types, mut busy) = ([Vec::new(), Vec::new()], false);
        for name in self.store.due_types(tenant, now).await? {
            let seats = self.seats_of(&registry, &name);
            let taken = self.seats.taken(tenant, &name);
            match seats.map_or(u32::MAX, |seats| u32::try_from(seats.saturating_sub(taken)).unwrap_or(u32::MAX)) {
                0 => busy = true,
                free => types[usize::from(seats.is_some())].push((name, DueType::new(seats, taken > 0, free))),
            }
        }
        // By themselves, since those with listeners to ask may have to leave theirs.
        for types in &mut types {
            share_out(types);
        }
        let mut types: HashMap<EventTypeName, DueType> = types.into_iter().flatten().collect();
        if types.is_empty() {
            return Ok((HashMap::new(), if busy { Left::Busy } else { Left::Nothing }));
        }
        let wanted: Vec<_> = types.iter().map(|(name, due)| (name.clone(), due.share)).collect();
        let found = self.store.due_of_types(tenant, now, &wanted).await?;
        // One of each type of which none is on its way goes before others of those that have some.
        let (firsts, others): (Vec<&DueEvent>, Vec<&DueEvent>) = found.iter().partition(|due| {
            let of = types.get_mut(&due.event_type);
            of.is_some_and(|of| {
                of.found += 1;
                of.found == 1 && !of.is_on_its_way
            })
        });
        let (mut rooms, mut more, mut short, mut first_waits) = (HashMap::new(), false, false, false);
        let in_turn = firsts.into_iter().map(|due| (due, true)).chain(others.into_iter().map(|due| (due, false)));
        for (due, is_first) in in_turn {
            if rooms.len() == CLAIM_MAX as usize {
                more = true;
                break;
            }
            // They would take what the first of another type waits for.
            if first_waits && !is_first {
                break;
            }
            let Some(of) = types.get_mut(&due.event_type).filter(|of| !of.is_short) else { continue };
            let taken = match of.seats {
                None => Some(None),
                Some(seats) => {
                    let Some(seat) = self.seats.take(tenant, &due.event_type, seats) else { continue };
                    let place = self.due_places.take(tenant);
                    let place = place.or_else(|| if is_first { self.first_places.take(tenant) } else { None });
                    place.map(|place| Some((seat, place)))
                }
            };
            let bytes = due.bytes + self.enrichment_bytes(active(&registry, &due.event_type).iter());
            let taken = taken.and_then(|seat| {
                let bytes = self.due_room.take_some_or_first(tenant, bytes);
                first_waits |= is_first && bytes.is_none();
                Some(Taken { _bytes: bytes?, _seat: seat })
            });
            match taken {
                Some(taken) => drop(rooms.insert(due.event, taken)),
                None => (of.is_short, short) = (true, true),
            }
        }
        for of in types.values().filter(|of| of.found == of.share && !of.is_short) {
            // There may be others behind those that were looked at.
            if of.free > of.share { more = !first_waits } else { busy = true }
        }
        let left = if !rooms.is_empty() && more {
            // Once these are on their way there is room again.
            Left::More
        } else if short {
            Left::NoRoom
        } else if busy {
            Left::Busy
        } else {
            Left::Nothing
        };
        Ok((rooms, left))
    }

    /// How many events of a type may be on their way at the same time; none where it has no listeners to ask.
    fn seats_of(&self, registry: &TenantRegistry, name: &EventTypeName) -> Option<usize> {
        let is_pre = matches!(phase_of(&self.registry, registry, name), Ok(TypePhase::Pre));
        let listeners = active(registry, name);
        listeners.iter().filter(|_| is_pre).map(|entry| asked_at_once(&entry.subscription.policy)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pending::Config;
    use crate::pending::tests::World;
    use crate::store::pending::PendingEvent;
    use crate::store::tests::NAME;
    use sqlx::Executor as _;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_due_behind_many_whose_listener_has_its_hands_full_is_claimed_in_the_same_turn() {
        let world = World::with(Config { lease_ms: 600_000, ..Config::default() }).await;
        let (tenant, scheduled) = (world.database.tenant("acme").await, PendingState::Scheduled);
        world.asks_at_once(tenant, 1).await;
        world.wait(tenant, scheduled, 2 * CLAIM_MAX).await;
        let other = "UPDATE pending_events SET event_type = 'CUSTOM_OTHER', due_at = due_at + interval '1 min'
                      WHERE event_id IN (SELECT event_id FROM pending_events LIMIT $1)";
        let behind = sqlx::query(other).bind(i64::from(CLAIM_MAX));
        behind.execute(&mut world.database.connection().await).await.expect("they are behind");
        let (held, left) = world.core.claim_due(tenant, scheduled).await.expect("claimed");
        let others = held.iter().filter(|(row, _)| row.entry.event.event_type.as_str() == "CUSTOM_OTHER").count();
        assert_eq!((held.len(), others), (CLAIM_MAX as usize, CLAIM_MAX as usize - 1));
        assert_eq!(left, Left::More, "as many as a turn may claim");
        let (last, left) = world.core.claim_due(tenant, scheduled).await.expect("claimed");
        assert_eq!((last.len(), left), (1, Left::Busy), "the last of the others: its listener is busy");
        drop((held, last));
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
    async fn g09_however_many_types_wait_with_however_much_the_others_of_their_tenant_go() {
        let world = World::with(Config { lease_ms: 600_000, phases_max: 64, ..Config::default() }).await;
        let (tenant, scheduled) = (world.database.tenant("acme").await, PendingState::Scheduled);
        let slow: Vec<String> = (0..12).map(|n| format!("CUSTOM_SLOW_{n}")).collect();
        for name in slow.iter().map(String::as_str).chain(["CUSTOM_QUICK"]) {
            world.another_asks_at_once(tenant, name, 32).await;
        }
        world.wait(tenant, scheduled, 12 * 2 * CLAIM_MAX).await;
        let mut database = world.database.connection().await;
        let all_slow = "UPDATE pending_events p SET event_type = 'CUSTOM_SLOW_' || n % 12
                          FROM (SELECT event_id, row_number() OVER () AS n FROM pending_events) AS r WHERE r.event_id = p.event_id";
        database.execute(all_slow).await.expect("they are of twelve types");
        let (first, left) = world.core.claim_due(tenant, scheduled).await.expect("claimed");
        assert_eq!((first.len(), left), (16, Left::NoRoom), "half of the places, and one of each");
        world.wait(tenant, scheduled, 2).await;
        let behind = format!(
            "UPDATE pending_events SET event_type = CASE (SELECT count(*) FROM pending_events o WHERE o.event_type = '{NAME}'
                      AND o.event_id < pending_events.event_id) WHEN 0 THEN 'CUSTOM_QUICK' ELSE event_type END, due_at = now()
              WHERE event_type = '{NAME}'"
        );
        database.execute(sqlx::AssertSqlSafe(behind)).await.expect("they are behind");
        let (others, left) = world.core.claim_due(tenant, scheduled).await.expect("claimed");
        let mut names: Vec<_> = others.iter().map(|(row, _)| row.entry.event.event_type.as_str()).collect();
        names.sort_unstable();
        assert_eq!((names, left), (vec!["CUSTOM_QUICK", NAME], Left::NoRoom));
        drop((first, others));
        world.end().await;
    }

    #[test]
    fn a_turn_looks_at_one_of_each_type_at_least_and_gives_what_some_leave_to_the_others() {
        let shares = |free: &[u32]| {
            let of = |free: &u32| DueType::new(None, false, *free);
            let name = EventTypeName::parse(NAME).expect("a name");
            let mut types: Vec<_> = free.iter().map(|free| (name.clone(), of(free))).collect();
            share_out(&mut types);
            types.iter().map(|(_, due)| due.share).collect::<Vec<_>>()
        };
        assert_eq!(shares(&[]), [0; 0]);
        assert_eq!(shares(&[u32::MAX]), [CLAIM_MAX]);
        assert_eq!(shares(&[u32::MAX, 1, 20]), [1, 20, CLAIM_MAX - 21]);
        assert_eq!(shares(&[u32::MAX; 200]), [1; 200]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn g09_a_large_event_waits_for_what_others_have_in_memory_and_not_for_those_behind_them() {
        let world = World::with(Config { due_bytes_max: 2 << 20, ..Config::default() }).await;
        let (tenant, scheduled) = (world.database.tenant("acme").await, PendingState::Scheduled);
        for name in ["CUSTOM_SLOW", "CUSTOM_LARGE"] {
            world.another_asks_at_once(tenant, name, 32).await;
        }
        let mut database = world.database.connection().await;
        let mut wait = async |name: &str, many, bytes: u32, due: &str| {
            world.wait(tenant, scheduled, many).await;
            let sql = format!(
                "UPDATE pending_events SET event_type = '{name}', data_kind = 2, data = convert_to(repeat('x', {bytes}), 'UTF8'),
                        due_at = now() - interval '{due}' WHERE event_type = '{NAME}'"
            );
            database.execute(sqlx::AssertSqlSafe(sql)).await.expect("they wait");
        };
        let names = |claimed: &(Vec<(PendingEvent, Room)>, Left)| {
            let mut names: Vec<_> = claimed.0.iter().map(|(row, _)| row.entry.event.event_type.to_string()).collect();
            names.sort_unstable();
            (names, claimed.1)
        };
        wait("CUSTOM_SLOW", 5, 200_000, "3 min").await;
        let mut slow = world.core.claim_due(tenant, scheduled).await.expect("claimed");
        assert_eq!(names(&slow).0, ["CUSTOM_SLOW", "CUSTOM_SLOW"], "half of the memory");
        wait("CUSTOM_LARGE", 1, 300_000, "2 min").await;
        wait("CUSTOM_SMALL", 3, 1, "1 min").await;
        let small = world.core.claim_due(tenant, scheduled).await.expect("claimed");
        assert_eq!(
            names(&small),
            (vec!["CUSTOM_SMALL".to_owned()], Left::NoRoom),
            "it fits, and takes no more meanwhile"
        );
        drop((slow.0.pop(), small));
        let large = world.core.claim_due(tenant, scheduled).await.expect("claimed");
        assert_eq!(names(&large).0, ["CUSTOM_LARGE", "CUSTOM_SMALL", "CUSTOM_SMALL"]);
        drop((slow, large));
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
        assert_eq!((held.0.len(), held.1), (2, Left::NoRoom), "half of the room");
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
        assert_eq!((alone.len(), left), (1, Left::NoRoom), "one goes whatever it takes, also while others have some");
        drop((alone, held));
        world.end().await;
    }
}
