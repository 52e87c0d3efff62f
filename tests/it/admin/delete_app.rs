//! `AdminService.DeleteApp`: an app that owns nothing any more goes.

use carillon::proto::internal::{DeleteAppRequest, ListAppsRequest};
use carillon::proto::public::UnsubscribeRequest;
use tonic::Code;

use crate::harness::tenant::{admin, assert_refused};
use crate::harness::{Receiver, World};

#[tokio::test]
async fn an_app_can_be_deleted_once_nothing_is_subscribed() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_OWNED").await;
    let id = tenant.subscribe("CUSTOM_OWNED", &receiver, "/hook").await.subscription.expect("it is set").id;
    let delete = DeleteAppRequest { tenant: tenant.slug.clone(), app: tenant.app.clone(), ..Default::default() };
    assert_refused(admin(world).delete_app(delete.clone()).await, Code::FailedPrecondition, "RESOURCE_STATE");
    let request = UnsubscribeRequest { subscription_id: id, ..Default::default() };
    tenant.events().unsubscribe(request).await.expect("it is subscribed");
    admin(world).delete_app(delete.clone()).await.expect("it is empty");
    assert_refused(admin(world).delete_app(delete).await, Code::NotFound, "APP_NOT_FOUND");
    let request = ListAppsRequest { tenant: tenant.slug.clone(), ..Default::default() };
    assert!(admin(world).list_apps(request).await.expect("a page").into_inner().apps.is_empty());
}
