//! T4d and T4e: how much longer a tenant's deliveries take beside another tenant that publishes ten times as much to receivers that hang;
//! T4f: how much of that is its publishing alone, which fires nothing.
//!
//! In turns, alone, beside its publishing and beside it, so that a machine whose speed drifts moves both. Beside it means while its attempts end by their timeout,
//! are recorded and made again: what it has in flight only fills the service once, and costs nothing more from then on.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::Bench;
use super::load::{paced, percentile_ms};
use super::publish::publish_batch;
use super::report::{Figure, Target};
use super::service::{self, declare, policy, reader, subscribe_with};
use super::sink::Sink;
use super::webhook::Hooks;
use crate::cli::client::{InternalClient, PublicClient, call};
use crate::cli::error::CliError;
use crate::proto::public::{
    DeliveryPolicy, DisableSubscriptionRequest, EnableSubscriptionRequest, InvocationState, ListInvocationsRequest,
};

const NOISY_TYPE: &str = "CUSTOM_bench.noisy";
/// Webhooks of the noisy tenant, each with more in flight than it ever gets back. Each event fires one of them: what the tenant has to
/// deliver is ten times what the quiet one has.
const NOISY_LISTENERS: usize = 4;
/// Turns alone and beside it: with the usual time for a figure, 2,000 deliveries of each in all.
const TURNS: usize = 5;
/// How long an attempt hangs: longer than it takes to count as slow, and so short that some end at any time.
const TIMEOUT: Duration = Duration::from_millis(1_200);
/// Until the noisy tenant has everything in flight that it may have, and the first attempts have ended.
const WARM_UP: Duration = Duration::from_secs(2);
/// How long may pass until nothing of the noisy tenant waits any more.
const PATIENCE: Duration = Duration::from_secs(30);

/// T4d to T4f: the same pace alone, and beside the noisy tenant.
pub async fn neighbours(bench: &Bench) -> Result<Vec<Figure>, CliError> {
    let hooks = Hooks::set(bench, "quiet", 1).await?;
    let quiet = bench.publishers(1).await?;
    // Connections and statements are warm before anything counts.
    hooks.run_batches(&quiet[0], 200).await?;
    let noisy = Noisy::set(bench).await?;
    noisy.stop().await?;
    let time = bench.seconds() * 4 / 5;
    let (mut p50, mut p99, mut published_p99) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let (_, alone) = hooks.paced(&quiet[0], time).await?;
        let (published, paced) = tokio::join!(noisy.publish(time), hooks.paced(&quiet[0], time));
        let ((), (_, published)) = (published?, paced?);
        noisy.start().await?;
        let beside = async {
            sleep(WARM_UP).await;
            let begun = noisy.sink.hung();
            let (_, beside) = hooks.paced(&quiet[0], time).await?;
            Ok::<_, CliError>((beside, noisy.sink.hung() - begun))
        };
        let (fired, measured) = tokio::join!(noisy.publish(WARM_UP + time), beside);
        fired?;
        noisy.stop().await?;
        let (beside, attempts) = measured?;
        if attempts == 0 {
            return Err(CliError::Result("no attempt of the noisy tenant has begun meanwhile".to_owned()));
        }
        p50.push((percentile_ms(&beside, 50), percentile_ms(&alone, 50)));
        p99.push((percentile_ms(&beside, 99), percentile_ms(&alone, 99)));
        published_p99.push((percentile_ms(&published, 99), percentile_ms(&alone, 99)));
    }
    let figure = |id, whose: &str, percent, turns: &[(f64, f64)]| {
        let name = format!("publish to webhook receipt at 100/s beside a tenant at 1,000/s {whose}, p{percent}");
        Figure::in_turns(id, name, "ms", format!("alone, p{percent}"), turns)
    };
    let (hanging, none) = ("whose receivers hang", "that has no receivers");
    Ok(vec![
        figure("T4d", hanging, 99, &p99).wants(Target::RatioAtMost(2.0)),
        figure("T4e", hanging, 50, &p50).wants(Target::None),
        figure("T4f", none, 99, &published_p99).wants(Target::None),
    ])
}

/// The noisy tenant: events by the thousand, and receivers that never answer.
struct Noisy {
    client: PublicClient,
    publisher: InternalClient,
    sink: Sink,
    subscriptions: Vec<String>,
}

impl Noisy {
    async fn set(bench: &Bench) -> Result<Self, CliError> {
        let access = bench.service.another_tenant("noisy").await?;
        let (client, publisher) = (reader(&access).await?, service::publishers(&access, 1).await?.remove(0));
        let sink = Sink::start().await?;
        sink.hang();
        declare(&client, NOISY_TYPE).await?;
        let mut subscriptions = Vec::new();
        for number in 0..NOISY_LISTENERS {
            let (url, share) = (sink.url(&format!("/{number}")), format!("data.seq % {NOISY_LISTENERS} == {number}"));
            let hasty = DeliveryPolicy { timeout: Some(TIMEOUT.into()), ..policy() };
            subscriptions.push(subscribe_with(&client, &access, NOISY_TYPE, url, &share, hasty).await?);
        }
        Ok(Self { client, publisher, sink, subscriptions })
    }

    /// A hundred batches of ten a second: ten times the quiet one's pace, as evenly.
    async fn publish(&self, time: Duration) -> Result<(), CliError> {
        paced(100, time, |_| async { publish_batch(&self.publisher, NOISY_TYPE, 10).await.map(drop) }).await.map(drop)
    }

    async fn start(&self) -> Result<(), CliError> {
        for id in &self.subscriptions {
            let request = EnableSubscriptionRequest { subscription_id: id.clone(), ..Default::default() };
            call("EnableSubscription", self.client.events().enable_subscription(self.client.request(request))).await?;
        }
        Ok(())
    }

    /// Cancels all that waits, and waits until nothing is left of it, so that whatever is measured next is measured alone.
    async fn stop(&self) -> Result<(), CliError> {
        for id in &self.subscriptions {
            let request = DisableSubscriptionRequest { subscription_id: id.clone(), ..Default::default() };
            call("DisableSubscription", self.client.events().disable_subscription(self.client.request(request)))
                .await?;
        }
        let stopped = Instant::now();
        // Attempts under way go on until their timeout.
        sleep(TIMEOUT).await;
        let states = [InvocationState::Pending, InvocationState::Waiting].map(i32::from).to_vec();
        let request = ListInvocationsRequest { page_size: 1, states, ..Default::default() };
        while stopped.elapsed() < PATIENCE {
            let list = self.client.request(request.clone());
            let left = call("ListInvocations", self.client.invocations().list_invocations(list)).await?;
            if left.invocations.is_empty() {
                return Ok(());
            }
            sleep(Duration::from_millis(50)).await;
        }
        Err(CliError::Result("the noisy tenant still has something to deliver".to_owned()))
    }
}
