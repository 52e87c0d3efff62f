//! What waits for one subscription: the queue in memory, and what is known of its rows in `deferred_invocations`.
//!
//! A row that is in memory is held: it is not loaded again until the settle that ends it is written, and not by a load that
//! began before that either.

use super::keys::Chains;
use super::run::Rest;
use crate::domain::bucket::Bucket;
use crate::domain::filter::OrderingKey;
use crate::domain::health::{Gate, Health, Verdict};
use crate::domain::ids::{Position, SubscriptionNo};
use crate::domain::invocation::Outcome;
use crate::domain::memory::{Kept, Memory};
use crate::domain::retry::DeliveryPolicy;
use crate::executor::EncodedEvent;
use crate::store::dispatch::Place;
use crate::store::rates::Rate;
use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

/// Shortest wait of a subscription that must wait: tokens gather meanwhile.
const RESUME_AFTER: TimeDelta = TimeDelta::milliseconds(5);

/// What an invocation costs in memory beside its event, bytes.
pub(super) const JOB_BYTES: usize = 256;

/// An invocation that waits or runs.
#[derive(Debug)]
pub(super) struct Job {
    pub event: Arc<EncodedEvent>,
    pub place: Place,
    pub day: NaiveDate,
    /// True where it holds its event's slot in the window; false where it has a row in `deferred_invocations`.
    pub in_window: bool,
    /// Number of the last attempt.
    pub attempt: i32,
    /// Number of the last attempt that does not count towards the limit.
    pub base: i32,
    /// What it costs in memory itself; its event counts once, however many invocations share it.
    #[expect(dead_code, reason = "it counts until the job is dropped")]
    pub kept: Kept,
    /// What it is in order with.
    pub key: Option<OrderingKey>,
}

/// What waits for one subscription.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub jobs: VecDeque<Job>,
    /// Those that have an ordering key.
    pub chains: Chains,
    /// Changes with an ordering key that are not written yet.
    pub unwritten: usize,
    /// True where rows with an ordering key are in the database that no due time leads to: they wait for another one.
    pub parked: bool,
    /// True where some of these come after what is known of the log.
    pub waits_for_log: bool,
    /// How far a replay had come as of the last load of rows: what is in order beyond it waits in the database.
    replayed: Option<Position>,
    /// The registry version of the subscription for which replays were last looked for.
    version: i64,
    /// Reloads of the registry that had begun when the last job arrived.
    pub arrived: u64,
    /// Attempts that run.
    pub running: u32,
    /// Those that have run for long.
    pub slow: u32,
    /// True while it is in the tenant's list of those that may start something.
    pub ready: bool,
    /// True while further work is put aside because earlier work is.
    pub aside: bool,
    /// How its receiver does.
    pub health: Health,
    bucket: Bucket,
    /// When it is offered again, where it must not start anything before.
    pub resume_at: Option<DateTime<Utc>>,
    /// The policy it last ran with.
    pub policy: DeliveryPolicy,
    /// Positions of rows that are in memory here.
    pub held: HashSet<Position>,
    /// Positions of these that were held when callers' changes were last looked at.
    pub reviewed: HashSet<Position>,
    /// When the first row that is not held is due.
    pub next_due: Option<DateTime<Utc>>,
    /// The key behind which the next load goes on, where the last one has not met all of them.
    pub after: Option<OrderingKey>,
    /// Rows that are in no order and were due before this time are held.
    pub looked: DateTime<Utc>,
    /// A load that failed is not tried again before this time.
    not_before: DateTime<Utc>,
    pub loading: bool,
    /// Held positions that ended while rows were being loaded: the load may still have seen them.
    ended_meanwhile: HashSet<Position>,
    /// Rows that became due while rows were being loaded: the load may not have seen them.
    due_meanwhile: Option<DateTime<Utc>>,
    /// Keys that left memory while rows were being loaded: what the load brings of them is not the first of its key any more.
    left_meanwhile: HashSet<OrderingKey>,
}

/// What happened while rows were being loaded.
#[derive(Debug)]
pub(super) struct Meanwhile {
    /// Positions that ended, or left memory.
    pub ended: HashSet<Position>,
    /// Keys that left memory.
    pub left: HashSet<OrderingKey>,
    /// The first due time that the load does not answer.
    pub due_at: Option<DateTime<Utc>>,
}

impl Queue {
    /// How many wait in memory.
    pub fn waiting(&self) -> usize {
        self.jobs.len() + self.chains.len()
    }

    /// True where nothing of it waits, runs or is in the database, as far as this owner can tell.
    pub fn is_idle(&self) -> bool {
        self.waiting() + self.running as usize == 0 && self.held.is_empty() && !self.has_rows()
    }

    /// True where one that waits can start.
    pub fn can_start(&self) -> bool {
        !self.jobs.is_empty() || self.chains.can_start()
    }

    /// Adds one that waits.
    pub fn push(&mut self, job: Job) {
        match job.key {
            Some(key) => self.chains.push(key, job),
            None => self.jobs.push_back(job),
        }
    }

    /// The next one to start.
    pub fn pop(&mut self) -> Option<Job> {
        self.chains.pop().or_else(|| self.jobs.pop_front())
    }

    /// Whether an attempt may start now, of the subscription at this version. One that may takes its token of the rate limit.
    ///
    /// Errors: when to ask again; none where something that runs, or an earlier answer, leads back here.
    pub fn hold(&mut self, version: i64, now: DateTime<Utc>) -> Result<Gate, Option<DateTime<Utc>>> {
        if self.health.is_of(version) {
            self.bucket = Bucket::default();
        }
        let later = |at: DateTime<Utc>| at.max(now + RESUME_AFTER);
        let wait = |known: Option<DateTime<Utc>>, at| {
            Err(Some(later(at)).filter(|at| known.is_none_or(|k| k <= now || *at < k)))
        };
        let gate = self.health.gate(&self.policy, now);
        match gate {
            Gate::Wait(until) => return wait(self.resume_at, until),
            Gate::Probing => return Err(None),
            Gate::Free | Gate::Probe => {}
        }
        if let Some(limit) = self.policy.rate_limit()
            && let Err(at) = self.bucket.take(limit, now)
        {
            return wait(self.resume_at, at);
        }
        Ok(gate)
    }

    /// When its bucket is full again.
    pub fn rate(&self, no: SubscriptionNo) -> Option<Rate> {
        let full_at = self.bucket.full_at()?;
        Some(Rate { subscription_no: no, registry_version: self.health.version(), full_at })
    }

    /// Takes what the former owner has left of its bucket. What it kept of the subscription before a change says nothing any more.
    pub fn restore_rate(&mut self, kept: &Rate) {
        if self.health.version() <= kept.registry_version {
            self.health.is_of(kept.registry_version);
            self.bucket = Bucket::restore(kept.full_at);
        }
    }

    /// What the end of an attempt, made for the subscription at this version, means beyond its invocation: nothing where that was
    /// changed since, as its receiver may be another one.
    pub fn ended(&mut self, version: i64, outcome: &Outcome, probe: bool, now: DateTime<Utc>) -> Verdict {
        if self.health.version() != version {
            return Verdict::default();
        }
        let mut verdict = self.health.ended(outcome, probe, &self.policy, now);
        verdict.keep |= self.health.slow_down(outcome, &self.policy, now);
        verdict
    }

    /// True where work may be in the database, or work with an ordering key on its way there: what is new of a key goes behind it.
    pub fn has_rows(&self) -> bool {
        self.parked || self.loading || self.unwritten > 0 || self.due().is_some()
    }

    /// True once for every version of the subscription that is newer than those before.
    pub fn changed_to(&mut self, version: i64) -> bool {
        let newer = version > self.version;
        self.version = self.version.max(version);
        newer
    }

    /// True where a replay must come further before what is in order at this position may run.
    pub fn is_beyond_replay(&self, position: Position) -> bool {
        // A load under way may find that the replay has ended, and not see what is written now.
        !self.loading && self.replayed.is_some_and(|replayed| replayed < position)
    }

    /// A key leaves memory: until its rows are loaded again, nothing of it is.
    pub fn leaves(&mut self, key: OrderingKey) {
        self.parked = true;
        if self.loading {
            self.left_meanwhile.insert(key);
        }
    }

    /// Puts the subscription into the list of those that may start something, once.
    pub fn offer(&mut self, no: SubscriptionNo, ready: &mut VecDeque<SubscriptionNo>) {
        if !self.ready {
            self.ready = true;
            ready.push_back(no);
        }
    }

    /// A row that is not held is due at this time.
    pub fn now_due(&mut self, due_at: DateTime<Utc>) {
        let known = if self.loading { &mut self.due_meanwhile } else { &mut self.next_due };
        *known = Some(known.map_or(due_at, |known| known.min(due_at)));
        if !self.loading {
            self.looked = self.looked.min(due_at);
        }
    }

    /// When rows are to be loaded: at once while there are keys that the last load has not met.
    pub fn due(&self) -> Option<DateTime<Utc>> {
        let due = if self.after.is_some() { Some(DateTime::UNIX_EPOCH) } else { self.next_due };
        due.map(|due| due.max(self.not_before))
    }

    /// A held row has ended, or is due again at another time.
    pub fn let_go(&mut self, position: Position) {
        self.held.remove(&position);
        self.reviewed.remove(&position);
        if self.loading {
            self.ended_meanwhile.insert(position);
        }
    }

    /// True where a further one must wait in the database, because memory is at its bound: at three quarters of it, with anything that
    /// waits here; at the whole, also with anything that runs.
    pub fn is_held_back(&self, memory: &Memory) -> bool {
        memory.is_scarce() && self.waiting() > 0 || memory.is_full() && self.waiting() + self.running as usize > 0
    }

    /// When the next row is due, where the queue has drained far enough to load it.
    pub fn wants_more(&self, queue_max: usize) -> Option<DateTime<Utc>> {
        self.due().filter(|_| !self.loading && self.waiting() <= queue_max / 4)
    }

    pub fn start_loading(&mut self) {
        self.loading = true;
        // One that goes on where the last one ended says nothing of the keys before that.
        if self.after.is_none() {
            self.next_due = None;
        }
    }

    /// A load at this time has ended, with this left behind where it was in the order of keys. What happened meanwhile.
    pub fn stop_loading(&mut self, at: DateTime<Utc>, rest: Option<&Rest>) -> Meanwhile {
        self.loading = false;
        self.after = rest.and_then(|rest| rest.after);
        self.replayed = rest.and_then(|rest| rest.replayed);
        if rest.is_some_and(|rest| rest.looked) {
            self.looked = at;
        }
        let due_at = self.due_meanwhile.take();
        self.looked = due_at.map_or(self.looked, |due_at| self.looked.min(due_at));
        Meanwhile {
            ended: std::mem::take(&mut self.ended_meanwhile),
            left: std::mem::take(&mut self.left_meanwhile),
            due_at: [due_at, self.next_due].into_iter().flatten().min(),
        }
    }

    /// A load has failed: it is wanted again at this time, whatever becomes due before.
    pub fn load_failed(&mut self, again_at: DateTime<Utc>) {
        let meanwhile = self.stop_loading(again_at, None);
        self.not_before = again_at;
        self.next_due = Some(meanwhile.due_at.map_or(again_at, |due_at| due_at.min(again_at)));
    }
}
