//! `AdminService.ListApps`: the apps of one tenant.

use carillon::proto::internal::ListAppsRequest;
use tonic::Code;

use crate::harness::World;
use crate::harness::tenant::{admin, assert_refused};

#[tokio::test]
async fn the_apps_of_a_tenant_are_listed_and_no_others() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    let request = ListAppsRequest { tenant: tenant.slug.clone(), ..Default::default() };
    let apps = admin(world).list_apps(request).await.expect("a page").into_inner().apps;
    assert_eq!(apps.iter().map(|app| &app.slug).collect::<Vec<_>>(), [&tenant.app]);
    let request = ListAppsRequest { tenant: "absent".to_owned(), ..Default::default() };
    assert_refused(admin(world).list_apps(request).await, Code::NotFound, "TENANT_NOT_FOUND");
}
