//! What leaves memory and what comes back: settling, deferred work, callers' changes.

use super::{Config, OrderingKey, Settled, Tenant, earlier};
use crate::dispatch::queue::{JOB_BYTES, Job, Queue};
use crate::dispatch::replay;
use crate::dispatch::run::DuePage;
use crate::domain::ids::{Position, SubscriptionNo};
use crate::domain::subscription::State;
use crate::executor::EncodedEvent;
use crate::store::dispatch::Place;
use crate::store::events::LogPlace;
use crate::store::rates::Rate;
use crate::store::settle::Fate;
use chrono::{DateTime, Utc};
use std::collections::HashSet;
use std::sync::Arc;

/// Changes to write together, with the cursor that is right once they are.
#[derive(Debug)]
pub(in crate::dispatch) struct Batch {
    pub cursor: LogPlace,
    pub changes: Vec<Settled>,
    /// Of the attempts that have begun since the last one.
    pub rates: Vec<Rate>,
}

/// Deferred rows to load.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::dispatch) struct WantedDue {
    pub subscription_no: SubscriptionNo,
    /// Rows that are in memory.
    pub held: Vec<Position>,
    /// Where the log is known up to: of what is in order nothing beyond it is to be loaded.
    pub up_to: Position,
    /// Keys of which enough is in memory.
    pub full: Vec<OrderingKey>,
    /// Where the last load has not met all keys: the last one that it met.
    pub after: Option<OrderingKey>,
    /// What is in no order and was due before this time is in memory.
    pub looked: DateTime<Utc>,
}

impl Tenant {
    /// The changes and the cursor to write, where something is to be written. One at a time: the answer comes by
    /// [`Self::settled`].
    pub fn cut(&mut self) -> Option<Batch> {
        if !self.has_changes() && !self.cursor_moved() {
            return None;
        }
        self.settling = true;
        Some(Batch { cursor: self.cursor(), changes: std::mem::take(&mut self.changes), rates: self.rates() })
    }

    /// True where the cursor stands further than what is written.
    pub fn cursor_moved(&self) -> bool {
        !self.settling && self.saved + 1 < self.first
    }

    /// True where changes wait to be cut.
    pub fn has_changes(&self) -> bool {
        !self.settling && !self.changes.is_empty()
    }

    /// Takes note that a batch is written.
    pub fn settled(&mut self, batch: &Batch) {
        self.settling = false;
        self.saved = batch.cursor.after;
        for change in &batch.changes {
            self.rows += match change.fate {
                Fate::Deferred { .. } => i64::from(!change.deferred),
                Fate::Succeeded | Fate::Cancelled(_) | Fate::Dead { .. } => -i64::from(change.deferred),
            };
            // One that was deleted may be forgotten by now: a row of it is still to be cancelled.
            let queue = self.queues.entry(change.place.subscription_no).or_default();
            let position = change.place.position;
            if change.holds_up() {
                queue.unwritten = queue.unwritten.saturating_sub(1);
            }
            match change.fate {
                // Put aside while it ran, or runs still: the row is not to be loaded.
                Fate::Deferred { .. } if !change.deferred && queue.held.contains(&position) => continue,
                // The replay says when it is its turn: until then every look would find the same.
                Fate::Deferred { .. } if change.key.is_some() && queue.is_beyond_replay(position) => {}
                Fate::Deferred { due_at, .. } => {
                    // A caller may have made it due while it ran, which a look at the rows does not tell from its having been due.
                    let began = change.tried.as_ref().map(|tried| tried.started_at);
                    let due_at = began.filter(|_| queue.reviewed.contains(&position)).unwrap_or(due_at);
                    queue.now_due(due_at);
                    self.next_due = Some(earlier(self.next_due, due_at));
                }
                Fate::Dead { at, .. } => {
                    self.announce = true;
                    // What waited behind it in its key may go on, or is to be found blocked. And a caller may have redriven it before
                    // this was known to be written: its row was left out of loads as one that is in memory.
                    if change.key.is_some() || change.deferred {
                        queue.now_due(at);
                        self.next_due = Some(earlier(self.next_due, at));
                    }
                }
                Fate::Succeeded | Fate::Cancelled(_) => {}
            }
            if change.deferred {
                queue.let_go(position);
            }
        }
    }

    /// Invocations that are not finished, as far as this owner can tell; an event that is not read yet counts as one.
    pub fn backlog(&self) -> u64 {
        let unread = u64::try_from(self.head.position - self.next_position() + 1).unwrap_or_default();
        (self.open + self.changes.len()) as u64 + unread + u64::try_from(self.rows).unwrap_or_default()
    }

    // ------------------------------------------------------------ deferred work

    /// True while something is being read that will bring invocations into memory.
    pub fn is_loading(&self) -> bool {
        self.reading || self.queues.values().any(|queue| queue.loading)
    }

    /// Takes what the store says about deferred work: the first due time of each subscription.
    pub fn due_summary(&mut self, due: &[(SubscriptionNo, DateTime<Utc>)]) {
        for (no, due_at) in due {
            let queue = self.queues.entry(*no).or_default();
            queue.reviewed.clone_from(&queue.held);
            queue.now_due(*due_at);
            self.next_due = Some(earlier(self.next_due, *due_at));
        }
    }

    /// Takes an invocation that waits out of memory: into the database where it has no row there.
    pub(super) fn put_back(&mut self, job: &Job, now: DateTime<Utc>) {
        let (place, day) = (job.place, job.day);
        if job.in_window {
            let fate = Fate::Deferred { attempt: job.attempt, base: job.base, due_at: now };
            self.note(Settled { place, day, deferred: false, key: job.key, tried: None, fate });
            self.close(place.position);
        } else if let Some(queue) = self.queues.get_mut(&place.subscription_no) {
            queue.let_go(place.position);
        }
    }

    /// A subscription may be another one now: what waits in the database for another invocation is looked at again.
    pub fn review_parked(&mut self, now: DateTime<Utc>) {
        for queue in self.queues.values_mut() {
            if queue.parked && queue.next_due.is_none_or(|due| due > now) {
                queue.now_due(now);
                self.next_due = Some(earlier(self.next_due, now));
            }
        }
    }

    /// More of the log is known: what waited for that is looked at again.
    pub(super) fn review_waiting_for_log(&mut self, now: DateTime<Utc>) {
        for queue in self.queues.values_mut().filter(|queue| queue.waits_for_log) {
            queue.waits_for_log = false;
            queue.now_due(now);
            self.next_due = Some(earlier(self.next_due, now));
        }
    }

    /// What waits for a subscription that does not execute any more is due at once, to be cancelled. One that is deleted, or unknown, and
    /// has nothing left is forgotten, so that whoever unsubscribes as often as he subscribes fills no memory.
    pub fn review_inactive(&mut self, now: DateTime<Utc>, state: impl Fn(SubscriptionNo) -> Option<State>) {
        self.queues.retain(|no, queue| {
            let state = state(*no);
            if state != Some(State::Active) && queue.next_due.is_some_and(|due| due > now) {
                queue.now_due(now);
                self.next_due = Some(earlier(self.next_due, now));
            }
            state.is_some() || !queue.is_idle()
        });
    }

    /// True where a change of a subscription may decide what becomes of something that waits.
    pub fn heeds_registry(&self) -> bool {
        self.has_ready() || self.has_parked() || self.next_due.is_some()
    }

    /// True where something waits in the database for another invocation.
    pub fn has_parked(&self) -> bool {
        self.ordered && self.queues.values().any(|queue| queue.parked)
    }

    /// Subscriptions whose deferred rows are to be loaded, with what to leave out. Each answers by [`Self::due`].
    ///
    /// While memory is full, only a subscription that has nothing else to do gets any.
    pub fn wants_due(&mut self, now: DateTime<Utc>, config: &Config) -> Vec<WantedDue> {
        if self.next_due.is_none_or(|due| due > now) {
            return Vec::new();
        }
        let mut wanted = Vec::new();
        let up_to = self.next_position() - 1;
        self.next_due = None;
        for (no, queue) in &mut self.queues {
            let Some(due) = queue.due() else { continue };
            if due > now {
                self.next_due = Some(earlier(self.next_due, due));
            } else if queue.unwritten > 0 {
                // What is being written may come before what a load would find.
                self.next_due = Some(earlier(self.next_due, due));
            } else if !queue.loading && queue.waiting() <= config.queue_max / 4 && !queue.is_held_back(&self.memory) {
                queue.start_loading();
                let held = queue.held.iter().copied().collect();
                let (full, after, looked) = (queue.chains.full(), queue.after, queue.looked);
                wanted.push(WantedDue { subscription_no: *no, held, up_to, full, after, looked });
            }
            // A full queue asks again when it has drained.
        }
        wanted
    }

    /// Subscriptions of which so much waits in memory that a replay must not add to it.
    pub fn busy(&self, config: &Config) -> Vec<SubscriptionNo> {
        // Beyond that bound of the queue rows stay in the database, which nothing here tells.
        let most = (replay::ahead_max(config) as usize).min(config.queue_max / 4);
        let busy = |queue: &Queue| queue.waiting() > most || queue.is_held_back(&self.memory);
        self.queues.iter().filter(|(_, queue)| busy(queue)).map(|(no, _)| *no).collect()
    }

    /// Takes deferred rows, by due time, a page at most; their events by position.
    pub fn due(&mut self, no: SubscriptionNo, page: &DuePage, config: &Config) {
        let DuePage { rows, events, at, more, rest } = page;
        let now = *at;
        let known = self.next_position() - 1;
        let Some(queue) = self.queues.get_mut(&no) else { return };
        let meanwhile = queue.stop_loading(now, rest.as_ref());
        let mut next_due = meanwhile.due_at;
        queue.parked = rest.is_some_and(|rest| rest.left);
        match rest.and_then(|rest| rest.beyond) {
            // The log was read meanwhile.
            Some(up_to) if up_to < known => next_due = Some(earlier(next_due, now)),
            Some(_) => queue.waits_for_log = true,
            None => {}
        }
        if let Some(due_at) = rest.and_then(|rest| rest.due_at) {
            next_due = Some(earlier(next_due, due_at));
        }
        if *more && let Some(last) = rows.last() {
            next_due = Some(earlier(next_due, last.due_at));
        }
        for row in rows {
            if row.due_at > now {
                next_due = Some(earlier(next_due, row.due_at));
                break;
            }
            let key = row.ordering_key.map(OrderingKey);
            if key.is_some_and(|key| meanwhile.left.contains(&key)) {
                queue.parked = true;
                continue;
            }
            if meanwhile.ended.contains(&row.position) || !queue.held.insert(row.position) {
                continue;
            }
            // An event that retention has taken cannot run; its row stays held and is never asked for again.
            let Some(entry) = events.get(&row.position) else { continue };
            let lost = lost_attempts(&self.unclean_ends, row.due_at);
            queue.arrived = self.reload_begun;
            queue.push(Job {
                event: Arc::new(EncodedEvent::kept(entry.clone(), &self.memory)),
                place: Place { position: row.position, subscription_no: no },
                day: row.day,
                in_window: false,
                attempt: row.attempt + lost,
                base: row.attempt_base + lost,
                kept: self.memory.keep(JOB_BYTES),
                key,
            });
        }
        queue.next_due = next_due;
        // Nothing due is left aside: new work may go straight into the queue again.
        queue.aside = queue.aside && next_due.is_some_and(|due| due <= now);
        if queue.can_start() {
            queue.offer(no, &mut self.ready);
        }
        if let Some(due) = queue.wants_more(config.queue_max) {
            self.next_due = Some(earlier(self.next_due, due));
        }
    }

    /// The rows could not be loaded; they are wanted again at `retry_at`.
    pub fn due_failed(&mut self, no: SubscriptionNo, retry_at: DateTime<Utc>) {
        let Some(queue) = self.queues.get_mut(&no) else { return };
        queue.load_failed(retry_at);
        self.next_due = Some(earlier(self.next_due, retry_at));
    }

    /// Invocations in memory that wait and have a row; a caller may have cancelled them.
    pub fn waiting_rows(&self) -> Vec<Place> {
        let jobs = self.queues.values().flat_map(|queue| queue.jobs.iter().chain(queue.chains.iter()));
        jobs.filter(|job| !job.in_window).map(|job| job.place).collect()
    }

    /// Drops what a caller has cancelled, where it has not started. Of events that are heard but not taken yet, or heard only
    /// after the look at the store, it is remembered: nothing reads again what is cancelled of those.
    pub fn revoke(&mut self, revoked: &HashSet<Place>) {
        let next = self.next_position();
        self.cancelled_ahead = revoked.iter().filter(|place| place.position >= next).copied().collect();
        if revoked.is_empty() {
            return;
        }
        let mut closed = Vec::new();
        for queue in self.queues.values_mut() {
            let held = &mut queue.held;
            let mut keep = |job: &Job| {
                if !revoked.contains(&job.place) {
                    return true;
                }
                if job.in_window {
                    closed.push(job.place.position);
                } else {
                    held.remove(&job.place.position);
                }
                false
            };
            queue.jobs.retain(&mut keep);
            queue.chains.retain(&mut keep);
        }
        for position in closed {
            self.close(position);
        }
        self.advance();
    }
}

/// How many owners may have started an attempt of what there is since then, and have recorded nothing of it.
pub(super) fn lost_attempts(unclean_ends: &[DateTime<Utc>], since: DateTime<Utc>) -> i32 {
    i32::try_from(unclean_ends.iter().filter(|end| since < **end).count()).unwrap_or(i32::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::tenant::fixture::*;
    use crate::domain::invocation::OutcomeClass;
    use std::collections::HashMap;

    #[test]
    fn what_a_caller_has_made_due_while_it_ran_is_looked_for_once_its_settle_is_written() {
        let mut tenant = tenant();
        for reviewed in [false, true] {
            tenant.due_summary(&[(1, at(0))]);
            assert_eq!(tenant.wants_due(at(1_000), &config()), [wants(&tenant, 1, &[])]);
            take_rows(&mut tenant, 1, &[row(1, at(0))], events([1]), at(1_000));
            let attempt = start(&mut tenant).expect("it is due");
            if reviewed {
                tenant.due_summary(&[(1, at(0))]);
                assert_eq!(tenant.wants_due(at(1_000), &config()), [wants(&tenant, 1, &[1])]);
                take_rows(&mut tenant, 1, &[], HashMap::new(), at(1_000));
            }
            end(&mut tenant, &attempt, OutcomeClass::Failed);
            settle(&mut tenant);
            assert_eq!(tenant.wants_due(at(1_001), &config()).len(), usize::from(reviewed));
        }
    }

    #[test]
    fn a_subscription_that_is_deleted_is_forgotten_once_nothing_of_it_is_left() {
        let mut tenant = tenant();
        let deleted = |no| (no == 2).then_some(State::Active);
        hear(&mut tenant, &[entry(1, &[1, 2]), entry(2, &[1])]);
        let attempts: Vec<_> = std::iter::from_fn(|| start(&mut tenant)).collect();
        for attempt in &attempts {
            tenant.review_inactive(at(1_000), deleted);
            assert!(tenant.queues.contains_key(&1), "something of it runs");
            let class = if place(attempt) == (2, 1) { OutcomeClass::Failed } else { OutcomeClass::Succeeded };
            end(&mut tenant, attempt, class);
        }
        let batch = tenant.cut().expect("two have succeeded, one waits");
        tenant.review_inactive(at(1_000), deleted);
        assert_eq!(tenant.queues.keys().collect::<Vec<_>>(), [&2], "one that is active stays, idle or not");
        // What is written only now is still to be cancelled.
        tenant.settled(&batch);
        tenant.review_inactive(at(1_002), deleted);
        assert_eq!(tenant.wants_due(at(1_002), &config()), [wants(&tenant, 1, &[])]);
        take_rows(&mut tenant, 1, &[], HashMap::new(), at(1_002));
        tenant.review_inactive(at(1_002), deleted);
        assert!(!tenant.queues.contains_key(&1));
    }
}
