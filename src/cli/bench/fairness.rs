//! T4d and T4e: how much longer a tenant's deliveries take beside another tenant that publishes ten times as much to receivers that hang.

use std::time::Duration;

use tokio::time::sleep;

use super::Bench;
use super::load::{paced, percentile_ms};
use super::publish::publish_batch;
use super::report::{Figure, Target};
use super::service::{self, declare, reader, subscribe};
use super::sink::Sink;
use super::webhook::Hooks;
use crate::cli::error::CliError;

const NOISY_TYPE: &str = "CUSTOM_bench.noisy";
/// Webhooks of the noisy tenant, each with more in flight than it ever gets back. Each event fires one of them: what the tenant has to
/// deliver is ten times what the quiet one has.
const NOISY_LISTENERS: usize = 4;

/// Until the noisy tenant has everything in flight that it may have, and nothing new begins for it.
const WARM_UP: Duration = Duration::from_secs(3);

/// T4d and T4e: the same pace alone, and beside the noisy tenant.
pub async fn neighbours(bench: &Bench) -> Result<Vec<Figure>, CliError> {
    let hooks = Hooks::set(bench, "quiet", 1).await?;
    let quiet = bench.publishers(1).await?;
    // Connections and statements are warm before anything counts.
    hooks.run_batches(&quiet[0], 200).await?;
    let half = bench.seconds() / 2;
    let (_, alone) = hooks.paced(&quiet[0], half).await?;

    let access = bench.service.another_tenant("noisy").await?;
    let sink = Sink::start().await?;
    sink.hang();
    let client = reader(&access).await?;
    declare(&client, NOISY_TYPE).await?;
    for number in 0..NOISY_LISTENERS {
        let share = format!("data.seq % {NOISY_LISTENERS} == {number}");
        subscribe(&client, &access, NOISY_TYPE, sink.url(&format!("/{number}")), &share).await?;
    }
    let noisy = service::publishers(&access, 1).await?;
    // A hundred batches of ten a second: ten times the other one's pace, as evenly.
    let (noise, beside) = tokio::join!(
        paced(100, WARM_UP + half, |_| async { publish_batch(&noisy[0], NOISY_TYPE, 10).await.map(drop) }),
        async {
            sleep(WARM_UP).await;
            hooks.paced(&quiet[0], half).await
        },
    );
    let (noise, (_, beside)) = (noise?, beside?);
    if noise.units == 0 {
        return Err(CliError::Result("the noisy tenant has published nothing".to_owned()));
    }
    let figure = |id, percent| {
        Figure::new(
            id,
            format!("publish to webhook receipt at 100/s beside a tenant at 1,000/s whose receivers hang, p{percent}"),
            percentile_ms(&beside, percent),
            "ms",
        )
        .beside(format!("alone, p{percent}"), percentile_ms(&alone, percent))
    };
    Ok(vec![figure("T4d", 99).wants(Target::RatioAtMost(2.0)), figure("T4e", 50).wants(Target::None)])
}
