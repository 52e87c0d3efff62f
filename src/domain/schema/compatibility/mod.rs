//! Whether data that one version of a schema accepts is accepted by another: what adding a version would break.
//!
//! Sits beside the compiler of schemas and works on documents that it accepted. The comparison is sound and not complete: where it
//! says nothing breaks, nothing does; what it cannot decide it calls undecided, which counts as a break unless both versions say
//! the same. It looks at the two documents alone.
//!
//! Everything that can be much is charged where it is done, as checks of data are (`cost`), and what costs too much is not decided.
//!
//! A schema is taken apart into `Facts`, what is known of the data it accepts; `relation` then checks every keyword of the other
//! schema against them.

mod accepts;
mod array;
mod decimal;
mod facts;
mod object;
mod relation;
mod same;
mod scalar;
mod work;

pub(super) use decimal::{Canonical, DECIMAL_UNITS, Decimal, are_equal, is_positive};

use super::cost::{Stopped, bounded};
use super::references::Document;
use super::{SchemaError, draft, refuse};
use facts::Facts;
use relation::Relation;
use same::alike;
use serde_json::Value;
use std::collections::HashSet;

/// How many breaks are told.
pub const BREAKS_MAX: usize = 32;

/// What a comparison in one direction may cost. A unit is about one small thing looked at.
const UNITS_MAX: u64 = 2_000_000;

/// What a new version of a schema must keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compatibility {
    /// Nothing.
    None,
    /// The new version accepts all data that the previous one accepts: who reads by the new one can read what is stored.
    Backward,
    /// The previous version accepts all data that the new one accepts: who reads by the previous one can read what comes.
    Forward,
    /// Both: the two accept the same data.
    Full,
}

impl Compatibility {
    /// Its name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Backward => "BACKWARD",
            Self::Forward => "FORWARD",
            Self::Full => "FULL",
        }
    }

    /// The directions that are checked.
    pub fn directions(self) -> &'static [Direction] {
        match self {
            Self::None => &[],
            Self::Backward => &[Direction::Backward],
            Self::Forward => &[Direction::Forward],
            Self::Full => &[Direction::Backward, Direction::Forward],
        }
    }
}

/// Which version refuses what the other accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The new version refuses data of the previous one.
    Backward,
    /// The previous version refuses data of the new one.
    Forward,
}

/// One place where two versions are not compatible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Break {
    /// Which version refuses.
    pub direction: Direction,
    /// JSON pointer into the new schema.
    pub pointer: String,
    /// JSON pointer into the previous schema.
    pub previous_pointer: String,
    /// What breaks, in one sentence.
    pub message: String,
    /// True where it could not be decided, and so counts as a break.
    pub undecided: bool,
}

/// What a new version of a schema breaks; at most [`BREAKS_MAX`] entries per direction, none where it is compatible.
///
/// Errors: for what is not JSON; both documents are otherwise known to be usable schemas.
pub fn compare(previous: &str, new: &str, mode: Compatibility) -> Result<Vec<Break>, SchemaError> {
    let parse = |text: &str| {
        let value: Value = serde_json::from_str(text).map_err(|_| refuse("", "is not JSON"))?;
        draft(&value).map(|draft| (value, draft))
    };
    let ((previous, previous_draft), (new, new_draft)) = (parse(previous)?, parse(new)?);
    let (Ok(previous), Ok(new)) = (Document::new(&previous, previous_draft), Document::new(&new, new_draft)) else {
        return Err(refuse("", "has identifiers that cannot be resolved"));
    };
    let mut breaks = Vec::new();
    for direction in mode.directions() {
        let (writer, reader) = match direction {
            Direction::Backward => (&previous, &new),
            Direction::Forward => (&new, &previous),
        };
        match bounded(UNITS_MAX, || directed(*direction, writer, reader)) {
            Ok(found) => breaks.extend(found),
            Err(Stopped::Cost) => breaks.push(too_large(*direction)),
            Err(Stopped::Panic) => return Err(refuse("", "cannot be compared")),
        }
    }
    Ok(breaks)
}

fn directed<'d>(direction: Direction, writer: &'d Document<'d>, reader: &'d Document<'d>) -> Vec<Break> {
    if alike(writer.root, reader.root) {
        return Vec::new();
    }
    let mut relation = Relation::new(direction, writer, reader);
    let mut found = relation.included(&Facts::of(writer, writer.root), reader.root);
    let mut seen = HashSet::new();
    found.retain(|one| seen.insert((one.pointer.clone(), one.message.clone())));
    found.truncate(BREAKS_MAX);
    found
}

fn too_large(direction: Direction) -> Break {
    let message = "the schemas cannot be compared: they are too large".to_owned();
    Break { direction, pointer: String::new(), previous_pointer: String::new(), message, undecided: true }
}

#[cfg(test)]
mod tests;
