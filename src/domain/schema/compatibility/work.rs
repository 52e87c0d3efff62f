//! What one comparison remembers, so that it does nothing twice: the regular expressions that it has compiled, and which of the values
//! that the schemas list are equal.

use super::decimal::Canonical;
use crate::domain::schema::cost::{charge, charge_for};
use crate::domain::schema::patterns::Pattern;
use crate::domain::schema::references::address;
use serde_json::Value;
use std::collections::{HashMap, HashSet};

/// How many expressions one comparison compiles.
const PATTERNS_MAX: usize = 256;
/// What compiling one costs.
const PATTERN_UNITS: u64 = 2_000;

/// The memory of one comparison.
#[derive(Default)]
pub(super) struct Work<'d> {
    /// The expressions met so far.
    patterns: HashMap<String, Option<Pattern>>,
    /// The values met so far, each with the number that all that equal it share.
    numbers: HashMap<Canonical<'d>, usize>,
    /// The same by where the values are.
    places: HashMap<usize, usize>,
    /// The numbers of the values of a list, by where the list is.
    lists: HashMap<usize, HashSet<usize>>,
}

impl<'d> Work<'d> {
    /// True where two values of the documents are equal.
    pub(super) fn are_equal(&mut self, a: &'d Value, b: &'d Value) -> bool {
        self.number(a) == self.number(b)
    }

    /// True where a value of the documents equals one of the list that `enum` has: each value is looked at once, however often and
    /// against how many others it is compared.
    pub(super) fn is_listed(&mut self, list: &'d Value, value: &'d Value) -> bool {
        if !self.lists.contains_key(&address(list)) {
            let numbers = list.as_array().into_iter().flatten().map(|one| self.number(one)).collect();
            self.lists.insert(address(list), numbers);
        }
        let number = self.number(value);
        self.lists[&address(list)].contains(&number)
    }

    fn number(&mut self, value: &'d Value) -> usize {
        charge(1);
        if let Some(number) = self.places.get(&address(value)) {
            return *number;
        }
        let next = self.numbers.len();
        let number = *self.numbers.entry(Canonical::of(value)).or_insert(next);
        self.places.insert(address(value), number);
        number
    }

    /// True where the text matches, by the same engine that checks data; none where that cannot be said.
    pub(super) fn matches(&mut self, pattern: &str, text: &str) -> Option<bool> {
        charge(1);
        charge_for(pattern);
        if !self.patterns.contains_key(pattern) {
            if self.patterns.len() >= PATTERNS_MAX {
                return None;
            }
            charge(PATTERN_UNITS);
        }
        let compiled = self.patterns.entry(pattern.to_owned()).or_insert_with(|| Pattern::compile(pattern).ok());
        compiled.as_ref().map(|compiled| compiled.matches(text))
    }
}
