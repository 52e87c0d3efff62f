//! `replay_missed`: what a subscription missed while it was not active is delivered after all, exactly that, marked, and once it ends
//! early no further.

use std::collections::BTreeSet;
use std::sync::Arc;

use carillon::proto::public::{
    DeliveryPolicy, DisableSubscriptionRequest, EnableSubscriptionRequest, GetInvocationRequest, InvocationState,
    ListInvocationsRequest, SubscribeRequest, Subscription, UpdateSubscriptionRequest,
};
use serde_json::json;
use tokio::sync::Semaphore;

use crate::harness::database::Cluster;
use crate::harness::tenant::{Tenant, quick_policy};
use crate::harness::wait::{eventually, within};
use crate::harness::{Answer, Receiver, World};

const EVENT: &str = "CUSTOM_MISSED";

async fn subscribe(tenant: &Tenant, receiver: &Receiver, path: &str) -> String {
    tenant.subscribe(EVENT, receiver, path).await.subscription.expect("it is set").id
}

/// Publishes events with these numbers; returns their ids.
async fn publish(tenant: &Tenant, numbers: std::ops::Range<i64>) -> Vec<String> {
    let mut ids = Vec::new();
    for n in numbers {
        ids.push(tenant.publish(EVENT, &json!({ "n": n })).await.event_id);
    }
    ids
}

/// The numbers that a path has received, marked as a replay or not.
fn numbers(receiver: &Receiver, path: &str, replayed: bool) -> BTreeSet<i64> {
    let received = receiver.received(path);
    let wanted = received.iter().filter(|one| (one.header("webhook-replay") == "true") == replayed);
    wanted.map(|one| one.json()["data"]["n"].as_i64().expect("a number")).collect()
}

async fn receives(receiver: &Receiver, path: &str, replayed: bool, wanted: impl IntoIterator<Item = i64>) {
    let wanted: BTreeSet<i64> = wanted.into_iter().collect();
    eventually(&format!("{path} receives exactly {wanted:?}"), || async {
        let found = numbers(receiver, path, replayed);
        if found == wanted { Ok(()) } else { Err(found) }
    })
    .await;
}

#[tokio::test]
async fn exactly_what_was_missed_arrives_marked_as_a_replay() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare(EVENT).await;
    let receiver = Receiver::start().await;
    let id = subscribe(&tenant, &receiver, "/hook").await;
    publish(&tenant, 0..5).await;
    receives(&receiver, "/hook", false, 0..5).await;
    // Disabled first and deleted then: it misses everything since it was active.
    let disable = DisableSubscriptionRequest { subscription_id: id.clone(), ..Default::default() };
    tenant.events().disable_subscription(disable).await.expect("it is active");
    let missed = publish(&tenant, 5..20).await;
    tenant.unsubscribe(&id).await;
    publish(&tenant, 20..40).await;
    tenant.undelete(&id, true).await;
    publish(&tenant, 40..45).await;
    receives(&receiver, "/hook", true, 5..40).await;
    receives(&receiver, "/hook", false, (0..5).chain(40..45)).await;
    assert_eq!(receiver.received("/hook").len(), 45, "each once");

    let invocation = tenant.all_invocations_become(&missed[0], InvocationState::Succeeded).await.remove(0);
    assert!(invocation.replay && invocation.subscription_id == id, "{invocation:?}");
    let request = GetInvocationRequest { invocation_id: invocation.id };
    let alone = tenant.invocations().get_invocation(request).await.expect("it is found by its id").into_inner();
    assert!(alone.invocation.is_some_and(|invocation| invocation.replay));

    // What was replayed is not missed again, nor what is left out by a restore without a replay.
    tenant.unsubscribe(&id).await;
    publish(&tenant, 45..50).await;
    tenant.undelete(&id, false).await;
    tenant.unsubscribe(&id).await;
    publish(&tenant, 50..55).await;
    tenant.undelete(&id, true).await;
    receives(&receiver, "/hook", true, (5..40).chain(50..55)).await;
    assert_eq!(receiver.received("/hook").len(), 50, "each once");
}

#[tokio::test]
async fn the_present_filter_decides_and_enabling_replays_too() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare(EVENT).await;
    tenant.declare("CUSTOM_OTHER").await;
    let receiver = Receiver::start().await;
    let id = subscribe(&tenant, &receiver, "/hook").await;
    let disable = DisableSubscriptionRequest { subscription_id: id.clone(), ..Default::default() };
    tenant.events().disable_subscription(disable).await.expect("it is active");
    for n in 0..30 {
        publish(&tenant, n..n + 1).await;
        tenant.publish("CUSTOM_OTHER", &json!({ "n": n })).await;
    }
    let update = UpdateSubscriptionRequest {
        subscription: Some(Subscription { id: id.clone(), filter: "data.n >= 20".to_owned(), ..Default::default() }),
        ..Default::default()
    };
    tenant.events().update_subscription(update).await.expect("a disabled one can be changed");
    let enable = EnableSubscriptionRequest { subscription_id: id, replay_missed: true, ..Default::default() };
    tenant.events().enable_subscription(enable).await.expect("it is disabled");
    publish(&tenant, 30..31).await;
    receives(&receiver, "/hook", true, 20..30).await;
    receives(&receiver, "/hook", false, 30..31).await;
    assert_eq!(receiver.received("/hook").len(), 11, "each once");
}

#[tokio::test]
async fn a_crash_in_the_middle_of_a_replay_leaves_nothing_out_and_adds_nothing() {
    let mut world = World::start_with(1, "[dispatch]\nlease_ms = 1000\nreplay_per_second = 20\n").await;
    let mut tenant = world.tenant().await;
    tenant.declare(EVENT).await;
    let receiver = Receiver::start().await;
    let id = subscribe(&tenant, &receiver, "/hook").await;
    tenant.unsubscribe(&id).await;
    publish(&tenant, 0..60).await;
    tenant.undelete(&id, true).await;
    receiver.receives("/hook", 5).await;
    let before = numbers(&receiver, "/hook", true).len();
    world.replace(0).await;
    tenant.reconnect(&world);
    assert!(before < 60, "the crash came in the middle");
    publish(&tenant, 60..61).await;
    receives(&receiver, "/hook", true, 0..60).await;
    receives(&receiver, "/hook", false, 60..61).await;
}

#[tokio::test]
async fn a_receiver_that_hangs_holds_its_own_replay_and_no_other_one() {
    let world = World::start_with(1, "[dispatch]\nqueue_max = 8\n").await;
    let tenant = world.tenant().await;
    tenant.declare(EVENT).await;
    let (receiver, gate) = (Receiver::start().await, Arc::new(Semaphore::new(0)));
    receiver.answers("/hangs", [Answer::Gated(gate.clone())]);
    let policy = DeliveryPolicy { max_in_flight: 1, ..quick_policy() };
    let request = tenant.subscribe_request(EVENT, &receiver.url("/hangs"));
    let hangs = tenant.events().subscribe(SubscribeRequest { delivery_policy: Some(policy), ..request }).await;
    let hangs = hangs.expect("valid").into_inner().subscription.expect("it is set").id;
    let well = subscribe(&tenant, &receiver, "/well").await;
    for id in [&hangs, &well] {
        tenant.unsubscribe(id).await;
    }
    publish(&tenant, 0..200).await;
    for id in [&hangs, &well] {
        tenant.undelete(id, true).await;
    }
    // The one that is furthest behind goes on first: were the other one not held, it would be as far.
    receives(&receiver, "/well", true, 0..200).await;
    let request = ListInvocationsRequest { subscription_id: hangs, page_size: 1_000, ..Default::default() };
    let taken_up = tenant.invocations().list_invocations(request).await.expect("listed").into_inner().invocations.len();
    assert!((1..100).contains(&taken_up), "{taken_up} are taken up");
    gate.add_permits(200);
    receives(&receiver, "/hangs", true, 0..200).await;
    assert_eq!(receiver.received("/hangs").len(), 200, "each once");
}

#[tokio::test]
async fn deleting_again_ends_a_replay() {
    let world = World::start_with(1, "[dispatch]\nreplay_per_second = 20\n").await;
    let tenant = world.tenant().await;
    tenant.declare(EVENT).await;
    let receiver = Receiver::start().await;
    let (ended, whole) = (subscribe(&tenant, &receiver, "/ended").await, subscribe(&tenant, &receiver, "/whole").await);
    for id in [&ended, &whole] {
        tenant.unsubscribe(id).await;
    }
    publish(&tenant, 0..40).await;
    tenant.undelete(&ended, true).await;
    receiver.receives("/ended", 1).await;
    tenant.unsubscribe(&ended).await;
    tenant.undelete(&ended, false).await;
    let before = numbers(&receiver, "/ended", true).len();
    // The one that is furthest behind goes on first: were the ended replay still there, it would be through with this one.
    tenant.undelete(&whole, true).await;
    publish(&tenant, 40..41).await;
    receives(&receiver, "/whole", true, 0..40).await;
    receives(&receiver, "/ended", false, 40..41).await;
    let after = numbers(&receiver, "/ended", true).len();
    assert!(before < 30 && after <= before + 10, "{before} before, {after} after");
}

#[tokio::test]
async fn what_is_left_of_a_replay_that_ends_early_is_delivered_by_the_next_one() {
    let world = World::start_with(1, "[dispatch]\nreplay_per_second = 20\n").await;
    let tenant = world.tenant().await;
    tenant.declare(EVENT).await;
    let receiver = Receiver::start().await;
    let id = subscribe(&tenant, &receiver, "/hook").await;
    tenant.unsubscribe(&id).await;
    let mut missed = publish(&tenant, 0..40).await;
    tenant.undelete(&id, true).await;
    receiver.receives("/hook", 1).await;
    publish(&tenant, 40..42).await;
    receives(&receiver, "/hook", false, 40..42).await;
    // Deleted in the middle of it, and in the middle of what follows from that disabled.
    tenant.unsubscribe(&id).await;
    missed.extend(publish(&tenant, 42..45).await);
    let before = numbers(&receiver, "/hook", true).len();
    assert!(before < 30, "{before} of 40 replayed");
    tenant.undelete(&id, true).await;
    receiver.receives("/hook", before + 4).await;
    let disable = DisableSubscriptionRequest { subscription_id: id.clone(), ..Default::default() };
    tenant.events().disable_subscription(disable).await.expect("it is active");
    missed.extend(publish(&tenant, 45..47).await);
    let before = numbers(&receiver, "/hook", true).len();
    assert!(before < 40, "{before} of 45 replayed");
    let enable = EnableSubscriptionRequest { subscription_id: id.clone(), replay_missed: true, ..Default::default() };
    tenant.events().enable_subscription(enable).await.expect("it is disabled");
    publish(&tenant, 47..48).await;
    receives(&receiver, "/hook", false, [40, 41, 47]).await;
    // What was on its way when it ended is cancelled on the record; everything else arrives.
    let mut arrived = BTreeSet::new();
    for (event, n) in missed.iter().zip((0..40).chain(42..47)) {
        let state = eventually("a missed event has its invocation", || async {
            let all = tenant.invocations_of(event).await;
            let ended = |state| matches!(state, InvocationState::Succeeded | InvocationState::Cancelled);
            match &all[..] {
                [one] if one.replay && ended(one.state()) => Ok(one.state()),
                _ => Err(all),
            }
        })
        .await;
        if state == InvocationState::Succeeded {
            arrived.insert(n);
        }
    }
    assert!(arrived.contains(&39) && arrived.is_superset(&(42..47).collect()), "{arrived:?}");
    assert!(numbers(&receiver, "/hook", true).is_superset(&arrived), "what succeeded was received");
    let total = receiver.received("/hook").len();
    assert_eq!(total, numbers(&receiver, "/hook", true).len() + 3, "each once");
}

#[tokio::test]
async fn what_a_step_takes_up_while_its_replay_is_ended_is_delivered_once_and_all_else_by_the_next_one() {
    let world = World::start_with(1, "[dispatch]\nreplay_per_second = 20\n").await;
    let tenant = world.tenant().await;
    tenant.declare(EVENT).await;
    let receiver = Receiver::start().await;
    let id = subscribe(&tenant, &receiver, "/hook").await;
    tenant.unsubscribe(&id).await;
    let missed = publish(&tenant, 0..20).await;
    let (database, mut steps, mut changes) = (
        &world.database_url,
        Cluster::superuser(&world.database_url).await,
        Cluster::superuser(&world.database_url).await,
    );
    // A step has moved the replay on, and cannot commit.
    let lock = "BEGIN; LOCK TABLE deferred_invocations IN SHARE MODE";
    sqlx::raw_sql(lock).execute(&mut steps).await.expect("nothing can be deferred");
    tenant.undelete(&id, true).await;
    Cluster::is_held_up(database, "INSERT INTO deferred_invocations").await;
    // The change that ends it waits for the step, and cannot commit then.
    let lock = "BEGIN; LOCK TABLE audit_records IN SHARE MODE";
    sqlx::raw_sql(lock).execute(&mut changes).await.expect("no change can be audited");
    let (mut events, subscription_id) = (tenant.events(), id.clone());
    let disable = DisableSubscriptionRequest { subscription_id, ..Default::default() };
    let disabling = tokio::spawn(async move { events.disable_subscription(disable).await });
    Cluster::is_held_up(database, "DELETE FROM replays").await;
    sqlx::raw_sql("ROLLBACK").execute(&mut steps).await.expect("the step commits");
    receives(&receiver, "/hook", true, 0..5).await;
    for event in &missed[..5] {
        tenant.all_invocations_become(event, InvocationState::Succeeded).await;
    }
    // The next step waits for the change, and finds its replay ended.
    Cluster::is_held_up(database, "UPDATE replays").await;
    sqlx::raw_sql("ROLLBACK").execute(&mut changes).await.expect("the change commits");
    within("the change", disabling).await.expect("no panic").expect("it is active");
    let enable = EnableSubscriptionRequest { subscription_id: id, replay_missed: true, ..Default::default() };
    tenant.events().enable_subscription(enable).await.expect("it is disabled");
    receives(&receiver, "/hook", true, 0..20).await;
    for event in &missed {
        assert_eq!(tenant.all_invocations_become(event, InvocationState::Succeeded).await.len(), 1);
    }
    assert_eq!(receiver.received("/hook").len(), 20, "each once");
}
