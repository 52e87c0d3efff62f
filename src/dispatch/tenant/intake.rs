//! How events come into memory: what was committed here where it follows on, and pages of the log for everything else.

use super::aside::lost_attempts;
use super::{Config, Slot, Tenant, earlier};
use crate::dispatch::queue::{JOB_BYTES, Job};
use crate::domain::event::LogEntry;
use crate::domain::filter::OrderingKey;
use crate::domain::ids::Position;
use crate::executor::EncodedEvent;
use crate::feed::Head;
use crate::store::dispatch::Place;
use crate::store::events::LogPlace;
use crate::store::settle::{Fate, Settled, Tried};
use chrono::{DateTime, Utc};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Of the memory that waiting events may have, the part (one in so many) that one tenant's heard entries may have.
const HEARD_SHARE: usize = 64;

/// What to read of the log.
#[derive(Debug)]
pub(in crate::dispatch) enum WantedPage {
    /// Entries after the place, up to the position.
    Log(LogPlace, Position),
    /// These were committed here: only their ordering keys are to be found.
    Keys(Vec<Arc<LogEntry>>),
}

/// What the log says beyond the cursor.
#[derive(Debug)]
pub(in crate::dispatch) struct LogPage {
    /// In order.
    pub entries: Vec<Arc<LogEntry>>,
    /// Of these entries, the invocations that are not pending.
    pub not_pending: HashSet<Place>,
    /// What of these entries' invocations is in order; what is left out is in none.
    pub keys: HashMap<Place, InOrder>,
    /// The head as it was after the entries were read: its registry is at least the one that matched them.
    pub head: Option<Head>,
}

/// What puts an invocation in order.
#[derive(Debug, Clone, Copy)]
pub(in crate::dispatch) struct InOrder {
    pub key: OrderingKey,
    /// The registry version of its subscription.
    pub version: i64,
}

impl Tenant {
    /// Hears of a head; true where it is newer in any respect.
    pub fn hear_head(&mut self, head: &Head) -> bool {
        let newer = head.position > self.head.position
            || head.registry_version > self.head.registry_version
            || head.deferred_version > self.head.deferred_version;
        // Every change of the registry writes its announcement with it, may begin a replay, and may end a wait.
        if head.registry_version > self.head.registry_version {
            self.announce = true;
            self.replay = true;
            self.offer_waiting();
        }
        self.head.position = self.head.position.max(head.position);
        self.head.registry_version = self.head.registry_version.max(head.registry_version);
        self.head.deferred_version = self.head.deferred_version.max(head.deferred_version);
        newer
    }

    /// Takes entries that this process committed where they follow on; others are read from the log.
    pub fn hear_committed(&mut self, entries: &[Arc<LogEntry>], now: DateTime<Utc>, config: &Config) {
        let Some(last) = entries.last() else { return };
        self.head.position = self.head.position.max(last.position);
        if !self.ordered && !self.reading && self.heard.first().is_none() && !self.is_full(config) {
            let next = self.next_position();
            let known = entries.partition_point(|entry| entry.position < next);
            for entry in &entries[known..] {
                if entry.position != self.next_position() || self.is_full(config) {
                    return;
                }
                self.take(entry, None, now, config);
            }
            return;
        }
        // Kept for the moment when the page that is being read ends where these begin.
        let bytes_max = if self.memory.is_scarce() { 0 } else { config.memory_bytes_max / HEARD_SHARE };
        self.heard.hear(entries, config.page_max as usize * 4, bytes_max);
    }

    /// What to read of the log, if it is to be read now. The answer comes by [`Self::page`] or [`Self::page_failed`].
    pub fn wants_page(&mut self, now: DateTime<Utc>, config: &Config) -> Option<WantedPage> {
        if self.reading || self.is_full(config) {
            return None;
        }
        if self.ordered {
            let next = self.next_position();
            self.heard.forget_before(next);
            if self.heard.first() == Some(next) {
                self.reading = true;
                return Some(WantedPage::Keys(self.heard.take(config.page_max as usize)));
            }
        } else {
            self.take_heard(now, config);
        }
        if self.is_full(config) || self.next_position() > self.head.position {
            return None;
        }
        self.reading = true;
        let day = self.window.back().map_or(self.day, |slot| slot.day);
        Some(WantedPage::Log(LogPlace { after: self.next_position() - 1, day }, self.head.position))
    }

    /// Takes a page of the log. False where it brought nothing though the head says that there is more: to be asked again
    /// later, since asking at once would find the same.
    pub fn page(&mut self, page: &LogPage, now: DateTime<Utc>, config: &Config) -> bool {
        self.reading = false;
        let next = self.next_position();
        if let Some(head) = &page.head {
            self.hear_head(head);
        }
        for entry in &page.entries {
            if entry.position == self.next_position() {
                self.take(entry, Some(page), now, config);
            }
        }
        if !self.ordered {
            self.take_heard(now, config);
        }
        if self.ordered && self.next_position() > next {
            self.review_waiting_for_log(now);
        }
        self.next_position() > next || next > self.head.position
    }

    /// The log could not be read; it is wanted again.
    pub fn page_failed(&mut self) {
        self.reading = false;
    }

    fn take_heard(&mut self, now: DateTime<Utc>, config: &Config) {
        self.heard.forget_before(self.next_position());
        while self.heard.first() == Some(self.next_position()) && !self.is_full(config) {
            for entry in self.heard.take(1) {
                self.take(&entry, None, now, config);
            }
        }
    }

    /// At a bound: what follows stays in the log.
    fn is_full(&self, config: &Config) -> bool {
        self.window.len() >= config.window_max || self.changes.len() >= config.settle_rows_max
    }

    fn take(&mut self, entry: &Arc<LogEntry>, page: Option<&LogPage>, now: DateTime<Utc>, config: &Config) {
        let day = entry.day();
        let mut cancelled_ahead = std::mem::take(&mut self.cancelled_ahead);
        let pending = |subscription_no| {
            let place = Place { position: entry.position, subscription_no };
            let settled = page.is_some_and(|page| page.not_pending.contains(&place));
            (!settled && !cancelled_ahead.contains(&place)).then_some(place)
        };
        let lost = lost_attempts(&self.unclean_ends, entry.committed_at);
        let mut open = 0;
        if !entry.matched.is_empty() {
            let event = Arc::new(EncodedEvent::kept(entry.clone(), &self.memory));
            for place in entry.matched.iter().filter_map(|no| pending(*no)) {
                let in_order = page.and_then(|page| page.keys.get(&place));
                let key = in_order.map(|in_order| in_order.key);
                let queue = self.queues.entry(place.subscription_no).or_default();
                if in_order.is_some_and(|now| now.version > self.claimed_version && queue.changed_to(now.version)) {
                    // The change may have begun a replay: whether anything comes before this one is looked for first.
                    queue.now_due(now);
                    self.next_due = Some(earlier(self.next_due, now));
                }
                let full = queue.waiting() >= config.queue_max || queue.is_held_back(&self.memory);
                let behind = key.is_some_and(|key| queue.has_rows() || queue.chains.is_full(key));
                if queue.aside || full || behind {
                    // Behind what is aside already, so that nothing overtakes it for ever.
                    queue.aside |= key.is_none();
                    let fate = Fate::Deferred { attempt: lost, base: lost, due_at: now };
                    self.note(Settled { place, day, deferred: false, key, tried: None, fate });
                    continue;
                }
                queue.arrived = self.reload_begun;
                queue.push(Job {
                    event: event.clone(),
                    place,
                    day,
                    in_window: true,
                    attempt: lost,
                    base: lost,
                    kept: self.memory.keep(JOB_BYTES),
                    key,
                });
                open += 1;
                queue.offer(place.subscription_no, &mut self.ready);
            }
        }
        for place in entry.refused.iter().filter_map(|no| pending(*no)) {
            let tried = Some(Tried { attempt: 0, started_at: now, duration: Duration::ZERO, outcome: None });
            let fate = Fate::Cancelled(entry.refusal(place.subscription_no));
            self.note(Settled { place, day, deferred: false, key: None, tried, fate });
        }
        self.window.push_back(Slot { day, open });
        self.open += open as usize;
        if !cancelled_ahead.is_empty() {
            cancelled_ahead.retain(|place| place.position > entry.position);
        }
        self.cancelled_ahead = cancelled_ahead;
        self.advance();
        if self.window.len() >= config.window_max {
            self.put_aside(self.first + Position::try_from(config.window_max / 2).unwrap_or(0), now);
        }
    }

    /// Notes everything unfinished before `position` in the store, so that the cursor can move on. What runs goes on running.
    fn put_aside(&mut self, position: Position, now: DateTime<Utc>) {
        let (mut aside, mut in_order) = (Vec::new(), Vec::new());
        for running in self.running.iter_mut().flatten() {
            let job = &mut running.job;
            if job.in_window && job.place.position < position {
                job.in_window = false;
                aside.push((job.place, job.day, job.attempt, job.base, job.key));
                // Its row is not to be loaded while it runs here.
                self.queues.entry(job.place.subscription_no).or_default().held.insert(job.place.position);
            }
        }
        for (no, queue) in &mut self.queues {
            let mut kept = VecDeque::with_capacity(queue.jobs.len());
            for job in queue.jobs.drain(..) {
                if job.in_window && job.place.position < position {
                    queue.aside = true;
                    aside.push((
                        Place { position: job.place.position, subscription_no: *no },
                        job.day,
                        job.attempt,
                        job.base,
                        None,
                    ));
                } else {
                    kept.push_back(job);
                }
            }
            queue.jobs = kept;
            // Of what is in order everything goes: nothing of a key may stay while something before it is elsewhere.
            if queue.chains.iter().any(|job| job.in_window && job.place.position < position) {
                for (key, job) in queue.chains.evict_waiting() {
                    queue.leaves(key);
                    in_order.push(job);
                }
            }
        }
        for (place, day, attempt, base, key) in aside {
            let fate = Fate::Deferred { attempt, base, due_at: now };
            self.note(Settled { place, day, deferred: false, key, tried: None, fate });
            self.close(place.position);
        }
        for job in in_order {
            self.put_back(&job, now);
        }
        self.advance();
    }

    pub(super) fn close(&mut self, position: Position) {
        let index = usize::try_from(position - self.first).ok();
        if let Some(slot) = index.and_then(|index| self.window.get_mut(index)) {
            self.open -= usize::from(slot.open > 0);
            slot.open = slot.open.saturating_sub(1);
        }
    }

    pub(super) fn advance(&mut self) {
        while let Some(slot) = self.window.front().filter(|slot| slot.open == 0) {
            self.day = slot.day;
            self.first += 1;
            self.window.pop_front();
        }
    }
}
