//! `AdminService.ListApiKeys`: keys without their secrets.

use carillon::proto::internal::{ListApiKeysRequest, Role};
use tonic::Code;

use crate::harness::World;
use crate::harness::tenant::{admin, assert_refused, create_key};

#[tokio::test]
async fn keys_are_listed_without_their_secrets() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    let secret = create_key(world, &tenant.slug, "", Role::Viewer).await;
    let request = ListApiKeysRequest { tenant: tenant.slug.clone(), ..Default::default() };
    let keys = admin(world).list_api_keys(request).await.expect("a page").into_inner().api_keys;
    assert_eq!(keys.iter().filter(|key| key.role() == Role::Viewer).count(), 1, "{keys:?}");
    assert!(keys.iter().all(|key| !format!("{key:?}").contains(&secret)), "a listed key shows its secret");
    let request = ListApiKeysRequest { tenant: "absent".to_owned(), ..Default::default() };
    assert_refused(admin(world).list_api_keys(request).await, Code::NotFound, "TENANT_NOT_FOUND");
}
