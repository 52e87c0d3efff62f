//! `EventTypeService.GetEventType`: one type and its subscribers.

use carillon::proto::public::GetEventTypeRequest;
use tonic::Code;

use crate::harness::World;
use crate::harness::tenant::assert_refused;

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
    let request = GetEventTypeRequest { name: "CUSTOM_ABSENT".to_owned(), ..Default::default() };
    assert_refused(tenant.types().get_event_type(request).await, Code::NotFound, "EVENT_TYPE_NOT_FOUND");
}
