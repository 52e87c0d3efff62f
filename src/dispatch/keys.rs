//! Invocations that wait in memory in the order of their keys: of each key one runs, and the next waits for its success.
//!
//! Pure. What waits behind one that failed does not stay here: the whole key leaves memory, and comes back from the database in
//! order. It must never hand out an invocation while another one of its key runs.

use super::queue::Job;
use crate::domain::filter::OrderingKey;
use std::collections::{HashMap, VecDeque};

/// Invocations of one key that wait in memory before further ones are left in the database, so that one busy key does not take
/// the room of the others.
pub(super) const CHAIN_MAX: usize = 64;

/// What waits, by key.
#[derive(Debug, Default)]
pub(super) struct Chains {
    by_key: HashMap<OrderingKey, Chain>,
    /// Keys that may have one to start, in turn. May name one that has not any more.
    startable: VecDeque<OrderingKey>,
    waiting: usize,
}

/// One key.
#[derive(Debug, Default)]
struct Chain {
    running: bool,
    /// In the order of their positions.
    jobs: VecDeque<Job>,
}

impl Chains {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting
    }

    /// True where one can start now.
    pub fn can_start(&self) -> bool {
        self.startable.iter().any(|key| self.by_key.get(key).is_some_and(Chain::can_start))
    }

    /// True where further invocations of the key are to be left in the database.
    pub fn is_full(&self, key: OrderingKey) -> bool {
        self.by_key.get(&key).is_some_and(|chain| chain.jobs.len() >= CHAIN_MAX)
    }

    /// The keys that are full.
    pub fn full(&self) -> Vec<OrderingKey> {
        let full = self.by_key.iter().filter(|(_, chain)| chain.jobs.len() >= CHAIN_MAX);
        full.map(|(key, _)| *key).collect()
    }

    /// Adds one at its place.
    pub fn push(&mut self, key: OrderingKey, job: Job) {
        let chain = self.by_key.entry(key).or_default();
        let place = chain.jobs.partition_point(|other| other.place.position < job.place.position);
        chain.jobs.insert(place, job);
        self.waiting += 1;
        if !chain.running && chain.jobs.len() == 1 {
            self.startable.push_back(key);
        }
    }

    /// The next one to start. Its key is held until [`Self::succeeded`] or [`Self::evict`].
    pub fn pop(&mut self) -> Option<Job> {
        while let Some(key) = self.startable.pop_front() {
            let Some(chain) = self.by_key.get_mut(&key).filter(|chain| chain.can_start()) else { continue };
            let Some(job) = chain.jobs.pop_front() else { continue };
            chain.running = true;
            self.waiting -= 1;
            return Some(job);
        }
        None
    }

    /// The one of this key that ran has succeeded. True where the key has just left the bound.
    pub fn succeeded(&mut self, key: OrderingKey) -> bool {
        let Some(chain) = self.by_key.get_mut(&key) else { return false };
        chain.running = false;
        if chain.jobs.is_empty() {
            self.by_key.remove(&key);
            return false;
        }
        self.startable.push_back(key);
        chain.jobs.len() == CHAIN_MAX / 2
    }

    /// The one of this key that ran has not succeeded: everything behind it leaves.
    pub fn evict(&mut self, key: OrderingKey) -> VecDeque<Job> {
        let jobs = self.by_key.remove(&key).map(|chain| chain.jobs).unwrap_or_default();
        self.waiting -= jobs.len();
        jobs
    }

    /// Everything that waits leaves; what runs goes on to hold its key.
    pub fn evict_waiting(&mut self) -> Vec<(OrderingKey, Job)> {
        let mut gone = Vec::with_capacity(self.waiting);
        for (key, chain) in &mut self.by_key {
            gone.extend(chain.jobs.drain(..).map(|job| (*key, job)));
        }
        self.by_key.retain(|_, chain| chain.running);
        self.startable.clear();
        self.waiting = 0;
        gone
    }

    /// What waits, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Job> {
        self.by_key.values().flat_map(|chain| &chain.jobs)
    }

    /// Drops what `keep` refuses.
    pub fn retain(&mut self, mut keep: impl FnMut(&Job) -> bool) {
        let mut waiting = 0;
        for chain in self.by_key.values_mut() {
            chain.jobs.retain(&mut keep);
            waiting += chain.jobs.len();
        }
        self.by_key.retain(|_, chain| chain.running || !chain.jobs.is_empty());
        self.waiting = waiting;
    }
}

impl Chain {
    fn can_start(&self) -> bool {
        !self.running && !self.jobs.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::tenant::fixture::job;
    use uuid::Uuid;

    fn key(number: u128) -> OrderingKey {
        OrderingKey(Uuid::from_u128(number))
    }

    fn positions(jobs: impl IntoIterator<Item = Job>) -> Vec<i64> {
        jobs.into_iter().map(|job| job.place.position).collect()
    }

    #[test]
    fn one_of_a_key_runs_at_a_time_and_keys_run_in_parallel() {
        let mut chains = Chains::default();
        for (number, position) in [(1, 1), (1, 2), (2, 3), (1, 4)] {
            chains.push(key(number), job(position));
        }
        assert_eq!(positions([chains.pop(), chains.pop()].into_iter().flatten()), [1, 3]);
        assert!(chains.pop().is_none() && !chains.can_start() && chains.len() == 2);
        chains.succeeded(key(1));
        assert_eq!(positions(chains.pop()), [2]);
        chains.succeeded(key(1));
        chains.succeeded(key(2));
        assert_eq!(positions(chains.pop()), [4]);
        chains.succeeded(key(1));
        assert_eq!((chains.len(), chains.by_key.len()), (0, 0), "an idle key costs nothing");
    }

    #[test]
    fn what_comes_back_late_takes_its_place_by_position() {
        let mut chains = Chains::default();
        for position in [5, 2, 9, 3] {
            chains.push(key(1), job(position));
        }
        let mut order = Vec::new();
        while let Some(next) = chains.pop() {
            order.extend(positions([next]));
            chains.succeeded(key(1));
        }
        assert_eq!(order, [2, 3, 5, 9]);
    }

    #[test]
    fn a_failure_takes_its_whole_key_out_of_memory_and_no_other() {
        let mut chains = Chains::default();
        for (number, position) in [(1, 1), (1, 2), (1, 3), (2, 4)] {
            chains.push(key(number), job(position));
        }
        assert_eq!(positions(chains.pop()), [1]);
        assert_eq!(positions(chains.evict(key(1))), [2, 3]);
        assert_eq!((positions(chains.pop()), chains.len()), (vec![4], 0));
    }

    #[test]
    fn what_runs_holds_its_key_while_everything_that_waits_leaves() {
        let mut chains = Chains::default();
        for position in [1, 2, 3] {
            chains.push(key(1), job(position));
        }
        assert_eq!(positions(chains.pop()), [1]);
        assert_eq!(chains.evict_waiting().len(), 2);
        chains.push(key(1), job(2));
        assert!(chains.pop().is_none(), "the first one runs still");
        chains.succeeded(key(1));
        assert_eq!(positions(chains.pop()), [2]);
    }

    #[test]
    fn what_is_dropped_does_not_stop_what_is_behind_it() {
        let mut chains = Chains::default();
        for position in [1, 2, 3] {
            chains.push(key(1), job(position));
        }
        chains.retain(|job| job.place.position != 1);
        assert_eq!((chains.len(), positions(chains.pop())), (2, vec![2]));
        chains.retain(|_| false);
        chains.succeeded(key(1));
        assert!(chains.pop().is_none() && chains.by_key.is_empty());
    }

    #[test]
    fn a_key_that_is_full_says_so_until_it_has_drained_to_half() {
        let mut chains = Chains::default();
        for position in 0..CHAIN_MAX {
            assert!(!chains.is_full(key(1)));
            chains.push(key(1), job(i64::try_from(position).expect("small")));
        }
        assert_eq!((chains.is_full(key(1)), chains.full()), (true, vec![key(1)]));
        let mut drained_at = None;
        while chains.pop().is_some() {
            if chains.succeeded(key(1)) {
                drained_at = Some(chains.len());
            }
        }
        assert_eq!(drained_at, Some(CHAIN_MAX / 2));
    }
}
