//! What checking one payload, or comparing two documents, may cost. Whoever looks at something charges for it first, from wherever that is;
//! where nothing is left the whole work ends there.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// What one pass over a payload may cost. A unit is about one small thing looked at.
pub(super) const UNITS_MAX: u64 = 6_000_000;
/// What one may cost that others wait for.
pub(super) const UNITS_BRIEF: u64 = 100_000;

/// How many bytes of a text or a name cost one unit.
const BYTES_PER_UNIT: usize = 64;

/// Why a check ended early.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    /// It cost too much.
    Cost,
    /// Something panicked.
    Panic,
}

/// Runs a check, or a comparison, within so many units.
pub(super) fn bounded<T>(units: u64, check: impl FnOnce() -> T) -> Result<T, Stopped> {
    LEFT.set(units);
    let checked = catch_unwind(AssertUnwindSafe(check));
    LEFT.set(u64::MAX);
    checked.map_err(|cause| if cause.is::<Exhausted>() { Stopped::Cost } else { Stopped::Panic })
}

/// Takes units of what this thread's check has left, and ends the check where there are not as many.
pub(super) fn charge(units: u64) {
    match LEFT.get().checked_sub(units) {
        Some(left) => LEFT.set(left),
        None => resume_unwind(Box::new(Exhausted)),
    }
}

/// Takes what it costs to look through a text.
pub(super) fn charge_for(text: &str) {
    charge((text.len() / BYTES_PER_UNIT) as u64);
}

thread_local! {
    /// What is left of the check that this thread runs; outside of one there is no end to it.
    static LEFT: Cell<u64> = const { Cell::new(u64::MAX) };
}

/// What unwinds out of a check from wherever its cost arises. It passes no panic hook.
struct Exhausted;
