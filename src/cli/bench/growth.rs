//! T12 and T13: what a log that grows, many subscriptions and many deliveries change.
//!
//! What has grown is measured beside a small service that was made and is read alike, in turns, so that a machine whose speed drifts
//! moves both. A run that grows less than the targets speak of says how far it got, and is not judged.

use std::cell::RefCell;
use std::collections::BTreeSet;
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
/// Events that reads by id choose from at most, all over a log: more than are read in a run, since what was read once is in memory.
const IDS: u64 = 100_000;
/// Places that pages begin at, likewise.
const CURSORS: u64 = 20_000;
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
    /// Ids of events all over the log.
    ids: Places,
    /// Cursors all over the log.
    cursors: Places,
    /// The cursor that the last page follows.
    tail: Places,
}

impl Log {
    /// Publishes so many events, and a batch beyond them.
    async fn fill(bench: &Bench, events: u64) -> Result<Self, CliError> {
        let publishers = bench.publishers(CALLERS).await?;
        let client = reader(&bench.service.access).await?;
        let filling = Steps::new("events", events);
        let (ids, cursors) = (RefCell::new(Vec::new()), RefCell::new(BTreeSet::new()));
        let mut written = publish_all(&publishers, events, async |number, batch| {
            filling.reached(number + BATCH);
            // Asked for while its events are new: what is read of them for it is long out of memory by the end of a large log.
            if (number / BATCH).is_multiple_of(step(events / BATCH, CURSORS)) {
                let time = batch.first().and_then(|first| first.commit_time);
                let cursor = page(&client, String::new(), time, 1).await?;
                // Callers that shared a commit find the same place.
                cursors.borrow_mut().insert(cursor);
            }
            ids.borrow_mut().extend(ids_of(number, batch, step(events, IDS)));
            Ok(())
        })
        .await?;
        drop(filling);
        // Alone, so that what follows its first event is one page, whatever commits the others have shared.
        let last = publish_batch(&publishers[0], EVENT_TYPE, BATCH).await?;
        written += BATCH;
        let time = last.first().and_then(|first| first.commit_time);
        let tail = Places::shuffled([page(&client, String::new(), time, 1).await?]);
        let (ids, cursors) = (Places::shuffled(ids.into_inner()), Places::shuffled(cursors.into_inner()));
        Ok(Self { publishers, client, time: bench.round(ROUNDS), written, ids, cursors, tail })
    }

    async fn insert(&self) -> Result<f64, CliError> {
        let started = Instant::now();
        let written = publish_all(&self.publishers, INSERTED, async |_, _| Ok(())).await?;
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
    async fn read<C, F>(&self, places: &Places, read: C) -> Result<f64, CliError>
    where
        C: Fn(PublicClient, String) -> F + Clone + Send + 'static,
        F: Future<Output = Result<(), CliError>> + Send,
    {
        let (client, places) = (self.client.clone(), places.clone());
        let done = closed(CALLERS, self.time, move |_| {
            let read = read(client.clone(), places.next());
            async move { read.await.map(|()| 1) }
        });
        Ok(done.await?.rate())
    }
}

/// Places of a log in an order that has nothing to do with it. None is read twice before all were, whichever turn reads: what a read
/// brings into memory serves none of those that follow.
#[derive(Debug, Clone)]
struct Places {
    all: Arc<[String]>,
    read: Arc<AtomicUsize>,
}

impl Places {
    fn shuffled(all: impl IntoIterator<Item = String>) -> Self {
        let mut drawn: Vec<(f64, String)> = all.into_iter().map(|place| (clock::jitter(), place)).collect();
        drawn.sort_by(|a, b| a.0.total_cmp(&b.0));
        Self { all: drawn.into_iter().map(|(_, place)| place).collect(), read: Arc::default() }
    }

    fn next(&self) -> String {
        self.all[self.read.fetch_add(1, Ordering::Relaxed) % self.all.len()].clone()
    }
}

/// Publishes batches until so many events are written; answers with their count.
///
/// *Shape*: `each` gets the number of a batch's first event, from 0, and what was answered.
async fn publish_all(
    publishers: &[InternalClient],
    events: u64,
    each: impl AsyncFn(u64, Vec<PublishResponse>) -> Result<(), CliError>,
) -> Result<u64, CliError> {
    let begun = AtomicU64::new(0);
    let callers = publishers.iter().map(async |client| -> Result<_, CliError> {
        let mut written = 0;
        loop {
            let number = begun.fetch_add(BATCH, Ordering::Relaxed);
            if number >= events {
                return Ok(written);
            }
            let published = publish_batch(client, EVENT_TYPE, BATCH).await?;
            written += published.len() as u64;
            each(number, published).await?;
        }
    });
    Ok(try_join_all(callers).await?.into_iter().sum())
}

/// Of how many one is taken, so that no more than `most` are.
fn step(of: u64, most: u64) -> u64 {
    of.div_ceil(most).max(1)
}

/// The ids of every so manyth event, of a batch whose first event has this number.
fn ids_of(number: u64, batch: Vec<PublishResponse>, step: u64) -> impl Iterator<Item = String> {
    (number..).zip(batch).filter(move |(number, _)| number.is_multiple_of(step)).map(|(_, one)| one.event_id)
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
    fn reads_choose_from_events_all_over_a_log_whatever_its_size() {
        for (events, every) in [(SMALL, 1), (1_000_000, 10), (GROWN, 100), (GROWN + BATCH, 101)] {
            let step = step(events, IDS);
            assert_eq!(step, every);
            let batch = |number| {
                let id = |number: u64| PublishResponse { event_id: number.to_string(), ..PublishResponse::default() };
                (number..number + BATCH).map(id).collect()
            };
            let batches = (0..events).step_by(usize::try_from(BATCH).expect("a few"));
            let ids: Vec<String> = batches.flat_map(|number| ids_of(number, batch(number), step)).collect();
            let even: Vec<String> =
                (0..events).step_by(usize::try_from(every).expect("a few")).map(|n| n.to_string()).collect();
            assert_eq!(ids, even);
        }
    }

    #[test]
    fn no_place_is_read_again_before_every_place_was_read_whichever_turn_reads() {
        let all: BTreeSet<String> = (0..1_000).map(|place| place.to_string()).collect();
        let places = Places::shuffled(all.clone());
        for _ in 0..2 {
            // Turns, each with a part that counts and one that warms up.
            let turn = places.clone();
            let read: Vec<String> = (0..500).map(|_| turn.next()).chain((0..500).map(|_| places.next())).collect();
            assert_ne!(read, all.iter().cloned().collect::<Vec<_>>(), "they are in another order than the log");
            assert_eq!(BTreeSet::from_iter(read), all);
        }
    }
}
