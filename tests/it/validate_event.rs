//! `EventTypeService.ValidateEvent`: what is wrong with data, without publishing it.

use carillon::proto::public::ValidateEventRequest;
use tonic::Code;

use crate::harness::World;
use crate::harness::tenant::assert_refused;

#[tokio::test]
async fn validation_answers_with_violations() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare_with_schema("CUSTOM_CHECKED", r#"{"properties": {"n": {"type": "integer"}}}"#).await;
    let mut request = ValidateEventRequest {
        event_type: "CUSTOM_CHECKED".to_owned(),
        data: br#"{"n": "x"}"#.as_slice().into(),
        ..Default::default()
    };
    let answer = tenant.types().validate_event(request.clone()).await.expect("an answer").into_inner();
    assert!(!answer.valid);
    assert_eq!((answer.violations[0].data_pointer.as_str(), answer.schema_version), ("/n", 1));
    request.data = br#"{"n": 1}"#.as_slice().into();
    assert!(tenant.types().validate_event(request.clone()).await.expect("an answer").into_inner().valid);
    request.schema_version = 2;
    assert_refused(tenant.types().validate_event(request).await, Code::NotFound, "SCHEMA_VERSION_NOT_FOUND");
}
