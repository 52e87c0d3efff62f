//! `EventTypeService.ListEventTypeSchemas`: every version, newest first.

use carillon::proto::public::{AddEventTypeSchemaRequest, ListEventTypeSchemasRequest};
use tonic::Code;

use crate::harness::World;
use crate::harness::tenant::assert_refused;

#[tokio::test]
async fn pages_hold_every_version_once_newest_first() {
    let tenant = World::shared().await.tenant().await;
    let schema = |n: i32| format!(r#"{{"required": ["k{n}"]}}"#);
    tenant.declare_with_schema("CUSTOM_LISTED", &schema(1)).await;
    for n in 2..=5 {
        let event_type = "CUSTOM_LISTED".to_owned();
        let request = AddEventTypeSchemaRequest { event_type, schema: schema(n), ..Default::default() };
        tenant.types().add_event_type_schema(request).await.expect("valid");
    }
    let mut request =
        ListEventTypeSchemasRequest { event_type: "CUSTOM_LISTED".to_owned(), page_size: 2, ..Default::default() };
    let mut listed = Vec::new();
    loop {
        let page = tenant.types().list_event_type_schemas(request.clone()).await.expect("a page").into_inner();
        listed.extend(page.schemas.into_iter().map(|schema| (schema.version, schema.schema)));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    let expected: Vec<_> = (1..=5).rev().map(|n| (n, schema(n))).collect();
    assert_eq!(listed, expected);
    let request = ListEventTypeSchemasRequest { event_type: "CUSTOM_ABSENT".to_owned(), ..Default::default() };
    assert_refused(tenant.types().list_event_type_schemas(request).await, Code::NotFound, "EVENT_TYPE_NOT_FOUND");
}
