//! Delivery policies between proto and domain, as a whole and field by field for update masks. Pure.

use super::{SubscriptionError, parse_key};
use crate::domain::retry::{CircuitBreaker, DeliveryPolicy, KeyOrdering, OnDeadLetter, PolicyError, RateLimit};
use crate::domain::subscription::{Circuit, CircuitState};
use crate::proto::public as proto;
use crate::wire::FieldError;
use crate::wire::time::{duration_to_proto, parse_duration, timestamp_to_proto};
use pbjson_types::Duration as ProtoDuration;
use std::time::Duration;

/// A changed field of the policy; what the request leaves out of a chosen field is its default here.
#[derive(Debug, Clone)]
pub(super) enum PolicyChange {
    MaxAttempts(i32),
    InitialBackoff(Duration),
    /// None for the default, which depends on the initial back-off.
    MaxBackoff(Option<Duration>),
    Timeout(Duration),
    MaxInFlight(i32),
    RateLimit(Option<RateLimit>),
    CircuitBreaker(Option<CircuitBreaker>),
    AutoDisableAfter(Duration),
    Ordering(Option<KeyOrdering>),
}

/// A field of the delivery policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PolicyPart {
    MaxAttempts,
    InitialBackoff,
    MaxBackoff,
    Timeout,
    MaxInFlight,
    RateLimit,
    CircuitBreaker,
    AutoDisableAfter,
    Ordering,
}

/// Checks a policy; none is the default one.
pub(super) fn parse_policy(
    field: &str,
    policy: Option<&proto::DeliveryPolicy>,
) -> Result<DeliveryPolicy, SubscriptionError> {
    let Some(policy) = policy else { return Ok(DeliveryPolicy::default()) };
    let changes = PolicyPart::ALL.into_iter().map(|part| part.read(field, policy));
    Ok(apply_policy(field, &DeliveryPolicy::default(), changes.collect::<Result<Vec<_>, _>>()?)?)
}

impl PolicyPart {
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

    /// The field's name in the API.
    fn name(self) -> &'static str {
        match self {
            Self::MaxAttempts => "max_attempts",
            Self::InitialBackoff => "initial_backoff",
            Self::MaxBackoff => "max_backoff",
            Self::Timeout => "timeout",
            Self::MaxInFlight => "max_in_flight",
            Self::RateLimit => "rate_limit",
            Self::CircuitBreaker => "circuit_breaker",
            Self::AutoDisableAfter => "auto_disable_after",
            Self::Ordering => "ordering",
        }
    }

    /// The field of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|part| part.name() == name)
    }

    /// True where the request sets it.
    pub fn is_set(self, policy: &proto::DeliveryPolicy) -> bool {
        match self {
            Self::MaxAttempts => policy.max_attempts != 0,
            Self::InitialBackoff => policy.initial_backoff.is_some(),
            Self::MaxBackoff => policy.max_backoff.is_some(),
            Self::Timeout => policy.timeout.is_some(),
            Self::MaxInFlight => policy.max_in_flight != 0,
            Self::RateLimit => policy.rate_limit.is_some(),
            Self::CircuitBreaker => policy.circuit_breaker.is_some(),
            Self::AutoDisableAfter => policy.auto_disable_after.is_some(),
            Self::Ordering => policy.ordering.is_some(),
        }
    }

    /// Reads it, the default where the request leaves it out. Its bounds are those of the whole policy.
    pub fn read(self, field: &str, policy: &proto::DeliveryPolicy) -> Result<PolicyChange, SubscriptionError> {
        let default = DeliveryPolicy::default();
        let count = |value: i32, default: i32| if value == 0 { default } else { value };
        let duration = |name: &str, value: &Option<ProtoDuration>| {
            value.as_ref().map(|value| parse_duration(&format!("{field}.{name}"), value)).transpose()
        };
        Ok(match self {
            Self::MaxAttempts => PolicyChange::MaxAttempts(count(policy.max_attempts, default.max_attempts())),
            Self::InitialBackoff => {
                let value = duration("initial_backoff", &policy.initial_backoff)?;
                PolicyChange::InitialBackoff(value.unwrap_or(default.initial_backoff()))
            }
            Self::MaxBackoff => PolicyChange::MaxBackoff(duration("max_backoff", &policy.max_backoff)?),
            Self::Timeout => PolicyChange::Timeout(duration("timeout", &policy.timeout)?.unwrap_or(default.timeout())),
            Self::MaxInFlight => PolicyChange::MaxInFlight(count(policy.max_in_flight, default.max_in_flight())),
            Self::RateLimit => {
                let limit = policy.rate_limit.as_ref().map(|limit| {
                    let interval = duration("rate_limit.interval", &limit.interval)?.unwrap_or(Duration::from_secs(1));
                    RateLimit::new(limit.count, interval).map_err(|error| out_of_bounds(field, error))
                });
                PolicyChange::RateLimit(limit.transpose()?)
            }
            Self::CircuitBreaker => {
                let breaker = policy.circuit_breaker.as_ref().map(|breaker| {
                    let open = duration("circuit_breaker.open_duration", &breaker.open_duration)?;
                    CircuitBreaker::new(count(breaker.failure_threshold, 10), open.unwrap_or(Duration::from_secs(30)))
                        .map_err(|error| out_of_bounds(field, error))
                });
                PolicyChange::CircuitBreaker(breaker.transpose()?)
            }
            Self::AutoDisableAfter => {
                let value = duration("auto_disable_after", &policy.auto_disable_after)?;
                PolicyChange::AutoDisableAfter(value.unwrap_or(default.auto_disable_after()))
            }
            Self::Ordering => {
                let field = format!("{field}.ordering");
                PolicyChange::Ordering(policy.ordering.as_ref().map(|o| parse_ordering(&field, o)).transpose()?)
            }
        })
    }
}

/// The policy with the changes applied; the bounds are those of the result.
pub(super) fn apply_policy(
    field: &str,
    policy: &DeliveryPolicy,
    changes: impl IntoIterator<Item = PolicyChange>,
) -> Result<DeliveryPolicy, FieldError> {
    let (mut max_attempts, mut max_in_flight) = (policy.max_attempts(), policy.max_in_flight());
    let (mut initial_backoff, mut timeout) = (policy.initial_backoff(), policy.timeout());
    let mut max_backoff = Some(policy.max_backoff());
    let mut ordering = policy.ordering().cloned();
    let (mut rate_limit, mut circuit_breaker) = (policy.rate_limit(), policy.circuit_breaker());
    let mut auto_disable_after = policy.auto_disable_after();
    for change in changes {
        match change {
            PolicyChange::MaxAttempts(value) => max_attempts = value,
            PolicyChange::InitialBackoff(value) => initial_backoff = value,
            PolicyChange::MaxBackoff(value) => max_backoff = value,
            PolicyChange::Timeout(value) => timeout = value,
            PolicyChange::MaxInFlight(value) => max_in_flight = value,
            PolicyChange::RateLimit(value) => rate_limit = value,
            PolicyChange::CircuitBreaker(value) => circuit_breaker = value,
            PolicyChange::AutoDisableAfter(value) => auto_disable_after = value,
            PolicyChange::Ordering(value) => ordering = value,
        }
    }
    let max_backoff = max_backoff.unwrap_or(DeliveryPolicy::default().max_backoff().max(initial_backoff));
    DeliveryPolicy::new(max_attempts, initial_backoff, max_backoff, timeout, max_in_flight)
        .map(|policy| policy.with_ordering(ordering).with_rate_limit(rate_limit).with_circuit_breaker(circuit_breaker))
        .and_then(|policy| policy.with_auto_disable_after(auto_disable_after))
        .map_err(|error| out_of_bounds(field, error))
}

fn out_of_bounds(field: &str, error: PolicyError) -> FieldError {
    FieldError::new(format!("{field}.{}", error.field()), error.to_string())
}

fn parse_ordering(field: &str, ordering: &proto::OrderingPolicy) -> Result<KeyOrdering, SubscriptionError> {
    let key = parse_key(&format!("{field}.key"), &ordering.key)?;
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
