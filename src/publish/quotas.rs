//! How much a tenant may publish: its rates, and whether what it has published before is dealt with.
//!
//! Asked at the door of Publish, before anything is queued or written, so a refusal has no effect. The rates are those of this
//! replica: their state is in memory, belongs to nobody else, and begins anew with the process. Carillon's own events never come here.

use super::PublishError;
use super::registry::{Registry, TenantRegistry};
use crate::domain::ids::TenantId;
use crate::domain::quotas::{Limits, Overrides, Quota};
use crate::store::StoreError;
use crate::telemetry::measured;
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota as Rate, RateLimiter};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// When a tenant at its backlog may try again.
const BACKLOG_RETRY: Duration = Duration::from_secs(1);
/// Between two looks at whether a quota that refuses is still what it was.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// A bucket's finest measure is a second's worth divided by this: its clock counts nanoseconds.
const UNITS_PER_SECOND_MAX: u64 = 10_000_000;

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

struct Buckets {
    events: Bucket,
    bytes: Bucket,
}

/// Tokens of one rate.
struct Bucket {
    quota: Quota,
    burst: Quota,
    unit: u64,
    tokens: DefaultDirectRateLimiter,
}

impl Allowance {
    pub fn new(limits: Limits, standing: Standing) -> Self {
        let limits = limits.with(&standing.overrides);
        let bucket = |quota, burst| Bucket::new(quota, burst, &limits);
        let buckets = Buckets {
            events: bucket(Quota::PublishEventsPerSecond, Quota::PublishEventsBurst),
            bytes: bucket(Quota::PublishBytesPerSecond, Quota::PublishBytesBurst),
        };
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
        self.buckets.events.take(events, &self.limits)?;
        self.buckets.bytes.take(bytes, &self.limits)
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

impl Bucket {
    fn new(quota: Quota, burst: Quota, limits: &Limits) -> Self {
        let unit = limits.get(quota).div_ceil(UNITS_PER_SECOND_MAX).max(1);
        let rate = Rate::per_second(units(limits.get(quota), unit)).allow_burst(units(limits.get(burst), unit));
        Self { quota, burst, unit, tokens: RateLimiter::direct(rate) }
    }

    fn take(&self, count: usize, limits: &Limits) -> Result<(), PublishError> {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        let refused = |quota, retry| Err(PublishError::Quota { quota, limit: limits.get(quota), retry });
        match self.tokens.check_n(units(count, self.unit)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(not_until)) => refused(self.quota, Some(not_until.wait_time_from(DefaultClock::default().now()))),
            // More than comes at once ever: waiting does not help.
            Err(_) => refused(self.burst, None),
        }
    }
}

/// Tokens that stand for so much.
fn units(amount: u64, unit: u64) -> NonZeroU32 {
    let tokens = u32::try_from(amount.div_ceil(unit)).unwrap_or(u32::MAX);
    NonZeroU32::new(tokens).unwrap_or(NonZeroU32::MIN)
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
        if let Err(PublishError::Quota { quota, .. }) = &taken {
            measured().publish.refused(quota.name());
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
