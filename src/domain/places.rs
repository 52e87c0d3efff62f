//! Places that tenants share: a bound on how much of a kind runs at the same time in this process, of which no tenant keeps the others
//! out.
//!
//! A tenant gets another place while it holds fewer than are free. One alone gets half of them, two get a third each, and whoever comes
//! next always finds some. Those who hold more than the present number of tenants leaves them get no more until they are down to that.
//!
//! Source: Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches" (1998), with a factor of 1.

use super::ids::TenantId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The places of a kind. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Places {
    held: Arc<Mutex<Held>>,
    max: usize,
}

#[derive(Debug, Default)]
struct Held {
    all: usize,
    of: HashMap<TenantId, usize>,
}

/// One place; given back when dropped.
#[derive(Debug)]
pub struct Place {
    places: Places,
    tenant: TenantId,
}

impl Places {
    /// Takes how many there are.
    pub fn new(max: usize) -> Self {
        Self { held: Arc::default(), max }
    }

    /// How many there are.
    pub fn max(&self) -> usize {
        self.max
    }

    /// A place for a tenant; none where it holds its part, or where none is left.
    pub fn take(&self, tenant: TenantId) -> Option<Place> {
        let mut held = self.held();
        let own = held.of.get(&tenant).copied().unwrap_or_default();
        if own >= self.max.saturating_sub(held.all) {
            return None;
        }
        held.all += 1;
        held.of.insert(tenant, own + 1);
        Some(Place { places: self.clone(), tenant })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.places.held();
        held.all -= 1;
        if let Some(own) = held.of.get_mut(&self.tenant) {
            *own -= 1;
            if *own == 0 {
                held.of.remove(&self.tenant);
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
    fn a_single_place_can_be_taken() {
        let places = Places::new(1);
        assert_eq!((all(&places, 1).len(), places.max()), (1, 1));
    }
}
