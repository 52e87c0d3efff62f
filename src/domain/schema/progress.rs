//! Whether the references of a schema document get anywhere: a chain of them that comes back to where it began without having gone into the
//! data would never end, and one that leads to the same data in too many ways would take too long.

use super::references::{Document, address, below};
use super::{SchemaError, refuse};
use jsonschema::Draft;
use serde_json::{Map, Value};
use std::collections::HashMap;

/// How often one subschema may lead on to another one that judges the same data: each time takes some of the stack.
const STEPS_MAX: usize = 100;
/// How many subschemas one may apply to the same data.
const REACHED_MAX: u64 = 20_000;
/// How many values of the document those may hold that keywords have to look through which speak of what all others left over.
const LOOKED_THROUGH_MAX: u64 = 100_000;
const UNEVALUATED: [&str; 2] = ["unevaluatedItems", "unevaluatedProperties"];

/// How much is applied to the same data as a subschema, itself included.
#[derive(Debug, Clone, Copy, Default)]
struct Reach {
    subschemas: u64,
    /// Of the document, with what stands below them.
    values: u64,
    /// The longest way there.
    steps: usize,
}

impl<'d> Document<'d> {
    /// Refuses references that come back to where they began without going into the data: checking one would never end. Refuses as well
    /// what leads to too much, each way there counted for itself: a few references that lead on twice each are an endless lot.
    ///
    /// A schema that refers to itself below `properties`, `items` and the like is fine, because data ends.
    pub(super) fn check_progress(&self) -> Result<(), SchemaError> {
        /// What is being followed from one subschema.
        struct Step<'d> {
            schema: &'d Value,
            next: Vec<(&'static str, &'d Value)>,
            by: &'static str,
        }
        // Of what is being followed there is no count yet.
        let mut marks: HashMap<usize, Option<Reach>> = HashMap::new();
        let mut looked_through = 0_u64;
        let mut starts: Vec<&'d Value> = vec![self.root];
        gather(self.root, &mut starts);
        for start in starts {
            for keyword in self.references() {
                let reference = start.get(keyword).and_then(Value::as_str);
                if reference.is_some_and(|reference| self.is_astray(start, reference)) {
                    let at = format!("{}/{keyword}", self.pointer(start).unwrap_or_default());
                    return Err(refuse(&at, "refers to nothing, or to what is no schema"));
                }
            }
            if marks.contains_key(&address(start)) {
                continue;
            }
            marks.insert(address(start), None);
            let mut steps = vec![Step { schema: start, next: self.in_place(start), by: "" }];
            while let Some(step) = steps.last_mut() {
                let Some((by, next)) = step.next.pop() else {
                    let reach = self.reach(step.schema, &marks);
                    let at = |keyword: &str| format!("{}/{keyword}", self.pointer(step.schema).unwrap_or_default());
                    if reach.subschemas > REACHED_MAX {
                        let what = format!("leads to the same data through more than {REACHED_MAX} subschemas");
                        return Err(refuse(at("").trim_end_matches('/'), what));
                    }
                    if reach.steps > STEPS_MAX {
                        let what = format!("leads on more than {STEPS_MAX} times without going into the data");
                        return Err(refuse(at("").trim_end_matches('/'), what));
                    }
                    if let Some(keyword) = UNEVALUATED.into_iter().find(|keyword| step.schema.get(keyword).is_some()) {
                        looked_through = reach.values.saturating_add(looked_through);
                        if looked_through > LOOKED_THROUGH_MAX {
                            return Err(refuse(&at(keyword), "has to look through too many subschemas"));
                        }
                    }
                    marks.insert(address(step.schema), Some(reach));
                    steps.pop();
                    continue;
                };
                match marks.get(&address(next)) {
                    Some(Some(_)) => {}
                    Some(None) => {
                        // Going down the document never comes back, so one step of every circle is a reference.
                        let from = steps.iter().position(|step| address(step.schema) == address(next)).unwrap_or(0);
                        let circle = &steps[from..];
                        let bys = circle.iter().skip(1).map(|step| step.by).chain([by]);
                        let reference = circle.iter().zip(bys).find(|(_, by)| by.starts_with('$'));
                        let at = reference.map_or_else(String::new, |(step, by)| {
                            format!("{}/{by}", self.pointer(step.schema).unwrap_or_default())
                        });
                        return Err(refuse(&at, "refers in a circle that never goes into the data"));
                    }
                    None => {
                        marks.insert(address(next), None);
                        steps.push(Step { schema: next, next: self.in_place(next), by });
                    }
                }
            }
        }
        Ok(())
    }

    /// The keywords of its draft that refer to a subschema.
    fn references(&self) -> &'static [&'static str] {
        if self.draft == Draft::Draft7 { &["$ref"] } else { &["$ref", "$dynamicRef"] }
    }

    /// What one subschema leads to, where that is known of all that it leads to at once.
    fn reach(&self, schema: &'d Value, known: &HashMap<usize, Option<Reach>>) -> Reach {
        let own = Reach { subschemas: 1, values: size(schema), steps: 0 };
        self.in_place(schema).into_iter().fold(own, |all, (_, next)| {
            let next = known.get(&address(next)).copied().flatten().unwrap_or_default();
            Reach {
                subschemas: all.subschemas.saturating_add(next.subschemas),
                values: all.values.saturating_add(next.values),
                steps: all.steps.max(next.steps.saturating_add(1)),
            }
        })
    }

    /// The subschemas that are applied to the same data as `schema`, each with the keyword that leads there.
    fn in_place(&self, schema: &'d Value) -> Vec<(&'static str, &'d Value)> {
        let Value::Object(members) = schema else { return Vec::new() };
        let mut next = Vec::new();
        // A dynamic one leads to what it names by itself. Where another subschema of that name comes in between and leads in a circle, checks
        // cost too much.
        for keyword in self.references() {
            let reference = members.get(*keyword).and_then(Value::as_str);
            next.extend(reference.and_then(|reference| Some((*keyword, self.target(schema, reference)?))));
        }
        if self.draft == Draft::Draft7 && !next.is_empty() {
            return next;
        }
        for keyword in ["allOf", "anyOf", "oneOf"] {
            next.extend(members.get(keyword).and_then(Value::as_array).into_iter().flatten().map(|one| (keyword, one)));
        }
        let conditional = members.contains_key("if");
        for keyword in ["not", "if", "then", "else"] {
            if matches!(keyword, "then" | "else") && !conditional {
                continue;
            }
            next.extend(members.get(keyword).map(|one| (keyword, one)));
        }
        let latest = (self.draft != Draft::Draft7).then_some("dependentSchemas");
        for keyword in latest.into_iter().chain(["dependencies"]) {
            let named = members.get(keyword).and_then(Value::as_object).into_iter().flat_map(Map::values);
            next.extend(named.map(|one| (keyword, one)));
        }
        next
    }
}

/// Every subschema that a reference could name or a keyword holds; what is data is left out.
fn gather<'d>(schema: &'d Value, found: &mut Vec<&'d Value>) {
    for (_, value) in below(schema) {
        found.push(value);
        gather(value, found);
    }
}

/// How many values of a document stand in a subschema.
fn size(schema: &Value) -> u64 {
    let below = match schema {
        Value::Array(elements) => elements.iter().map(size).sum(),
        Value::Object(members) => members.values().map(size).sum(),
        _ => 0,
    };
    1 + below
}
