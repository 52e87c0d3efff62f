//! `EventService.UndeleteSubscription`: what was ended comes back.

use carillon::proto::internal::{DeleteAppRequest, ListAppsRequest};
use carillon::proto::public::{SubscriptionState, UndeleteSubscriptionRequest, UnsubscribeRequest};
use serde_json::json;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::harness::tenant::{admin, assert_refused};
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

#[tokio::test]
async fn a_subscription_does_not_come_back_to_an_app_that_is_gone() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_BACK").await;
    let id = tenant.subscribe("CUSTOM_BACK", &receiver, "/hook").await.subscription.expect("it is set").id;
    tenant.unsubscribe(&id).await;
    let list = ListAppsRequest { tenant: tenant.slug.clone(), ..Default::default() };
    let app = admin(world).list_apps(list).await.expect("a page").into_inner().apps.remove(0);
    let delete = DeleteAppRequest { tenant: tenant.slug.clone(), app: app.slug, ..Default::default() };
    admin(world).delete_app(delete).await.expect("it is empty");
    let undelete = UndeleteSubscriptionRequest { subscription_id: id, ..Default::default() };
    let result = tenant.events().undelete_subscription(undelete).await;
    let status = assert_refused(result, Code::NotFound, "APP_NOT_FOUND");
    let info = status.get_details_resource_info().expect("it names the app");
    assert_eq!((info.resource_type.as_str(), info.resource_name), ("carillon.dev/App", app.id));
}
