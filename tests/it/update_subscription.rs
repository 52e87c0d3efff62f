//! `EventService.UpdateSubscription`: what the mask names changes, whoever else changes something.

use carillon::proto::public::{GetSubscriptionRequest, Subscription, UpdateSubscriptionRequest};
use serde_json::json;
use tonic::Code;

use crate::harness::tenant::assert_refused;
use crate::harness::{Receiver, World};

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
