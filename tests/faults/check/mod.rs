//! The history checker: reads what the parties of a run wrote down, and says which guarantee does not hold.
//!
//! It runs in a process of its own and knows the parties' records and the guarantees, not the service. What a subscription
//! matches it computes itself, from the positions at which its changes took effect. Of a fault it knows the kind, the beginning
//! and the end, as the driver wrote them down, and uses them for two things: to count the publish calls that met it, and to
//! excuse that an invocation ran again around it, as G5 does. It must never excuse anything else by a fault.
//!
//! Of the replicas' own logs it knows one thing: none of them may hold a panic.

mod deliveries;
mod gates;
mod history;
mod log;
mod order;
mod panics;
mod readers;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use deliveries::AFTERMATH;
pub use history::History;

/// Breaches of one guarantee, and panics, that are told in full; the others are counted.
const TOLD_MAX: usize = 5;

/// A guarantee, as the README numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Guarantee {
    G1,
    G2,
    G3,
    G4,
    G5,
    G6,
    G7,
    G8,
}

impl fmt::Display for Guarantee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What the checker found.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub seed: u64,
    pub kills: u64,
    /// Events whose publisher was told that they are on disk.
    pub acknowledged: usize,
    /// Of these, how many are not in the log as they were acknowledged.
    pub lost: usize,
    /// Second executions that no fault and no failed attempt explains.
    pub duplicates_without_fault: usize,
    /// Publish calls of which it was never learned whether they made an event.
    pub unknown: usize,
    pub events: usize,
    pub invocations: usize,
    /// Executions beyond the first of an invocation.
    pub repeated: usize,
    /// Executions so far from every fault that another one would have been found: what `duplicates_without_fault` is judged by.
    pub unexcused: usize,
    /// Changes of filters that readers have seen.
    pub splits: usize,
    /// Per kind of fault, the publish calls that were sent while it lasted.
    pub met: BTreeMap<String, usize>,
    /// Per kind of fault, how many of it met no publish call at all.
    pub unmet: BTreeMap<String, usize>,
    /// Per guarantee, how often it was found broken. What only stood still is a violation and not counted here: it says nothing
    /// of how the service does what it does.
    pub broken: BTreeMap<String, usize>,
    /// Each begins with the guarantee; those after them are about the replicas' logs.
    pub violations: Vec<String>,
}

impl Report {
    fn breach(&mut self, guarantee: Guarantee, what: impl fmt::Display) {
        let count = self.broken.entry(guarantee.to_string()).or_default();
        *count += 1;
        if *count <= TOLD_MAX {
            self.violations.push(format!("{guarantee}: {what}"));
        }
    }

    /// Tells of what never came to its end.
    fn stand_still(&mut self, guarantee: Guarantee, what: impl fmt::Display) {
        self.violations.push(format!("{guarantee}: {what}"));
    }

    /// Says how many breaches were not told one by one.
    fn close(&mut self) {
        for (guarantee, count) in &self.broken {
            if *count > TOLD_MAX {
                self.violations.push(format!("{guarantee}: and {} more", count - TOLD_MAX));
            }
        }
    }
}

/// Checks the records of a folder, and the replicas' logs beside them.
pub fn check(folder: &Path) -> std::io::Result<Report> {
    let mut report = judge(&History::read(folder)?);
    panics::none_in(folder, &mut report)?;
    Ok(report)
}

/// Checks a history.
pub fn judge(history: &History) -> Report {
    let mut report = Report {
        seed: history.seed,
        kills: history.faults.iter().map(|fault| u64::from(fault.kills)).sum(),
        events: history.log.len(),
        invocations: history.invocations.len(),
        ..Report::default()
    };
    for fault in &history.faults {
        let met = history.sends.iter().filter(|send| (fault.from..=fault.to).contains(&send.at)).count();
        *report.met.entry(fault.kind.clone()).or_default() += met;
        *report.unmet.entry(fault.kind.clone()).or_default() += usize::from(met == 0);
    }
    log::durable(history, &mut report);
    log::idempotent(history, &mut report);
    log::ordered(history, &mut report);
    order::in_order(history, &mut report);
    gates::gated(history, &mut report);
    deliveries::fanned_out(history, &mut report);
    deliveries::ended(history, &mut report);
    deliveries::executed(history, &mut report);
    deliveries::fenced(history, &mut report);
    readers::read(history, &mut report);
    report.close();
    report
}
