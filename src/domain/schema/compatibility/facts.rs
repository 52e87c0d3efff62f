//! What is known of the data that a schema accepts: the schema taken apart into parts that all hold.
//!
//! Leaving a part out is always sound: the less is known of the data, the more the other schema has to accept.

use super::decimal::equal;
use crate::domain::schema::draft_of;
use crate::domain::schema::references::{Document, address};
use jsonschema::Draft;
use serde_json::{Map, Value};

pub(super) const NULL: u8 = 1;
pub(super) const BOOLEAN: u8 = 2;
pub(super) const OBJECT: u8 = 4;
pub(super) const ARRAY: u8 = 8;
pub(super) const STRING: u8 = 16;
pub(super) const INTEGER: u8 = 32;
pub(super) const FRACTION: u8 = 64;
pub(super) const NUMBER: u8 = INTEGER | FRACTION;
pub(super) const ANY: u8 = 127;

/// How deep references and `allOf` are taken apart.
const DEPTH_MAX: usize = 128;

/// What is known of some data.
#[derive(Clone)]
pub(super) struct Facts<'d> {
    /// The document that says so.
    pub(super) document: &'d Document<'d>,
    /// The subschema that messages point at.
    pub(super) at: &'d Value,
    /// Schemas that the data satisfies; their `$ref` and `allOf` are taken apart too.
    pub(super) parts: Vec<&'d Value>,
    /// Schemas that the data does not satisfy.
    pub(super) not: Vec<&'d Value>,
    /// Parts whose `anyOf` or `oneOf` was chosen from already.
    pub(super) chosen: Vec<usize>,
    /// Types that the data may have.
    pub(super) types: u8,
}

impl<'d> Facts<'d> {
    /// Knows nothing yet.
    pub(super) fn nothing(document: &'d Document<'d>, at: &'d Value) -> Self {
        Self { document, at, parts: Vec::new(), not: Vec::new(), chosen: Vec::new(), types: ANY }
    }

    /// Knows what one schema says.
    pub(super) fn of(document: &'d Document<'d>, schema: &'d Value) -> Self {
        let mut facts = Self::nothing(document, schema);
        facts.add(schema);
        facts
    }

    /// Learns that the data satisfies a schema.
    pub(super) fn add(&mut self, schema: &'d Value) {
        self.take_apart(schema, 0);
    }

    fn take_apart(&mut self, schema: &'d Value, depth: usize) {
        let members = match schema {
            Value::Bool(false) => {
                self.types = 0;
                return;
            }
            Value::Object(members) => members,
            _ => return,
        };
        if depth > DEPTH_MAX
            || is_foreign(self.document, schema)
            || self.parts.iter().any(|part| address(part) == address(schema))
        {
            return;
        }
        self.parts.push(schema);
        if let Some(target) = reference(self.document, schema) {
            self.take_apart(target, depth + 1);
        }
        if refers_only(self.document, members) {
            return;
        }
        self.types &= types(members);
        self.not.extend(members.get("not"));
        for part in members.get("allOf").and_then(Value::as_array).into_iter().flatten() {
            self.take_apart(part, depth + 1);
        }
    }

    /// The members of the parts, where what stands there counts.
    pub(super) fn members(&self) -> impl Iterator<Item = (&'d Value, &'d Map<String, Value>)> {
        let document = self.document;
        let all = self.parts.iter().filter_map(|part| part.as_object().map(|members| (*part, members)));
        all.filter(move |(_, members)| !refers_only(document, members))
    }

    /// What the parts say under one keyword.
    pub(super) fn values(&self, keyword: &'static str) -> impl Iterator<Item = &'d Value> {
        self.members().filter_map(move |(_, members)| members.get(keyword))
    }

    /// The values that the data can have, where these are few and known.
    pub(super) fn enumerated(&self) -> Option<Vec<&'d Value>> {
        let lists = self.values("enum").filter_map(Value::as_array).map(|list| list.iter().collect::<Vec<_>>());
        let mut lists: Vec<Vec<&Value>> = lists.chain(self.values("const").map(|value| vec![value])).collect();
        let mut values = lists.pop()?;
        values.retain(|value| lists.iter().all(|list| list.iter().any(|other| equal(value, other))));
        values.retain(|value| self.types & type_of(value) != 0);
        Some(values)
    }
}

/// The types that a schema's `type` allows.
pub(super) fn types(members: &Map<String, Value>) -> u8 {
    let one = |name: &Value| match name.as_str() {
        Some("null") => NULL,
        Some("boolean") => BOOLEAN,
        Some("object") => OBJECT,
        Some("array") => ARRAY,
        Some("string") => STRING,
        Some("integer") => INTEGER,
        Some("number") => NUMBER,
        _ => 0,
    };
    match members.get("type") {
        None => ANY,
        Some(Value::Array(names)) => names.iter().map(one).fold(0, |all, one| all | one),
        Some(name) => one(name),
    }
}

/// The type of a value.
pub(super) fn type_of(value: &Value) -> u8 {
    match value {
        Value::Null => NULL,
        Value::Bool(_) => BOOLEAN,
        Value::Object(_) => OBJECT,
        Value::Array(_) => ARRAY,
        Value::String(_) => STRING,
        Value::Number(_) if super::decimal::Decimal::of(value).is_some_and(|number| number.is_whole()) => INTEGER,
        Value::Number(_) => FRACTION,
    }
}

/// The names of types, for messages.
pub(super) fn type_names(types: u8) -> String {
    let mut names = Vec::new();
    for (bit, name) in [(NULL, "null"), (BOOLEAN, "boolean"), (OBJECT, "object"), (ARRAY, "array"), (STRING, "string")]
    {
        if types & bit != 0 {
            names.push(name);
        }
    }
    match types & NUMBER {
        0 => {}
        INTEGER => names.push("integer"),
        NUMBER => names.push("number"),
        _ => names.push("number that is not whole"),
    }
    names.join(", ")
}

/// What a schema's `$ref` names.
pub(super) fn reference<'d>(document: &Document<'d>, schema: &'d Value) -> Option<&'d Value> {
    document.target(schema, schema.get("$ref")?.as_str()?)
}

/// True where what stands beside a `$ref` does not count.
pub(super) fn refers_only(document: &Document<'_>, members: &Map<String, Value>) -> bool {
    document.draft == Draft::Draft7 && members.contains_key("$ref")
}

/// True for a subschema that is written in another draft than its document.
pub(super) fn is_foreign(document: &Document<'_>, schema: &Value) -> bool {
    schema.get("$schema").is_some_and(|declared| draft_of(declared) != Some(document.draft))
}
