//! G7 for replays: what a subscription with an ordering key missed comes before what is new of the same key.

use std::collections::HashSet;

use carillon::proto::public::{
    DeliveryPolicy, DisableSubscriptionRequest, InvocationState, OnDeadLetter, OrderingPolicy,
};
use serde_json::json;

use crate::harness::receiver::{Received, Receiver};
use crate::harness::tenant::{Tenant, quick_policy};
use crate::harness::wait::eventually;
use crate::harness::{Answer, World};

const EVENT: &str = "CUSTOM_ORDERED_REPLAY";

async fn subscribe(tenant: &Tenant, receiver: &Receiver, path: &str) -> String {
    let ordering = OrderingPolicy { key: "data.user".to_owned(), on_dead_letter: OnDeadLetter::Skip.into() };
    let mut request = tenant.subscribe_request(EVENT, &receiver.url(path));
    request.delivery_policy = Some(DeliveryPolicy { ordering: Some(ordering), max_attempts: 50, ..quick_policy() });
    let answer = tenant.events().subscribe(request).await.expect("a policy with an order is accepted").into_inner();
    receiver.trust(path, &answer.signing_secret);
    answer.subscription.expect("the answer shows it").id
}

/// Publishes one event of each user for each number; returns the last one's id.
async fn publish(tenant: &Tenant, numbers: std::ops::Range<i64>) -> String {
    let mut last = String::new();
    for n in numbers {
        for user in ["ada", "bob"] {
            last = tenant.publish(EVENT, &json!({ "user": user, "n": n })).await.event_id;
        }
    }
    last
}

/// The numbers of a user, each where it first arrived.
fn firsts(received: &[Received], user: &str) -> Vec<i64> {
    let mut seen = HashSet::new();
    let of_user = received.iter().map(|one| one.json()["data"].clone()).filter(|data| data["user"] == user);
    of_user.map(|data| data["n"].as_i64().expect("a number")).filter(|n| seen.insert(*n)).collect()
}

async fn arrives_in_order(receiver: &Receiver, path: &str, numbers: std::ops::Range<i64>) {
    let count = numbers.clone().count();
    for user in ["ada", "bob"] {
        let first = eventually("every event has arrived", || async {
            let first = firsts(&receiver.received(path), user);
            if first.len() >= count { Ok(first) } else { Err(first) }
        })
        .await;
        assert_eq!(first, numbers.clone().collect::<Vec<_>>(), "{user}");
    }
}

#[tokio::test]
async fn what_is_new_of_a_key_comes_after_what_was_missed_of_it_whoever_owns_the_tenant() {
    let settings = "[dispatch]\nlease_ms = 1000\npoll_ms = 100\nreplay_per_second = 20\n";
    let mut world = World::start_with(2, settings).await;
    let mut tenant = world.tenant().await;
    tenant.declare(EVENT).await;
    let receiver = Receiver::start().await;
    // Now and then one fails, whichever it is.
    let answers = (0..300).map(|n| Answer::Status(if n % 9 == 4 { 503 } else { 200 })).chain([Answer::Status(200)]);
    receiver.answers("/hook", answers);
    let id = subscribe(&tenant, &receiver, "/hook").await;
    publish(&tenant, 0..5).await;
    arrives_in_order(&receiver, "/hook", 0..5).await;
    tenant.unsubscribe(&id).await;
    publish(&tenant, 5..45).await;
    tenant.undelete(&id, true).await;
    for n in 45..75 {
        publish(&tenant, n..n + 1).await;
        if n == 50 || n == 60 {
            // Either of them owns the tenant: both end once, in the middle of the replay.
            let replayed = firsts(&receiver.received("/hook"), "ada").len();
            assert!(replayed < 45, "the replay is under way");
            world.replace(usize::from(n != 50)).await;
            tenant.reconnect(&world);
        }
    }
    arrives_in_order(&receiver, "/hook", 0..75).await;
    let replayed = receiver.received("/hook").iter().filter(|one| one.header("webhook-replay") == "true").count();
    assert!(replayed >= 80, "each that was missed is marked: {replayed}");
}

#[tokio::test]
async fn what_waits_for_a_replay_ends_with_its_subscription_and_goes_on_without_the_replay() {
    let world = World::start_with(1, "[dispatch]\nreplay_per_second = 4\n").await;
    let tenant = world.tenant().await;
    tenant.declare(EVENT).await;
    let receiver = Receiver::start().await;
    let id = subscribe(&tenant, &receiver, "/hook").await;
    tenant.unsubscribe(&id).await;
    publish(&tenant, 0..100).await;
    tenant.undelete(&id, true).await;
    receiver.receives("/hook", 1).await;
    let waiting = publish(&tenant, 100..101).await;
    tenant.all_invocations_become(&waiting, InvocationState::Waiting).await;
    // Disabled in the middle of it: what waits is cancelled.
    let disable = DisableSubscriptionRequest { subscription_id: id.clone(), ..Default::default() };
    tenant.events().disable_subscription(disable).await.expect("it is active");
    tenant.all_invocations_become(&waiting, InvocationState::Cancelled).await;
    // Active again without a replay: nothing holds up what is new.
    tenant.unsubscribe(&id).await;
    tenant.undelete(&id, false).await;
    let free = publish(&tenant, 101..102).await;
    tenant.all_invocations_become(&free, InvocationState::Succeeded).await;
    assert!(firsts(&receiver.received("/hook"), "ada").len() < 50, "the replay has ended early");
}
