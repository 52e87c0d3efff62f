//! What checking one payload may cost. References can make a small document exponentially expensive to check, and long lists of
//! alternatives multiply with long payloads, so every subschema that leads to others counts how often it is applied.
//!
//! The counting is a keyword of our own, written into the document before it is compiled. The validator asks it last, and not at all
//! where another keyword has said no already. A subschema that may ask several others although they say no therefore counts before it
//! does so: in the first subschema of its `allOf`, which is asked before all of those. What is left uncounted says no at the first no,
//! so its cost is that of the way there. What that may cost in names, which are matched against the expressions of `patternProperties`
//! before anything is counted, is charged where a check begins, and again wherever the same value may be asked once more.

use super::patterns::charge_for_names;
use super::weighed::bytes;
use jsonschema::{Keyword, ValidationError};
use serde_json::{Map, Value, json};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// The keyword. A document that has it already loses it.
pub(super) const KEYWORD: &str = "x-carillon-cost";
/// What one pass over a payload may cost.
pub(super) const UNITS_MAX: u64 = 300_000;
/// What one may cost that others wait for.
pub(super) const UNITS_BRIEF: u64 = 5_000;
/// How long a list of values may be to count for nothing.
const SHORT_LIST_MAX: usize = 16;

/// What following a reference costs: the validator keeps account of where it has been.
const REFERENCE_UNITS: usize = 4;

/// Bytes of a payload that cost one unit where a draft's own schema looks at all of them.
const FOREIGN_BYTES_PER_UNIT: u64 = 64;

/// Bytes of `const` and `enum` that cost one unit.
const LITERAL_BYTES_PER_UNIT: u64 = 512;

/// Elements or members of a payload that cost as much as one application.
pub(super) const ELEMENTS_PER_UNIT: u64 = 8;

/// Keywords by which one subschema leads to others that judge the same value, and goes on where one of them says no, or that lead on to
/// such a one.
const GO_ON: [&str; 9] = [
    "$dynamicRef",
    "$ref",
    "anyOf",
    "dependentSchemas",
    "if",
    "not",
    "oneOf",
    "unevaluatedItems",
    "unevaluatedProperties",
];
/// Keywords by which it leads to others that judge the parts of the value.
const PARTS: [&str; 10] = [
    "additionalItems",
    "additionalProperties",
    "contains",
    "items",
    "patternProperties",
    "prefixItems",
    "properties",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
];
/// Further ones by which it leads to others.
const OTHERS: [&str; 2] = ["allOf", "dependencies"];

/// Why a check ended early.
pub(super) enum Stopped {
    /// It cost too much.
    Cost,
    /// The validator panicked.
    Panic,
}

/// What is counted throughout one document.
pub(super) struct Metering {
    /// Whatever stands beside a reference is ignored.
    pub(super) lone_references: bool,
    /// References within the document are pointers.
    pub(super) by_pointers: bool,
    /// How many states the expressions of all its `patternProperties` have together.
    pub(super) name_states: u64,
}

impl Metering {
    /// Writes the keyword into one subschema of this length where it can be expensive to check, or to compile as often as dynamic references
    /// lead there; what it leads to has been seen to. True where it stands for that length.
    pub(super) fn write(&self, schema: &mut Map<String, Value>, length: u64) -> bool {
        schema.remove(KEYWORD);
        let units = Units::of(schema, self).or((!self.by_pointers).then(Units::default));
        let Some(units) = units else { return false };
        let units = Units { compiled: length, ..units };
        if self.lone_references && units.foreign > 0 {
            // Nothing beside the reference is asked, so it moves. What stands there says nothing but what others may refer to.
            let reference = schema.remove("$ref");
            schema.retain(|keyword, _| matches!(keyword.as_str(), "$schema" | "definitions"));
            let mut counter = Map::new();
            units.write(&mut counter);
            schema.insert("allOf".to_owned(), json!([counter, { "$ref": reference }]));
            return true;
        }
        if !GO_ON.iter().any(|keyword| schema.contains_key(*keyword)) {
            units.write(schema);
            return true;
        }
        let asked_first = schema.entry("allOf").or_insert_with(|| Value::Array(vec![Value::Bool(true)]));
        // An `allOf` that is not a list, or holds nothing, is refused by the compiler.
        let Some(first) = asked_first.as_array_mut().and_then(|all| all.first_mut()) else { return false };
        match first {
            Value::Object(members) if !(self.lone_references && members.contains_key("$ref")) => units.write(members),
            // Nothing is asked after a `false`.
            Value::Bool(false) => return false,
            other => {
                let mut counter = Map::new();
                units.write(&mut counter);
                let counter = Value::Object(counter);
                *other = match other.take() {
                    Value::Object(reference) => json!({ "allOf": [counter, reference] }),
                    _ => counter,
                };
            }
        }
        true
    }
}

/// What one application of a subschema costs.
#[derive(Clone, Copy, Default)]
struct Units {
    each: u64,
    /// For each member of an object.
    member: u64,
    /// For every [`ELEMENTS_PER_UNIT`] elements or members.
    parts: u64,
    /// For the names of all objects within: the states of the expressions that they may meet.
    name_states: u64,
    /// For every [`FOREIGN_BYTES_PER_UNIT`] bytes of a value that a draft's own schema judges, which counts nothing itself.
    foreign: u64,
    /// How long that of the document is which is compiled with it. It costs nothing in a check.
    compiled: u64,
}

impl Units {
    /// None where it costs next to nothing.
    fn of(schema: &Map<String, Value>, metering: &Metering) -> Option<Self> {
        let length = |keyword: &str| match schema.get(keyword) {
            Some(Value::Array(elements)) => elements.len(),
            Some(Value::Object(members)) => members.len(),
            _ => 0,
        };
        let has = |keywords: &[&str]| keywords.iter().any(|keyword| schema.contains_key(*keyword));
        let lists: usize = ["required", "enum", "dependentRequired", "dependencies"]
            .map(length)
            .into_iter()
            .filter(|length| *length > SHORT_LIST_MAX)
            .sum();
        let literals: u64 = ["const", "enum"].into_iter().filter_map(|keyword| schema.get(keyword)).map(bytes).sum();
        let literals = literals / LITERAL_BYTES_PER_UNIT;
        let target = schema.get("$ref").and_then(Value::as_str);
        let reference = if target.is_some() { REFERENCE_UNITS } else { 0 };
        let foreign = metering.by_pointers && target.is_some_and(|target| !target.starts_with('#'));
        let parts = has(&PARTS);
        if lists + reference == 0 && literals == 0 && !parts && !has(&GO_ON) && !has(&OTHERS) {
            return None;
        }
        let alternatives: usize = ["allOf", "anyOf", "oneOf", "dependentSchemas"].map(length).into_iter().sum();
        let each = (1 + lists + reference + alternatives) as u64 + literals;
        // Of what goes on to no other nothing is asked about the same value twice.
        let name_states = if has(&GO_ON) { metering.name_states } else { 0 };
        Some(Self {
            each,
            member: length("patternProperties") as u64,
            parts: u64::from(parts),
            name_states,
            foreign: foreign.into(),
            compiled: 0,
        })
    }

    /// As the keyword's value says.
    fn read(value: &Value) -> Self {
        let number = |index: usize| value.get(index).and_then(Value::as_u64).unwrap_or_default();
        Self {
            each: number(0),
            member: number(1),
            parts: number(2),
            name_states: number(3),
            foreign: number(4),
            compiled: number(5),
        }
    }

    /// Writes the keyword into a subschema, on top of what it costs itself.
    fn write(self, schema: &mut Map<String, Value>) {
        let own = schema.get(KEYWORD).map(Self::read).unwrap_or_default();
        let sum = [
            own.each + self.each,
            own.member + self.member,
            own.parts + self.parts,
            own.name_states.saturating_add(self.name_states),
            own.foreign + self.foreign,
            own.compiled + self.compiled,
        ];
        schema.insert(KEYWORD.to_owned(), json!(sum));
    }
}

/// Makes the keyword's check, and tells for how much of the document it stands.
pub(super) fn keyword(value: &Value) -> (Box<dyn for<'i> Keyword<'i>>, u64) {
    let units = Units::read(value);
    (Box::new(Meter(units)), units.compiled)
}

/// Runs a check, or a comparison, within so many units.
pub(super) fn bounded<T>(units: u64, check: impl FnOnce() -> T) -> Result<T, Stopped> {
    LEFT.set(units);
    let checked = catch_unwind(AssertUnwindSafe(check));
    LEFT.set(u64::MAX);
    checked.map_err(|cause| if cause.is::<Exhausted>() { Stopped::Cost } else { Stopped::Panic })
}

/// Takes units of what this thread's check has left, and ends the check where there are not as many.
pub(super) fn charge(units: u64) {
    match LEFT.get().checked_sub(units) {
        Some(left) => LEFT.set(left),
        None => resume_unwind(Box::new(Exhausted)),
    }
}

thread_local! {
    /// What is left of the check that this thread runs; outside of one there is no end to it.
    static LEFT: Cell<u64> = const { Cell::new(u64::MAX) };
}

/// What unwinds out of the validator, which has no other way to be stopped, and out of a comparison, from wherever its cost arises. It
/// passes no panic hook.
struct Exhausted;

struct Meter(Units);

impl Meter {
    fn charge(&self, instance: &Value) {
        let Self(Units { each, member, parts, name_states, foreign, .. }) = self;
        let (members, elements) = match instance {
            Value::Object(members) => (members.len() as u64, members.len() as u64),
            Value::Array(elements) => (0, elements.len() as u64),
            _ => (0, 0),
        };
        charge(each + members * member + elements * parts / ELEMENTS_PER_UNIT);
        if *foreign > 0 {
            charge(bytes(instance).saturating_mul(*foreign) / FOREIGN_BYTES_PER_UNIT);
        }
        charge_for_names(instance, *name_states);
    }
}

impl<'i> Keyword<'i> for Meter {
    fn validate(&self, instance: &'i Value) -> Result<(), ValidationError<'i>> {
        self.charge(instance);
        Ok(())
    }

    fn is_valid(&self, instance: &'i Value) -> bool {
        self.charge(instance);
        true
    }
}
