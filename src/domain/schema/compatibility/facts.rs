//! What is known of the data that a schema accepts: the schema taken apart into parts that all hold.
//!
//! Leaving a part out is always sound: the less is known of the data, the more the other schema has to accept.

use super::work::Work;
use crate::domain::schema::cost::{charge, charge_for};
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

/// What following a reference costs.
const REFERENCE_UNITS: u64 = 16;

/// How deep references and `allOf` are taken apart.
const DEPTH_MAX: usize = 128;

/// How many parts that are only looked for, or copied, cost one unit.
pub(super) const PARTS_PER_UNIT: u64 = 8;

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
        charge(1 + self.parts.len() as u64 / PARTS_PER_UNIT);
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
        charge(1 + self.parts.len() as u64);
        let document = self.document;
        let all = self.parts.iter().filter_map(|part| part.as_object().map(|members| (*part, members)));
        all.filter(move |(_, members)| !refers_only(document, members))
    }

    /// What the parts say under one keyword.
    pub(super) fn values(&self, keyword: &'static str) -> impl Iterator<Item = &'d Value> {
        self.members().filter_map(move |(_, members)| members.get(keyword))
    }

    /// The values that the data can have, where these are few and known.
    pub(super) fn enumerated(&self, work: &mut Work<'d>) -> Option<Vec<&'d Value>> {
        let lists: Vec<&Value> = self.values("enum").filter(|list| list.is_array()).collect();
        let single: Vec<&Value> = self.values("const").collect();
        let mut values: Vec<&Value> = match (single.first(), lists.first()) {
            (Some(value), _) => vec![value],
            (None, list) => list?.as_array()?.iter().collect(),
        };
        charge(values.len() as u64);
        values.retain(|value| {
            self.types & type_of(value) != 0
                && lists.iter().all(|list| work.is_listed(list, value))
                && single.iter().all(|other| work.are_equal(other, value))
        });
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
    let uri = schema.get("$ref")?.as_str()?;
    charge(REFERENCE_UNITS);
    charge_for(uri);
    document.target(schema, uri)
}

/// True where what stands beside a `$ref` does not count.
pub(super) fn refers_only(document: &Document<'_>, members: &Map<String, Value>) -> bool {
    document.draft == Draft::Draft7 && members.contains_key("$ref")
}

/// True for a subschema that is written in another draft than its document.
pub(super) fn is_foreign(document: &Document<'_>, schema: &Value) -> bool {
    schema.get("$schema").is_some_and(|declared| draft_of(declared) != Some(document.draft))
}
