//! `EventTypeService.UpdateEventType`: names for people, by the etag that was read.

use carillon::proto::public::{EventType, GetEventTypeRequest, UpdateEventTypeRequest};
use tonic::Code;

use crate::harness::World;
use crate::harness::tenant::assert_refused;

#[tokio::test]
async fn an_update_changes_what_is_set_and_refuses_an_old_etag() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_LIFE").await;
    let request = GetEventTypeRequest { name: "CUSTOM_LIFE".to_owned(), ..Default::default() };
    let created = tenant.types().get_event_type(request).await.expect("it is there").into_inner().event_type;
    let created = created.expect("it is set");
    let changed =
        EventType { name: "CUSTOM_LIFE".to_owned(), description: "Of a day".to_owned(), ..Default::default() };
    let request = UpdateEventTypeRequest { event_type: Some(changed.clone()), update_mask: None, ..Default::default() };
    let updated = tenant.types().update_event_type(request).await.expect("valid").into_inner().event_type;
    assert_eq!(updated.expect("it is set").description, "Of a day");
    let stale = EventType { etag: created.etag, ..changed };
    let request = UpdateEventTypeRequest { event_type: Some(stale), update_mask: None, ..Default::default() };
    assert_refused(tenant.types().update_event_type(request).await, Code::Aborted, "ETAG_MISMATCH");
    let absent = EventType { name: "CUSTOM_ABSENT".to_owned(), ..Default::default() };
    let request = UpdateEventTypeRequest { event_type: Some(absent), update_mask: None, ..Default::default() };
    assert_refused(tenant.types().update_event_type(request).await, Code::NotFound, "EVENT_TYPE_NOT_FOUND");
}
