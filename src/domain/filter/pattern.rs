//! Literal patterns of `matches`, compiled once: matching takes time linear in the text.
//!
//! What the patterns of one expression take together is bounded, so that whoever compiles it (see [`super::Filter::stored`]) waits some
//! milliseconds, and keeps some hundred KiB. Patterns only tell whether they match: what a group of one has matched is not
//! kept track of, since the tables for that take several times as much memory as the pattern.

use super::Origin;
use super::cost::OPAQUE;
use crate::domain::case_folding::large_folded;
use cel::common::types::Type;
use cel::common::value::{StaticVal, Val};
use regex_automata::meta::{Config, Regex};
use regex_automata::nfa::thompson::WhichCaptures;
use regex_syntax::ast;
use regex_syntax::hir::Hir;
use regex_syntax::hir::translate::Translator;
use std::any::Any;

/// How large the states of one pattern may be, in bytes.
const STATES_BYTES_MAX: usize = 64 * 1024;
/// How large all patterns of an expression may be when compiled, in bytes.
pub(super) const COMPILED_BYTES_MAX: usize = 256 * 1024;
/// How much memory one that is used may spend on states that it has seen, in bytes.
const SEEN_BYTES_MAX: usize = 64 * 1024;
/// How deep a pattern may be nested.
const NESTING_MAX: u32 = 32;
/// How many large classes the patterns of an expression may have that ignore case: other cases are looked up for one character after the other.
const FOLDED_MAX: usize = 4;

/// A compiled pattern.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    regex: Regex,
}

/// The patterns of one expression.
pub(super) struct Patterns {
    origin: Origin,
    compiled: Vec<Pattern>,
    folded: usize,
}

impl Patterns {
    pub(super) fn new(origin: Origin) -> Self {
        Self { origin, compiled: Vec::new(), folded: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.compiled.len()
    }

    pub(super) fn into_compiled(self) -> Vec<Pattern> {
        self.compiled
    }

    /// Compiles one more; the message says why it cannot be.
    pub(super) fn add(&mut self, pattern: &str) -> Result<(), String> {
        let (expression, folded) = parse(pattern, FOLDED_MAX - self.folded, self.origin)?;
        self.folded += folded;
        let mut config = Config::new().nfa_size_limit(Some(STATES_BYTES_MAX)).hybrid_cache_capacity(SEEN_BYTES_MAX);
        config = config.which_captures(WhichCaptures::Implicit).onepass(false);
        let regex = Regex::builder().configure(config).build_from_hir(&expression).map_err(|error| {
            match error.size_limit() {
                Some(_) => "the pattern is too large when compiled".to_owned(),
                None => not_regular(),
            }
        })?;
        self.compiled.push(Pattern { regex });
        let bytes: usize = self.compiled.iter().map(Pattern::bytes).sum();
        if bytes > COMPILED_BYTES_MAX && self.origin == Origin::Caller {
            let hint = "of \\w, \\pL and the like, few are: (?-u:\\w) is small";
            return Err(format!("the patterns are too large together when compiled ({hint})"));
        }
        Ok(())
    }
}

impl Pattern {
    /// How large it is compiled.
    pub(super) fn bytes(&self) -> usize {
        self.regex.memory_usage()
    }

    pub(super) fn is_match(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }
}

fn not_regular() -> String {
    "the pattern is not a regular expression (RE2 syntax)".to_owned()
}

/// Reads a pattern, with how many large classes of it ignore case.
fn parse(pattern: &str, folded_max: usize, origin: Origin) -> Result<(Hir, usize), String> {
    let parsed = ast::parse::ParserBuilder::new().nest_limit(NESTING_MAX).build().parse(pattern);
    let parsed = parsed.map_err(|_| not_regular())?;
    let folded = large_folded(&parsed);
    if folded > folded_max && origin == Origin::Caller {
        return Err(format!("the patterns have more than {FOLDED_MAX} large classes that ignore case"));
    }
    let expression = Translator::new().translate(pattern, &parsed).map_err(|_| not_regular())?;
    Ok((expression, folded.min(folded_max)))
}

impl Val for Pattern {
    fn get_type(&self) -> &Type {
        &OPAQUE
    }

    fn cel_type() -> &'static Type {
        &OPAQUE
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v> {
        Box::new(self.clone())
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

impl StaticVal for Pattern {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::filter::tests::event;
    use crate::domain::filter::{Filter, FilterContext};

    fn compiled(patterns: &[&str], origin: Origin) -> Result<Vec<Pattern>, String> {
        let mut all = Patterns::new(origin);
        patterns.iter().try_for_each(|pattern| all.add(pattern))?;
        Ok(all.into_compiled())
    }

    #[test]
    fn patterns_take_little_memory_together() {
        let bytes = |patterns: &[&str]| {
            compiled(patterns, Origin::Caller).map(|all| all.iter().map(Pattern::bytes).sum::<usize>())
        };
        let ordinary =
            [r"^\d{4}-\d\d-\d\d$", r"^[^@\s]+@[a-z.]+$", "^eu-.*$", r"(?-u:^\w+$)", r"^(a|b)(c|d)+$", "(?i)^order"];
        assert!(bytes(&ordinary).is_ok_and(|bytes| bytes < COMPILED_BYTES_MAX), "{:?}", bytes(&ordinary));
        // Groups cost no more than what is in them.
        for (grouped, plain) in [(r"^(\w)$", r"^\w$"), (r"^((a|b)(c|d)){60}$", "^(?:(?:a|b)(?:c|d)){60}$")] {
            let (grouped, plain) = (bytes(&[grouped]).expect("small"), bytes(&[plain]).expect("small"));
            assert!(grouped <= plain * 2, "{grouped} and {plain}");
        }
        for large in [&["[\\pL\\pN]a1b1c1"; 16][..], &[r"\w"; 9], &[r"(\w{100}){100}"], &["[a-z]{5000}"]] {
            let error = bytes(large).expect_err("too large");
            assert!(error.contains("too large"), "{error}");
        }
        assert_eq!(compiled(&["[\\pL\\pN]a1b1c1"; 16], Origin::Store).map(|all| all.len()), Ok(16));
    }

    #[test]
    fn large_classes_that_ignore_case_are_few() {
        let many = [
            "(?i)\\pL".repeat(5),
            format!("(?i:[{}&&a])", r"\p{any}".repeat(30)),
            format!("(?i){}a{}", "[^".repeat(20), "]".repeat(20)),
            format!("(?i)[{}a]", r"\W\D\S&&".repeat(20)),
            format!("(?i)[{}&&a]", "\u{1}-\u{10ffff}".repeat(20)),
            format!("(?:(?i){}){{0}}", r"[\w]".repeat(50)),
            format!("[^a(?i)]|{}(?i)", r"\PL".repeat(50)),
        ];
        for pattern in &many {
            let error = compiled(&[pattern], Origin::Caller).expect_err(pattern);
            assert!(error.contains("ignore case"), "{pattern}: {error}");
        }
        let spread = compiled(&["(?i)[\\pL\\pN]"; 3], Origin::Caller).expect_err("six");
        assert!(spread.contains("ignore case"), "{spread}");
        for pattern in
            [r"(?i)^[\pL\pN]+$", "(?i)^[^@]+@[^@.]+\\.[a-z\\d]+$", r"[^\W\d]&&|[[a-z]&&[^aeiou]]{5}|[[a][b][c][d][e]]"]
        {
            compiled(&[pattern], Origin::Caller).expect(pattern);
        }
    }

    #[test]
    fn patterns_that_are_too_large_together_are_refused_by_their_column_and_go_on_to_work_where_they_are_stored() {
        let many = vec!["data.a.matches('[\\\\pL\\\\pN]a1b1c1')"; 16].join(" || ");
        let refused = Filter::parse(&many).expect_err("too large");
        assert!(refused.message.contains("too large together"), "{refused}");
        assert_eq!(refused.column, 1 + many.match_indices('\'').nth(8).expect("the fifth pattern").0);
        let event = event(r#"{"a": "\u00e4a1b1c1"}"#);
        assert_eq!(Filter::stored(&many).matches(&FilterContext::new(&event)), Ok(true));
    }
}
