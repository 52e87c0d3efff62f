//! Subscriptions that must wait for a time, though something of theirs could start: a rate limit, an open circuit, a receiver's wish.

use super::Tenant;
use crate::domain::health::{Health, HealthRow};
use crate::domain::ids::SubscriptionNo;
use chrono::{DateTime, Utc};
use std::cmp::Reverse;

impl Tenant {
    /// A subscription must not start anything before this time; none where it is offered again by then anyway.
    pub(super) fn resume_later(&mut self, no: SubscriptionNo, at: Option<DateTime<Utc>>) {
        let Some((at, queue)) = at.zip(self.queues.get_mut(&no)) else { return };
        queue.resume_at = Some(at);
        self.resumes.push(Reverse((at, no)));
    }

    /// When a subscription that must wait is to be offered again.
    pub fn next_resume(&self) -> Option<DateTime<Utc>> {
        self.resumes.peek().map(|Reverse((at, _))| *at)
    }

    /// Offers the subscriptions whose wait is over.
    pub fn resume(&mut self, now: DateTime<Utc>) {
        while let Some(Reverse((at, no))) = self.resumes.peek().copied()
            && at <= now
        {
            self.resumes.pop();
            let Some(queue) = self.queues.get_mut(&no) else { continue };
            if queue.resume_at == Some(at) {
                queue.resume_at = None;
            }
            if queue.can_start() {
                queue.offer(no, &mut self.ready);
            }
        }
    }

    /// Takes what the former owner kept of how receivers do.
    pub fn restore_health(&mut self, kept: &[HealthRow]) {
        for row in kept {
            self.queues.entry(row.subscription_no).or_default().health = Health::restore(row);
        }
    }

    /// Offers every subscription that waits for a time: it may have been changed, and then nothing holds it.
    pub(super) fn offer_waiting(&mut self) {
        for Reverse((_, no)) in &self.resumes {
            let Some(queue) = self.queues.get_mut(no) else { continue };
            if queue.can_start() {
                queue.offer(*no, &mut self.ready);
            }
        }
    }
}
