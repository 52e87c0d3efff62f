//! The state machine of a watch over a log in memory, on a paused clock.

use super::*;
use crate::domain::filter::Filter;
use crate::domain::memory::Memory;
use crate::feed::Batch;
use crate::proto::public::{WatchFilter, WatchResponse};
use crate::watch::Config;
use crate::watch::codec::Delivery;
use crate::watch::tests::{Bench, entry, filters};
use futures::StreamExt as _;
use proptest::prelude::*;
use std::collections::BTreeSet;

mod endings;
use endings::closing;

fn small() -> Config {
    Config { ring_entries_max: 16, message_events_max: 10, bookmark_events: 20, ..Config::default() }
}

async fn next(stream: &mut WatchStream) -> WatchResponse {
    let item = tokio::time::timeout(Duration::from_hours(2), stream.next()).await;
    let frame = item.expect("in time").expect("not at its end").expect("a message");
    codec::decode(&frame).expect("a well-formed message")
}

/// Reads until `count` events have come, checks order and cursors, and returns their positions with their filters.
async fn events(bench: &Bench, stream: &mut WatchStream, count: usize) -> Vec<(Position, Vec<String>)> {
    let mut seen = Vec::new();
    while seen.len() < count {
        let message = next(stream).await;
        match message.kind.expect("set") {
            Kind::Created(_) | Kind::Bookmark(_) => {}
            Kind::Events(events) => {
                assert!(!events.events.is_empty());
                for watched in events.events {
                    let event = watched.event.expect("set");
                    let last = seen.last().map_or(0, |(position, _)| *position);
                    assert!(event.position > last, "{} after {last}", event.position);
                    seen.push((event.position, watched.filters));
                }
                let last = seen.last().expect("just pushed").0;
                assert!(bench.open(&message.cursor) >= last);
            }
            other => panic!("unexpected {other:?}"),
        }
    }
    seen
}

fn positions(seen: &[(Position, Vec<String>)]) -> Vec<Position> {
    seen.iter().map(|(position, _)| *position).collect()
}

#[tokio::test(start_paused = true)]
async fn g8_it_hands_over_from_pages_to_the_ring_at_every_offset() {
    for start in 0..=40 {
        let bench = Bench::start(small(), 0);
        for _ in 0..40 {
            bench.append("A");
        }
        bench.announce();
        let mut stream = bench.watch_from(start);
        assert!(matches!(next(&mut stream).await.kind, Some(Kind::Created(_))));
        let early = events(&bench, &mut stream, usize::try_from((40 - start) / 2).expect("small")).await;
        for _ in 0..30 {
            bench.append("A");
        }
        bench.announce();
        let rest = 70 - usize::try_from(start).expect("small") - early.len();
        let late = events(&bench, &mut stream, rest).await;
        let all: Vec<_> = positions(&early).into_iter().chain(positions(&late)).collect();
        assert_eq!(all, (start + 1..=70).collect::<Vec<_>>(), "from {start}");
    }
}

#[tokio::test(start_paused = true)]
async fn g13_a_reader_that_fell_out_of_the_ring_reads_pages_and_loses_nothing() {
    let bench = Bench::start(small(), 0);
    let mut stream = bench.watch_from(0);
    next(&mut stream).await;
    for _ in 0..20 {
        for _ in 0..10 {
            bench.append("A");
        }
        bench.announce();
        bench.settle().await;
    }
    assert_eq!(positions(&events(&bench, &mut stream, 200).await), (1..=200).collect::<Vec<_>>());
    assert!(bench.reads() >= 19, "it was far behind the ring: {}", bench.reads());
}

#[tokio::test(start_paused = true)]
async fn streams_at_the_same_place_share_their_bytes() {
    let bench = Bench::start(small(), 0);
    let mut streams: Vec<_> = (0..3).map(|_| bench.watch_from(0)).collect();
    for stream in &mut streams {
        next(stream).await;
    }
    for _ in 0..5 {
        bench.append("A");
    }
    bench.announce();
    let mut frames = Vec::new();
    for stream in &mut streams {
        frames.push(stream.next().await.expect("open").expect("a message"));
    }
    assert!(frames.iter().all(|frame| frame.as_ptr() == frames[0].as_ptr()));
}

#[tokio::test(start_paused = true)]
async fn filters_deliver_each_event_once_with_the_names_that_matched() {
    let bench = Bench::start(small(), 0);
    let named = filters(&[("users", "USER_*"), ("created", "USER_CREATE"), ("rows", "ROW_*")]);
    let mut stream = bench.watch(0, named, OnExpired::Fail);
    for event_type in ["USER_CREATE", "FILE_FINALIZED", "ROW_READ", "USER_UPDATE"] {
        bench.append(event_type);
    }
    bench.announce();
    let seen = events(&bench, &mut stream, 3).await;
    let expected: [(Position, &[&str]); 3] = [(1, &["users", "created"]), (3, &["rows"]), (4, &["users"])];
    for ((position, names), (expected_position, expected_names)) in seen.iter().zip(expected) {
        assert_eq!(
            (*position, names.iter().map(String::as_str).collect::<Vec<_>>()),
            (expected_position, expected_names.to_vec())
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_filtered_out_moves_the_cursor_by_bookmarks() {
    let bench = Bench::start(small(), 0);
    let mut stream = bench.watch(0, filters(&[("", "USER_*")]), OnExpired::Fail);
    next(&mut stream).await;
    for _ in 0..45 {
        bench.append("FILE_FINALIZED");
    }
    bench.announce();
    let mut last = 0;
    let begun = Instant::now();
    for _ in 0..2 {
        let message = next(&mut stream).await;
        assert!(matches!(message.kind, Some(Kind::Bookmark(_))), "{message:?}");
        last = bench.open(&message.cursor);
    }
    assert!((40..=45).contains(&last), "{last}");
    assert!(begun.elapsed() < Duration::from_secs(1), "by number, not by time");
    let idle = next(&mut stream).await;
    assert!(matches!(idle.kind, Some(Kind::Bookmark(WatchBookmark { caught_up: true }))));
    assert_eq!(bench.open(&idle.cursor), 45);
}

#[tokio::test(start_paused = true)]
async fn silence_is_broken_by_bookmarks_at_the_interval() {
    let bench = Bench::start(small(), 7);
    let mut stream = bench.watch_from(7);
    assert!(matches!(next(&mut stream).await.kind, Some(Kind::Created(_))));
    for _ in 0..3 {
        let begun = Instant::now();
        let message = next(&mut stream).await;
        assert!(matches!(message.kind, Some(Kind::Bookmark(WatchBookmark { caught_up: true }))));
        assert_eq!(bench.open(&message.cursor), 7);
        let waited = begun.elapsed();
        assert!(waited >= Duration::from_millis(14_990) && waited <= Duration::from_millis(15_020), "{waited:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_takes_nothing_is_given_up_and_its_cursor_still_works() {
    let bench = Bench::start(small(), 0);
    let mut stream = bench.watch_from(0);
    next(&mut stream).await;
    for _ in 0..30 {
        bench.append("A");
    }
    bench.announce();
    let first = next(&mut stream).await;
    tokio::time::advance(Duration::from_secs(59)).await;
    assert!(bench.sweep().is_empty());
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(bench.sweep().len(), 1);
    assert!(bench.sweep().is_empty(), "it is reported once");
    let at = bench.open(&first.cursor);
    let ending = closing(&bench, &mut stream, "SLOW_CONSUMER", at).await;
    let Ending::SlowConsumer { resume_cursor } = ending else { panic!("{ending:?}") };
    let mut resumed = bench.watch_from(bench.open(&resume_cursor));
    let rest = usize::try_from(30 - at).expect("small");
    assert_eq!(positions(&events(&bench, &mut resumed, rest).await), (at + 1..=30).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn an_idle_reader_is_not_taken_for_a_stalled_one() {
    let bench = Bench::start(small(), 0);
    let mut stream = bench.watch_from(0);
    for _ in 0..20 {
        next(&mut stream).await;
        assert!(bench.sweep().is_empty());
    }
}

/// What may happen around a watch.
#[derive(Debug, Clone)]
enum Step {
    /// Events are committed.
    Append { events: u8, is_user: bool },
    /// Their news comes: as it should, twice, in the wrong order, or as no more than a head.
    News(u8),
    /// Other tasks run.
    Settle,
    /// One of the streams takes a message if there is one.
    Read(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1..30_u8, any::<bool>()).prop_map(|(events, is_user)| Step::Append { events, is_user }),
        3 => (0..5_u8).prop_map(Step::News),
        2 => Just(Step::Settle),
        6 => (0..3_u8).prop_map(Step::Read),
    ]
}

/// Takes what is ready now.
fn poll_once(stream: &mut WatchStream) -> Option<WatchResponse> {
    let mut cx = Context::from_waker(std::task::Waker::noop());
    match Pin::new(stream).poll_next(&mut cx) {
        Poll::Ready(Some(Ok(frame))) => Some(codec::decode(&frame).expect("a well-formed message")),
        Poll::Ready(other) => panic!("it must not end: {:?}", other.map(Result::err)),
        Poll::Pending => None,
    }
}

fn note(bench: &Bench, message: WatchResponse, seen: &mut Vec<Position>) {
    if let Some(Kind::Events(events)) = message.kind {
        seen.extend(events.events.into_iter().map(|watched| watched.event.expect("set").position));
        assert!(bench.open(&message.cursor) >= *seen.last().expect("not empty"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// G7, G8: whatever the order of commits, news and reads, each stream sees every position it wants exactly once, in order.
    #[test]
    fn g8_every_interleaving_delivers_each_position_once_in_order(steps in proptest::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
        runtime.block_on(async {
            let bench = Bench::start(small(), 0);
            let user = || filters(&[("u", "USER_*")]);
            let mut streams = [
                bench.watch(0, FilterSet::default(), OnExpired::Fail),
                bench.watch(0, FilterSet::default(), OnExpired::Fail),
                bench.watch(0, user(), OnExpired::Fail),
            ];
            let mut seen = [Vec::new(), Vec::new(), Vec::new()];
            let mut wanted = BTreeSet::new();
            let mut committed: Vec<Arc<Batch>> = Vec::new();
            for step in steps {
                match step {
                    Step::Append { events, is_user } => {
                        let name = if is_user { "USER_CREATE" } else { "FILE_FINALIZED" };
                        let batch: Vec<_> = (0..events).map(|_| bench.append(name)).collect();
                        wanted.extend(batch.iter().filter(|_| is_user).map(|entry| entry.position));
                        committed.push(Arc::new(Batch::new(batch, &Memory::new(usize::MAX))));
                    }
                    Step::News(kind) => match kind {
                        0 => committed.drain(..).for_each(|batch| bench.tail.offer(batch)),
                        1 => committed.iter().for_each(|batch| bench.tail.offer(Arc::clone(batch))),
                        2 => committed.drain(..).rev().for_each(|batch| bench.tail.offer(batch)),
                        3 => drop(committed.pop().map(|batch| bench.tail.offer(batch))),
                        _ => bench.announce(),
                    },
                    Step::Settle => bench.settle().await,
                    Step::Read(index) => {
                        let index = usize::from(index);
                        if let Some(message) = poll_once(&mut streams[index]) {
                            note(&bench, message, &mut seen[index]);
                        }
                    }
                }
            }
            bench.announce();
            let everything: Vec<Position> = (1..=bench.len()).collect();
            let wanted: Vec<Position> = wanted.into_iter().collect();
            let expected = [&everything, &everything, &wanted];
            for (index, stream) in streams.iter_mut().enumerate() {
                while seen[index].len() < expected[index].len() {
                    let message = next(stream).await;
                    note(&bench, message, &mut seen[index]);
                }
                assert_eq!(&seen[index], expected[index], "stream {index}");
                if let Some(message) = poll_once(stream) {
                    assert!(!matches!(message.kind, Some(Kind::Events(_))), "nothing may follow: {message:?}");
                }
            }
        });
    }
}

#[test]
fn a_frame_is_what_prost_would_write() {
    use prost::Message as _;
    let entries: Vec<_> = (1..=3).map(|position| Arc::new(RingEntry::new(entry(position, "A")))).collect();
    let deliveries: Vec<_> = entries
        .iter()
        .map(|entry| Delivery { entry, names: if entry.position() == 2 { vec!["one", "two"] } else { Vec::new() } })
        .collect();
    for view in [EventView::Full, EventView::Metadata] {
        let frame = codec::events_frame("cursor", &deliveries, view);
        let message = codec::decode(&frame).expect("decodes");
        assert_eq!(&frame[..1], [0]);
        assert_eq!(frame[1..5], u32::try_from(frame.len() - 5).expect("small").to_be_bytes());
        assert_eq!(message.encoded_len(), frame.len() - 5);
        assert_eq!(message.cursor, "cursor");
        let Some(Kind::Events(events)) = message.kind else { panic!("events") };
        for (watched, delivery) in events.events.iter().zip(&deliveries) {
            assert_eq!(watched.event, Some(crate::wire::event::entry_to_proto(delivery.entry.entry(), view)));
            assert_eq!(watched.filters, delivery.names);
        }
    }
}

/// Reads to the change of filters; the positions before it, and the version and position it says.
async fn until_changed(bench: &Bench, stream: &mut WatchStream) -> (Vec<Position>, i64, Position) {
    let mut seen = Vec::new();
    loop {
        let message = next(stream).await;
        match message.kind.expect("set") {
            Kind::Events(events) => {
                seen.extend(events.events.into_iter().map(|watched| watched.event.expect("set").position));
            }
            Kind::FilterChanged(changed) => return (seen, changed.filter_version, bench.open(&message.cursor)),
            Kind::Created(_) | Kind::Bookmark(_) => {}
            other => panic!("unexpected {other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn g8_a_change_of_filters_splits_the_stream_at_one_position() {
    let bench = Bench::start(small(), 0);
    let mut stream = bench.watch(0, filters(&[("users", "USER_*")]), OnExpired::Fail);
    for n in 0..200 {
        bench.append(if n % 2 == 0 { "USER_CREATE" } else { "ROW_READ" });
    }
    bench.announce();
    let before = positions(&events(&bench, &mut stream, 20).await);
    bench.change(&stream, 2, filters(&[("rows", "ROW_*")]));
    let (more, version, at) = until_changed(&bench, &mut stream).await;
    assert_eq!((version, bench.recorded()), (2, vec![(2, at)]), "recorded before it is said");
    let old: Vec<_> = before.into_iter().chain(more).collect();
    assert_eq!(old, (1..=at).step_by(2).collect::<Vec<_>>());
    // The same news again changes nothing.
    bench.change(&stream, 2, filters(&[("other", "OTHER")]));
    let new = events(&bench, &mut stream, usize::try_from((200 - at) / 2).expect("small")).await;
    assert!(new.iter().all(|(_, names)| *names == ["rows"]));
    assert_eq!(positions(&new), (at + 1..=200).filter(|position| position % 2 == 0).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_change_that_was_taken_back_changes_nothing() {
    let bench = Bench::start(small(), 0);
    let mut stream = bench.watch_from(0);
    next(&mut stream).await;
    bench.withdraw_changes();
    bench.change(&stream, 2, filters(&[("rows", "ROW_*")]));
    bench.append("USER_CREATE");
    bench.announce();
    assert_eq!(positions(&events(&bench, &mut stream, 1).await), [1]);
    assert_eq!(bench.recorded().len(), 1, "it was tried");
}

#[tokio::test(start_paused = true)]
async fn g8_a_resumed_watch_changes_its_filters_where_the_earlier_one_did() {
    // From behind the ring, at its edge, and within it; the filters deliver everything before the change.
    for (start, change) in [(0, 30), (55, 58), (60, 60), (0, 0)] {
        let bench = Bench::start(small(), 0);
        for _ in 0..60 {
            bench.append("USER_CREATE");
            bench.append("ROW_READ");
        }
        bench.announce();
        bench.settle().await;
        let changes = vec![(change, filters(&[("rows", "ROW_*")])), (100, filters(&[("users", "USER_*")]))];
        let mut stream = bench.watch_with(start, FilterSet::default(), OnExpired::Fail, changes);
        let (first, version, at) = until_changed(&bench, &mut stream).await;
        assert_eq!((version, at), (2, change));
        assert_eq!(first, (start + 1..=change).collect::<Vec<_>>());
        let (second, version, at) = until_changed(&bench, &mut stream).await;
        assert_eq!((version, at), (3, 100));
        assert_eq!(second, (change + 1..=100).filter(|position| position % 2 == 0).collect::<Vec<_>>());
        assert_eq!(positions(&events(&bench, &mut stream, 10).await), (101..=120).step_by(2).collect::<Vec<_>>());
        assert!(bench.recorded().is_empty(), "what was recorded once is not recorded again");
    }
}

#[tokio::test]
async fn g9_a_change_of_filters_is_compiled_before_it_takes_effect_and_only_where_it_is_new() {
    let named = |expressions: &[&str]| {
        let filters = expressions.iter().zip(["a", "b"]);
        let filters = filters.map(|(filter, name)| (name.to_owned(), (*filter).to_owned()));
        let filters = filters.map(|(name, filter)| WatchFilter { name, filter, ..WatchFilter::default() });
        FilterSet::parse("filters", filters.collect()).expect("good filters")
    };
    let stored = |expressions: &[&str]| FilterSet::decode(&named(expressions).encode()).expect("readable");
    let bench = Bench::start(small(), 0);
    let kept = "event.source != 'a'";
    let changes = vec![(0, stored(&[kept, "event.source != 'b'"]))];
    let mut stream = bench.watch_with(0, named(&[kept]), OnExpired::Fail, changes);
    let first = stream.group.filters.filters().next().expect("one").clone();
    next(&mut stream).await;
    until_changed(&bench, &mut stream).await;
    bench.change(&stream, 3, stored(&[kept, "event.source != 'c'"]));
    until_changed(&bench, &mut stream).await;
    let filters: Vec<Filter> = stream.group.filters.filters().cloned().collect();
    assert!(filters.len() == 2 && filters.iter().all(Filter::is_compiled), "nothing is left for the first event");
    assert!(filters[0].is_clone_of(&first), "what stays is not compiled again");
}

#[tokio::test(start_paused = true)]
async fn streams_with_the_same_filters_evaluate_and_encode_once() {
    let bench = Bench::start(small(), 0);
    let same = || filters(&[("users", "USER_*")]);
    let mut streams: Vec<_> = (0..3).map(|_| bench.watch(0, same(), OnExpired::Fail)).collect();
    let mut other = bench.watch(0, filters(&[("people", "USER_*")]), OnExpired::Fail);
    for stream in streams.iter_mut().chain([&mut other]) {
        next(stream).await;
    }
    for event_type in ["USER_CREATE", "ROW_READ", "USER_UPDATE"] {
        bench.append(event_type);
    }
    bench.announce();
    let mut frames = Vec::new();
    for stream in streams.iter_mut().chain([&mut other]) {
        frames.push(stream.next().await.expect("open").expect("a message"));
    }
    assert!(frames[..3].iter().all(|frame| frame.as_ptr() == frames[0].as_ptr()));
    assert_ne!(frames[0], frames[3], "other names are other messages");
}
