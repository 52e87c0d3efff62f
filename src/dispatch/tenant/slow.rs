//! Attempts that run for long. They leave their places among those in flight to others, for as many places of their own as the tenant may
//! have; the rest of them stay where they are. Where these are half of what the tenant may have in flight, each subscription has one attempt
//! at a time: what is left is for those that do well, one after the other, and not for as many of each that hangs as its policy allows.

use super::{Config, SubscriptionNo, Tenant};
use chrono::{DateTime, Utc};

impl Tenant {
    /// Attempts that run and have done so for long.
    pub fn slow(&self) -> usize {
        self.slow_count
    }

    /// Those that do not count as in flight any more.
    pub fn apart(&self) -> usize {
        self.apart_count
    }

    /// Marks the attempts that have run since before `before` as slow. They are set apart while so many places are left for that, those of
    /// all tenants together; a tenant takes no more than it leaves. True where that makes room for others.
    pub fn mark_slow(&mut self, before: DateTime<Utc>, mut places: usize) -> bool {
        let known = self.apart_count;
        if self.running_count == known {
            return false;
        }
        for running in self.running.iter_mut().flatten() {
            if !running.slow && running.started_at < before {
                running.slow = true;
                self.slow_count += 1;
                self.queues.entry(running.job.place.subscription_no).or_default().slow += 1;
            }
            if running.slow && !running.apart && self.apart_count < places {
                running.apart = true;
                self.apart_count += 1;
                places -= 1;
            }
        }
        self.apart_count > known
    }

    /// True where something runs that is not slow, or is to be written.
    pub fn is_moving(&self) -> bool {
        self.running_count > self.slow_count || self.is_writing()
    }

    /// Offers the subscriptions again that were held back; true where there are any.
    pub fn offer_held_back(&mut self) -> bool {
        let held_back: Vec<SubscriptionNo> = std::mem::take(&mut self.held_back);
        for no in &held_back {
            if let Some(queue) = self.queues.get_mut(no).filter(|queue| queue.can_start()) {
                queue.offer(*no, &mut self.ready);
            }
        }
        !held_back.is_empty()
    }

    /// True where slow attempts that are not set apart are half of what the tenant may have in flight.
    pub(super) fn is_crowded_by_slow(&self, free: usize, config: &Config) -> bool {
        let in_flight = self.running_count - self.apart_count;
        let may = config.tenant_in_flight_max.min(usize::midpoint(in_flight, free));
        let stuck = self.slow_count - self.apart_count;
        stuck > 0 && stuck * 2 >= may
    }
}

#[cfg(test)]
mod tests {
    use crate::dispatch::Config;
    use crate::dispatch::tenant::fixture::*;
    use crate::dispatch::tenant::{Next, Start, Tenant};
    use crate::domain::invocation::OutcomeClass;

    /// A tenant that may have so many in flight, with one event for each of these subscriptions.
    fn with_events(events: &[i32], tenant_in_flight_max: usize) -> (Tenant, Config) {
        let mut tenant = tenant();
        let entries: Vec<_> = (1..).zip(events).map(|(position, no)| entry(position, &[*no])).collect();
        hear(&mut tenant, &entries);
        (tenant, Config { tenant_in_flight_max, ..config() })
    }

    fn next(tenant: &mut Tenant, config: &Config) -> Option<Start> {
        match tenant.next(at(5_000), FREE, config, |_| Some(listener(3, 2))) {
            Next::Start(start) => Some(start),
            Next::Unsure | Next::Crowded(_) | Next::Nothing => None,
        }
    }

    #[test]
    fn slow_attempts_leave_their_places_to_others_while_places_of_their_own_are_left() {
        let (mut tenant, config) = with_events(&[1, 2, 3, 4, 5, 6], 3);
        (0..3).for_each(|_| drop(next(&mut tenant, &config).expect("3 may run")));
        assert!(next(&mut tenant, &config).is_none());
        assert!(!tenant.mark_slow(at(4_000), 5), "none has run for long");
        assert!(tenant.mark_slow(at(6_000), 5), "there is room for others now");
        assert_eq!((tenant.slow(), tenant.apart()), (3, 3), "no more than are left for others, but for one");
        (0..3).for_each(|_| drop(next(&mut tenant, &config).expect("3 more may run")));
        assert!(!tenant.mark_slow(at(6_000), 2), "the tenant has more places than are left");
        assert_eq!((tenant.slow(), tenant.apart()), (6, 3));
        assert!(next(&mut tenant, &config).is_none(), "it has in flight what it may");
    }

    #[test]
    fn while_a_tenant_leaves_subscriptions_with_slow_attempts_start_nothing_and_the_others_go_on() {
        let (mut tenant, config) = with_events(&[1, 1, 2, 2, 1], 9);
        let slow = next(&mut tenant, &config).expect("9 may run");
        assert!(tenant.is_moving());
        tenant.mark_slow(at(6_000), 9);
        assert!(!tenant.is_moving(), "what it does has no end that anybody knows");
        tenant.leaving = true;
        let started: Vec<_> = std::iter::from_fn(|| next(&mut tenant, &config)).collect();
        assert_eq!(started.iter().map(place).collect::<Vec<_>>(), [(3, 2), (4, 2)]);
        assert!(tenant.is_moving());
        for start in &started {
            end(&mut tenant, start, OutcomeClass::Succeeded);
        }
        assert!(tenant.is_moving(), "that is to be written");
        settle(&mut tenant);
        assert!(!tenant.is_moving() && !tenant.is_quiet());
        end(&mut tenant, &slow, OutcomeClass::Succeeded);
        assert_eq!(next(&mut tenant, &config).as_ref().map(place), Some((2, 1)), "it is not slow any more");
    }

    #[test]
    fn slow_attempts_hold_back_their_own_subscription_only_when_they_are_too_many() {
        let (mut tenant, config) = with_events(&[1, 2, 1, 2, 3], 6);
        let slow: Vec<_> = (0..2).map(|_| next(&mut tenant, &config).expect("6 may run")).collect();
        assert!(!tenant.mark_slow(at(6_000), 0), "no place is left for them");
        assert_eq!((tenant.slow(), tenant.apart()), (2, 0));
        let third = next(&mut tenant, &config).expect("2 of 6 are not many");
        assert_eq!(place(&third).1, 3, "the one that waited for longest");
        let fourth = next(&mut tenant, &config).expect("2 of 6 are not many");
        assert!(!tenant.mark_slow(at(6_000), 0));
        assert!(next(&mut tenant, &config).is_none(), "4 of 6 are, and what waits is theirs");
        assert!(!tenant.has_ready(), "nobody looks at it again and again");
        assert!(tenant.offer_held_back() && !tenant.offer_held_back(), "once a tick");
        assert!(next(&mut tenant, &config).is_none(), "nothing has changed");
        for start in [&third, &fourth] {
            end(&mut tenant, start, OutcomeClass::Succeeded);
        }
        assert!(tenant.offer_held_back());
        assert!(next(&mut tenant, &config).is_some(), "2 of 6 are not many again");
        for start in &slow {
            end(&mut tenant, start, OutcomeClass::Succeeded);
        }
        assert_eq!((tenant.slow(), tenant.apart()), (0, 0));
    }
}
