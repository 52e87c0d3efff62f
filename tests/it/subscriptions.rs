//! Get, List, Update, Enable, Disable and Undelete of subscriptions, and the rotation of their secrets.

use std::sync::Arc;

use carillon::proto::public::{
    DisableSubscriptionRequest, EnableSubscriptionRequest, GetSubscriptionRequest, InvocationState,
    ListSubscriptionsRequest, RotateSubscriptionSecretRequest, Subscription, SubscriptionState,
    UndeleteSubscriptionRequest, UnsubscribeRequest, UpdateSubscriptionRequest,
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
async fn a_deleted_subscription_comes_back_unless_its_target_is_taken() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_BACK").await;
    let id = tenant.subscribe("CUSTOM_BACK", &receiver, "/hook").await.subscription.expect("it is set").id;
    let undelete =
        UndeleteSubscriptionRequest { subscription_id: id.clone(), replay_missed: false, ..Default::default() };
    let result = tenant.events().undelete_subscription(undelete.clone()).await;
    assert_refused(result, Code::FailedPrecondition, "SUBSCRIPTION_STATE");
    let unsubscribe = UnsubscribeRequest { subscription_id: id.clone(), ..Default::default() };
    tenant.events().unsubscribe(unsubscribe.clone()).await.expect("it is subscribed");
    let back = tenant.events().undelete_subscription(undelete.clone()).await.expect("it is deleted").into_inner();
    assert_eq!(back.subscription.expect("it is set").state(), SubscriptionState::Active);
    assert_eq!(tenant.publish("CUSTOM_BACK", &json!({})).await.invocations.len(), 1);

    tenant.events().unsubscribe(unsubscribe).await.expect("it is subscribed");
    tenant.subscribe("CUSTOM_BACK", &receiver, "/hook").await;
    let result = tenant.events().undelete_subscription(undelete).await;
    assert_refused(result, Code::AlreadyExists, "ALREADY_SUBSCRIBED");
}

#[tokio::test]
async fn lists_page_through_every_subscription_once() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_LISTED").await;
    let mut ids = Vec::new();
    for n in 0..7 {
        let request = tenant.subscribe_request("CUSTOM_LISTED", &format!("http://127.0.0.1:9/{n}"));
        ids.push(tenant.events().subscribe(request).await.expect("valid").into_inner().subscription.expect("set").id);
    }
    let mut listed = Vec::new();
    let mut request = ListSubscriptionsRequest { page_size: 3, app: tenant.app.clone(), ..Default::default() };
    loop {
        let page = tenant.events().list_subscriptions(request.clone()).await.expect("a page").into_inner();
        assert!(page.subscriptions.len() <= 3);
        listed.extend(page.subscriptions.into_iter().map(|subscription| subscription.id));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(listed, ids, "oldest first, each once");
    request.event_type = "CUSTOM_OTHER".to_owned();
    request.page_token = "bm9uc2Vuc2U".to_owned();
    assert_refused(tenant.events().list_subscriptions(request).await, Code::InvalidArgument, "PAGE_TOKEN_INVALID");
}

#[tokio::test]
async fn an_update_changes_what_its_mask_names_and_nothing_else() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_CHANGED").await;
    let before = tenant.subscribe("CUSTOM_CHANGED", &receiver, "/hook").await.subscription.expect("it is set");
    let mask =
        |paths: &[&str]| Some(pbjson_types::FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() });
    let subscription = Subscription {
        id: before.id.clone(),
        filter: "data.n == 2".to_owned(),
        display_name: "not in the mask".to_owned(),
        ..Default::default()
    };
    let request = UpdateSubscriptionRequest {
        subscription: Some(subscription.clone()),
        update_mask: mask(&["filter"]),
        ..Default::default()
    };
    let after = tenant.events().update_subscription(request).await.expect("valid").into_inner().subscription;
    let after = after.expect("it is set");
    assert_eq!((after.filter.as_str(), after.display_name.as_str()), ("data.n == 2", ""));
    assert_ne!(after.etag, before.etag);
    assert!(tenant.publish("CUSTOM_CHANGED", &json!({"n": 1})).await.invocations.is_empty());
    assert_eq!(tenant.publish("CUSTOM_CHANGED", &json!({"n": 2})).await.invocations.len(), 1);

    for path in ["app", "event_type", "id", "state", "nonsense", "target.webhook.nonsense"] {
        let request = UpdateSubscriptionRequest {
            subscription: Some(subscription.clone()),
            update_mask: mask(&[path]),
            ..Default::default()
        };
        let status = tenant.events().update_subscription(request).await.expect_err(path);
        assert_eq!(crate::harness::tenant::reason(&status), "FIELD_INVALID", "{path}");
    }
    let stale = Subscription { etag: before.etag, ..subscription };
    let request =
        UpdateSubscriptionRequest { subscription: Some(stale), update_mask: mask(&["filter"]), ..Default::default() };
    assert_refused(tenant.events().update_subscription(request).await, Code::Aborted, "ETAG_MISMATCH");
    let request = GetSubscriptionRequest { subscription_id: before.id };
    let read = tenant.at[1].events.clone().get_subscription(request).await.expect("it is there").into_inner();
    assert_eq!(read.subscription, Some(after));
}

#[tokio::test]
async fn after_a_rotation_both_secrets_verify() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_ROTATED").await;
    let subscribed = tenant.subscribe("CUSTOM_ROTATED", &receiver, "/hook").await;
    let request = RotateSubscriptionSecretRequest {
        subscription_id: subscribed.subscription.expect("it is set").id,
        ..Default::default()
    };
    let rotated = tenant.events().rotate_subscription_secret(request.clone()).await.expect("valid").into_inner();
    assert_ne!(rotated.signing_secret, subscribed.signing_secret);
    assert!(rotated.previous_expire_time.is_some());
    for (count, secret) in [(1, &subscribed.signing_secret), (2, &rotated.signing_secret)] {
        receiver.distrust("/hook");
        receiver.trust("/hook", secret);
        tenant.publish("CUSTOM_ROTATED", &json!({})).await;
        let received = receiver.receives("/hook", count).await;
        assert_eq!(received[count - 1].verified, Some(true));
        assert_eq!(received[count - 1].header("webhook-signature").split(' ').count(), 2);
    }
    let at_once =
        RotateSubscriptionSecretRequest { overlap: Some(pbjson_types::Duration { seconds: 0, nanos: 0 }), ..request };
    let last = tenant.events().rotate_subscription_secret(at_once).await.expect("valid").into_inner();
    receiver.distrust("/hook");
    receiver.trust("/hook", &last.signing_secret);
    tenant.publish("CUSTOM_ROTATED", &json!({})).await;
    let received = receiver.receives("/hook", 3).await;
    assert_eq!(received[2].verified, Some(true));
    assert_eq!(received[2].header("webhook-signature").split(' ').count(), 1);
}

#[tokio::test]
async fn updates_that_race_without_an_etag_are_all_made_and_none_undoes_another() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_RACED").await;
    let subscription = tenant.subscribe("CUSTOM_RACED", &receiver, "/hook").await.subscription.expect("it is set");
    let update = |n: usize| {
        let mut changed = Subscription { id: subscription.id.clone(), ..Default::default() };
        if n.is_multiple_of(2) {
            changed.display_name = format!("name {n}");
        } else {
            changed.filter = format!("data.n > {n}");
        }
        let request = UpdateSubscriptionRequest { subscription: Some(changed), ..Default::default() };
        let mut events = tenant.at[n % 2].events.clone();
        async move { events.update_subscription(request).await.map(tonic::Response::into_inner) }
    };
    for made in futures::future::join_all((0..40).map(update)).await {
        made.expect("nobody else's change is in the way");
    }
    let request = GetSubscriptionRequest { subscription_id: subscription.id.clone() };
    let now = tenant.events().get_subscription(request).await.expect("it is there").into_inner();
    let now = now.subscription.expect("it is set");
    assert!(now.display_name.starts_with("name ") && now.filter.starts_with("data.n > "), "{now:?}");
}
