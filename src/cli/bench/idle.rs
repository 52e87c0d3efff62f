//! T14: what a replica costs that has nothing to do, and how soon one is ready.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::load::{float, median};
use super::report::{Figure, Target};
use super::service::PublicPort;
use super::{Bench, process, statements};
use crate::cli::error::CliError;
use crate::store::measure::{self, Logged};

/// Until what the start has begun is over, and Postgres has told its statistics.
const SETTLE: Duration = Duration::from_secs(12);
/// How long nothing is done.
const IDLE: Duration = Duration::from_secs(60);
/// Starts of a replica.
const STARTS: usize = 3;

/// T14a to T14d.
pub async fn cost(bench: &Bench) -> Result<Vec<Figure>, CliError> {
    let fresh = bench.fresh().await?;
    let measured = measure(&fresh).await;
    fresh.stop().await?;
    measured
}

async fn measure(bench: &Bench) -> Result<Vec<Figure>, CliError> {
    let pid = bench.service.pid();
    sleep(SETTLE).await;
    let owner = bench.service.owner_url()?;
    measure::log_statements(&owner, Logged::Every).await.map_err(super::store)?;
    let (cpu, started) = (process::cpu(pid), Instant::now());
    let statements = statements::count(&owner, &bench.service.postgres_log(), IDLE).await?;
    let (cpu, elapsed) = (process::cpu(pid).saturating_sub(cpu), started.elapsed());
    measure::log_statements(&owner, Logged::None).await.map_err(super::store)?;
    let memory = process::memory(pid);

    let mut starts = Vec::new();
    for _ in 0..STARTS {
        let replica = bench.service.replica(PublicPort::Plain).await?;
        starts.push(replica.running.start.as_secs_f64());
        replica.running.stop().await;
    }
    Ok(vec![
        Figure::new("T14a", "idle replica: statements a minute", float(statements), "1/min")
            .wants(Target::AtMost(60.0)),
        Figure::new("T14b", "idle replica: share of a core", 100.0 * cpu.as_secs_f64() / elapsed.as_secs_f64(), "%")
            .wants(Target::AtMost(1.0)),
        Figure::new("T14c", "idle replica: resident memory", float(memory) / 1e6, "MB").wants(Target::AtMost(80.0)),
        Figure::new("T14d", "serve: start to ready on a migrated database", median(starts), "s")
            .wants(Target::AtMost(0.3)),
    ])
}
