//! What an evaluation may cost: functions that `compile` writes around the parts of an expression that can be expensive.
//!
//! A unit is about one small value looked at. The functions walk no further than the budget reaches, so measuring is itself bounded.

use super::ELEMENTS_MAX;
use super::pattern::Pattern;
use cel::common::types::{
    CelBool, CelBytes, CelInt, CelList, CelMap, CelString, DYN_TYPE, INT_TYPE, STRING_TYPE, Type,
};
use cel::common::value::{CowVal, StaticVal, Val};
use cel::{DeclarationError, Env, ExecutionError};
use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering};

/// The variable that holds the budget of an evaluation.
pub(super) const BUDGET: &str = "@budget";
/// What the variables that hold compiled patterns start with.
pub(super) const PATTERN: &str = "@pattern";
/// `@charge(value, uses, @budget)`: the value, after charging what it takes to look at it that many times.
pub(super) const CHARGE: &str = "@charge";
/// `@range(value, uses, nodes, @budget)`: the value, after charging what it takes to go through it.
pub(super) const RANGE: &str = "@range";
/// `@matches(text, @pattern, @budget)`: `matches` by a pattern that was compiled before, after charging what that takes.
pub(super) const MATCHES: &str = "@matches";

/// What one evaluation may cost.
const UNITS_MAX: u64 = 1_000_000;
/// How many bytes of a string cost one unit.
const BYTES_PER_UNIT: u64 = 32;
/// How many bytes of a text cost one unit to match, for each KiB of the compiled pattern: in the worst case every byte meets all of it.
const MATCHED_PER_UNIT: u64 = 16;

/// Declares the functions.
pub(super) fn declare(environment: &mut Env) -> Result<(), DeclarationError> {
    environment.add_overload(CHARGE, "charge", vec![DYN_TYPE, INT_TYPE, DYN_TYPE], charge)?;
    environment.add_overload(RANGE, "range", vec![DYN_TYPE, INT_TYPE, INT_TYPE, DYN_TYPE], range)?;
    environment.add_overload(MATCHES, "matches", vec![STRING_TYPE, DYN_TYPE, DYN_TYPE], matches)
}

/// What is left of an evaluation's units.
#[derive(Debug)]
pub(super) struct Budget {
    // An atomic because values must be shareable; only one thread ever uses it.
    left: AtomicU64,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self { left: AtomicU64::new(UNITS_MAX) }
    }

    /// True after the first charge that did not fit.
    pub(super) fn is_exhausted(&self) -> bool {
        self.left.load(Ordering::Relaxed) == 0
    }

    /// Takes units; false where that many are not left, and then nothing is left.
    fn take(&self, units: u64) -> bool {
        let left = self.left.load(Ordering::Relaxed);
        let after = left.saturating_sub(units);
        self.left.store(after, Ordering::Relaxed);
        after > 0
    }

    /// Charges for looking at the value `uses` times.
    fn charge(&self, value: &dyn Val, uses: u64) -> Result<(), ExecutionError> {
        let length = |bytes: usize| 1 + bytes as u64 / BYTES_PER_UNIT;
        let units = if let Some(text) = value.downcast_ref::<CelString>() {
            length(text.inner().len())
        } else if let Some(bytes) = value.downcast_ref::<CelBytes>() {
            length(bytes.inner().len())
        } else if let Some(list) = value.downcast_ref::<CelList>() {
            list.inner().iter().try_for_each(|element| self.charge(element.as_ref(), uses))?;
            1
        } else if let Some(map) = value.downcast_ref::<CelMap>() {
            map.inner().iter().try_for_each(|(key, value)| {
                self.charge(key.inner(), uses)?;
                self.charge(value.as_ref(), uses)
            })?;
            1
        } else {
            1
        };
        if self.take(units.saturating_mul(uses)) { Ok(()) } else { Err(exhausted()) }
    }
}

impl Val for Budget {
    fn get_type(&self) -> &Type {
        &OPAQUE
    }

    fn cel_type() -> &'static Type {
        &OPAQUE
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v> {
        Box::new(Self { left: AtomicU64::new(self.left.load(Ordering::Relaxed)) })
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

impl StaticVal for Budget {}

pub(super) static OPAQUE: Type = Type::new_unspecified_type("opaque");

fn charge<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let [value, uses, budget] = take(arguments)?;
    budget_of(&budget)?.charge(value.as_ref(), count(&uses))?;
    Ok(value)
}

fn range<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let [value, uses, nodes, budget] = take(arguments)?;
    let elements = match (value.downcast_ref::<CelList>(), value.downcast_ref::<CelMap>()) {
        (Some(list), _) => list.inner().len(),
        (_, Some(map)) => map.inner().len(),
        // Not something to go through: the comprehension itself says so.
        (None, None) => return Ok(value),
    };
    let budget = budget_of(&budget)?;
    if elements > ELEMENTS_MAX {
        budget.take(u64::MAX);
        return Err(exhausted());
    }
    if !budget.take(count(&nodes).saturating_mul(elements as u64)) {
        return Err(exhausted());
    }
    // Every element is copied into the loop's variable, and looked at as often as the variable is used.
    budget.charge(value.as_ref(), 1 + count(&uses))?;
    Ok(value)
}

fn matches<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let [text, pattern, budget] = take(arguments)?;
    let text = text.downcast_ref::<CelString>().ok_or_else(misused)?;
    let pattern = pattern.downcast_ref::<Pattern>().ok_or_else(misused)?;
    let kib = pattern.bytes().div_ceil(1024).max(1);
    if !budget_of(&budget)?.take((text.inner().len() * kib) as u64 / MATCHED_PER_UNIT) {
        return Err(exhausted());
    }
    Ok(CowVal::owned(CelBool::from(pattern.is_match(text.inner()))))
}

fn take<const N: usize, T>(arguments: Vec<T>) -> Result<[T; N], ExecutionError> {
    arguments.try_into().map_err(|_| misused())
}

fn budget_of<'a>(value: &'a CowVal<'_, '_>) -> Result<&'a Budget, ExecutionError> {
    value.downcast_ref::<Budget>().ok_or_else(misused)
}

fn count(value: &CowVal<'_, '_>) -> u64 {
    value.downcast_ref::<CelInt>().and_then(|count| u64::try_from(*count.inner()).ok()).unwrap_or(0)
}

fn exhausted() -> ExecutionError {
    ExecutionError::function_error("@budget", "exhausted")
}

fn misused() -> ExecutionError {
    ExecutionError::InternalError("a function of the compiler is misused".to_owned())
}
