//! Keywords that lead to no other subschema.

use super::{Pass, Path};
use crate::domain::schema::compatibility::{Canonical, DECIMAL_UNITS, Decimal, are_equal};
use crate::domain::schema::cost::{charge, charge_for};
use crate::domain::schema::program::{Bound, Check, Node, NodeId, Program, Type};
use crate::domain::schema::shown::{quoted, shown};
use crate::domain::schema::weight::bytes;
use serde_json::{Number, Value};
use std::collections::HashSet;
use std::mem::discriminant;

/// How many bytes of a text cost one unit where characters are counted.
const COUNTED_BYTES_PER_UNIT: usize = 96;
/// The same of a list in which each is compared with all others.
const UNIQUE_BYTES_PER_UNIT: u64 = 6;
/// How many values are compared by their types for one unit.
const COMPARED_PER_UNIT: u64 = 16;
/// What a division of numbers costs.
const DIVISION_UNITS: u64 = 100;

/// What has a size: the keywords about it, with what is said where they say no, and what is counted.
struct Sized {
    least: (&'static str, &'static str),
    most: (&'static str, &'static str),
    things: (&'static str, &'static str),
}

const CHARACTERS: Sized = Sized {
    least: ("minLength", "is shorter than"),
    most: ("maxLength", "is longer than"),
    things: ("character", "characters"),
};
const ITEMS: Sized =
    Sized { least: ("minItems", "has fewer than"), most: ("maxItems", "has more than"), things: ("item", "items") };
const PROPERTIES: Sized = Sized {
    least: ("minProperties", "has fewer than"),
    most: ("maxProperties", "has more than"),
    things: ("property", "properties"),
};

impl Pass<'_> {
    /// Keywords that lead to no other subschema.
    #[inline(never)]
    pub(super) fn alone(&mut self, node: &Node, check: &Check, value: &Value, at: &Path<'_>) -> bool {
        match (check, value) {
            (Check::Never, _) => self.tell(node, "", at, || "is not allowed".to_owned()),
            (Check::Type(types), _) => {
                types.iter().any(|one| is_of(*one, value))
                    || self.tell(node, "type", at, || {
                        let types: Vec<String> = types.iter().map(|one| format!("{:?}", one.as_str())).collect();
                        format!("the value is not of type {}", types.join(" or "))
                    })
            }
            (Check::Const(wanted), _) => {
                are_equal(wanted, value) || self.tell(node, "const", at, || format!("{} was expected", shown(wanted)))
            }
            (Check::Enum { texts, others, shown }, _) => {
                let is_listed = match value {
                    Value::String(text) => {
                        charge_for(text);
                        texts.contains(text.as_str())
                    }
                    _ => others.iter().any(|one| are_equal(one, value)),
                };
                is_listed || self.tell(node, "enum", at, || format!("the value is not one of {shown}"))
            }
            (Check::Bound(bound, limit, text), Value::Number(number)) => {
                self.bound(node, (*bound, limit, text), number, at)
            }
            (Check::MultipleOf(divisor, text), Value::Number(number)) => {
                charge(DIVISION_UNITS);
                Decimal::read(number).is_multiple_of(divisor)
                    || self.tell(node, "multipleOf", at, || format!("the value is not a multiple of {text}"))
            }
            (Check::Length(bound, limit), Value::String(text)) => {
                charge((text.len() / COUNTED_BYTES_PER_UNIT) as u64);
                self.size(node, (*bound, *limit, &CHARACTERS), text.chars().count(), at)
            }
            (Check::Items(bound, limit), Value::Array(elements)) => {
                self.size(node, (*bound, *limit, &ITEMS), elements.len(), at)
            }
            (Check::Properties(bound, limit), Value::Object(members)) => {
                self.size(node, (*bound, *limit, &PROPERTIES), members.len(), at)
            }
            (Check::Pattern(pattern), Value::String(text)) => {
                pattern.matches(text)
                    || self
                        .tell(node, "pattern", at, || format!("the value does not match {}", quoted(pattern.source())))
            }
            (Check::Asserted(keyword, asserted), Value::String(_)) => {
                asserted.is_valid(value) || self.tell(node, keyword, at, || asserted.message().to_owned())
            }
            (Check::Unique, Value::Array(elements)) => {
                charge(bytes(value) / UNIQUE_BYTES_PER_UNIT);
                let mut known = HashSet::with_capacity(elements.len());
                elements.iter().all(|element| known.insert(Canonical::read(element)))
                    || self.tell(node, "uniqueItems", at, || "the value has non-unique elements".to_owned())
            }
            (Check::Required(names), Value::Object(members)) => self.every(names.iter(), |pass, name| {
                charge(1);
                charge_for(name);
                members.contains_key(&**name)
                    || pass.tell(node, "required", at, || format!("{} is a required property", quoted(name)))
            }),
            (Check::DependentRequired(keyword, dependents), Value::Object(members)) => {
                self.every(dependents.iter(), |pass, (given, names)| {
                    charge(1);
                    charge_for(given);
                    !members.contains_key(&**given)
                        || pass.every(names.iter(), |pass, name| {
                            charge(1);
                            charge_for(name);
                            members.contains_key(&**name)
                                || pass.tell(node, keyword, at, || {
                                    format!("{} is a required property beside {}", quoted(name), quoted(given))
                                })
                        })
                })
            }
            _ => true,
        }
    }

    fn bound(&mut self, node: &Node, check: (Bound, &Decimal, &str), number: &Number, at: &Path<'_>) -> bool {
        let (bound, limit, text) = check;
        charge(1);
        charge_for(number.as_str());
        let order = match (number.as_i64(), text.parse::<i64>()) {
            (Some(number), Ok(limit)) => number.cmp(&limit),
            _ => {
                charge(DECIMAL_UNITS);
                Decimal::read(number).cmp(limit)
            }
        };
        let (is_within, keyword, what) = match bound {
            Bound::Least => (order.is_ge(), "minimum", "less than the minimum of"),
            Bound::Most => (order.is_le(), "maximum", "greater than the maximum of"),
            Bound::Above => (order.is_gt(), "exclusiveMinimum", "less than or equal to the minimum of"),
            Bound::Below => (order.is_lt(), "exclusiveMaximum", "greater than or equal to the maximum of"),
        };
        is_within || self.tell(node, keyword, at, || format!("the value is {what} {text}"))
    }

    fn size(&mut self, node: &Node, check: (Bound, u64, &Sized), size: usize, at: &Path<'_>) -> bool {
        let (bound, limit, of) = check;
        let (is_within, (keyword, than)) = match bound {
            Bound::Most | Bound::Below => (size as u64 <= limit, of.most),
            Bound::Least | Bound::Above => (size as u64 >= limit, of.least),
        };
        is_within
            || self.tell(node, keyword, at, || {
                format!("the value {than} {limit} {}", if limit == 1 { of.things.0 } else { of.things.1 })
            })
    }
}

impl Program {
    /// False where a subschema, or one that it refers to, takes no value of this type.
    pub(super) fn takes(&self, id: NodeId, value: &Value, steps: usize) -> bool {
        charge(1 + self.nodes[id].checks.len() as u64);
        self.nodes[id].checks.iter().all(|check| match check {
            Check::Never => false,
            Check::Type(types) => types.iter().any(|kind| is_of(*kind, value)),
            Check::Const(one) => discriminant(one) == discriminant(value),
            Check::Enum { texts, others, .. } => {
                charge(others.len() as u64 / COMPARED_PER_UNIT);
                value.is_string() && !texts.is_empty()
                    || others.iter().any(|one| discriminant(one) == discriminant(value))
            }
            Check::Reference(id) if steps > 0 => self.takes(*id, value, steps - 1),
            Check::All(ids) if steps > 0 => ids.iter().all(|id| self.takes(*id, value, steps - 1)),
            _ => true,
        })
    }
}

fn is_of(kind: Type, value: &Value) -> bool {
    match (kind, value) {
        (Type::Null, Value::Null)
        | (Type::Boolean, Value::Bool(_))
        | (Type::Number, Value::Number(_))
        | (Type::Text, Value::String(_))
        | (Type::Array, Value::Array(_))
        | (Type::Object, Value::Object(_)) => true,
        (Type::Integer, Value::Number(number)) => {
            let is_plain = number.as_str().bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
            is_plain || Decimal::read(number).is_whole()
        }
        _ => false,
    }
}
