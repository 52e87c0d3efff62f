//! Keywords that bound numbers and texts.

use super::Break;
use super::decimal::{Decimal, are_equal};
use super::facts::{FRACTION, Facts, NUMBER, STRING};
use super::relation::Relation;
use crate::domain::schema::shown::shown;
use jsonschema::Draft;
use serde_json::Value;

/// Which side of a bound data must be on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Low,
    High,
}

impl<'d> Relation<'d> {
    /// What one keyword about numbers or texts refuses.
    pub(super) fn scalar(
        &mut self,
        facts: &Facts<'d>,
        schema: &'d Value,
        keyword: &str,
        wanted: &'d Value,
    ) -> Option<Break> {
        let (side, kind) = match keyword {
            "minimum" | "exclusiveMinimum" => (Side::Low, NUMBER),
            "maximum" | "exclusiveMaximum" => (Side::High, NUMBER),
            "multipleOf" if facts.types & NUMBER != 0 => return self.multiple_of(facts, schema, wanted),
            "minLength" => (Side::Low, STRING),
            "maxLength" => (Side::High, STRING),
            "pattern" if facts.types & STRING != 0 => return self.equal_text(facts, schema, keyword, &["pattern"]),
            // In 2020-12 these say nothing about which data is accepted.
            "format" if facts.types & STRING != 0 && self.reader.draft == Draft::Draft7 => {
                return self.equal_text(facts, schema, keyword, &["format"]);
            }
            // They are judged together where both stand: the type is that of what is encoded.
            "contentMediaType" if schema.get("contentEncoding").is_some() => return None,
            "contentEncoding" | "contentMediaType"
                if facts.types & STRING != 0 && self.reader.draft == Draft::Draft7 =>
            {
                return self.equal_text(facts, schema, keyword, &["contentEncoding", "contentMediaType"]);
            }
            _ => return None,
        };
        if facts.types & kind == 0 {
            return None;
        }
        let whole = facts.types & FRACTION == 0 && kind == NUMBER;
        let limit = bound(wanted, keyword.starts_with("exclusive"), side, whole);
        let bounds: Vec<(Decimal, bool)> = match (kind, side) {
            (STRING, Side::Low) => {
                facts.values("minLength").filter_map(|value| bound(value, false, side, true)).collect()
            }
            (STRING, Side::High) => {
                facts.values("maxLength").filter_map(|value| bound(value, false, side, true)).collect()
            }
            (_, Side::Low) => {
                let open = facts.values("exclusiveMinimum").filter_map(|value| bound(value, true, side, whole));
                facts.values("minimum").filter_map(|value| bound(value, false, side, whole)).chain(open).collect()
            }
            (_, Side::High) => {
                let open = facts.values("exclusiveMaximum").filter_map(|value| bound(value, true, side, whole));
                facts.values("maximum").filter_map(|value| bound(value, false, side, whole)).chain(open).collect()
            }
        };
        let none_shorter = |limit: &(Decimal, bool)| keyword == "minLength" && limit.0.whole() == Some(0);
        let holds = limit
            .as_ref()
            .is_some_and(|limit| none_shorter(limit) || bounds.iter().any(|known| implies(known, limit, side)));
        let (writer, reader) = self.who();
        (!holds).then(|| {
            let known = if bounds.is_empty() { "has no such bound" } else { "allows more" };
            self.broken(facts, schema, keyword, format!("{reader} has {keyword} {wanted}, and {writer} {known}"))
        })
    }

    fn multiple_of(&self, facts: &Facts<'d>, schema: &'d Value, wanted: &'d Value) -> Option<Break> {
        let step = Decimal::of(wanted);
        let whole_step = step.as_ref().and_then(Decimal::whole).filter(|step| *step > 0);
        let mut known = facts.values("multipleOf").filter_map(Decimal::of).peekable();
        if whole_step == Some(1) && facts.types & FRACTION == 0 {
            return None;
        }
        let has_step = known.peek().is_some();
        let fits = known.any(|known| {
            Some(&known) == step.as_ref()
                || known.whole().zip(whole_step).is_some_and(|(known, step)| known > 0 && known % step == 0)
        });
        if fits {
            return None;
        }
        let (writer, reader) = self.who();
        Some(if has_step && whole_step.is_none() {
            self.undecided(facts, schema, "multipleOf", "the steps are not whole numbers")
        } else {
            let message = format!("{reader} takes multiples of {wanted} alone, and {writer} allows other numbers");
            self.broken(facts, schema, "multipleOf", message)
        })
    }

    /// Keywords that are judged together, which only the same texts beside each other are known to satisfy.
    fn equal_text(&self, facts: &Facts<'d>, schema: &'d Value, keyword: &str, together: &[&str]) -> Option<Break> {
        // What another draft says under the same keyword may not be an assertion.
        let asserted = keyword == "pattern" || facts.document.draft == Draft::Draft7;
        let mut known = facts
            .members()
            .filter(|(_, other)| asserted && together.iter().any(|one| other.contains_key(*one)))
            .peekable();
        let (writer, reader) = self.who();
        if known.peek().is_none() {
            let wanted = schema.get(keyword).map(shown).unwrap_or_default();
            let message = format!("{reader} has {keyword} {wanted}, and {writer} has none");
            return Some(self.broken(facts, schema, keyword, message));
        }
        let fits = known.any(|(_, other)| {
            together.iter().all(|one| match (other.get(*one), schema.get(*one)) {
                (Some(known), Some(wanted)) => are_equal(known, wanted),
                (known, wanted) => known.is_none() && wanted.is_none(),
            })
        });
        (!fits).then(|| self.undecided(facts, schema, keyword, "it differs from the other schema's"))
    }
}

/// A bound, and whether it is itself outside. Of whole numbers an open bound is the next number's closed one.
fn bound(value: &Value, open: bool, side: Side, whole: bool) -> Option<(Decimal, bool)> {
    let limit = Decimal::of(value)?;
    if open
        && whole
        && let Some(number) = limit.whole()
    {
        let next = if side == Side::Low { number.checked_add(1)? } else { number.checked_sub(1)? };
        let next: Value = serde_json::from_str(&next.to_string()).ok()?;
        return Some((Decimal::of(&next)?, false));
    }
    Some((limit, open))
}

fn implies(known: &(Decimal, bool), limit: &(Decimal, bool), side: Side) -> bool {
    let inside = if side == Side::Low { known.0 > limit.0 } else { known.0 < limit.0 };
    inside || known.0 == limit.0 && (known.1 || !limit.1)
}
