//! The comparison itself: is all data that the writer's schema accepts accepted by the reader's?
//!
//! Goes through the reader's keywords one by one and looks for what the writer's schema says about each. Where that fails, the data
//! is split by the writer's own alternatives, and each part is looked at alone.

use super::accepts::accepts;
use super::facts::{
    ANY, BOOLEAN, Facts, NULL, OBJECT, PARTS_PER_UNIT, is_foreign, reference, refers_only, type_names, type_of, types,
};
use super::object::required;
use super::same::same;
use super::work::Work;
use super::{BREAKS_MAX, Break, Direction};
use crate::domain::schema::cost::{charge, charge_for};
use crate::domain::schema::references::{Document, address};
use crate::domain::schema::shown::shown;
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};

/// How deep the comparison goes into both.
const DEPTH_MAX: usize = 96;
/// How many alternatives of the writer are looked at one by one.
const SPLIT_MAX: usize = 100;

/// What identifies a pair that is being looked at.
type Question = (Vec<usize>, Vec<usize>, Vec<usize>, u8, usize);

/// A comparison in one direction.
pub(super) struct Relation<'d> {
    direction: Direction,
    pub(super) writer: &'d Document<'d>,
    pub(super) reader: &'d Document<'d>,
    pub(super) work: Work<'d>,
    /// Subschemas of both that were compared.
    compared: HashMap<(usize, usize), bool>,
    depth: usize,
    open: HashSet<Question>,
}

impl<'d> Relation<'d> {
    pub(super) fn new(direction: Direction, writer: &'d Document<'d>, reader: &'d Document<'d>) -> Self {
        Self {
            direction,
            writer,
            reader,
            work: Work::default(),
            compared: HashMap::new(),
            depth: 0,
            open: HashSet::new(),
        }
    }

    /// How messages call the schema that wrote the data, and the one that reads it.
    pub(super) fn who(&self) -> (&'static str, &'static str) {
        match self.direction {
            Direction::Backward => ("the registered schema", "the new schema"),
            Direction::Forward => ("the new schema", "the registered schema"),
        }
    }

    /// A break at a keyword of the reader's, or at the subschema itself where the keyword is empty.
    pub(super) fn broken(&self, facts: &Facts<'d>, schema: &Value, keyword: &str, message: String) -> Break {
        let of_reader = self.reader.pointer(schema).unwrap_or_default();
        let of_reader = if keyword.is_empty() { of_reader.to_owned() } else { format!("{of_reader}/{keyword}") };
        let of_writer = self.writer.pointer(facts.at).unwrap_or_default().to_owned();
        let (pointer, previous_pointer) = match self.direction {
            Direction::Backward => (of_reader, of_writer),
            Direction::Forward => (of_writer, of_reader),
        };
        for text in [&pointer, &previous_pointer, &message] {
            charge_for(text);
        }
        Break { direction: self.direction, pointer, previous_pointer, message, undecided: false }
    }

    /// What cannot be decided at a keyword of the reader's, or at the subschema itself where the keyword is empty.
    pub(super) fn undecided(&self, facts: &Facts<'d>, schema: &Value, keyword: &str, why: &str) -> Break {
        let what = if keyword.is_empty() { "the schemas" } else { keyword };
        let message = format!("{what} cannot be compared: {why}");
        Break { undecided: true, ..self.broken(facts, schema, keyword, message) }
    }

    /// What of the data known by `facts` the reader's schema refuses; nothing where it accepts all of it.
    pub(super) fn included(&mut self, facts: &Facts<'d>, schema: &'d Value) -> Vec<Break> {
        if facts.types == 0 || schema == &Value::Bool(true) {
            return Vec::new();
        }
        charge_question(facts);
        if self.depth > DEPTH_MAX {
            return vec![self.undecided(facts, schema, "", "they are too deep")];
        }
        if facts.parts.iter().any(|part| self.same(part, schema)) {
            return Vec::new();
        }
        let question = question(facts, schema);
        // A pair that is being looked at already holds as long as nothing below it breaks: data ends.
        if !self.open.insert(question.clone()) {
            return Vec::new();
        }
        self.depth += 1;
        let breaks = self.decide(facts, schema);
        self.depth -= 1;
        self.open.remove(&question);
        breaks
    }

    /// True where a subschema of the writer's says the same as one of the reader's.
    fn same(&mut self, of_writer: &'d Value, of_reader: &'d Value) -> bool {
        let compared = self.compared.entry((address(of_writer), address(of_reader)));
        *compared.or_insert_with(|| same((self.writer, of_writer), (self.reader, of_reader)))
    }

    fn decide(&mut self, facts: &Facts<'d>, schema: &'d Value) -> Vec<Break> {
        if let Some(values) = facts.enumerated(&mut self.work) {
            let mut refused = None;
            let mut known = true;
            for value in values {
                let possible = !facts.parts.iter().any(|part| {
                    self.writer.pointer(part).is_some()
                        && accepts(self.writer, &mut self.work, part, value) == Some(false)
                });
                match accepts(self.reader, &mut self.work, schema, value) {
                    _ if !possible => {}
                    Some(true) => {}
                    Some(false) => refused = refused.or(Some(value)),
                    None => known = false,
                }
            }
            if let Some(value) = refused {
                let (writer, reader) = self.who();
                let message = format!("{reader} refuses {}, which {writer} allows", shown(value));
                return vec![self.broken(facts, schema, "", message)];
            }
            if known {
                return Vec::new();
            }
        }
        let breaks = self.keywords(facts, schema);
        if breaks.is_empty() {
            return breaks;
        }
        let Some(parts) = split(facts, schema) else { return breaks };
        let mut of_parts = Vec::new();
        for part in parts {
            of_parts.extend(self.included(&part, schema));
            if of_parts.len() >= BREAKS_MAX {
                break;
            }
        }
        // What breaks for one alternative says more than that the whole breaks.
        of_parts
    }

    fn keywords(&mut self, facts: &Facts<'d>, schema: &'d Value) -> Vec<Break> {
        let (_, reader) = self.who();
        let members = match schema {
            Value::Object(members) => members,
            Value::Bool(true) => return Vec::new(),
            _ => {
                return vec![self.broken(facts, schema, "", format!("{reader} accepts nothing here"))];
            }
        };
        if is_foreign(self.reader, schema) {
            return vec![self.undecided(facts, schema, "$schema", "it is of another draft than the document")];
        }
        let mut breaks = Vec::new();
        if members.contains_key("$ref") {
            match reference(self.reader, schema) {
                Some(target) => breaks.extend(self.included(facts, target)),
                None => breaks.push(self.undecided(facts, schema, "$ref", "it leads out of the document")),
            }
            if refers_only(self.reader, members) {
                return breaks;
            }
        }
        for (keyword, value) in members {
            match keyword.as_str() {
                "type" => breaks.extend(self.types(facts, schema, members)),
                "enum" | "const" => breaks.extend(self.values(facts, schema, keyword, value)),
                "allOf" => {
                    for part in value.as_array().into_iter().flatten() {
                        breaks.extend(self.included(facts, part));
                    }
                }
                "anyOf" => breaks.extend(self.any_of(facts, schema, value)),
                "oneOf" => breaks.extend(self.one_of(facts, schema, value)),
                "not" => breaks.extend(self.not(facts, schema, value)),
                "if" => breaks.extend(self.conditional(facts, schema, members)),
                "$dynamicRef" => {
                    breaks.push(self.undecided(facts, schema, keyword, "where it leads depends on the way to it"));
                }
                _ => breaks.extend(self.scalar(facts, schema, keyword, value)),
            }
        }
        breaks.extend(self.object(facts, schema, members));
        breaks.extend(self.array(facts, schema, members));
        breaks.truncate(BREAKS_MAX);
        breaks
    }

    fn types(&self, facts: &Facts<'d>, schema: &'d Value, members: &Map<String, Value>) -> Option<Break> {
        let refused = facts.types & !types(members);
        let (writer, reader) = self.who();
        let message = || {
            let (refused, allowed) = (type_names(refused), type_names(types(members)));
            format!("{reader} takes {allowed} alone, and {writer} also allows {refused}")
        };
        (refused != 0).then(|| self.broken(facts, schema, "type", message()))
    }

    /// Where the writer's values are not known one by one, only types that have few values can fit.
    fn values(&mut self, facts: &Facts<'d>, schema: &'d Value, keyword: &str, wanted: &'d Value) -> Option<Break> {
        static FEW: [Value; 3] = [Value::Null, Value::Bool(false), Value::Bool(true)];
        let few = || FEW.iter().filter(|value| facts.types & type_of(value) != 0).collect();
        let written = facts.enumerated(&mut self.work);
        let written = written.or_else(|| (facts.types & !(NULL | BOOLEAN) == 0).then(few));
        let mut takes = |value: &'d Value| match keyword {
            "enum" => self.work.is_listed(wanted, value),
            _ => self.work.are_equal(wanted, value),
        };
        if written.is_some_and(|values| values.into_iter().all(&mut takes)) {
            return None;
        }
        let (writer, reader) = self.who();
        let message = format!("{reader} allows only the values of {keyword}, and {writer} allows others");
        Some(self.broken(facts, schema, keyword, message))
    }

    fn any_of(&mut self, facts: &Facts<'d>, schema: &'d Value, alternatives: &'d Value) -> Option<Break> {
        let fits = alternatives.as_array().into_iter().flatten().any(|one| self.included(facts, one).is_empty());
        let (writer, reader) = self.who();
        let message = || format!("no alternative of anyOf of {reader} accepts all that {writer} allows here");
        (!fits).then(|| self.broken(facts, schema, "anyOf", message()))
    }

    fn one_of(&mut self, facts: &Facts<'d>, schema: &'d Value, alternatives: &'d Value) -> Option<Break> {
        let all: Vec<&'d Value> = alternatives.as_array().into_iter().flatten().collect();
        let mut overlaps = false;
        for (index, one) in all.iter().enumerate() {
            if self.included(facts, one).is_empty() {
                let others = all.iter().enumerate().filter(|(other, _)| *other != index);
                if others.into_iter().all(|(_, other)| self.excludes(facts, other)) {
                    return None;
                }
                overlaps = true;
            }
        }
        let (writer, reader) = self.who();
        Some(if overlaps {
            self.undecided(facts, schema, "oneOf", "data may fit more than one of its alternatives")
        } else {
            let message = format!("no alternative of oneOf of {reader} accepts all that {writer} allows here");
            self.broken(facts, schema, "oneOf", message)
        })
    }

    fn not(&mut self, facts: &Facts<'d>, schema: &'d Value, refused: &'d Value) -> Option<Break> {
        let why = "whether data of the other schema can match it is not known";
        (!self.excludes(facts, refused)).then(|| self.undecided(facts, schema, "not", why))
    }

    fn conditional(&mut self, facts: &Facts<'d>, schema: &'d Value, members: &'d Map<String, Value>) -> Option<Break> {
        // Where the other schema has the same condition, it need not be understood.
        let known = facts.members().any(|(_, other)| {
            ["if", "then", "else"].iter().all(|keyword| match (other.get(*keyword), members.get(*keyword)) {
                (None, None) => true,
                (Some(a), Some(b)) => same((self.writer, a), (self.reader, b)),
                _ => false,
            })
        });
        let branches = ["then", "else"].into_iter().filter_map(|keyword| members.get(keyword));
        let fits = known || branches.into_iter().all(|branch| self.included(facts, branch).is_empty());
        (!fits).then(|| {
            self.undecided(facts, schema, "if", "data of the other schema does not satisfy both then and else")
        })
    }

    /// True where no data known by `facts` satisfies a schema of the reader's.
    pub(super) fn excludes(&mut self, facts: &Facts<'d>, schema: &'d Value) -> bool {
        charge_question(facts);
        if self.depth > DEPTH_MAX {
            return false;
        }
        if facts.not.iter().any(|not| self.same(not, schema)) {
            return true;
        }
        let other = Facts::of(self.reader, schema);
        if facts.types & other.types == 0 {
            return true;
        }
        if let Some(values) = facts.enumerated(&mut self.work) {
            let refuses = |value: &&'d Value| accepts(self.reader, &mut self.work, schema, value) == Some(false);
            if values.iter().all(refuses) {
                return true;
            }
        }
        if let Some(values) = other.enumerated(&mut self.work) {
            let refused = values.iter().all(|value| {
                facts.parts.iter().any(|part| accepts(self.writer, &mut self.work, part, value) == Some(false))
            });
            if refused {
                return true;
            }
        }
        if facts.types & other.types != OBJECT {
            return false;
        }
        // A property that both require, with values that differ, tells them apart.
        let of_other = required(&other);
        self.depth += 1;
        let apart = required(facts).into_iter().filter(|name| of_other.contains(name)).any(|name| {
            let of_writer = self.property(facts, name);
            self.reader_schemas(&other, name).into_iter().any(|schema| self.excludes(&of_writer, schema))
        });
        self.depth -= 1;
        apart
    }
}

/// The data as several parts: by an alternative of the writer's, or by type where the reader has alternatives.
fn split<'d>(facts: &Facts<'d>, schema: &'d Value) -> Option<Vec<Facts<'d>>> {
    for (part, members) in facts.members() {
        if facts.chosen.contains(&address(part)) {
            continue;
        }
        for keyword in ["anyOf", "oneOf"] {
            let Some(schemas) = members.get(keyword).and_then(Value::as_array) else { continue };
            if schemas.len() > SPLIT_MAX {
                return None;
            }
            let copied = facts.parts.len() + facts.not.len() + schemas.len();
            charge(schemas.len() as u64 * (1 + copied as u64 / PARTS_PER_UNIT));
            let alternative = |index: usize| {
                let mut chosen = facts.clone();
                chosen.chosen.push(address(part));
                chosen.at = &schemas[index];
                chosen.add(&schemas[index]);
                if keyword == "oneOf" {
                    let others = schemas.iter().enumerate().filter(|(other, _)| *other != index);
                    chosen.not.extend(others.map(|(_, schema)| schema));
                }
                chosen
            };
            return Some((0..schemas.len()).map(alternative).collect());
        }
    }
    let several = (facts.types & (facts.types - 1)) != 0;
    let alternatives = ["anyOf", "oneOf", "$ref", "allOf", "not"].iter().any(|keyword| schema.get(keyword).is_some());
    (several && alternatives && facts.types != ANY).then(|| {
        let bits = (0..7).map(|bit| 1_u8 << bit).filter(|bit| facts.types & bit != 0);
        bits.map(|types| Facts { types, ..facts.clone() }).collect()
    })
}

/// What asking about data costs: all that is known of it is gone through, and what it is known not to be.
fn charge_question(facts: &Facts<'_>) {
    charge(1 + facts.parts.len() as u64 + facts.not.len() as u64 / 2);
}

fn question(facts: &Facts<'_>, schema: &Value) -> Question {
    let sorted = |schemas: &[&Value]| {
        let mut addresses: Vec<usize> = schemas.iter().map(|schema| address(schema)).collect();
        addresses.sort_unstable();
        addresses
    };
    // What was chosen belongs to it: a part of the data is asked about without going into the data, and is another question.
    (sorted(&facts.parts), sorted(&facts.not), facts.chosen.clone(), facts.types, address(schema))
}
