//! Which shards this replica owns, wants and gives away. Decides only; the engine asks the store.

use super::Config;
use crate::domain::ids::TenantId;
use crate::store::leases::{SHARDS, ShardLease, shard_of};
use chrono::{DateTime, TimeDelta, Utc};
use std::collections::{HashMap, HashSet};

/// A shard that this replica owns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owned {
    pub token: i64,
    taken_at: DateTime<Utc>,
    /// True once it has been asked to be given back with attempts that may still run: no later asking may say otherwise.
    pub left_unclean: bool,
    /// Set while the shard is given away.
    leaving: Option<Leaving>,
    /// True while what it waits for is slow: what is not waited for goes on meanwhile.
    held_open: bool,
}

#[derive(Debug, Clone, Copy)]
struct Leaving {
    /// From when on nothing new starts, whatever is waited for.
    last_call: DateTime<Utc>,
    /// Until when running attempts are waited for.
    until: DateTime<Utc>,
}

impl Owned {
    fn new(token: i64, taken_at: DateTime<Utc>) -> Self {
        Self { token, taken_at, left_unclean: false, leaving: None, held_open: false }
    }

    pub fn is_leaving(&self) -> bool {
        self.leaving.is_some()
    }

    /// True where nothing of the shard may start any more.
    pub fn is_closed(&self) -> bool {
        self.is_leaving() && !self.held_open
    }

    /// True where it is not waited for any longer: its time is up, or almost, and nothing but slow attempts is left.
    pub fn is_overdue(&self, only_slow: bool, now: DateTime<Utc>) -> bool {
        self.leaving.is_some_and(|leaving| now >= if only_slow { leaving.last_call } else { leaving.until })
    }
}

/// The shards of this replica.
#[derive(Debug, Default)]
pub(super) struct Shards {
    owned: HashMap<i32, Owned>,
    /// Until when attempts may be started.
    lease_until: Option<DateTime<Utc>>,
    taking: bool,
    /// Since when there have been shards that nobody takes.
    free_since: Option<DateTime<Utc>>,
    /// Until when what was taken beyond the share is kept.
    keeps_until: Option<DateTime<Utc>>,
    /// When a shard was last given back: what a pulse asked before that says of ownership is old.
    removed_at: Option<DateTime<Utc>>,
}

/// Pulses for which a shard may be free before it is taken by whoever has its share already: those that miss some come first.
const PATIENCE_PULSES: u64 = 3;
/// How long before a leaving shard's time is up nothing new of it starts, at most: a quarter of that time is the other bound.
const LAST_CALL: TimeDelta = TimeDelta::seconds(3);

/// What a pulse that renewed leases says beyond what is known.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Renewed {
    /// Shards that another replica has taken.
    pub lost: Vec<i32>,
    /// Shards that were taken by a statement whose answer was lost; to be claimed now.
    pub found: Vec<ShardLease>,
}

impl Shards {
    pub fn len(&self) -> usize {
        self.owned.len()
    }

    /// The shard of a tenant, where it is owned.
    pub fn of(&self, tenant: TenantId) -> Option<(i32, &Owned)> {
        let shard = shard_of(tenant);
        self.owned.get(&shard).map(|owned| (shard, owned))
    }

    pub fn get(&self, shard: i32) -> Option<&Owned> {
        self.owned.get(&shard)
    }

    /// True where attempts may be started: nobody else can own the shards yet.
    pub fn is_leased(&self, now: DateTime<Utc>) -> bool {
        self.lease_until.is_some_and(|until| now < until)
    }

    /// How many shards to take now, if any. [`Self::taken`] answers.
    pub fn wanted(&mut self, replicas: i32, free: i32, now: DateTime<Utc>, config: &Config) -> Option<i32> {
        self.free_since = if free == 0 { None } else { self.free_since.or(Some(now)) };
        let since = self.free_since.filter(|_| !self.taking)?;
        let missing = fair_share(replicas) - i32::try_from(self.owned.len()).unwrap_or(i32::MAX);
        if missing <= 0 {
            if now - since < milliseconds(config.poll_ms * PATIENCE_PULSES) {
                return None;
            }
            // A replica that died has its part of the count for as long as its lease, and takes nothing. What is taken in its stead is
            // kept until the count is right: given back at once, it would be taken again.
            self.keeps_until = Some(now + milliseconds(config.lease_ms));
        }
        self.taking = true;
        Some(if missing > 0 { missing } else { free })
    }

    /// Takes note of shards that were taken, asked for at `asked_at`.
    pub fn taken(&mut self, leases: &[ShardLease], now: DateTime<Utc>, lease: TimeDelta) {
        self.taking = false;
        if !leases.is_empty() && self.owned.is_empty() {
            self.lease_until = Some(now + lease);
        }
        for taken in leases {
            let ShardLease { shard, token } = *taken;
            let owned = Owned::new(token, now);
            self.owned.insert(shard, owned);
        }
    }

    /// Starts to give the surplus away, the highest shards first.
    pub fn shed(&mut self, replicas: i32, now: DateTime<Utc>, config: &Config) {
        if self.keeps_until.is_some_and(|until| now < until) {
            return;
        }
        let staying = self.owned.values().filter(|owned| !owned.is_leaving()).count();
        let surplus = staying.saturating_sub(usize::try_from(fair_share(replicas)).unwrap_or(0));
        let mut candidates: Vec<i32> =
            self.owned.iter().filter(|(_, owned)| !owned.is_leaving()).map(|(shard, _)| *shard).collect();
        candidates.sort_unstable_by(|a, b| b.cmp(a));
        candidates.truncate(surplus);
        self.leave(&candidates, now, config);
    }

    /// Starts to give every shard away.
    pub fn leave_all(&mut self, now: DateTime<Utc>, config: &Config) {
        let all: Vec<i32> =
            self.owned.iter().filter(|(_, owned)| !owned.is_leaving()).map(|(shard, _)| *shard).collect();
        self.leave(&all, now, config);
    }

    fn leave(&mut self, shards: &[i32], now: DateTime<Utc>, config: &Config) {
        let wait = milliseconds(config.drain_ms);
        let until = now + wait;
        let leaving = Leaving { last_call: until - LAST_CALL.min(wait / 4), until };
        for shard in shards {
            if let Some(owned) = self.owned.get_mut(shard) {
                owned.leaving = Some(leaving);
            }
        }
    }

    /// Shards that are being given away.
    pub fn leaving(&self) -> impl Iterator<Item = (i32, &Owned)> {
        self.owned.iter().filter(|(_, owned)| owned.is_leaving()).map(|(shard, owned)| (*shard, owned))
    }

    /// Holds the leaving shards open that have slow attempts, and closes the others, as well as those whose time is almost up, so that
    /// little is cut off. Those that have changed.
    pub fn hold_open(&mut self, slow: &HashSet<i32>, now: DateTime<Utc>) -> HashSet<i32> {
        let mut changed = HashSet::new();
        for (shard, owned) in &mut self.owned {
            let open = owned.leaving.is_some_and(|leaving| now < leaving.last_call) && slow.contains(shard);
            if owned.held_open != open {
                owned.held_open = open;
                changed.insert(*shard);
            }
        }
        changed
    }

    /// Takes note of a pulse that renewed leases.
    pub fn renewed(&mut self, renewed: &[(i32, i64)], asked_at: DateTime<Utc>, until: DateTime<Utc>) -> Renewed {
        self.lease_until = Some(until);
        // Ours in the database and not here: the answer to a taking was lost. Not while a taking may still answer, nor by a
        // pulse that may be older than a giving back.
        let sure = !self.taking && self.removed_at.is_none_or(|at| at < asked_at);
        let found: Vec<ShardLease> = renewed
            .iter()
            .filter(|(shard, _)| sure && !self.owned.contains_key(shard))
            .map(|(shard, token)| ShardLease { shard: *shard, token: *token })
            .collect();
        // A shard that was taken after the pulse had begun may be missing in it.
        let lost = |shard: &i32, owned: &Owned| owned.taken_at < asked_at && !renewed.contains(&(*shard, owned.token));
        let lost: Vec<i32> =
            self.owned.iter().filter(|(shard, owned)| lost(shard, owned)).map(|(shard, _)| *shard).collect();
        for shard in &lost {
            self.owned.remove(shard);
        }
        for ShardLease { shard, token } in found.iter().copied() {
            let owned = Owned::new(token, asked_at);
            self.owned.insert(shard, owned);
        }
        Renewed { lost, found }
    }

    /// Takes note that a shard was given back.
    pub fn remove(&mut self, shard: i32, now: DateTime<Utc>) {
        self.owned.remove(&shard);
        self.removed_at = Some(now);
    }

    /// Notes that a shard is given back with attempts that may still run.
    pub fn leave_unclean(&mut self, shard: i32) {
        if let Some(owned) = self.owned.get_mut(&shard) {
            owned.left_unclean = true;
        }
    }
}

fn milliseconds(count: u64) -> TimeDelta {
    TimeDelta::milliseconds(i64::try_from(count).unwrap_or(i64::MAX))
}

/// Shards that one of so many replicas owns, more only where nobody else takes them.
fn fair_share(replicas: i32) -> i32 {
    let replicas = replicas.max(1);
    (SHARDS + replicas - 1) / replicas
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + second, 0).expect("a time")
    }

    fn leases(shards: std::ops::Range<i32>) -> Vec<ShardLease> {
        shards.map(|shard| ShardLease { shard, token: 1 }).collect()
    }

    fn wanted(shards: &mut Shards, replicas: i32, free: i32, second: i64) -> Option<i32> {
        shards.wanted(replicas, free, at(second), &Config::default())
    }

    #[test]
    fn a_lone_replica_takes_everything_and_shares_with_the_next() {
        let mut shards = Shards::default();
        assert_eq!(wanted(&mut shards, 1, 64, 0), Some(64));
        assert_eq!(wanted(&mut shards, 1, 64, 0), None, "one taking at a time");
        shards.taken(&leases(0..64), at(0), TimeDelta::seconds(15));
        assert_eq!(wanted(&mut shards, 1, 0, 0), None);
        shards.shed(2, at(1), &Config::default());
        assert_eq!(shards.leaving().count(), 32);
        shards.shed(2, at(2), &Config::default());
        assert_eq!(shards.leaving().count(), 32, "what leaves already counts");
    }

    #[test]
    fn what_nobody_takes_is_taken_beyond_the_share_and_kept_until_the_dead_are_not_counted() {
        let mut shards = Shards::default();
        assert_eq!(wanted(&mut shards, 2, 64, 0), Some(32));
        shards.taken(&leases(0..32), at(0), TimeDelta::seconds(15));
        assert_eq!(wanted(&mut shards, 2, 10, 1), None, "the other one comes first");
        assert_eq!(wanted(&mut shards, 2, 0, 2), None, "and took them");
        assert_eq!(wanted(&mut shards, 2, 10, 3), None);
        assert_eq!(wanted(&mut shards, 2, 10, 5), None);
        assert_eq!(wanted(&mut shards, 2, 10, 6), Some(10), "nobody did");
        shards.taken(&leases(32..42), at(6), TimeDelta::seconds(15));
        shards.shed(2, at(7), &Config::default());
        assert_eq!(shards.leaving().count(), 0, "given back now it would lie about again");
        shards.shed(1, at(21), &Config::default());
        assert_eq!(shards.leaving().count(), 0, "the other one was dead");
        shards.shed(2, at(22), &Config::default());
        assert_eq!(shards.leaving().count(), 10, "a live one gets its share");
    }

    #[test]
    fn a_leaving_shard_that_waits_for_slow_attempts_is_open_until_its_last_call() {
        let mut shards = Shards::default();
        shards.taken(&leases(0..2), at(0), TimeDelta::seconds(15));
        let slow = HashSet::from([0]);
        assert_eq!(shards.hold_open(&slow, at(0)), HashSet::new(), "nothing leaves");
        shards.leave_all(at(1), &Config { drain_ms: 20_000, ..Config::default() });
        let closed = |shards: &Shards| [0, 1].map(|shard| shards.get(shard).is_some_and(Owned::is_closed));
        assert_eq!(closed(&shards), [true, true]);
        assert_eq!(shards.hold_open(&slow, at(2)), HashSet::from([0]));
        assert_eq!(closed(&shards), [false, true]);
        let overdue = |shards: &Shards, only_slow, second| shards.owned[&0].is_overdue(only_slow, at(second));
        assert!(!overdue(&shards, true, 17));
        assert_eq!(shards.hold_open(&slow, at(18)), HashSet::from([0]), "its time is almost up");
        assert_eq!(closed(&shards), [true, true]);
        assert!(overdue(&shards, true, 18) && !overdue(&shards, false, 20), "what is not slow has the rest of it");
        assert!(overdue(&shards, false, 21));
        shards.hold_open(&slow, at(3));
        assert_eq!(shards.hold_open(&HashSet::new(), at(4)), HashSet::from([0]), "nothing slow is left");
        assert_eq!(closed(&shards), [true, true]);
    }

    #[test]
    fn g6_a_lease_that_was_not_renewed_starts_nothing_and_a_taken_shard_is_lost() {
        let mut shards = Shards::default();
        shards.taken(&leases(0..3), at(0), TimeDelta::seconds(15));
        assert!(shards.is_leased(at(14)));
        assert!(!shards.is_leased(at(15)));
        let early = shards.renewed(&[(0, 1), (1, 2)], at(-1), at(20));
        assert_eq!(early, Renewed::default(), "taken after the pulse began");
        let mut lost = shards.renewed(&[(0, 1), (1, 2)], at(5), at(20)).lost;
        lost.sort_unstable();
        assert_eq!(lost, [1, 2], "another token, or no row");
        assert_eq!(shards.len(), 1);
    }

    #[test]
    fn a_shard_whose_taking_was_not_answered_is_found_by_a_later_pulse() {
        let mut shards = Shards::default();
        assert_eq!(wanted(&mut shards, 64, 64, 0), Some(1));
        assert_eq!(shards.renewed(&[(7, 3)], at(0), at(15)), Renewed::default(), "the answer may still come");
        shards.taken(&[], at(1), TimeDelta::zero());
        let found = shards.renewed(&[(7, 3)], at(5), at(20)).found;
        assert_eq!(found, [ShardLease { shard: 7, token: 3 }]);
        assert_eq!(shards.renewed(&[(7, 3)], at(6), at(21)), Renewed::default(), "once");
        shards.remove(7, at(8));
        assert_eq!(shards.renewed(&[(7, 3)], at(7), at(22)), Renewed::default(), "asked before it was given back");
        assert_eq!(shards.len(), 0);
    }

    #[test]
    fn shares_cover_every_shard() {
        for replicas in 1..=70 {
            assert!(fair_share(replicas) * replicas >= SHARDS);
            assert!(fair_share(replicas) >= 1);
        }
    }
}
