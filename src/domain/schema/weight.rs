//! What a value weighs: what it costs to look at all of it, or to keep it.

use serde_json::Value;

/// What a value weighs besides its text, in bytes.
const VALUE_BYTES: u64 = 16;

/// What an object takes for each few of its members, in bytes: its tree has nodes with room for eleven, half of them full.
const NODE_BYTES: usize = 640;
const MEMBERS_PER_NODE: usize = 6;
/// What a text takes besides its bytes, where they are.
const TEXT_BYTES: usize = 32;

/// About what a value takes in memory, in bytes.
pub(super) fn memory(value: &Value) -> usize {
    let within = match value {
        Value::Null | Value::Bool(_) => 0,
        Value::Number(number) => TEXT_BYTES + number.as_str().len(),
        Value::String(text) => TEXT_BYTES + text.len(),
        Value::Array(elements) => elements.iter().map(memory).sum(),
        Value::Object(members) => {
            let each = |(name, member): (&String, &Value)| TEXT_BYTES + name.len() + memory(member);
            members.len().div_ceil(MEMBERS_PER_NODE) * NODE_BYTES + members.iter().map(each).sum::<usize>()
        }
    };
    size_of::<Value>() + within
}

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
