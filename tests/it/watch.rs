//! `EventService.Watch`: live, in order, each event once, and resumable on any replica.

use std::time::Duration;

use carillon::proto::public::watch_request::Start;
use carillon::proto::public::watch_response::Kind;
use carillon::proto::public::{Event, ListEventsRequest, WatchFilter, WatchRequest, WatchResponse};
use rustix::process::Signal;
use serde_json::json;
use tonic::{Code, Streaming};

use crate::harness::tenant::{assert_refused, millis};
use crate::harness::{Tenant, World, within};

/// A stream whose `Created` has been taken.
pub async fn watch(tenant: &Tenant, replica: usize, request: WatchRequest) -> Streaming<WatchResponse> {
    let mut client = tenant.at[replica].events.clone();
    let mut stream = client.watch(request).await.expect("a watch").into_inner();
    let first = next(&mut stream).await;
    assert!(matches!(first.kind, Some(Kind::Created(_))), "{first:?}");
    assert!(!first.cursor.is_empty());
    stream
}

async fn next(stream: &mut Streaming<WatchResponse>) -> WatchResponse {
    within("the next message of a watch", stream.message()).await.expect("the stream lives").expect("it goes on")
}

/// Takes positions until so many have come; returns them with the last cursor.
pub async fn positions(stream: &mut Streaming<WatchResponse>, count: usize) -> (Vec<i64>, String) {
    let (seen, cursor) = events(stream, count).await;
    (seen.into_iter().map(|event| event.position).collect(), cursor)
}

/// Takes events until so many have come; returns them with the last cursor.
pub async fn events(stream: &mut Streaming<WatchResponse>, count: usize) -> (Vec<Event>, String) {
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    while seen.len() < count {
        let message = next(stream).await;
        cursor.clone_from(&message.cursor);
        match message.kind {
            Some(Kind::Events(events)) => {
                seen.extend(events.events.into_iter().map(|watched| watched.event.expect("it is set")));
            }
            Some(Kind::Bookmark(_)) => {}
            other => panic!("unexpected {other:?}"),
        }
    }
    (seen, cursor)
}

fn from(start: Start) -> WatchRequest {
    WatchRequest { start: Some(start), ..Default::default() }
}

#[tokio::test]
async fn every_event_arrives_once_and_in_order_on_both_replicas() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_WATCHED").await;
    let mut streams = Vec::new();
    for replica in 0..2 {
        streams.push(watch(&tenant, replica, from(Start::Now(true))).await);
    }
    for n in 0..60 {
        let request = crate::harness::tenant::publish_request("CUSTOM_WATCHED", &json!({"n": n}));
        tenant.publishers[n % 2].clone().publish(request).await.expect("published");
    }
    for stream in &mut streams {
        assert_eq!(positions(stream, 60).await.0, (2..=61).collect::<Vec<i64>>());
    }
}

#[tokio::test]
async fn listing_hands_over_to_a_watch_without_gap_or_overlap() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_WATCHED").await;
    for n in 0..5 {
        tenant.publish("CUSTOM_WATCHED", &json!({"n": n})).await;
    }
    let page = ListEventsRequest { page_size: 3, ..Default::default() };
    let page = tenant.events().list_events(page).await.expect("a page").into_inner();
    let mut stream = watch(&tenant, 1, from(Start::Cursor(page.next_cursor))).await;
    tenant.publish("CUSTOM_WATCHED", &json!({"n": 5})).await;
    let (seen, cursor) = positions(&mut stream, 4).await;
    assert_eq!(seen, [4, 5, 6, 7], "the declaration is the first");
    drop(stream);
    tenant.publish("CUSTOM_WATCHED", &json!({"n": 6})).await;
    let mut resumed = watch(&tenant, 0, from(Start::Cursor(cursor))).await;
    assert_eq!(positions(&mut resumed, 1).await.0, [8], "resumed on the other replica");
    let mut again = watch(&tenant, 0, from(Start::Earliest(true))).await;
    assert_eq!(positions(&mut again, 8).await.0, (1..=8).collect::<Vec<i64>>());
}

#[tokio::test]
async fn named_filters_say_why_an_event_came() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_WATCHED").await;
    let filter = |name: &str, filter: &str| WatchFilter {
        name: name.to_owned(),
        event_types: vec!["CUSTOM_*".to_owned()],
        filter: filter.to_owned(),
    };
    let request = WatchRequest {
        filters: vec![filter("even", "data.n % 2 == 0"), filter("large", "data.n > 3")],
        ..Default::default()
    };
    let mut stream = watch(&tenant, 0, request).await;
    for n in 0..=5 {
        tenant.publish("CUSTOM_WATCHED", &json!({"n": n})).await;
    }
    let mut seen = Vec::new();
    while seen.len() < 4 {
        if let Some(Kind::Events(events)) = next(&mut stream).await.kind {
            for watched in events.events {
                let mut names = watched.filters;
                names.sort();
                seen.push((watched.event.expect("it is set").position, names.join("+")));
            }
        }
    }
    let expected = [(2, "even"), (4, "even"), (6, "even+large"), (7, "large")];
    assert_eq!(seen, expected.map(|(position, names)| (position, names.to_owned())));
}

#[tokio::test]
async fn a_silent_watch_gets_bookmarks_that_can_be_resumed() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_WATCHED").await;
    let filter = WatchFilter { event_types: vec!["CUSTOM_NEVER".to_owned()], ..Default::default() };
    let request = WatchRequest { filters: vec![filter], bookmark_interval: Some(millis(100)), ..Default::default() };
    let mut stream = watch(&tenant, 0, request).await;
    tenant.publish("CUSTOM_WATCHED", &json!({})).await;
    // A bookmark from before the event may still be on its way.
    let cursor = loop {
        let message = next(&mut stream).await;
        let Some(Kind::Bookmark(bookmark)) = message.kind else { panic!("unexpected {message:?}") };
        let page = ListEventsRequest { cursor: message.cursor.clone(), ..Default::default() };
        let left = tenant.events().list_events(page).await.expect("a bookmark is a cursor").into_inner().events;
        if bookmark.caught_up && left.is_empty() {
            break message.cursor;
        }
    };
    tenant.publish("CUSTOM_WATCHED", &json!({})).await;
    let mut resumed = watch(&tenant, 1, from(Start::Cursor(cursor))).await;
    assert_eq!(positions(&mut resumed, 1).await.0, [3]);
}

#[tokio::test]
async fn broken_watches_are_refused() {
    let tenant = World::shared().await.tenant().await;
    let named = |name: &str| WatchFilter { name: name.to_owned(), ..Default::default() };
    let cases = [
        WatchRequest { filters: vec![named("a"), named("a")], ..Default::default() },
        WatchRequest { filters: vec![named("a"), named("")], ..Default::default() },
        WatchRequest { filters: vec![named("a b")], ..Default::default() },
        WatchRequest { filters: (0..17).map(|n| named(&format!("f{n}"))).collect(), ..Default::default() },
        WatchRequest { bookmark_interval: Some(millis(1)), ..Default::default() },
        from(Start::Now(false)),
    ];
    for request in cases {
        let result = tenant.events().watch(request).await;
        assert_refused(result.map(|_| ()), Code::InvalidArgument, "FIELD_INVALID");
    }
    let bad = WatchFilter { filter: "data.n >".to_owned(), ..Default::default() };
    let result = tenant.events().watch(WatchRequest { filters: vec![bad], ..Default::default() }).await;
    assert_refused(result.map(|_| ()), Code::InvalidArgument, "FILTER_INVALID");
    let result = tenant.events().watch(from(Start::Cursor("x".to_owned()))).await;
    assert_refused(result.map(|_| ()), Code::InvalidArgument, "CURSOR_MALFORMED");
}

#[tokio::test]
async fn a_draining_replica_closes_its_watches_with_a_cursor_for_the_other_one() {
    let mut world = World::start(2).await;
    let tenant = world.tenant().await;
    tenant.declare("CUSTOM_WATCHED").await;
    let mut stream = watch(&tenant, 1, from(Start::Now(true))).await;
    tenant.publish("CUSTOM_WATCHED", &json!({})).await;
    assert_eq!(positions(&mut stream, 1).await.0, [2]);

    world.replicas[1].process.signal(Signal::TERM);
    let closing = loop {
        let message = next(&mut stream).await;
        if let Some(Kind::Closing(closing)) = message.kind {
            break closing;
        }
    };
    assert_eq!(closing.reason, "SERVER_DRAINING");
    let status = world.replicas[1].process.ended("the drained replica ends").await;
    assert!(status.success(), "{status}");
    tenant.publish("CUSTOM_WATCHED", &json!({})).await;
    let mut resumed = watch(&tenant, 0, from(Start::Cursor(closing.resume_cursor))).await;
    assert_eq!(positions(&mut resumed, 1).await.0, [3]);
}

#[tokio::test]
async fn a_watch_that_is_not_read_delays_nobody() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_WATCHED").await;
    let stuck = watch(&tenant, 0, from(Start::Now(true))).await;
    let mut reader = watch(&tenant, 0, from(Start::Now(true))).await;
    let text = "x".repeat(60_000);
    for n in 0..200 {
        tenant.publish("CUSTOM_WATCHED", &json!({"n": n, "text": text})).await;
    }
    let all = tokio::time::timeout(Duration::from_secs(30), positions(&mut reader, 200)).await;
    assert_eq!(all.expect("the other reader is served").0, (2..=201).collect::<Vec<i64>>());
    let mut stuck = stuck;
    assert_eq!(positions(&mut stuck, 200).await.0, (2..=201).collect::<Vec<i64>>(), "and nothing is lost");
}
