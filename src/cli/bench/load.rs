//! Load: callers that each wait for their answer, and a paced caller; with latencies as sorted lists; and how far it is.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::cli::error::CliError;
use crate::cli::output::{note, progress};

/// What runs before the time that counts, so that connections, caches and statements are warm.
const WARM_UP: Duration = Duration::from_millis(400);

/// What a run did in the time that counts.
#[derive(Debug, Default, Clone)]
pub struct Done {
    /// Units of work in the time that counts.
    pub units: u64,
    /// Units of work in all, warming up included.
    pub all_units: u64,
    /// The time that counts.
    pub elapsed: Duration,
    /// One per call, ascending.
    pub latencies: Vec<Duration>,
}

impl Done {
    /// Units per second.
    pub fn rate(&self) -> f64 {
        per_second(self.units, self.elapsed)
    }

    /// A percentile in milliseconds.
    pub fn ms(&self, percent: usize) -> f64 {
        percentile_ms(&self.latencies, percent)
    }
}

/// How far long work is, on standard error: a bar on a terminal, else a line for every tenth.
#[derive(Debug)]
pub struct Steps {
    bar: ProgressBar,
    what: &'static str,
    told: AtomicU64,
}

impl Steps {
    /// Begins work of so many.
    pub fn new(what: &'static str, of: u64) -> Self {
        Self { bar: progress(of, what), what, told: AtomicU64::new(0) }
    }

    /// So many are done by now.
    pub fn reached(&self, done: u64) {
        self.bar.set_position(done);
        let of = self.bar.length().unwrap_or_default().max(1);
        let tenth = done * 10 / of;
        if self.bar.is_hidden() && self.told.fetch_max(tenth, Ordering::Relaxed) < tenth {
            note(&format!("  {done} of {of} {}", self.what));
        }
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Runs callers that each call again as soon as they have their answer.
///
/// *Shape*: `call` gets the caller's number and answers with the units of work it did.
/// *Errors*: the first call that fails.
pub async fn closed<C, F>(callers: usize, time: Duration, call: C) -> Result<Done, CliError>
where
    C: Fn(usize) -> F + Clone + Send + 'static,
    F: Future<Output = Result<u64, CliError>> + Send,
{
    let counts_from = Instant::now() + WARM_UP;
    let end = counts_from + time;
    let mut tasks = JoinSet::new();
    for caller in 0..callers {
        let call = call.clone();
        tasks.spawn(async move {
            let mut done = Done::default();
            loop {
                let started = Instant::now();
                if started >= end {
                    return Ok(done);
                }
                let units = call(caller).await?;
                let ended = Instant::now();
                done.all_units += units;
                if started >= counts_from && ended <= end {
                    done.units += units;
                    done.latencies.push(ended - started);
                }
            }
        });
    }
    let mut all = Done { elapsed: time, ..Done::default() };
    while let Some(ended) = tasks.join_next().await {
        let done: Done = ended.unwrap_or_else(|_| Err(CliError::Result("a caller has panicked".to_owned())))?;
        all.units += done.units;
        all.all_units += done.all_units;
        all.latencies.extend(done.latencies);
    }
    all.latencies.sort_unstable();
    Ok(all)
}

/// Calls at a steady pace, each call when the one before is answered and its tick is there.
///
/// *Shape*: `call` gets the call's number.
pub async fn paced<C, F>(per_second: u32, time: Duration, mut call: C) -> Result<Done, CliError>
where
    C: FnMut(u64) -> F,
    F: Future<Output = Result<(), CliError>>,
{
    let mut ticks = interval(Duration::from_secs(1) / per_second.max(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let started = Instant::now();
    let mut done = Done::default();
    while started.elapsed() < time {
        ticks.tick().await;
        let sent = Instant::now();
        call(done.units).await?;
        done.latencies.push(sent.elapsed());
        done.units += 1;
    }
    done.elapsed = started.elapsed();
    done.latencies.sort_unstable();
    Ok(done)
}

/// A percentile of an ascending list, in milliseconds; 0 of an empty one.
pub fn percentile_ms(sorted: &[Duration], percent: usize) -> f64 {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(0.0, |latency| latency.as_secs_f64() * 1000.0)
}

/// The middle value of a few.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// A rate.
pub fn per_second(units: u64, elapsed: Duration) -> f64 {
    float(units) / elapsed.as_secs_f64().max(f64::EPSILON)
}

/// A count as a number to reckon with.
#[expect(clippy::cast_precision_loss, reason = "figures are read to three digits")]
pub fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_few_values_are_among_them() {
        let ms = |values: &[u64]| values.iter().map(|ms| Duration::from_millis(*ms)).collect::<Vec<_>>();
        assert!((percentile_ms(&ms(&[1, 2, 3, 4]), 50) - 3.0).abs() < 1e-9);
        assert!((percentile_ms(&ms(&[7]), 99) - 7.0).abs() < 1e-9);
        assert!(percentile_ms(&[], 50).abs() < 1e-9);
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
    }
}
