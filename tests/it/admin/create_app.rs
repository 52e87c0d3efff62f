//! `AdminService.CreateApp`: slugs are unique in a tenant.

use carillon::proto::internal::CreateAppRequest;
use tonic::Code;

use crate::harness::World;
use crate::harness::tenant::{admin, assert_refused};

#[tokio::test]
async fn an_app_is_made_once_in_a_tenant_that_there_is() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    let create = |tenant: &str, slug: &str| CreateAppRequest {
        tenant: tenant.to_owned(),
        slug: slug.to_owned(),
        ..Default::default()
    };
    let made = admin(world).create_app(create(&tenant.slug, "stock")).await.expect("valid").into_inner().app;
    assert_eq!(made.expect("it is set").slug, "stock");
    for (tenant, slug, code, reason) in [
        (tenant.slug.as_str(), tenant.app.as_str(), Code::AlreadyExists, "APP_EXISTS"),
        (&tenant.slug, "Upper", Code::InvalidArgument, "FIELD_INVALID"),
        ("absent", "stock", Code::NotFound, "TENANT_NOT_FOUND"),
    ] {
        assert_refused(admin(world).create_app(create(tenant, slug)).await, code, reason);
    }
}
