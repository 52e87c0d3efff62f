//! G12: nothing is lost in silence. What retention has taken is an error with the way on, or a gap that is told, on every way to read;
//! a place that cannot be used is a typed error wherever it is given; a reader that falls out of memory reads on from the log.

use std::collections::BTreeSet;

use carillon::proto::public::watch_request::Start;
use carillon::proto::public::watch_response::Kind;
use carillon::proto::public::{
    DisableSubscriptionRequest, EnableSubscriptionRequest, GetEventRequest, InvocationState, ListEventsRequest,
    OnExpired, ReplayGap, WatchRequest,
};
use serde_json::json;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::database::{Cluster, owner_url};
use crate::harness::process::Process;
use crate::harness::tenant::{assert_refused, reason};
use crate::harness::{Receiver, Tenant, World, eventually, within};
use crate::watch::{positions, watch};

#[tokio::test]
async fn what_retention_took_is_told_to_whoever_reads_on() {
    let mut world = World::start_with(1, "[dispatch]\nlease_ms = 1000\nretention_days = 30").await;
    let mut tenant = world.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_AGED").await;
    tenant.subscribe("CUSTOM_AGED", &receiver, "/hook").await;
    let first = tenant.publish("CUSTOM_AGED", &json!({"n": 0})).await;
    let page = ListEventsRequest { page_size: 1, ..Default::default() };
    let old = tenant.events().list_events(page).await.expect("a page").into_inner().next_cursor;
    let mut events = vec![first.event_id.clone()];
    for n in 1..=3 {
        events.push(tenant.publish("CUSTOM_AGED", &json!({"n": n})).await.event_id);
    }
    for event in &events {
        tenant.all_invocations_become(event, InvocationState::Succeeded).await;
    }
    // The next replica finds a log of which all but the last two events are forty days old.
    world.replicas[0].process.kill();
    world.age_log(4, 40).await;
    world.replace(0).await;
    tenant.reconnect(&world);

    let earliest = eventually("the old cursor has expired", || async {
        let request = ListEventsRequest { cursor: old.clone(), ..Default::default() };
        match tenant.events().list_events(request).await {
            Err(status) if status.code() == Code::OutOfRange => {
                let status = assert_refused(Err::<(), _>(status), Code::OutOfRange, "CURSOR_EXPIRED");
                let metadata = status.get_details_error_info().expect("it is set").metadata;
                Ok(metadata.get("earliest_cursor").cloned().unwrap_or_else(|| panic!("{metadata:?}")))
            }
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let request = ListEventsRequest { cursor: earliest, ..Default::default() };
    let left = tenant.events().list_events(request).await.expect("the earliest cursor reads").into_inner().events;
    assert_eq!(left.iter().map(|event| event.position).take(2).collect::<Vec<_>>(), [5, 6]);
    eventually("the day is gone", || async {
        let request = GetEventRequest { event_id: first.event_id.clone() };
        tenant.events().get_event(request).await.err().map(|status| status.code()).ok_or("it is still there")
    })
    .await;

    let request = WatchRequest { start: Some(Start::Cursor(old.clone())), ..Default::default() };
    let refused = tenant.events().watch(request.clone()).await.map(|_| ());
    assert_refused(refused, Code::OutOfRange, "CURSOR_EXPIRED");
    let request = WatchRequest { on_expired: OnExpired::FromEarliest.into(), ..request };
    let mut stream = tenant.events().watch(request).await.expect("a watch").into_inner();
    let mut told = None;
    let seen = loop {
        let message = within("the next message", stream.message()).await.expect("it lives").expect("it goes on");
        match message.kind {
            Some(Kind::Gap(gap)) => told = Some((gap.from_position, gap.to_position)),
            Some(Kind::Events(events)) => break events.events[0].event.as_ref().expect("it is set").position,
            _ => {}
        }
    };
    assert_eq!((told, seen), (Some((2, 5)), 5), "the gap is told before what comes after it");

    // By a time: refused where something after it is gone, and where only time has gone by, the log as it is.
    let ago = |days| Some((carillon::clock::now() - chrono::TimeDelta::days(days)).into());
    for (days, is_refused) in [(41, true), (39, false)] {
        let list = ListEventsRequest { start_time: ago(days), ..Default::default() };
        let listed = tenant.events().list_events(list).await.map(|page| page.into_inner().events[0].position);
        let start = ago(days).map(Start::StartTime);
        let watched = tenant.events().watch(WatchRequest { start, ..Default::default() }).await.map(|_| ());
        if is_refused {
            assert_refused(listed, Code::OutOfRange, "CURSOR_EXPIRED");
            assert_refused(watched, Code::OutOfRange, "CURSOR_EXPIRED");
        } else {
            assert_eq!(listed.expect("a page"), 5);
            watched.expect("nothing of that time is gone");
        }
    }
}

#[tokio::test]
async fn a_replay_tells_what_retention_took_of_it() {
    let mut world = World::start_with(1, "[dispatch]\nlease_ms = 1000\nretention_days = 30").await;
    let mut tenant = world.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_AGED").await;
    let id = tenant.subscribe("CUSTOM_AGED", &receiver, "/hook").await.subscription.expect("it is set").id;
    let disable = DisableSubscriptionRequest { subscription_id: id.clone(), ..Default::default() };
    let disabled = tenant.events().disable_subscription(disable).await.expect("it is active").into_inner();
    let mut missed = Vec::new();
    for n in 0..4 {
        missed.push(tenant.publish("CUSTOM_AGED", &json!({ "n": n })).await.position);
    }
    world.replicas[0].process.kill();
    world.age_log(missed[1], 40).await;
    world.replace(0).await;
    tenant.reconnect(&world);
    eventually("the log is cut", || async {
        let page = tenant.events().list_events(ListEventsRequest::default()).await.expect("a page").into_inner();
        let first = page.events.first().map(|event| event.position);
        if first == Some(missed[1] + 1) { Ok(()) } else { Err(first) }
    })
    .await;
    let enable = EnableSubscriptionRequest { subscription_id: id, replay_missed: true, ..Default::default() };
    let enabled = tenant.events().enable_subscription(enable).await.expect("it is disabled").into_inner();
    let from_position = disabled.subscription.expect("it is set").effective_position + 1;
    assert_eq!(enabled.replay_gap, Some(ReplayGap { from_position, to_position: missed[1] + 1 }));
    let received = receiver.receives("/hook", 2).await;
    let numbers: BTreeSet<i64> =
        received.iter().map(|one| one.json()["data"]["n"].as_i64().expect("a number")).collect();
    assert_eq!(numbers, BTreeSet::from([2, 3]));
}

/// What each way to give a cursor answers: ListEvents, Watch by cursor, Watch by watch.
async fn answers(tenant: &Tenant, replica: usize, cursor: &str, watch_id: &str) -> Vec<Result<(), Status>> {
    let mut client = tenant.at[replica].events.clone();
    let list = ListEventsRequest { cursor: cursor.to_owned(), ..Default::default() };
    let start = WatchRequest { start: Some(Start::Cursor(cursor.to_owned())), ..Default::default() };
    let resume = WatchRequest {
        start: Some(Start::Watch(watch_id.to_owned())),
        resume_cursor: cursor.to_owned(),
        ..Default::default()
    };
    vec![
        client.list_events(list).await.map(|_| ()),
        client.watch(start).await.map(|_| ()),
        client.watch(resume).await.map(|_| ()),
    ]
}

#[tokio::test]
async fn a_cursor_that_cannot_be_used_is_a_typed_error_at_every_door() {
    let world = World::shared().await;
    let (tenant, other) = (world.tenant().await, world.tenant().await);
    other.declare("CUSTOM_LOST").await;
    other.publish("CUSTOM_LOST", &json!({})).await;
    let page = other.events().list_events(ListEventsRequest::default()).await.expect("a page").into_inner();
    let mut stream = tenant.events().watch(WatchRequest::default()).await.expect("a watch").into_inner();
    let first = stream.message().await.expect("it lives").expect("it goes on");
    let Some(Kind::Created(created)) = first.kind else { panic!("unexpected {first:?}") };
    let mut flipped = first.cursor.clone().into_bytes();
    flipped[20] = if flipped[20] == b'A' { b'B' } else { b'A' };
    let flipped = String::from_utf8(flipped).expect("ASCII");
    let cases = [
        (flipped.as_str(), Code::InvalidArgument, "CURSOR_MALFORMED"),
        (&first.cursor[1..], Code::InvalidArgument, "CURSOR_MALFORMED"),
        (page.next_cursor.as_str(), Code::FailedPrecondition, "CURSOR_FOREIGN"),
    ];
    for (cursor, code, expected) in cases {
        for replica in [0, 1] {
            for answer in answers(&tenant, replica, cursor, &created.watch_id).await {
                let status = assert_refused(answer, code, expected);
                assert_eq!(reason(&status), expected);
            }
        }
    }
}

#[tokio::test]
async fn a_reader_that_falls_out_of_memory_loses_nothing() {
    let settings = "[watch]\nring_entries_max = 16\nmessage_events_max = 8\nmessage_bytes_max = 65536\n";
    let world = World::start_with(2, settings).await;
    let tenant = world.tenant().await;
    tenant.declare("CUSTOM_LOST").await;
    let request = WatchRequest { start: Some(Start::Earliest(true)), ..Default::default() };
    let mut idle = [watch(&tenant, 0, request.clone()).await, watch(&tenant, 1, request).await];
    let text = "x".repeat(20_000);
    for n in 0..150 {
        tenant.publish("CUSTOM_LOST", &json!({"n": n, "text": text})).await;
    }
    for stream in &mut idle {
        // The declaration of the type is the log's first event.
        assert_eq!(positions(stream, 151).await.0, (1..=151).collect::<Vec<i64>>());
    }
}

/// Takes the world to another database, with the replica that goes on there.
async fn moves_to(world: &mut World, tenant: &mut Tenant, url: String) {
    world.replicas[0].process.kill();
    world.database_url = url;
    world.replace(0).await;
    tenant.reconnect(world);
}

#[tokio::test]
async fn a_cursor_from_before_a_restore_is_refused_however_far_the_log_has_grown() {
    let mut world = World::start(1).await;
    let mut tenant = world.tenant().await;
    tenant.declare("CUSTOM_LOST").await;
    let mut stream = tenant.events().watch(WatchRequest::default()).await.expect("a watch").into_inner();
    let first = stream.message().await.expect("it lives").expect("it goes on");
    let Some(Kind::Created(created)) = first.kind else { panic!("unexpected {first:?}") };
    drop(stream);
    world.replicas[0].process.kill();
    let original = world.database_url.clone();
    let (elsewhere, in_place) =
        (Cluster::shared().await.copy(&original).await, Cluster::shared().await.copy(&original).await);
    moves_to(&mut world, &mut tenant, original).await;
    for n in 0..3 {
        tenant.publish("CUSTOM_LOST", &json!({"n": n})).await;
    }
    let page = tenant.events().list_events(ListEventsRequest::default()).await.expect("a page").into_inner();
    let (old, seen) = (page.next_cursor, page.events.last().expect("events").position);
    let grow = async |tenant: &mut Tenant| {
        for n in 0..5 {
            tenant.publish("CUSTOM_LOST", &json!({"other": n})).await;
        }
        let page = tenant.events().list_events(ListEventsRequest::default()).await.expect("a page").into_inner();
        assert!(page.events.last().expect("events").position > seen, "it has grown past the cursor");
    };

    moves_to(&mut world, &mut tenant, elsewhere).await;
    grow(&mut tenant).await;
    for answer in answers(&tenant, 0, &old, &created.watch_id).await {
        assert_refused(answer, Code::FailedPrecondition, "CURSOR_FOREIGN");
    }

    // A recovery in place keeps the identity of the database: all that shows is a log that ends before the cursor.
    let identity = "UPDATE settings SET value = convert_to((SELECT system_identifier FROM pg_control_system()) || '/'
                      || (SELECT oid FROM pg_database WHERE datname = current_database()), 'UTF8')
                     WHERE name = 'database_identity'";
    Cluster::run(&in_place, identity.to_owned()).await;
    moves_to(&mut world, &mut tenant, in_place.clone()).await;
    for answer in answers(&tenant, 0, &old, &created.watch_id).await {
        assert_refused(answer, Code::FailedPrecondition, "CURSOR_AHEAD");
    }
    world.replicas[0].process.kill();
    let mut migrate = Process::carillon();
    migrate.args(["migrate", "--restored"]).env("CARILLON_DATABASE__URL", owner_url(&in_place));
    let output = tokio::process::Command::from(migrate).kill_on_drop(true).output();
    let output = within("carillon migrate ends", output).await.expect("carillon runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("tenants: 1."), "{output:?}");
    moves_to(&mut world, &mut tenant, in_place).await;
    grow(&mut tenant).await;
    for answer in answers(&tenant, 0, &old, &created.watch_id).await {
        assert_refused(answer, Code::FailedPrecondition, "CURSOR_FOREIGN");
    }
}

#[tokio::test]
async fn a_watch_that_is_open_while_its_log_begins_a_new_life_ends_and_says_so() {
    let world = World::start_with(2, "[watch]\nhead_check_ms = 100\n").await;
    let tenant = world.tenant().await;
    tenant.declare("CUSTOM_LOST").await;
    let from_start = WatchRequest { start: Some(Start::Earliest(true)), ..Default::default() };
    let mut open = [watch(&tenant, 0, from_start.clone()).await, watch(&tenant, 1, from_start.clone()).await];
    for stream in &mut open {
        assert_eq!(positions(stream, 1).await.0, [1]);
    }
    let renew = "UPDATE tenant_heads SET log_epoch = log_epoch + 1".to_owned();
    Cluster::run(&world.database_url, renew).await;
    for stream in &mut open {
        let mut told = String::new();
        let ended = loop {
            match within("the stream ends", stream.message()).await {
                Err(status) => break status,
                Ok(message) => {
                    if let Some(Kind::Closing(closing)) = message.expect("it does not end without a word").kind {
                        told = closing.reason;
                    }
                }
            }
        };
        assert_refused(Err::<(), _>(ended), Code::FailedPrecondition, "CURSOR_FOREIGN");
        assert_eq!(told, "CURSOR_FOREIGN");
    }
    // Whoever starts anew reads the new life.
    let mut stream = watch(&tenant, 0, from_start).await;
    let event = tenant.publish("CUSTOM_LOST", &json!({})).await;
    assert_eq!(positions(&mut stream, 2).await.0, [1, event.position]);
}
