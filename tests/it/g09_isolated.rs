//! G9: a listener that fails, hangs or floods delays no other listener and no other tenant.

use std::time::Instant;

use carillon::proto::internal::PublishRequest;
use carillon::proto::public::{
    CreateEventTypeRequest, DeliveryPolicy, DisableSubscriptionRequest, EventPhase, Invocation, InvocationState,
    ListSubscriptionsRequest, OutcomeClass,
};
use pbjson_types::Duration;
use rustix::process::Signal;
use serde_json::json;
use sqlx::PgConnection;
use tokio::task::JoinSet;

use crate::harness::database::Cluster;
use crate::harness::process::Confinement;
use crate::harness::tenant::publish_request;
use crate::harness::{Answer, Receiver, Tenant, World, eventually};

/// A listener at `/hangs`, of which no call ends before the test does.
async fn subscribe_hanging(tenant: &Tenant, receiver: &Receiver) {
    receiver.answers("/hangs", [Answer::Hang]);
    let mut request = tenant.subscribe_request("CUSTOM_SHARED", &receiver.url("/hangs"));
    let timeout = Some(Duration { seconds: 300, nanos: 0 });
    request.delivery_policy = Some(DeliveryPolicy { timeout, ..Default::default() });
    tenant.events().subscribe(request).await.expect("a receiver can be subscribed");
}

#[tokio::test]
async fn a_hanging_listener_delays_nobody_else() {
    let world = World::shared().await;
    let (tenant, other) = (world.tenant().await, world.tenant().await);
    let receiver = Receiver::start().await;
    receiver.answers("/fails", [Answer::Status(500)]);
    for one in [&tenant, &other] {
        one.declare("CUSTOM_SHARED").await;
    }
    subscribe_hanging(&tenant, &receiver).await;
    tenant.subscribe("CUSTOM_SHARED", &receiver, "/fails").await;
    tenant.subscribe("CUSTOM_SHARED", &receiver, "/healthy").await;
    other.subscribe("CUSTOM_SHARED", &receiver, "/other").await;
    // More than the hanging listener's in-flight limit, so that it is stuck for good.
    for n in 0..100 {
        tenant.publish("CUSTOM_SHARED", &json!({"n": n})).await;
    }
    let last = other.publish("CUSTOM_SHARED", &json!({})).await;
    other.all_invocations_become(&last.event_id, InvocationState::Succeeded).await;
    let received = receiver.receives("/healthy", 100).await;
    let numbers: std::collections::BTreeSet<_> =
        received.iter().map(|one| one.json()["data"]["n"].as_i64().expect("a number")).collect();
    assert_eq!(numbers.len(), 100);
    assert!(receiver.received("/hangs").len() <= 32, "the in-flight limit is exceeded");
}

#[tokio::test]
async fn g9_while_a_replica_that_leaves_waits_for_a_hanging_listener_the_others_of_its_tenant_go_on() {
    let mut world = World::start_with(1, "[dispatch]\ndrain_ms = 300000\n[server]\ndrain_timeout_ms = 300000\n").await;
    let mut tenant = world.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_SHARED").await;
    subscribe_hanging(&tenant, &receiver).await;
    tenant.subscribe("CUSTOM_SHARED", &receiver, "/healthy").await;
    tenant.publish("CUSTOM_SHARED", &json!({"n": 0})).await;
    receiver.receives("/hangs", 1).await;
    receiver.receives("/healthy", 1).await;
    let staying = world.add_replica().await;
    tenant.reconnect(&world);
    world.replicas[0].process.signal(Signal::TERM);
    for n in 1..=20 {
        let request = publish_request("CUSTOM_SHARED", &json!({"n": n}));
        tenant.publishers[staying].clone().publish(request).await.expect("the other replica takes it");
        receiver.receives("/healthy", n + 1).await;
    }
    assert!(world.replicas[0].process.is_running(), "nothing that hangs has ended");
    assert_eq!(receiver.received("/hangs").len(), 1, "nothing more of it starts there, and nobody else has the tenant");
}

#[tokio::test]
async fn g9_receivers_that_hang_take_no_descriptor_that_others_need() {
    let mut world = World::start(0).await;
    world.confinement = Some(Confinement::Limit("-n 256"));
    let replica = world.add_replica().await;
    let (tenant, other) = (world.tenant().await, world.tenant().await);
    let receiver = Receiver::start().await;
    for one in [&tenant, &other] {
        one.declare("CUSTOM_SHARED").await;
    }
    // Together they may have more attempts running than there are descriptors.
    for n in 0..10 {
        receiver.answers(&format!("/hangs/{n}"), [Answer::Hang]);
        tenant.subscribe("CUSTOM_SHARED", &receiver, &format!("/hangs/{n}")).await;
    }
    tenant.subscribe("CUSTOM_SHARED", &receiver, "/healthy").await;
    other.subscribe("CUSTOM_SHARED", &receiver, "/other").await;
    let (mut own, mut last) = (String::new(), String::new());
    for n in 0..20 {
        own = tenant.publish("CUSTOM_SHARED", &json!({"n": n})).await.event_id;
        last = other.publish("CUSTOM_SHARED", &json!({"n": n})).await.event_id;
    }
    receiver.receives("/healthy", 20).await;
    receiver.receives("/other", 20).await;
    let all = other.all_invocations_become(&last, InvocationState::Succeeded).await;
    assert!(all.iter().all(|one| one.attempt_count == 1), "{all:#?}");
    let all = tenant.invocations_of(&own).await;
    assert_eq!(all.len(), 11, "{all:#?}");
    assert_eq!(all.iter().find(|one| unreachable(one)), None);
    let process = &mut world.replicas[replica].process;
    assert!(process.is_running() && !process.log().contains("panicked"), "{}", process.log_tail());
}

fn unreachable(one: &Invocation) -> bool {
    one.last_attempt.as_ref().is_some_and(|last| last.outcome() == OutcomeClass::Unreachable)
}

#[tokio::test]
async fn g9_more_receivers_that_hang_than_there_are_descriptors_leave_other_tenants_theirs() {
    let mut world = World::start_with(0, "[dispatch]\nslow_after_ms = 100\n").await;
    world.confinement = Some(Confinement::Limit("-n 256"));
    world.add_replica().await;
    let (tenant, other) = (world.tenant().await, world.tenant().await);
    let receiver = Receiver::start().await;
    for one in [&tenant, &other] {
        one.declare("CUSTOM_SHARED").await;
    }
    for n in 0..300 {
        receiver.answers(&format!("/hangs/{n}"), [Answer::Hang]);
        tenant.subscribe("CUSTOM_SHARED", &receiver, &format!("/hangs/{n}")).await;
    }
    other.subscribe("CUSTOM_SHARED", &receiver, "/other").await;
    let own = tenant.publish("CUSTOM_SHARED", &json!({})).await.event_id;
    // Long enough for whatever hangs to count as slow.
    let began = Instant::now();
    for n in 1.. {
        let published = other.publish("CUSTOM_SHARED", &json!({ "n": n })).await;
        let all = other.all_invocations_become(&published.event_id, InvocationState::Succeeded).await;
        assert!(all.iter().all(|one| one.attempt_count == 1), "{all:#?}");
        if began.elapsed() > std::time::Duration::from_secs(5) {
            break;
        }
    }
    let all = tenant.invocations_of(&own).await;
    assert_eq!((all.len(), all.iter().find(|one| unreachable(one))), (300, None));
}

/// Holds the head of a tenant until the transaction of the connection ends.
pub async fn lock_head(world: &World, tenant: &Tenant) -> PgConnection {
    let mut holder = Cluster::superuser(&world.database_url).await;
    let sql = format!(
        "BEGIN; SELECT 1 FROM tenant_heads JOIN tenants USING (tenant_id) WHERE slug = '{}' FOR UPDATE OF tenant_heads",
        tenant.slug
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut holder).await.expect("the head is locked");
    holder
}

/// How many connections wait for a lock of the world's database.
pub async fn waiting_for_locks(watcher: &mut PgConnection) -> i64 {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    sqlx::query_scalar(sql).fetch_one(watcher).await.expect("a count")
}

/// The most connections that wait for a lock at a time, between twenty calls of another tenant, each of which is answered however many wait.
async fn most_waiting_while(world: &World, call: impl AsyncFn()) -> i64 {
    let mut watcher = Cluster::superuser(&world.database_url).await;
    let mut most = 0;
    for n in 0.. {
        most = most.max(waiting_for_locks(&mut watcher).await);
        if n >= 20 && most > 0 {
            break;
        }
        call().await;
    }
    most
}

#[tokio::test]
async fn g9_calls_that_wait_for_one_tenants_lock_leave_the_database_to_others() {
    let world = World::start_with(1, "[database]\nconnections_max = 12\n").await;
    let (tenant, other) = (world.tenant().await, world.tenant().await);
    tenant.declare("CUSTOM_SHARED").await;
    let receiver = Receiver::start().await;
    let made = tenant.subscribe("CUSTOM_SHARED", &receiver, "/stuck").await;
    let id = made.subscription.expect("it is set").id;
    let mut holder = lock_head(&world, &tenant).await;
    let mut stuck = JoinSet::new();
    for _ in 0..40 {
        let (mut events, id) = (tenant.events(), id.clone());
        stuck.spawn(async move {
            events.disable_subscription(DisableSubscriptionRequest { subscription_id: id, ..Default::default() }).await
        });
    }
    let most = most_waiting_while(&world, async || {
        other.events().list_subscriptions(ListSubscriptionsRequest::default()).await.expect("others have their turn");
    })
    .await;
    assert!((1..=7).contains(&most), "{most} of 12 connections wait for one tenant's lock");
    sqlx::raw_sql("ROLLBACK").execute(&mut holder).await.expect("the head is free");
    while let Some(ended) = stuck.join_next().await {
        drop(ended.expect("no panic"));
    }
    eventually("it can be disabled again", || async {
        tenant
            .events()
            .disable_subscription(DisableSubscriptionRequest { subscription_id: id.clone(), ..Default::default() })
            .await
    })
    .await;
}

#[tokio::test]
async fn g9_pre_events_that_wait_for_one_tenants_lock_leave_the_database_to_others() {
    let world = World::start_with(1, "[database]\nconnections_max = 12\n").await;
    let (tenant, other) = (world.tenant().await, world.tenant().await);
    let pre =
        CreateEventTypeRequest { name: "CUSTOM_ASKED".to_owned(), phase: EventPhase::Pre.into(), ..Default::default() };
    tenant.types().create_event_type(pre).await.expect("a PRE type can be declared");
    other.declare("CUSTOM_SHARED").await;
    let receiver = Receiver::start().await;
    tenant.subscribe("CUSTOM_ASKED", &receiver, "/agrees").await;
    let mut holder = lock_head(&world, &tenant).await;
    let mut asked = JoinSet::new();
    for _ in 0..40 {
        let mut publisher = tenant.publisher();
        let request = PublishRequest {
            pre_timeout: Some(Duration { seconds: 30, nanos: 0 }),
            ..publish_request("CUSTOM_ASKED", &json!({}))
        };
        asked.spawn(async move { publisher.publish(request).await });
    }
    receiver.receives("/agrees", 40).await;
    let most = most_waiting_while(&world, async || {
        other.publish("CUSTOM_SHARED", &json!({})).await;
    })
    .await;
    assert!((1..=2).contains(&most), "{most} of 12 connections wait for one tenant's lock");
    sqlx::raw_sql("ROLLBACK").execute(&mut holder).await.expect("the head is free");
    while let Some(published) = asked.join_next().await {
        published.expect("no panic").expect("its listener has agreed");
    }
}
