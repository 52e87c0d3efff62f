//! Explanations of matching, and test runs, as the API shows them.

use super::subscription::state_name;
use super::time::duration_to_proto;
use crate::domain::event::LogEntry;
use crate::domain::explain::Reason;
use crate::domain::filter::Deciding;
use crate::domain::subscription::Subscription;
use crate::domain::trial::Trial;
use crate::proto::public as proto;

/// Most bytes of a test's request body that are shown.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// What a subscription makes of an event; `entry` is the event's place in the log, where it has one.
pub fn explanation_to_proto(
    subscription: &Subscription,
    reason: Reason,
    entry: Option<&LogEntry>,
) -> proto::MatchExplanation {
    let (code, message, deciding) = match reason {
        Reason::Fires => (proto::MatchReason::Fires, "it fires".to_owned(), Vec::new()),
        Reason::State(state) => (proto::MatchReason::State, format!("it is {}", state_name(state)), Vec::new()),
        Reason::SchemaVersion { pinned, event } => {
            let message = format!("it is pinned to schema version {pinned}, and the event has version {event}");
            (proto::MatchReason::SchemaVersion, message, Vec::new())
        }
        Reason::Filter(deciding) => {
            let parts: Vec<_> = deciding.iter().map(|one| one.expression.as_str()).collect();
            (proto::MatchReason::Filter, format!("its filter is not true: {}", parts.join(", ")), deciding)
        }
        Reason::FilterError { error, deciding } => {
            (proto::MatchReason::FilterError, format!("its filter cannot be evaluated: {error}"), deciding)
        }
        Reason::Lineage => {
            let message = "it is in the event's own lineage, and does not fire again".to_owned();
            (proto::MatchReason::Lineage, message, Vec::new())
        }
    };
    let record = match entry {
        None => proto::MatchRecord::Unspecified,
        Some(entry) if entry.matched.contains(&subscription.no) => proto::MatchRecord::Fired,
        Some(entry) if entry.refused.contains(&subscription.no) => proto::MatchRecord::Refused,
        Some(_) => proto::MatchRecord::NotFired,
    };
    proto::MatchExplanation {
        subscription_id: subscription.id.to_string(),
        app: subscription.app_slug.clone(),
        display_name: subscription.display_name.clone(),
        fires: code == proto::MatchReason::Fires,
        reason: code.into(),
        message,
        deciding: deciding.into_iter().map(deciding_to_proto).collect(),
        record: record.into(),
        changed_since: entry.is_some_and(|entry| subscription.effective_position >= entry.position),
    }
}

fn deciding_to_proto(deciding: Deciding) -> proto::DecidingExpression {
    let column = |column: usize| i32::try_from(column).unwrap_or(i32::MAX);
    let operands = deciding.operands.into_iter();
    proto::DecidingExpression {
        expression: deciding.expression,
        column: column(deciding.columns.0),
        end_column: column(deciding.columns.1),
        error: deciding.error.unwrap_or_default(),
        operands: operands.map(|(expression, value)| proto::ExpressionValue { expression, value }).collect(),
    }
}

/// What a test run sent and got, into an answer that holds the rest.
pub fn trial_to_proto(trial: Trial, answer: &mut proto::TestSubscriptionResponse) {
    let headers = |headers: Vec<(String, String)>| {
        headers.into_iter().map(|(name, value)| proto::TestHeader { name, value }).collect::<Vec<_>>()
    };
    answer.request = trial.request.map(|request| proto::TestRequest {
        method: "POST".to_owned(),
        uri: request.uri,
        headers: headers(request.headers),
        body_bytes: i64::try_from(request.body.len()).unwrap_or(i64::MAX),
        body: request.body.slice(..request.body.len().min(BODY_BYTES_MAX)),
    });
    answer.answer = trial.answer.map(|came| {
        answer.header_time = Some(duration_to_proto(came.after));
        proto::TestAnswer { status_code: i32::from(came.status), headers: headers(came.headers) }
    });
}
