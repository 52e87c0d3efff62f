//! `AdminService.GetTenant`: one tenant.

use carillon::proto::internal::GetTenantRequest;
use tonic::Code;

use crate::harness::World;
use crate::harness::tenant::{admin, assert_refused};

#[tokio::test]
async fn a_tenant_is_found_by_its_slug() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    let request = GetTenantRequest { tenant: tenant.slug.clone() };
    let found = admin(world).get_tenant(request).await.expect("it exists").into_inner().tenant.expect("it is set");
    assert_eq!(found.slug, tenant.slug);
    let request = GetTenantRequest { tenant: "absent".to_owned() };
    assert_refused(admin(world).get_tenant(request).await, Code::NotFound, "TENANT_NOT_FOUND");
}
