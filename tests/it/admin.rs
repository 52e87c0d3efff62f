//! `AdminService`: tenants, apps, keys, publishers and the record of changes, for operators only.

use carillon::proto::internal::admin_service_client::AdminServiceClient;
use carillon::proto::internal::{
    CreateApiKeyRequest, CreateAppRequest, CreatePublisherIdentityRequest, CreateTenantRequest, DeleteAppRequest,
    DeletePublisherIdentityRequest, GetTenantRequest, ListApiKeysRequest, ListAppsRequest, ListAuditRecordsRequest,
    ListPublisherIdentitiesRequest, ListTenantsRequest, RevokeApiKeyRequest, Role,
};
use carillon::proto::public::{ListEventTypesRequest, UnsubscribeRequest};
use serde_json::json;
use tonic::Code;

use crate::harness::tenant::{Clients, admin, assert_refused, create_key, publish_request, reason};
use crate::harness::{Receiver, World, eventually};

#[tokio::test]
async fn tenants_have_unique_slugs_and_are_listed() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    let request = CreateTenantRequest { slug: tenant.slug.clone(), ..Default::default() };
    assert_refused(admin(world).create_tenant(request).await, Code::AlreadyExists, "TENANT_EXISTS");
    for slug in ["", "Upper", "1digit", "a b", "a/../b", "ä", &"x".repeat(64)] {
        let request = CreateTenantRequest { slug: slug.to_owned(), ..Default::default() };
        assert_refused(admin(world).create_tenant(request).await, Code::InvalidArgument, "FIELD_INVALID");
    }
    let request = GetTenantRequest { tenant: "absent".to_owned() };
    assert_refused(admin(world).get_tenant(request).await, Code::NotFound, "TENANT_NOT_FOUND");
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
}

#[tokio::test]
async fn an_app_can_be_deleted_once_nothing_is_subscribed() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_OWNED").await;
    let id = tenant.subscribe("CUSTOM_OWNED", &receiver, "/hook").await.subscription.expect("it is set").id;
    let request = CreateAppRequest { tenant: tenant.slug.clone(), slug: tenant.app.clone(), ..Default::default() };
    assert_refused(admin(world).create_app(request).await, Code::AlreadyExists, "APP_EXISTS");
    let delete = DeleteAppRequest { tenant: tenant.slug.clone(), app: tenant.app.clone(), ..Default::default() };
    assert_refused(admin(world).delete_app(delete.clone()).await, Code::FailedPrecondition, "RESOURCE_STATE");
    let request = UnsubscribeRequest { subscription_id: id, ..Default::default() };
    tenant.events().unsubscribe(request).await.expect("it is subscribed");
    admin(world).delete_app(delete.clone()).await.expect("it is empty");
    assert_refused(admin(world).delete_app(delete).await, Code::NotFound, "APP_NOT_FOUND");
    let request = ListAppsRequest { tenant: tenant.slug.clone(), ..Default::default() };
    assert!(admin(world).list_apps(request).await.expect("a page").into_inner().apps.is_empty());
}

#[tokio::test]
async fn a_revoked_key_stops_working_on_every_replica() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    let secret = create_key(world, &tenant.slug, "", Role::Viewer).await;
    let replicas = [Clients::new(world, 0, &secret), Clients::new(world, 1, &secret)];
    for clients in &replicas {
        clients.types.clone().list_event_types(ListEventTypesRequest::default()).await.expect("a valid key");
    }
    let request = ListApiKeysRequest { tenant: tenant.slug.clone(), ..Default::default() };
    let keys = admin(world).list_api_keys(request).await.expect("a page").into_inner().api_keys;
    let viewer = keys.iter().find(|key| key.role() == Role::Viewer).expect("it is listed");
    assert!(keys.iter().all(|key| !format!("{key:?}").contains(&secret)), "a listed key shows its secret");
    let request =
        RevokeApiKeyRequest { tenant: tenant.slug.clone(), api_key_id: viewer.id.clone(), ..Default::default() };
    admin(world).revoke_api_key(request).await.expect("it exists");
    for clients in &replicas {
        eventually("the key is refused", || async {
            match clients.types.clone().list_event_types(ListEventTypesRequest::default()).await {
                Err(status) if reason(&status) == "CREDENTIAL_INVALID" => Ok(()),
                other => Err(other.map(|_| ())),
            }
        })
        .await;
    }
    let past = Some(carillon::proto::Timestamp { seconds: 1, nanos: 0 });
    let request = CreateApiKeyRequest {
        tenant: tenant.slug.clone(),
        role: Role::Viewer.into(),
        expire_time: past,
        ..Default::default()
    };
    assert_refused(admin(world).create_api_key(request).await, Code::InvalidArgument, "FIELD_INVALID");
    let request = CreateApiKeyRequest { tenant: tenant.slug, ..Default::default() };
    assert_refused(admin(world).create_api_key(request).await, Code::InvalidArgument, "FIELD_INVALID");
}

#[tokio::test]
async fn a_removed_publisher_cannot_publish() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    tenant.declare("CUSTOM_PUBLISHED").await;
    tenant.publish("CUSTOM_PUBLISHED", &json!({})).await;
    let request = ListPublisherIdentitiesRequest { tenant: tenant.slug.clone(), ..Default::default() };
    let identities = admin(world).list_publisher_identities(request).await.expect("a page").into_inner();
    let identity = identities.publisher_identities[0].clone();
    let request = CreatePublisherIdentityRequest {
        tenant: tenant.slug.clone(),
        subject: identity.subject.clone(),
        ..Default::default()
    };
    let result = admin(world).create_publisher_identity(request).await;
    assert_refused(result, Code::AlreadyExists, "PUBLISHER_IDENTITY_EXISTS");
    let request = DeletePublisherIdentityRequest {
        tenant: tenant.slug.clone(),
        publisher_identity_id: identity.id,
        ..Default::default()
    };
    admin(world).delete_publisher_identity(request.clone()).await.expect("it exists");
    let result = admin(world).delete_publisher_identity(request).await;
    assert_refused(result, Code::NotFound, "PUBLISHER_IDENTITY_NOT_FOUND");
    let status = eventually("the identity is refused", || async {
        tenant.try_publish(publish_request("CUSTOM_PUBLISHED", &json!({}))).await.err().ok_or("still accepted")
    })
    .await;
    assert_eq!(reason(&status), "CREDENTIAL_INVALID");
}

#[tokio::test]
async fn changes_are_recorded_with_who_made_them() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_RECORDED").await;
    let id = tenant.subscribe("CUSTOM_RECORDED", &receiver, "/hook").await.subscription.expect("it is set").id;
    let request = ListAuditRecordsRequest { tenant: tenant.slug.clone(), page_size: 100, ..Default::default() };
    let records = admin(world).list_audit_records(request).await.expect("a page").into_inner().audit_records;
    let newest = &records[0];
    assert_eq!((newest.action.as_str(), newest.resource.as_str()), ("Subscribe", id.as_str()));
    assert!(newest.actor.starts_with("key_"), "{newest:?}");
    let created = records.iter().find(|record| record.action == "CreateApp").expect("it is recorded");
    assert!(created.actor.contains("spiffe://carillon.test/operator"), "{created:?}");
}

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
