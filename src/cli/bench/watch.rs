//! T7 and T8: how many deliveries a second watches take, how late they are, and how much memory each holds.
//!
//! Watches read bytes, not messages, so that the client leaves the machine to the server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::uri::PathAndQuery;
use prost::Message as _;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::client::Grpc;

use super::load::{float, paced, per_second};
use super::publish::{EVENT_TYPE, next_seq, publish_batch};
use super::raw::{RawCodec, look};
use super::report::{Figure, Target};
use super::service::{PublicPort, event, publishers, reader};
use super::{Bench, echo, process};
use crate::cli::client::{self, ClientFile, InternalClient, PublicClient, call};
use crate::cli::error::CliError;
use crate::proto::public::WatchRequest;
use crate::proto::public::watch_request::Start;

/// Connections that many watches share.
const CONNECTIONS: usize = 8;
/// Watches that are opened at the same time.
const AT_ONCE: usize = 32;
/// Events that publishing may be ahead of the average watch.
const AHEAD: u64 = 2_000;
/// Watches with connections of their own that are open before the memory of any is measured.
const FIRST: usize = 50;
/// Watches whose memory is measured where connections are shared, and as many that are open before.
const FEW: usize = 1_000;
/// Services whose watches grow in number.
const SERVICES: usize = 3;
/// How long opening or draining may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Events of a paced run at most.
const PACED_EVENTS_MAX: usize = 1 << 16;

/// Many watches of one client.
#[derive(Debug)]
struct Audience {
    count: u64,
    state: Arc<State>,
    tasks: JoinSet<()>,
}

#[derive(Debug)]
struct State {
    standing: AtomicU64,
    delivered: AtomicU64,
    ended: AtomicU64,
    began: Instant,
    /// When the event of each place was sent, microseconds after `began`; 0 for not at all.
    sent_us: Vec<AtomicU64>,
    /// The position before the first of them; 0 while nothing is timed.
    base: AtomicU64,
    /// Latencies in steps of 50 us; the last one holds the rest.
    late: Vec<AtomicU32>,
}

/// Width of one step of the latencies.
const STEP_US: u64 = 50;
/// Steps of the latencies, 1 s in all.
const STEPS: usize = 20_000;

impl Audience {
    /// Opens watches that start now, a few at a time, over connections that they share, and waits until every one stands.
    ///
    /// A few, because what the calls of a thousand need while they are opened together is not what a thousand watches hold.
    async fn open(access: &ClientFile, count: usize, connections: usize) -> Result<Self, CliError> {
        let state = Arc::new(State {
            standing: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            began: Instant::now(),
            sent_us: (0..PACED_EVENTS_MAX).map(|_| AtomicU64::new(0)).collect(),
            base: AtomicU64::new(0),
            late: (0..=STEPS).map(|_| AtomicU32::new(0)).collect(),
        });
        let mut clients = Vec::new();
        for _ in 0..connections {
            clients.push(reader(access).await?);
        }
        let mut audience = Self { count: count as u64, state, tasks: JoinSet::new() };
        for number in 0..count {
            let client = clients[number % connections].clone();
            let state = Arc::clone(&audience.state);
            audience.tasks.spawn(async move {
                let _ended = follow(client, &state).await;
                state.ended.fetch_add(1, Ordering::Relaxed);
            });
            let opened = number + 1;
            if opened % AT_ONCE == 0 || opened == count {
                let stand = |state: &State| state.standing.load(Ordering::Relaxed) >= opened as u64;
                audience.wait("watches to stand", stand).await?;
            }
        }
        Ok(audience)
    }

    fn delivered(&self) -> u64 {
        self.state.delivered.load(Ordering::Relaxed)
    }

    async fn wait(&self, what: &str, done: impl Fn(&State) -> bool) -> Result<(), CliError> {
        let started = Instant::now();
        while !done(&self.state) {
            let ended = self.state.ended.load(Ordering::Relaxed);
            if ended > 0 || started.elapsed() > PATIENCE {
                return Err(CliError::Result(format!("waited in vain for {what}; {ended} watches have ended")));
            }
            sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// Publishes batches as fast as the watches take them; deliveries per second.
    async fn saturate(&self, publishers: &[InternalClient], time: Duration) -> Result<f64, CliError> {
        let base = self.delivered();
        let (mut published, started) = (0, Instant::now());
        let mut counted = None;
        while started.elapsed() < time + time / 4 {
            let behind = |state: &State| {
                let each = (state.delivered.load(Ordering::Relaxed) - base) / self.count;
                published < each + AHEAD
            };
            self.wait("deliveries", behind).await?;
            let batches = publishers.iter().map(|client| publish_batch(client, EVENT_TYPE, 100));
            for batch in futures::future::try_join_all(batches).await? {
                published += batch.len() as u64;
            }
            // The first fifth warms up.
            if counted.is_none() && started.elapsed() >= time / 4 {
                counted = Some((self.delivered(), Instant::now()));
            }
        }
        let (from, since) = counted.ok_or_else(|| CliError::Result("the run was too short".to_owned()))?;
        let rate = per_second(self.delivered() - from, since.elapsed());
        let all = base + published * self.count;
        self.wait("the last deliveries", |state| state.delivered.load(Ordering::Relaxed) >= all).await?;
        Ok(rate)
    }

    /// A percentile of what was timed, milliseconds.
    fn late_ms(&self, percent: u64) -> f64 {
        let counts: Vec<u64> = self.state.late.iter().map(|step| step.load(Ordering::Relaxed).into()).collect();
        let wanted = counts.iter().sum::<u64>() * percent / 100;
        let mut seen = 0;
        for (step, count) in counts.iter().enumerate() {
            seen += count;
            if seen > wanted {
                return float(step as u64 * STEP_US) / 1000.0;
            }
        }
        0.0
    }
}

/// Reads one watch to its end.
async fn follow(client: PublicClient, state: &State) -> Result<(), CliError> {
    let gone = |error: tonic::transport::Error| CliError::Result(error.to_string());
    let mut grpc = Grpc::new(client.channel()).max_decoding_message_size(16 << 20);
    grpc.ready().await.map_err(gone)?;
    let path = PathAndQuery::from_static("/carillon.v1.EventService/Watch");
    let mut stream = call("Watch", grpc.server_streaming(tonic::Request::new(watch_now()), path, RawCodec)).await?;
    while let Some(message) = stream.message().await.map_err(CliError::call("Watch"))? {
        let seen = look(&message);
        if seen.created {
            state.standing.fetch_add(1, Ordering::Relaxed);
        }
        if seen.events == 0 {
            continue;
        }
        state.delivered.fetch_add(seen.events, Ordering::Relaxed);
        let base = state.base.load(Ordering::Relaxed);
        if base > 0 {
            state.time(seen.last_position, seen.events, base);
        }
    }
    Ok(())
}

impl State {
    fn time(&self, last: u64, events: u64, base: u64) {
        let now = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        for position in (last + 1 - events)..=last {
            let place = position.checked_sub(base).and_then(|place| usize::try_from(place).ok());
            let sent = place.and_then(|place| self.sent_us.get(place)).map_or(0, |sent| sent.load(Ordering::Relaxed));
            if sent > 0 {
                let step = usize::try_from(now.saturating_sub(sent) / STEP_US).unwrap_or(STEPS).min(STEPS);
                self.late[step].fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn watch_now() -> Bytes {
    let request = WatchRequest { start: Some(Start::Now(true)), ..WatchRequest::default() };
    request.encode_to_vec().into()
}

/// T7a: a hundred watches, as fast as they take it.
pub async fn hundred(bench: &Bench) -> Result<Vec<Figure>, CliError> {
    let rate = plain(bench, 100).await?;
    let limit = bare_flood(bench, 100).await?;
    let figure = Figure::new("T7a", "watch fan-out, 100 watches, saturated", rate, "deliveries/s")
        .beside("tonic's bare streams, the same bytes in messages of 100 events", limit)
        .wants(Target::AtLeast(2e6));
    Ok(vec![figure])
}

/// T7b and T7c: a thousand watches, and the same over TLS.
pub async fn thousand(bench: &Bench) -> Result<Vec<Figure>, CliError> {
    let rate = plain(bench, 1_000).await?;
    let limit = bare_flood(bench, 1_000).await?;
    let mut figures = vec![
        Figure::new("T7b", "watch fan-out, 1,000 watches, saturated", rate, "deliveries/s")
            .beside("tonic's bare streams, the same bytes in messages of 100 events", limit)
            .wants(Target::AtLeast(2e6)),
    ];
    let replica = bench.service.replica(PublicPort::Tls).await?;
    let publishers = publishers(&replica.access, 2).await?;
    let audience = Audience::open(&replica.access, 1_000, CONNECTIONS).await?;
    let tls = audience.saturate(&publishers, bench.seconds()).await;
    drop(audience);
    replica.running.stop().await;
    figures.push(
        Figure::new("T7c", "watch fan-out over TLS, 1,000 watches, saturated", tls?, "deliveries/s")
            .beside("the same in plain text", rate)
            .wants(Target::RatioAtLeast(0.65)),
    );
    Ok(figures)
}

/// T7d and T7e: a thousand watches, a hundred events a second.
pub async fn steady(bench: &Bench) -> Result<Vec<Figure>, CliError> {
    let publishers = bench.publishers(1).await?;
    let client = &publishers[0];
    let audience = Audience::open(&bench.service.access, 1_000, CONNECTIONS).await?;
    let first = publish_batch(client, EVENT_TYPE, 1).await?;
    let last = first.first().and_then(|published| u64::try_from(published.position).ok()).unwrap_or_default();
    let state = &audience.state;
    state.base.store(last + 1, Ordering::Relaxed);
    audience.wait("the first event", |state| state.delivered.load(Ordering::Relaxed) >= 1_000).await?;
    let (before, cpu) = (audience.delivered(), process::cpu(bench.service.pid()));
    // One publisher alone, so that the next position is known before it is answered.
    let done = paced(100, bench.seconds(), |number| {
        let place = usize::try_from(number).ok().and_then(|place| state.sent_us.get(place));
        if let Some(place) = place {
            place.store(u64::try_from(state.began.elapsed().as_micros()).unwrap_or(1), Ordering::Relaxed);
        }
        let request = client.request(event(EVENT_TYPE, next_seq()));
        async move { call("Publish", client.publish().publish(request)).await.map(drop) }
    })
    .await?;
    let all = before + done.units * audience.count;
    audience.wait("the last deliveries", |state| state.delivered.load(Ordering::Relaxed) >= all).await?;
    let cpu = process::cpu(bench.service.pid()).saturating_sub(cpu);
    let each = cpu.as_secs_f64() * 1e6 / float(done.units * audience.count).max(1.0);
    Ok(vec![
        Figure::new("T7d", "1,000 watches, 100 events/s, publish to receipt p99", audience.late_ms(99), "ms")
            .beside("p50 of the same", audience.late_ms(50))
            .wants(Target::AtMost(20.0)),
        Figure::new("T7e", "1,000 watches, 100 events/s, server CPU per delivery", each, "us")
            .wants(Target::AtMost(12.0)),
    ])
}

/// T7f: what a single watch adds to a publish.
pub async fn one(bench: &Bench) -> Result<Vec<Figure>, CliError> {
    let rate = plain(bench, 1).await?;
    Ok(vec![Figure::new("T7f", "1 watch, saturated", rate, "deliveries/s").wants(Target::None)])
}

async fn plain(bench: &Bench, watches: usize) -> Result<f64, CliError> {
    let publishers = bench.publishers(2).await?;
    let audience = Audience::open(&bench.service.access, watches, CONNECTIONS.min(watches)).await?;
    audience.saturate(&publishers, bench.seconds()).await
}

/// Bare streams that repeat a message of a hundred events' bytes; events per second.
async fn bare_flood(bench: &Bench, streams: usize) -> Result<f64, CliError> {
    const EVENTS: usize = 100;
    // What one event is on the wire, by the size of its publish and of its place.
    let message = Bytes::from(vec![0; EVENTS * (event(EVENT_TYPE, 0).encoded_len() + 60)]);
    let mut channels = Vec::new();
    for _ in 0..CONNECTIONS.min(streams) {
        channels.push(client::connect(&bench.echo.plain, None, None).await?);
    }
    let read = Arc::new(AtomicU64::new(0));
    // Dropped together at the end: a stream that is open and not read would hold back the others of its connection.
    let mut readers = JoinSet::new();
    for number in 0..streams {
        let mut grpc = Grpc::new(channels[number % channels.len()].clone());
        let (message, read) = (message.clone(), Arc::clone(&read));
        readers.spawn(async move {
            grpc.ready().await.map_err(|error| CliError::Result(error.to_string()))?;
            let path = PathAndQuery::from_static(echo::FLOOD);
            let opened = grpc.server_streaming(tonic::Request::new(message), path, RawCodec);
            let mut stream = call("Flood", opened).await?;
            while stream.message().await.map_err(CliError::call("Flood"))?.is_some() {
                read.fetch_add(EVENTS as u64, Ordering::Relaxed);
            }
            Ok::<_, CliError>(())
        });
    }
    sleep(bench.seconds() / 4).await;
    let (from, since) = (read.load(Ordering::Relaxed), Instant::now());
    sleep(bench.seconds() / 2).await;
    Ok(per_second(read.load(Ordering::Relaxed) - from, since.elapsed()))
}

/// T8a and T8b: memory of a watch that has nothing to do, each in a service whose memory nothing else has used before.
pub async fn idle(bench: &Bench) -> Result<Vec<Figure>, CliError> {
    let own = bench.weighed(own_memory).await?;
    let (shared, ..) = bench.weighed(few_shared).await?;
    let name = "memory of an idle watch on a shared connection";
    Ok(vec![own, Figure::new("T8b", name, shared, "KB").wants(Target::AtMost(10.0).where_seen(shared))])
}

async fn own_memory(bench: &Bench) -> Result<Figure, CliError> {
    const OWN: usize = 500;
    let bare_before = process::memory(bench.echo.running.pid);
    let mut bare = Vec::new();
    for _ in 0..OWN {
        let channel = client::connect(&bench.echo.plain, None, None).await?;
        let mut grpc = Grpc::new(channel);
        grpc.ready().await.map_err(|error| CliError::Result(error.to_string()))?;
        let path = PathAndQuery::from_static(echo::IDLE);
        let silent = tonic::Request::new(Bytes::new());
        let stream = call("Idle", grpc.server_streaming(silent, path, RawCodec)).await?;
        bare.push((grpc, stream));
    }
    let bare_each = per_watch(bare_before, process::memory(bench.echo.running.pid), OWN);
    drop(bare);

    // What the first watches of a tenant need is not what each further one needs.
    let _first = Audience::open(&bench.service.access, FIRST, FIRST).await?;
    let before = process::memory(bench.service.pid());
    let _own = Audience::open(&bench.service.access, OWN, OWN).await?;
    let each = per_watch(before, process::memory(bench.service.pid()), OWN);
    Ok(Figure::new("T8a", "memory of an idle watch with its own connection", each, "KB")
        .beside("tonic's bare idle stream with its own connection", bare_each)
        .wants(Target::RatioAtMost(1.3).where_seen(each)))
}

/// The memory of each of [`FEW`] idle watches that share connections; with them, and those that were there first.
async fn few_shared(bench: &Bench) -> Result<(f64, Audience, Audience), CliError> {
    // The first ones use what the start has left free, and what calls need while they are opened: the memory does not grow with them.
    let first = Audience::open(&bench.service.access, FEW, CONNECTIONS).await?;
    let before = process::memory(bench.service.pid());
    let few = Audience::open(&bench.service.access, FEW, CONNECTIONS).await?;
    Ok((per_watch(before, process::memory(bench.service.pid()), FEW), first, few))
}

/// T12f: memory of an idle watch among many, in services of their own.
pub async fn growing(bench: &Bench) -> Result<Vec<Figure>, CliError> {
    /// As many as the target speaks of.
    const MANY: u64 = 10_000;
    let all = bench.args.watches;
    let mut turns = Vec::new();
    for _ in 0..SERVICES {
        turns.push(bench.weighed(growing_memory).await?);
    }
    let name = format!("memory of each further idle watch, up to {all}");
    let figure = Figure::in_turns("T12f", name, "KB", "each of the second 1,000", &turns);
    let seen = figure.value.unwrap_or_default();
    Ok(vec![figure.wants(Target::RatioAtMost(1.1).where_covered(all.into(), MANY).where_seen(seen))])
}

/// The memory of each of many idle watches, and of each of those before them.
async fn growing_memory(bench: &Bench) -> Result<(f64, f64), CliError> {
    /// Watches of one connection, few or many: what a connection costs is then in both figures alike.
    const EACH: usize = FEW / CONNECTIONS;
    // All together as many as a tenant may have.
    let many = usize::try_from(bench.args.watches).unwrap_or_default().saturating_sub(2 * FEW);
    let (few_each, _first, _few) = few_shared(bench).await?;
    let before = process::memory(bench.service.pid());
    let _many = Audience::open(&bench.service.access, many, many.div_ceil(EACH)).await?;
    Ok((per_watch(before, process::memory(bench.service.pid()), many), few_each))
}

/// T8c: memory of a watch whose reader takes nothing while much is published, in a service of its own too.
pub async fn stalled(bench: &Bench) -> Result<Vec<Figure>, CliError> {
    bench.weighed(stalled_memory).await
}

async fn stalled_memory(bench: &Bench) -> Result<Vec<Figure>, CliError> {
    /// So many that what they hold is more than the pages that publishing leaves behind.
    const STALLED: usize = 400;
    const BATCHES: u64 = 300;
    let publishers = bench.publishers(1).await?;
    let publish = async || -> Result<(), CliError> {
        for _ in 0..BATCHES {
            publish_batch(&publishers[0], EVENT_TYPE, 100).await?;
        }
        Ok(())
    };
    // One reader that keeps up fills the tenant's ring before anything counts.
    let reader_beside = Audience::open(&bench.service.access, 1, 1).await?;
    publish().await?;
    let before = process::memory(bench.service.pid());
    let mut stalled = Vec::new();
    for _ in 0..STALLED {
        let mut grpc = Grpc::new(reader(&bench.service.access).await?.channel());
        grpc.ready().await.map_err(|error| CliError::Result(error.to_string()))?;
        let path = PathAndQuery::from_static("/carillon.v1.EventService/Watch");
        let opened = grpc.server_streaming(tonic::Request::new(watch_now()), path, RawCodec);
        let mut stream = call("Watch", opened).await?;
        let first = timeout(PATIENCE, stream.message()).await;
        if !matches!(first, Ok(Ok(Some(_)))) {
            return Err(CliError::Result("a watch did not begin".to_owned()));
        }
        stalled.push((grpc, stream));
    }
    publish().await?;
    let each = per_watch(before, process::memory(bench.service.pid()), STALLED);
    drop((stalled, reader_beside));
    let target = Target::AtMost(1_000.0).where_seen(each);
    Ok(vec![Figure::new("T8c", "memory of a stalled watch", each, "KB").wants(target)])
}

/// Kilobytes for each of so many.
fn per_watch(before: u64, after: u64, watches: usize) -> f64 {
    float(after.saturating_sub(before)) / 1000.0 / float(watches as u64)
}
