//! `EventService.GetEvent`: one event of the log.

use carillon::proto::public::GetEventRequest;
use serde_json::json;
use tonic::Code;

use crate::harness::World;
use crate::harness::tenant::assert_refused;

#[tokio::test]
async fn an_event_is_read_on_every_replica_and_an_absent_one_is_not_found() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_READ").await;
    let published = tenant.publish("CUSTOM_READ", &json!({"n": 1})).await;
    for clients in &tenant.at {
        let request = GetEventRequest { event_id: published.event_id.clone() };
        let event = clients.events.clone().get_event(request).await.expect("it is there").into_inner().event;
        let event = event.expect("it is set");
        assert_eq!((&event.id, event.position), (&published.event_id, published.position));
    }
    let request = GetEventRequest { event_id: "evt_00000000000000000000000000".to_owned() };
    assert_refused(tenant.events().get_event(request).await, Code::NotFound, "EVENT_NOT_FOUND");
    for event_id in ["", "evt_", "sub_00000000000000000000000000", "../etc", "%s"] {
        let request = GetEventRequest { event_id: event_id.to_owned() };
        assert_refused(tenant.events().get_event(request).await, Code::InvalidArgument, "FIELD_INVALID");
    }
}
