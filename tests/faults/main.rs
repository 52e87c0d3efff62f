//! The fault suite: real replicas on a real Postgres, killed, frozen, cut off and starved under live traffic, and a checker
//! in a process of its own that says from the parties' logs whether a guarantee broke.
//!
//! Reading order: [`run`] (one run), [`stage`] (what is broken), [`faults`] (how), [`parties`] (who notices), [`record`]
//! (what they write), [`check`] (what must hold). `docs/faults.md` says how to use it.

#[expect(dead_code, reason = "shared with tests/it, which uses all of it")]
#[path = "../it/harness/connect.rs"]
mod connect;
#[expect(dead_code, reason = "shared with tests/it, which uses all of it")]
#[path = "../it/harness/process.rs"]
mod process;
#[expect(dead_code, reason = "shared with tests/it, which uses all of it")]
#[path = "../it/harness/wait.rs"]
mod wait;

mod check;
mod dump;
mod faults;
mod parties;
mod planted;
mod proxy;
mod random;
mod record;
mod run;
mod stage;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Parser};
use serde::{Deserialize, Serialize};

use check::Report;
use faults::Kind;
use planted::Planted;
use run::Plan;
use stage::Shape;

/// Breaks a running Carillon in every way it knows and checks that no guarantee breaks with it.
#[derive(Debug, Parser)]
#[command(name = "faults", max_term_width = 100)]
enum Cli {
    /// The long form: many kills, every fault.
    Long(Long),
    /// The short form, about a minute: what `cargo test` runs.
    Short(Common),
    /// Checks the records of a run and prints a report as JSON.
    Check {
        /// The run's folder.
        folder: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Common {
    /// Decides the order of the faults and what parties do; a random one is taken and printed where none is given.
    #[arg(long)]
    seed: Option<u64>,
    /// How many `carillon serve` share the database.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=8))]
    replicas: u8,
    /// Keep the records and logs below this folder, also where the run is good.
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Only these faults, by name.
    #[arg(long, value_delimiter = ',', value_parser = parse_kind)]
    only: Vec<Kind>,
}

#[derive(Debug, Args)]
struct Long {
    #[command(flatten)]
    common: Common,
    /// How many times something is killed with `kill -9`.
    #[arg(long, default_value_t = 60)]
    kills: usize,
    /// How many times each of the other faults is committed.
    #[arg(long, default_value_t = 3)]
    times: usize,
    /// A `carillon` that was built with the feature `planted-defects`: the checker must find each of them.
    #[arg(long, value_name = "PROGRAM")]
    planted: PathBuf,
    /// Only these planted defects, by name.
    #[arg(long, value_delimiter = ',', value_parser = parse_defect)]
    defects: Vec<Planted>,
    /// Only the planted defects: no run without one.
    #[arg(long)]
    defects_only: bool,
}

fn parse_kind(name: &str) -> Result<Kind, String> {
    let known = || Kind::ALL.map(Kind::name).join(", ");
    Kind::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| format!("one of {}", known()))
}

fn parse_defect(name: &str) -> Result<Planted, String> {
    let known = || planted::all().iter().map(|planted| planted.name).collect::<Vec<_>>().join(", ");
    planted::all().into_iter().find(|planted| planted.name == name).ok_or_else(|| format!("one of {}", known()))
}

/// The last line of a run, also of one that ends by an error: that is then the last of the violations.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Summary {
    seed: u64,
    kills: u64,
    acknowledged: usize,
    lost: usize,
    duplicates_without_fault: usize,
    violations: Vec<String>,
    planted_defects: Caught,
}

impl Summary {
    /// Adds what the checker reports of a run without planted defects, and what else there is to say against it.
    fn add(&mut self, plan: &Plan, report: &Report) {
        self.violations.extend(verdict(plan, report));
        self.kills = report.kills;
        self.acknowledged = report.acknowledged;
        self.lost = report.lost;
        self.duplicates_without_fault = report.duplicates_without_fault;
    }

    /// What the exit code says: nothing else than the line, so that whoever reads one of them knows the other.
    fn is_good(&self) -> bool {
        let Self { lost, duplicates_without_fault, violations, planted_defects: Caught { caught, of }, .. } = self;
        violations.is_empty() && *lost == 0 && *duplicates_without_fault == 0 && caught == of
    }
}

/// How many of the defects that were planted the checker has found.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Caught {
    caught: usize,
    of: usize,
}

fn main() -> ExitCode {
    // As in the program: one provider for every TLS connection.
    let _installed_once = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let own = ["long", "short", "check", "help", "--help", "-h"];
    let cli = match arguments.first() {
        Some(first) if own.contains(&first.as_str()) => Cli::parse(),
        // Called as one of cargo's test programs, whose arguments are a filter and options of no concern here.
        _ if arguments.iter().any(|argument| argument == "--list") => {
            println!("faults: test");
            return ExitCode::SUCCESS;
        }
        _ => match arguments.iter().find(|argument| !argument.starts_with('-')) {
            Some(filter) if !"faults".contains(filter.as_str()) => return ExitCode::SUCCESS,
            _ => Cli::parse_from(["faults", "short"]),
        },
    };
    let done = match cli {
        Cli::Check { folder } => tell(&folder),
        Cli::Short(common) => {
            let others =
                [Kind::StopReplica, Kind::TerminateBackends, Kind::WithholdCommit, Kind::ReadOnly, Kind::ReceiverHang];
            errors_are_told()
                .and_then(|()| what_proves_nothing_is_told())
                .and_then(|()| panics_are_told())
                .and_then(|()| suite(&common, &[], Some(Duration::from_secs(3)), |seed| Plan::mix(seed, 4, &others, 1)))
        }
        Cli::Long(long) => {
            let Long { common, kills, times, planted, defects, defects_only } = long;
            let calm = (!defects_only).then_some(Duration::from_secs(6));
            let defects = if defects.is_empty() { planted::all() } else { defects };
            let defects: Vec<_> = defects.into_iter().map(|defect| (planted.clone(), defect)).collect();
            suite(&common, &defects, calm, |seed| Plan::mix(seed, kills, &Kind::ALL, times))
        }
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("faults: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The checker's own process.
fn tell(folder: &Path) -> anyhow::Result<ExitCode> {
    let report = check::check(folder).with_context(|| format!("the records in {}", folder.display()))?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A run that ends by an error tells of it as any other does: seen with a program that is not there.
fn errors_are_told() -> anyhow::Result<()> {
    let run = Command::new(std::env::current_exe()?)
        .args(["long", "--defects-only", "--planted", "/nowhere/carillon"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&run.stdout);
    let last: Summary = serde_json::from_str(&text).with_context(|| format!("a run without a program said {text}"))?;
    let told = last.violations.iter().any(|violation| violation.contains("/nowhere/carillon"));
    ensure!(told && !run.status.success(), "a run without a program said {text} and ended with {}", run.status);
    Ok(())
}

/// A run of which the checker reports nothing fails all the same where it proves nothing, and its line says why.
fn what_proves_nothing_is_told() -> anyhow::Result<()> {
    let shape = Shape { program: PathBuf::new(), planted: String::new(), replicas: 2, small_disks: false };
    let plan = Plan { seed: 1, shape, faults: vec![Kind::KillReplica], calm: Duration::ZERO, patience: Duration::ZERO };
    let met = || BTreeMap::from([(Kind::KillReplica.name().to_owned(), 1)]);
    let good = || Report { kills: 1, unexcused: 1, splits: 1, met: met(), ..Report::default() };
    ensure!(verdict(&plan, &good()).is_empty(), "a good run: {:?}", verdict(&plan, &good()));
    for (report, told) in [
        (Report { unexcused: 0, ..good() }, "every repetition would have been excused"),
        (Report { met: BTreeMap::new(), ..good() }, "met no traffic"),
        (Report { unmet: met(), ..good() }, "met no traffic"),
        (Report { splits: 0, ..good() }, "no filter of a watch"),
        (Report { unknown: 1, ..good() }, "the outcome stayed unknown"),
        (Report { kills: 0, ..good() }, "1 were planned"),
        (Report { violations: vec!["G1: lost".to_owned()], ..good() }, "G1: lost"),
    ] {
        let mut summary = Summary::default();
        summary.add(&plan, &report);
        let line = serde_json::to_string(&summary)?;
        ensure!(line.contains(told) && !summary.is_good(), "no word of '{told}' in {line}");
    }
    let unasked = Plan { faults: Vec::new(), ..plan };
    let said = verdict(&unasked, &good());
    ensure!(said.iter().any(|what| what.contains("no fault was asked for")), "a run without faults: {said:?}");
    let summary = Summary { planted_defects: Caught { caught: 1, of: 2 }, ..Summary::default() };
    ensure!(!summary.is_good(), "a defect that is not found");
    Ok(())
}

/// The checker finds a panic in a replica's log, as the service logs it and as the language writes it, and an abort; and names the line.
fn panics_are_told() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text);
    let said = judge(folder.path())?.violations;
    ensure!(said.len() == 1 && said[0].contains("no replica's log was kept"), "without a log: {said:?}");
    write("postgres.log", "PANIC:  could not write: No space left on device\n")?;
    write("replica-1.log", "INFO carillon: ready\n")?;
    let said = judge(folder.path())?.violations;
    ensure!(said.is_empty(), "logs without a panic: {said:?}");
    let logged = "ERROR carillon::telemetry: panicked place=\"src/a.rs:7\" text=\"planted\"";
    let bare = "thread 'main' panicked at src/a.rs:7:1:";
    write("replica-2.log", &format!("INFO carillon: ready\n{logged}\n"))?;
    write("replica-3.log", &format!("{bare}\nplanted\n"))?;
    let (stack, memory) = ("thread 'a' (7) has overflowed its stack", "memory allocation of 8 bytes failed");
    let fatal = "fatal runtime error: stack overflow, aborting";
    write("replica-4.log", &format!("\n{stack}\n{fatal}\n{memory}\n"))?;
    let said = judge(folder.path())?.violations;
    let expected = [
        ("line 2 of replica-2.log", logged),
        ("line 1 of replica-3.log", bare),
        ("line 2 of replica-4.log", stack),
        ("line 3 of replica-4.log", fatal),
        ("line 4 of replica-4.log", memory),
    ]
    .map(|(at, line)| format!("{at}: {line}"));
    let told =
        said.len() == expected.len() && said.iter().zip(&expected).all(|(said, expected)| said.ends_with(expected));
    ensure!(told, "panics in logs: {said:?}");
    Ok(())
}

/// Runs what is asked for and prints the last line. `calm` is how long traffic goes on without a fault where nothing is planted;
/// none for no such run.
fn suite(
    common: &Common,
    defects: &[(PathBuf, Planted)],
    calm: Option<Duration>,
    faults: impl Fn(u64) -> Vec<Kind>,
) -> anyhow::Result<ExitCode> {
    let random = || u64::from(std::process::id()) ^ (uuid::Uuid::new_v4().as_u64_pair().0 >> 32);
    let seed = common.seed.unwrap_or_else(random);
    let mut summary = Summary { seed, ..Summary::default() };
    if let Err(error) = runs(common, defects, calm, faults(seed), &mut summary) {
        summary.violations.push(format!("the run has ended early: {error:#}"));
    }
    for violation in &summary.violations {
        eprintln!("faults: VIOLATION {violation}");
    }
    println!("{}", serde_json::to_string(&summary)?);
    Ok(if summary.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The runs of a suite.
fn runs(
    common: &Common,
    defects: &[(PathBuf, Planted)],
    calm: Option<Duration>,
    mut list: Vec<Kind>,
    summary: &mut Summary,
) -> anyhow::Result<()> {
    let seed = summary.seed;
    let temporary = tempfile::Builder::new().prefix("carillon-faults-records-").tempdir()?;
    let below = common.keep.clone().unwrap_or_else(|| temporary.path().to_owned());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let shape = Shape {
        program: env!("CARGO_BIN_EXE_carillon").into(),
        planted: String::new(),
        replicas: usize::from(common.replicas),
        small_disks: false,
    };
    if !common.only.is_empty() {
        list.retain(|kind| common.only.contains(kind));
    }
    eprintln!("faults: seed {seed}, records in {}", below.display());
    let done = runtime.block_on(async {
        let mut controlled: Vec<&[Kind]> = Vec::new();
        for (program, planted) in defects {
            if !controlled.contains(&planted.faults()) {
                controlled.push(planted.faults());
                summary.violations.extend(planted.control(seed, program, &shape, &below).await?);
            }
            summary.planted_defects.of += 1;
            let caught = planted.hunt(seed, program, &shape, &below).await?;
            summary.planted_defects.caught += usize::from(caught);
        }
        if let Some(calm) = calm {
            let small_disks = list.iter().any(|kind| matches!(kind, Kind::DiskFull | Kind::WalFull));
            let plan = Plan {
                seed,
                shape: Shape { small_disks, ..shape.clone() },
                faults: list,
                calm,
                patience: Duration::from_secs(60),
            };
            let folder = below.join("run");
            summary.violations.extend(run::run(&plan, &folder).await?);
            let report = judge(&folder)?;
            tell_counts(&plan, &report);
            summary.add(&plan, &report);
        }
        anyhow::Ok(())
    });
    if common.keep.is_none() && (done.is_err() || !summary.is_good()) {
        // What there is of a broken run helps to find its cause.
        eprintln!("faults: the records stay in {}", temporary.keep().display());
    }
    done
}

/// Runs the checker over the records, in a process of its own.
fn judge(folder: &Path) -> anyhow::Result<Report> {
    let checker = Command::new(std::env::current_exe()?)
        .arg("check")
        .arg(folder)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    let text = String::from_utf8_lossy(&checker.stdout);
    ensure!(!text.is_empty(), "the checker ended with {} and said nothing", checker.status);
    serde_json::from_str(&text).with_context(|| format!("the checker said {text}"))
}

/// How much a run without planted defects has seen.
fn tell_counts(plan: &Plan, report: &Report) {
    eprintln!(
        "faults: {} events, {} invocations, {} executions beyond the first, {} changed filters",
        report.events, report.invocations, report.repeated, report.splits
    );
    eprintln!(
        "faults: {} executions were so far from every fault that another one would have counted",
        report.unexcused
    );
    for kind in Kind::ALL.into_iter().filter(|kind| plan.faults.contains(kind)) {
        let met = report.met.get(kind.name()).copied().unwrap_or_default();
        eprintln!("faults: {:<18} met {met} publish calls", kind.name());
    }
}

/// What there is to say against a run without planted defects: what broke, and why it proves nothing where a fault met no traffic or
/// something stayed unknown. Nothing where it is good.
fn verdict(plan: &Plan, report: &Report) -> Vec<String> {
    let mut against = report.violations.clone();
    if report.unexcused == 0 {
        against.push("every repetition would have been excused: the run proves nothing of duplicates".to_owned());
    }
    for kind in Kind::ALL.into_iter().filter(|kind| plan.faults.contains(kind)) {
        let met = report.met.get(kind.name()).copied().unwrap_or_default();
        let unmet = report.unmet.get(kind.name()).copied().unwrap_or_default();
        if met == 0 || unmet > 0 {
            against.push(format!("{} met no traffic ({unmet} times): it proves nothing", kind.name()));
        }
    }
    if plan.faults.is_empty() {
        against.push("no fault was asked for: the run proves nothing".to_owned());
    }
    if report.splits == 0 {
        against.push("no filter of a watch was changed".to_owned());
    }
    if report.unknown > 0 {
        against.push(format!("of {} publish calls the outcome stayed unknown", report.unknown));
    }
    let wanted = plan.faults.iter().filter(|kind| matches!(kind, Kind::KillReplica | Kind::KillPostgres)).count();
    if report.kills < u64::try_from(wanted).unwrap_or(u64::MAX) {
        against.push(format!("{} kills were made, {wanted} were planned", report.kills));
    }
    against
}

/// Looks until the answer is `Ok`; `Err` carries the state that the error then tells.
async fn until<T, S, F, R>(what: &str, patience: Duration, mut look: F) -> anyhow::Result<T>
where
    S: Debug,
    F: FnMut() -> R,
    R: Future<Output = Result<T, S>>,
{
    let deadline = tokio::time::Instant::now() + patience;
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match look().await {
            Ok(value) => return Ok(value),
            Err(state) if tokio::time::Instant::now() >= deadline => {
                bail!("{what}: not so within {} s; the last state was {state:?}", patience.as_secs())
            }
            Err(_) => {}
        }
    }
}
