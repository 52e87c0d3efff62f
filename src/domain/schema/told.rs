//! What is told of a document or of data: short, in one line, and without the data.

use super::VIOLATIONS_MAX;
use super::shown::shown;
use jsonschema::ReferencingError;
use serde_json::Value;

/// How long a message may be, in characters.
const MESSAGE_CHARS_MAX: usize = 300;
/// How long a pointer may be, in bytes.
const POINTER_BYTES_MAX: usize = 1_024;
/// How many values of a list are shown.
const SHOWN_MAX: usize = 3;

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

/// A pointer, or that to the nearest place above that is not too long; true where it is another place.
fn shorten_pointer(mut pointer: String) -> (String, bool) {
    if pointer.len() <= POINTER_BYTES_MAX {
        return (pointer, false);
    }
    let above = pointer.bytes().take(POINTER_BYTES_MAX + 1).rposition(|byte| byte == b'/');
    pointer.truncate(above.unwrap_or(0));
    (pointer, true)
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
    /// JSON pointer (RFC 6901) into the data; where it were longer than 1,024 bytes, that to the nearest place above that is not.
    pub data_pointer: String,
    /// JSON pointer into the schema, to a place above likewise; for what stands in a draft's own schema its URI with such a fragment.
    pub schema_pointer: String,
    /// What is wrong, without the value.
    pub message: String,
}

impl Violation {
    /// At a place, by the keyword at another one.
    pub(super) fn new(data_pointer: String, schema_pointer: String, message: &str) -> Self {
        let (data_pointer, is_above) = shorten_pointer(data_pointer);
        let message = if is_above { format!("below it: {message}") } else { message.to_owned() };
        Self { data_pointer, schema_pointer: shorten_pointer(schema_pointer).0, message: shorten(&message) }
    }

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
