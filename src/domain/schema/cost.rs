//! What checking one payload may cost. References can make a small document exponentially expensive to check, and long lists of
//! alternatives multiply with long payloads, so every subschema that leads to others counts how often it is applied.
//!
//! The counting is a keyword of our own, written into the document before it is compiled.

use jsonschema::{Keyword, ValidationError};
use serde_json::{Map, Value};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// The keyword. A document that has it already loses it.
pub(super) const KEYWORD: &str = "x-carillon-cost";
/// What one pass over a payload may cost.
const UNITS_MAX: u64 = 300_000;
/// How long a list of values may be to count for nothing.
const SHORT_LIST_MAX: usize = 16;

/// What following a reference costs: the validator keeps account of where it has been.
const REFERENCE_UNITS: usize = 4;

/// Keywords by which one subschema leads to others.
const APPLICATORS: [&str; 18] = [
    "$dynamicRef",
    "additionalItems",
    "additionalProperties",
    "allOf",
    "anyOf",
    "contains",
    "dependencies",
    "dependentSchemas",
    "if",
    "items",
    "not",
    "oneOf",
    "patternProperties",
    "prefixItems",
    "properties",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
];

/// Why a check ended early.
pub(super) enum Stopped {
    /// It cost too much.
    Cost,
    /// The validator panicked.
    Panic,
}

/// Writes the keyword into one subschema where it can be expensive.
pub(super) fn meter(schema: &mut Map<String, Value>) {
    let length = |keyword: &str| match schema.get(keyword) {
        Some(Value::Array(elements)) => elements.len(),
        Some(Value::Object(members)) => members.len(),
        _ => 0,
    };
    let lists: usize = ["required", "enum"].map(length).into_iter().filter(|length| *length > SHORT_LIST_MAX).sum();
    let reference = if schema.contains_key("$ref") { REFERENCE_UNITS } else { 0 };
    if lists + reference == 0 && !APPLICATORS.iter().any(|keyword| schema.contains_key(*keyword)) {
        return;
    }
    let each =
        1 + lists + reference + ["allOf", "anyOf", "oneOf", "dependentSchemas"].map(length).into_iter().sum::<usize>();
    let member = length("patternProperties");
    schema.insert(KEYWORD.to_owned(), Value::from(vec![each, member]));
}

/// Makes the keyword's check.
pub(super) fn keyword(value: &Value) -> Box<dyn for<'i> Keyword<'i>> {
    let number = |index: usize| value.get(index).and_then(Value::as_u64).unwrap_or(1);
    Box::new(Meter { each: number(0), member: number(1) })
}

/// Runs a check within the bound.
pub(super) fn bounded<T>(check: impl FnOnce() -> T) -> Result<T, Stopped> {
    LEFT.set(UNITS_MAX);
    catch_unwind(AssertUnwindSafe(check))
        .map_err(|cause| if cause.is::<Exhausted>() { Stopped::Cost } else { Stopped::Panic })
}

thread_local! {
    /// What is left of the check that this thread runs.
    static LEFT: Cell<u64> = const { Cell::new(0) };
}

/// What unwinds out of the validator, which has no other way to be stopped. It passes no panic hook.
struct Exhausted;

struct Meter {
    each: u64,
    member: u64,
}

impl Meter {
    fn charge(&self, instance: &Value) {
        let members = match instance {
            Value::Object(members) => members.len() as u64,
            _ => 0,
        };
        let units = self.each + members * self.member;
        match LEFT.get().checked_sub(units) {
            Some(left) => LEFT.set(left),
            None => resume_unwind(Box::new(Exhausted)),
        }
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
