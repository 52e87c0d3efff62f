//! Whether two schemas say the same, references followed and annotations left out. What cannot be compared otherwise is still known
//! to be compatible where it is the same.

use super::decimal::are_equal;
use super::facts::{is_foreign, reference, refers_only};
use crate::domain::schema::cost::charge;
use crate::domain::schema::references::{Document, address};
use crate::domain::schema::{DATA_KEYWORDS, MAP_KEYWORDS};
use serde_json::{Map, Value};
use std::collections::HashSet;

/// Keywords that say nothing about which data is accepted, or that references have resolved.
const SILENT: [&str; 12] = [
    "$anchor",
    "$comment",
    "$defs",
    "$id",
    "$schema",
    "default",
    "definitions",
    "deprecated",
    "description",
    "examples",
    "readOnly",
    "title",
];

/// True where both say the same.
pub(super) fn same<'a, 'b>(a: (&Document<'a>, &'a Value), b: (&Document<'b>, &'b Value)) -> bool {
    let mut comparison = Comparison { a: a.0, b: b.0, seen: HashSet::new(), left: Vec::new() };
    comparison.schemas(a.1, b.1);
    while let Some((a, b)) = comparison.left.pop() {
        if !comparison.pair(a, b) {
            return false;
        }
    }
    true
}

/// True where two documents are the same text but for what says nothing. They accept the same data then, whatever it is they say.
pub(super) fn alike(a: &Value, b: &Value) -> bool {
    charge(1);
    match (a, b) {
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| alike(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            // What a reference may lead to counts in any case. It leads to no text, and not into what holds data.
            let silent = |(keyword, value): &(&String, &Value)| match keyword.as_str() {
                "$comment" | "description" | "title" => value.is_string(),
                "default" | "examples" => true,
                _ => false,
            };
            let count = |members: &Map<String, Value>| members.iter().filter(|member| !silent(member)).count();
            count(a) == count(b)
                && a.iter().filter(|member| !silent(member)).all(|(keyword, a)| {
                    b.get(keyword).is_some_and(|b| match (keyword.as_str(), a, b) {
                        (keyword, Value::Object(a), Value::Object(b)) if MAP_KEYWORDS.contains(&keyword) => {
                            a.len() == b.len() && a.iter().all(|(name, a)| b.get(name).is_some_and(|b| alike(a, b)))
                        }
                        (keyword, ..) if DATA_KEYWORDS.contains(&keyword) => a == b,
                        _ => alike(a, b),
                    })
                })
        }
        _ => a == b,
    }
}

struct Comparison<'x, 'a, 'b> {
    a: &'x Document<'a>,
    b: &'x Document<'b>,
    seen: HashSet<(usize, usize)>,
    /// Pairs that have to be the same too. References may lead far: no stack is enough for all of them.
    left: Vec<(&'a Value, &'b Value)>,
}

impl<'a, 'b> Comparison<'_, 'a, 'b> {
    /// Takes note of a pair that has to be the same, once.
    fn schemas(&mut self, a: &'a Value, b: &'b Value) -> bool {
        if self.seen.insert((address(a), address(b))) {
            self.left.push((a, b));
        }
        true
    }

    /// False where a pair is not the same, whatever is noted.
    fn pair(&mut self, a: &'a Value, b: &'b Value) -> bool {
        charge(1);
        match (a, b) {
            (Value::Object(left), Value::Object(right)) => self.members(a, left, b, right),
            (Value::Array(left), Value::Array(right)) => {
                left.len() == right.len() && left.iter().zip(right).all(|(a, b)| self.schemas(a, b))
            }
            _ => are_equal(a, b),
        }
    }

    fn members(
        &mut self,
        a: &'a Value,
        left: &'a Map<String, Value>,
        b: &'b Value,
        right: &'b Map<String, Value>,
    ) -> bool {
        if is_foreign(self.a, a)
            || is_foreign(self.b, b)
            || left.contains_key("$dynamicRef")
            || self.a.draft != self.b.draft
        {
            return false;
        }
        if left.contains_key("$ref") || right.contains_key("$ref") {
            match (reference(self.a, a), reference(self.b, b)) {
                (Some(a), Some(b)) if self.schemas(a, b) => {}
                // What leads out of both documents is one of the drafts' own schemas.
                (None, None)
                    if left.get("$ref").is_some_and(|uri| Some(uri) == right.get("$ref") && is_absolute(uri)) => {}
                _ => return false,
            }
        }
        if refers_only(self.a, left) {
            return refers_only(self.b, right);
        }
        charge((left.len() + right.len()) as u64);
        let count = |members: &Map<String, Value>| members.keys().filter(|keyword| counts(keyword)).count();
        count(left) == count(right)
            && left.iter().filter(|(keyword, _)| counts(keyword)).all(|(keyword, a)| {
                right.get(keyword).is_some_and(|b| match (keyword.as_str(), a, b) {
                    ("$ref", ..) => true,
                    (keyword, Value::Object(a), Value::Object(b)) if MAP_KEYWORDS.contains(&keyword) => {
                        charge(a.len() as u64);
                        a.len() == b.len() && a.iter().all(|(name, a)| b.get(name).is_some_and(|b| self.schemas(a, b)))
                    }
                    (keyword, ..) if DATA_KEYWORDS.contains(&keyword) => are_equal(a, b),
                    _ => self.schemas(a, b),
                })
            })
    }
}

fn is_absolute(uri: &Value) -> bool {
    uri.as_str().is_some_and(|uri| uri.starts_with("http:") || uri.starts_with("https:"))
}

fn counts(keyword: &str) -> bool {
    !SILENT.contains(&keyword) && keyword != "writeOnly"
}
