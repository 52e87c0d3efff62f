//! How much a tenant may publish: its rates, and whether what it has published before is dealt with.
//!
//! Asked at the door of Publish, before anything is queued or written, so a refusal has no effect. A call that only repeats an earlier one
//! is answered all the same: who asks looks that up, once it is refused. The rates are those of this replica: their state is in memory,
//! belongs to nobody else, and begins anew with the process. Carillon's own events never come here.

use super::PublishError;
use super::registry::{Registry, TenantRegistry};
use crate::domain::ids::TenantId;
use crate::domain::quotas::{Limits, Overrides, Quota};
use crate::store::StoreError;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// When a tenant at its backlog may try again.
const BACKLOG_RETRY: Duration = Duration::from_secs(1);
/// Between two looks at whether a quota that refuses is still what it was.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// A token in the measure of the buckets: what comes in a nanosecond at one a second is a whole number.
const TOKEN: u128 = 1_000_000_000;

/// What the database says of a tenant's quotas.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// What an operator has set.
    pub overrides: Overrides,
    /// True where more waits to be delivered than may.
    pub backlog_full: bool,
}

/// What a tenant may publish now. Shared by all calls of this process.
pub(super) struct Allowance {
    limits: Limits,
    backlog_full: bool,
    buckets: Arc<Buckets>,
    looked_at: Mutex<Instant>,
}

/// The buckets of both rates. They are drawn from together.
struct Buckets {
    events: Rate,
    bytes: Rate,
    levels: Mutex<Levels>,
}

/// How fast tokens come, and how many a bucket holds.
struct Rate {
    quota: Quota,
    burst: Quota,
    per_second: u128,
    tokens_max: u128,
}

/// What the buckets hold, in the measure of [`TOKEN`].
struct Levels {
    events: u128,
    bytes: u128,
    at: Instant,
}

impl Allowance {
    pub fn new(limits: Limits, standing: Standing) -> Self {
        let limits = limits.with(&standing.overrides);
        let buckets = Buckets::full(&limits);
        let looked_at = Mutex::new(Instant::now());
        Self { limits, backlog_full: standing.backlog_full, buckets: Arc::new(buckets), looked_at }
    }

    /// By a newer standing. Tokens are kept where the rates stay what they were.
    pub fn changed(&self, limits: Limits, standing: Standing) -> Self {
        let fresh = Self::new(limits, standing);
        if fresh.limits == self.limits { Self { buckets: Arc::clone(&self.buckets), ..fresh } } else { fresh }
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Takes what a call needs, or nothing of it.
    fn take(&self, events: usize, bytes: usize) -> Result<(), PublishError> {
        if self.backlog_full {
            let (quota, retry) = (Quota::Backlog, Some(BACKLOG_RETRY));
            return Err(PublishError::Quota { quota, limit: self.limits.get(quota), retry });
        }
        let (quota, retry) = match self.buckets.take(events, bytes, Instant::now()) {
            Ok(()) => return Ok(()),
            Err(refusal) => refusal,
        };
        Err(PublishError::Quota { quota, limit: self.limits.get(quota), retry })
    }

    /// True once in a while.
    fn is_stale(&self) -> bool {
        let mut looked_at = self.looked_at.lock().unwrap_or_else(PoisonError::into_inner);
        let stale = looked_at.elapsed() >= LOOK_AGAIN;
        if stale {
            *looked_at = Instant::now();
        }
        stale
    }
}

impl Buckets {
    fn full(limits: &Limits) -> Self {
        let rate = |quota, burst| Rate {
            quota,
            burst,
            per_second: limits.get(quota).max(1).into(),
            tokens_max: u128::from(limits.get(burst)) * TOKEN,
        };
        let events = rate(Quota::PublishEventsPerSecond, Quota::PublishEventsBurst);
        let bytes = rate(Quota::PublishBytesPerSecond, Quota::PublishBytesBurst);
        let full = Levels { events: events.tokens_max, bytes: bytes.tokens_max, at: Instant::now() };
        Self { events, bytes, levels: Mutex::new(full) }
    }

    /// Takes the tokens of both, or of neither. Errors: the quota, and after what time there are enough; none where there never are.
    fn take(&self, events: usize, bytes: usize, now: Instant) -> Result<(), (Quota, Option<Duration>)> {
        let mut levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.saturating_duration_since(levels.at).as_nanos();
        levels.at = levels.at.max(now);
        levels.events = self.events.filled(levels.events, passed);
        levels.bytes = self.bytes.filled(levels.bytes, passed);
        let (events, bytes) = (events as u128 * TOKEN, bytes as u128 * TOKEN);
        // What never fits is told first: waiting for the other would be in vain.
        self.events.fits(events)?;
        self.bytes.fits(bytes)?;
        let left = (self.events.left(levels.events, events)?, self.bytes.left(levels.bytes, bytes)?);
        (levels.events, levels.bytes) = left;
        Ok(())
    }
}

impl Rate {
    /// A level after so many nanoseconds.
    fn filled(&self, level: u128, passed: u128) -> u128 {
        passed.saturating_mul(self.per_second).saturating_add(level).min(self.tokens_max)
    }

    fn fits(&self, wanted: u128) -> Result<(), (Quota, Option<Duration>)> {
        if wanted > self.tokens_max { Err((self.burst, None)) } else { Ok(()) }
    }

    /// What is left of a level.
    fn left(&self, level: u128, wanted: u128) -> Result<u128, (Quota, Option<Duration>)> {
        level.checked_sub(wanted).ok_or_else(|| {
            let nanos = (wanted - level).div_ceil(self.per_second);
            (self.quota, Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))))
        })
    }
}

impl Registry {
    /// Lets a call publish events of these sizes, bytes, or refuses it whole. One that is larger than may be counts as the largest: it is
    /// refused as that, later.
    ///
    /// What this replica knows of the quotas may be old where it publishes nothing: before it refuses it looks again, now and then.
    ///
    /// Errors: [`PublishError::Quota`].
    pub async fn admit(
        &self,
        tenant: &TenantRegistry,
        sizes: impl ExactSizeIterator<Item = usize>,
    ) -> Result<(), PublishError> {
        let allowance = tenant.allowance();
        let largest = tenant.event_bytes_max();
        let count = sizes.len();
        let (mut bytes, mut too_large) = (0, false);
        for size in sizes {
            bytes += size.min(largest);
            too_large |= size > largest;
        }
        let mut taken = allowance.take(count, bytes);
        if (too_large || taken.is_err()) && allowance.is_stale() {
            self.reload(tenant.tenant()).await?;
            if taken.is_err() {
                taken = tenant.allowance().take(count, bytes);
            }
        }
        taken
    }

    /// What the database says now.
    pub(super) async fn standing(&self, tenant: TenantId) -> Result<Standing, StoreError> {
        let (overrides, backlog_full) = self.store().quotas(tenant).await?;
        Ok(Standing { overrides, backlog_full })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(rate: u64, burst: u64) -> Limits {
        Limits::new(|quota| match quota {
            Quota::PublishEventsPerSecond => rate,
            Quota::PublishEventsBurst => burst,
            _ => *quota.bounds().end(),
        })
    }

    fn refusal(taken: Result<(), PublishError>) -> (Quota, Option<Duration>) {
        match taken {
            Err(PublishError::Quota { quota, retry, .. }) => (quota, retry),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_burst_passes_then_the_rate_counts_and_what_never_fits_has_no_time_to_wait_for() {
        let allowance = Allowance::new(limits(1, 3), Standing::default());
        assert!(allowance.take(3, 10).is_ok());
        let (quota, retry) = refusal(allowance.take(1, 10));
        assert_eq!(quota, Quota::PublishEventsPerSecond);
        assert!(retry.is_some_and(|retry| retry <= Duration::from_secs(1) && retry > Duration::from_millis(100)));
        assert_eq!(refusal(allowance.take(4, 10)), (Quota::PublishEventsBurst, None));
    }

    #[test]
    fn a_call_that_one_rate_refuses_takes_nothing_of_the_other() {
        let quotas = |quota| match quota {
            Quota::PublishEventsPerSecond | Quota::PublishBytesPerSecond => 1,
            Quota::PublishEventsBurst => 2,
            _ => 1_000,
        };
        let allowance = Allowance::new(Limits::new(quotas), Standing::default());
        assert!(allowance.take(1, 900).is_ok());
        for _ in 0..10 {
            assert_eq!(refusal(allowance.take(1, 900)).0, Quota::PublishBytesPerSecond);
            assert_eq!(refusal(allowance.take(1, 1_001)), (Quota::PublishBytesBurst, None));
        }
        assert!(allowance.take(1, 50).is_ok(), "the second event's token is there");
    }

    #[test]
    fn tokens_come_at_the_rate_and_never_more_than_the_burst() {
        let (start, buckets) = (Instant::now(), Buckets::full(&limits(1_000, 10)));
        let after = |millis| start + Duration::from_secs(1) + Duration::from_millis(millis);
        let taken = |now| (0..100).take_while(|_| buckets.take(1, 0, now).is_ok()).count();
        assert_eq!((taken(after(0)), taken(after(0)), taken(after(3)), taken(after(9_000))), (10, 0, 3, 10));
        let refused = buckets.take(4, 0, after(9_000)).expect_err("they are taken");
        assert_eq!(refused, (Quota::PublishEventsPerSecond, Some(Duration::from_millis(4))));
        assert_eq!(buckets.take(1, 0, after(0)).expect_err("a clock that goes back gives none").0, refused.0);
    }

    #[test]
    fn a_full_backlog_refuses_whatever_tokens_there_are() {
        let full = Standing { backlog_full: true, ..Standing::default() };
        let allowance = Allowance::new(limits(10, 10), Standing::default());
        assert_eq!(refusal(allowance.changed(limits(10, 10), full).take(1, 1)).0, Quota::Backlog);
        assert!(allowance.changed(limits(10, 10), Standing::default()).take(10, 1).is_ok());
        assert_eq!(refusal(allowance.take(1, 1)).0, Quota::PublishEventsPerSecond, "the tokens are the same ones");
    }

    #[test]
    fn other_rates_begin_with_full_buckets() {
        let allowance = Allowance::new(limits(1, 1), Standing::default());
        assert!(allowance.take(1, 1).is_ok());
        assert!(allowance.take(1, 1).is_err());
        let mut standing = Standing::default();
        standing.overrides.set(Quota::PublishEventsBurst, Some(5));
        assert!(allowance.changed(limits(1, 1), standing).take(5, 1).is_ok());
    }

    #[test]
    fn the_largest_rates_have_buckets_too() {
        let allowance = Allowance::new(Limits::new(|quota| *quota.bounds().end()), Standing::default());
        assert!(allowance.take(1_000, 4_194_304).is_ok());
        let least = Limits::new(|quota| *quota.bounds().start());
        let allowance = Allowance::new(least, Standing::default());
        assert!(allowance.take(1, 1_024).is_ok());
        assert_eq!(
            refusal(Allowance::new(least, Standing::default()).take(1, 1_025)),
            (Quota::PublishBytesBurst, None)
        );
    }
}
