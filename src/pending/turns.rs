//! Whose turn it is: tenants with something due take turns at a bounded number of places, first come, first served.
//!
//! A turn is short, and a tenant with more to do waits for its next one behind all that wait already: nobody waits for more than one
//! turn of each of the others.

use crate::domain::ids::TenantId;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

/// What a turn has left to do of its tenant's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    Nothing,
    /// What the next turn can do.
    More,
    /// What waits until some of what the tenant has on its way has ended.
    Busy,
    /// What there is no room for until some of what anybody has on its way has ended.
    NoRoom,
}

/// A turn that is taken: what has happened since it began.
#[derive(Debug, Default)]
struct Taken {
    /// More was found for the tenant.
    found: bool,
    /// Some of its room is free again.
    freed: bool,
}

/// Tenants in the order in which they came.
#[derive(Debug, Default)]
struct Short {
    came: u64,
    by_time: BTreeMap<u64, TenantId>,
    times: HashMap<TenantId, u64>,
}

impl Short {
    fn insert(&mut self, tenant: TenantId) {
        self.remove(&tenant);
        self.came += 1;
        self.by_time.insert(self.came, tenant);
        self.times.insert(tenant, self.came);
    }

    fn remove(&mut self, tenant: &TenantId) -> bool {
        self.times.remove(tenant).is_some_and(|time| self.by_time.remove(&time).is_some())
    }

    fn first(&self) -> Option<TenantId> {
        self.by_time.first_key_value().map(|(_, tenant)| *tenant)
    }
}

/// The turns at one kind of work.
#[derive(Debug)]
pub(super) struct Turns {
    places: usize,
    waiting: VecDeque<TenantId>,
    /// Those in `waiting`.
    waits: HashSet<TenantId>,
    /// Those that have their turn.
    busy: HashMap<TenantId, Taken>,
    /// Those whose last turn left what waits for their own.
    behind: HashSet<TenantId>,
    /// Those whose last turn had no room, in the order of these turns.
    short: Short,
}

impl Turns {
    /// Takes how many may have their turn at the same time.
    pub fn new(places: usize) -> Self {
        Self {
            places,
            waiting: VecDeque::new(),
            waits: HashSet::new(),
            busy: HashMap::new(),
            behind: HashSet::new(),
            short: Short::default(),
        }
    }

    /// Something was found to do for a tenant: it waits for a turn, where it does not yet.
    pub fn wait(&mut self, tenant: TenantId) {
        if let Some(taken) = self.busy.get_mut(&tenant) {
            taken.found = true;
        } else if self.waits.insert(tenant) {
            self.behind.remove(&tenant);
            self.short.remove(&tenant);
            self.waiting.push_back(tenant);
        }
    }

    /// Some of a tenant's room is free again: it waits for a turn, where its last one left something. So does, before it, whoever has been
    /// without room for longest, since what is free may be what all share.
    pub fn freed(&mut self, tenant: TenantId) {
        if let Some(first) = self.short.first() {
            self.wait(first);
        }
        if let Some(taken) = self.busy.get_mut(&tenant) {
            taken.freed = true;
        } else if self.short.remove(&tenant) || self.behind.remove(&tenant) {
            self.wait(tenant);
        }
    }

    /// Begins the next turn; none where nobody waits, or every place is taken.
    pub fn next(&mut self) -> Option<TenantId> {
        if self.busy.len() >= self.places {
            return None;
        }
        let tenant = self.waiting.pop_front()?;
        self.waits.remove(&tenant);
        self.busy.insert(tenant, Taken::default());
        Some(tenant)
    }

    /// A tenant's turn is over.
    pub fn end(&mut self, tenant: TenantId, left: Left) {
        let taken = self.busy.remove(&tenant).unwrap_or_default();
        match left {
            Left::NoRoom if !taken.freed && !taken.found => self.short.insert(tenant),
            Left::Busy if !taken.freed && !taken.found => drop(self.behind.insert(tenant)),
            Left::Nothing if !taken.found => {}
            _ => self.wait(tenant),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn tenant(n: u128) -> TenantId {
        TenantId(Uuid::from_u128(n))
    }

    fn begun(turns: &mut Turns) -> Vec<u128> {
        std::iter::from_fn(|| turns.next()).map(|tenant| tenant.0.as_u128()).collect()
    }

    #[test]
    fn who_comes_last_waits_for_one_turn_of_each_of_the_others_however_much_they_have() {
        let mut turns = Turns::new(2);
        for n in 1..=3 {
            turns.wait(tenant(n));
        }
        assert_eq!(begun(&mut turns), [1, 2]);
        turns.wait(tenant(4));
        turns.end(tenant(1), Left::More);
        assert_eq!(begun(&mut turns), [3]);
        turns.end(tenant(2), Left::More);
        assert_eq!(begun(&mut turns), [4], "before those that have had a turn");
        turns.end(tenant(4), Left::Nothing);
        turns.end(tenant(3), Left::More);
        assert_eq!(begun(&mut turns), [1, 2]);
    }

    #[test]
    fn a_tenant_waits_once_and_again_after_its_turn_where_more_was_found_meanwhile() {
        let mut turns = Turns::new(2);
        for _ in 0..3 {
            turns.wait(tenant(1));
        }
        assert_eq!(begun(&mut turns), [1]);
        turns.end(tenant(1), Left::Nothing);
        assert_eq!(begun(&mut turns), [0; 0], "nothing is left to do");
        turns.wait(tenant(1));
        assert_eq!(begun(&mut turns), [1]);
        turns.wait(tenant(1));
        assert_eq!(begun(&mut turns), [0; 0], "it has its turn");
        turns.end(tenant(1), Left::Nothing);
        assert_eq!(begun(&mut turns), [1]);
    }

    #[test]
    fn a_tenant_without_room_waits_again_once_some_is_free_or_more_is_found() {
        let mut turns = Turns::new(2);
        turns.freed(tenant(1));
        assert_eq!(begun(&mut turns), [0; 0], "it has nothing to do");
        turns.wait(tenant(1));
        assert_eq!(begun(&mut turns), [1]);
        turns.end(tenant(1), Left::NoRoom);
        assert_eq!(begun(&mut turns), [0; 0]);
        turns.freed(tenant(1));
        assert_eq!(begun(&mut turns), [1]);
        turns.freed(tenant(1));
        turns.end(tenant(1), Left::NoRoom);
        assert_eq!(begun(&mut turns), [1], "it was freed before the turn was over");
        turns.end(tenant(1), Left::NoRoom);
        turns.wait(tenant(1));
        assert_eq!(begun(&mut turns), [1]);
        turns.end(tenant(1), Left::Nothing);
        turns.freed(tenant(1));
        assert_eq!(begun(&mut turns), [0; 0]);
    }

    #[test]
    fn whoever_has_been_without_room_for_longest_has_its_turn_before_the_one_that_leaves_some() {
        let mut turns = Turns::new(2);
        for n in [1, 2, 3] {
            turns.wait(tenant(n));
            assert_eq!(begun(&mut turns), [n]);
            turns.end(tenant(n), Left::NoRoom);
        }
        turns.freed(tenant(3));
        assert_eq!(begun(&mut turns), [1, 3]);
        turns.freed(tenant(3));
        turns.end(tenant(1), Left::NoRoom);
        turns.end(tenant(3), Left::NoRoom);
        assert_eq!(begun(&mut turns), [2, 3]);
        turns.end(tenant(2), Left::Nothing);
        turns.freed(tenant(2));
        assert_eq!(begun(&mut turns), [1]);
    }

    #[test]
    fn a_tenant_that_waits_for_its_own_is_left_alone_by_what_others_free() {
        let mut turns = Turns::new(2);
        turns.wait(tenant(1));
        assert_eq!(begun(&mut turns), [1]);
        turns.end(tenant(1), Left::Busy);
        turns.freed(tenant(2));
        assert_eq!(begun(&mut turns), [0; 0]);
        turns.freed(tenant(1));
        assert_eq!(begun(&mut turns), [1]);
        turns.freed(tenant(1));
        turns.end(tenant(1), Left::Busy);
        assert_eq!(begun(&mut turns), [1], "it was freed before the turn was over");
    }
}
