//! What leaves memory and what comes back: settling, deferred work, callers' changes.

use super::{Batch, Config, Room, Tenant, earlier, job_bytes};
use crate::dispatch::queue::Job;
use crate::dispatch::run::DuePage;
use crate::domain::ids::{Position, SubscriptionNo};
use crate::executor::EncodedEvent;
use crate::store::dispatch::Place;
use crate::store::settle::Fate;
use chrono::{DateTime, Utc};
use std::collections::HashSet;
use std::sync::Arc;

impl Tenant {
    /// The changes and the cursor to write, where something is to be written. One at a time: the answer comes by
    /// [`Self::settled`].
    pub fn cut(&mut self) -> Option<Batch> {
        if !self.has_changes() && !self.cursor_moved() {
            return None;
        }
        self.settling = true;
        Some(Batch { cursor: self.cursor(), changes: std::mem::take(&mut self.changes) })
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
            let Some(queue) = self.queues.get_mut(&change.place.subscription_no) else { continue };
            let position = change.place.position;
            match change.fate {
                // Put aside while it ran, or runs still: the row is not to be loaded.
                Fate::Deferred { .. } if !change.deferred && queue.held.contains(&position) => continue,
                Fate::Deferred { due_at, .. } => {
                    queue.now_due(due_at);
                    self.next_due = Some(earlier(self.next_due, due_at));
                }
                Fate::Dead { .. } => self.announce = true,
                Fate::Succeeded | Fate::Cancelled(_) => {}
            }
            if change.deferred {
                queue.let_go(position);
            }
        }
    }

    // ------------------------------------------------------------ deferred work

    /// True while something is being read that will bring invocations into memory.
    pub fn is_loading(&self) -> bool {
        self.reading || self.queues.values().any(|queue| queue.loading)
    }

    /// Takes what the store says about deferred work: the first due time of each subscription.
    pub fn due_summary(&mut self, due: &[(SubscriptionNo, DateTime<Utc>)]) {
        for (no, due_at) in due {
            self.queues.entry(*no).or_default().now_due(*due_at);
            self.next_due = Some(earlier(self.next_due, *due_at));
        }
    }

    /// Subscriptions whose deferred rows are to be loaded, with the positions to leave out. Each answers by [`Self::due`].
    ///
    /// While memory is full, only a subscription that has nothing else to do gets any.
    pub fn wants_due(
        &mut self,
        now: DateTime<Utc>,
        room: Room,
        config: &Config,
    ) -> Vec<(SubscriptionNo, Vec<Position>)> {
        if self.next_due.is_none_or(|due| due > now) {
            return Vec::new();
        }
        let mut wanted = Vec::new();
        self.next_due = None;
        for (no, queue) in &mut self.queues {
            let Some(due) = queue.next_due else { continue };
            if due > now {
                self.next_due = Some(earlier(self.next_due, due));
            } else if !queue.loading && queue.jobs.len() <= if room.memory_full { 0 } else { config.queue_max / 4 } {
                queue.start_loading();
                wanted.push((*no, queue.held.iter().copied().collect()));
            }
            // A full queue asks again when it has drained.
        }
        wanted
    }

    /// Takes deferred rows, by due time, a page at most; their events by position.
    pub fn due(&mut self, no: SubscriptionNo, page: &DuePage, config: &Config) {
        let DuePage { rows, events, at, more } = page;
        let now = *at;
        let Some(queue) = self.queues.get_mut(&no) else { return };
        let (gone, due_since) = queue.stop_loading();
        let mut next_due = due_since;
        if *more && let Some(last) = rows.last() {
            next_due = Some(earlier(next_due, last.due_at));
        }
        for row in rows {
            if row.due_at > now {
                next_due = Some(earlier(next_due, row.due_at));
                break;
            }
            if gone.contains(&row.position) || !queue.held.insert(row.position) {
                continue;
            }
            // An event that retention has taken cannot run; its row stays held and is never asked for again.
            let Some(entry) = events.get(&row.position) else { continue };
            let lost = i32::from(self.unclean_until.is_some_and(|until| row.due_at < until));
            let bytes = job_bytes(entry);
            self.memory_bytes += bytes;
            queue.arrived = self.reload_begun;
            queue.jobs.push_back(Job {
                event: Arc::new(EncodedEvent::new(entry.clone())),
                place: Place { position: row.position, subscription_no: no },
                day: row.day,
                in_window: false,
                attempt: row.attempt + lost,
                base: row.attempt_base + lost,
                bytes,
            });
        }
        queue.next_due = next_due;
        // Nothing due is left aside: new work may go straight into the queue again.
        queue.aside = queue.aside && next_due.is_some_and(|due| due <= now);
        if !queue.jobs.is_empty() {
            queue.offer(no, &mut self.ready);
        }
        if let Some(due) = queue.wants_more(config.queue_max) {
            self.next_due = Some(earlier(self.next_due, due));
        }
    }

    /// The rows could not be loaded; they are wanted again at `retry_at`.
    pub fn due_failed(&mut self, no: SubscriptionNo, retry_at: DateTime<Utc>) {
        let Some(queue) = self.queues.get_mut(&no) else { return };
        let _ = queue.stop_loading();
        queue.now_due(retry_at);
        self.next_due = Some(earlier(self.next_due, retry_at));
    }

    /// Invocations in memory that wait and have a row; a caller may have cancelled them.
    pub fn waiting_rows(&self) -> Vec<Place> {
        let jobs = self.queues.values().flat_map(|queue| &queue.jobs);
        jobs.filter(|job| !job.in_window).map(|job| job.place).collect()
    }

    /// Drops what a caller has cancelled, where it has not started.
    pub fn revoke(&mut self, revoked: &HashSet<Place>) {
        if revoked.is_empty() {
            return;
        }
        let mut closed = Vec::new();
        for queue in self.queues.values_mut() {
            let held = &mut queue.held;
            let memory_bytes = &mut self.memory_bytes;
            queue.jobs.retain(|job| {
                if !revoked.contains(&job.place) {
                    return true;
                }
                *memory_bytes -= job.bytes;
                if job.in_window {
                    closed.push(job.place.position);
                } else {
                    held.remove(&job.place.position);
                }
                false
            });
        }
        for position in closed {
            self.close(position);
        }
        self.advance();
    }
}
