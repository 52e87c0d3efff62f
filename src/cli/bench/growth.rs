//! T12 and T13: what a log that grows, many subscriptions and many deliveries change.
//!
//! What has grown is measured beside a small service that was made and is read alike, in turns, so that a machine whose speed drifts
//! moves both. A run that grows less than the targets speak of says how far it got, and is not judged.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use tokio::time::sleep;

use super::Bench;
use super::load::{Steps, closed, float, per_second};
use super::publish::{BATCH, EVENT_TYPE, ROUNDS, publish_batch, publishes};
use super::report::{Figure, Target};
use super::service::{declare, reader, subscribe};
use super::webhook::Hooks;
use crate::cli::client::{InternalClient, PublicClient, call};
use crate::cli::error::CliError;
use crate::clock;
use crate::proto::Timestamp;
use crate::proto::internal::PublishResponse;
use crate::proto::public::{GetEventRequest, ListEventsRequest};

/// The size of the log that the grown one is measured beside.
const SMALL: u64 = 10_000;
/// The size that the targets of a grown log speak of.
const GROWN: u64 = 10_000_000;
/// Events of one page.
const PAGE: i32 = 100;
/// Callers that read or fill at the same time.
const CALLERS: usize = 4;
/// Places of a log that reads choose from.
const PLACES: u64 = 500;
/// Turns of inserting.
const INSERTS: usize = 11;
/// Events of one of them.
const INSERTED: u64 = 10_000;
/// Turns of publishing among other subscriptions: what they cost is less than the machine's speed drifts from turn to turn.
const PUBLISHES: usize = 7;
/// Subscriptions to other event types that many are measured beside.
const FEW: u32 = 10;
/// As many as the target speaks of.
const MANY: u64 = 10_000;
/// Invocations of T13 at most, and as many as its targets speak of.
const INVOCATIONS_MAX: u64 = 1_000_000;
/// Longer than Postgres keeps statistics to itself: an idle connection reports after at most 10 s.
const STATISTICS: Duration = Duration::from_secs(12);

/// What was measured in turns, per second: of what has grown, and of what is small.
type Turns = Vec<(f64, f64)>;

/// T12a to T12d: a small log beside a grown one.
pub async fn log(bench: &Bench) -> Result<Vec<Figure>, CliError> {
    let measure = async |grown: &Bench, small: &Bench| {
        let small = Log::fill(small, SMALL).await?;
        let grown = Log::fill(grown, bench.args.events).await?;
        let (mut insert, mut tail, mut by_id, mut page) = (Turns::new(), Turns::new(), Turns::new(), Turns::new());
        for _ in 0..ROUNDS {
            tail.push((grown.tail().await?, small.tail().await?));
            by_id.push((grown.by_id().await?, small.by_id().await?));
            page.push((grown.page().await?, small.page().await?));
        }
        // Last, since it makes the small log a larger one.
        for _ in 0..INSERTS {
            insert.push((grown.insert().await?, small.insert().await?));
        }
        Ok(figures(grown.written, [&insert, &tail, &by_id, &page]))
    };
    bench.fresh_pair(measure).await
}

fn figures(events: u64, turns: [&Turns; 4]) -> Vec<Figure> {
    [("T12a", "insert", 0.85), ("T12b", "tail read", 0.85), ("T12c", "read by id", 0.85), ("T12d", "random page", 0.75)]
        .into_iter()
        .zip(turns)
        .map(|((id, what, wanted), turns)| {
            Figure::in_turns(id, format!("{what} at {events} events"), "1/s", format!("the same at {SMALL}"), turns)
                .wants(Target::RatioAtLeast(wanted).where_covered(events, GROWN))
        })
        .collect()
}

/// A log that was filled, with what reads and extends it.
struct Log {
    publishers: Vec<InternalClient>,
    client: PublicClient,
    /// The time of one turn.
    time: Duration,
    /// Events that were written, warming up included.
    written: u64,
    /// Ids of events spread over the whole log, in an order that has nothing to do with it.
    ids: Arc<[String]>,
    /// Cursors behind the same.
    cursors: Arc<[String]>,
    /// The cursor that the last page follows.
    tail: Arc<[String]>,
}

impl Log {
    /// Publishes so many events, and a batch beyond them.
    async fn fill(bench: &Bench, events: u64) -> Result<Self, CliError> {
        let publishers = bench.publishers(CALLERS).await?;
        let client = reader(&bench.service.access).await?;
        let filling = Steps::new("events", events);
        let (mut written, places) = publish_all(&publishers, events, |done| filling.reached(done)).await?;
        drop(filling);
        // Alone, so that what follows its first event is one page, whatever commits the others have shared.
        let last = publish_batch(&publishers[0], EVENT_TYPE, BATCH).await?;
        written += BATCH;
        let time = last.first().and_then(|first| first.commit_time);
        let tail = page(&client, String::new(), time, 1).await?;
        let mut shuffled = Vec::new();
        for place in places {
            let cursor = page(&client, String::new(), place.commit_time, place.nth).await?;
            shuffled.push((clock::jitter(), place.event_id, cursor));
        }
        shuffled.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (ids, cursors): (Vec<_>, Vec<_>) = shuffled.into_iter().map(|(_, id, cursor)| (id, cursor)).unzip();
        let (ids, cursors, time) = (ids.into(), cursors.into(), bench.round(ROUNDS));
        Ok(Self { publishers, client, time, written, ids, cursors, tail: Arc::from([tail]) })
    }

    async fn insert(&self) -> Result<f64, CliError> {
        let started = Instant::now();
        let (written, _) = publish_all(&self.publishers, INSERTED, |_| ()).await?;
        Ok(per_second(written, started.elapsed()))
    }

    async fn tail(&self) -> Result<f64, CliError> {
        self.read(&self.tail, async |client, cursor| page(&client, cursor, None, PAGE).await.map(drop)).await
    }

    async fn page(&self) -> Result<f64, CliError> {
        self.read(&self.cursors, async |client, cursor| page(&client, cursor, None, PAGE).await.map(drop)).await
    }

    async fn by_id(&self) -> Result<f64, CliError> {
        let get = async |client: PublicClient, event_id| {
            let request = client.request(GetEventRequest { event_id });
            call("GetEvent", client.events().get_event(request)).await.map(drop)
        };
        self.read(&self.ids, get).await
    }

    /// Reads one place after the other.
    async fn read<C, F>(&self, places: &Arc<[String]>, read: C) -> Result<f64, CliError>
    where
        C: Fn(PublicClient, String) -> F + Clone + Send + 'static,
        F: Future<Output = Result<(), CliError>> + Send,
    {
        let (client, places, next) = (self.client.clone(), Arc::clone(places), Arc::new(AtomicUsize::new(0)));
        let done = closed(CALLERS, self.time, move |_| {
            let at = next.fetch_add(1, Ordering::Relaxed) % places.len();
            let read = read(client.clone(), places[at].clone());
            async move { read.await.map(|()| 1) }
        });
        Ok(done.await?.rate())
    }
}

/// A place in a log: which event of its batch, from 1. The events of a batch share their commit time.
#[derive(Debug, Clone, PartialEq)]
struct Place {
    event_id: String,
    commit_time: Option<Timestamp>,
    nth: i32,
}

/// Publishes batches until so many events are written; answers with their count, and with [`PLACES`] evenly spread places.
async fn publish_all(
    publishers: &[InternalClient],
    events: u64,
    reached: impl Fn(u64),
) -> Result<(u64, Vec<Place>), CliError> {
    let begun = AtomicU64::new(0);
    let callers = publishers.iter().map(async |client| -> Result<_, CliError> {
        let (mut written, mut places) = (0, Vec::new());
        loop {
            let first = begun.fetch_add(BATCH, Ordering::Relaxed);
            if first >= events {
                return Ok((written, places));
            }
            let published = publish_batch(client, EVENT_TYPE, BATCH).await?;
            written += published.len() as u64;
            reached(first + BATCH);
            places.extend(places_of(first, events, published));
        }
    });
    let all = try_join_all(callers).await?;
    let written = all.iter().map(|(written, _)| written).sum();
    Ok((written, all.into_iter().flat_map(|(_, places)| places).collect()))
}

/// The places of a batch: every so manyth event of the whole log, whatever its size.
fn places_of(first: u64, events: u64, batch: Vec<PublishResponse>) -> impl Iterator<Item = Place> {
    let step = (events / PLACES).max(1);
    (first..)
        .zip((1..).zip(batch))
        .filter(move |(number, _)| number.is_multiple_of(step))
        .map(|(_, (nth, one))| Place { event_id: one.event_id, commit_time: one.commit_time, nth })
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
    let all = bench.args.subscriptions;
    let measure = async |many: &Bench, few: &Bench| {
        let of_few = among_others(few, FEW).await?;
        let of_many = among_others(many, all).await?;
        let mut turns = Turns::new();
        for _ in 0..PUBLISHES {
            let rate = async |bench: &Bench, publishers: &[InternalClient]| {
                publishes(publishers, EVENT_TYPE, 64, bench.round(ROUNDS)).await.map(|done| done.rate())
            };
            turns.push((rate(many, &of_many).await?, rate(few, &of_few).await?));
        }
        let name = format!("Publish, 64 callers, {all} subscriptions to other types");
        let figure = Figure::in_turns("T12e", name, "1/s", format!("the same with {FEW} of them"), &turns);
        Ok(vec![figure.wants(Target::RatioAtLeast(0.95).where_covered(all.into(), MANY))])
    };
    bench.fresh_pair(measure).await
}

/// Subscribes so many webhooks to other event types; answers with the connections to publish by.
async fn among_others(bench: &Bench, subscriptions: u32) -> Result<Vec<InternalClient>, CliError> {
    const TYPES: u32 = 100;
    let client = reader(&bench.service.access).await?;
    for number in 0..TYPES {
        declare(&client, &format!("CUSTOM_bench.other{number}")).await?;
    }
    let (subscribing, done) = (Steps::new("subscriptions", subscriptions.into()), AtomicU64::new(0));
    let (client, subscribing, done) = (&client, &subscribing, &done);
    try_join_all((0..).take(CALLERS).map(async |caller: u32| -> Result<(), CliError> {
        for number in (caller..subscriptions).step_by(CALLERS) {
            let event_type = format!("CUSTOM_bench.other{}", number % TYPES);
            let url = format!("http://127.0.0.1:9/{number}");
            subscribe(client, &bench.service.access, &event_type, url, "").await?;
            subscribing.reached(done.fetch_add(1, Ordering::Relaxed) + 1);
        }
        Ok(())
    }))
    .await?;
    bench.publishers(CALLERS).await
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
            .wants(Target::AtMost(1_000.0).where_covered(invocations, INVOCATIONS_MAX)),
        Figure::new("T13b", "dead rows after one failure in ten", count(failed - succeeded), "rows")
            .beside("retries", retries)
            .wants(Target::RatioAtMost(2.0).where_covered(invocations, INVOCATIONS_MAX)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_does_not_reach_ten_million_events_says_how_far_it_got_and_claims_no_target() {
        let turns = vec![(90.0, 100.0)];
        let of = |events| figures(events, [&turns; 4]);
        for figure in of(9_999_900) {
            assert!(figure.name.ends_with(" at 9999900 events"), "{}", figure.name);
            assert_eq!((figure.ratio, figure.target.as_str(), figure.met), (Some(0.9), "", None), "{}", figure.id);
        }
        assert!(of(GROWN).iter().all(|figure| figure.met == Some(true)));
    }

    #[test]
    fn reads_choose_from_as_many_places_all_over_a_log_whatever_its_size() {
        let batch = || vec![PublishResponse::default(); usize::try_from(BATCH).expect("a few")];
        for events in [SMALL, 1_000_000] {
            let mut places = Vec::new();
            for first in (0..events).step_by(usize::try_from(BATCH).expect("a few")) {
                places.extend(
                    places_of(first, events, batch()).map(|place| first + u64::from(place.nth.unsigned_abs()) - 1),
                );
            }
            let even: Vec<u64> = (0..PLACES).map(|n| n * events / PLACES).collect();
            assert_eq!(places, even);
        }
    }
}
