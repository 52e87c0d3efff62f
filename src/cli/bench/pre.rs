//! T6: what a PRE publish costs its publisher, beside the same publisher's own acknowledgement.

use super::Bench;
use super::load::percentile_ms;
use super::publish::{EVENT_TYPE, publishes};
use super::report::{Figure, Target};
use super::service::{declare_pre, reader, subscribe};
use super::sink::Sink;
use crate::cli::error::CliError;

/// Value and limit in turns.
const ROUNDS: usize = 3;
const PRE_TYPE: &str = "CUSTOM_bench.pre";

/// T6: one caller, one local webhook that agrees.
pub async fn publish(bench: &Bench) -> Result<Vec<Figure>, CliError> {
    let sink = Sink::start().await?;
    let client = reader(&bench.service.access).await?;
    declare_pre(&client, PRE_TYPE).await?;
    subscribe(&client, &bench.service.access, PRE_TYPE, sink.url("/0"), "").await?;
    let publishers = bench.publishers(1).await?;
    let (mut value, mut limit, mut published) = (Vec::new(), Vec::new(), 0);
    for _ in 0..ROUNDS {
        limit.extend(publishes(&publishers, EVENT_TYPE, 1, bench.round(ROUNDS)).await?.latencies);
        let done = publishes(&publishers, PRE_TYPE, 1, bench.round(ROUNDS)).await?;
        published += done.units;
        value.extend(done.latencies);
    }
    // A publish that skipped its listener would be quick, and wrong. What was published before and after the time that counts
    // was asked about too.
    if sink.received() < published {
        return Err(CliError::Result(format!(
            "{published} published, but the listener was asked {} times",
            sink.received()
        )));
    }
    value.sort_unstable();
    limit.sort_unstable();
    let figure = |id, percent| {
        Figure::new(
            id,
            format!("PRE publish through one local webhook, 1 caller, p{percent}"),
            percentile_ms(&value, percent),
            "ms",
        )
        .beside(format!("own ack, 1 caller, p{percent}"), percentile_ms(&limit, percent))
    };
    Ok(vec![figure("T6a", 50).wants(Target::RatioAtMost(3.0)), figure("T6b", 99).wants(Target::None)])
}
