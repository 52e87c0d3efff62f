//! What callers change, and what is told of it: announcements, cancellations of what runs, redrives.

use super::*;
use crate::domain::announcement::Announcement;
use crate::domain::event::Lineage;
use crate::domain::health::HealthRow;
use crate::domain::ids::EventId;
use crate::domain::subscription::Subscription;
use crate::store::health::Merged;
use crate::store::subscriptions::{Missed, Selector, StateChange};
use crate::store::tests::eventually;

impl World {
    pub(super) async fn log(&self) -> Vec<(String, serde_json::Value)> {
        let place = LogPlace { after: 0, day: NaiveDate::default() };
        let entries = self.store.read_log(self.tenant, place, 1_000, 1_000).await.expect("readable");
        let data = |entry: &Arc<LogEntry>| serde_json::from_slice(entry.event.data.as_bytes()).expect("JSON");
        entries.iter().map(|entry| (entry.event.event_type.to_string(), data(entry))).collect()
    }

    /// Waits until the log holds as many events, and nothing waits to be announced.
    async fn until_told(&self, events: usize) -> Vec<(String, serde_json::Value)> {
        let told = async {
            loop {
                let log = self.log().await;
                let waiting = self.store.announcements(self.tenant, 100).await.expect("readable");
                if log.len() >= events && waiting.is_empty() {
                    return log;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(20), told).await;
        in_time.unwrap_or_else(|_| panic!("not told of {events} changes"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_announced_once_and_in_order_though_an_announcer_dies() {
    let world = World::new().await;
    world.subscribe("shop", "SUBSCRIPTION_CREATED", "/created").await;
    let (id, _) = world.subscribe("shop", NAME, "/fine").await;
    // Published and not yet deleted: so it is where an owner dies between the two.
    let waiting = world.store.announcements(world.tenant, 100).await.expect("readable");
    assert_eq!(waiting.len(), 3, "written with the changes");
    let Announcement { event_type, subject, data, .. } = waiting[0].announcement.clone();
    let (name, key) = (EventTypeName::parse(&event_type).expect("a name"), format!("announcement/{}", waiting[0].id));
    world.parts.writer.publish_system(world.tenant, name, subject, &data, None, &key).await.expect("published");

    let dispatch = world.dispatch();
    let log = world.until_told(3).await;
    let names = |log: &[(String, serde_json::Value)]| log.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&log), ["EVENT_TYPE_CREATED", "SUBSCRIPTION_CREATED", "SUBSCRIPTION_CREATED"]);
    assert_eq!(log[2].1["subscription"], json!(id.to_string()));
    assert_eq!(log[2].1["actor"], json!("carillon"));
    world.until(State::Succeeded, 2).await;
    assert_eq!(world.receiver.calls("/created"), [1, 1], "a subscription to announcements is one like any other");

    let by = Principal::server(world.tenant);
    let changes = [
        (StateChange::Disable, "SUBSCRIPTION_DISABLED"),
        (StateChange::Enable(Missed::Left), "SUBSCRIPTION_UPDATED"),
        (StateChange::Delete, "SUBSCRIPTION_DELETED"),
        (StateChange::Undelete(Missed::Left), "SUBSCRIPTION_UPDATED"),
    ];
    for (change, _) in changes {
        // Nothing tells this process of the change: the poll finds it.
        world
            .store
            .change_subscription_state(by.clone(), Selector::Id(id), None, change, 100, Repeatable::default())
            .await
            .expect("a change that fits");
    }
    let log = world.until_told(7).await;
    assert_eq!(names(&log[3..]), changes.map(|(_, name)| name));
    assert_eq!(log[3].1["reason"], json!("CALLER"));
    assert_eq!(log[4].1["changes"], json!({ "state": { "before": "DISABLED", "after": "ACTIVE" } }));
    assert_eq!(log[6].1["changes"], json!({ "state": { "before": "DELETED", "after": "ACTIVE" } }));
    // What changes nothing tells nothing.
    let same = world
        .store
        .change_subscription_state(
            by,
            Selector::Id(id),
            None,
            StateChange::Enable(Missed::Left),
            100,
            Repeatable::default(),
        )
        .await;
    same.expect("answered");
    assert_eq!(world.until_told(7).await.len(), 7);
    dispatch.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ran_when_its_invocation_was_cancelled_is_recorded_as_it_ended() {
    let world = World::new().await;
    let (_, no) = world.subscribe("shop", NAME, "/hang").await;
    let dispatch = world.dispatch();
    let entry = world.publish(1).await.remove(0);
    loop {
        let arrived = world.receiver.arrived.notified();
        if !world.receiver.calls("/hang").is_empty() {
            break;
        }
        arrived.await;
    }
    let by = Principal::server(world.tenant);
    let cancelled =
        world.store.cancel_invocation(&by, entry.invocation(no), Repeatable::default()).await.expect("answered");
    let InvocationChange::Done { invocation, head } = cancelled else { panic!("{cancelled:?}") };
    assert_eq!((invocation.state, invocation.attempt_count), (State::Cancelled, 0));
    world.parts.feed.send(&News::Head(head));
    world.receiver.healed.store(true, Ordering::Relaxed);
    world.receiver.hang.notify_waiters();
    let recorded = async {
        loop {
            let invocation = world.read(entry.invocation(no)).await;
            if let Some(last) = &invocation.last_attempt {
                return (invocation.state, invocation.attempt_count, last.outcome.status_code);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let recorded = tokio::time::timeout(Duration::from_secs(20), recorded).await.expect("the attempt is recorded");
    assert_eq!(recorded, (State::Cancelled, 1, 200), "cancelled stays cancelled, and the attempt is no secret");
    dispatch.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_is_asked_for_while_an_attempt_runs_follows_it_at_once() {
    let world = World::new().await;
    let (id, no) = world.subscribe("shop", NAME, "/third").await;
    let by = Principal::server(world.tenant);
    let hour = Duration::from_hours(1);
    let policy = DeliveryPolicy::new(3, hour, hour, Duration::from_secs(20), 4).expect("a policy");
    let slower = move |stored: Subscription| Ok::<_, ()>(Subscription { policy, ..stored });
    let slower = world.store.update_subscription(by.clone(), id, None, slower, Repeatable::default()).await;
    slower.expect("answered").expect("changed");
    world.parts.registry.reload(world.tenant).await.expect("readable");
    let dispatch = world.dispatch();
    let entry = world.publish(1).await.remove(0);
    world.until(State::Waiting, 1).await;
    for calls in [2, 3] {
        let retried = world.store.retry_invocation(&by, entry.invocation(no), Repeatable::default()).await;
        let Ok(InvocationChange::Done { invocation, head }) = retried else { panic!("{retried:?}") };
        assert_eq!((invocation.state, invocation.attempt_count), (State::Waiting, 1), "due at once");
        world.parts.feed.send(&News::Head(head));
        if calls == 3 {
            world.receiver.hang.notify_one();
        }
        let called = async {
            loop {
                let arrived = world.receiver.arrived.notified();
                if world.receiver.calls("/third") == [calls] {
                    return;
                }
                arrived.await;
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(20), called).await;
        assert!(in_time.is_ok(), "attempt {calls} is not made: {:?}", world.receiver.calls("/third"));
    }
    world.until(State::Succeeded, 1).await;
    dispatch.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_redrive_goes_in_chunks_and_takes_each_dead_letter_once() {
    let world = World::new().await;
    let (_, no) = world.subscribe("shop", NAME, "/fine").await;
    let mut connection =
        sqlx::PgConnection::connect(&world.postgres.owner_url("carillon")).await.expect("Postgres answers");
    let rows = "INSERT INTO dead_letters (tenant_id, position, subscription_no, day, attempt, dead_at)
                SELECT $1, p, $2, CURRENT_DATE, 3, now() FROM generate_series(1, 1200) AS p";
    sqlx::query(rows).bind(world.tenant.0).bind(no).execute(&mut connection).await.expect("inserted");
    let end = "UPDATE tenant_heads SET position = 1200 WHERE tenant_id = $1";
    sqlx::query(end).bind(world.tenant.0).execute(&mut connection).await.expect("updated");
    let by = Principal::server(world.tenant);
    let all = InvocationFilter::default();
    let redriven = world
        .store
        .redrive_invocations(&by, &all, 700, Repeatable::default())
        .await
        .expect("answered")
        .made()
        .expect("now");
    assert_eq!((redriven.count, redriven.more), (700, true));
    let redriven = world
        .store
        .redrive_invocations(&by, &all, 10_000, Repeatable::default())
        .await
        .expect("answered")
        .made()
        .expect("now");
    assert_eq!((redriven.count, redriven.more), (500, false));
    assert_eq!(
        world
            .store
            .redrive_invocations(&by, &all, 10_000, Repeatable::default())
            .await
            .expect("answered")
            .made()
            .expect("now")
            .count,
        0
    );
    // What is to be redriven is found before anything is locked: a look that finds nothing waits for no publish.
    let mut publishing = sqlx::Connection::begin(&mut connection).await.expect("begun");
    let lock = "SELECT FROM tenant_heads WHERE tenant_id = $1 FOR UPDATE";
    sqlx::query(lock).bind(world.tenant.0).execute(&mut *publishing).await.expect("locked");
    let redriven = world.store.redrive_invocations(&by, &all, 10_000, Repeatable::default()).await;
    assert_eq!(redriven.expect("answered").made().expect("now").count, 0);
    publishing.rollback().await.expect("unlocked");
    let (left, deferred): (i64, i64) =
        sqlx::query_as("SELECT (SELECT count(*) FROM dead_letters), (SELECT count(*) FROM deferred_invocations)")
            .fetch_one(&mut connection)
            .await
            .expect("readable");
    assert_eq!((left, deferred), (0, 1200));
    let audited = world.store.audit_records(world.tenant, None, 100).await.expect("readable");
    assert_eq!(audited.iter().filter(|record| record.action == "RedriveInvocations").count(), 2, "one a call");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_announced_in_one_commit_without_the_one_that_is_refused_for_good() {
    let world = World::publishing(publish::Config { event_bytes_max: 4_096, ..publish::Config::default() }).await;
    let (_, no) = world.subscribe("shop", NAME, "/fine").await;
    world.publish(3).await;
    let mut connection =
        sqlx::PgConnection::connect(&world.postgres.owner_url("carillon")).await.expect("Postgres answers");
    // What the first receiver has said does not fit into an event.
    let rows = "WITH dead AS (
                    INSERT INTO dead_letters (tenant_id, position, subscription_no, day, attempt, dead_at)
                    SELECT tenant_id, position, $2, day, 3, now() FROM events WHERE tenant_id = $1
                    RETURNING tenant_id, day, position, subscription_no, attempt)
                INSERT INTO attempts (tenant_id, day, position, subscription_no, attempt, outcome_class, status_code, duration_us,
                       started_at, error)
                SELECT tenant_id, day, position, subscription_no, attempt, 2, 500, 1, now(),
                       repeat('x', CASE position WHEN 1 THEN 5000 ELSE 1 END) FROM dead";
    sqlx::query(rows).bind(world.tenant.0).bind(no).execute(&mut connection).await.expect("inserted");
    let refused = crate::telemetry::measured().dispatch.announcements_refused.get();
    let dispatch = world.dispatch();
    eventually("the refused one holds up no other", || async {
        world.store.unannounced(world.tenant, 100).await.expect("readable").is_empty()
    })
    .await;
    let place = LogPlace { after: 0, day: NaiveDate::default() };
    let log = world.store.read_log(world.tenant, place, 1_000, 1_000).await.expect("readable");
    let told: Vec<_> =
        log.iter().filter(|entry| entry.event.event_type.as_str() == "INVOCATION_DEAD_LETTERED").collect();
    assert_eq!(told.len(), 2);
    assert_eq!(told[0].committed_at, told[1].committed_at, "one commit");
    assert!(crate::telemetry::measured().dispatch.announcements_refused.get() > refused);
    dispatch.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_a_caller_removes_at_once_is_announced_all_the_same_and_its_gone_receiver_disabled() {
    let world = World::new().await;
    let (_, broken) = world.subscribe("shop", NAME, "/broken").await;
    let (_, gone) = world.subscribe("shop", NAME, "/gone").await;
    let entries = world.publish(2).await;
    let mut connection =
        sqlx::PgConnection::connect(&world.postgres.owner_url("carillon")).await.expect("Postgres answers");
    // One attempt each that has ended so, and nobody who announces it yet.
    let rows = "WITH dead AS (
                    INSERT INTO dead_letters (tenant_id, position, subscription_no, day, attempt, dead_at, registry_version)
                    SELECT s.tenant_id, e.position, s.subscription_no, e.day, 1, now(), s.registry_version
                      FROM events e JOIN subscriptions s ON s.tenant_id = e.tenant_id AND s.subscription_no = ANY($2)
                     WHERE e.tenant_id = $1 AND e.event_type = $4
                    RETURNING tenant_id, day, position, subscription_no, attempt)
                INSERT INTO attempts (tenant_id, day, position, subscription_no, attempt, outcome_class, status_code, duration_us,
                       started_at, error)
                SELECT tenant_id, day, position, subscription_no, attempt, CASE subscription_no WHEN $3 THEN 8 ELSE 2 END, 400, 1,
                       now(), 'the first' FROM dead";
    let dead = sqlx::query(rows).bind(world.tenant.0).bind(vec![broken, gone]).bind(gone).bind(NAME);
    dead.execute(&mut connection).await.expect("inserted");
    let by = Principal::server(world.tenant);
    for entry in &entries {
        let cancelled = world.store.cancel_invocation(&by, entry.invocation(gone), Repeatable::default()).await;
        assert!(matches!(cancelled, Ok(InvocationChange::Done { .. })), "{cancelled:?}");
    }
    // Each in one of the ways in which it gets a fresh set of attempts.
    let (retried, redriven) = (entries[0].invocation(broken), entries[1].invocation(broken));
    let done = world.store.retry_invocation(&by, retried, Repeatable::default()).await;
    assert!(matches!(done, Ok(InvocationChange::Done { .. })), "{done:?}");
    let done = world.store.redrive_invocations(&by, &InvocationFilter::default(), 10, Repeatable::default()).await;
    assert_eq!(done.expect("answered").made().expect("now").count, 1);
    assert_eq!(world.store.unannounced_tenants(&[world.tenant]).await.expect("readable"), [world.tenant]);
    assert_eq!(world.store.unannounced(world.tenant, 100).await.expect("readable").len(), 4);

    let dispatch = world.dispatch();
    world.until(State::DeadLettered, 2).await;
    eventually("everything is told", || async {
        world.store.unannounced(world.tenant, 100).await.expect("readable").is_empty()
    })
    .await;
    let mut told: Vec<(String, i64, String)> = world
        .log()
        .await
        .into_iter()
        .filter_map(|(name, data)| {
            let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            (name == "INVOCATION_DEAD_LETTERED").then(|| {
                (
                    text(&data["invocation"]),
                    data["attempts"].as_i64().unwrap_or_default(),
                    text(&data["error"]["message"]),
                )
            })
        })
        .collect();
    told.sort();
    let first = |id: InvocationId| (id.to_string(), 1, "the first".to_owned());
    for id in [retried, redriven].into_iter().chain(entries.iter().map(|entry| entry.invocation(gone))) {
        assert_eq!(told.iter().filter(|told| **told == first(id)).count(), 1, "{id} in {told:?}");
    }
    let again: Vec<_> = told.iter().filter(|told| told.1 > 1).map(|told| told.0.clone()).collect();
    assert_eq!(again.len(), 2, "each time that it died is an event of its own: {told:?}");
    assert_eq!(told.len(), 6);
    let registry = world.parts.registry.reload(world.tenant).await.expect("readable");
    let disabled = &registry.subscription(gone).expect("exists").subscription;
    assert_eq!(
        (disabled.state, disabled.state_reason.as_str()),
        (crate::domain::subscription::State::Disabled, "GONE")
    );
    dispatch.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_dead_letter_that_was_announced_counts_as_announced() {
    let world = World::new().await;
    let (_, no) = world.subscribe("shop", NAME, "/fine").await;
    let entry = world.publish(1).await.remove(0);
    let mut connection =
        sqlx::PgConnection::connect(&world.postgres.owner_url("carillon")).await.expect("Postgres answers");
    let dies = "INSERT INTO dead_letters (tenant_id, position, subscription_no, day, attempt, dead_at)
                SELECT tenant_id, position, $2, day, $3, now() FROM events WHERE tenant_id = $1";
    let (by, id) = (Principal::server(world.tenant), entry.invocation(no));
    let place = Place { position: entry.position, subscription_no: no };
    sqlx::query(dies).bind(world.tenant.0).bind(no).bind(1).execute(&mut connection).await.expect("inserted");
    // It is published, redriven and dead again before the first one is marked.
    world.store.retry_invocation(&by, id, Repeatable::default()).await.expect("answered");
    sqlx::query("DELETE FROM deferred_invocations").execute(&mut connection).await.expect("deleted");
    sqlx::query(dies).bind(world.tenant.0).bind(no).bind(2).execute(&mut connection).await.expect("inserted");
    world.store.mark_announced(world.tenant, &[(place, 1)]).await.expect("marked");
    let left = world.store.unannounced(world.tenant, 100).await.expect("readable");
    assert_eq!(left.iter().map(|letter| (letter.place, letter.attempt)).collect::<Vec<_>>(), [(place, 2)]);
    // What is announced leaves nothing behind.
    world.store.mark_announced(world.tenant, &[(place, 2)]).await.expect("marked");
    world.store.retry_invocation(&by, id, Repeatable::default()).await.expect("answered");
    assert!(world.store.unannounced(world.tenant, 100).await.expect("readable").is_empty());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_deleted_app_leaves_stays_readable_hides_nothing_and_is_told() {
    let world = World::new().await;
    let (_, kept) = world.subscribe("shop", NAME, "/fine").await;
    let (id, no) = world.subscribe("other", NAME, "/broken").await;
    let entries = world.publish(2).await;
    let mut connection =
        sqlx::PgConnection::connect(&world.postgres.owner_url("carillon")).await.expect("Postgres answers");
    // Two attempts each, and one that a redrive has made since.
    let rows = "WITH dead AS (
                    INSERT INTO dead_letters (tenant_id, position, subscription_no, day, attempt, dead_at)
                    SELECT tenant_id, position, $2, day, 2, now() FROM events WHERE tenant_id = $1 AND event_type = $3
                    RETURNING tenant_id, day, position, subscription_no)
                INSERT INTO attempts (tenant_id, day, position, subscription_no, attempt, outcome_class, status_code, duration_us,
                       started_at, error)
                SELECT tenant_id, day, position, subscription_no, n, 2, 400, 1, 'epoch'::timestamptz + n * interval '1 s', 'no ' || n
                  FROM dead CROSS JOIN generate_series(1, 3) AS n";
    sqlx::query(rows).bind(world.tenant.0).bind(no).bind(NAME).execute(&mut connection).await.expect("inserted");
    let by = Principal::server(world.tenant);
    let (which, delete) = (Selector::Id(id), StateChange::Delete);
    world
        .store
        .change_subscription_state(by.clone(), which, None, delete, 100, Repeatable::default())
        .await
        .expect("unsubscribed");
    world.store.delete_app(by.clone(), "other".into(), Repeatable::default()).await.expect("it owns nothing any more");

    let invocation = world.read(entries[0].invocation(no)).await;
    assert_eq!(
        (invocation.state, invocation.subscription, invocation.app_slug.as_str()),
        (State::DeadLettered, id, "")
    );
    let (mut listed, mut key) = (Vec::new(), None);
    loop {
        let page = world.store.list_invocations(&by, &InvocationFilter::default(), key, 1).await;
        let (page, next) = page.expect("readable");
        listed.extend(page.iter().map(|invocation| (invocation.event_position, invocation.id.subscription_no)));
        key = next;
        if key.is_none() {
            break;
        }
    }
    assert_eq!(listed, [(2, no), (2, kept), (1, no), (1, kept)]);

    let dispatch = world.dispatch();
    let told = eventually_told(&world, "INVOCATION_DEAD_LETTERED", 2).await;
    for data in told {
        assert_eq!((&data["app"], &data["subscription"]), (&json!(""), &json!(id.to_string())));
        assert_eq!((&data["attempts"], &data["error"]["message"]), (&json!(2), &json!("no 2")));
        assert_eq!(data["first_attempt_at"], json!("1970-01-01T00:00:01+00:00"));
    }
    dispatch.stop().await;
    world.end().await;
}

/// Waits until the log holds so many events of a type, and answers their data.
async fn eventually_told(world: &World, event_type: &str, count: usize) -> Vec<serde_json::Value> {
    let of_type = || async {
        let log = world.log().await.into_iter();
        log.filter(|(name, _)| name == event_type).map(|(_, data)| data).collect::<Vec<_>>()
    };
    eventually(event_type, || async { of_type().await.len() == count }).await;
    of_type().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_chain_has_refused_is_cancelled_already_before_its_owner_has_recorded_it() {
    let world = World::new().await;
    let (_, no) = world.subscribe("shop", NAME, "/fine").await;
    let name = EventTypeName::parse(NAME).expect("a name");
    let lineage = Lineage { subscriptions: vec![no], ..Lineage::root(EventId(clock::new_uuid())) };
    let (writer, data) = (&world.parts.writer, json!({}));
    let looped = writer.publish_system(world.tenant, name, "looped".to_owned(), &data, Some(lineage), "looped").await;
    let id = looped.expect("published").entry.invocation(no);
    let by = Principal::server(world.tenant);
    for _ in 0..2 {
        let cancelled = world.store.cancel_invocation(&by, id, Repeatable::default()).await.expect("answered");
        assert!(matches!(cancelled, InvocationChange::WrongState(State::Cancelled)), "{cancelled:?}");
        let refused = world.read(id).await;
        assert_eq!((refused.state, refused.cancel_reason.as_deref()), (State::Cancelled, Some("CHAIN_CYCLE")));
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_is_shown_until_it_is_over_by_the_clock_of_the_database() {
    let world = World::new().await;
    let (id, no) = world.subscribe("shop", NAME, "/fine").await;
    let read =
        || async { world.store.subscription(world.tenant, None, id).await.expect("readable").expect("it is there") };
    let (version, until) = (read().await.registry_version, world.store.now() + TimeDelta::minutes(10));
    let pause = move |rows: Vec<HealthRow>| {
        let paused = |row| Merged { row: HealthRow { paused_until: Some(until), ..row }, told: None, disable: false };
        rows.into_iter().map(paused).collect()
    };
    world.store.merge_health(world.tenant, vec![(no, version)], pause).await.expect("it is written");
    assert_eq!(read().await.paused_until, Some(until));
    // The local clock stays where it is.
    world.store.set_clock(until, clock::now());
    assert_eq!(read().await.paused_until, None);
    world.end().await;
}
