//! `carillon bench`: what the service does on this machine, each figure beside its limit measured in the same run.
//!
//! The service under test is a throw-away child process of this same program, so that its processor time and memory can be
//! told from the client's. A figure that cannot be measured is reported as an error, and the others go on.

pub mod echo;
mod fairness;
mod fanout;
mod growth;
mod idle;
mod load;
mod pre;
mod process;
mod publish;
mod raw;
mod report;
mod service;
mod sink;
mod statements;
mod watch;
mod webhook;

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Resource, getrlimit, setrlimit};

use self::report::{Figure, Machine, Report};
use self::service::{Echo, Pages, Service};
use super::client::InternalClient;
use super::error::CliError;
use super::output::{Output, note};
use crate::shutdown::Signals;
use crate::store::StoreError;
use crate::store::measure::Meter;

const EXAMPLES: &str = "Examples:
  carillon bench publish
  carillon bench --json
  carillon bench webhook --only T4,T5
  carillon bench growth --events 10000000 --subscriptions 10000 --watches 10000";

/// Measure a throw-away service on this machine, each figure beside its limit
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct BenchArgs {
    /// What to measure, and about how long it takes with the usual --seconds
    #[arg(value_enum, default_value_t = What::All)]
    what: What,
    /// Time for each figure
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600), value_name = "SECONDS")]
    seconds: u64,
    /// Events of the log that T12 measures beside one of 10,000; T13 makes as many invocations, up to a million. The targets of T12
    /// hold from 10,000,000 on, those of T13 from a million
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(20_000..=100_000_000), value_name = "N")]
    events: u64,
    /// Subscriptions to other event types that T12 measures beside 10; its target holds from 10,000 on
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(11..=100_000), value_name = "N")]
    subscriptions: u32,
    /// Idle watches that 2,000 grow to in T12; its target holds from 10,000 on
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(2_100..=100_000), value_name = "N")]
    watches: u32,
    /// Measure only figures whose id starts with one of these, such as T5
    #[arg(long, value_delimiter = ',', value_name = "ID")]
    only: Vec<String>,
    /// Postgres programs to use: their folder, the installation's prefix, or the server program [default: those found]
    #[arg(long, value_name = "PATH")]
    postgres: Option<PathBuf>,
}

/// Groups of figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum What {
    /// Durable publishes: T1, T2, T3; a minute
    Publish,
    /// Publishes that a listener must agree to: T6; 20 seconds
    Pre,
    /// Deliveries: T4, T5, T11; a minute
    Webhook,
    /// One event to 1, 10 and 100 subscriptions: T5f to T5k; a minute
    Fanout,
    /// One tenant beside a noisy one: T4d to T4f; a minute and a half
    Fairness,
    /// Live streams: T7, T8; two minutes
    Watch,
    /// What time brings: T12, T13, T14; eight minutes, and longer with more --events
    Growth,
    /// Everything; a quarter of an hour
    All,
}

/// What every figure needs.
#[derive(Debug)]
pub struct Bench {
    service: Service,
    echo: Echo,
    meter: Meter,
    args: BenchArgs,
    figures: Vec<Figure>,
    /// The ids of the figures of the group.
    known: Vec<String>,
}

/// Measures, and tells.
///
/// *Errors*: [`CliError::Result`] where a figure could not be measured, or none is of the ids that were asked for.
pub async fn run(args: BenchArgs, output: Output) -> Result<(), CliError> {
    raise_file_limit();
    if cfg!(debug_assertions) {
        note("this is a debug build: its figures say nothing about a release");
    }
    let mut signals = Signals::listen().map_err(CliError::Signals)?;
    let mut bench = Bench::start(&args, Pages::Usual).await?;
    let measured = tokio::select! {
        () = bench.measure(args.what) => Ok(()),
        () = signals.next() => Err(CliError::Result("ended before everything was measured".to_owned())),
    };
    let unknown = bench.unknown();
    let report = bench.end().await;
    measured?;
    report?.show(output)?;
    unknown
}

impl Bench {
    async fn start(args: &BenchArgs, pages: Pages) -> Result<Self, CliError> {
        note("starting a throw-away service");
        let service = Service::start(args.postgres.as_deref(), pages).await?;
        let echo = service.echo().await?;
        let meter = Meter::connect(&service.database_url()?).await.map_err(store)?;
        let client = service::reader(&service.access).await?;
        service::declare(&client, publish::EVENT_TYPE).await?;
        let nowhere = "http://127.0.0.1:9/".to_owned();
        service::subscribe(&client, &service.access, publish::EVENT_TYPE, nowhere, "data.amount < 0").await?;
        Ok(Self { service, echo, meter, args: args.clone(), figures: Vec::new(), known: Vec::new() })
    }

    async fn measure(&mut self, what: What) {
        let wants = |group| what == What::All || what == group;
        if wants(What::Publish) {
            self.figure(&["T1a"], "Publish, 64 callers", async |bench, id| publish::single(bench, id, 64).await).await;
            self.figure(&["T1b"], "Publish, 1 caller", async |bench, id| publish::single(bench, id, 1).await).await;
            self.figure(&["T1c"], "Publish, 256 callers", async |bench, id| publish::single(bench, id, 256).await)
                .await;
            self.figure(&["T2"], "PublishBatch", async |bench, _| publish::batches(bench).await).await;
            self.figure(&["T3a", "T3b"], "Publish ack", async |bench, _| publish::ack(bench).await).await;
        }
        if wants(What::Pre) {
            self.figure(&["T6a", "T6b"], "PRE publish", async |bench, _| pre::publish(bench).await).await;
        }
        if wants(What::Webhook) {
            self.figure(&["T4a", "T4b", "T4c"], "publish to receipt", async |bench, _| webhook::latency(bench).await)
                .await;
            self.figure(&["T5a", "T5b", "T5c"], "1 webhook", async |bench, _| webhook::one_listener(bench).await).await;
            self.figure(&["T5d", "T5e"], "10 webhooks", async |bench, _| webhook::ten_listeners(bench).await).await;
            self.figure(&["T11a", "T11b"], "cost of an invocation", async |bench, _| {
                webhook::postgres_cost(bench).await
            })
            .await;
        }
        if wants(What::Fanout) {
            self.figure(&["T5f", "T5g", "T5h", "T5i", "T5j", "T5k"], "fan-out", async |bench, _| {
                fanout::listeners(bench).await
            })
            .await;
        }
        if wants(What::Fairness) {
            self.figure(&["T4d", "T4e", "T4f"], "a noisy neighbour", async |bench, _| {
                fairness::neighbours(bench).await
            })
            .await;
        }
        if wants(What::Watch) {
            self.figure(&["T7f"], "1 watch", async |bench, _| watch::one(bench).await).await;
            self.figure(&["T7a"], "100 watches", async |bench, _| watch::hundred(bench).await).await;
            self.figure(&["T7b", "T7c"], "1,000 watches", async |bench, _| watch::thousand(bench).await).await;
            self.figure(&["T7d", "T7e"], "1,000 watches at a pace", async |bench, _| watch::steady(bench).await).await;
            self.figure(&["T8c"], "stalled watches", async |bench, _| watch::stalled(bench).await).await;
            self.figure(&["T8a", "T8b"], "idle watches", async |bench, _| watch::idle(bench).await).await;
        }
        if wants(What::Growth) {
            self.figure(&["T12a", "T12b", "T12c", "T12d"], "a growing log", async |bench, _| growth::log(bench).await)
                .await;
            self.figure(&["T12e"], "other subscriptions", async |bench, _| growth::subscriptions(bench).await).await;
            self.figure(&["T12f"], "many watches", async |bench, _| watch::growing(bench).await).await;
            self.figure(&["T13a", "T13b"], "dead rows", async |bench, _| growth::dead_rows(bench).await).await;
            self.figure(&["T14a", "T14b", "T14c", "T14d"], "idle replica", async |bench, _| idle::cost(bench).await)
                .await;
        }
    }

    /// Measures one figure, or several that come from one run, where one of them is wanted; says so on standard error.
    async fn figure(
        &mut self,
        ids: &[&str],
        name: &str,
        measure: impl AsyncFn(&Self, &str) -> Result<Vec<Figure>, CliError>,
    ) {
        self.known.extend(ids.iter().map(|id| (*id).to_owned()));
        let only = &self.args.only;
        let wanted = |id: &str| only.is_empty() || only.iter().any(|only| id.starts_with(only.as_str()));
        if !ids.iter().any(|id| wanted(id)) {
            return;
        }
        let id = ids[0];
        note(&format!("measuring {} {name}", ids.join(", ")));
        let measured = measure(self, id).await;
        match measured {
            Ok(figures) => self.figures.extend(figures.into_iter().filter(|figure| wanted(&figure.id))),
            Err(error) => {
                note(&format!("{id} failed: {error}"));
                let failed = ids.iter().filter(|id| wanted(id)).map(|id| Figure::failed(id, name, &error));
                self.figures.extend(failed);
            }
        }
    }

    /// Errors: names what was asked for and is no figure of the group.
    fn unknown(&self) -> Result<(), CliError> {
        let is_known = |only: &&String| self.known.iter().any(|id| id.starts_with(only.as_str()));
        match self.args.only.iter().find(|only| !is_known(only)) {
            None => Ok(()),
            Some(only) => {
                let known = self.known.join(", ");
                Err(CliError::Result(format!(
                    "no figure of this group has an id that starts with {only}; there are {known}"
                )))
            }
        }
    }

    /// Another service, for a figure that what was measured before would spoil.
    async fn fresh(&self) -> Result<Self, CliError> {
        Self::start(&self.args, Pages::Usual).await
    }

    /// Another service, for a figure of a few kilobytes of its memory, which nothing else has used before; ended afterwards.
    async fn weighed<T>(&self, weigh: impl AsyncFnOnce(&Self) -> Result<T, CliError>) -> Result<T, CliError> {
        let fresh = Self::start(&self.args, Pages::Small).await?;
        let weighed = if process::has_huge_pages(fresh.service.pid()) {
            Err(CliError::Result("the kernel may back the service's memory by huge pages".to_owned()))
        } else {
            weigh(&fresh).await
        };
        fresh.stop().await?;
        weighed
    }

    /// Two further services, for a figure whose limit is measured in one as its value is in the other.
    async fn fresh_pair(
        &self,
        measure: impl AsyncFnOnce(&Self, &Self) -> Result<Vec<Figure>, CliError>,
    ) -> Result<Vec<Figure>, CliError> {
        let (one, other) = (self.fresh().await?, self.fresh().await?);
        let measured = measure(&one, &other).await;
        one.stop().await?;
        other.stop().await?;
        measured
    }

    /// Ends every process.
    async fn stop(self) -> Result<Vec<Figure>, CliError> {
        let closed = self.meter.close().await.map_err(store);
        self.echo.running.stop().await;
        self.service.stop().await;
        closed.map(|()| self.figures)
    }

    /// Ends every process, and gives what was measured.
    async fn end(self) -> Result<Report, CliError> {
        let postgres = self.meter.postgres_version().await.map_err(store);
        let results = self.stop().await?;
        let machine = Machine {
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_bytes: process::machine_memory(),
            cpu: process::cpu_name(),
            kernel: process::kernel(),
            postgres: postgres?,
            carillon: env!("CARGO_PKG_VERSION"),
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
        };
        Ok(Report { machine, results })
    }

    /// The time for one figure.
    fn seconds(&self) -> Duration {
        Duration::from_secs(self.args.seconds)
    }

    /// The time for one of several turns, each of which measures a limit and a value.
    fn round(&self, rounds: usize) -> Duration {
        self.seconds() / u32::try_from(rounds).unwrap_or(1)
    }

    /// Connections to the internal port.
    async fn publishers(&self, count: usize) -> Result<Vec<InternalClient>, CliError> {
        service::publishers(&self.service.access, count).await
    }
}

/// Each connection of a client is a file, and the usual bound is low.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // What is left is then the bound; connections beyond it fail with their cause.
    let _refused = setrlimit(Resource::Nofile, limit);
}

/// A statement of the meter that failed.
#[expect(clippy::needless_pass_by_value, reason = "it is used in map_err")]
fn store(error: StoreError) -> CliError {
    CliError::Result(format!("measuring Postgres failed: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args as _, Command, FromArgMatches as _};

    #[test]
    fn a_bench_of_nothing_named_is_of_everything_wherever_its_options_stand() {
        let what = |args: &[&str]| {
            let line = [&["bench"], args].concat();
            let matches = BenchArgs::augment_args(Command::new("bench")).get_matches_from(line);
            BenchArgs::from_arg_matches(&matches).expect("its arguments").what
        };
        assert_eq!((what(&[]), what(&["--seconds", "5"])), (What::All, What::All));
        assert_eq!(what(&["--seconds", "5", "publish"]), What::Publish);
        assert_eq!(what(&["publish", "--seconds", "5"]), What::Publish);
    }
}
