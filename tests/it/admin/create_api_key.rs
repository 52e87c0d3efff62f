//! `AdminService.CreateApiKey`: a key works from the moment it is answered.

use carillon::proto::internal::{CreateApiKeyRequest, Role};
use carillon::proto::public::ListEventTypesRequest;
use tonic::Code;

use crate::harness::World;
use crate::harness::tenant::{Clients, admin, assert_refused, create_key};

#[tokio::test]
async fn a_key_works_at_once_on_every_replica() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    let secret = create_key(world, &tenant.slug, "", Role::Viewer).await;
    for replica in [0, 1] {
        let mut types = Clients::new(world, replica, &secret).types;
        types.list_event_types(ListEventTypesRequest::default()).await.expect("a valid key");
    }
}

#[tokio::test]
async fn a_key_needs_a_role_and_an_end_that_is_ahead() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    let past = Some(carillon::proto::Timestamp { seconds: 1, nanos: 0 });
    let request = CreateApiKeyRequest {
        tenant: tenant.slug.clone(),
        role: Role::Viewer.into(),
        expire_time: past,
        ..Default::default()
    };
    assert_refused(admin(world).create_api_key(request).await, Code::InvalidArgument, "FIELD_INVALID");
    let request = CreateApiKeyRequest { tenant: tenant.slug, ..Default::default() };
    assert_refused(admin(world).create_api_key(request).await, Code::InvalidArgument, "FIELD_INVALID");
}
