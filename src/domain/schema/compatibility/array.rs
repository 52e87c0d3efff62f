//! Keywords about arrays: how many elements there may be, and what they hold.

use super::Break;
use super::decimal::Decimal;
use super::facts::{ARRAY, Facts};
use super::relation::Relation;
use super::same::same;
use crate::domain::schema::cost::charge;
use jsonschema::Draft;
use serde_json::{Map, Value};

type Members = Map<String, Value>;

impl<'d> Relation<'d> {
    /// What the keywords about arrays refuse.
    pub(super) fn array(&mut self, facts: &Facts<'d>, schema: &'d Value, members: &'d Members) -> Vec<Break> {
        if facts.types & ARRAY == 0 {
            return Vec::new();
        }
        let mut breaks = Vec::new();
        let (writer, reader) = self.who();
        for (keyword, wanted) in members {
            match keyword.as_str() {
                "minItems" | "maxItems" => breaks.extend(self.length(facts, schema, keyword, wanted)),
                "uniqueItems" if wanted == &Value::Bool(true) => {
                    let one = most(facts).is_some_and(|most| most.whole().is_some_and(|most| most <= 1));
                    if !one && !facts.values("uniqueItems").any(|known| known == wanted) {
                        let message = format!("{reader} requires elements that differ, and {writer} does not");
                        breaks.push(self.broken(facts, schema, keyword, message));
                    }
                }
                "contains" => breaks.extend(self.contains(facts, schema, members, wanted)),
                "unevaluatedItems" if wanted != &Value::Bool(true) => {
                    breaks.push(self.undecided(facts, schema, keyword, "it depends on everything beside it"));
                }
                _ => {}
            }
        }
        breaks.extend(self.elements(facts, members));
        breaks
    }

    fn length(&self, facts: &Facts<'d>, schema: &'d Value, keyword: &str, wanted: &'d Value) -> Option<Break> {
        let limit = Decimal::of(wanted)?;
        let fits = if keyword == "minItems" {
            limit.whole() == Some(0) || facts.values("minItems").filter_map(Decimal::of).any(|known| known >= limit)
        } else {
            most(facts).is_some_and(|most| most <= limit)
        };
        let (writer, reader) = self.who();
        let message = || format!("{reader} has {keyword} {wanted}, and {writer} allows other lengths");
        (!fits).then(|| self.broken(facts, schema, keyword, message()))
    }

    fn elements(&mut self, facts: &Facts<'d>, members: &'d Members) -> Vec<Break> {
        let (first, rest) = elements(self.reader.draft, members);
        if first.is_empty() && rest.is_none() {
            return Vec::new();
        }
        let writers: Vec<_> = facts.members().map(|(_, other)| elements(facts.document.draft, other)).collect();
        let places = writers.iter().map(|(first, _)| first.len()).chain([first.len()]).max().unwrap_or(0);
        let most = most(facts).and_then(|most| most.whole());
        let mut breaks = Vec::new();
        // Every place that one of the two names, and one more for all that follow.
        for place in 0..=places {
            if most.is_some_and(|most| i128::try_from(place).is_ok_and(|place| place >= most)) {
                break;
            }
            let Some(wanted) = first.get(place).or(rest.as_ref()).copied() else { continue };
            charge(writers.len() as u64);
            let mut known = Facts::nothing(facts.document, facts.at);
            let mut named = false;
            for (first, rest) in &writers {
                if let Some(schema) = first.get(place).or(rest.as_ref()).copied() {
                    if !named {
                        known.at = schema;
                        named = true;
                    }
                    known.add(schema);
                }
            }
            breaks.extend(self.included(&known, wanted));
        }
        breaks
    }

    fn contains(
        &mut self,
        facts: &Facts<'d>,
        schema: &'d Value,
        members: &'d Members,
        wanted: &'d Value,
    ) -> Option<Break> {
        // Draft 7 knows no counts.
        let counts = |members: &Members, draft: Draft| {
            let count = |keyword: &str| members.get(keyword).filter(|_| draft != Draft::Draft7).and_then(Decimal::of);
            (count("minContains"), count("maxContains"))
        };
        let (least, most) = counts(members, self.reader.draft);
        let needless = least.as_ref().is_some_and(|least| least.whole() == Some(0)) && most.is_none();
        let others: Vec<&'d Members> = facts.members().map(|(_, other)| other).collect();
        let has_own = others.iter().any(|other| other.contains_key("contains"));
        let fits = needless
            || others.into_iter().any(|other| {
                let Some(known) = other.get("contains") else { return false };
                let (own_least, own_most) = counts(other, facts.document.draft);
                let one = || Decimal::of(&Value::from(1));
                let enough = own_least.or_else(one) >= least.clone().or_else(one);
                let few = match (&most, own_most) {
                    (None, _) => true,
                    (Some(most), Some(own)) => own <= *most,
                    (Some(_), None) => false,
                };
                let equal = same((self.writer, known), (self.reader, wanted));
                let mut narrower =
                    || most.is_none() && self.included(&Facts::of(facts.document, known), wanted).is_empty();
                enough && few && (equal || narrower())
            });
        let (writer, reader) = self.who();
        if fits {
            None
        } else if has_own {
            Some(self.undecided(facts, schema, "contains", "the other schema counts other elements"))
        } else {
            let message = format!("{reader} requires an element that {writer} does not");
            Some(self.broken(facts, schema, "contains", message))
        }
    }
}

/// What a schema says of the first elements, one by one, and of all that follow.
fn elements(draft: Draft, members: &Members) -> (Vec<&Value>, Option<&Value>) {
    let list = |keyword: &str| {
        let list = members.get(keyword).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        charge(list.len() as u64);
        list.iter().collect()
    };
    if draft != Draft::Draft7 {
        return (list("prefixItems"), members.get("items"));
    }
    match members.get("items") {
        Some(Value::Array(_)) => (list("items"), members.get("additionalItems")),
        every => (Vec::new(), every),
    }
}

/// How many elements data has at most, where that is known.
fn most(facts: &Facts<'_>) -> Option<Decimal> {
    let closed = facts.members().filter_map(|(_, members)| {
        let (first, rest) = elements(facts.document.draft, members);
        (rest == Some(&Value::Bool(false))).then(|| Value::from(first.len()))
    });
    let counted: Vec<Decimal> = closed.filter_map(|count| Decimal::of(&count)).collect();
    facts.values("maxItems").filter_map(Decimal::of).chain(counted).min()
}
