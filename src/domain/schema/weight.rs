//! What a value weighs: what it costs to look at all of it, or to keep it.

use serde_json::Value;

/// What a value weighs besides its text, in bytes.
const VALUE_BYTES: u64 = 16;

/// About how long a value is, whether of a document or of data.
pub(super) fn bytes(value: &Value) -> u64 {
    let within = match value {
        Value::String(text) => text.len() as u64,
        Value::Array(elements) => elements.iter().map(bytes).sum(),
        Value::Object(members) => members.iter().map(|(name, member)| name.len() as u64 + bytes(member)).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    };
    VALUE_BYTES + within
}
