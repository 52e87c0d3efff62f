//! What was measured, and how it is told: a table for people, one JSON line for programs.
//!
//! Last stage of a bench. The JSON's shape is a contract: fields are added, never renamed.

use comfy_table::{Cell, Color};
use serde::Serialize;

use crate::cli::error::CliError;
use crate::cli::output::Output;

/// One measured figure beside its limit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// The target's row, with a letter where a row holds several figures.
    pub id: String,
    /// What was measured.
    pub name: String,
    /// The measured value; none where measuring failed.
    pub value: Option<f64>,
    /// The value's unit, and the limit's.
    pub unit: &'static str,
    /// What bounds it; empty where nothing was measured beside it.
    pub limit_name: String,
    /// The limit, measured in the same run.
    pub limit: Option<f64>,
    /// Value by limit.
    pub ratio: Option<f64>,
    /// What is wanted.
    pub target: String,
    /// Whether the target is met; none where there is no target.
    pub met: Option<bool>,
    /// Why there is no value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What a figure has to reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// Value by limit, at least.
    RatioAtLeast(f64),
    /// Value by limit, at most.
    RatioAtMost(f64),
    /// The value itself, at least.
    AtLeast(f64),
    /// The value itself, at most.
    AtMost(f64),
    /// Reported beside the others.
    None,
}

impl Target {
    /// The target where the run covered as much as it speaks of; a smaller run claims none.
    #[must_use]
    pub fn where_covered(self, covered: u64, spoken_of: u64) -> Self {
        if covered >= spoken_of { self } else { Self::None }
    }

    /// The target where there was anything to see. What cannot be 0 and shows as 0 was lost among what varies, and claims none.
    #[must_use]
    pub fn where_seen(self, value: f64) -> Self {
        if value > 0.0 { self } else { Self::None }
    }
}

impl Figure {
    /// A figure without a limit yet.
    pub fn new(id: &str, name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            id: id.to_owned(),
            name: name.into(),
            value: Some(value),
            unit,
            limit_name: String::new(),
            limit: None,
            ratio: None,
            target: String::new(),
            met: None,
            error: None,
        }
    }

    /// The figure beside what bounds it.
    #[must_use]
    pub fn beside(mut self, limit_name: impl Into<String>, limit: f64) -> Self {
        self.limit_name = limit_name.into();
        self.limit = Some(limit);
        self.ratio = self.value.filter(|_| limit > 0.0).map(|value| value / limit);
        self
    }

    /// A figure beside what bounds it, both measured in turns: those of the turn whose ratio is the middle one. What makes one of
    /// several turns slow does not show.
    ///
    /// *Shape*: the value and the limit of each turn, of an odd number of turns.
    pub fn in_turns(
        id: &str,
        name: impl Into<String>,
        unit: &'static str,
        limit_name: impl Into<String>,
        turns: &[(f64, f64)],
    ) -> Self {
        let mut turns = turns.to_vec();
        turns.sort_by(|a, b| (a.0 / a.1).total_cmp(&(b.0 / b.1)));
        let (value, limit) = turns.get(turns.len() / 2).copied().unwrap_or_default();
        Self::new(id, name, value, unit).beside(limit_name, limit)
    }

    /// The figure judged. A ratio is judged against the limit given before.
    #[must_use]
    pub fn wants(mut self, target: Target) -> Self {
        let unit = self.unit;
        (self.target, self.met) = match target {
            Target::RatioAtLeast(wanted) => (format!(">= {wanted} x"), self.ratio.map(|ratio| ratio >= wanted)),
            Target::RatioAtMost(wanted) => (format!("<= {wanted} x"), self.ratio.map(|ratio| ratio <= wanted)),
            Target::AtLeast(wanted) => (format!(">= {wanted} {unit}"), self.value.map(|value| value >= wanted)),
            Target::AtMost(wanted) => (format!("<= {wanted} {unit}"), self.value.map(|value| value <= wanted)),
            Target::None => (String::new(), None),
        };
        self
    }

    /// What could not be measured.
    pub fn failed(id: &str, name: &str, error: &CliError) -> Self {
        let mut figure = Self::new(id, name, 0.0, "");
        figure.value = None;
        figure.met = Some(false);
        figure.error = Some(error.to_string());
        figure
    }
}

/// Where the figures are from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Machine {
    /// Processors that this process may use.
    pub cores: usize,
    /// Main memory, bytes.
    pub memory_bytes: u64,
    /// The processor's name.
    pub cpu: String,
    /// The kernel's version.
    pub kernel: String,
    /// The version of Postgres.
    pub postgres: String,
    /// The version of this program.
    pub carillon: &'static str,
    /// Optimised or not: figures of a debug build say nothing.
    pub build: &'static str,
}

/// Everything that one run measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// What.
    pub results: Vec<Figure>,
}

impl Report {
    /// Writes the table, or the JSON line.
    ///
    /// *Errors*: [`CliError::Result`] where a figure could not be measured.
    pub fn show(&self, output: Output) -> Result<(), CliError> {
        if output.is_json() {
            output.document(self)?;
        } else {
            let machine = &self.machine;
            output.line(&format!(
                "{} x {}, {} MiB, Linux {}, Postgres {}, carillon {} ({} build)\n",
                machine.cores,
                machine.cpu,
                machine.memory_bytes >> 20,
                machine.kernel,
                machine.postgres,
                machine.carillon,
                machine.build
            ))?;
            let header = ["", "FIGURE", "MEASURED", "LIMIT", "RATIO", "TARGET", "MET", "LIMIT IS"];
            output.table(&header, self.results.iter().map(row).collect())?;
        }
        let failed: Vec<&str> =
            self.results.iter().filter(|figure| figure.error.is_some()).map(|figure| figure.id.as_str()).collect();
        if failed.is_empty() {
            return Ok(());
        }
        Err(CliError::Result(format!("not measured: {}", failed.join(", "))))
    }
}

fn row(figure: &Figure) -> Vec<Cell> {
    let number = |value: Option<f64>| value.map(|value| format!("{} {}", readable(value), figure.unit));
    let met = match figure.met {
        Some(true) => Cell::new("yes").fg(Color::Green),
        Some(false) => Cell::new("NO").fg(Color::Red),
        None => Cell::new(""),
    };
    vec![
        Cell::new(&figure.id),
        Cell::new(&figure.name),
        Cell::new(figure.error.clone().or_else(|| number(figure.value)).unwrap_or_default()),
        Cell::new(number(figure.limit).unwrap_or_default()),
        Cell::new(figure.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default()),
        Cell::new(&figure.target),
        met,
        Cell::new(&figure.limit_name),
    ]
}

/// Three or more significant digits, thousands apart.
fn readable(value: f64) -> String {
    if value.abs() < 100.0 {
        return format!("{value:.2}");
    }
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0.0 { format!("-{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_judged_against_the_limit_of_the_same_run() {
        let figure = Figure::new("T1", "publish", 30.0, "1/s").beside("echo", 50.0).wants(Target::RatioAtLeast(0.5));
        assert_eq!((figure.ratio, figure.met), (Some(0.6), Some(true)));
        let slow = Figure::new("T3a", "ack", 5.0, "ms").beside("commit", 1.0).wants(Target::RatioAtMost(3.5));
        assert_eq!(slow.met, Some(false));
        // A limit of nothing proves nothing.
        let odd = Figure::new("T1", "publish", 30.0, "1/s").beside("echo", 0.0).wants(Target::RatioAtLeast(0.5));
        assert_eq!((odd.ratio, odd.met), (None, None));
    }

    #[test]
    fn a_figure_that_was_lost_among_what_varies_claims_no_target() {
        let memory = |kb| Figure::new("T8b", "memory", kb, "KB").wants(Target::AtMost(10.0).where_seen(kb));
        assert_eq!((memory(0.0).met, memory(6.4).met, memory(12.0).met), (None, Some(true), Some(false)));
    }

    #[test]
    fn what_is_measured_in_turns_is_the_turn_with_the_middle_ratio() {
        // Neither the middle value nor the middle limit is of that turn.
        let turns = [(90.0, 100.0), (60.0, 50.0), (8.0, 10.0)];
        let figure = Figure::in_turns("T12e", "publish", "1/s", "the same", &turns).wants(Target::RatioAtLeast(0.95));
        assert_eq!((figure.value, figure.limit), (Some(90.0), Some(100.0)));
        assert_eq!((figure.ratio, figure.met), (Some(0.9), Some(false)));
        // A ratio has no unit: figures below 1 have theirs, too.
        let figure = Figure::in_turns("T12e", "publish", "s", "the same", &[(0.2, 0.4)]);
        assert_eq!(figure.ratio, Some(0.5));
    }

    #[test]
    fn the_json_holds_the_fields_that_programs_read() {
        let figure = Figure::new("T7a", "fan-out", 2e6, "1/s").wants(Target::AtLeast(2e6));
        let json = serde_json::to_value(&figure).expect("a figure is JSON");
        for field in ["id", "name", "value", "unit", "limit_name", "limit", "ratio", "target", "met"] {
            assert!(json.get(field).is_some(), "{field}");
        }
        assert_eq!(json["met"], true);
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(readable(1.234), "1.23");
        assert_eq!(readable(123.4), "123");
        assert_eq!(readable(1_234_567.0), "1,234,567");
        assert_eq!(readable(-1_234.0), "-1,234");
    }
}
