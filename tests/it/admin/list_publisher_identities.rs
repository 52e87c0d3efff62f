//! `AdminService.ListPublisherIdentities`: who may publish for one tenant.

use carillon::proto::internal::ListPublisherIdentitiesRequest;
use tonic::Code;

use crate::harness::World;
use crate::harness::tenant::{admin, assert_refused};

#[tokio::test]
async fn the_identities_of_a_tenant_are_listed_and_no_others() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    let request = ListPublisherIdentitiesRequest { tenant: tenant.slug.clone(), ..Default::default() };
    let listed = admin(world).list_publisher_identities(request).await.expect("a page").into_inner();
    let subjects: Vec<_> = listed.publisher_identities.into_iter().map(|identity| identity.subject).collect();
    assert_eq!(subjects, [format!("uri:spiffe://carillon.test/publisher/{}", tenant.slug)]);
    let request = ListPublisherIdentitiesRequest { tenant: "absent".to_owned(), ..Default::default() };
    let result = admin(world).list_publisher_identities(request).await;
    assert_refused(result, Code::NotFound, "TENANT_NOT_FOUND");
}
