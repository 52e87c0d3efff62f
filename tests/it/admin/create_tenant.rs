//! `AdminService.CreateTenant`: slugs are unique and of one shape.

use carillon::proto::internal::CreateTenantRequest;
use tonic::Code;

use crate::harness::World;
use crate::harness::tenant::{admin, assert_refused};

#[tokio::test]
async fn tenants_have_unique_slugs_of_one_shape() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    let request = CreateTenantRequest { slug: tenant.slug.clone(), ..Default::default() };
    assert_refused(admin(world).create_tenant(request).await, Code::AlreadyExists, "TENANT_EXISTS");
    for slug in ["", "Upper", "1digit", "a b", "a/../b", "ä", &"x".repeat(64)] {
        let request = CreateTenantRequest { slug: slug.to_owned(), ..Default::default() };
        assert_refused(admin(world).create_tenant(request).await, Code::InvalidArgument, "FIELD_INVALID");
    }
}
