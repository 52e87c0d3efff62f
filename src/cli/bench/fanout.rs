//! T5f to T5k: what one event is that fires 1, 10 or 100 webhooks: deliveries a second, and how long until the last of them has it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::Bench;
use super::load::{float, paced, per_second, percentile_ms};
use super::publish::next_seq;
use super::report::{Figure, Target};
use super::service::event;
use super::webhook::{Hooks, bare_http};
use crate::cli::client::{InternalClient, call};
use crate::cli::error::CliError;

/// How many webhooks one event fires, with the ids of its rate and of its latency.
const SIZES: [(u64, &str, &str); 3] = [(1, "T5f", "T5i"), (10, "T5g", "T5j"), (100, "T5h", "T5k")];
/// Deliveries that a second of a run is planned for.
const RATE: u64 = 30_000;
/// Events a second while latency is measured, so that what came before is over.
const PACE: u32 = 10;

/// Every size, the first of them being what the others' latency is beside.
pub async fn listeners(bench: &Bench) -> Result<Vec<Figure>, CliError> {
    let publisher = bench.publishers(1).await?.remove(0);
    let (mut rates, mut latencies, mut alone) = (Vec::new(), Vec::new(), 0.0);
    for (listeners, rate_id, latency_id) in SIZES {
        let hooks = Hooks::set(bench, &format!("fan{listeners}"), listeners).await?;
        hooks.run_batches(&publisher, 200).await?;
        let http = bare_http(&hooks.sink, bench.seconds() / 2).await?.rate();
        // Whole batches, and more than a start.
        let events = (RATE * bench.seconds().as_secs() / listeners / 100).max(2) * 100;
        let elapsed = hooks.run_batches(&publisher, events).await?;
        let rate = Figure::new(
            rate_id,
            format!("one event to {listeners} webhook(s), deliveries"),
            per_second(events * listeners, elapsed),
            "1/s",
        )
        .beside("the bare HTTP client, the same body to the same receiver", http);
        // The target is for ten listeners.
        rates.push(rate.wants(if listeners == 10 { Target::RatioAtLeast(0.35) } else { Target::None }));
        let p50 = percentile_ms(&last_receipts(&hooks, &publisher, bench.seconds()).await?, 50);
        alone = if listeners == 1 { p50 } else { alone };
        latencies.push(
            Figure::new(
                latency_id,
                format!("publish to the last of {listeners} receipt(s), {PACE} events/s, p50"),
                p50,
                "ms",
            )
            .beside("to the only one of 1", alone)
            .wants(Target::None),
        );
    }
    rates.extend(latencies);
    Ok(rates)
}

/// From each publish to the last of its receipts, ascending.
async fn last_receipts(hooks: &Hooks, publisher: &InternalClient, time: Duration) -> Result<Vec<Duration>, CliError> {
    hooks.sink.keep_receipts();
    let received = hooks.sink.received();
    let mut sent = HashMap::new();
    let done = paced(PACE, time, |_| {
        let seq = next_seq();
        sent.insert(seq, (Instant::now(), 0, Duration::ZERO));
        let request = publisher.request(event(&hooks.event_type, seq));
        async move { call("Publish", publisher.publish().publish(request)).await.map(drop) }
    })
    .await?;
    hooks.sink.wait_for(received + done.units * hooks.listeners).await?;
    for (seq, at) in hooks.sink.take_receipts() {
        if let Some((from, receipts, last)) = sent.get_mut(&seq) {
            *receipts += 1;
            *last = at.saturating_duration_since(*from).max(*last);
        }
    }
    let short = sent.values().filter(|(_, receipts, _)| *receipts < hooks.listeners).count();
    if short > 0 {
        return Err(CliError::Result(format!("{short} of {} events did not reach every webhook", float(done.units))));
    }
    let mut latencies: Vec<Duration> = sent.into_values().map(|(.., last)| last).collect();
    latencies.sort_unstable();
    Ok(latencies)
}
