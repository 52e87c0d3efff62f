//! `EventTypeService.ValidateEvent`: what is wrong with data, without publishing it.

use carillon::proto::public::ValidateEventRequest;
use serde_json::json;
use tonic::Code;
use tonic_types::StatusExt as _;

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

#[tokio::test]
async fn without_a_schema_what_publish_would_refuse_is_refused_too() {
    let world = World::start_with(1, "[publish]\nevent_bytes_max = 1024\n").await;
    let tenant = world.tenant().await;
    tenant.declare("CUSTOM_FREE").await;
    let validate = |data: &[u8]| {
        let data = data.to_vec().into();
        let request = ValidateEventRequest { event_type: "CUSTOM_FREE".to_owned(), data, ..Default::default() };
        let mut types = tenant.types();
        async move { types.validate_event(request).await.map(tonic::Response::into_inner) }
    };
    let reserved = validate(br#"{"$serde_json::private::Number":"5"}"#).await.expect("an answer").violations.remove(0);
    assert!(reserved.message.starts_with("cannot be taken: at byte "), "{reserved:?}");
    assert!(reserved.message.contains("a reserved key ($serde_json::private::...)"), "{reserved:?}");
    for (data, valid) in [("{\"a\":1}", true), ("", true), ("{\"a\":", false), ("{} {}", false), ("\u{feff}1", false)] {
        let answer = validate(data.as_bytes()).await.expect("an answer");
        assert_eq!((answer.valid, answer.violations.is_empty(), answer.schema_version), (valid, valid, 0), "{data:?}");
        if !valid {
            assert_eq!(answer.violations[0].data_pointer, "");
            assert!(answer.violations[0].message.starts_with("is not JSON: at byte "), "{answer:?}");
        }
    }
    let large = json!("x".repeat(1_024)).to_string();
    let status = assert_refused(validate(large.as_bytes()).await, Code::InvalidArgument, "EVENT_TOO_LARGE");
    assert_eq!(status.get_details_error_info().expect("it is set").metadata["limit_bytes"], "1024");
}
