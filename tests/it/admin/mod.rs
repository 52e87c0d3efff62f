//! `AdminService`: tenants, apps, keys, publishers and the record of changes, for operators only.

mod create_api_key;
mod create_app;
mod create_publisher_identity;
mod create_tenant;
mod delete_app;
mod delete_publisher_identity;
mod get_tenant;
mod list_api_keys;
mod list_apps;
mod list_audit_records;
mod list_publisher_identities;
mod list_tenants;
mod revoke_api_key;
mod update_tenant;

use carillon::proto::internal::ListTenantsRequest;
use carillon::proto::internal::admin_service_client::AdminServiceClient;
use tonic::Code;

use crate::harness::World;

#[tokio::test]
async fn only_operators_administer() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    let mut publisher = AdminServiceClient::new(world.internal(0, &tenant.identity));
    let status = publisher.list_tenants(ListTenantsRequest::default()).await.expect_err("a publisher");
    assert!([Code::PermissionDenied, Code::Unauthenticated].contains(&status.code()), "{status:?}");
    let mut public = AdminServiceClient::new(world.public(0));
    let status = public.list_tenants(ListTenantsRequest::default()).await.expect_err("the public port");
    assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
}
