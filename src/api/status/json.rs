//! A status as JSON, for the one protocol that has no trailers: code, reason, message, and the details that the status carries.

use serde_json::{Value, json};
use tonic::Status;
use tonic_types::StatusExt as _;

/// The status as a JSON object: `code`, `reason`, `message`, `metadata`, and where they are set `fieldViolations`,
/// `preconditionViolations` (of an aborted PRE event one per listener), `quotaViolations` and `retryDelay`.
pub fn to_json(status: &Status) -> Value {
    let details = status.get_error_details();
    let mut object = json!({ "code": i32::from(status.code()), "message": status.message() });
    if let Some(info) = details.error_info() {
        object["reason"] = json!(info.reason);
        object["metadata"] = json!(info.metadata);
    }
    if let Some(bad) = details.bad_request() {
        let violation = |v: &tonic_types::FieldViolation| json!({ "field": v.field, "description": v.description });
        object["fieldViolations"] = bad.field_violations.iter().map(violation).collect();
    }
    if let Some(failure) = details.precondition_failure() {
        let violation = |v: &tonic_types::PreconditionViolation| json!({ "type": v.r#type, "subject": v.subject, "description": v.description });
        object["preconditionViolations"] = failure.violations.iter().map(violation).collect();
    }
    if let Some(quota) = details.quota_failure() {
        let violation = |v: &tonic_types::QuotaViolation| json!({ "subject": v.subject, "description": v.description });
        object["quotaViolations"] = quota.violations.iter().map(violation).collect();
    }
    if let Some(delay) = details.retry_info().and_then(|retry| retry.retry_delay) {
        object["retryDelay"] = json!(format!("{}.{:03}s", delay.as_secs(), delay.subsec_millis()));
    }
    object
}
