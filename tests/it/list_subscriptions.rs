//! `EventService.ListSubscriptions`: pages of them, oldest first.

use carillon::proto::public::ListSubscriptionsRequest;
use tonic::Code;

use crate::harness::World;
use crate::harness::tenant::assert_refused;

#[tokio::test]
async fn lists_page_through_every_subscription_once() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_LISTED").await;
    let mut ids = Vec::new();
    for n in 0..7 {
        let request = tenant.subscribe_request("CUSTOM_LISTED", &format!("http://127.0.0.1:9/{n}"));
        ids.push(tenant.events().subscribe(request).await.expect("valid").into_inner().subscription.expect("set").id);
    }
    let mut listed = Vec::new();
    let mut request = ListSubscriptionsRequest { page_size: 3, app: tenant.app.clone(), ..Default::default() };
    loop {
        let page = tenant.events().list_subscriptions(request.clone()).await.expect("a page").into_inner();
        assert!(page.subscriptions.len() <= 3);
        listed.extend(page.subscriptions.into_iter().map(|subscription| subscription.id));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(listed, ids, "oldest first, each once");
    request.event_type = "CUSTOM_OTHER".to_owned();
    request.page_token = "bm9uc2Vuc2U".to_owned();
    assert_refused(tenant.events().list_subscriptions(request).await, Code::InvalidArgument, "PAGE_TOKEN_INVALID");
}
