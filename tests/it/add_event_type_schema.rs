//! `EventTypeService.AddEventTypeSchema`: the next version, and which one an event is checked against.

use carillon::proto::public::{AddEventTypeSchemaRequest, ListEventTypeSchemasRequest};
use serde_json::json;
use tonic::Code;

use crate::harness::World;
use crate::harness::tenant::{assert_refused, publish_request};

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
