//! G7 for deliveries: with an ordering key, first successes of a key come in the order of the log, whatever fails meanwhile.

use std::collections::HashMap;

use carillon::proto::internal::PublishBatchRequest;
use carillon::proto::public::{
    CancelInvocationRequest, DeliveryPolicy, DisableSubscriptionRequest, InvocationState, OnDeadLetter, OrderingPolicy,
    RetryInvocationRequest, Subscription, UpdateSubscriptionRequest,
};
use pbjson_types::Duration;
use serde_json::json;
use tonic::Code;

use crate::harness::World;
use crate::harness::receiver::{Answer, Received, Receiver};
use crate::harness::tenant::{Tenant, assert_refused, publish_request, quick_policy};
use crate::harness::wait::eventually;

const EVENT: &str = "CUSTOM_ORDERED";

fn ordered(key: &str, on_dead_letter: OnDeadLetter) -> DeliveryPolicy {
    let ordering = OrderingPolicy { key: key.to_owned(), on_dead_letter: on_dead_letter.into() };
    DeliveryPolicy { ordering: Some(ordering), ..quick_policy() }
}

async fn subscribe(tenant: &Tenant, receiver: &Receiver, path: &str, policy: DeliveryPolicy) -> Subscription {
    let mut request = tenant.subscribe_request(EVENT, &receiver.url(path));
    request.delivery_policy = Some(policy);
    let answer = tenant.events().subscribe(request).await.expect("a policy with an order is accepted").into_inner();
    receiver.trust(path, &answer.signing_secret);
    answer.subscription.expect("the answer shows it")
}

async fn change_policy(tenant: &Tenant, subscription: &Subscription, policy: DeliveryPolicy) {
    let changed = Subscription { id: subscription.id.clone(), delivery_policy: Some(policy), ..Default::default() };
    let request = UpdateSubscriptionRequest { subscription: Some(changed), ..Default::default() };
    tenant.events().update_subscription(request).await.expect("a policy can be changed");
}

/// Of each user the numbers of the events, in the order of their arrival.
fn by_user(received: &[Received]) -> HashMap<String, Vec<i64>> {
    let mut users: HashMap<String, Vec<i64>> = HashMap::new();
    for request in received {
        let data = &request.json()["data"];
        let user = data["user"].as_str().expect("every event has one").to_owned();
        users.entry(user).or_default().push(data["n"].as_i64().expect("a number"));
    }
    users
}

/// First arrivals of each number must come in order where every answer but some first ones is a success.
fn assert_in_order(users: &HashMap<String, Vec<i64>>) {
    for (user, numbers) in users {
        let mut last_new = -1;
        for number in numbers {
            assert!(*number == last_new || *number == last_new + 1, "{user} received {numbers:?}");
            last_new = last_new.max(*number);
        }
    }
}

#[tokio::test]
async fn events_of_a_key_arrive_one_after_the_other_and_a_retry_holds_up_only_its_key() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare(EVENT).await;
    let receiver = Receiver::start().await;
    // Now and then one fails, whichever it is.
    let answers = (0..120).map(|n| Answer::Status(if n % 7 == 3 { 500 } else { 200 })).chain([Answer::Status(200)]);
    receiver.answers("/ordered", answers);
    subscribe(&tenant, &receiver, "/ordered", ordered("data.user", OnDeadLetter::Unspecified)).await;
    let mut last = String::new();
    for n in 0..25 {
        for user in ["ada", "bob", "cid"] {
            last = tenant.publish(EVENT, &json!({ "user": user, "n": n })).await.event_id;
        }
    }
    tenant.all_invocations_become(&last, InvocationState::Succeeded).await;
    let users = eventually("every event has arrived", || async {
        let users = by_user(&receiver.received("/ordered"));
        if users.len() == 3 && users.values().all(|numbers| numbers.last() == Some(&24)) {
            Ok(users)
        } else {
            Err(users)
        }
    })
    .await;
    assert_in_order(&users);
    assert!(users.values().map(Vec::len).sum::<usize>() > 75, "some were retried");
}

#[tokio::test]
async fn a_blocking_dead_letter_holds_its_key_until_it_is_redriven_or_cancelled() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare(EVENT).await;
    let receiver = Receiver::start().await;
    let policy = DeliveryPolicy { max_attempts: 1, ..ordered("data.user", OnDeadLetter::Block) };
    let subscription = subscribe(&tenant, &receiver, "/blocked", policy).await;
    receiver.answers("/blocked", [Answer::Status(500), Answer::Status(200)]);
    let head = tenant.publish(EVENT, &json!({ "user": "ada", "n": 0 })).await;
    let head = tenant.all_invocations_become(&head.event_id, InvocationState::DeadLettered).await.remove(0);
    let behind = tenant.publish(EVENT, &json!({ "user": "ada", "n": 1 })).await;
    let other = tenant.publish(EVENT, &json!({ "user": "bob", "n": 0 })).await;
    tenant.all_invocations_become(&other.event_id, InvocationState::Succeeded).await;
    tenant.all_invocations_become(&behind.event_id, InvocationState::Waiting).await;
    let request = RetryInvocationRequest { invocation_id: head.id.clone(), ..Default::default() };
    tenant.invocations().retry_invocation(request).await.expect("a dead letter is redriven");
    tenant.all_invocations_become(&behind.event_id, InvocationState::Succeeded).await;
    assert_in_order(&by_user(&receiver.received("/blocked")));

    // Once more, and the dead letter is given up.
    receiver.answers("/blocked", [Answer::Status(500), Answer::Status(200)]);
    let head = tenant.publish(EVENT, &json!({ "user": "ada", "n": 2 })).await;
    let head = tenant.all_invocations_become(&head.event_id, InvocationState::DeadLettered).await.remove(0);
    let behind = tenant.publish(EVENT, &json!({ "user": "ada", "n": 3 })).await;
    tenant.all_invocations_become(&behind.event_id, InvocationState::Waiting).await;
    let request = CancelInvocationRequest { invocation_id: head.id, ..Default::default() };
    tenant.invocations().cancel_invocation(request).await.expect("a dead letter is cancelled");
    tenant.all_invocations_become(&behind.event_id, InvocationState::Succeeded).await;

    // And once more: with the policy changed to SKIP, what waited goes on.
    receiver.answers("/blocked", [Answer::Status(500), Answer::Status(200)]);
    let head = tenant.publish(EVENT, &json!({ "user": "ada", "n": 4 })).await;
    tenant.all_invocations_become(&head.event_id, InvocationState::DeadLettered).await;
    let behind = tenant.publish(EVENT, &json!({ "user": "ada", "n": 5 })).await;
    tenant.all_invocations_become(&behind.event_id, InvocationState::Waiting).await;
    change_policy(&tenant, &subscription, ordered("data.user", OnDeadLetter::Skip)).await;
    tenant.all_invocations_become(&behind.event_id, InvocationState::Succeeded).await;
}

#[tokio::test]
async fn g7_what_a_dead_letter_blocks_goes_on_once_the_policy_is_skip_whatever_waits_for_a_retry() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare(EVENT).await;
    let receiver = Receiver::start().await;
    let hour = Some(Duration { seconds: 3_600, nanos: 0 });
    let policy = |max_attempts, order| DeliveryPolicy {
        max_attempts,
        initial_backoff: hour,
        max_backoff: hour,
        ..ordered("data.user", order)
    };
    let subscription = subscribe(&tenant, &receiver, "/skipped", policy(1, OnDeadLetter::Block)).await;
    receiver.answers("/skipped", [Answer::Status(500), Answer::Status(500), Answer::Status(200)]);
    let head = tenant.publish(EVENT, &json!({ "user": "ada", "n": 0 })).await;
    tenant.all_invocations_become(&head.event_id, InvocationState::DeadLettered).await;
    change_policy(&tenant, &subscription, policy(2, OnDeadLetter::Block)).await;
    let retried = tenant.publish(EVENT, &json!({ "user": "bob", "n": 0 })).await;
    receiver.receives("/skipped", 2).await;
    tenant.all_invocations_become(&retried.event_id, InvocationState::Waiting).await;
    let behind = tenant.publish(EVENT, &json!({ "user": "ada", "n": 1 })).await;
    tenant.all_invocations_become(&behind.event_id, InvocationState::Waiting).await;
    change_policy(&tenant, &subscription, policy(2, OnDeadLetter::Skip)).await;
    tenant.all_invocations_become(&behind.event_id, InvocationState::Succeeded).await;
    tenant.all_invocations_become(&retried.event_id, InvocationState::Waiting).await;
}

#[tokio::test]
async fn g7_whatever_waits_behind_a_dead_letter_of_its_key_holds_up_no_other() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare(EVENT).await;
    let receiver = Receiver::start().await;
    let policy = DeliveryPolicy { max_attempts: 1, ..ordered("data.user", OnDeadLetter::Block) };
    subscribe(&tenant, &receiver, "/crowded", policy).await;
    receiver.answers("/crowded", [Answer::Status(500), Answer::Status(200)]);
    let head = tenant.publish(EVENT, &json!({ "user": "ada", "n": 0 })).await;
    tenant.all_invocations_become(&head.event_id, InvocationState::DeadLettered).await;
    let mut last = String::new();
    for batch in 0..20 {
        let requests = (1..=1_000).map(|n| publish_request(EVENT, &json!({ "user": "ada", "n": batch * 1_000 + n })));
        let request = PublishBatchRequest { requests: requests.collect() };
        let answers = tenant.publisher().publish_batch(request).await.expect("a batch is published").into_inner();
        last = answers.responses.last().expect("as many answers").event_id.clone();
    }
    tenant.all_invocations_become(&last, InvocationState::Waiting).await;
    for n in 0..3 {
        let other = tenant.publish(EVENT, &json!({ "user": "bob", "n": n })).await;
        tenant.all_invocations_become(&other.event_id, InvocationState::Succeeded).await;
    }
    assert_eq!(by_user(&receiver.received("/crowded"))["bob"], [0, 1, 2]);
}

#[tokio::test]
async fn an_event_without_a_key_is_delivered_in_no_order() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare(EVENT).await;
    let receiver = Receiver::start().await;
    subscribe(&tenant, &receiver, "/keyless", ordered("data.user", OnDeadLetter::Block)).await;
    receiver.answers("/keyless", [Answer::Hang, Answer::Status(200)]);
    let hanging = tenant.publish(EVENT, &json!({ "n": 0 })).await;
    receiver.receives("/keyless", 1).await;
    let next = tenant.publish(EVENT, &json!({ "user": null, "n": 1 })).await;
    tenant.all_invocations_become(&next.event_id, InvocationState::Succeeded).await;
    tenant.all_invocations_become(&hanging.event_id, InvocationState::Pending).await;
}

#[tokio::test]
async fn an_order_survives_its_owner() {
    let mut world = World::start_with(2, "[dispatch]\nlease_ms = 1000\npoll_ms = 100\nqueue_max = 8\n").await;
    let mut tenant = world.tenant().await;
    tenant.declare(EVENT).await;
    let receiver = Receiver::start().await;
    let answers = (0..200).map(|n| Answer::Status(if n % 5 == 2 { 503 } else { 200 })).chain([Answer::Status(200)]);
    receiver.answers("/survives", answers);
    let policy = DeliveryPolicy { max_attempts: 50, ..ordered("data.user", OnDeadLetter::Skip) };
    subscribe(&tenant, &receiver, "/survives", policy).await;
    for n in 0..60 {
        for user in ["ada", "bob"] {
            tenant.publish(EVENT, &json!({ "user": user, "n": n })).await;
        }
        if n == 20 || n == 40 {
            // Either of them owns the tenant: both end once, in the middle of it.
            world.replace(usize::from(n != 20)).await;
            tenant.reconnect(&world);
        }
    }
    let users = eventually("every event has arrived", || async {
        let users = by_user(&receiver.received("/survives"));
        if users.len() == 2 && users.values().all(|numbers| numbers.contains(&59)) { Ok(users) } else { Err(users) }
    })
    .await;
    for (user, numbers) in &users {
        let mut first: Vec<i64> = Vec::new();
        for number in numbers {
            if !first.contains(number) {
                first.push(*number);
            }
        }
        assert_eq!(first, (0..60).collect::<Vec<_>>(), "{user}");
    }
}

#[tokio::test]
async fn a_dead_letter_of_a_subscription_that_does_not_execute_is_not_retried() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare(EVENT).await;
    let receiver = Receiver::start().await;
    receiver.answers("/refusing", [Answer::Status(500)]);
    let policy = DeliveryPolicy { max_attempts: 1, ..quick_policy() };
    let subscription = subscribe(&tenant, &receiver, "/refusing", policy).await;
    let event = tenant.publish(EVENT, &json!({})).await;
    let dead = tenant.all_invocations_become(&event.event_id, InvocationState::DeadLettered).await.remove(0);
    let request = DisableSubscriptionRequest { subscription_id: subscription.id, ..Default::default() };
    tenant.events().disable_subscription(request).await.expect("it can be disabled");
    let request = RetryInvocationRequest { invocation_id: dead.id, ..Default::default() };
    let refused = tenant.invocations().retry_invocation(request).await;
    assert_refused(refused, Code::FailedPrecondition, "SUBSCRIPTION_STATE");
    let kept = tenant.invocations_of(&event.event_id).await;
    assert_eq!(kept[0].state(), InvocationState::DeadLettered, "nothing is lost");
}
