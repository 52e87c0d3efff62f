//! T4, T5 and T11: from a publish to a webhook's receipt, how many of them a second, and what each costs Postgres.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::time::sleep;

use super::Bench;
use super::load::{Done, closed, float, paced, per_second, percentile_ms};
use super::publish::{BATCH, EVENT_TYPE, next_seq, publish_batch, publishes};
use super::report::{Figure, Target};
use super::service::{PAYLOAD_BYTES, declare, event, reader, subscribe};
use super::sink::Sink;
use crate::cli::client::{InternalClient, call};
use crate::cli::error::CliError;

/// Requests of the bare client that are under way at the same time.
const IN_FLIGHT: usize = 64;
/// Events that may be ahead of their deliveries where deliveries set the pace.
const AHEAD: u64 = 1_000;
/// A filter that every event of the bench passes.
const EVERY: &str = "data.amount > 0 && event.subject == \"order\"";
/// A figure published for a peer on a machine of this size, milliseconds; it is not measured here.
const SVIX_P50_MS: f64 = 2.6;

/// An event type with its webhooks, and the receiver that they call.
#[derive(Debug)]
pub struct Hooks {
    /// What to publish.
    pub event_type: String,
    /// The receiver.
    pub sink: Sink,
    /// Webhooks that each event fires.
    pub listeners: u64,
}

impl Hooks {
    /// Declares the type and subscribes so many webhooks to it.
    pub async fn set(bench: &Bench, name: &str, listeners: u64) -> Result<Self, CliError> {
        let event_type = format!("CUSTOM_bench.{name}");
        let sink = Sink::start().await?;
        let client = reader(&bench.service.access).await?;
        declare(&client, &event_type).await?;
        for number in 0..listeners {
            let url = sink.url(&format!("/{number}"));
            subscribe(&client, &bench.service.access, &event_type, url, EVERY).await?;
        }
        Ok(Self { event_type, sink, listeners })
    }

    /// Publishes so many events in batches, held back by their deliveries, and waits until all have arrived.
    pub async fn run_batches(&self, publisher: &InternalClient, events: u64) -> Result<Duration, CliError> {
        let (before, started) = (self.sink.received(), Instant::now());
        let mut published = 0;
        while published < events {
            published += publish_batch(publisher, &self.event_type, BATCH).await?.len() as u64;
            let behind = published.saturating_sub(AHEAD) * self.listeners;
            self.sink.wait_for(before + behind).await?;
        }
        self.sink.wait_for(before + published * self.listeners).await?;
        Ok(started.elapsed())
    }

    /// Publishes a hundred a second; gives their acknowledgements, and how long each took from there to its receipt, ascending.
    pub async fn paced(&self, publisher: &InternalClient, time: Duration) -> Result<(Done, Vec<Duration>), CliError> {
        self.sink.keep_receipts();
        let received = self.sink.received();
        let mut sent = HashMap::new();
        let acks = paced(100, time, |_| {
            let seq = next_seq();
            sent.insert(seq, Instant::now());
            let client = publisher.clone();
            let request = client.request(event(&self.event_type, seq));
            async move { call("Publish", client.publish().publish(request)).await.map(drop) }
        })
        .await?;
        self.sink.wait_for(received + acks.units).await?;
        let receipts = self.sink.take_receipts();
        let mut latencies: Vec<Duration> =
            receipts.iter().filter_map(|(seq, at)| Some(at.saturating_duration_since(*sent.get(seq)?))).collect();
        latencies.sort_unstable();
        Ok((acks, latencies))
    }
}

/// T4: at a steady hundred a second.
pub async fn latency(bench: &Bench) -> Result<Vec<Figure>, CliError> {
    let hooks = Hooks::set(bench, "latency", 1).await?;
    let publishers = bench.publishers(1).await?;
    // Connections and statements are warm before anything counts.
    hooks.run_batches(&publishers[0], 200).await?;
    let (acks, latencies) = hooks.paced(&publishers[0], bench.seconds()).await?;
    let (p50, p99) = (percentile_ms(&latencies, 50), percentile_ms(&latencies, 99));
    let name = |percent| format!("publish to webhook receipt at 100/s, p{percent}");
    let own = |percent| format!("own ack at the same pace, p{percent}");
    Ok(vec![
        Figure::new("T4a", name(50), p50, "ms").beside(own(50), acks.ms(50)).wants(Target::RatioAtMost(1.3)),
        Figure::new("T4b", name(99), p99, "ms").beside(own(99), acks.ms(99)).wants(Target::RatioAtMost(2.0)),
        Figure::new("T4c", name(50), p50, "ms")
            .beside("Svix server, p50, a published figure, not measured here", SVIX_P50_MS)
            .wants(Target::RatioAtMost(0.4)),
    ])
}

/// T5 with one listener: publishing and delivering at the same time, until everything is delivered.
pub async fn one_listener(bench: &Bench) -> Result<Vec<Figure>, CliError> {
    let hooks = Hooks::set(bench, "hook1", 1).await?;
    let publishers = bench.publishers(4).await?;
    hooks.run_batches(&publishers[0], 1_000).await?;
    let (before, started) = (hooks.sink.received(), Instant::now());
    let published = publishes(&publishers, &hooks.event_type, 64, bench.seconds()).await?.all_units;
    let published_for = started.elapsed();
    let behind = published.saturating_sub(hooks.sink.received() - before);
    hooks.sink.wait_for(before + published).await?;
    let rate = per_second(published, started.elapsed());
    let publish_rate = per_second(published, published_for);
    let backlog = float(behind) / rate.max(1.0);
    let http = bare_http(&hooks.sink, bench.seconds() / 2).await?.rate();
    Ok(vec![
        Figure::new("T5a", "publish + 1 webhook, 64 callers, until all is delivered", rate, "1/s")
            .beside("the bare HTTP client, the same body to the same receiver", http)
            .wants(Target::AtLeast(18_000.0)),
        Figure::new("T5b", "backlog of T5a when publishing ends", backlog, "s").wants(Target::AtMost(0.5)),
        Figure::new("T5c", "publish rate during T5a", publish_rate, "1/s").wants(Target::None),
    ])
}

/// T5 with ten listeners: deliveries set the pace.
pub async fn ten_listeners(bench: &Bench) -> Result<Vec<Figure>, CliError> {
    let hooks = Hooks::set(bench, "hook10", 10).await?;
    let publishers = bench.publishers(4).await?;
    hooks.run_batches(&publishers[0], 1_000).await?;
    let http = bare_http(&hooks.sink, bench.seconds() / 2).await?.rate();
    // About as many as fit into the time, and enough to be more than a start.
    let events = 2_000 + 3_000 * bench.seconds().as_secs();
    let elapsed = hooks.run_batches(&publishers[0], events).await?;
    let rate = per_second(events * hooks.listeners, elapsed);
    Ok(vec![
        Figure::new("T5d", "publish + 10 webhooks each, deliveries", rate, "1/s")
            .beside("the bare HTTP client, the same body to the same receiver", http)
            .wants(Target::RatioAtLeast(0.35)),
        Figure::new("T5e", "publish + 10 webhooks each, deliveries", rate, "1/s").wants(Target::AtLeast(40_000.0)),
    ])
}

/// T11: what an invocation costs Postgres beyond its event, by the difference of two runs; of the service, and of bare rows in the
/// storage scheme that costs the least.
pub async fn postgres_cost(bench: &Bench) -> Result<Vec<Figure>, CliError> {
    const LISTENERS: i32 = 10;
    let publishers = bench.publishers(1).await?;
    let hooks = Hooks::set(bench, "cost10", LISTENERS.unsigned_abs().into()).await?;
    let events = 2_000 * bench.seconds().as_secs().max(1);
    let invocations = float(events * hooks.listeners);
    let payload = [b'x'; PAYLOAD_BYTES];
    hooks.run_batches(&publishers[0], 1_000).await?;
    let alone = spent(bench, async {
        for _ in 0..events / BATCH {
            publish_batch(&publishers[0], EVENT_TYPE, BATCH).await?;
        }
        Ok(())
    })
    .await?;
    let with = spent(bench, async { hooks.run_batches(&publishers[0], events).await.map(drop) }).await?;
    let bare = async |listeners| bench.meter.append_outcomes(events, listeners, &payload).await.map_err(super::store);
    let bare_alone = spent(bench, bare(0)).await?;
    let bare_with = spent(bench, bare(LISTENERS)).await?;
    let scheme = "the winning storage scheme as bare rows, in the same batches: matches in the event's row, outcomes by COPY, a cursor";
    let figure = |id, name, unit, cost: fn(&Spent) -> f64| {
        Figure::new(id, name, (cost(&with) - cost(&alone)) / invocations, unit)
            .beside(scheme, (cost(&bare_with) - cost(&bare_alone)) / invocations)
            .wants(Target::RatioAtMost(2.0))
    };
    Ok(vec![
        figure("T11a", "Postgres CPU per invocation beyond its event", "us", |spent| spent.cpu.as_secs_f64() * 1e6),
        figure("T11b", "WAL per invocation beyond its event", "B", |spent| float(spent.wal_bytes)),
    ])
}

/// What work has cost Postgres.
struct Spent {
    cpu: Duration,
    wal_bytes: u64,
}

async fn spent(bench: &Bench, work: impl Future<Output = Result<(), CliError>>) -> Result<Spent, CliError> {
    let wal = async || bench.meter.wal_bytes().await.map_err(super::store);
    settled().await;
    let (cpu_before, wal_before) = (bench.service.postgres_cpu(), wal().await?);
    work.await?;
    settled().await;
    let wal_bytes = u64::try_from(wal().await? - wal_before).unwrap_or_default();
    Ok(Spent { cpu: bench.service.postgres_cpu().saturating_sub(cpu_before), wal_bytes })
}

/// Longer than any settle takes to be on disk after its delivery.
pub async fn settled() {
    sleep(Duration::from_millis(500)).await;
}

/// The same body and headers, posted by the same HTTP client that the service uses, straight to the receiver.
pub async fn bare_http(sink: &Sink, time: Duration) -> Result<Done, CliError> {
    let nothing = || CliError::Result("no delivery has arrived".to_owned());
    let (headers, body) = sink.sample().ok_or_else(nothing)?;
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Client<_, Full<Bytes>> =
        Client::builder(TokioExecutor::new()).pool_max_idle_per_host(IN_FLIGHT).build(connector);
    let uri: http::Uri = sink.url("/bare").parse().map_err(|_| nothing())?;
    let parts = Arc::new((headers, body, uri));
    closed(IN_FLIGHT, time, move |_| {
        let (client, parts) = (client.clone(), Arc::clone(&parts));
        async move {
            let failed = |cause: String| CliError::Result(format!("the bare HTTP client failed: {cause}"));
            let mut request = Request::new(Full::new(parts.1.clone()));
            *request.method_mut() = Method::POST;
            *request.uri_mut() = parts.2.clone();
            *request.headers_mut() = parts.0.clone();
            let answer = client.request(request).await.map_err(|error| failed(error.to_string()))?;
            answer.into_body().collect().await.map_err(|error| failed(error.to_string()))?;
            Ok(1)
        }
    })
    .await
}
