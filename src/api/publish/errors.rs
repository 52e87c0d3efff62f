//! Publish failures as API errors, with the path of the event they concern.

use crate::api::status::{ApiError, FieldViolation};
use crate::publish::PublishError;
use std::time::Duration;

/// `path` leads to the event: `event`, or `requests[3].event`.
pub(super) fn to_api_error(error: PublishError, path: &str) -> ApiError {
    match error {
        PublishError::EventTypeNotFound { name, near } => ApiError::EventTypeNotFound { name, near },
        PublishError::SchemaVersionNotFound { event_type, version } => {
            ApiError::SchemaVersionNotFound { event_type: event_type.to_string(), version }
        }
        PublishError::SchemaViolation { event_type, version, violations } => ApiError::SchemaViolation {
            event_type: event_type.to_string(),
            version,
            field: format!("{path}.data"),
            violations,
        },
        PublishError::DataNotJson { offset, message } => ApiError::FieldInvalid {
            violations: vec![FieldViolation {
                field: format!("{path}.data"),
                description: format!("is not JSON, but its datacontenttype says so: {message} at byte {offset}"),
            }],
        },
        PublishError::TooLarge { limit } => ApiError::EventTooLarge { field: path.to_owned(), limit_bytes: limit },
        PublishError::KeyReused => ApiError::RequestIdReused { field: "idempotency_key" },
        PublishError::NotImplemented { feature } => ApiError::NotImplemented { feature: feature.to_owned() },
        PublishError::Contended => ApiError::QuotaExceeded {
            quota: "registry changes while publishing".to_owned(),
            limit: 100,
            retry_delay: Some(Duration::from_millis(100)),
        },
        PublishError::QueueFull { limit_bytes } => ApiError::QuotaExceeded {
            quota: "publish.queue_bytes_max".to_owned(),
            limit: u64::try_from(limit_bytes).unwrap_or(u64::MAX),
            retry_delay: Some(Duration::from_millis(500)),
        },
        PublishError::Draining => ApiError::ServerDraining,
        PublishError::Store(error) => ApiError::Store(error),
    }
}
