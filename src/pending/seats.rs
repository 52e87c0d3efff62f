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

/// The seats that are taken. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Seats(Arc<Mutex<HashMap<TenantId, HashMap<EventTypeName, Taken>>>>);

#[derive(Debug)]
struct Taken {
    count: usize,
    /// How many there were when the last one was asked for.
    max: usize,
}

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
        let taken = all.entry(tenant).or_default().entry(event_type.clone()).or_insert(Taken { count: 0, max });
        taken.max = max.max(1);
        if taken.count >= taken.max {
            return None;
        }
        taken.count += 1;
        Some(Seat { seats: self.clone(), tenant, event_type: event_type.clone() })
    }

    /// Whether any is taken.
    pub fn has_taken(&self, tenant: TenantId, event_type: &EventTypeName) -> bool {
        self.all().get(&tenant).is_some_and(|types| types.get(event_type).is_some_and(|taken| taken.count > 0))
    }

    /// The types of a tenant that have no seat left.
    pub fn full(&self, tenant: TenantId) -> Vec<EventTypeName> {
        let all = self.all();
        let full = all.get(&tenant).into_iter().flatten().filter(|(_, taken)| taken.count >= taken.max);
        full.map(|(event_type, _)| event_type.clone()).collect()
    }

    fn all(&self) -> MutexGuard<'_, HashMap<TenantId, HashMap<EventTypeName, Taken>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut all = self.seats.all();
        let Some(types) = all.get_mut(&self.tenant) else { return };
        if let Some(taken) = types.get_mut(&self.event_type) {
            taken.count -= 1;
            if taken.count == 0 {
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
        assert_eq!(seats.full(tenant), std::slice::from_ref(&one));
        assert!(seats.take(tenant, &other, 2).is_some() && seats.take(TenantId(Uuid::nil()), &one, 2).is_some());
        // Its listeners take more now.
        let third = seats.take(tenant, &one, 3);
        assert!(third.is_some());
        drop((held, third));
        assert!(seats.full(tenant).is_empty() && seats.all().is_empty());
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
