//! G8: a watch is ordered, unique, complete, resumable on any replica, and a change of its filters splits it at one exact
//! position, while events are published all the time.

use std::sync::atomic::{AtomicBool, Ordering};

use carillon::proto::internal::PublishBatchRequest;
use carillon::proto::public::watch_request::Start;
use carillon::proto::public::watch_response::Kind;
use carillon::proto::public::{
    EventView, ListEventsRequest, UpdateWatchRequest, WatchEvents, WatchRequest, WatchedEvent,
};
use serde_json::{Value, json};
use tonic::Code;

use crate::harness::database::Cluster;
use crate::harness::tenant::{assert_refused, publish_request, reason};
use crate::harness::{Tenant, World, eventually};
use crate::update_watch::{Open, kind, update};

const EVENTS: i64 = 3_000;
const KINDS: [&str; 3] = ["a", "b", "c"];

/// Publishes by both replicas at once until told to stop, `EVENTS` in all at most.
async fn flood(tenant: &Tenant, stop: &AtomicBool) {
    let publish = |replica: usize| async move {
        let mut client = tenant.publishers[replica].clone();
        for round in 0..EVENTS / 20 {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let events = (0..10).map(|n| {
                let kind = KINDS[usize::try_from(round * 10 + n).expect("small") % KINDS.len()];
                publish_request("CUSTOM_FLOOD", &json!({"kind": kind}))
            });
            let request = PublishBatchRequest { requests: events.collect() };
            client.publish_batch(request).await.expect("a batch is accepted");
        }
    };
    tokio::join!(publish(0), publish(1));
}

/// The kind of every event, by position from 1 on, as the log has them.
async fn log(tenant: &Tenant) -> Vec<String> {
    let mut kinds = Vec::new();
    let mut cursor = String::new();
    loop {
        let request = ListEventsRequest { page_size: 1_000, cursor, ..Default::default() };
        let page = tenant.events().list_events(request).await.expect("a page").into_inner();
        for event in page.events {
            assert_eq!(event.position, i64::try_from(kinds.len()).expect("small") + 1, "the log has no gaps");
            kinds.push(kind_of(&event));
        }
        if page.end_of_log {
            return kinds;
        }
        cursor = page.next_cursor;
    }
}

fn kind_of(event: &carillon::proto::public::Event) -> String {
    use carillon::proto::cloudevents::cloud_event::Data;
    let data = event.event.as_ref().and_then(|event| event.data.as_ref());
    let text = match data {
        Some(Data::TextData(text)) => text.clone().into_bytes(),
        Some(Data::BinaryData(bytes)) => bytes.to_vec(),
        other => panic!("unexpected {other:?}"),
    };
    let value: Value = serde_json::from_slice(&text).expect("JSON");
    // What Carillon itself tells of, such as the declaration of the type, has none.
    value["kind"].as_str().unwrap_or_default().to_owned()
}

/// The position and kind of each event of a message.
fn taken(events: &WatchEvents) -> Vec<(i64, String)> {
    let one = |watched: &WatchedEvent| {
        let event = watched.event.as_ref().expect("it is set");
        (event.position, kind_of(event))
    };
    events.events.iter().map(one).collect()
}

#[tokio::test]
async fn filters_that_change_under_load_split_the_stream_at_exact_positions_and_resumes_lose_nothing() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_FLOOD").await;
    let stop = AtomicBool::new(false);
    let follow = async {
        let request = WatchRequest {
            filters: vec![kind("a")],
            start: Some(Start::Earliest(true)),
            view: EventView::Full.into(),
            ..Default::default()
        };
        let mut watch = Open::at(&tenant, 0, request).await;
        // What arrived, and from which position on which kinds were wanted.
        let mut seen: Vec<(i64, String)> = Vec::new();
        let mut wanted: Vec<(i64, &str)> = vec![(0, "a")];
        let mut boundary = 0;
        for round in 1..12_usize {
            // Some events by the present filters, then others, asked for at the other replica; now and then a new stream.
            let present = KINDS[(round - 1) % KINDS.len()];
            let coming = KINDS[round % KINDS.len()];
            while seen.iter().filter(|(position, _)| *position > boundary).count() < 5 {
                let Kind::Events(events) = watch.next().await else { panic!("only events here") };
                seen.extend(taken(&events));
            }
            let request = UpdateWatchRequest {
                watch_id: watch.id.clone(),
                add: vec![kind(coming)],
                remove: vec![present.to_owned()],
                filter_version: i64::try_from(round).expect("small"),
                ..Default::default()
            };
            let mut other = tenant.at[round % 2].events.clone();
            let asked = other.update_watch(request);
            let changing = async {
                loop {
                    match watch.next().await {
                        Kind::Events(events) => seen.extend(taken(&events)),
                        Kind::FilterChanged(changed) => break changed.filter_version,
                        other => panic!("unexpected {other:?}"),
                    }
                }
            };
            let (answer, version) = tokio::join!(asked, changing);
            let answer = answer.expect("a change").into_inner();
            assert_eq!((answer.filter_version, version), (version, i64::try_from(round).expect("small") + 1));
            assert_eq!(answer.cursor, watch.cursor);
            boundary = position_of(&tenant, &watch.cursor).await;
            wanted.push((boundary, coming));
            if round % 3 == 0 {
                let request = WatchRequest {
                    start: Some(Start::Watch(watch.id.clone())),
                    resume_cursor: watch.cursor.clone(),
                    ..Default::default()
                };
                watch = Open::at(&tenant, round / 3 % 2, request).await;
                assert_eq!(watch.version, version);
            }
        }
        stop.store(true, Ordering::Relaxed);
        (seen, wanted, watch)
    };
    let ((), (mut seen, wanted, mut watch)) = tokio::join!(flood(&tenant, &stop), follow);
    let log = log(&tenant).await;
    let expected: Vec<(i64, String)> = (1..)
        .zip(log)
        .filter(|(position, kind)| {
            let filter = wanted.iter().rfind(|(from, _)| from < position).expect("from 0 on");
            kind == filter.1
        })
        .collect();
    while seen.len() < expected.len() {
        let Kind::Events(events) = watch.next().await else { panic!("only events here") };
        seen.extend(taken(&events));
    }
    assert_eq!(seen, expected, "each wanted event once, in order, by the filters of its place; changes at {wanted:?}");
}

/// The position that a cursor stands for: the one before the first event after it, which is waited for.
async fn position_of(tenant: &Tenant, cursor: &str) -> i64 {
    eventually("an event after the cursor", || async {
        let request = ListEventsRequest { page_size: 1, cursor: cursor.to_owned(), ..Default::default() };
        let page = tenant.events().list_events(request).await.expect("a cursor").into_inner();
        page.events.first().map(|event| event.position - 1).ok_or("the log ends there")
    })
    .await
}

/// Changes a setting of a world's own Postgres.
async fn set(world: &World, change: &str) {
    Cluster::run(&world.database_url, format!("ALTER SYSTEM {change}")).await;
    Cluster::run(&world.database_url, "SELECT pg_reload_conf()".to_owned()).await;
}

#[tokio::test]
async fn g8_a_watch_opens_and_resumes_while_the_database_cannot_be_written_to_and_follows_once_it_can() {
    let world = World::with_own_postgres(2).await;
    let tenant = world.tenant().await;
    tenant.declare("CUSTOM_KEPT").await;
    let mut before = Open::at(&tenant, 0, WatchRequest { filters: vec![kind("a")], ..Default::default() }).await;
    let (known, start) = (before.id.clone(), before.cursor.clone());
    let mut published = Vec::new();
    for _ in 0..2 {
        published.push(tenant.publish("CUSTOM_KEPT", &json!({"kind": "a"})).await.position);
    }
    assert_eq!(positions(&mut before, 2).await, published);
    set(&world, "SET default_transaction_read_only = on").await;
    for publisher in &tenant.publishers {
        eventually("nothing can be published", || async {
            let answer = publisher.clone().publish(publish_request("CUSTOM_KEPT", &json!({}))).await;
            match answer.map_err(|status| reason(&status)) {
                Err(refused) if refused == "STORAGE_FULL" => Ok(()),
                other => Err(other),
            }
        })
        .await;
    }

    let by_cursor = || WatchRequest { start: Some(Start::Cursor(start.clone())), ..Default::default() };
    let by_watch = |watch: &str| WatchRequest {
        start: Some(Start::Watch(watch.to_owned())),
        resume_cursor: start.clone(),
        ..Default::default()
    };
    let mut streams = vec![before];
    for replica in [0, 1] {
        for request in [by_cursor(), by_watch(&known)] {
            let mut opened = Open::at(&tenant, replica, request).await;
            assert_eq!(positions(&mut opened, 2).await, published);
            streams.push(opened);
        }
    }
    let filters = |watch: &str| UpdateWatchRequest {
        watch_id: watch.to_owned(),
        add: vec![kind("b")],
        filter_version: 1,
        ..Default::default()
    };
    for replica in [0, 1] {
        assert_refused(update(&tenant, replica, filters(&known)).await, Code::Unavailable, "STORAGE_FULL");
        for opened in &streams[1..] {
            let unknown = update(&tenant, replica, filters(&opened.id)).await;
            assert_refused(unknown, Code::NotFound, "WATCH_NOT_FOUND");
            let unknown = Open::try_at(&tenant, replica, by_watch(&opened.id)).await.map(|open| open.id);
            assert_refused(unknown, Code::NotFound, "WATCH_NOT_FOUND");
        }
    }

    set(&world, "RESET default_transaction_read_only").await;
    let position = eventually("events are published again", || async {
        let answer = tenant.try_publish(publish_request("CUSTOM_KEPT", &json!({"kind": "a"}))).await;
        answer.map(|published| published.position)
    })
    .await;
    for (index, stream) in streams.iter_mut().enumerate() {
        assert_eq!(positions(stream, 1).await, [position], "{index}");
        let changed = eventually("the watch is known", || update(&tenant, index % 2, filters(&stream.id))).await;
        assert_eq!((changed.filter_version, stream.changed().await), (2, 2), "{index}");
        let taken_up = Open::at(&tenant, index % 2, by_watch(&stream.id)).await;
        assert_eq!(taken_up.version, 1, "{index}: as it was at that cursor");
    }
}

/// The positions of the next events.
async fn positions(watch: &mut Open, count: usize) -> Vec<i64> {
    let events = watch.events(count).await;
    events.iter().map(|watched| watched.event.as_ref().expect("it is set").position).collect()
}
