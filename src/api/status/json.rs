//! A status as JSON, for the one protocol that has no trailers: code, reason, message, and the details that the status carries.

use super::{ApiError, FieldViolation};
use crate::store::StoreError;
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

impl ApiError {
    /// The same for a caller that writes proto JSON: its fields have the names that they have there, `eventTypes` for `event_types`.
    #[must_use]
    pub fn in_json_names(self) -> Self {
        match self {
            Self::FieldInvalid { violations } => {
                let named =
                    |FieldViolation { field, description }| FieldViolation { field: camel_case(&field), description };
                Self::FieldInvalid { violations: violations.into_iter().map(named).collect() }
            }
            Self::FilterInvalid { field, column, message } => {
                Self::FilterInvalid { field: camel_case(&field), column, message }
            }
            Self::CursorMalformed(field) => Self::CursorMalformed(camel_case(&field)),
            Self::CursorForeign(field) => Self::CursorForeign(camel_case(&field)),
            Self::CursorAhead(field) => Self::CursorAhead(camel_case(&field)),
            Self::RequestIdReused { field } => Self::RequestIdReused { field: camel_case(&field) },
            Self::Store(StoreError::RequestIdReused) => Self::RequestIdReused { field: "requestId".to_owned() },
            other => other,
        }
    }
}

/// The JSON names of a path. Source: Protocol Buffers, "ProtoJSON Format", field names.
fn camel_case(path: &str) -> String {
    let mut after_underscore = false;
    let rename = |char: char| {
        let upper = std::mem::replace(&mut after_underscore, char == '_');
        (char != '_').then(|| if upper { char.to_ascii_uppercase() } else { char })
    };
    path.chars().filter_map(rename).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_the_names_of_its_fields_in_json() {
        let paths = [
            ("", ""),
            ("watch", "watch"),
            ("filter_version", "filterVersion"),
            ("add[3].event_types[0]", "add[3].eventTypes[0]"),
        ];
        for (path, expected) in paths {
            assert_eq!(camel_case(path), expected);
        }
        let field = || "resume_cursor".to_owned();
        for error in
            [ApiError::CursorMalformed(field()), ApiError::CursorForeign(field()), ApiError::CursorAhead(field())]
        {
            let told = to_json(&Status::from(error.in_json_names())).to_string();
            assert!(told.contains("resumeCursor") && !told.contains("resume_cursor"), "{told}");
        }
    }
}
