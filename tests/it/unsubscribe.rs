//! `EventService.Unsubscribe`: by id or by what was subscribed, effective at once on every replica.

use carillon::proto::public::{SubscriptionState, UnsubscribeRequest, WebhookMode};
use serde_json::json;
use tonic::Code;

use crate::harness::tenant::{assert_refused, publish_request, webhook};
use crate::harness::{Receiver, World};

#[tokio::test]
async fn what_is_unsubscribed_fires_on_no_replica() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_ENDED").await;
    tenant.subscribe("CUSTOM_ENDED", &receiver, "/hook").await;
    assert_eq!(tenant.publish("CUSTOM_ENDED", &json!({})).await.invocations.len(), 1);
    let request = UnsubscribeRequest {
        app: tenant.app.clone(),
        event_type: "CUSTOM_ENDED".to_owned(),
        target: Some(webhook(&receiver.url("/hook"), WebhookMode::Unspecified)),
        ..Default::default()
    };
    let ended = tenant.events().unsubscribe(request.clone()).await.expect("it is subscribed").into_inner();
    assert_eq!(ended.subscription.expect("it is set").state(), SubscriptionState::Deleted);
    for publisher in &tenant.publishers {
        let answer = publisher.clone().publish(publish_request("CUSTOM_ENDED", &json!({}))).await.expect("published");
        assert!(answer.into_inner().invocations.is_empty(), "a replica still knew the subscription");
    }
    assert_refused(tenant.events().unsubscribe(request.clone()).await, Code::NotFound, "NOT_SUBSCRIBED");
    let lenient = UnsubscribeRequest { allow_missing: true, ..request };
    let answer = tenant.events().unsubscribe(lenient).await.expect("a missing one is allowed").into_inner();
    assert!(answer.subscription.is_none());
}

#[tokio::test]
async fn an_old_etag_is_refused() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_ENDED").await;
    let id = tenant.subscribe("CUSTOM_ENDED", &receiver, "/hook").await.subscription.expect("it is set").id;
    let request =
        UnsubscribeRequest { subscription_id: id.clone(), etag: "not this one".to_owned(), ..Default::default() };
    assert_refused(tenant.events().unsubscribe(request).await, Code::Aborted, "ETAG_MISMATCH");
    let request = UnsubscribeRequest { subscription_id: id, ..Default::default() };
    tenant.events().unsubscribe(request).await.expect("without an etag");
    let request =
        UnsubscribeRequest { subscription_id: "sub_00000000000000000000000000".to_owned(), ..Default::default() };
    assert_refused(tenant.events().unsubscribe(request).await, Code::NotFound, "SUBSCRIPTION_NOT_FOUND");
}
