//! Defects that are planted on purpose: a checker that does not find them proves nothing.
//!
//! Each runs a `carillon` that was built with the feature `planted-defects` and is told which one to have (`src/planted.rs`),
//! under the fault that brings it to light. Found is a defect where the checker reports the guarantee that it breaks. A control
//! is the same run of the same program without a defect: what is reported there, no defect has caused.

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use carillon::planted::Defect;

use super::faults::Kind;
use super::judge;
use super::run::{self, Plan};
use super::stage::Shape;

/// A defect and how it is found.
#[derive(Debug, Clone)]
pub struct Planted {
    /// Its name.
    pub name: &'static str,
    guarantee: &'static str,
    faults: Vec<Kind>,
}

/// Every defect that can be planted.
pub fn all() -> Vec<Planted> {
    let faults = |defect| match defect {
        Defect::AcknowledgeEarly => vec![Kind::KillPostgres],
        Defect::ResumeLate => vec![Kind::KillReplica],
        // Each time there must be a result that the frozen one has not written yet.
        Defect::IgnoreFence => vec![Kind::StopReplica; 2],
        // Quiet traffic brings these to light; a fault would only excuse what they do.
        Defect::LoseFanOut
        | Defect::ForgetKeys
        | Defect::OpenGate
        | Defect::SkipAttempts
        | Defect::AttemptTwice
        | Defect::MisdateCommits
        | Defect::IgnoreOrder => Vec::new(),
    };
    Defect::ALL
        .into_iter()
        .map(|(defect, guarantee, name)| Planted { name, guarantee, faults: faults(defect) })
        .collect()
}

impl Planted {
    /// The faults under which it is hunted.
    pub fn faults(&self) -> &[Kind] {
        &self.faults
    }

    /// Runs the program as [`Self::hunt`] does, but without the defect, and answers whatever is reported.
    pub async fn control(&self, seed: u64, program: &Path, shape: &Shape, below: &Path) -> anyhow::Result<Vec<String>> {
        let names: Vec<&str> = self.faults.iter().map(|kind| kind.name()).collect();
        let under = if names.is_empty() { "calm".to_owned() } else { names.join("-") };
        let folder = below.join(format!("control-{under}"));
        let not_back = run::run(&self.plan(seed, program, shape, "")?, &folder).await?;
        let reported: Vec<String> = judge(&folder)?.violations.into_iter().chain(not_back).collect();
        let good = reported.is_empty();
        let said = if good { "nothing is reported" } else { "FAILED: what is reported here, no defect has caused" };
        eprintln!("faults: control run without a defect, {under}: {said}");
        Ok(reported.into_iter().map(|what| format!("control run without a defect, {under}: {what}")).collect())
    }

    /// Runs the program with this defect; true where the checker reports its guarantee.
    pub async fn hunt(&self, seed: u64, program: &Path, shape: &Shape, below: &Path) -> anyhow::Result<bool> {
        let folder = below.join(self.name);
        // A defect may stop delivery for good: what has stood still by then is no reason to call it found.
        let _not_back = run::run(&self.plan(seed, program, shape, self.name)?, &folder).await?;
        let report = judge(&folder)?;
        let caught = report.broken.contains_key(self.guarantee);
        let (name, guarantee, broken) = (self.name, self.guarantee, &report.broken);
        let said = if caught { "found" } else { "NOT FOUND" };
        eprintln!("faults: planted defect {name}: {said}: it breaks {guarantee}, the checker reports {broken:?}");
        Ok(caught)
    }

    fn plan(&self, seed: u64, program: &Path, shape: &Shape, planted: &str) -> anyhow::Result<Plan> {
        ensure!(program.is_file(), "there is no {}: build it with --features planted-defects", program.display());
        Ok(Plan {
            seed,
            shape: Shape { program: program.to_owned(), planted: planted.to_owned(), ..shape.clone() },
            faults: self.faults.clone(),
            calm: Duration::from_secs(2),
            // What such a defect has stopped does not start again.
            patience: Duration::from_secs(8),
        })
    }
}
