//! `EventTypeService.DeleteEventType`: a custom type that nobody listens to is retired.

use carillon::proto::public::{DeleteEventTypeRequest, UnsubscribeRequest};
use serde_json::json;
use tonic::Code;

use crate::harness::tenant::{assert_refused, publish_request, reason};
use crate::harness::{Receiver, World};

#[tokio::test]
async fn a_type_is_retired_once_nobody_listens_and_then_it_is_not_published() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_LIFE").await;
    let id = tenant.subscribe("CUSTOM_LIFE", &receiver, "/hook").await.subscription.expect("it is set").id;
    let delete = DeleteEventTypeRequest { name: "CUSTOM_LIFE".to_owned(), ..Default::default() };
    let result = tenant.types().delete_event_type(delete.clone()).await;
    assert_refused(result, Code::FailedPrecondition, "EVENT_TYPE_STATE");
    let unsubscribe = UnsubscribeRequest { subscription_id: id, ..Default::default() };
    tenant.events().unsubscribe(unsubscribe).await.expect("it is subscribed");
    tenant.types().delete_event_type(delete).await.expect("nobody listens");
    for publisher in &tenant.publishers {
        let result = publisher.clone().publish(publish_request("CUSTOM_LIFE", &json!({}))).await;
        let status = result.expect_err("a retired type is not published");
        assert!(["EVENT_TYPE_STATE", "EVENT_TYPE_NOT_FOUND"].contains(&reason(&status).as_str()), "{status:?}");
    }
}

#[tokio::test]
async fn system_types_cannot_be_deleted() {
    let tenant = World::shared().await.tenant().await;
    let delete = DeleteEventTypeRequest { name: "USER_CREATE".to_owned(), ..Default::default() };
    let result = tenant.types().delete_event_type(delete).await;
    assert_refused(result, Code::FailedPrecondition, "EVENT_TYPE_STATE");
}
