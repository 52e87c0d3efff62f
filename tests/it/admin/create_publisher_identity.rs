//! `AdminService.CreatePublisherIdentity`: a certificate name belongs to one tenant.

use carillon::proto::internal::CreatePublisherIdentityRequest;
use tonic::Code;

use crate::harness::World;
use crate::harness::tenant::{admin, assert_refused};

#[tokio::test]
async fn a_certificate_name_is_registered_once_and_of_a_known_kind() {
    let world = World::shared().await;
    let (tenant, other) = (world.tenant().await, world.tenant().await);
    let create = |tenant: &str, subject: String| CreatePublisherIdentityRequest {
        tenant: tenant.to_owned(),
        subject,
        ..Default::default()
    };
    let subject = format!("dns:{}.example.com", tenant.slug);
    let request = create(&tenant.slug, subject.clone());
    let made = admin(world).create_publisher_identity(request).await.expect("valid").into_inner();
    assert_eq!(made.publisher_identity.expect("it is set").subject, subject);
    for slug in [&tenant.slug, &other.slug] {
        let result = admin(world).create_publisher_identity(create(slug, subject.clone())).await;
        assert_refused(result, Code::AlreadyExists, "PUBLISHER_IDENTITY_EXISTS");
    }
    let result = admin(world).create_publisher_identity(create(&tenant.slug, "email:x@example.com".to_owned())).await;
    assert_refused(result, Code::InvalidArgument, "FIELD_INVALID");
}
