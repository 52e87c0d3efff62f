//! Subscriptions that must wait for a time, though something of theirs could start: a rate limit, an open circuit, a receiver's wish.

use super::Tenant;
use crate::domain::health::{Health, HealthRow};
use crate::domain::ids::SubscriptionNo;
use crate::store::rates::Rate;
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

    /// Takes what the former owner has left of rate limits.
    pub fn restore_rates(&mut self, kept: &[Rate]) {
        for rate in kept {
            self.queues.entry(rate.subscription_no).or_default().restore_rate(rate);
        }
    }

    /// What the next owner needs to know of rate limits: of the buckets that something was taken from since this was last asked.
    pub(super) fn rates(&mut self) -> Vec<Rate> {
        let rated = std::mem::take(&mut self.rated);
        rated.into_iter().filter_map(|no| self.queues.get(&no)?.rate(no)).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::tenant::fixture::*;
    use crate::dispatch::tenant::{Config, Ended, Listener, Next, Start};
    use crate::domain::invocation::{Outcome, OutcomeClass};
    use crate::domain::retry::{CircuitBreaker, RateLimit};
    use std::time::Duration;

    #[test]
    fn a_tenant_with_as_much_in_flight_as_is_left_says_so_where_something_waits() {
        let mut tenant = tenant();
        hear(&mut tenant, &[entry(1, &[1]), entry(2, &[1, 2])]);
        let _running = [start(&mut tenant), start(&mut tenant)];
        let narrow = 2;
        assert!(matches!(tenant.next(at(1_000), narrow, &config(), active), Next::Crowded(2)));
        let own = Config { tenant_in_flight_max: 2, ..config() };
        assert!(matches!(tenant.next(at(1_000), narrow, &own, active), Next::Nothing), "its own ends lead back");
        assert!(start(&mut tenant).is_some());
        assert!(matches!(tenant.next(at(1_000), narrow, &config(), active), Next::Nothing), "nothing waits");
    }

    #[test]
    fn a_replay_adds_nothing_to_what_waits_for_a_receiver() {
        let mut tenant = tenant();
        hear(&mut tenant, &(1..=4).map(|position| entry(position, &[1])).collect::<Vec<_>>());
        hear(&mut tenant, &[entry(5, &[2])]);
        assert_eq!(tenant.busy(&config()), [1], "more than a quarter of a queue");
        let slow = Config { queue_max: 80, replay_per_second: 1, ..config() };
        assert!(tenant.busy(&slow).is_empty(), "less than ten seconds bring");
        let hanging =
            [start(&mut tenant), start(&mut tenant), start(&mut tenant)].map(|start| start.expect("it waits"));
        assert!(tenant.busy(&config()).is_empty(), "what runs does not wait");
        assert_eq!(hanging.iter().filter(|start| place(start).1 == 1).count(), 2);
    }

    #[test]
    fn what_is_left_of_a_rate_over_a_long_interval_is_what_the_next_owner_may_spend() {
        for (interval, left) in [(86_400, 1), (1, 3)] {
            let limit = RateLimit::new(3, Duration::from_secs(interval)).expect("within bounds");
            let policy = listener(3, 100).policy.with_rate_limit(Some(limit));
            let of = |version| {
                let policy = policy.clone();
                move |_| Some(Listener { version, policy: policy.clone(), ..listener(3, 100) })
            };
            let entries: Vec<_> = (1..=4).map(|position| entry(position, &[1])).collect();
            let mut owner = tenant();
            hear(&mut owner, &entries);
            let attempts =
                [start_with(&mut owner, of(1)), start_with(&mut owner, of(1))].map(|start| start.expect("it may"));
            end(&mut owner, &attempts[0], OutcomeClass::Succeeded);
            let kept = owner.cut().expect("one has ended").rates;
            for (version, left) in [(1, left), (2, 3)] {
                let mut next = tenant();
                next.restore_rates(&kept);
                hear(&mut next, &entries);
                let started = std::iter::from_fn(|| start_with(&mut next, of(version))).count();
                assert_eq!(started, left, "{interval} s, version {version}");
            }
        }
    }

    #[test]
    fn what_began_before_a_change_says_nothing_of_the_receiver_since() {
        let breaker = CircuitBreaker::new(3, Duration::from_secs(30)).expect("within bounds");
        let of = |version| {
            let listener = listener(3, 100);
            move |_| {
                let policy = listener.policy.clone().with_circuit_breaker(Some(breaker));
                Some(Listener { version, policy, ..listener.clone() })
            }
        };
        let fails = |tenant: &mut Tenant, start: &Start, retry_after| {
            let outcome =
                Outcome { class: OutcomeClass::Throttled, status_code: 503, retry_after, excerpt: None, error: None };
            let ended = Ended { started_at: at(1_000), duration: Duration::from_millis(1), outcome };
            tenant.ended(start.key, ended, at(1_001), 0.5);
        };
        let mut tenant = tenant();
        hear(&mut tenant, &(1..=8).map(|position| entry(position, &[1])).collect::<Vec<_>>());
        let old: Vec<Start> = (0..4).map(|_| start_with(&mut tenant, of(1)).expect("it waits")).collect();
        let new = start_with(&mut tenant, of(2)).expect("it waits");
        for attempt in &old[..3] {
            fails(&mut tenant, attempt, Some(Duration::from_secs(3_600)));
        }
        assert!(tenant.notes.is_empty(), "the circuit stays closed");
        let next = start_with(&mut tenant, of(2)).expect("neither a pause nor a circuit holds it");
        fails(&mut tenant, &new, None);
        end(&mut tenant, &old[3], OutcomeClass::Succeeded);
        assert!(tenant.queues[&1].health.shared(1).failing_since.is_some(), "an old success clears nothing");
        fails(&mut tenant, &next, Some(Duration::from_secs(20)));
        assert!(start_with(&mut tenant, of(2)).is_none(), "what it asks for itself counts");
        assert_eq!(settle(&mut tenant).len(), 6, "what becomes of the invocations is decided as ever");
    }
}
