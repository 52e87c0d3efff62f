//! `AdminService.RevokeApiKey`: a key that is revoked is refused everywhere.

use carillon::proto::internal::{ListApiKeysRequest, RevokeApiKeyRequest, Role};
use carillon::proto::public::ListEventTypesRequest;
use tonic::Code;

use crate::harness::tenant::{Clients, admin, assert_refused, create_key, reason};
use crate::harness::{World, eventually};

#[tokio::test]
async fn a_revoked_key_stops_working_on_every_replica() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    let secret = create_key(world, &tenant.slug, "", Role::Viewer).await;
    let replicas = [Clients::new(world, 0, &secret), Clients::new(world, 1, &secret)];
    for clients in &replicas {
        clients.types.clone().list_event_types(ListEventTypesRequest::default()).await.expect("a valid key");
    }
    let request = ListApiKeysRequest { tenant: tenant.slug.clone(), ..Default::default() };
    let keys = admin(world).list_api_keys(request).await.expect("a page").into_inner().api_keys;
    let viewer = keys.iter().find(|key| key.role() == Role::Viewer).expect("it is listed");
    let request =
        RevokeApiKeyRequest { tenant: tenant.slug.clone(), api_key_id: viewer.id.clone(), ..Default::default() };
    admin(world).revoke_api_key(request).await.expect("it exists");
    for clients in &replicas {
        eventually("the key is refused", || async {
            match clients.types.clone().list_event_types(ListEventTypesRequest::default()).await {
                Err(status) if reason(&status) == "CREDENTIAL_INVALID" => Ok(()),
                other => Err(other.map(|_| ())),
            }
        })
        .await;
    }
    let absent = "key_00000000000000000000000000".to_owned();
    let request = RevokeApiKeyRequest { tenant: tenant.slug, api_key_id: absent, ..Default::default() };
    assert_refused(admin(world).revoke_api_key(request).await, Code::NotFound, "API_KEY_NOT_FOUND");
}
