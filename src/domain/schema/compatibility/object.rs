//! Keywords about objects: which members there must be, which there may be, and what they hold.

use super::Break;
use super::decimal::Decimal;
use super::facts::{Facts, OBJECT, STRING};
use super::relation::Relation;
use super::same::same;
use crate::domain::schema::cost::charge;
use crate::domain::schema::shown::quoted;
use jsonschema::Draft;
use serde_json::{Map, Value};
use std::collections::{BTreeSet, HashSet};

type Members = Map<String, Value>;

impl<'d> Relation<'d> {
    /// What the keywords about objects refuse.
    pub(super) fn object(&mut self, facts: &Facts<'d>, schema: &'d Value, members: &'d Members) -> Vec<Break> {
        if facts.types & OBJECT == 0 {
            return Vec::new();
        }
        let mut breaks = Vec::new();
        for (keyword, value) in members {
            match keyword.as_str() {
                "required" => breaks.extend(self.members_required(facts, schema, value)),
                "minProperties" | "maxProperties" => breaks.extend(self.size(facts, schema, keyword, value)),
                // Draft 7 does not know them: there they say nothing.
                "dependentRequired" | "dependentSchemas" if self.reader.draft == Draft::Draft7 => {}
                "dependentRequired" => breaks.extend(self.dependent_required(facts, schema, keyword, value)),
                "dependentSchemas" => breaks.extend(self.dependent_schemas(facts, schema, keyword, value)),
                // 2020-12 has split this keyword; what still stands there is of no draft.
                "dependencies" if self.reader.draft == Draft::Draft7 => {
                    breaks.extend(self.dependent_required(facts, schema, keyword, value));
                    breaks.extend(self.dependent_schemas(facts, schema, keyword, value));
                }
                "dependencies" => breaks.push(self.undecided(facts, schema, keyword, "it is not a keyword of 2020-12")),
                "propertyNames" => breaks.extend(self.property_names(facts, schema, value)),
                "unevaluatedProperties" if value != &Value::Bool(true) => {
                    breaks.push(self.undecided(facts, schema, keyword, "it depends on everything beside it"));
                }
                _ => {}
            }
        }
        if ["properties", "patternProperties", "additionalProperties"]
            .iter()
            .any(|keyword| members.contains_key(*keyword))
        {
            breaks.extend(self.members(facts, schema, members));
        }
        breaks
    }

    /// What is known of the member `name` of data known by `facts`, where there is one.
    pub(super) fn property<'f>(&mut self, facts: &Facts<'f>, name: &str) -> Facts<'f> {
        let mut known = Facts::nothing(facts.document, facts.at);
        let mut named = false;
        for (_, members) in facts.members() {
            let Some(schemas) = self.schemas_of(members, name) else { continue };
            for schema in schemas {
                if !named {
                    known.at = schema;
                    named = true;
                }
                known.add(schema);
            }
        }
        known
    }

    /// The schemas that one of the reader's applies to the member `name`; those that cannot be told are left out.
    pub(super) fn reader_schemas(&mut self, facts: &Facts<'d>, name: &str) -> Vec<&'d Value> {
        let parts: Vec<&'d Members> = facts.members().map(|(_, members)| members).collect();
        parts.into_iter().filter_map(|members| self.schemas_of(members, name)).flatten().collect()
    }

    /// The schemas that apply to the member `name`; none where a pattern cannot be told to match.
    fn schemas_of<'f>(&mut self, members: &'f Members, name: &str) -> Option<Vec<&'f Value>> {
        let mut found: Vec<&Value> = map(members, "properties").and_then(|named| named.get(name)).into_iter().collect();
        for (pattern, schema) in map(members, "patternProperties").into_iter().flatten() {
            if self.work.matches(pattern, name)? {
                found.push(schema);
            }
        }
        if found.is_empty() {
            found.extend(members.get("additionalProperties"));
        }
        Some(found)
    }

    fn members(&mut self, facts: &Facts<'d>, schema: &'d Value, members: &'d Members) -> Vec<Break> {
        let mut breaks = Vec::new();
        let mut names: BTreeSet<&str> =
            map(members, "properties").into_iter().flat_map(Map::keys).map(String::as_str).collect();
        for (_, other) in facts.members() {
            names.extend(map(other, "properties").into_iter().flat_map(Map::keys).map(String::as_str));
        }
        charge(names.len() as u64);
        for name in names {
            let known = self.property(facts, name);
            match self.schemas_of(members, name) {
                Some(schemas) => {
                    for one in schemas {
                        breaks.extend(self.member(&known, name, schema, one));
                    }
                }
                None => breaks.push(self.undecided(facts, schema, "patternProperties", "a pattern cannot be applied")),
            }
        }
        // Members that neither schema names: each kind of name that the two can tell from others.
        let patterns = map(members, "patternProperties");
        for (pattern, one) in patterns.into_iter().flatten() {
            let known = unnamed(facts, Some(pattern));
            breaks.extend(self.unnamed_member(&known, facts, schema, "patternProperties", one));
        }
        if let Some(rest) = members.get("additionalProperties") {
            let others: BTreeSet<&str> = facts
                .members()
                .filter_map(|(_, other)| map(other, "patternProperties"))
                .flat_map(Map::keys)
                .map(String::as_str)
                .collect();
            for pattern in others {
                if patterns.is_none_or(|own| !own.contains_key(pattern)) {
                    let known = unnamed(facts, Some(pattern));
                    breaks.extend(self.unnamed_member(&known, facts, schema, "additionalProperties", rest));
                }
            }
            let known = unnamed(facts, None);
            breaks.extend(self.unnamed_member(&known, facts, schema, "additionalProperties", rest));
        }
        breaks
    }

    fn member(&mut self, known: &Facts<'d>, name: &str, schema: &'d Value, one: &'d Value) -> Vec<Break> {
        if one == &Value::Bool(false) && known.types != 0 {
            let (writer, reader) = self.who();
            let name = quoted(name);
            let keyword =
                if schema.get("additionalProperties") == Some(one) { "additionalProperties" } else { "properties" };
            let message = format!("{reader} does not allow the member {name}, which {writer} allows");
            return vec![self.broken(known, schema, keyword, message)];
        }
        self.included(known, one)
    }

    fn unnamed_member(
        &mut self,
        known: &Facts<'d>,
        facts: &Facts<'d>,
        schema: &'d Value,
        keyword: &str,
        one: &'d Value,
    ) -> Vec<Break> {
        if self.included(known, one).is_empty() {
            return Vec::new();
        }
        let (writer, reader) = self.who();
        let what = if one == &Value::Bool(false) { "refuses" } else { "does not accept all values of" };
        let message = format!("{reader} {what} members that {writer} allows without naming them");
        vec![self.broken(facts, schema, keyword, message)]
    }

    fn members_required(&self, facts: &Facts<'d>, schema: &'d Value, wanted: &'d Value) -> Vec<Break> {
        let known = required(facts);
        let missing = names(wanted).filter(|name| !known.contains(name));
        let (writer, reader) = self.who();
        let describe = |name: &str| {
            let message = format!("{reader} requires {}, and {writer} does not", quoted(name));
            self.broken(facts, schema, "required", message)
        };
        missing.map(describe).collect()
    }

    fn size(&self, facts: &Facts<'d>, schema: &'d Value, keyword: &str, wanted: &'d Value) -> Option<Break> {
        let limit = Decimal::of(wanted)?;
        let fits = if keyword == "minProperties" {
            let by_names = Decimal::of(&Value::from(required(facts).len()))?;
            by_names >= limit || facts.values("minProperties").filter_map(Decimal::of).any(|known| known >= limit)
        } else {
            facts.values("maxProperties").filter_map(Decimal::of).any(|known| known <= limit)
        };
        let (writer, reader) = self.who();
        let message = || format!("{reader} has {keyword} {wanted}, and {writer} allows other sizes");
        (!fits).then(|| self.broken(facts, schema, keyword, message()))
    }

    fn dependent_required(&self, facts: &Facts<'d>, schema: &'d Value, keyword: &str, wanted: &'d Value) -> Vec<Break> {
        let always = required(facts);
        let (writer, reader) = self.who();
        let mut breaks = Vec::new();
        for (name, needed) in wanted.as_object().into_iter().flatten() {
            if !needed.is_array() {
                continue;
            }
            let known: HashSet<&str> = facts
                .members()
                .filter_map(|(_, other)| map(other, dependent(facts.document.draft, "dependentRequired")))
                .filter_map(|named| named.get(name))
                .flat_map(names)
                .collect();
            let missing = |name: &&str| !always.contains(name) && !known.contains(name);
            if let Some(needed) = names(needed).find(missing) {
                let (needed, name) = (quoted(needed), quoted(name));
                let message = format!("{reader} requires {needed} beside {name}, and {writer} does not");
                breaks.push(self.broken(facts, schema, keyword, message));
            }
        }
        breaks
    }

    fn dependent_schemas(
        &mut self,
        facts: &Facts<'d>,
        schema: &'d Value,
        keyword: &str,
        wanted: &'d Value,
    ) -> Vec<Break> {
        let mut breaks = Vec::new();
        for (name, one) in wanted.as_object().into_iter().flatten() {
            if one.is_array() {
                continue;
            }
            // Data that has the member: the writer's own condition on it holds too.
            charge(1 + facts.parts.len() as u64);
            let mut known = facts.clone();
            for (_, other) in facts.members() {
                let own =
                    map(other, dependent(facts.document.draft, "dependentSchemas")).and_then(|named| named.get(name));
                if let Some(own) = own.filter(|own| !own.is_array()) {
                    known.add(own);
                }
            }
            if self.property(facts, name).types != 0 && !self.included(&known, one).is_empty() {
                breaks.push(self.undecided(facts, schema, keyword, "data of the other schema may not satisfy it"));
            }
        }
        breaks
    }

    fn property_names(&mut self, facts: &Facts<'d>, schema: &'d Value, wanted: &'d Value) -> Option<Break> {
        let mut known = Facts { types: STRING, ..Facts::nothing(facts.document, facts.at) };
        facts.values("propertyNames").for_each(|names| known.add(names));
        known.types &= STRING;
        let same_names = facts.values("propertyNames").any(|names| same((self.writer, names), (self.reader, wanted)));
        let (writer, reader) = self.who();
        let message = || format!("{reader} refuses names that {writer} allows");
        let fits = same_names || self.included(&known, wanted).is_empty();
        (!fits).then(|| self.broken(facts, schema, "propertyNames", message()))
    }
}

/// The names that data known by `facts` has in any case.
pub(super) fn required<'f>(facts: &Facts<'f>) -> HashSet<&'f str> {
    facts.values("required").flat_map(names).collect()
}

/// The names in a list of them; none in what is no list.
fn names(list: &Value) -> impl Iterator<Item = &str> {
    let list = list.as_array().map_or(&[][..], Vec::as_slice);
    charge(list.len() as u64);
    list.iter().filter_map(Value::as_str)
}

/// What is known of members that are in no `properties`: those that match `pattern`, or those that match no pattern at all.
fn unnamed<'f>(facts: &Facts<'f>, pattern: Option<&str>) -> Facts<'f> {
    let mut known = Facts::nothing(facts.document, facts.at);
    for (_, members) in facts.members() {
        let patterns = map(members, "patternProperties");
        match (pattern.and_then(|pattern| patterns?.get(pattern)), patterns) {
            (Some(schema), _) => known.add(schema),
            // With patterns of its own, it may say something else of the name.
            (None, Some(own)) if pattern.is_some() && !own.is_empty() => {}
            _ => members.get("additionalProperties").into_iter().for_each(|schema| known.add(schema)),
        }
    }
    known
}

/// The keyword by which a document says what a member asks for beside it: draft 7 has one for both kinds.
fn dependent(draft: Draft, keyword: &'static str) -> &'static str {
    if draft == Draft::Draft7 { "dependencies" } else { keyword }
}

fn map<'f>(members: &'f Members, keyword: &str) -> Option<&'f Members> {
    members.get(keyword).and_then(Value::as_object)
}
