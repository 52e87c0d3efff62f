//! `EventTypeService`: the catalogue, custom types, their schemas and their subscribers.

use carillon::proto::public::{
    AddEventTypeSchemaRequest, CreateEventTypeRequest, DeleteEventTypeRequest, EventType, EventTypeOrigin,
    GetEventTypeRequest, ListEventTypeSchemasRequest, ListEventTypesRequest, UndeleteEventTypeRequest,
    UnsubscribeRequest, UpdateEventTypeRequest, ValidateEventRequest,
};
use serde_json::json;
use tonic::Code;

use crate::harness::tenant::{assert_refused, publish_request, reason};
use crate::harness::{Receiver, World};

#[tokio::test]
async fn the_system_catalogue_is_there_with_schemas() {
    let tenant = World::shared().await.tenant().await;
    let request = ListEventTypesRequest { page_size: 1_000, ..Default::default() };
    let types = tenant.types().list_event_types(request).await.expect("a page").into_inner().event_types;
    for name in [
        "FILE_FINALIZED",
        "SERVICE_ACCOUNT_RESTORED",
        "USER_ACTIVATE",
        "ACCOUNT_API_KEY_DELETED",
        "PRE_USER_CREATE",
        "POST_USER_CREATE",
        "API_CALL_THIRD_PARTY",
        "ROW_READ",
        "INVOCATION_DEAD_LETTERED",
    ] {
        let found = types.iter().find(|event_type| event_type.name == name);
        let found = found.unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!(found.origin(), EventTypeOrigin::System, "{name}");
        assert!(found.latest_schema_version >= 1, "{name} has no schema");
    }
    let names: Vec<_> = types.iter().map(|event_type| event_type.name.as_str()).collect();
    assert!(names.is_sorted(), "system types come by name: {names:?}");
}

#[tokio::test]
async fn a_custom_type_lives_from_create_to_undelete() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    let request = CreateEventTypeRequest { name: "CUSTOM_LIFE".to_owned(), ..Default::default() };
    let created = tenant.types().create_event_type(request.clone()).await.expect("valid").into_inner().event_type;
    let created = created.expect("it is set");
    assert_eq!((created.origin(), created.display_name.as_str()), (EventTypeOrigin::Custom, "CUSTOM_LIFE"));
    assert_refused(tenant.types().create_event_type(request).await, Code::AlreadyExists, "EVENT_TYPE_EXISTS");

    let changed =
        EventType { name: "CUSTOM_LIFE".to_owned(), description: "Of a day".to_owned(), ..Default::default() };
    let request = UpdateEventTypeRequest { event_type: Some(changed.clone()), update_mask: None, ..Default::default() };
    let updated = tenant.types().update_event_type(request).await.expect("valid").into_inner().event_type;
    assert_eq!(updated.expect("it is set").description, "Of a day");
    let stale = EventType { etag: created.etag, ..changed };
    let request = UpdateEventTypeRequest { event_type: Some(stale), update_mask: None, ..Default::default() };
    assert_refused(tenant.types().update_event_type(request).await, Code::Aborted, "ETAG_MISMATCH");

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
    let request = UndeleteEventTypeRequest { name: "CUSTOM_LIFE".to_owned(), ..Default::default() };
    tenant.types().undelete_event_type(request).await.expect("it is retired");
    tenant.publish("CUSTOM_LIFE", &json!({})).await;
}

#[tokio::test]
async fn system_types_cannot_be_changed_and_names_are_checked() {
    let tenant = World::shared().await.tenant().await;
    let delete = DeleteEventTypeRequest { name: "USER_CREATE".to_owned(), ..Default::default() };
    let result = tenant.types().delete_event_type(delete).await;
    assert_refused(result, Code::FailedPrecondition, "EVENT_TYPE_STATE");
    let nul = "CUSTOM_\0";
    let long = format!("CUSTOM_{}", "X".repeat(1 << 20));
    for name in ["", " ", "ORDER", "USER_CREATE", "CUSTOM_", "CUSTOM_A B", "CUSTOM_../x", "CUSTOM_é", nul, &long] {
        let request = CreateEventTypeRequest { name: name.to_owned(), ..Default::default() };
        let status = tenant.types().create_event_type(request).await.expect_err("a bad name");
        assert_eq!(reason(&status), "FIELD_INVALID", "{}", name.chars().take(20).collect::<String>());
    }
}

#[tokio::test]
async fn schemas_have_versions_and_an_event_may_name_one() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare_with_schema("CUSTOM_VERSIONED", r#"{"required": ["a"]}"#).await;
    let request = AddEventTypeSchemaRequest {
        event_type: "CUSTOM_VERSIONED".to_owned(),
        schema: r#"{"required": ["b"]}"#.to_owned(),
        ..Default::default()
    };
    let added = tenant.types().add_event_type_schema(request).await.expect("valid").into_inner().schema;
    assert_eq!(added.expect("it is set").version, 2);
    let request = ListEventTypeSchemasRequest { event_type: "CUSTOM_VERSIONED".to_owned(), ..Default::default() };
    let listed = tenant.types().list_event_type_schemas(request).await.expect("a page").into_inner().schemas;
    assert_eq!(listed.iter().map(|schema| schema.version).collect::<Vec<_>>(), [2, 1]);
    for (schema_version, data, accepted) in [
        (0, json!({"b": 1}), true),
        (0, json!({"a": 1}), false),
        (1, json!({"a": 1}), true),
        (1, json!({"b": 1}), false),
    ] {
        let mut request = publish_request("CUSTOM_VERSIONED", &data);
        request.schema_version = schema_version;
        for publisher in &tenant.publishers {
            let result = publisher.clone().publish(request.clone()).await;
            assert_eq!(result.is_ok(), accepted, "version {schema_version}, {data}: {result:?}");
        }
    }
    let mut request = publish_request("CUSTOM_VERSIONED", &json!({"b": 1}));
    request.schema_version = 3;
    assert_refused(tenant.try_publish(request).await, Code::NotFound, "SCHEMA_VERSION_NOT_FOUND");
}

#[tokio::test]
async fn unusable_schemas_are_refused() {
    let tenant = World::shared().await.tenant().await;
    let large = format!(r#"{{"description": "{}"}}"#, "x".repeat(300_000));
    for schema in [
        "{",
        "17",
        r#"{"type": "nonsense"}"#,
        r#"{"$ref": "http://127.0.0.1:9/remote.json"}"#,
        r#"{"$ref": "file:///etc/hostname"}"#,
        &large,
    ] {
        let request = CreateEventTypeRequest {
            name: "CUSTOM_UNUSABLE".to_owned(),
            schema: schema.to_owned(),
            ..Default::default()
        };
        let result = tenant.types().create_event_type(request).await;
        assert_refused(result, Code::InvalidArgument, "SCHEMA_INVALID");
    }
}

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
    assert!(tenant.types().validate_event(request).await.expect("an answer").into_inner().valid);
}

#[tokio::test]
async fn an_event_type_lists_its_subscribers_by_app() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_POPULAR").await;
    for n in 0..5 {
        let request = tenant.subscribe_request("CUSTOM_POPULAR", &format!("http://127.0.0.1:9/{n}"));
        tenant.events().subscribe(request).await.expect("valid");
    }
    let mut request = GetEventTypeRequest {
        name: "CUSTOM_POPULAR".to_owned(),
        app: tenant.app.clone(),
        page_size: 2,
        ..Default::default()
    };
    let mut seen = 0;
    loop {
        let page = tenant.types().get_event_type(request.clone()).await.expect("a page").into_inner();
        assert_eq!(page.total_subscribers, 5);
        seen += page.subscribers.len();
        assert!(page.subscribers.iter().all(|one| one.app == tenant.app && one.target_kind == "webhook"));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(seen, 5);
}
