//! `AdminService.DeleteApp`: an app that owns nothing any more goes.

use carillon::proto::internal::{CreateAppRequest, DeleteAppRequest, ListAppsRequest};
use carillon::proto::public::{
    GetInvocationRequest, InvocationState, ListInvocationsRequest, SubscribeRequest, UnsubscribeRequest,
};
use serde_json::json;
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

#[tokio::test]
async fn what_a_deleted_app_received_stays_on_record_beside_what_others_did() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    let receiver = Receiver::start().await;
    let app = CreateAppRequest { tenant: tenant.slug.clone(), slug: "gone".to_owned(), ..Default::default() };
    admin(world).create_app(app).await.expect("a new slug");
    tenant.declare("CUSTOM_KEPT").await;
    tenant.declare("CUSTOM_GONE").await;
    tenant.subscribe("CUSTOM_KEPT", &receiver, "/kept").await;
    let request = tenant.subscribe_request("CUSTOM_GONE", &receiver.url("/gone"));
    let request = SubscribeRequest { app: "gone".to_owned(), ..request };
    let subscribed = tenant.events().subscribe(request).await.expect("valid").into_inner();
    let id = subscribed.subscription.expect("it is set").id;
    // Those of the app that goes are the newest ones, and fill a page.
    let mut events = Vec::new();
    for event_type in ["CUSTOM_KEPT", "CUSTOM_GONE", "CUSTOM_GONE", "CUSTOM_GONE"] {
        let event_id = tenant.publish(event_type, &json!({})).await.event_id;
        tenant.all_invocations_become(&event_id, InvocationState::Succeeded).await;
        events.push(event_id);
    }
    tenant.unsubscribe(&id).await;
    let delete = DeleteAppRequest { tenant: tenant.slug.clone(), app: "gone".to_owned(), ..Default::default() };
    admin(world).delete_app(delete).await.expect("it is empty");

    let mut request = ListInvocationsRequest { page_size: 2, ..Default::default() };
    let mut listed = Vec::new();
    loop {
        let page = tenant.invocations().list_invocations(request.clone()).await.expect("a page").into_inner();
        listed.extend(page.invocations);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    let found: Vec<_> = listed.iter().rev().map(|one| (one.event_id.clone(), one.app.as_str())).collect();
    let apps = ["shop", "", "", ""];
    assert_eq!(found, events.into_iter().zip(apps).collect::<Vec<_>>());
    let request = GetInvocationRequest { invocation_id: listed[0].id.clone() };
    let read = tenant.invocations().get_invocation(request).await.expect("on record").into_inner();
    assert_eq!(read.invocation.expect("it is set").subscription_id, id);
}
