//! What one comparison has done: how much, which is bounded, and the regular expressions that it has compiled.

use crate::domain::schema::COMPILED_PATTERN_BYTES_MAX;
use jsonschema::{PatternOptions, Validator};
use serde_json::{Value, json};
use std::collections::HashMap;

/// How many expressions one comparison compiles.
const PATTERNS_MAX: usize = 256;

/// How often one comparison looks at a subschema.
const STEPS_MAX: usize = 100_000;

/// The work of one comparison.
#[derive(Default)]
pub(super) struct Work {
    steps: usize,
    /// The expressions met so far.
    patterns: HashMap<String, Option<Validator>>,
}

impl Work {
    /// Takes so many steps; false where there are not as many left.
    pub(super) fn spend(&mut self, steps: usize) -> bool {
        self.steps = self.steps.saturating_add(steps);
        self.steps <= STEPS_MAX
    }

    /// True where the text matches, by the same engine that checks data; none where that cannot be said.
    pub(super) fn matches(&mut self, pattern: &str, text: &str) -> Option<bool> {
        if self.patterns.len() >= PATTERNS_MAX && !self.patterns.contains_key(pattern) {
            return None;
        }
        let compiled = self.patterns.entry(pattern.to_owned()).or_insert_with(|| {
            let options = PatternOptions::regex()
                .size_limit(COMPILED_PATTERN_BYTES_MAX)
                .dfa_size_limit(COMPILED_PATTERN_BYTES_MAX);
            jsonschema::options().offline().with_pattern_options(options).build(&json!({ "pattern": pattern })).ok()
        });
        compiled.as_ref().map(|validator| validator.is_valid(&Value::from(text)))
    }
}
