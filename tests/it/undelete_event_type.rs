//! `EventTypeService.UndeleteEventType`: a retired type comes back.

use carillon::proto::public::{DeleteEventTypeRequest, UndeleteEventTypeRequest};
use serde_json::json;
use tonic::Code;

use crate::harness::World;
use crate::harness::tenant::assert_refused;

#[tokio::test]
async fn a_retired_type_can_be_published_again_and_one_that_is_not_stays_as_it_is() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_LIFE").await;
    let undelete = UndeleteEventTypeRequest { name: "CUSTOM_LIFE".to_owned(), ..Default::default() };
    let result = tenant.types().undelete_event_type(undelete.clone()).await;
    assert_refused(result, Code::FailedPrecondition, "EVENT_TYPE_STATE");
    let delete = DeleteEventTypeRequest { name: "CUSTOM_LIFE".to_owned(), ..Default::default() };
    tenant.types().delete_event_type(delete).await.expect("nobody listens");
    tenant.types().undelete_event_type(undelete).await.expect("it is retired");
    tenant.publish("CUSTOM_LIFE", &json!({})).await;
}
