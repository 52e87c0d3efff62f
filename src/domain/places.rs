//! Places that tenants share: a bound on how much of a kind runs at the same time in this process, or on the bytes that are kept for it, of
//! which no tenant keeps the others out.
//!
//! A tenant gets another place where it then holds no more than it leaves free. One alone gets half of them, two get a third each, and whoever comes
//! next always finds some. Those who hold more than the present number of tenants leaves them get no more until they are down to that.
//!
//! Source: Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches" (1998), with a factor of 1.

use super::ids::TenantId;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The places of a kind, and who shares them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Places<S = TenantId> {
    held: Arc<Mutex<Held<S>>>,
    max: usize,
}

#[derive(Debug)]
struct Held<S> {
    /// Without what is owed.
    all: usize,
    owed: usize,
    of: HashMap<S, usize>,
}

/// A place, or several; given back when dropped.
#[derive(Debug)]
pub struct Place<S: Copy + Eq + Hash = TenantId> {
    places: Places<S>,
    sharer: S,
    count: usize,
    /// Whether others may have as many meanwhile.
    is_owed: bool,
}

impl<S: Copy + Eq + Hash> Places<S> {
    /// Takes how many there are.
    pub fn new(max: usize) -> Self {
        Self { held: Arc::new(Mutex::new(Held { all: 0, owed: 0, of: HashMap::new() })), max }
    }

    /// How many there are.
    pub fn max(&self) -> usize {
        self.max
    }

    /// A place for a tenant; none where it holds its part, or where none is left.
    pub fn take(&self, sharer: S) -> Option<Place<S>> {
        self.take_some(sharer, 1)
    }

    /// So many places for a tenant, all or none. More than the part of one are given while nobody holds any.
    pub fn take_some(&self, sharer: S, count: usize) -> Option<Place<S>> {
        self.give(sharer, count, false)
    }

    /// As [`Self::take_some`], but a tenant that holds none gets so many while any is left: it waits for no others to hold less. All that
    /// are taken together, without what is owed, are then more than there are by those of one call at most.
    pub fn take_some_or_first(&self, sharer: S, count: usize) -> Option<Place<S>> {
        self.give(sharer, count, true)
    }

    /// So many places whether or not they are left, for what cannot be refused any more. They fill the part of their tenant, and take
    /// nothing from others.
    pub fn take_owed(&self, sharer: S, count: usize) -> Place<S> {
        let mut held = self.held();
        held.owed += count;
        *held.of.entry(sharer).or_default() += count;
        Place { places: self.clone(), sharer, count, is_owed: true }
    }

    /// True where a tenant holds its part of what is left by all, with what is owed; one that holds none never does.
    pub fn is_full(&self, sharer: S) -> bool {
        let held = self.held();
        held.of.get(&sharer).is_some_and(|own| *own >= self.max.saturating_sub(held.all + held.owed))
    }

    fn give(&self, sharer: S, count: usize, or_first: bool) -> Option<Place<S>> {
        let mut held = self.held();
        let own = held.of.get(&sharer).copied().unwrap_or_default() + count;
        let all = held.all + count;
        // The last single place is for whoever has none.
        let last = own == 1 && all == self.max;
        let first = or_first && own == count && held.all < self.max;
        let is_alone = held.all == 0 && own == count;
        if own > self.max.saturating_sub(all) && !is_alone && !last && !first {
            return None;
        }
        held.all = all;
        held.of.insert(sharer, own);
        Some(Place { places: self.clone(), sharer, count, is_owed: false })
    }

    fn held(&self) -> MutexGuard<'_, Held<S>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Copy + Eq + Hash> Drop for Place<S> {
    fn drop(&mut self) {
        let mut held = self.places.held();
        if self.is_owed {
            held.owed -= self.count;
        } else {
            held.all -= self.count;
        }
        if let Some(own) = held.of.get_mut(&self.sharer) {
            *own -= self.count;
            if *own == 0 {
                held.of.remove(&self.sharer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn all(places: &Places, tenant: u128) -> Vec<Place> {
        std::iter::from_fn(|| places.take(TenantId(Uuid::from_u128(tenant)))).collect()
    }

    #[test]
    fn a_tenant_alone_gets_half_and_who_comes_next_always_finds_some() {
        let places = Places::new(16);
        let first = all(&places, 1);
        assert_eq!(first.len(), 8);
        let (second, third) = (all(&places, 2), all(&places, 3));
        assert_eq!((second.len(), third.len()), (4, 2));
        assert_eq!(all(&places, 1).len(), 0);
        drop((first, second, third));
        assert!(places.held().of.is_empty());
        assert_eq!(places.held().all, 0);
        assert_eq!(all(&places, 2).len(), 8);
    }

    #[test]
    fn tenants_that_always_want_more_come_to_equal_parts() {
        let places = Places::new(100);
        let mut held: Vec<Vec<Place>> = (0..4).map(|tenant| all(&places, tenant)).collect();
        for _ in 0..100 {
            for (tenant, own) in (0..).zip(&mut held) {
                drop(own.pop());
                own.extend(all(&places, tenant));
            }
        }
        let shares: Vec<usize> = held.iter().map(Vec::len).collect();
        assert!(shares.iter().all(|share| (18..=22).contains(share)), "{shares:?}");
    }

    #[test]
    fn many_places_are_taken_at_once_and_more_than_there_are_while_nobody_holds_any() {
        let places = Places::new(100);
        let (first, second) = (TenantId(Uuid::from_u128(1)), TenantId(Uuid::from_u128(2)));
        let whole = places.take_some(first, 1_000).expect("alone there is room for any");
        assert!(places.take(second).is_none());
        drop(whole);
        let held = (places.take_some(first, 40), places.take_some(first, 10), places.take_some(second, 30));
        assert!(held.0.is_some() && held.1.is_some() && held.2.is_none());
        assert!(places.take(first).is_none(), "it would hold more than it leaves");
        assert!(places.take_some(second, 25).is_some());
        drop(held);
        assert_eq!(places.held().all, 0);
    }

    #[test]
    fn who_holds_none_gets_its_first_while_any_is_left_whatever_it_takes() {
        let places = Places::new(100);
        let [first, second, third] = [1, 2, 3].map(|tenant| TenantId(Uuid::from_u128(tenant)));
        let held = places.take(first);
        assert!(places.take_some(second, 60).is_none(), "more than it would leave");
        let large = places.take_some_or_first(second, 60);
        assert!(held.is_some() && large.is_some());
        assert!(places.take_some_or_first(second, 30).is_none(), "only its first");
        let larger = places.take_some_or_first(third, 1_000);
        assert!(larger.is_some() && places.take_some_or_first(TenantId(Uuid::nil()), 1).is_none(), "none is left");
        drop((larger, large));
        assert!(places.take_some_or_first(third, 1_000).is_some());
    }

    #[test]
    fn what_is_owed_is_taken_whatever_is_left_and_fills_the_part_of_its_tenant_alone() {
        let places = Places::new(100);
        let (first, second) = (TenantId(Uuid::from_u128(1)), TenantId(Uuid::from_u128(2)));
        let some = places.take_owed(first, 40);
        assert!(!places.is_full(first));
        let owed = places.take_owed(first, 200);
        assert!(places.is_full(first) && !places.is_full(second));
        assert!(places.take(first).is_none() && places.take(second).is_some());
        drop(owed);
        assert!(!places.is_full(first));
        drop(some);
        assert_eq!(places.held().all, 0);
    }

    #[test]
    fn a_single_place_can_be_taken() {
        let places = Places::new(1);
        assert_eq!((all(&places, 1).len(), places.max()), (1, 1));
    }
}
