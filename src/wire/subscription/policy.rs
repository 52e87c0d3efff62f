//! Delivery policies between proto and domain, as a whole and field by field for update masks. Pure.

use super::SubscriptionError;
use super::expressions::stored_key;
use crate::domain::filter::Filter;
use crate::domain::retry::{CircuitBreaker, DeliveryPolicy, KeyOrdering, OnDeadLetter, PolicyError, RateLimit};
use crate::domain::subscription::{Circuit, CircuitState, Subscription};
use crate::proto::public as proto;
use crate::wire::FieldError;
use crate::wire::pre::UNORDERED;
use crate::wire::time::{duration_to_proto, parse_duration, timestamp_to_proto};
use pbjson_types::Duration as ProtoDuration;
use std::time::Duration;

/// A field of the delivery policy, or of one of its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PolicyPart {
    MaxAttempts,
    InitialBackoff,
    MaxBackoff,
    Timeout,
    MaxInFlight,
    RateLimit,
    RateLimitCount,
    RateLimitInterval,
    CircuitBreaker,
    FailureThreshold,
    OpenDuration,
    AutoDisableAfter,
    Ordering,
    OrderingKey,
    OnDeadLetter,
}

/// Makes an ordering key of a field's expression; none where it is empty.
type ParseKey = fn(&str, &str) -> Result<Option<Filter>, SubscriptionError>;

/// Checks a policy; none is the default one, and what it leaves out is its default.
pub(super) fn parse_policy(
    field: &str,
    policy: Option<&proto::DeliveryPolicy>,
    key: ParseKey,
) -> Result<DeliveryPolicy, SubscriptionError> {
    let Some(policy) = policy else { return Ok(DeliveryPolicy::default()) };
    let default = DeliveryPolicy::default();
    let count = |value: i32, default: i32| if value == 0 { default } else { value };
    let duration = |name: &str, value: &Option<ProtoDuration>| {
        value.as_ref().map(|value| parse_duration(&format!("{field}.{name}"), value)).transpose()
    };
    let max_attempts = count(policy.max_attempts, default.max_attempts());
    let initial_backoff = duration("initial_backoff", &policy.initial_backoff)?.unwrap_or(default.initial_backoff());
    let max_backoff = duration("max_backoff", &policy.max_backoff)?;
    let max_backoff = max_backoff.unwrap_or(default.max_backoff().max(initial_backoff));
    let timeout = duration("timeout", &policy.timeout)?.unwrap_or(default.timeout());
    let max_in_flight = count(policy.max_in_flight, default.max_in_flight());
    let rate_limit = policy.rate_limit.as_ref().map(|limit| {
        let interval = duration("rate_limit.interval", &limit.interval)?.unwrap_or(Duration::from_secs(1));
        RateLimit::new(limit.count, interval).map_err(|error| out_of_bounds(field, error))
    });
    let circuit_breaker = policy.circuit_breaker.as_ref().map(|breaker| {
        let open = duration("circuit_breaker.open_duration", &breaker.open_duration)?;
        CircuitBreaker::new(count(breaker.failure_threshold, 10), open.unwrap_or(Duration::from_secs(30)))
            .map_err(|error| out_of_bounds(field, error))
    });
    let auto_disable_after = duration("auto_disable_after", &policy.auto_disable_after)?;
    let ordering = policy.ordering.as_ref().map(|ordering| parse_ordering(&format!("{field}.ordering"), ordering, key));
    let (rate_limit, circuit_breaker) = (rate_limit.transpose()?, circuit_breaker.transpose()?);
    let ordering = ordering.transpose()?;
    let policy = DeliveryPolicy::new(max_attempts, initial_backoff, max_backoff, timeout, max_in_flight)
        .map(|policy| policy.with_ordering(ordering).with_rate_limit(rate_limit).with_circuit_breaker(circuit_breaker))
        .and_then(|policy| policy.with_auto_disable_after(auto_disable_after.unwrap_or(default.auto_disable_after())));
    Ok(policy.map_err(|error| out_of_bounds(field, error))?)
}

/// Takes over a changed policy; its bounds are checked on the whole. A listener of PRE events that has an order, which means nothing,
/// may keep it.
pub(super) fn update_policy(
    field: &str,
    subscription: &mut Subscription,
    changed: &proto::DeliveryPolicy,
) -> Result<(), SubscriptionError> {
    let stored = policy_to_proto(&subscription.policy);
    if *changed == stored {
        return Ok(());
    }
    if subscription.pre_policy.is_some() && changed.ordering.is_some() && changed.ordering != stored.ordering {
        return Err(FieldError::new(format!("{field}.ordering"), UNORDERED).into());
    }
    // Others wait while this is applied, and a new key was parsed with the patch.
    subscription.policy = parse_policy(field, Some(changed), stored_key)?;
    Ok(())
}

impl PolicyPart {
    /// The fields of the policy itself.
    pub const ALL: [Self; 9] = [
        Self::MaxAttempts,
        Self::InitialBackoff,
        Self::MaxBackoff,
        Self::Timeout,
        Self::MaxInFlight,
        Self::RateLimit,
        Self::CircuitBreaker,
        Self::AutoDisableAfter,
        Self::Ordering,
    ];

    /// The field of a path within the policy.
    pub fn named(path: &str) -> Option<Self> {
        Some(match path {
            "max_attempts" => Self::MaxAttempts,
            "initial_backoff" => Self::InitialBackoff,
            "max_backoff" => Self::MaxBackoff,
            "timeout" => Self::Timeout,
            "max_in_flight" => Self::MaxInFlight,
            "rate_limit" => Self::RateLimit,
            "rate_limit.count" => Self::RateLimitCount,
            "rate_limit.interval" => Self::RateLimitInterval,
            "circuit_breaker" => Self::CircuitBreaker,
            "circuit_breaker.failure_threshold" => Self::FailureThreshold,
            "circuit_breaker.open_duration" => Self::OpenDuration,
            "auto_disable_after" => Self::AutoDisableAfter,
            "ordering" => Self::Ordering,
            "ordering.key" => Self::OrderingKey,
            "ordering.on_dead_letter" => Self::OnDeadLetter,
            _ => return None,
        })
    }

    /// True where it holds the ordering key.
    pub fn has_key(self) -> bool {
        matches!(self, Self::Ordering | Self::OrderingKey)
    }

    /// What it is a part of.
    pub fn whole(self) -> Option<Self> {
        match self {
            Self::RateLimitCount | Self::RateLimitInterval => Some(Self::RateLimit),
            Self::FailureThreshold | Self::OpenDuration => Some(Self::CircuitBreaker),
            Self::OrderingKey | Self::OnDeadLetter => Some(Self::Ordering),
            _ => None,
        }
    }

    /// True where the request sets it.
    pub fn is_set(self, policy: &proto::DeliveryPolicy) -> bool {
        let mut only = proto::DeliveryPolicy::default();
        self.copy(policy, &mut only);
        only != proto::DeliveryPolicy::default()
    }

    /// The field without which there is nothing that it could be a field of; none where it, or the check of the whole, sees to that itself.
    ///
    /// A breaker's threshold has a default, but whoever changes how long one stays open does not ask for one.
    pub fn misses(self, policy: &proto::DeliveryPolicy) -> Option<&'static str> {
        let alone = self == Self::OpenDuration && policy.circuit_breaker.is_none();
        alone.then_some("circuit_breaker.failure_threshold")
    }

    /// Takes it over as the request has it; what it is a field of is made where there is none.
    pub fn copy(self, from: &proto::DeliveryPolicy, to: &mut proto::DeliveryPolicy) {
        let (limit, breaker) = (from.rate_limit.unwrap_or_default(), from.circuit_breaker.unwrap_or_default());
        let ordering = || from.ordering.clone().unwrap_or_default();
        match self {
            Self::MaxAttempts => to.max_attempts = from.max_attempts,
            Self::InitialBackoff => to.initial_backoff = from.initial_backoff,
            Self::MaxBackoff => to.max_backoff = from.max_backoff,
            Self::Timeout => to.timeout = from.timeout,
            Self::MaxInFlight => to.max_in_flight = from.max_in_flight,
            Self::RateLimit => to.rate_limit = from.rate_limit,
            Self::RateLimitCount => to.rate_limit.get_or_insert_default().count = limit.count,
            Self::RateLimitInterval => to.rate_limit.get_or_insert_default().interval = limit.interval,
            Self::CircuitBreaker => to.circuit_breaker = from.circuit_breaker,
            Self::FailureThreshold => {
                to.circuit_breaker.get_or_insert_default().failure_threshold = breaker.failure_threshold;
            }
            Self::OpenDuration => to.circuit_breaker.get_or_insert_default().open_duration = breaker.open_duration,
            Self::AutoDisableAfter => to.auto_disable_after = from.auto_disable_after,
            Self::Ordering => to.ordering.clone_from(&from.ordering),
            Self::OrderingKey => to.ordering.get_or_insert_default().key = ordering().key,
            Self::OnDeadLetter => to.ordering.get_or_insert_default().on_dead_letter = ordering().on_dead_letter,
        }
    }
}

fn out_of_bounds(field: &str, error: PolicyError) -> FieldError {
    FieldError::new(format!("{field}.{}", error.field()), error.to_string())
}

fn parse_ordering(
    field: &str,
    ordering: &proto::OrderingPolicy,
    key: ParseKey,
) -> Result<KeyOrdering, SubscriptionError> {
    let key = key(&format!("{field}.key"), &ordering.key)?;
    let key = key.ok_or_else(|| FieldError::new(format!("{field}.key"), "is required"))?;
    let on_dead_letter = match proto::OnDeadLetter::try_from(ordering.on_dead_letter) {
        Ok(proto::OnDeadLetter::Unspecified | proto::OnDeadLetter::Skip) => OnDeadLetter::Skip,
        Ok(proto::OnDeadLetter::Block) => OnDeadLetter::Block,
        Err(_) => return Err(FieldError::new(format!("{field}.on_dead_letter"), "is not a known policy").into()),
    };
    Ok(KeyOrdering { key, on_dead_letter })
}

/// A policy as the API shows it.
pub(super) fn policy_to_proto(policy: &DeliveryPolicy) -> proto::DeliveryPolicy {
    proto::DeliveryPolicy {
        max_attempts: policy.max_attempts(),
        initial_backoff: Some(duration_to_proto(policy.initial_backoff())),
        max_backoff: Some(duration_to_proto(policy.max_backoff())),
        timeout: Some(duration_to_proto(policy.timeout())),
        max_in_flight: policy.max_in_flight(),
        rate_limit: policy.rate_limit().map(|limit| proto::RateLimit {
            count: limit.count(),
            interval: Some(duration_to_proto(limit.interval())),
        }),
        circuit_breaker: policy.circuit_breaker().map(|breaker| proto::CircuitBreaker {
            failure_threshold: breaker.failure_threshold(),
            open_duration: Some(duration_to_proto(breaker.open_duration())),
        }),
        auto_disable_after: Some(duration_to_proto(policy.auto_disable_after())),
        ordering: policy.ordering().map(ordering_to_proto),
    }
}

fn ordering_to_proto(ordering: &KeyOrdering) -> proto::OrderingPolicy {
    let on_dead_letter = match ordering.on_dead_letter {
        OnDeadLetter::Skip => proto::OnDeadLetter::Skip,
        OnDeadLetter::Block => proto::OnDeadLetter::Block,
    };
    proto::OrderingPolicy { key: ordering.key.source().to_owned(), on_dead_letter: on_dead_letter.into() }
}

/// A circuit as the API shows it.
pub(super) fn circuit_to_proto(circuit: &Circuit) -> proto::Circuit {
    let state = match circuit.state {
        CircuitState::Closed => proto::CircuitState::Closed,
        CircuitState::Open => proto::CircuitState::Open,
        CircuitState::HalfOpen => proto::CircuitState::HalfOpen,
    };
    proto::Circuit { state: state.into(), since: circuit.since.map(timestamp_to_proto), failures: circuit.failures }
}
