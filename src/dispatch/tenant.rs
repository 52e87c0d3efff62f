//! One tenant's dispatch, as a state machine without I/O: which invocation starts next, what is recorded, how far the cursor is.
//!
//! ```text
//! committed / log page --take--> window slot + queue of each subscription --next--> running --ended--> changes --cut--> settle
//!                                     |   ^                                                     ^
//!                           full: aside   due: back                                  deferred_invocations
//! ```
//!
//! The window holds one slot per event after the cursor; a slot counts the invocations that are neither final nor noted in
//! `deferred_invocations`, and the cursor stands before the first slot that still counts any. Everything that waits long is
//! moved aside, into `deferred_invocations`, so that neither memory nor the cursor is held by a listener that hangs.
//!
//! This file decides; it performs no side effect, reads no clock and never touches the store.

mod aside;
#[cfg(test)]
pub(super) mod fixture;
mod heard;
mod intake;
#[cfg(test)]
mod ordered;
mod slow;
#[cfg(test)]
mod tests;
mod waiting;

pub(super) use aside::{Batch, WantedDue};
pub(super) use intake::{InOrder, LogPage, WantedPage};

use self::heard::Heard;
use super::Config;
use super::queue::{Job, Queue};
use super::turns;
use crate::domain::event::Lineage;
use crate::domain::filter::OrderingKey;
use crate::domain::health::{Gate, HealthRow};
use crate::domain::ids::{Position, SubscriptionNo, TenantId};
use crate::domain::invocation::{CancelReason, Outcome, OutcomeClass};
use crate::domain::memory::Memory;
use crate::domain::retry::DeliveryPolicy;
use crate::domain::subscription::{CircuitState, State};
use crate::domain::webhook::WebhookCall;
use crate::executor::Delivery;
use crate::feed::Head;
use crate::store::dispatch::{ClaimedTenant, Place};
use crate::store::events::LogPlace;
use crate::store::settle::{Fate, Settled, Tried};
use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// What the registry says about a subscription, now.
#[derive(Debug, Clone)]
pub(super) struct Listener {
    pub state: State,
    /// Changes with every change of the subscription.
    pub version: i64,
    pub policy: DeliveryPolicy,
    /// None where no signing secret can be opened: nothing is sent unsigned.
    pub call: Option<Arc<WebhookCall>>,
}

/// An attempt to make.
#[derive(Debug)]
pub(super) struct Start {
    /// Names the attempt in [`Tenant::ended`].
    pub key: u32,
    /// None where there is nothing to sign with: the attempt fails without a call.
    pub call: Option<Arc<WebhookCall>>,
    pub delivery: Delivery,
    pub timeout: Duration,
    /// Of the tenant's turn.
    pub cost: i64,
}

/// A subscription of which nothing but failures came for as long as its policy allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failing {
    pub subscription_no: SubscriptionNo,
    /// The registry version of the subscription that they were made for.
    pub version: i64,
    /// How the last attempt ended.
    pub class: OutcomeClass,
}

/// How a receiver does, to be written, and whether operators are to hear of it: what its circuit has become, and by which invocation.
#[derive(Debug, Clone)]
pub(super) struct HealthNote {
    pub row: HealthRow,
    pub told: Option<(CircuitState, Lineage)>,
}

/// What [`Tenant::next`] found.
#[derive(Debug)]
pub(super) enum Next {
    /// Make this attempt.
    Start(Start),
    /// The registry says that waiting work is to be cancelled, but it may be older than that work: it must be reloaded.
    Unsure,
    /// Something waits until more attempts may start than these, which the tenant has in flight.
    Crowded(usize),
    /// Nothing can start now.
    Nothing,
}

/// How an attempt went.
#[derive(Debug)]
pub(super) struct Ended {
    pub started_at: DateTime<Utc>,
    pub duration: Duration,
    pub outcome: Outcome,
}

/// The bucket of a rate limit over as long an interval outlives its owner. A shorter one is full soon after a change of owners anyway.
const RATE_KEPT_FROM: Duration = Duration::from_secs(10);

struct Slot {
    day: NaiveDate,
    open: u32,
}

struct Running {
    job: Job,
    /// The registry version of the subscription that it is made for.
    version: i64,
    started_at: DateTime<Utc>,
    /// True where it has run for long.
    slow: bool,
    /// True where it is slow and does not count as in flight any more.
    apart: bool,
    /// True where it tells whether the receiver is well again.
    probe: bool,
}

pub(super) struct Tenant {
    pub id: TenantId,
    pub token: i64,
    /// The head as last heard.
    pub head: Head,
    /// The registry's version at the claim: replays that changes up to it began were looked for then.
    claimed_version: i64,
    /// For each former owner that may have started an attempt that nothing is recorded of, numbers are one higher: those of events
    /// and deferrals before its end.
    unclean_ends: Arc<[DateTime<Utc>]>,
    /// Position of the first slot.
    first: Position,
    /// Day of the event before the first slot.
    day: NaiveDate,
    window: VecDeque<Slot>,
    /// Invocations that the window counts.
    open: usize,
    /// Rows in `deferred_invocations`, as far as this owner can tell; counted anew now and then where it matters.
    pub rows: i64,
    /// Entries that were committed here while a page was being read.
    heard: Heard,
    reading: bool,
    /// True where a subscription has an ordering key, or where that is not known: entries come in by [`Self::page`] only.
    pub ordered: bool,
    /// What callers have cancelled of events that are not taken yet.
    cancelled_ahead: HashSet<Place>,
    queues: HashMap<SubscriptionNo, Queue>,
    ready: VecDeque<SubscriptionNo>,
    running: Vec<Option<Running>>,
    free: Vec<u32>,
    running_count: usize,
    slow_count: usize,
    /// Of the slow attempts, those that do not count as in flight.
    apart_count: usize,
    /// Subscriptions that have an attempt and start no other for now.
    held_back: Vec<SubscriptionNo>,
    /// Number of the last reload of the registry that began.
    reload_begun: u64,
    /// Number of the last reload that succeeded.
    reload_done: u64,
    changes: Vec<Settled>,
    settling: bool,
    saved: Position,
    /// No deferred row that is not in memory is due before this time; none where there is no such row.
    pub next_due: Option<DateTime<Utc>>,
    /// Where the events that wait for a listener or are with one are counted, those of all tenants together.
    pub memory: Memory,
    /// Subscriptions to disable, because they only fail.
    pub failing: Vec<Failing>,
    /// How receivers do, where that has changed.
    pub notes: Vec<HealthNote>,
    /// Subscriptions that a token was taken of since rates were last cut.
    rated: HashSet<SubscriptionNo>,
    /// When subscriptions that must wait are offered again.
    resumes: BinaryHeap<Reverse<(DateTime<Utc>, SubscriptionNo)>>,
    /// True while it is given away: what is slow starts nothing more that would have to be waited for.
    pub leaving: bool,
    /// True where dead letters or changes have been written that are not announced.
    pub announce: bool,
    /// True where a replay may have begun, or has not reached its end.
    pub replay: bool,
}

impl Tenant {
    pub fn new(claimed: &ClaimedTenant, memory: Memory) -> Self {
        Self {
            id: claimed.head.tenant,
            token: claimed.token,
            head: claimed.head,
            claimed_version: claimed.head.registry_version,
            unclean_ends: claimed.unclean_ends.clone(),
            first: claimed.cursor.after + 1,
            day: claimed.cursor.day,
            window: VecDeque::new(),
            open: 0,
            rows: 0,
            reading: false,
            ordered: true,
            cancelled_ahead: HashSet::new(),
            queues: HashMap::new(),
            ready: VecDeque::new(),
            running: Vec::new(),
            free: Vec::new(),
            running_count: 0,
            slow_count: 0,
            apart_count: 0,
            held_back: Vec::new(),
            reload_begun: 0,
            reload_done: 0,
            changes: Vec::new(),
            settling: false,
            saved: claimed.cursor.after,
            next_due: None,
            heard: Heard::new(memory.clone()),
            memory,
            failing: Vec::new(),
            notes: Vec::new(),
            rated: HashSet::new(),
            resumes: BinaryHeap::new(),
            leaving: false,
            announce: false,
            replay: false,
        }
    }

    /// Events between the written cursor and the head.
    pub fn lag(&self) -> usize {
        usize::try_from(self.head.position - self.saved).unwrap_or(0)
    }

    /// True where a subscription may have something to start.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// True where nothing runs and everything that it came to is written.
    pub fn is_quiet(&self) -> bool {
        self.running_count == 0 && !self.is_writing()
    }

    fn is_writing(&self) -> bool {
        self.settling || self.has_changes()
    }

    /// Where the cursor may stand once the changes are written.
    pub fn cursor(&self) -> LogPlace {
        LogPlace { after: self.first - 1, day: self.day }
    }

    fn next_position(&self) -> Position {
        self.first + Position::try_from(self.window.len()).expect("bounded by window_max")
    }

    /// The next attempt to start, subscriptions in turn. `free` more may start, those of all tenants together. A tenant has no more than
    /// that in flight: however many of them take what they can, there is as much left for one more.
    pub fn next(
        &mut self,
        now: DateTime<Utc>,
        free: usize,
        config: &Config,
        listener: impl Fn(SubscriptionNo) -> Option<Listener>,
    ) -> Next {
        let in_flight = self.running_count - self.apart_count;
        if in_flight >= config.tenant_in_flight_max || !self.has_ready() {
            return Next::Nothing;
        }
        if in_flight >= free {
            return Next::Crowded(in_flight);
        }
        let crowded = self.is_crowded_by_slow(free, config);
        while let Some(no) = self.ready.pop_front() {
            let Some(queue) = self.queues.get_mut(&no) else { continue };
            queue.ready = false;
            if queue.waiting() == 0 {
                continue;
            }
            let found = listener(no);
            let reason = match found.as_ref().map(|listener| listener.state) {
                Some(State::Active) => None,
                Some(State::Disabled) => Some(CancelReason::SubscriptionDisabled),
                // What not even the newest registry knows does not exist.
                Some(State::Deleted) | None => Some(CancelReason::SubscriptionDeleted),
            };
            if let Some(reason) = reason {
                // An event may be heard before the registry that matched it: only a reload that began later decides.
                if queue.arrived >= self.reload_done {
                    queue.offer(no, &mut self.ready);
                    return Next::Unsure;
                }
                self.cancel_queue(no, reason, now);
                continue;
            }
            let Some(listener) = found else { continue };
            queue.policy = listener.policy;
            let limit = u32::try_from(queue.policy.max_in_flight()).unwrap_or(1);
            // Offered again when one of its attempts ends.
            if queue.running >= limit || self.leaving && queue.slow > 0 {
                continue;
            }
            if crowded && queue.running > 0 {
                self.held_back.push(no);
                continue;
            }
            let held = if queue.can_start() { queue.hold(listener.version, now) } else { continue };
            let probe = match held {
                Ok(gate) => gate == Gate::Probe,
                Err(resume_at) => {
                    self.resume_later(no, resume_at);
                    continue;
                }
            };
            if queue.policy.rate_limit().is_some_and(|limit| limit.interval() >= RATE_KEPT_FROM) {
                self.rated.insert(no);
            }
            let timeout = queue.policy.timeout();
            let Some(job) = queue.pop() else { continue };
            queue.running += 1;
            if probe && queue.health.probe(now) {
                self.notes.push(HealthNote { row: queue.health.kept(no), told: None });
            }
            if queue.running < limit && queue.can_start() {
                queue.offer(no, &mut self.ready);
            }
            if let Some(due) = queue.wants_more(config.queue_max) {
                self.next_due = Some(earlier(self.next_due, due));
            }
            let delivery = Delivery {
                invocation: job.event.entry().invocation(no),
                attempt: job.attempt + 1,
                // A replay always has a row, so that what does not is not asked.
                replay: !job.in_window && !job.event.entry().matched.contains(&no),
                event: job.event.clone(),
            };
            // An event's data is shared by the invocations it causes.
            let shared_by = job.event.entry().matched.len().max(1);
            let cost = turns::cost(job.event.entry().event.bytes() / shared_by);
            let running = Running { job, version: listener.version, started_at: now, slow: false, apart: false, probe };
            let key = if let Some(key) = self.free.pop() {
                self.running[key as usize] = Some(running);
                key
            } else {
                self.running.push(Some(running));
                u32::try_from(self.running.len() - 1).expect("bounded by the in-flight limits")
            };
            self.running_count += 1;
            return Next::Start(Start { key, call: listener.call, delivery, timeout, cost });
        }
        Next::Nothing
    }

    /// A reload of the registry to the newest version begins; [`Self::reloaded`] takes its number where it succeeds.
    pub fn begin_reload(&mut self) -> u64 {
        self.reload_begun += 1;
        self.reload_begun
    }

    /// The registry is as new as the reload of this number found it: what waited before it began may be cancelled by it.
    pub fn reloaded(&mut self, number: u64) {
        self.reload_done = self.reload_done.max(number);
    }

    fn cancel_queue(&mut self, no: SubscriptionNo, reason: CancelReason, now: DateTime<Utc>) {
        let Some(queue) = self.queues.get_mut(&no) else { return };
        let in_order = queue.chains.evict_waiting().into_iter().map(|(_, job)| job);
        for job in std::mem::take(&mut queue.jobs).into_iter().chain(in_order) {
            let tried = Tried { attempt: job.attempt, started_at: now, duration: Duration::ZERO, outcome: None };
            self.conclude(&job, Some(tried), Fate::Cancelled(reason));
        }
        self.advance();
        if let Some(due) = self.queues.get(&no).and_then(Queue::due) {
            self.next_due = Some(earlier(self.next_due, due));
        }
    }

    /// Takes the result of an attempt; `jitter` is a random number in 0..1.
    pub fn ended(&mut self, key: u32, ended: Ended, now: DateTime<Utc>, jitter: f64) {
        let Some(Running { job, version, slow, apart, probe, .. }) =
            self.running.get_mut(key as usize).and_then(Option::take)
        else {
            return;
        };
        self.free.push(key);
        self.running_count -= 1;
        self.slow_count -= usize::from(slow);
        self.apart_count -= usize::from(apart);
        let no = job.place.subscription_no;
        let queue = self.queues.entry(no).or_default();
        queue.running = queue.running.saturating_sub(1);
        queue.slow = queue.slow.saturating_sub(u32::from(slow));
        let attempt = job.attempt + 1;
        let tries = attempt - job.base;
        let class = ended.outcome.class;
        let verdict = queue.ended(version, &ended.outcome, probe, now);
        if verdict.keep {
            let entry = job.event.entry();
            let by = |state| (state, entry.event.lineage.caused_by(entry.invocation(no)));
            self.notes.push(HealthNote { row: queue.health.kept(no), told: verdict.told.map(by) });
        }
        let fate = if class == OutcomeClass::Succeeded {
            Fate::Succeeded
        } else if class.is_retryable() && tries < queue.policy.max_attempts() {
            let wait = queue.policy.backoff(tries, jitter, ended.outcome.retry_after);
            let due_at = now + TimeDelta::from_std(wait).unwrap_or(TimeDelta::days(1));
            Fate::Deferred { attempt, base: job.base, due_at }
        } else {
            Fate::Dead { at: now, version }
        };
        if verdict.disable {
            self.failing.push(Failing { subscription_no: no, version, class });
        }
        if let Some(key) = job.key {
            self.turn_key(no, key, fate, now);
        }
        let queue = self.queues.entry(no).or_default();
        if queue.can_start() {
            queue.offer(no, &mut self.ready);
        }
        // What runs may have held it back.
        if let Some(due) = queue.wants_more(0) {
            self.next_due = Some(earlier(self.next_due, due));
        }
        let Ended { started_at, duration, outcome } = ended;
        self.conclude(&job, Some(Tried { attempt, started_at, duration, outcome: Some(outcome) }), fate);
        self.advance();
    }

    /// The next one of the key may start after a success; after anything else, what waits behind goes to the database, and
    /// comes back when that says that it is its turn.
    fn turn_key(&mut self, no: SubscriptionNo, key: OrderingKey, fate: Fate, now: DateTime<Utc>) {
        let Some(queue) = self.queues.get_mut(&no) else { return };
        if fate == Fate::Succeeded {
            if queue.chains.succeeded(key) && (queue.parked || queue.loading) {
                // More of it, or of others, was left in the database while the key was full, or is by a load that found it so.
                queue.now_due(now);
                self.next_due = Some(earlier(self.next_due, now));
            }
            return;
        }
        let behind = queue.chains.evict(key);
        queue.leaves(key);
        for job in behind {
            self.put_back(&job, now);
        }
    }

    fn conclude(&mut self, job: &Job, tried: Option<Tried>, fate: Fate) {
        if job.in_window {
            self.close(job.place.position);
        }
        let (place, day, deferred) = (job.place, job.day, !job.in_window);
        self.note(Settled { place, day, deferred, key: job.key, tried, fate });
    }

    /// Keeps a change for the next settle.
    fn note(&mut self, change: Settled) {
        if change.holds_up()
            && let Some(queue) = self.queues.get_mut(&change.place.subscription_no)
        {
            queue.unwritten += 1;
        }
        self.changes.push(change);
    }
}

fn earlier(known: Option<DateTime<Utc>>, other: DateTime<Utc>) -> DateTime<Utc> {
    known.map_or(other, |known| known.min(other))
}
