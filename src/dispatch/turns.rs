//! Whose turn it is: tenants by deficit round-robin.
//!
//! Pure. Each round gives a tenant the same budget; an attempt costs the more the larger its event is. What a tenant overdraws, its next
//! round pays. However much one has waiting, the others get their turn after one budget of it.
//!
//! A tenant that has as much in flight as is left for the others gives up its turn, and gets it again once more is left: those with
//! the least in flight first.

use crate::domain::ids::TenantId;
use std::collections::{BTreeSet, HashMap, VecDeque};

/// What a round gives.
const BUDGET: i64 = 16;
/// Bytes that cost as much as an attempt itself.
const BYTES_PER_UNIT: usize = 16 * 1024;

/// What an attempt costs.
pub(super) fn cost(bytes: usize) -> i64 {
    1 + i64::try_from(bytes / BYTES_PER_UNIT).unwrap_or(i64::MAX / 2)
}

/// The tenants that may have something to start.
#[derive(Debug, Default)]
pub(super) struct Turns {
    queue: VecDeque<TenantId>,
    /// What those in the queue have left over, or owe.
    balances: HashMap<TenantId, i64>,
    /// Those that wait for room, by what they had in flight; some may be in the queue again.
    crowded: BTreeSet<(usize, TenantId)>,
    in_flight: HashMap<TenantId, usize>,
}

impl Turns {
    /// Adds a tenant at the end. Once: the caller keeps track.
    pub fn add(&mut self, tenant: TenantId) {
        self.queue.push_back(tenant);
    }

    /// The next tenant where so many attempts may still start, and what it may spend; nothing to spend means that it pays what it owes.
    pub fn next(&mut self, free: usize) -> Option<(TenantId, i64)> {
        let has_room = || self.crowded.first().filter(|(in_flight, _)| *in_flight < free).map(|(_, tenant)| *tenant);
        let tenant = self.queue.pop_front().or_else(has_room)?;
        if let Some(in_flight) = self.in_flight.remove(&tenant) {
            self.crowded.remove(&(in_flight, tenant));
        }
        let balance = self.balances.remove(&tenant).unwrap_or(0) + BUDGET;
        Some((tenant, balance))
    }

    /// A tenant has something to start, and waits until more may start than it has in flight.
    pub fn crowded(&mut self, tenant: TenantId, in_flight: usize) {
        self.in_flight.insert(tenant, in_flight);
        self.crowded.insert((in_flight, tenant));
    }

    /// A tenant that has more to start goes to the end, with what is left of its budget.
    pub fn again(&mut self, tenant: TenantId, left: i64) {
        // What was not spent is not saved up: there was more to start than a round allows, or it waited for something else.
        if left < 0 {
            self.balances.insert(tenant, left);
        }
        self.queue.push_back(tenant);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    /// Serves so many units in all; returns what each tenant got. Each has endless work of one cost.
    fn serve(costs: &[i64], units: i64) -> Vec<i64> {
        let id = |index: usize| TenantId(Uuid::from_u128(index as u128));
        let mut turns = Turns::default();
        (0..costs.len()).for_each(|index| turns.add(id(index)));
        let mut got = vec![0; costs.len()];
        while got.iter().sum::<i64>() < units {
            let (tenant, budget) = turns.next(1).expect("all of them wait");
            let index = usize::try_from(tenant.0.as_u128()).expect("small");
            let mut left = budget;
            while left > 0 {
                left -= costs[index];
                got[index] += costs[index];
            }
            turns.again(tenant, left);
        }
        got
    }

    #[test]
    fn everyone_gets_the_same_whatever_an_attempt_costs() {
        let got = serve(&[1, 3, 40], 48_000);
        let fair = 16_000;
        assert!(got.iter().all(|units| (units - fair).abs() <= 80), "{got:?}");
    }

    #[test]
    fn a_tenant_with_endless_work_keeps_another_waiting_for_one_budget() {
        let mut turns = Turns::default();
        let [hog, other] = [1, 2].map(|id| TenantId(Uuid::from_u128(id)));
        turns.add(hog);
        let (first, budget) = turns.next(1).expect("it waits");
        assert_eq!((first, budget), (hog, BUDGET));
        turns.add(other);
        turns.again(hog, 0);
        assert_eq!(turns.next(1), Some((other, BUDGET)));
    }

    #[test]
    fn who_waits_for_room_gets_its_turn_when_there_is_more_of_it_and_no_second_one() {
        let mut turns = Turns::default();
        let [most, least, other] = [1, 2, 3].map(|id| TenantId(Uuid::from_u128(id)));
        turns.crowded(most, 4);
        turns.crowded(least, 2);
        assert_eq!(turns.next(2), None, "no more than it has");
        turns.add(other);
        let order = [4, 4, 4].map(|free| turns.next(free).map(|(tenant, _)| tenant));
        assert_eq!(order, [Some(other), Some(least), None]);
        // Its own attempts have brought it back meanwhile.
        turns.add(most);
        assert_eq!(turns.next(4), Some((most, BUDGET)));
        assert_eq!(turns.next(100), None);
    }

    #[test]
    fn large_events_cost_more() {
        assert_eq!((cost(0), cost(16 * 1024), cost(1024 * 1024)), (1, 2, 65));
    }
}
