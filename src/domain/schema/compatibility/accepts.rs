//! Whether a schema accepts one value that another schema names (`enum`, `const`), as far as that can be said without its validator.

use super::decimal::Decimal;
use super::facts::{self, is_foreign, reference, refers_only, type_of};
use super::work::Work;
use crate::domain::schema::cost::{charge, charge_for};
use crate::domain::schema::references::Document;
use serde_json::{Map, Value};
use std::cmp::Ordering;

const DEPTH_MAX: usize = 64;

/// Keywords that judge objects and arrays by what they hold.
const STRUCTURAL: [&str; 21] = [
    "additionalItems",
    "additionalProperties",
    "contains",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "items",
    "maxContains",
    "maxItems",
    "maxProperties",
    "minContains",
    "minItems",
    "minProperties",
    "patternProperties",
    "prefixItems",
    "properties",
    "propertyNames",
    "required",
    "unevaluatedItems",
    "unevaluatedProperties",
    "uniqueItems",
];

/// None where it cannot be said.
pub(super) fn accepts<'d>(
    document: &Document<'d>,
    work: &mut Work<'d>,
    schema: &'d Value,
    value: &'d Value,
) -> Option<bool> {
    Judge { document, work }.schema(schema, value, 0)
}

struct Judge<'x, 'd> {
    document: &'x Document<'d>,
    work: &'x mut Work<'d>,
}

impl<'d> Judge<'_, 'd> {
    fn schema(&mut self, schema: &'d Value, value: &'d Value, depth: usize) -> Option<bool> {
        let members = match schema {
            Value::Bool(all) => return Some(*all),
            Value::Object(members) => members,
            _ => return None,
        };
        charge(1 + members.len() as u64);
        if depth > DEPTH_MAX || is_foreign(self.document, schema) {
            return None;
        }
        let mut verdict = Some(true);
        if members.contains_key("$ref") {
            verdict = both(
                verdict,
                reference(self.document, schema).and_then(|target| self.schema(target, value, depth + 1)),
            );
            if refers_only(self.document, members) {
                return verdict;
            }
        }
        if facts::types(members) & type_of(value) == 0 {
            return Some(false);
        }
        for (keyword, wanted) in members {
            verdict = both(verdict, self.keyword(keyword, wanted, members, value, depth));
            if verdict == Some(false) {
                return verdict;
            }
        }
        verdict
    }

    fn keyword(
        &mut self,
        keyword: &str,
        wanted: &'d Value,
        members: &'d Map<String, Value>,
        value: &'d Value,
        depth: usize,
    ) -> Option<bool> {
        let mut each = |schemas: &'d Value| -> Vec<Option<bool>> {
            schemas.as_array().into_iter().flatten().map(|schema| self.schema(schema, value, depth + 1)).collect()
        };
        match keyword {
            "enum" => Some(self.work.is_listed(wanted, value)),
            "const" => Some(self.work.are_equal(wanted, value)),
            "allOf" => each(wanted).into_iter().fold(Some(true), both),
            "anyOf" => {
                let verdicts = each(wanted);
                if verdicts.contains(&Some(true)) { Some(true) } else { all_known(&verdicts).map(|_| false) }
            }
            "oneOf" => all_known(&each(wanted)).map(|count| count == 1),
            "not" => self.schema(wanted, value, depth + 1).map(|accepted| !accepted),
            "if" => {
                let branch = if self.schema(wanted, value, depth + 1)? { "then" } else { "else" };
                members.get(branch).map_or(Some(true), |branch| self.schema(branch, value, depth + 1))
            }
            "$dynamicRef" => None,
            "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" if value.is_number() => {
                let order = Decimal::of(value)?.cmp(&Decimal::of(wanted)?);
                Some(match keyword {
                    "minimum" => order != Ordering::Less,
                    "maximum" => order != Ordering::Greater,
                    "exclusiveMinimum" => order == Ordering::Greater,
                    _ => order == Ordering::Less,
                })
            }
            "multipleOf" if value.is_number() => {
                Some(Decimal::of(value)?.whole()?.checked_rem(Decimal::of(wanted)?.whole()?)? == 0)
            }
            "minLength" | "maxLength" => {
                let Value::String(text) = value else { return Some(true) };
                charge_for(text);
                let length = Value::from(text.chars().count());
                let order = Decimal::of(&length)?.cmp(&Decimal::of(wanted)?);
                Some(if keyword == "minLength" { order != Ordering::Less } else { order != Ordering::Greater })
            }
            "pattern" => {
                let Value::String(text) = value else { return Some(true) };
                self.work.matches(wanted.as_str()?, text)
            }
            "format" | "contentEncoding" | "contentMediaType" if value.is_string() => None,
            _ if STRUCTURAL.contains(&keyword) && (value.is_object() || value.is_array()) => None,
            _ => Some(true),
        }
    }
}

fn both(a: Option<bool>, b: Option<bool>) -> Option<bool> {
    if a == Some(false) || b == Some(false) { Some(false) } else { a.and(b) }
}

/// How many are true, where all of them are known.
fn all_known(verdicts: &[Option<bool>]) -> Option<usize> {
    verdicts.iter().copied().collect::<Option<Vec<bool>>>().map(|verdicts| verdicts.iter().filter(|one| **one).count())
}
