//! What is told of a document or of data: short, in one line, and without the data.

use super::shown::shown;
use super::{NO_PATTERN, VIOLATIONS_MAX};
use jsonschema::error::ValidationErrorKind;
use jsonschema::{ReferencingError, ValidationError};
use serde_json::Value;

/// How long a message may be, in characters.
const MESSAGE_CHARS_MAX: usize = 300;
/// How long a pointer may be, in bytes.
const POINTER_BYTES_MAX: usize = 1_024;
/// How many values of a list are shown.
const SHOWN_MAX: usize = 3;

/// The message of a validator without the value. What an alternative says of each of its branches is left out for the same reason.
pub(super) fn explain(error: &ValidationError<'_>) -> String {
    match error.kind() {
        ValidationErrorKind::AnyOf { .. } => "is not valid under any of the schemas in anyOf".to_owned(),
        ValidationErrorKind::OneOfNotValid { .. } => "is not valid under any of the schemas in oneOf".to_owned(),
        ValidationErrorKind::Referencing(error) => unresolved(error),
        ValidationErrorKind::Format { format } if format == "regex" => NO_PATTERN.to_owned(),
        _ => error.masked_with("the value").to_string(),
    }
}

/// Why a reference leads nowhere.
pub(super) fn unresolved(error: &ReferencingError) -> String {
    match error {
        ReferencingError::Unretrievable { .. } => "refers to another document, which is not fetched".to_owned(),
        other => shorten(&other.to_string()),
    }
}

/// The start of a message, in one line.
pub(super) fn shorten(message: &str) -> String {
    let mut short: String =
        message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MESSAGE_CHARS_MAX).collect();
    if short.len() < message.len() && short.chars().count() == MESSAGE_CHARS_MAX {
        short.push_str("...");
    }
    short
}

/// The start of a pointer.
pub(super) fn shorten_pointer(mut pointer: String) -> String {
    if pointer.len() > POINTER_BYTES_MAX {
        pointer.truncate(pointer.floor_char_boundary(POINTER_BYTES_MAX));
        pointer.push_str("...");
    }
    pointer
}

/// Some values of a list.
pub(super) fn listed(values: &[Value]) -> String {
    let some: Vec<String> = values.iter().take(SHOWN_MAX).map(shown).collect();
    let more = values.len() - some.len();
    if more > 0 { format!("{} and {more} more", some.join(", ")) } else { some.join(", ") }
}

/// One place where data breaks a schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// JSON pointer (RFC 6901) into the data; its start and "...", where it is longer than 1,024 bytes.
    pub data_pointer: String,
    /// JSON pointer into the schema, and its start likewise; for what stands in a draft's own schema its URI with such a fragment.
    pub schema_pointer: String,
    /// What is wrong, without the value.
    pub message: String,
}

impl Violation {
    /// Of the data as a whole.
    pub(super) fn whole(message: &str) -> Vec<Self> {
        vec![Self { data_pointer: String::new(), schema_pointer: String::new(), message: message.to_owned() }]
    }
}

/// The violations that are told.
pub(super) struct Told(pub Vec<Violation>);

impl Told {
    /// True while more are told.
    pub fn has_room(&self) -> bool {
        self.0.len() < VIOLATIONS_MAX
    }
}
