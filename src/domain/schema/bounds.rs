//! The bounds of a schema document: how long, deep and wide it may be, and where its references may lead.

use super::patterns::Expressions;
use super::{
    ALTERNATIVES_MAX, DATA_KEYWORDS, DOCUMENT_DEPTH_MAX, DOCUMENT_NODES_MAX, MAP_KEYWORDS, PATTERN_BYTES_MAX,
    PLACES_BYTES_MAX, SchemaError, TOO_LONG_NUMBER, TOO_LONG_PLACES, draft_of, long_number, pointer, refuse,
    without_fragment,
};
use jsonschema::Draft;
use serde_json::Value;
use std::collections::HashSet;

/// What is counted on the way through a document.
#[derive(Default)]
pub(super) struct Bounds {
    /// Of the whole document.
    draft: Option<Draft>,
    nodes: usize,
    pattern_bytes: usize,
    pub expressions: Expressions,
    pub places_bytes: usize,
    ids: HashSet<String>,
}

impl Bounds {
    /// Looks through a document of this draft. Errors: with the place, for what is beyond a bound, or refers to another document.
    pub(super) fn check(document: &Value, draft: Draft) -> Result<Self, SchemaError> {
        let mut bounds = Self { draft: Some(draft), ..Self::default() };
        bounds.gather_ids(document, 0, 0)?;
        if let Some(place) = long_number(document) {
            return Err(refuse(&place, TOO_LONG_NUMBER));
        }
        bounds.walk(document, &mut Vec::new())?;
        Ok(bounds)
    }

    /// The identifiers that references within the document may name, and the bounds on size; those above `value` have `base` bytes.
    fn gather_ids(&mut self, value: &Value, depth: usize, mut base: usize) -> Result<(), SchemaError> {
        self.nodes += 1;
        if self.nodes > DOCUMENT_NODES_MAX {
            return Err(refuse("", format!("has more than {DOCUMENT_NODES_MAX} values")));
        }
        if depth > DOCUMENT_DEPTH_MAX {
            return Err(refuse("", format!("is nested more than {DOCUMENT_DEPTH_MAX} deep")));
        }
        match value {
            Value::Array(elements) => elements.iter().try_for_each(|element| self.gather_ids(element, depth + 1, base)),
            Value::Object(members) => {
                let text = |keyword: &str| members.get(keyword).and_then(Value::as_str);
                if let Some(id) = text("$id") {
                    self.ids.insert(without_fragment(id).to_owned());
                    base += id.len();
                    self.take_place(base)?;
                }
                if let Some(target) = text("$ref").or_else(|| text("$dynamicRef")) {
                    self.take_place(base + target.len())?;
                }
                members.values().try_for_each(|member| self.gather_ids(member, depth + 1, base))
            }
            _ => Ok(()),
        }
    }

    fn take_place(&mut self, bytes: usize) -> Result<(), SchemaError> {
        self.places_bytes += bytes;
        if self.places_bytes > PLACES_BYTES_MAX {
            return Err(refuse("", TOO_LONG_PLACES));
        }
        Ok(())
    }

    /// Checks one subschema; `path` leads to it.
    fn walk(&mut self, schema: &Value, path: &mut Vec<String>) -> Result<(), SchemaError> {
        self.take_place(path.iter().map(|part| part.len() + 1).sum())?;
        let Value::Object(members) = schema else {
            // Keywords that list schemas.
            if let Value::Array(elements) = schema {
                for (index, element) in elements.iter().enumerate() {
                    path.push(index.to_string());
                    self.walk(element, path)?;
                    path.pop();
                }
            }
            return Ok(());
        };
        for (keyword, value) in members {
            path.push(keyword.clone());
            self.keyword(keyword, value, path)?;
            // Whatever references may lead to has to be counted here: what `references::below` has.
            if let Value::Object(named) = value
                && MAP_KEYWORDS.contains(&keyword.as_str())
            {
                for (name, schema) in named {
                    path.push(name.clone());
                    if keyword == "patternProperties" {
                        self.pattern(name, path)?;
                    }
                    self.walk(schema, path)?;
                    path.pop();
                }
            } else if !DATA_KEYWORDS.contains(&keyword.as_str()) {
                self.walk(value, path)?;
            }
            path.pop();
        }
        Ok(())
    }

    fn keyword(&mut self, keyword: &str, value: &Value, path: &[String]) -> Result<(), SchemaError> {
        match (keyword, value) {
            ("$schema", declared) if draft_of(declared).is_none() => {
                Err(refuse(&pointer(path), "must be JSON Schema 2020-12 or draft 7"))
            }
            ("$schema", declared) if draft_of(declared) != self.draft => {
                Err(refuse(&pointer(path), "must be that of the whole document"))
            }
            ("$ref" | "$dynamicRef", Value::String(target)) if self.is_remote(target) => {
                Err(refuse(&pointer(path), "refers to another document, which is not fetched"))
            }
            ("anyOf" | "oneOf" | "allOf", Value::Array(schemas)) if schemas.len() > ALTERNATIVES_MAX => {
                Err(refuse(&pointer(path), format!("has more than {ALTERNATIVES_MAX} alternatives")))
            }
            ("dependencies" | "dependentRequired" | "dependentSchemas", Value::Object(named))
                if named.len() > ALTERNATIVES_MAX =>
            {
                Err(refuse(&pointer(path), format!("names more than {ALTERNATIVES_MAX} properties")))
            }
            ("pattern", Value::String(pattern)) => self.pattern(pattern, path),
            _ => Ok(()),
        }
    }

    /// Counts an expression.
    fn pattern(&mut self, pattern: &str, path: &[String]) -> Result<(), SchemaError> {
        self.pattern_bytes += pattern.len();
        if self.pattern_bytes > PATTERN_BYTES_MAX {
            let message = format!("the document's patterns are longer than {PATTERN_BYTES_MAX} bytes together");
            return Err(refuse(&pointer(path), message));
        }
        self.expressions.add(pattern).map_err(|message| refuse(&pointer(path), message))
    }

    /// True for an absolute reference to what is neither in the document nor one of the drafts' own schemas. The compiler refuses
    /// what is relative and not in the document.
    fn is_remote(&self, target: &str) -> bool {
        let target = without_fragment(target);
        let absolute = target.split_once(':').is_some_and(|(scheme, _)| {
            !scheme.is_empty() && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
        });
        let metaschema = target
            .strip_prefix("https://json-schema.org/draft/2020-12/")
            .or_else(|| target.strip_prefix("http://json-schema.org/draft-07/"));
        absolute && metaschema.is_none() && !self.is_within(target)
    }

    /// True where an absolute reference is, or resolves from, an identifier of the document.
    fn is_within(&self, target: &str) -> bool {
        self.ids.iter().any(|id| {
            id == target
                || target.strip_suffix(id.as_str()).is_some_and(|base| base.ends_with('/') || id.starts_with('/'))
        })
    }
}
