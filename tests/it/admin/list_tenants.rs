//! `AdminService.ListTenants`: every tenant, by slug.

use carillon::proto::internal::ListTenantsRequest;
use tonic::Code;

use crate::harness::World;
use crate::harness::tenant::{admin, assert_refused};

#[tokio::test]
async fn every_tenant_is_listed_by_its_slug() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    let mut request = ListTenantsRequest { page_size: 1, ..Default::default() };
    let mut slugs = Vec::new();
    loop {
        let page = admin(world).list_tenants(request.clone()).await.expect("a page").into_inner();
        slugs.extend(page.tenants.into_iter().map(|tenant| tenant.slug));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert!(slugs.contains(&tenant.slug));
    assert!(slugs.is_sorted(), "{slugs:?}");
    request.page_token = "bm9uc2Vuc2U".to_owned();
    assert_refused(admin(world).list_tenants(request).await, Code::InvalidArgument, "PAGE_TOKEN_INVALID");
}
