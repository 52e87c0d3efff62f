//! `EventService.EnableSubscription`: a disabled subscription fires again.

use carillon::proto::public::{DisableSubscriptionRequest, EnableSubscriptionRequest, SubscriptionState};
use serde_json::json;
use tonic::Code;

use crate::harness::tenant::assert_refused;
use crate::harness::{Receiver, World};

#[tokio::test]
async fn a_disabled_subscription_fires_again_and_a_deleted_one_does_not() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_TOGGLED").await;
    let id = tenant.subscribe("CUSTOM_TOGGLED", &receiver, "/hook").await.subscription.expect("it is set").id;
    let request = DisableSubscriptionRequest { subscription_id: id.clone(), ..Default::default() };
    let disabled = tenant.events().disable_subscription(request).await.expect("it is active").into_inner();
    let enable = EnableSubscriptionRequest { subscription_id: id.clone(), ..Default::default() };
    let stale = EnableSubscriptionRequest { etag: "0".to_owned(), ..enable.clone() };
    assert_refused(tenant.events().enable_subscription(stale).await, Code::Aborted, "ETAG_MISMATCH");
    let etag = disabled.subscription.expect("it is set").etag;
    let request = EnableSubscriptionRequest { etag, ..enable.clone() };
    let enabled = tenant.at[1].events.clone().enable_subscription(request).await.expect("it is disabled").into_inner();
    assert_eq!(enabled.subscription.expect("it is set").state(), SubscriptionState::Active);
    assert_eq!(tenant.publish("CUSTOM_TOGGLED", &json!({})).await.invocations.len(), 1);
    receiver.receives("/hook", 1).await;
    tenant.unsubscribe(&id).await;
    let result = tenant.events().enable_subscription(enable).await;
    assert_refused(result, Code::FailedPrecondition, "SUBSCRIPTION_STATE");
}
