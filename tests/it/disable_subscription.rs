//! `EventService.DisableSubscription`: it does not execute, and what it had waiting is cancelled.

use std::sync::Arc;

use carillon::proto::public::{
    DisableSubscriptionRequest, EnableSubscriptionRequest, InvocationState, SubscriptionState, UnsubscribeRequest,
};
use serde_json::json;
use tokio::sync::Semaphore;
use tonic::Code;

use crate::harness::tenant::assert_refused;
use crate::harness::{Answer, Receiver, World};

#[tokio::test]
async fn a_disabled_subscription_does_not_execute_and_its_pending_work_is_cancelled() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    let gate = Arc::new(Semaphore::new(0));
    receiver.answers("/hook", [Answer::Gated(gate.clone())]);
    tenant.declare("CUSTOM_TOGGLED").await;
    let mut request = tenant.subscribe_request("CUSTOM_TOGGLED", &receiver.url("/hook"));
    request.delivery_policy.as_mut().expect("it is set").max_in_flight = 1;
    let subscription = tenant.events().subscribe(request).await.expect("valid").into_inner().subscription;
    let id = subscription.expect("it is set").id;
    tenant.publish("CUSTOM_TOGGLED", &json!({"n": 1})).await;
    receiver.receives("/hook", 1).await;
    let waiting = tenant.publish("CUSTOM_TOGGLED", &json!({"n": 2})).await;

    let request = DisableSubscriptionRequest { subscription_id: id.clone(), etag: String::new(), ..Default::default() };
    let disabled = tenant.at[1].events.clone().disable_subscription(request.clone()).await.expect("it is active");
    let disabled = disabled.into_inner().subscription.expect("it is set");
    assert_eq!((disabled.state(), disabled.state_reason.as_str()), (SubscriptionState::Disabled, "CALLER"));
    tenant.events().disable_subscription(request).await.expect("disabling twice is fine");
    assert!(tenant.publish("CUSTOM_TOGGLED", &json!({"n": 3})).await.invocations.is_empty());
    gate.add_permits(10);
    let cancelled = tenant.all_invocations_become(&waiting.event_id, InvocationState::Cancelled).await;
    assert_eq!(cancelled[0].cancel_reason, "SUBSCRIPTION_DISABLED");

    let request = EnableSubscriptionRequest { subscription_id: id, ..Default::default() };
    tenant.events().enable_subscription(request).await.expect("it is disabled");
    let last = tenant.publish("CUSTOM_TOGGLED", &json!({"n": 4})).await;
    tenant.all_invocations_become(&last.event_id, InvocationState::Succeeded).await;
    let numbers: Vec<_> =
        receiver.received("/hook").iter().map(|received| received.json()["data"]["n"].clone()).collect();
    assert_eq!(numbers, [json!(1), json!(4)]);
}

#[tokio::test]
async fn what_waits_for_a_retry_is_cancelled_when_its_subscription_ends_and_not_when_it_is_due() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    receiver.answers("/down", [Answer::Status(500)]);
    tenant.declare("CUSTOM_ENDED").await;
    for (reason, place) in [("SUBSCRIPTION_DISABLED", 0), ("SUBSCRIPTION_DELETED", 1)] {
        let mut request = tenant.subscribe_request("CUSTOM_ENDED", &receiver.url("/down"));
        let policy = request.delivery_policy.as_mut().expect("it is set");
        // Jitter may draw a short wait, never a shorter one than this for all of them.
        policy.initial_backoff = Some(pbjson_types::Duration { seconds: 3_600, nanos: 0 });
        policy.max_backoff = Some(pbjson_types::Duration { seconds: 86_400, nanos: 0 });
        let subscribed = tenant.events().subscribe(request).await.expect("valid").into_inner().subscription;
        let id = subscribed.expect("it is set").id;
        let mut events = Vec::new();
        for number in 0..5 {
            events.push(tenant.publish("CUSTOM_ENDED", &json!({"n": number})).await.event_id);
        }
        for event in &events {
            tenant.all_invocations_become(event, InvocationState::Waiting).await;
        }
        // By either replica, whichever dispatches.
        let mut client = tenant.at[place].events.clone();
        if place == 0 {
            let request =
                DisableSubscriptionRequest { subscription_id: id.clone(), etag: String::new(), ..Default::default() };
            client.disable_subscription(request).await.expect("it is active");
        } else {
            let request = UnsubscribeRequest { subscription_id: id.clone(), ..Default::default() };
            client.unsubscribe(request).await.expect("it is there");
        }
        for event in &events {
            let cancelled = tenant.all_invocations_become(event, InvocationState::Cancelled).await;
            assert_eq!(cancelled[0].cancel_reason, reason);
        }
        if place == 0 {
            let request = UnsubscribeRequest { subscription_id: id, ..Default::default() };
            client.unsubscribe(request).await.expect("it is there");
        }
    }
}

#[tokio::test]
async fn what_is_deleted_or_absent_cannot_be_disabled() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_TOGGLED").await;
    let id = tenant.subscribe("CUSTOM_TOGGLED", &receiver, "/hook").await.subscription.expect("it is set").id;
    tenant.unsubscribe(&id).await;
    for (id, code, reason) in [
        (id.as_str(), Code::FailedPrecondition, "SUBSCRIPTION_STATE"),
        ("sub_00000000000000000000000000", Code::NotFound, "SUBSCRIPTION_NOT_FOUND"),
    ] {
        let request = DisableSubscriptionRequest { subscription_id: id.to_owned(), ..Default::default() };
        assert_refused(tenant.events().disable_subscription(request).await, code, reason);
    }
}
