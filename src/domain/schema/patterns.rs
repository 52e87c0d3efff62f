//! Regular expressions, and what it costs to match them: in the worst case every byte of a text meets every state of the expression.
//!
//! `pattern` is taken over from the validator, so that it is charged before it is matched. `patternProperties` cannot be, as other
//! keywords ask it which names it knows: what it costs is charged where a check begins, and by each subschema that leads to others in such a
//! way that they may be asked once more (see [`super::cost`]).

use super::cost::charge;
use jsonschema::{Keyword, PatternOptions, ValidationError};
use jsonschema_regex::to_rust_regex;
use regex::{Regex, RegexBuilder};
use regex_syntax::hir::{Class, ClassBytes, ClassUnicode, Hir, HirKind};
use regex_syntax::utf8::Utf8Sequences;
use serde_json::Value;
use std::collections::HashSet;
use std::sync::Arc;

/// The keyword.
pub(super) const KEYWORD: &str = "pattern";
/// How large one compiled expression may be, in bytes.
const COMPILED_BYTES_MAX: usize = 256 * 1024;
/// How many bytes of a text, for each state of the expression, cost one unit.
const BYTES_PER_UNIT: u64 = 256;
/// As many bytes cost as much as what each match does besides.
const MATCH_BYTES: u64 = 8;
/// What a compiled expression takes in memory for each of its states, bytes.
const BYTES_PER_STATE: u64 = 64;
/// What it takes besides, in states.
const STATES_BESIDES: u64 = 128;

/// The bounds of every expression.
pub(super) fn options() -> PatternOptions<jsonschema::Regex> {
    PatternOptions::regex().size_limit(COMPILED_BYTES_MAX).dfa_size_limit(COMPILED_BYTES_MAX)
}

/// Charges for matching the names of all objects within a value against expressions of so many states together.
pub(super) fn charge_for_names(value: &Value, states: u64) {
    if states > 0 {
        let bytes = name_bytes(value);
        charge(bytes / BYTES_PER_UNIT + bytes.saturating_mul(states) / BYTES_PER_UNIT);
    }
}

/// How many states the expression has, or somewhat more. One that the validator does not know has none: it is refused.
pub(super) fn states(pattern: &str) -> u64 {
    let rust = to_rust_regex(pattern).ok();
    rust.and_then(|rust| regex_syntax::parse(&rust).ok()).map_or(0, |parsed| 1 + states_of(&parsed))
}

/// Bytes that the compiled expressions of a document take in memory, each once.
#[derive(Default)]
pub(super) struct Weight {
    known: HashSet<String>,
    pub bytes: u64,
}

impl Weight {
    /// Adds an expression of so many states.
    pub fn add(&mut self, pattern: &str, states: u64) {
        if self.known.insert(pattern.to_owned()) {
            self.bytes =
                self.bytes.saturating_add(states.saturating_add(STATES_BESIDES).saturating_mul(BYTES_PER_STATE));
        }
    }
}

/// A compiled expression.
#[derive(Clone)]
pub(super) struct Pattern {
    regex: Regex,
    source: Arc<str>,
    states: u64,
}

impl Pattern {
    /// Compiles an expression, as the validator would. None for what is none or is too large.
    pub(super) fn compile(source: &str) -> Option<Self> {
        let rust = to_rust_regex(source).ok()?;
        let mut builder = RegexBuilder::new(&rust);
        let regex = builder.size_limit(COMPILED_BYTES_MAX).dfa_size_limit(COMPILED_BYTES_MAX).build().ok()?;
        Some(Self { regex, source: source.into(), states: states(source) })
    }

    /// True where a text matches.
    pub(super) fn matches(&self, text: &str) -> bool {
        charge((text.len() as u64 + MATCH_BYTES).saturating_mul(self.states) / BYTES_PER_UNIT);
        self.regex.is_match(text)
    }
}

impl<'i> Keyword<'i> for Pattern {
    fn validate(&self, instance: &'i Value) -> Result<(), ValidationError<'i>> {
        if self.is_valid(instance) {
            return Ok(());
        }
        Err(ValidationError::custom(format!("the value does not match {:?}", self.source)))
    }

    fn is_valid(&self, instance: &'i Value) -> bool {
        instance.as_str().is_none_or(|text| self.matches(text))
    }
}

fn name_bytes(value: &Value) -> u64 {
    match value {
        Value::Object(members) => {
            members.iter().map(|(name, member)| name.len() as u64 + MATCH_BYTES + name_bytes(member)).sum()
        }
        Value::Array(elements) => elements.iter().map(name_bytes).sum(),
        _ => 0,
    }
}

fn states_of(expression: &Hir) -> u64 {
    match expression.kind() {
        HirKind::Empty => 0,
        HirKind::Look(_) => 1,
        HirKind::Literal(literal) => literal.0.len() as u64,
        HirKind::Class(Class::Unicode(class)) => states_of_class(class),
        HirKind::Class(Class::Bytes(class)) => ClassBytes::ranges(class).len() as u64,
        HirKind::Repetition(repetition) => {
            let (least, most) = (repetition.min, repetition.max.unwrap_or(repetition.min.max(1)));
            let choices = u64::from(most - least) + u64::from(repetition.max.is_none());
            states_of(&repetition.sub).saturating_mul(u64::from(most)).saturating_add(choices)
        }
        HirKind::Capture(group) => states_of(&group.sub) + 2,
        HirKind::Concat(parts) | HirKind::Alternation(parts) => {
            parts.iter().fold(1, |sum, part| states_of(part).saturating_add(sum))
        }
    }
}

fn states_of_class(class: &ClassUnicode) -> u64 {
    let sequences = class.ranges().iter().flat_map(|range| Utf8Sequences::new(range.start(), range.end()));
    sequences.map(|sequence| sequence.len() as u64).sum()
}

#[cfg(test)]
mod tests {
    use crate::domain::schema::Schema;
    use crate::domain::schema::tests::{CHECK_MAX, schema, violations};
    use std::time::Instant;

    #[test]
    fn a_large_pattern_over_a_long_text_costs_too_much() {
        const LARGE: &str = "[ab]*a[ab]{2000}q";
        let text = |bytes: usize| "ab".repeat(bytes / 2);
        let string = |text: &str| format!("\"{text}\"");
        let object = |text: &str| format!(r#"{{"{text}": 1}}"#);
        for document in [
            format!(r#"{{"not": {{"pattern": "{LARGE}"}}}}"#),
            format!(r#"{{"anyOf": [{{"pattern": "{LARGE}"}}, {{"pattern": "{LARGE}"}}, {{"type": "string"}}]}}"#),
            format!(r##"{{"$defs": {{"a": {{"pattern": "{LARGE}"}}}}, "not": {{"$ref": "#/$defs/a"}}}}"##),
            format!(r#"{{"propertyNames": {{"not": {{"pattern": "{LARGE}"}}}}}}"#),
            format!(r#"{{"patternProperties": {{"{LARGE}": false}}}}"#),
            format!(r#"{{"patternProperties": {{"{LARGE}": true}}, "additionalProperties": {{"type": "integer"}}}}"#),
            format!(r#"{{"patternProperties": {{"{LARGE}": true}}, "unevaluatedProperties": {{"type": "integer"}}}}"#),
            format!(r##"{{"$defs": {{"a": {{"patternProperties": {{"{LARGE}": false}}}}}}, "$ref": "#/$defs/a"}}"##),
        ] {
            let schema = schema(&document);
            let wrap: &dyn Fn(&str) -> String = if document.contains("ropert") { &object } else { &string };
            let data = |bytes: usize| wrap(&text(bytes));
            assert_eq!(schema.validate(data(1_000).as_bytes()), Ok(()), "{document}");
            assert!(schema.validate_briefly(data(20_000).as_bytes()).is_none(), "others do not wait: {document}");
            let begin = Instant::now();
            let found = schema.validate(data(1_000_000).as_bytes()).expect_err("the text is long");
            assert!(found[0].message.contains("costs too much"), "{document}: {found:?}");
            assert!(begin.elapsed() < CHECK_MAX, "{document}: {:?}", begin.elapsed());
        }
    }

    #[test]
    fn names_that_are_matched_again_and_again_cost_too_much() {
        let asked: Vec<_> = (0..60).map(|_| r##"{"not": {"$ref": "#/$defs/a"}}"##).collect();
        let document = format!(
            r#"{{"$defs": {{"a": {{"patternProperties": {{"[ab]*a[ab]{{2000}}q": true, "": {{"type": "string"}}}}}}}}, "allOf": [{}]}}"#,
            asked.join(",")
        );
        let schema = schema(&document);
        let data = format!(r#"{{"{}": 1}}"#, "ab".repeat(5_000));
        let begin = Instant::now();
        let found = schema.validate(data.as_bytes()).expect_err("the name is long");
        assert!(found[0].message.contains("costs too much"), "{found:?}");
        assert!(begin.elapsed() < CHECK_MAX, "{:?}", begin.elapsed());
    }

    #[test]
    fn ordinary_patterns_over_long_texts_cost_little() {
        let text = "a word, and another one.\\n".repeat(30_000);
        for pattern in ["^[a-z]", r"\\S", r"^[\\w\\s,.]+$", "^.{1,}$|\\n", "^[^<>]*$"] {
            let schema = schema(&format!(r#"{{"properties": {{"text": {{"pattern": "{pattern}"}}}}}}"#));
            assert_eq!(schema.validate(format!(r#"{{"text": "{text}"}}"#).as_bytes()), Ok(()), "{pattern}");
        }
        let uuid = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$";
        let ids = vec![r#""01234567-89ab-cdef-0123-456789abcdef""#; 20_000].join(",");
        let schema = schema(&format!(r#"{{"items": {{"pattern": "{uuid}"}}}}"#));
        assert_eq!(schema.validate(format!("[{ids}]").as_bytes()), Ok(()));
    }

    #[test]
    fn patterns_that_are_too_large_together_are_refused_and_what_is_compiled_is_weighed() {
        let document = |count: usize, pattern: &dyn Fn(usize) -> String| {
            let properties = (0..count).map(|n| format!(r#""p{n}": {{"pattern": "{}"}}"#, pattern(n)));
            format!(r#"{{"properties": {{{}}}}}"#, properties.collect::<Vec<_>>().join(","))
        };
        let large = |n: usize| format!(r"\\p{{L}}{{5}}{n}");
        let error = Schema::parse(&document(20, &large)).expect_err("they are large");
        assert!(error.pointer.starts_with("/properties/p"), "{error}");
        assert!(error.message.contains("compiled"), "{error}");
        let few = schema(&document(5, &large));
        assert!(few.memory_bytes() > 4 << 20, "{}", few.memory_bytes());
        // One that is there often is compiled once.
        let often = schema(&document(300, &|_| large(0)));
        assert!(often.memory_bytes() < few.memory_bytes(), "{}", often.memory_bytes());
        assert!(schema(&document(300, &|n| format!("^[a-z]+-{n}$"))).memory_bytes() < 6 << 20);
    }

    #[test]
    fn a_pattern_that_is_too_large_is_refused_where_it_stands() {
        let error = Schema::parse(r#"{"properties": {"a/b": {"pattern": "(a{150}){150}"}}}"#).expect_err("large");
        assert_eq!(error.pointer, "/properties/a~1b/pattern");
        assert!(error.message.contains("too large"), "{error}");
        let told = violations(r#"{"properties": {"a": {"pattern": "^\"b+$"}}}"#, r#"{"a": "c"}"#);
        let expected =
            ("/a".to_owned(), "/properties/a/pattern".to_owned(), "the value does not match \"^\\\"b+$\"".to_owned());
        assert_eq!(told, [expected]);
    }
}
