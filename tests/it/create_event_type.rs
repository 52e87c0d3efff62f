//! `EventTypeService.CreateEventType`: names, what is taken, and schemas that cannot be used.

use carillon::proto::public::{CreateEventTypeRequest, EventTypeOrigin};
use tonic::Code;

use crate::harness::World;
use crate::harness::tenant::{assert_refused, reason};

#[tokio::test]
async fn a_custom_type_is_created_once() {
    let tenant = World::shared().await.tenant().await;
    let request = CreateEventTypeRequest { name: "CUSTOM_LIFE".to_owned(), ..Default::default() };
    let created = tenant.types().create_event_type(request.clone()).await.expect("valid").into_inner().event_type;
    let created = created.expect("it is set");
    assert_eq!((created.origin(), created.display_name.as_str()), (EventTypeOrigin::Custom, "CUSTOM_LIFE"));
    assert_refused(tenant.types().create_event_type(request).await, Code::AlreadyExists, "EVENT_TYPE_EXISTS");
}

#[tokio::test]
async fn names_are_checked() {
    let tenant = World::shared().await.tenant().await;
    let nul = "CUSTOM_\0";
    let long = format!("CUSTOM_{}", "X".repeat(1 << 20));
    for name in ["", " ", "ORDER", "USER_CREATE", "CUSTOM_", "CUSTOM_A B", "CUSTOM_../x", "CUSTOM_é", nul, &long] {
        let request = CreateEventTypeRequest { name: name.to_owned(), ..Default::default() };
        let status = tenant.types().create_event_type(request).await.expect_err("a bad name");
        assert_eq!(reason(&status), "FIELD_INVALID", "{}", name.chars().take(20).collect::<String>());
    }
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
