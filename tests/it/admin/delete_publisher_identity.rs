//! `AdminService.DeletePublisherIdentity`: an identity that is removed publishes nothing more.

use carillon::proto::internal::{DeletePublisherIdentityRequest, ListPublisherIdentitiesRequest};
use serde_json::json;
use tonic::Code;

use crate::harness::tenant::{admin, assert_refused, publish_request, reason};
use crate::harness::{World, eventually};

#[tokio::test]
async fn a_removed_publisher_cannot_publish() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    tenant.declare("CUSTOM_PUBLISHED").await;
    tenant.publish("CUSTOM_PUBLISHED", &json!({})).await;
    let request = ListPublisherIdentitiesRequest { tenant: tenant.slug.clone(), ..Default::default() };
    let identities = admin(world).list_publisher_identities(request).await.expect("a page").into_inner();
    let identity = identities.publisher_identities[0].clone();
    let request = DeletePublisherIdentityRequest {
        tenant: tenant.slug.clone(),
        publisher_identity_id: identity.id,
        ..Default::default()
    };
    admin(world).delete_publisher_identity(request.clone()).await.expect("it exists");
    let result = admin(world).delete_publisher_identity(request).await;
    assert_refused(result, Code::NotFound, "PUBLISHER_IDENTITY_NOT_FOUND");
    let status = eventually("the identity is refused", || async {
        tenant.try_publish(publish_request("CUSTOM_PUBLISHED", &json!({}))).await.err().ok_or("still accepted")
    })
    .await;
    assert_eq!(reason(&status), "CREDENTIAL_INVALID");
}
