//! T12 and T13: what a log that grows, many subscriptions and many deliveries change.
//!
//! Each figure has a service of its own, since its log's size is what counts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::proto::Timestamp;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::Bench;
use super::load::{Steps, closed, float, median, per_second};
use super::publish::{EVENT_TYPE, publish_batch, publishes};
use super::report::{Figure, Target};
use super::service::{declare, reader, subscribe};
use super::webhook::Hooks;
use crate::cli::client::{InternalClient, PublicClient, call};
use crate::cli::error::CliError;
use crate::clock;
use crate::proto::public::{GetEventRequest, ListEventsRequest};

/// The size that the grown log is measured beside.
const SMALL: u64 = 10_000;
/// Events of one page.
const PAGE: i32 = 100;
/// Callers that read or fill at the same time.
const CALLERS: usize = 4;
/// Places of the log that random reads choose from.
const PLACES: usize = 500;
/// Subscriptions to other event types that many are measured beside.
const FEW: usize = 10;
/// Invocations of T13 at most.
const INVOCATIONS_MAX: u64 = 1_000_000;
/// Longer than Postgres keeps statistics to itself: an idle connection reports after at most 10 s.
const STATISTICS: Duration = Duration::from_secs(12);

/// A place in the log.
#[derive(Debug, Clone)]
struct Place {
    event_id: String,
    commit_time: Option<Timestamp>,
}

/// Rates at one size of the log, per second.
#[derive(Debug, Clone, Copy)]
struct Rates {
    insert: f64,
    tail: f64,
    by_id: f64,
    page: f64,
}

/// T12a to T12d: a small log beside a grown one.
pub async fn log(bench: &Bench) -> Result<Vec<Figure>, CliError> {
    let fresh = bench.fresh().await?;
    let measured = grow(&fresh, bench.args.events).await;
    fresh.stop().await?;
    let (small, grown) = measured?;
    let events = bench.args.events;
    let figure = |id, what: &str, small, grown, wanted| {
        Figure::new(id, format!("{what} at {events} events"), grown, "1/s")
            .beside(format!("the same at {SMALL}"), small)
            .wants(Target::RatioAtLeast(wanted))
    };
    Ok(vec![
        figure("T12a", "insert", small.insert, grown.insert, 0.85),
        figure("T12b", "tail read", small.tail, grown.tail, 0.85),
        figure("T12c", "read by id", small.by_id, grown.by_id, 0.85),
        figure("T12d", "random page", small.page, grown.page, 0.75),
    ])
}

async fn grow(bench: &Bench, events: u64) -> Result<(Rates, Rates), CliError> {
    let publishers = bench.publishers(CALLERS).await?;
    let client = reader(&bench.service.access).await?;
    let time = bench.seconds() / 2;
    let window = (events / 20).min(100_000);
    // Statements are prepared and caches are warm before the small log counts.
    let (mut places, _) = fill(&publishers, SMALL).await?;
    let (more, insert) = fill(&publishers, window).await?;
    let mut small = reads(&client, &places, time).await?;
    small.insert = insert;
    places.extend(more);
    let rest = events.saturating_sub(SMALL + 2 * window);
    let filling = Steps::new("events", rest);
    let mut filled = 0;
    while filled < rest {
        // Places enough for random reads, whatever the size.
        let part = (rest / 20).max(window).min(rest - filled);
        places.extend(fill(&publishers, part).await?.0);
        filled += part;
        filling.reached(filled);
    }
    drop(filling);
    let (more, insert) = fill(&publishers, window).await?;
    places.extend(more);
    let mut grown = reads(&client, &places, time).await?;
    grown.insert = insert;
    Ok((small, grown))
}

/// Publishes batches; answers with a sample of places and the middle rate of ten parts.
async fn fill(publishers: &[InternalClient], events: u64) -> Result<(Vec<Place>, f64), CliError> {
    const PARTS: u64 = 10;
    let (mut places, mut rates) = (Vec::new(), Vec::new());
    let batches = (events / 100 / PARTS / CALLERS as u64).max(1);
    for _ in 0..PARTS {
        let started = Instant::now();
        let callers = publishers.iter().map(async |client| -> Result<Vec<Place>, CliError> {
            let mut places = Vec::new();
            for _ in 0..batches {
                let published = publish_batch(client, EVENT_TYPE, 100).await?;
                let sample = published.into_iter().next();
                places.extend(sample.map(|one| Place { event_id: one.event_id, commit_time: one.commit_time }));
            }
            Ok(places)
        });
        places.extend(futures::future::try_join_all(callers).await?.into_iter().flatten());
        rates.push(per_second(batches * 100 * publishers.len() as u64, started.elapsed()));
    }
    Ok((places, median(rates)))
}

async fn reads(client: &PublicClient, places: &[Place], time: Duration) -> Result<Rates, CliError> {
    // Spread over the whole log, in an order that has nothing to do with it.
    let mut chosen: Vec<(f64, &Place)> = places.iter().map(|place| (clock::jitter(), place)).collect();
    chosen.sort_by(|a, b| a.0.total_cmp(&b.0));
    chosen.truncate(PLACES);
    let mut cursors = Vec::new();
    for (_, place) in &chosen {
        cursors.push(page(client, String::new(), place.commit_time, 1).await?);
    }
    let ids: Arc<[String]> = chosen.iter().map(|(_, place)| place.event_id.clone()).collect();
    let newest = places.last().and_then(|place| place.commit_time);
    let tail: Arc<[String]> = Arc::from([page(client, String::new(), newest, 1).await?]);
    let by_id = {
        let client = client.clone();
        let next = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        closed(CALLERS, time, move |_| {
            let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % ids.len();
            let (client, event_id) = (client.clone(), ids[at].clone());
            async move {
                let request = client.request(GetEventRequest { event_id });
                call("GetEvent", client.events().get_event(request)).await.map(|_| 1)
            }
        })
        .await?
        .rate()
    };
    let tail = pages(client, tail, time).await?;
    let page = pages(client, cursors.into(), time).await?;
    Ok(Rates { insert: 0.0, tail, by_id, page })
}

async fn pages(client: &PublicClient, cursors: Arc<[String]>, time: Duration) -> Result<f64, CliError> {
    let client = client.clone();
    let next = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let done = closed(CALLERS, time, move |_| {
        let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % cursors.len();
        let (client, cursor) = (client.clone(), cursors[at].clone());
        async move { page(&client, cursor, None, PAGE).await.map(|_| 1) }
    });
    Ok(done.await?.rate())
}

/// Reads one page; answers with the cursor behind it.
async fn page(
    client: &PublicClient,
    cursor: String,
    start_time: Option<Timestamp>,
    page_size: i32,
) -> Result<String, CliError> {
    let request = ListEventsRequest { page_size, cursor, start_time, ..ListEventsRequest::default() };
    Ok(call("ListEvents", client.events().list_events(client.request(request))).await?.next_cursor)
}

/// T12e: publishing among many subscriptions to other event types.
pub async fn subscriptions(bench: &Bench) -> Result<Vec<Figure>, CliError> {
    let fresh = bench.fresh().await?;
    let measured = among_others(&fresh).await;
    fresh.stop().await?;
    let (few, many) = measured?;
    let name = format!("Publish, 64 callers, {} subscriptions to other types", bench.args.subscriptions);
    Ok(vec![
        Figure::new("T12e", name, many, "1/s")
            .beside(format!("the same with {FEW} of them"), few)
            .wants(Target::RatioAtLeast(0.95)),
    ])
}

async fn among_others(bench: &Bench) -> Result<(f64, f64), CliError> {
    const TYPES: usize = 100;
    let publishers = bench.publishers(CALLERS).await?;
    let client = reader(&bench.service.access).await?;
    for number in 0..TYPES {
        declare(&client, &format!("CUSTOM_bench.other{number}")).await?;
    }
    let subscribing = Steps::new("subscriptions", bench.args.subscriptions.into());
    let add = async |from: usize, to: usize| -> Result<(), CliError> {
        let mut tasks = JoinSet::new();
        for caller in 0..CALLERS {
            let (client, access) = (client.clone(), bench.service.access.clone());
            tasks.spawn(async move {
                for number in (from + caller..to).step_by(CALLERS) {
                    let event_type = format!("CUSTOM_bench.other{}", number % TYPES);
                    let url = format!("http://127.0.0.1:9/{number}");
                    subscribe(&client, &access, &event_type, url, "").await?;
                }
                Ok::<_, CliError>(())
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap_or_else(|_| Err(CliError::Result("a caller has panicked".to_owned())))?;
        }
        subscribing.reached(to as u64);
        Ok(())
    };
    let rate = async || Ok::<_, CliError>(publishes(&publishers, EVENT_TYPE, 64, bench.seconds()).await?.rate());
    let mut there = FEW;
    add(0, there).await?;
    let few = rate().await?;
    let all = usize::try_from(bench.args.subscriptions).unwrap_or(FEW);
    while there < all {
        let next = (there + 1_000).min(all);
        add(there, next).await?;
        there = next;
    }
    Ok((few, rate().await?))
}

/// T13: dead rows after many successes, and after one failure in ten.
pub async fn dead_rows(bench: &Bench) -> Result<Vec<Figure>, CliError> {
    let fresh = bench.fresh().await?;
    let measured = deliver_and_count(&fresh, bench.args.events.min(INVOCATIONS_MAX)).await;
    fresh.stop().await?;
    measured
}

async fn deliver_and_count(bench: &Bench, invocations: u64) -> Result<Vec<Figure>, CliError> {
    let publishers = bench.publishers(1).await?;
    let hooks = Hooks::set(bench, "dead", 10).await?;
    let dead = async || {
        sleep(STATISTICS).await;
        bench.meter.dead_rows().await.map_err(super::store)
    };
    let count = |rows: i64| float(u64::try_from(rows).unwrap_or_default());
    let before = dead().await?;
    hooks.run_batches(&publishers[0], invocations / hooks.listeners).await?;
    let succeeded = dead().await?;
    hooks.sink.fail_every(10);
    hooks.run_batches(&publishers[0], invocations / hooks.listeners / 10).await?;
    let retries = float(hooks.sink.failed());
    let failed = dead().await?;
    Ok(vec![
        Figure::new("T13a", format!("dead rows after {invocations} successes"), count(succeeded - before), "rows")
            .wants(Target::AtMost(1_000.0)),
        Figure::new("T13b", "dead rows after one failure in ten", count(failed - succeeded), "rows")
            .beside("retries", retries)
            .wants(Target::RatioAtMost(2.0)),
    ])
}
