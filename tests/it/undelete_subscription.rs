//! `EventService.UndeleteSubscription`: what was ended comes back.

use carillon::proto::public::{SubscriptionState, UndeleteSubscriptionRequest, UnsubscribeRequest};
use serde_json::json;
use tonic::Code;

use crate::harness::tenant::assert_refused;
use crate::harness::{Receiver, World};

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
