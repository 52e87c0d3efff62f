//! How many delayed events of a PRE type this replica takes up at the same time: no more than the slowest ACTIVE listener of the type
//! takes, whether its filter matches them or not.
//!
//! The time of the others to be decided does not begin meanwhile. Other replicas have seats of their own, and publishers need none: what
//! a listener's rate, which is one of all, does not give before the deadline still fails.

use crate::domain::event_type::EventTypeName;
use crate::domain::ids::TenantId;
use crate::domain::retry::{DeliveryPolicy, RateLimit};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many seats are taken. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Seats(Arc<Mutex<HashMap<TenantId, HashMap<EventTypeName, usize>>>>);

/// A seat; given back when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Seats,
    tenant: TenantId,
    event_type: EventTypeName,
}

/// How many questions a listener takes at the same time: those that may be in flight, no more than its rate gives in a second, and one at
/// least.
pub(super) fn asked_at_once(policy: &DeliveryPolicy) -> usize {
    let a_second =
        |limit: RateLimit| u128::from(limit.count().unsigned_abs()) * 1_000 / limit.interval().as_millis().max(1);
    let rate = policy.rate_limit().map_or(usize::MAX, |limit| usize::try_from(a_second(limit)).unwrap_or(usize::MAX));
    usize::try_from(policy.max_in_flight()).unwrap_or_default().min(rate).max(1)
}

impl Seats {
    /// A seat for an event of a type that has so many; none where they are taken.
    pub fn take(&self, tenant: TenantId, event_type: &EventTypeName, max: usize) -> Option<Seat> {
        let mut all = self.all();
        let taken = all.entry(tenant).or_default().entry(event_type.clone()).or_default();
        if *taken >= max {
            return None;
        }
        *taken += 1;
        Some(Seat { seats: self.clone(), tenant, event_type: event_type.clone() })
    }

    /// How many are taken.
    pub fn taken(&self, tenant: TenantId, event_type: &EventTypeName) -> usize {
        self.all().get(&tenant).and_then(|types| types.get(event_type)).copied().unwrap_or_default()
    }

    fn all(&self) -> MutexGuard<'_, HashMap<TenantId, HashMap<EventTypeName, usize>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut all = self.seats.all();
        let Some(types) = all.get_mut(&self.tenant) else { return };
        if let Some(taken) = types.get_mut(&self.event_type) {
            *taken -= 1;
            if *taken == 0 {
                types.remove(&self.event_type);
            }
        }
        if types.is_empty() {
            all.remove(&self.tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use uuid::Uuid;

    #[test]
    fn a_type_has_as_many_seats_as_its_listeners_take_whatever_others_have() {
        let (seats, tenant) = (Seats::default(), TenantId(Uuid::from_u128(1)));
        let [one, other] = ["CUSTOM_ONE", "CUSTOM_OTHER"].map(|name| EventTypeName::parse(name).expect("a name"));
        let held = [seats.take(tenant, &one, 2), seats.take(tenant, &one, 2)];
        assert!(held.iter().all(Option::is_some) && seats.take(tenant, &one, 2).is_none());
        assert_eq!((seats.taken(tenant, &one), seats.taken(tenant, &other)), (2, 0));
        assert!(seats.take(tenant, &other, 2).is_some() && seats.take(TenantId(Uuid::nil()), &one, 2).is_some());
        // Its listeners take more now.
        let third = seats.take(tenant, &one, 3);
        assert!(third.is_some());
        drop((held, third));
        assert!(seats.taken(tenant, &one) == 0 && seats.all().is_empty());
    }

    #[test]
    fn a_listener_takes_what_may_be_in_flight_and_what_its_rate_gives_in_a_second() {
        let policy = DeliveryPolicy::default();
        let limited = |count, interval| {
            let limit = RateLimit::new(count, Duration::from_secs(interval)).expect("a rate");
            asked_at_once(&policy.clone().with_rate_limit(Some(limit)))
        };
        let in_flight = usize::try_from(policy.max_in_flight()).expect("a count");
        assert_eq!(asked_at_once(&policy), in_flight);
        assert_eq!([limited(50, 10), limited(1, 60), limited(1_000, 1)], [5, 1, in_flight]);
    }
}
