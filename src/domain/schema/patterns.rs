//! Regular expressions, and what it costs to match them: in the worst case every byte of a text meets every state of the expression.

use super::COMPILED_PATTERNS_BYTES_MAX;
use super::cost::charge;
use super::ecma::{NO_PATTERN, Translated, translate};
use crate::domain::case_folding::large_folded;
use regex_automata::meta::{Config, Regex};
use regex_automata::nfa::thompson::WhichCaptures;
use regex_syntax::ast::ErrorKind;
use regex_syntax::ast::parse::Parser;
use regex_syntax::hir::translate::Translator;
use regex_syntax::hir::{Class, ClassBytes, ClassUnicode, Hir, HirKind};
use regex_syntax::utf8::Utf8Sequences;
use std::collections::HashMap;
use std::sync::Arc;

/// How large the states of one expression may be, in bytes.
const COMPILED_BYTES_MAX: usize = 1024 * 1024;
/// How much memory one that is used may spend on states that it has seen, in bytes, for each direction that it goes through a text.
const SEEN_BYTES_MAX: usize = 64 * 1024;
/// How many large classes the expressions of a document may have that ignore case.
const FOLDED_MAX: usize = 16;
/// How many classes the expressions of a document may name by a property of Unicode: each has hundreds of ranges.
const PROPERTIES_MAX: usize = 200;
/// How long the expressions of a document may be together as the matcher reads them, in bytes.
const TRANSLATED_BYTES_MAX: usize = 128 * 1024;
/// What is said of an expression that takes too much.
const TOO_LARGE: &str = "is too large a regular expression";
/// How many bytes of a text, for each state of the expression, cost one unit.
const BYTES_PER_UNIT: u64 = 16;
/// As many states of one class of characters a byte may meet as make a difference: it is only ever at one of them.
const CLASS_STATES: u64 = 64;
/// As many bytes cost as much as what each match does besides.
const MATCH_BYTES: u64 = 8;
/// What a compiled expression takes in memory for each of its states, bytes.
const BYTES_PER_STATE: u64 = 64;
/// What it takes besides, in states.
const STATES_BESIDES: u64 = 128;

/// What the expressions of a document are, each once.
#[derive(Default)]
pub(super) struct Expressions {
    /// What they are compiled to, or why they are not.
    known: HashMap<String, Result<Pattern, &'static str>>,
    folded: usize,
    properties: usize,
    translated_bytes: usize,
    /// How large they are when they are compiled, in bytes.
    pub bytes: u64,
}

impl Expressions {
    /// Adds an expression. One that is none is refused when it is compiled. The message says why one is refused here.
    pub fn add(&mut self, pattern: &str) -> Result<(), String> {
        if self.known.contains_key(pattern) {
            return Ok(());
        }
        let compiled = self.read(pattern)?;
        self.known.insert(pattern.to_owned(), compiled);
        Ok(())
    }

    /// A compiled expression of the document. Errors: what is wrong with it.
    pub fn compiled(&self, pattern: &str) -> Option<Result<Pattern, &'static str>> {
        self.known.get(pattern).cloned()
    }

    /// Errors: why the document has too much of them.
    fn read(&mut self, pattern: &str) -> Result<Result<Pattern, &'static str>, String> {
        let Translated { text, properties } = match translate(pattern) {
            Ok(translated) => translated,
            Err(message) => return Ok(Err(message)),
        };
        self.properties += properties;
        if self.properties > PROPERTIES_MAX {
            return Err(format!("the document's patterns have more than {PROPERTIES_MAX} classes like \\p{{L}}"));
        }
        self.translated_bytes += text.len();
        if self.translated_bytes > TRANSLATED_BYTES_MAX {
            return Err("the document's patterns have too many classes like \\w, \\s and the dot".to_owned());
        }
        let expression = match Expression::read(&text, FOLDED_MAX - self.folded) {
            Ok(expression) => expression,
            Err(message) => return Ok(Err(message)),
        };
        if expression.parsed.is_none() {
            return Err(format!("the document's patterns have more than {FOLDED_MAX} large classes that ignore case"));
        }
        self.folded += expression.folded;
        let compiled = expression.all.saturating_add(STATES_BESIDES).saturating_mul(BYTES_PER_STATE);
        self.bytes = self.bytes.saturating_add(compiled);
        if self.bytes > COMPILED_PATTERNS_BYTES_MAX {
            return Err(format!(
                "the document's patterns take more than {COMPILED_PATTERNS_BYTES_MAX} bytes together, compiled"
            ));
        }
        Ok(Pattern::of(pattern, expression))
    }

    /// About what they take in memory once they are used.
    pub fn memory_bytes(&self) -> usize {
        usize::try_from(self.bytes).unwrap_or(usize::MAX).saturating_add(self.known.len() * 2 * SEEN_BYTES_MAX)
    }
}

/// An expression as it is read.
struct Expression {
    /// None where too many large classes of it ignore case.
    parsed: Option<Hir>,
    /// Those that a byte may meet.
    states: u64,
    /// Those that take memory.
    all: u64,
    folded: usize,
}

impl Expression {
    /// Reads a translated expression. Errors: what is wrong with it.
    fn read(text: &str, folded_max: usize) -> Result<Self, &'static str> {
        let parsed = Parser::new().parse(text).map_err(|error| match error.kind() {
            ErrorKind::NestLimitExceeded(_) | ErrorKind::DecimalInvalid => TOO_LARGE,
            _ => NO_PATTERN,
        })?;
        let folded = large_folded(&parsed);
        if folded > folded_max {
            return Ok(Self { parsed: None, states: 0, all: 0, folded });
        }
        let parsed = Translator::new().translate(text, &parsed).map_err(|_| NO_PATTERN)?;
        let [states, all] = [CLASS_STATES, u64::MAX].map(|class_max| states_of(&parsed, class_max).saturating_add(1));
        Ok(Self { parsed: Some(parsed), states, all, folded })
    }
}

/// A compiled expression, shared wherever it stands in the document.
#[derive(Clone)]
pub(super) struct Pattern(Arc<Compiled>);

struct Compiled {
    regex: Regex,
    source: String,
    states: u64,
}

impl Pattern {
    /// Compiles an expression. Errors: what is wrong with it.
    pub(super) fn compile(source: &str) -> Result<Self, &'static str> {
        Self::of(source, Expression::read(&translate(source)?.text, FOLDED_MAX)?)
    }

    fn of(source: &str, Expression { parsed, states, .. }: Expression) -> Result<Self, &'static str> {
        let config = Config::new().nfa_size_limit(Some(COMPILED_BYTES_MAX)).hybrid_cache_capacity(SEEN_BYTES_MAX);
        let config = config.which_captures(WhichCaptures::Implicit).onepass(false);
        let parsed = parsed.ok_or(TOO_LARGE)?;
        let regex = Regex::builder().configure(config).build_from_hir(&parsed).map_err(|_| TOO_LARGE)?;
        Ok(Self(Arc::new(Compiled { regex, source: source.to_owned(), states })))
    }

    /// The expression as it is written.
    pub(super) fn source(&self) -> &str {
        &self.0.source
    }

    /// True where a text matches.
    pub(super) fn matches(&self, text: &str) -> bool {
        charge(1 + (text.len() as u64 + MATCH_BYTES).saturating_mul(self.0.states) / BYTES_PER_UNIT);
        self.0.regex.is_match(text)
    }
}

/// How many states an expression has where each class has so many at most.
fn states_of(expression: &Hir, class_max: u64) -> u64 {
    match expression.kind() {
        HirKind::Empty => 0,
        HirKind::Look(_) => 1,
        HirKind::Literal(literal) => literal.0.len() as u64,
        HirKind::Class(Class::Unicode(class)) => states_of_class(class).min(class_max),
        HirKind::Class(Class::Bytes(class)) => ClassBytes::ranges(class).len() as u64,
        HirKind::Repetition(repetition) => {
            let (least, most) = (repetition.min, repetition.max.unwrap_or(repetition.min.max(1)));
            let choices = u64::from(most - least) + u64::from(repetition.max.is_none());
            states_of(&repetition.sub, class_max).saturating_mul(u64::from(most)).saturating_add(choices)
        }
        HirKind::Capture(group) => states_of(&group.sub, class_max).saturating_add(2),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => {
            parts.iter().fold(1, |sum, part| states_of(part, class_max).saturating_add(sum))
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
    use crate::domain::schema::tests::{CHECK_MAX, PARSE_MAX, schema, violations};
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
        let asked = vec![r##"{"$ref": "#/$defs/a"}"##; 60].join(",");
        let known = r#"{"patternProperties": {"[ab]*a[ab]{2000}q": true, "": {"type": "integer"}}}"#;
        let schema = schema(&format!(r#"{{"$defs": {{"a": {known}}}, "allOf": [{asked}]}}"#));
        let data = format!(r#"{{"{}": 1}}"#, "ab".repeat(5_000));
        let begin = Instant::now();
        let found = schema.validate(data.as_bytes()).expect_err("the name is long");
        assert!(found[0].message.contains("costs too much"), "{found:?}");
        assert!(begin.elapsed() < CHECK_MAX, "{:?}", begin.elapsed());
    }

    #[test]
    fn classes_that_take_long_to_read_are_few() {
        for (class, count, why) in [
            (r"\\s", 5_400, "too many classes"),
            (r"\\PL", 5_400, "ECMA-262"),
            (r"\\P{L}", 3_200, "more than 200 classes"),
            (r"\\P{L}|", 2_700, "more than 200 classes"),
            (r"[\\p{L}]", 2_300, "more than 200 classes"),
        ] {
            let begin = Instant::now();
            let document = |count: usize| format!(r#"{{"pattern": "{}"}}"#, class.repeat(count));
            let error = Schema::parse(&document(count)).expect_err("each takes time and memory");
            assert_eq!(error.pointer, "/pattern");
            assert!(error.message.contains(why), "{class}: {error}");
            assert!(begin.elapsed() < PARSE_MAX, "{class}: {:?}", begin.elapsed());
        }
        for class in [r"\\w", r"\\d", r"\\S", r"\\cA", "."] {
            let begin = Instant::now();
            schema(&format!(r#"{{"pattern": "{}"}}"#, class.repeat(100)));
            assert!(begin.elapsed() < PARSE_MAX, "{class}: {:?}", begin.elapsed());
        }
    }

    #[test]
    fn large_classes_that_ignore_case_are_few() {
        let document = |count: usize| format!(r#"{{"pattern": "(?i:{})"}}"#, r"\\p{L}".repeat(count));
        let error = Schema::parse(&document(100)).expect_err("each is looked up character by character");
        assert!(error.message.contains("ignore case"), "{error}");
    }

    #[test]
    fn ordinary_patterns_over_long_texts_cost_little() {
        let text = "a word, and another one.\\n".repeat(30_000);
        for pattern in ["^[a-z]", r"\\p{L}", r"\\S", r"^[\\w\\s,.]+$", "^.{1,}$|\\n", "^[^<>]*$"] {
            let schema = schema(&format!(r#"{{"properties": {{"text": {{"pattern": "{pattern}"}}}}}}"#));
            assert_eq!(schema.validate(format!(r#"{{"text": "{text}"}}"#).as_bytes()), Ok(()), "{pattern}");
        }
        for pattern in ["^.{1,255}$", r"^\\S{1,150}$", r"^[\\s\\S]{1,1024}$", r"^[\\p{L}_.-]{1,12}$"] {
            let schema = schema(&format!(r#"{{"pattern": "{pattern}"}}"#));
            assert_eq!(schema.validate(br#""a-short_text""#), Ok(()), "{pattern}");
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
        assert!(schema(&document(300, &|n| format!("^[a-z]+-{n}$"))).memory_bytes() < 64 << 20);
    }

    #[test]
    fn what_stands_where_references_alone_lead_is_counted_too() {
        let patterns = |count: usize| {
            (0..count).map(|n| format!(r#""p{n}": {{"pattern": "(a{{200}}){{13{n}}}"}}"#)).collect::<Vec<_>>().join(",")
        };
        let draft_7 = r#""$schema": "http://json-schema.org/draft-07/schema#""#;
        let wide = vec!["true"; 1_100].join(",");
        let long = format!(r#"{{"{}": [{}0]}}"#, "x".repeat(100_000), "0,".repeat(2_000));
        for (document, why) in [
            (
                format!(
                    r##"{{{draft_7}, "$defs": [{{"properties": {{{}}}}}], "allOf": [{{"$ref": "#/$defs/0"}}]}}"##,
                    patterns(9)
                ),
                "compiled",
            ),
            (
                format!(
                    r##"{{"x": {{"properties": [{{"properties": {{{}}}}}]}}, "$ref": "#/x/properties/0"}}"##,
                    patterns(9)
                ),
                "compiled",
            ),
            (format!(r##"{{"x": {{"$defs": [{{"anyOf": [{wide}]}}]}}, "$ref": "#/x/$defs/0"}}"##), "alternatives"),
            (format!(r#"{{{draft_7}, "$defs": [{long}]}}"#), "too long names"),
        ] {
            let begin = Instant::now();
            let error = Schema::parse(&document).expect_err("it is too much");
            assert!(error.message.contains(why), "{document:.80}: {error}");
            assert!(begin.elapsed() < PARSE_MAX, "{document:.80}: {:?}", begin.elapsed());
        }
    }

    #[test]
    fn a_pattern_that_is_too_large_is_refused_where_it_stands() {
        let error = Schema::parse(r#"{"properties": {"a/b": {"pattern": "(a{300}){300}"}}}"#).expect_err("large");
        assert_eq!(error.pointer, "/properties/a~1b/pattern");
        assert!(error.message.contains("too large"), "{error}");
        let beyond_counting = format!(r#"{{"pattern": "{}a{}"}}"#, "(".repeat(8), "{1000})".repeat(8));
        assert!(Schema::parse(&beyond_counting).is_err());
        let told = violations(r#"{"properties": {"a": {"pattern": "^\"b+$"}}}"#, r#"{"a": "c"}"#);
        let expected =
            ("/a".to_owned(), "/properties/a/pattern".to_owned(), "the value does not match \"^\\\"b+$\"".to_owned());
        assert_eq!(told, [expected]);
    }
}
