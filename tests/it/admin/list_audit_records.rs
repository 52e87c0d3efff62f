//! `AdminService.ListAuditRecords`: who changed what, newest first.

use carillon::proto::internal::ListAuditRecordsRequest;
use tonic::Code;

use crate::harness::tenant::{admin, assert_refused};
use crate::harness::{Receiver, World};

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
    let request = ListAuditRecordsRequest { tenant: "absent".to_owned(), ..Default::default() };
    assert_refused(admin(world).list_audit_records(request).await, Code::NotFound, "TENANT_NOT_FOUND");
}
