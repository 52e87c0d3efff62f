//! Invocations and attempts as proto, and list filters from proto. Pure.

use super::FieldError;
use super::time::{duration_to_proto, parse_timestamp, timestamp_to_proto};
use crate::domain::ids::{EventId, InvocationId, SubscriptionId};
use crate::domain::invocation::{Attempt, Invocation, OutcomeClass, State};
use crate::proto::Timestamp;
use crate::proto::public as proto;
use chrono::{DateTime, Utc};

/// An invocation as proto.
pub fn to_proto(invocation: &Invocation) -> proto::Invocation {
    proto::Invocation {
        id: invocation.id.to_string(),
        event_id: invocation.id.event.to_string(),
        event_type: invocation.event_type.as_str().to_owned(),
        event_position: invocation.event_position,
        subscription_id: invocation.subscription.to_string(),
        app: invocation.app_slug.clone(),
        state: state_to_proto(invocation.state).into(),
        attempt_count: invocation.attempt_count,
        create_time: Some(timestamp_to_proto(invocation.created_at)),
        end_time: invocation.ended_at.map(timestamp_to_proto),
        next_attempt_time: invocation.next_attempt_at.map(timestamp_to_proto),
        last_attempt: invocation.last_attempt.as_ref().map(attempt_to_proto),
        cancel_reason: invocation.cancel_reason.clone().unwrap_or_default(),
        replay: invocation.replay,
    }
}

/// An attempt as proto.
pub fn attempt_to_proto(attempt: &Attempt) -> proto::Attempt {
    proto::Attempt {
        number: attempt.number,
        start_time: Some(timestamp_to_proto(attempt.started_at)),
        duration: Some(duration_to_proto(attempt.duration)),
        outcome: class_to_proto(attempt.outcome.class).into(),
        status_code: i32::from(attempt.outcome.status_code),
        response_excerpt: attempt.outcome.excerpt.clone().unwrap_or_default(),
        error: attempt.outcome.error.clone().unwrap_or_default(),
    }
}

/// A state as proto.
pub fn state_to_proto(state: State) -> proto::InvocationState {
    match state {
        State::Pending => proto::InvocationState::Pending,
        State::Waiting => proto::InvocationState::Waiting,
        State::Succeeded => proto::InvocationState::Succeeded,
        State::DeadLettered => proto::InvocationState::DeadLettered,
        State::Cancelled => proto::InvocationState::Cancelled,
    }
}

fn class_to_proto(class: OutcomeClass) -> proto::OutcomeClass {
    match class {
        OutcomeClass::Succeeded => proto::OutcomeClass::Succeeded,
        OutcomeClass::Rejected => proto::OutcomeClass::Rejected,
        OutcomeClass::Failed => proto::OutcomeClass::Failed,
        OutcomeClass::Throttled => proto::OutcomeClass::Throttled,
        OutcomeClass::Timeout => proto::OutcomeClass::Timeout,
        OutcomeClass::Unreachable => proto::OutcomeClass::Unreachable,
        OutcomeClass::BlockedAddress => proto::OutcomeClass::BlockedAddress,
        OutcomeClass::Gone => proto::OutcomeClass::Gone,
    }
}

/// Reads a list of states, each at most once in the result.
///
/// Errors: an unknown number, or UNSPECIFIED within a list.
pub fn parse_states(field: &str, values: &[i32]) -> Result<Vec<State>, FieldError> {
    let mut states = Vec::new();
    for (index, value) in values.iter().enumerate() {
        let state = match proto::InvocationState::try_from(*value) {
            Ok(proto::InvocationState::Pending) => State::Pending,
            Ok(proto::InvocationState::Waiting) => State::Waiting,
            Ok(proto::InvocationState::Succeeded) => State::Succeeded,
            Ok(proto::InvocationState::DeadLettered) => State::DeadLettered,
            Ok(proto::InvocationState::Cancelled) => State::Cancelled,
            Ok(proto::InvocationState::Unspecified) | Err(_) => {
                return Err(FieldError::new(format!("{field}[{index}]"), "is not an invocation state"));
            }
        };
        if !states.contains(&state) {
            states.push(state);
        }
    }
    Ok(states)
}

/// Reads an invocation id.
pub fn parse_id(field: &str, value: &str) -> Result<InvocationId, FieldError> {
    InvocationId::parse(value).map_err(|error| FieldError::new(field, error.to_string()))
}

/// Reads an event id; none where it is empty.
pub fn parse_event(field: &str, value: &str) -> Result<Option<EventId>, FieldError> {
    let id = (!value.is_empty()).then(|| EventId::parse(value)).transpose();
    id.map_err(|error| FieldError::new(field, error.to_string()))
}

/// Reads a subscription id; none where it is empty.
pub fn parse_subscription(field: &str, value: &str) -> Result<Option<SubscriptionId>, FieldError> {
    let id = (!value.is_empty()).then(|| SubscriptionId::parse(value)).transpose();
    id.map_err(|error| FieldError::new(field, error.to_string()))
}

/// Reads an optional time.
pub fn parse_time(field: &str, value: Option<&Timestamp>) -> Result<Option<DateTime<Utc>>, FieldError> {
    value.map(|value| parse_timestamp(field, value)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event_type::EventTypeName;
    use crate::domain::invocation::Outcome;
    use std::time::Duration;
    use uuid::Uuid;

    #[test]
    fn states_are_read_once_each_and_nonsense_names_its_index() {
        assert_eq!(parse_states("states", &[4, 1, 4]), Ok(vec![State::DeadLettered, State::Pending]));
        for wrong in [0, 6, -1, i32::MAX] {
            assert_eq!(parse_states("states", &[1, wrong]).expect_err("unknown").field, "states[1]");
        }
    }

    #[test]
    fn ids_that_are_not_ids_name_their_field() {
        assert_eq!(parse_event("event_id", ""), Ok(None));
        assert_eq!(parse_event("event_id", "sub_x").expect_err("not an event").field, "event_id");
        assert_eq!(parse_id("invocation_id", "").expect_err("required").field, "invocation_id");
    }

    #[test]
    fn an_invocation_shows_what_is_set_and_nothing_else() {
        let at = DateTime::from_timestamp(1_800_000_000, 0).expect("a time");
        let id = InvocationId { event: EventId(Uuid::from_u128(1)), subscription_no: 3 };
        let invocation = Invocation {
            id,
            event_type: EventTypeName::parse("CUSTOM_X").expect("a name"),
            event_position: 9,
            subscription: SubscriptionId(Uuid::from_u128(2)),
            app_slug: "shop".to_owned(),
            state: State::Waiting,
            attempt_count: 1,
            created_at: at,
            ended_at: None,
            next_attempt_at: Some(at),
            last_attempt: Some(Attempt {
                number: 1,
                started_at: at,
                duration: Duration::from_micros(1_500),
                outcome: Outcome {
                    class: OutcomeClass::Throttled,
                    status_code: 429,
                    retry_after: None,
                    excerpt: Some("slow".to_owned()),
                    error: None,
                },
            }),
            cancel_reason: None,
            replay: false,
        };
        let proto = to_proto(&invocation);
        assert_eq!((proto.id.as_str(), proto.event_id.clone()), (id.to_string().as_str(), id.event.to_string()));
        assert_eq!(proto.state(), proto::InvocationState::Waiting);
        assert_eq!((proto.end_time, proto.cancel_reason.as_str()), (None, ""));
        let attempt = proto.last_attempt.expect("an attempt");
        assert_eq!((attempt.outcome(), attempt.status_code), (proto::OutcomeClass::Throttled, 429));
        assert_eq!(attempt.duration.expect("a duration").nanos, 1_500_000);
    }
}
