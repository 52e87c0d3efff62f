//! `EventTypeService.ListEventTypes`: the system catalogue, then what the tenant has declared.

use carillon::proto::public::{EventTypeOrigin, ListEventTypesRequest};
use tonic::Code;

use crate::harness::World;
use crate::harness::tenant::assert_refused;

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
async fn pages_hold_each_type_once_and_those_of_one_origin_where_asked() {
    let tenant = World::shared().await.tenant().await;
    for name in ["CUSTOM_B", "CUSTOM_A", "CUSTOM_C"] {
        tenant.declare(name).await;
    }
    let mut request =
        ListEventTypesRequest { page_size: 2, origin: EventTypeOrigin::Custom.into(), ..Default::default() };
    let mut names = Vec::new();
    loop {
        let page = tenant.types().list_event_types(request.clone()).await.expect("a page").into_inner();
        names.extend(page.event_types.into_iter().map(|event_type| event_type.name));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(names, ["CUSTOM_A", "CUSTOM_B", "CUSTOM_C"]);
    request.page_token = "bm9uc2Vuc2U".to_owned();
    assert_refused(tenant.types().list_event_types(request).await, Code::InvalidArgument, "PAGE_TOKEN_INVALID");
}
