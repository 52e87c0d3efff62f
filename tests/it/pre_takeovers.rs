//! PRE events whose owner dies while it asks: what the next owner goes on with.

use std::sync::Arc;

use carillon::proto::cloudevents::cloud_event::Data;
use carillon::proto::internal::{PublishRequest, WaitEventRequest, WaitEventResponse};
use carillon::proto::public::{
    CreateEventTypeRequest, DeliveryPolicy, DisableSubscriptionRequest, EventPhase, GetInvocationRequest,
    InvocationState, PreFailurePolicy, PrePolicy,
};
use pbjson_types::Duration;
use serde_json::json;
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::g09_isolated::{lock_head, waiting_for_locks};
use crate::harness::database::Cluster;
use crate::harness::tenant::{assert_refused, millis, publish_request, quick_policy};
use crate::harness::{Answer, Receiver, Tenant, World, eventually, within};

const TYPE: &str = "CUSTOM_PRE_TAKEN_OVER";
/// How long after its deadline an event may be decided at the latest, seconds, whatever becomes of its owner.
const BEYOND_DEADLINE_MAX: f64 = 5.0;
/// So that what is kept of an aborted event says when it was aborted.
const KEPT_A_DAY: &str = "[publish]\nidempotency_hours = 24\n";

async fn listened(tenant: &Tenant, receiver: &Receiver, path: &str) {
    let pre = CreateEventTypeRequest { name: TYPE.to_owned(), phase: EventPhase::Pre.into(), ..Default::default() };
    tenant.types().create_event_type(pre).await.expect("a PRE type can be declared");
    let listener = tenant.subscribe_request(TYPE, &receiver.url(path));
    tenant.events().subscribe(listener).await.expect("a listener can be subscribed");
}

fn timed(seconds: i64) -> PublishRequest {
    PublishRequest { pre_timeout: Some(Duration { seconds, nanos: 0 }), ..publish_request(TYPE, &json!({})) }
}

async fn wait(tenant: &Tenant, event_id: &str) -> Result<WaitEventResponse, Status> {
    let timeout = Some(Duration { seconds: 30, nanos: 0 });
    let wait = WaitEventRequest { event_id: event_id.to_owned(), timeout };
    within("the event", tenant.publisher().wait_event(wait)).await.map(tonic::Response::into_inner)
}

/// Publishes at the second replica, which dies while its listener is asked and says nothing; the event's id.
async fn left_by_its_owner(world: &mut World, tenant: &Tenant, receiver: &Receiver, path: &str) -> String {
    receiver.answers(path, [Answer::Hang]);
    let mut publisher = tenant.publishers[1].clone();
    let publishing = tokio::spawn(async move { publisher.publish(timed(2)).await });
    let asked = receiver.receives(path, 1).await;
    world.replicas[1].process.kill();
    within("its publisher hears of it", publishing).await.expect("no panic").expect_err("its replica is dead");
    asked[0].json()["id"].as_str().expect("an id").to_owned()
}

/// Publishes at the second replica, which dies once a listener's verdict is noted and while the one at `/slow` is asked for the first time;
/// the event's id.
async fn left_after_a_verdict(world: &mut World, tenant: &Tenant, receiver: &Receiver) -> String {
    receiver.answers("/slow", [Answer::Hang, Answer::Status(200)]);
    let mut publisher = tenant.publishers[1].clone();
    let publishing = tokio::spawn(async move { publisher.publish(timed(30)).await });
    let asked = receiver.receives("/slow", 1).await;
    stands(world, "EXISTS (SELECT FROM pending_verdicts)").await;
    world.replicas[1].process.kill();
    within("its publisher hears of it", publishing).await.expect("no panic").expect_err("its replica is dead");
    asked[0].json()["id"].as_str().expect("an id").to_owned()
}

/// How long after its deadline the one event of the world was aborted, seconds, by what the database has of it.
async fn aborted_after_its_deadline(world: &World) -> f64 {
    let watcher = Mutex::new(Cluster::superuser(&world.database_url).await);
    let sql = "SELECT extract(epoch FROM expires_at - interval '24 h' - deadline_at)::float8 FROM pending_events WHERE state = 3";
    eventually("the event is aborted", || async {
        let found = sqlx::query_scalar(sql).fetch_optional(&mut *watcher.lock().await).await;
        found.expect("readable").ok_or("not yet")
    })
    .await
}

#[tokio::test]
async fn an_event_whose_owner_dies_while_a_listener_says_nothing_is_aborted_soon_after_its_deadline() {
    let mut world = World::start_with(2, KEPT_A_DAY).await;
    let (tenant, receiver) = (world.tenant().await, Receiver::start().await);
    listened(&tenant, &receiver, "/silent").await;
    let event_id = left_by_its_owner(&mut world, &tenant, &receiver, "/silent").await;
    let after = aborted_after_its_deadline(&world).await;
    assert!((0.0..=BEYOND_DEADLINE_MAX).contains(&after), "{after} s after its deadline");
    assert_refused(wait(&tenant, &event_id).await, Code::DeadlineExceeded, "PRE_DEADLINE");
}

#[tokio::test]
async fn however_much_its_tenant_asks_for_an_event_whose_owner_dies_is_aborted_soon_after_its_deadline() {
    let mut world = World::start_with(2, &format!("{KEPT_A_DAY}[database]\nconnections_max = 12\n")).await;
    let (tenant, receiver) = (world.tenant().await, Receiver::start().await);
    listened(&tenant, &receiver, "/silent").await;
    tenant.declare("CUSTOM_SHARED").await;
    let stuck = tenant.subscribe("CUSTOM_SHARED", &receiver, "/stuck").await.subscription.expect("it is set").id;
    // All turns that the tenant has at the first replica are taken, and many calls wait for the next one.
    let mut holder = lock_head(&world, &tenant).await;
    let mut calls = JoinSet::new();
    for _ in 0..40 {
        let (mut events, id) = (tenant.events(), stuck.clone());
        calls.spawn(async move {
            loop {
                let request = DisableSubscriptionRequest { subscription_id: id.clone(), ..Default::default() };
                drop(events.disable_subscription(request).await);
            }
        });
    }
    let watcher = Mutex::new(Cluster::superuser(&world.database_url).await);
    eventually("the turns are taken", || async {
        let many = waiting_for_locks(&mut *watcher.lock().await).await;
        if many >= 7 { Ok(()) } else { Err(many) }
    })
    .await;
    let event_id = left_by_its_owner(&mut world, &tenant, &receiver, "/silent").await;
    let after = aborted_after_its_deadline(&world).await;
    calls.shutdown().await;
    sqlx::raw_sql("ROLLBACK").execute(&mut holder).await.expect("the head is free");
    assert!((0.0..=BEYOND_DEADLINE_MAX).contains(&after), "{after} s after its deadline");
    eventually("its publisher hears of it", || async {
        let refused = wait(&tenant, &event_id).await.expect_err("it is aborted");
        if refused.code() == Code::DeadlineExceeded { Ok(()) } else { Err(refused) }
    })
    .await;
}

#[tokio::test]
async fn an_event_is_not_given_up_while_it_cannot_be_read_who_waits_for_it() {
    let world = World::start_with(2, "[database]\nstatement_timeout_ms = 1000\n").await;
    let (tenant, receiver) = (world.tenant().await, Receiver::start().await);
    listened(&tenant, &receiver, "/slow").await;
    let gate = Arc::new(Semaphore::new(0));
    receiver.answers("/slow", [Answer::Gated(gate.clone())]);
    let mut publisher = tenant.publishers[1].clone();
    let publishing = tokio::spawn(async move { publisher.publish(timed(30)).await });
    let event_id = receiver.receives("/slow", 1).await[0].json()["id"].as_str().expect("an id").to_owned();
    let mut holder = Cluster::superuser(&world.database_url).await;
    let sql = "BEGIN; SELECT 1 FROM pending_events FOR UPDATE";
    sqlx::raw_sql(sql).execute(&mut holder).await.expect("its row is locked");
    publishing.abort();
    eventually("its owner looks who waits", || async {
        let log = world.replicas[1].process.log();
        if log.contains("whether a publisher waits elsewhere could not be read") { Ok(()) } else { Err(log) }
    })
    .await;
    gate.add_permits(10);
    // As if somebody had asked for it at the other replica.
    let sql = "UPDATE pending_events SET attached_at = clock_timestamp() + interval '1 min'; COMMIT";
    sqlx::raw_sql(sql).execute(&mut holder).await.expect("its row is free");
    let waited = wait(&tenant, &event_id).await.expect("it is born");
    assert!(waited.done && waited.event.is_some(), "{waited:?}");
}

#[tokio::test]
async fn where_events_are_given_up_at_once_it_is_looked_once_a_second_who_waits_elsewhere() {
    const LOOKS: i64 = 7;
    let world = World::start_with(2, "[pending]\nabandon_grace_ms = 0\nlease_ms = 4000\n").await;
    let (tenant, receiver) = (world.tenant().await, Receiver::start().await);
    listened(&tenant, &receiver, "/slow").await;
    let gate = Arc::new(Semaphore::new(0));
    receiver.answers("/slow", [Answer::Gated(gate.clone())]);
    let mut publisher = tenant.publishers[1].clone();
    let publishing = tokio::spawn(async move { publisher.publish(timed(30)).await });
    let event_id = receiver.receives("/slow", 1).await[0].json()["id"].as_str().expect("an id").to_owned();
    // As if somebody waited at the other replica. Each look renews the lease, and so is noted; so is what renews it by itself.
    let noted = "CREATE SCHEMA noted; CREATE TABLE noted.looks (at timestamptz);
         CREATE FUNCTION noted.note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
         $$ BEGIN INSERT INTO noted.looks VALUES (clock_timestamp()); RETURN NULL; END $$;
         CREATE TRIGGER noted AFTER UPDATE OF due_at ON pending_events FOR EACH ROW EXECUTE FUNCTION noted.note();
         UPDATE pending_events SET attached_at = clock_timestamp() + interval '1 min'";
    Cluster::run(&world.database_url, noted.to_owned()).await;
    publishing.abort();
    let watcher = Mutex::new(Cluster::superuser(&world.database_url).await);
    let span =
        "SELECT extract(epoch FROM max(at) - min(at))::float8 FROM (SELECT at FROM noted.looks ORDER BY at LIMIT $1) l
                 HAVING count(*) = $1";
    let span: f64 = eventually("it is looked", || async {
        let found = sqlx::query_scalar(span).bind(LOOKS).fetch_optional(&mut *watcher.lock().await).await;
        found.expect("readable").ok_or("too seldom yet")
    })
    .await;
    assert!(span > 2.0, "{LOOKS} looks within {span} s");
    gate.add_permits(10);
    let waited = wait(&tenant, &event_id).await.expect("it is born");
    assert!(waited.done && waited.event.is_some(), "{waited:?}");
}

#[tokio::test]
async fn attempts_of_a_next_owner_go_on_above_those_of_the_one_that_died() {
    let mut world = World::start(2).await;
    let (tenant, receiver) = (world.tenant().await, Receiver::start().await);
    let pre = CreateEventTypeRequest { name: TYPE.to_owned(), phase: EventPhase::Pre.into(), ..Default::default() };
    tenant.types().create_event_type(pre).await.expect("a PRE type can be declared");
    let mut listener = tenant.subscribe_request(TYPE, &receiver.url("/ill"));
    listener.delivery_policy = Some(DeliveryPolicy {
        max_attempts: 50,
        initial_backoff: Some(millis(100)),
        max_backoff: Some(millis(200)),
        ..Default::default()
    });
    tenant.events().subscribe(listener).await.expect("a listener can be subscribed");
    receiver.answers("/ill", [Answer::Status(500)]);
    let request =
        PublishRequest { pre_timeout: Some(Duration { seconds: 30, nanos: 0 }), ..publish_request(TYPE, &json!({})) };
    let mut publisher = tenant.publishers[1].clone();
    let publishing = tokio::spawn(async move { publisher.publish(request).await });
    let asked = receiver.receives("/ill", 5).await;
    let event_id = asked[0].json()["id"].as_str().expect("an id").to_owned();
    world.replicas[1].process.kill();
    within("its publisher hears of it", publishing).await.expect("no panic").expect_err("its replica is dead");
    let before = receiver.received("/ill").len();
    receiver.receives("/ill", before + 3).await;
    receiver.answers("/ill", [Answer::Status(200)]);
    let wait = WaitEventRequest { event_id: event_id.clone(), timeout: Some(Duration { seconds: 30, nanos: 0 }) };
    let waited = within("the event", tenant.publisher().wait_event(wait)).await.expect("it is born").into_inner();
    assert!(waited.done && waited.event.is_some());
    let ended = eventually("its invocation is recorded", || async {
        let all = tenant.invocations_of(&event_id).await;
        all.into_iter().find(|one| one.state() == InvocationState::Succeeded).ok_or("not yet")
    })
    .await;
    let made = receiver.received("/ill").len();
    assert!(usize::try_from(ended.attempt_count).is_ok_and(|number| number >= made), "{made} made: {ended:?}");
    // A number that was written down and not used is left out; nothing else is.
    assert!(usize::try_from(ended.attempt_count).is_ok_and(|number| number <= made + 1), "{made} made: {ended:?}");
}

#[tokio::test]
async fn a_delayed_event_whose_owner_died_before_anybody_answered_has_its_time_anew_but_only_once() {
    let world = World::start(1).await;
    let (tenant, receiver) = (world.tenant().await, Receiver::start().await);
    listened(&tenant, &receiver, "/agrees").await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let deliver_at = Some((carillon::clock::now() + chrono::TimeDelta::hours(1)).into());
        let delayed = tenant.try_publish(PublishRequest { deliver_at, ..timed(20) }).await.expect("it is accepted");
        ids.push(delayed.event_id);
    }
    // As replicas leave them that die behind the gate; the second one did so after it had taken the event over.
    let sql = "WITH left_behind AS (SELECT event_id, row_number() OVER (ORDER BY created_at) AS n FROM pending_events)
               UPDATE pending_events p SET state = 2, token = token + 1, deliver_at = due_at - interval '2 h',
                      due_at = now() - interval '1 s', deadline_at = now() - interval '1 s', attempted = n - 1,
                      matched = ARRAY[(SELECT max(subscription_no) FROM subscriptions)]
                 FROM left_behind l WHERE l.event_id = p.event_id";
    sqlx::raw_sql(sql).execute(&mut Cluster::superuser(&world.database_url).await).await.expect("they are left");
    let waited = wait(&tenant, &ids[0]).await.expect("its listener agrees");
    assert!(waited.event.is_some(), "{waited:?}");
    assert_refused(wait(&tenant, &ids[1]).await, Code::DeadlineExceeded, "PRE_DEADLINE");
    assert_eq!(receiver.received("/agrees").len(), 1);
}

/// Waits until an SQL condition holds of the one pending event of the world.
async fn stands(world: &World, condition: &str) {
    let watcher = Mutex::new(Cluster::superuser(&world.database_url).await);
    let sql = format!("SELECT {condition} FROM pending_events");
    eventually(condition, || async {
        let found = sqlx::query_scalar(sqlx::AssertSqlSafe(sql.clone())).fetch_one(&mut *watcher.lock().await).await;
        if found.expect("it is pending") { Ok(()) } else { Err("not yet") }
    })
    .await;
}

#[tokio::test]
async fn an_event_whose_listener_has_agreed_stays_its_owners_however_long_the_commit_takes() {
    let world = World::start(2).await;
    let (tenant, receiver) = (world.tenant().await, Receiver::start().await);
    listened(&tenant, &receiver, "/agrees").await;
    let mut holder = lock_head(&world, &tenant).await;
    let mut publisher = tenant.publishers[1].clone();
    let publishing = tokio::spawn(async move { publisher.publish(timed(1)).await });
    receiver.receives("/agrees", 1).await;
    // Two leases after its deadline it is still the first owner's.
    stands(&world, "deadline_at + interval '6 s' < clock_timestamp()").await;
    stands(&world, "token = 1 AND due_at > clock_timestamp()").await;
    sqlx::raw_sql("ROLLBACK").execute(&mut holder).await.expect("the head is free");
    within("the publisher", publishing).await.expect("no panic").expect("its listener agreed");
    assert_eq!(receiver.received("/agrees").len(), 1, "it is asked once");
    let watcher = Mutex::new(holder);
    eventually("nothing of it is left behind", || async {
        let sql = "SELECT count(*) FROM pending_verdicts";
        let left = sqlx::query_scalar::<_, i64>(sql).fetch_one(&mut *watcher.lock().await).await.expect("a count");
        if left == 0 { Ok(()) } else { Err(left) }
    })
    .await;
}

#[tokio::test]
async fn a_listener_that_agreed_is_not_asked_again_where_its_owner_dies_while_it_commits() {
    let mut world = World::start(2).await;
    let (tenant, receiver) = (world.tenant().await, Receiver::start().await);
    listened(&tenant, &receiver, "/agrees").await;
    let mut holder = lock_head(&world, &tenant).await;
    let mut publisher = tenant.publishers[1].clone();
    let publishing = tokio::spawn(async move { publisher.publish(timed(30)).await });
    let event_id = receiver.receives("/agrees", 1).await[0].json()["id"].as_str().expect("an id").to_owned();
    stands(&world, "EXISTS (SELECT FROM pending_verdicts)").await;
    world.replicas[1].process.kill();
    within("its publisher hears of it", publishing).await.expect("no panic").expect_err("its replica is dead");
    stands(&world, "token > 1").await;
    sqlx::raw_sql("ROLLBACK").execute(&mut holder).await.expect("the head is free");
    let waited = wait(&tenant, &event_id).await.expect("it is born");
    assert!(waited.done && waited.event.is_some(), "{waited:?}");
    assert_eq!(receiver.received("/agrees").len(), 1, "it is asked once");
}

#[tokio::test]
async fn each_attempt_of_a_listener_that_agreed_is_recorded_where_another_owner_commits() {
    let mut world = World::start(2).await;
    let (tenant, receiver) = (world.tenant().await, Receiver::start().await);
    listened(&tenant, &receiver, "/slow").await;
    let mut second = tenant.subscribe_request(TYPE, &receiver.url("/second"));
    second.delivery_policy = Some(quick_policy());
    let second = tenant.events().subscribe(second).await.expect("a listener can be subscribed").into_inner();
    let second = second.subscription.expect("it is set").id;
    receiver.answers("/second", [Answer::Status(503), Answer::Status(200)]);
    let event_id = left_after_a_verdict(&mut world, &tenant, &receiver).await;
    let waited = wait(&tenant, &event_id).await.expect("it is born");
    assert!(waited.done && waited.event.is_some(), "{waited:?}");
    let listed = tenant.all_invocations_become(&event_id, InvocationState::Succeeded).await;
    let retried = listed.into_iter().find(|one| one.subscription_id == second).expect("it is listed");
    let get = GetInvocationRequest { invocation_id: retried.id };
    let read = tenant.invocations().get_invocation(get).await.expect("it is read").into_inner();
    let made: Vec<_> = read.attempts.iter().map(|attempt| (attempt.number, attempt.status_code)).collect();
    assert_eq!(made, [(1, 503), (2, 200)]);
}

#[tokio::test]
async fn a_failure_that_is_ignored_stays_so_where_its_listener_unsubscribes_and_another_owner_commits() {
    let mut world = World::start(2).await;
    let (tenant, receiver) = (world.tenant().await, Receiver::start().await);
    listened(&tenant, &receiver, "/slow").await;
    let mut fails = tenant.subscribe_request(TYPE, &receiver.url("/fails"));
    fails.delivery_policy = Some(DeliveryPolicy { max_attempts: 1, ..quick_policy() });
    let ignored = PrePolicy { failure_policy: PreFailurePolicy::Ignore.into(), ..Default::default() };
    fails.pre_policy = Some(ignored);
    let fails = tenant.events().subscribe(fails).await.expect("a listener can be subscribed").into_inner();
    receiver.answers("/fails", [Answer::Status(500)]);
    let event_id = left_after_a_verdict(&mut world, &tenant, &receiver).await;
    tenant.unsubscribe(&fails.subscription.expect("it is set").id).await;
    let waited = wait(&tenant, &event_id).await.expect("it is born");
    assert!(waited.done && waited.event.is_some(), "{waited:?}");
}

#[tokio::test]
async fn what_a_listener_enriched_before_it_unsubscribed_is_in_the_event_where_another_owner_commits() {
    let mut world = World::start(2).await;
    let (tenant, receiver) = (world.tenant().await, Receiver::start().await);
    listened(&tenant, &receiver, "/slow").await;
    let mut enriches = tenant.subscribe_request(TYPE, &receiver.url("/plan"));
    enriches.pre_policy = Some(PrePolicy { enrich_paths: vec!["/plan".to_owned()], ..Default::default() });
    let enriches = tenant.events().subscribe(enriches).await.expect("a listener can be subscribed").into_inner();
    let json = vec![("content-type", "application/json".to_owned())];
    receiver.answers("/plan", [Answer::Full(200, json, br#"{"patch":{"plan":"paid"}}"#.to_vec())]);
    let event_id = left_after_a_verdict(&mut world, &tenant, &receiver).await;
    tenant.unsubscribe(&enriches.subscription.expect("it is set").id).await;
    let waited = wait(&tenant, &event_id).await.expect("it is born");
    let data = waited.event.and_then(|event| event.event).and_then(|event| event.data);
    assert_eq!(data, Some(Data::TextData(r#"{"plan":"paid"}"#.to_owned())));
}
