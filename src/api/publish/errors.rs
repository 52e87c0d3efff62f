//! Publish failures as API errors, with the path of the event they concern.

use crate::api::status::{ApiError, PreVerdict};
use crate::domain::pre::{AbortReason, Aborted, Verdict, VerdictKind};
use crate::pending::PendingError;
use crate::publish::PublishError;
use crate::store::StoreError;
use std::time::Duration;

/// `path` leads to the event: `event`, or `requests[3].event`; it is empty where the request holds nothing of an event but its data.
pub(in crate::api) fn to_api_error(error: PublishError, path: &str) -> ApiError {
    match error {
        PublishError::EventTypeNotFound { name, near } => ApiError::EventTypeNotFound { name, near },
        PublishError::SchemaVersionNotFound { event_type, version } => {
            ApiError::SchemaVersionNotFound { event_type: event_type.to_string(), version }
        }
        PublishError::SchemaViolation { event_type, version, violations } => {
            ApiError::SchemaViolation { event_type: event_type.to_string(), version, field: data_of(path), violations }
        }
        PublishError::DataUnreadable(error) => {
            let said = if error.is_reserved_key() { "has" } else { "is not JSON, but its datacontenttype says so:" };
            ApiError::field(data_of(path), format!("{said} {} at byte {}", error.message, error.offset))
        }
        PublishError::TooLarge { limit } => ApiError::EventTooLarge { field: path.to_owned(), limit_bytes: limit },
        PublishError::KeyReused => ApiError::RequestIdReused {
            field: format!("{}idempotency_key", path.strip_suffix("event").unwrap_or_default()),
        },
        // Changes of what matches have the tenant's lock again and again.
        PublishError::Contended | PublishError::Gated => ApiError::Store(StoreError::Locked),
        PublishError::QueueFull { limit_bytes } => ApiError::QuotaExceeded {
            quota: "publish.queue_bytes_max".to_owned(),
            limit: u64::try_from(limit_bytes).unwrap_or(u64::MAX),
            retry_delay: Some(Duration::from_millis(500)),
        },
        PublishError::Quota { quota, limit, retry } => {
            ApiError::QuotaExceeded { quota: format!("limits.{}", quota.name()), limit, retry_delay: retry }
        }
        PublishError::Draining => ApiError::ServerDraining,
        PublishError::Store(error) => ApiError::Store(error),
    }
}

fn data_of(path: &str) -> String {
    if path.is_empty() { "data".to_owned() } else { format!("{path}.data") }
}

/// Why an event that waited does not come to be.
pub(super) fn pending_to_api_error(error: PendingError, path: &str) -> ApiError {
    match error {
        PendingError::Aborted(aborted) => aborted_to_api_error(&aborted),
        PendingError::Cancelled => ApiError::ResourceState {
            kind: "carillon.dev/Event",
            name: String::new(),
            message: "the event was cancelled before it was committed".to_owned(),
        },
        PendingError::Full { quota, limit } => {
            ApiError::QuotaExceeded { quota: quota.to_owned(), limit, retry_delay: Some(Duration::from_secs(1)) }
        }
        PendingError::TooFar { hours } => {
            let field = format!("{}deliver_at", path.strip_suffix("event").unwrap_or_default());
            ApiError::field(field, format!("must be at most {hours} hours ahead"))
        }
        PendingError::NotFound => ApiError::EventNotFound { event: String::new() },
        PendingError::Publish(error) => to_api_error(error, path),
    }
}

fn aborted_to_api_error(aborted: &Aborted) -> ApiError {
    // A status has room for some: those that decided come first.
    let weight = |verdict: &&Verdict| match verdict.kind {
        VerdictKind::Rejected => 0,
        VerdictKind::Failed => 1,
        VerdictKind::Cancelled => 2,
        VerdictKind::Skipped => 3,
        VerdictKind::Succeeded => 4,
    };
    let mut sorted: Vec<&Verdict> = aborted.verdicts.iter().collect();
    sorted.sort_by_key(weight);
    let verdicts = sorted.into_iter().map(|verdict| PreVerdict {
        subscription: verdict.subscription.to_string(),
        verdict: verdict.kind.as_str(),
        description: verdict.message.clone(),
    });
    let (message, event, verdicts) = (aborted.message.clone(), aborted.event.to_string(), verdicts.collect());
    match aborted.reason {
        AbortReason::Rejected => ApiError::PreRejected { message, event, verdicts },
        AbortReason::ListenerFailed => ApiError::PreListenerUnavailable { message, event, verdicts },
        AbortReason::Deadline | AbortReason::Abandoned => ApiError::PreDeadline { message, event, verdicts },
        AbortReason::Unpublishable => ApiError::ResourceState { kind: "carillon.dev/Event", name: event, message },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::json::check_json;
    use tonic::{Code, Status};
    use tonic_types::StatusExt as _;

    #[test]
    fn a_registry_that_changes_too_fast_is_no_quota_and_may_be_tried_again() {
        for error in [PublishError::Contended, PublishError::Gated] {
            let status = Status::from(to_api_error(error, "event"));
            let reason = status.get_details_error_info().expect("it is set").reason;
            assert_eq!((status.code(), reason.as_str()), (Code::Unavailable, "STORE_UNAVAILABLE"));
            assert!(status.get_details_retry_info().expect("it passes").retry_delay.is_some());
            assert!(status.get_details_quota_failure().is_none());
        }
    }

    #[test]
    fn data_that_is_json_and_has_a_reserved_key_is_not_told_to_be_none() {
        let said = |data: &str| {
            let error = PublishError::DataUnreadable(check_json(data.as_bytes()).expect_err("refused"));
            Status::from(to_api_error(error, "event")).message().to_owned()
        };
        let none = said("{\"a\":");
        assert!(none.starts_with("event.data: is not JSON, but its datacontenttype says so: EOF"), "{none}");
        let reserved = said(r#"{"a":{"$serde_json::private::RawValue":"5"}}"#);
        assert!(
            reserved.starts_with("event.data: has a reserved key ($serde_json::private::...) at byte "),
            "{reserved}"
        );
    }
}
