//! How invocations are attempted: limits, back-off, jitter, order, and what protects the receiver.

use super::filter::Filter;
use std::time::Duration;

/// How a subscription's invocations are attempted. Built by [`DeliveryPolicy::new`] and changed by its `with_` functions only,
/// so always within bounds.
#[derive(Debug, Clone, PartialEq)]
pub struct DeliveryPolicy {
    max_attempts: i32,
    initial_backoff: Duration,
    max_backoff: Duration,
    timeout: Duration,
    max_in_flight: i32,
    ordering: Option<KeyOrdering>,
    rate_limit: Option<RateLimit>,
    circuit_breaker: Option<CircuitBreaker>,
    auto_disable_after: Duration,
}

/// A token bucket: `count` attempts at once at most, and `count` per interval over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    count: i32,
    interval: Duration,
}

/// When attempts stop for a while because they only fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CircuitBreaker {
    failure_threshold: i32,
    open_duration: Duration,
}

impl RateLimit {
    /// Checks every bound.
    pub fn new(count: i32, interval: Duration) -> Result<Self, PolicyError> {
        if !(1..=1_000_000).contains(&count) {
            return Err(PolicyError::RateCount);
        }
        if !(Duration::from_millis(100)..=Duration::from_secs(86_400)).contains(&interval) {
            return Err(PolicyError::RateInterval);
        }
        Ok(Self { count, interval })
    }

    /// Attempts per interval, and at once.
    pub fn count(&self) -> i32 {
        self.count
    }

    /// The interval.
    pub fn interval(&self) -> Duration {
        self.interval
    }
}

impl CircuitBreaker {
    /// Checks every bound.
    pub fn new(failure_threshold: i32, open_duration: Duration) -> Result<Self, PolicyError> {
        if !(1..=10_000).contains(&failure_threshold) {
            return Err(PolicyError::FailureThreshold);
        }
        if !(Duration::from_millis(100)..=Duration::from_secs(3_600)).contains(&open_duration) {
            return Err(PolicyError::OpenDuration);
        }
        Ok(Self { failure_threshold, open_duration })
    }

    /// Failures in a row that open the circuit.
    pub fn failure_threshold(&self) -> i32 {
        self.failure_threshold
    }

    /// How long it stays open before a probe.
    pub fn open_duration(&self) -> Duration {
        self.open_duration
    }
}

/// Events with the same key are delivered one after the other, each after the first success of the one before.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyOrdering {
    /// The key, over the event. An event for which it is null or cannot be evaluated is in no order.
    pub key: Filter,
    /// What becomes of the events behind one that is a dead letter.
    pub on_dead_letter: OnDeadLetter,
}

/// What becomes of the events of a key behind one that is a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnDeadLetter {
    /// They go on without it.
    #[default]
    Skip,
    /// They wait until it is redriven or cancelled.
    Block,
}

/// Which bound a policy breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// `max_attempts`
    #[error("must be 1 to 50")]
    MaxAttempts,
    /// `initial_backoff`
    #[error("must be 1 ms to 1 h")]
    InitialBackoff,
    /// `max_backoff`
    #[error("must be initial_backoff to 24 h")]
    MaxBackoff,
    /// `timeout`
    #[error("must be 10 ms to 300 s")]
    Timeout,
    /// `max_in_flight`
    #[error("must be 1 to 1000")]
    MaxInFlight,
    /// `rate_limit.count`
    #[error("must be 1 to 1000000")]
    RateCount,
    /// `rate_limit.interval`
    #[error("must be 100 ms to 24 h")]
    RateInterval,
    /// `circuit_breaker.failure_threshold`
    #[error("must be 1 to 10000")]
    FailureThreshold,
    /// `circuit_breaker.open_duration`
    #[error("must be 100 ms to 1 h")]
    OpenDuration,
    /// `auto_disable_after`
    #[error("must be 1 s to 90 days")]
    AutoDisableAfter,
}

impl PolicyError {
    /// The field of the policy that is wrong.
    pub fn field(self) -> &'static str {
        match self {
            Self::MaxAttempts => "max_attempts",
            Self::InitialBackoff => "initial_backoff",
            Self::MaxBackoff => "max_backoff",
            Self::Timeout => "timeout",
            Self::MaxInFlight => "max_in_flight",
            Self::RateCount => "rate_limit.count",
            Self::RateInterval => "rate_limit.interval",
            Self::FailureThreshold => "circuit_breaker.failure_threshold",
            Self::OpenDuration => "circuit_breaker.open_duration",
            Self::AutoDisableAfter => "auto_disable_after",
        }
    }
}

impl Default for DeliveryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 8,
            initial_backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(3600),
            timeout: Duration::from_secs(30),
            max_in_flight: 32,
            ordering: None,
            rate_limit: None,
            circuit_breaker: None,
            auto_disable_after: Duration::from_secs(5 * 86_400),
        }
    }
}

impl DeliveryPolicy {
    /// Checks every bound.
    pub fn new(
        max_attempts: i32,
        initial_backoff: Duration,
        max_backoff: Duration,
        timeout: Duration,
        max_in_flight: i32,
    ) -> Result<Self, PolicyError> {
        let millisecond = Duration::from_millis(1);
        if !(1..=50).contains(&max_attempts) {
            return Err(PolicyError::MaxAttempts);
        }
        if !(millisecond..=Duration::from_secs(3600)).contains(&initial_backoff) {
            return Err(PolicyError::InitialBackoff);
        }
        if !(initial_backoff..=Duration::from_secs(86_400)).contains(&max_backoff) {
            return Err(PolicyError::MaxBackoff);
        }
        if !(10 * millisecond..=Duration::from_secs(300)).contains(&timeout) {
            return Err(PolicyError::Timeout);
        }
        if !(1..=1000).contains(&max_in_flight) {
            return Err(PolicyError::MaxInFlight);
        }
        Ok(Self { max_attempts, initial_backoff, max_backoff, timeout, max_in_flight, ..Self::default() })
    }

    /// With an order of delivery, or without.
    #[must_use]
    pub fn with_ordering(self, ordering: Option<KeyOrdering>) -> Self {
        Self { ordering, ..self }
    }

    /// With a rate limit, or without.
    #[must_use]
    pub fn with_rate_limit(self, rate_limit: Option<RateLimit>) -> Self {
        Self { rate_limit, ..self }
    }

    /// With a circuit breaker, or without.
    #[must_use]
    pub fn with_circuit_breaker(self, circuit_breaker: Option<CircuitBreaker>) -> Self {
        Self { circuit_breaker, ..self }
    }

    /// With another time of nothing but failures. Errors: outside 1 s to 90 days.
    pub fn with_auto_disable_after(self, auto_disable_after: Duration) -> Result<Self, PolicyError> {
        if !(Duration::from_secs(1)..=Duration::from_secs(90 * 86_400)).contains(&auto_disable_after) {
            return Err(PolicyError::AutoDisableAfter);
        }
        Ok(Self { auto_disable_after, ..self })
    }

    /// How many attempts may start over time; none where as many as there are.
    pub fn rate_limit(&self) -> Option<RateLimit> {
        self.rate_limit
    }

    /// When attempts stop for a while; none where never.
    pub fn circuit_breaker(&self) -> Option<CircuitBreaker> {
        self.circuit_breaker
    }

    /// After how long of nothing but failures the subscription is disabled.
    pub fn auto_disable_after(&self) -> Duration {
        self.auto_disable_after
    }

    /// In which order invocations run; none where they are independent.
    pub fn ordering(&self) -> Option<&KeyOrdering> {
        self.ordering.as_ref()
    }

    /// True where a dead letter holds up those of its key behind it.
    pub fn blocks_on_dead_letter(&self) -> bool {
        self.ordering.as_ref().is_some_and(|ordering| ordering.on_dead_letter == OnDeadLetter::Block)
    }

    /// Attempts before the invocation is a dead letter.
    pub fn max_attempts(&self) -> i32 {
        self.max_attempts
    }

    /// First back-off.
    pub fn initial_backoff(&self) -> Duration {
        self.initial_backoff
    }

    /// Largest back-off.
    pub fn max_backoff(&self) -> Duration {
        self.max_backoff
    }

    /// Time for one attempt.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Attempts that may run at the same time.
    pub fn max_in_flight(&self) -> i32 {
        self.max_in_flight
    }

    /// The wait after the `failed`-th failed attempt (1 for the first): exponential with full jitter.
    ///
    /// `jitter` is a random number in 0..1. A receiver's `retry_after` is a lower bound, itself clamped to 24 h.
    pub fn backoff(&self, failed: i32, jitter: f64, retry_after: Option<Duration>) -> Duration {
        let doublings = u32::try_from(failed - 1).unwrap_or(0).min(32);
        let ceiling = self.initial_backoff.saturating_mul(2_u32.saturating_pow(doublings)).min(self.max_backoff);
        let wait = ceiling.mul_f64(jitter.clamp(0.0, 1.0));
        let asked = retry_after.unwrap_or_default().min(Duration::from_secs(86_400));
        wait.max(asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backoff_doubles_up_to_its_cap_and_is_spread_by_full_jitter() {
        let policy = DeliveryPolicy::default();
        assert_eq!(policy.backoff(1, 1.0, None), Duration::from_secs(1));
        assert_eq!(policy.backoff(4, 1.0, None), Duration::from_secs(8));
        assert_eq!(policy.backoff(4, 0.5, None), Duration::from_secs(4));
        assert_eq!(policy.backoff(4, 0.0, None), Duration::ZERO);
        assert_eq!(policy.backoff(50, 1.0, None), Duration::from_secs(3600));
    }

    #[test]
    fn retry_after_is_a_lower_bound_and_an_absurd_one_is_clamped() {
        let policy = DeliveryPolicy::default();
        assert_eq!(policy.backoff(1, 0.0, Some(Duration::from_secs(90))), Duration::from_secs(90));
        assert_eq!(policy.backoff(1, 0.0, Some(Duration::from_secs(u64::MAX))), Duration::from_secs(86_400));
    }

    #[test]
    fn policies_outside_the_bounds_name_the_field() {
        let ok = DeliveryPolicy::default();
        let attempt = |n| DeliveryPolicy::new(n, ok.initial_backoff, ok.max_backoff, ok.timeout, 1);
        assert_eq!(attempt(0), Err(PolicyError::MaxAttempts));
        assert_eq!(attempt(51), Err(PolicyError::MaxAttempts));
        let short_cap = DeliveryPolicy::new(1, Duration::from_secs(2), Duration::from_secs(1), ok.timeout, 1);
        assert_eq!(short_cap, Err(PolicyError::MaxBackoff));
    }
}
