//! `AdminService.UpdateTenant`: the name for people; quotas are in `quotas.rs`.

use carillon::proto::internal::{GetTenantRequest, Tenant, UpdateTenantRequest};
use tonic::Code;

use crate::harness::World;
use crate::harness::tenant::{admin, assert_refused};

#[tokio::test]
async fn a_tenant_is_renamed_and_an_absent_one_is_not() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    let update = |slug: &str| {
        let tenant = Tenant { slug: slug.to_owned(), display_name: "Renamed".to_owned(), ..Default::default() };
        UpdateTenantRequest { tenant: Some(tenant), ..Default::default() }
    };
    admin(world).update_tenant(update(&tenant.slug)).await.expect("valid");
    let request = GetTenantRequest { tenant: tenant.slug.clone() };
    let found = admin(world).get_tenant(request).await.expect("it exists").into_inner().tenant.expect("it is set");
    assert_eq!(found.display_name, "Renamed");
    assert_refused(admin(world).update_tenant(update("absent")).await, Code::NotFound, "TENANT_NOT_FOUND");
}
