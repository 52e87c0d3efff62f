//! What a status says where more than one failure shares a variant.

use super::FieldViolation;
use crate::store::StoreError;

/// What is wrong with the request's fields: the first, and how many more there are.
pub(super) fn describe_fields(violations: &[FieldViolation]) -> String {
    match violations {
        [] => "the request is not valid".to_owned(),
        [only] => describe_field(only),
        [first, rest @ ..] => format!("{} (and {} more)", describe_field(first), rest.len()),
    }
}

/// What concerns the request as a whole has no path.
fn describe_field(FieldViolation { field, description }: &FieldViolation) -> String {
    if field.is_empty() { description.clone() } else { format!("{field}: {description}") }
}

/// What a caller may know of a failure of the store.
pub(super) fn store_message(error: &StoreError) -> &'static str {
    match error {
        StoreError::Unavailable(_) | StoreError::PartitionMissing => {
            "the database cannot be reached, or has no connection free; try again"
        }
        StoreError::Crowded => "other calls of the tenant keep the database busy; try again with fewer at a time",
        StoreError::TooSlow(_) => "the database has not answered in time; try again",
        StoreError::Locked => "what the call needs is locked by other work; try again",
        StoreError::Full(_) => "the database is full or read-only",
        StoreError::RequestIdReused => "request_id was used before for another request",
        StoreError::Conflict { .. }
        | StoreError::Corrupt { .. }
        | StoreError::Interrupted
        | StoreError::Statement(_) => "a fault of the server",
    }
}
