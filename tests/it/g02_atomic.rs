//! G2: an event and every invocation it causes commit together. Whoever sees the event sees them all, on any replica; what is
//! refused leaves neither. That a crash between the two cannot be seen is in `g05_at_least_once`.

use carillon::proto::internal::PublishBatchRequest;
use carillon::proto::public::watch_response::Kind;
use carillon::proto::public::{ListInvocationsRequest, WatchRequest};
use serde_json::json;

use crate::harness::tenant::publish_request;
use crate::harness::{Receiver, World, within};
use crate::watch::watch;

#[tokio::test]
async fn whoever_sees_an_event_sees_every_invocation_of_it() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_ATOMIC").await;
    for path in ["/a", "/b", "/c"] {
        tenant.subscribe("CUSTOM_ATOMIC", &receiver, path).await;
    }
    let mut stream = watch(&tenant, 1, WatchRequest::default()).await;
    let publisher = tenant.publisher();
    let publishing = tokio::spawn(async move {
        for n in 0..40 {
            publisher.clone().publish(publish_request("CUSTOM_ATOMIC", &json!({ "n": n }))).await.expect("valid");
        }
    });
    let mut seen = 0;
    while seen < 40 {
        let message = within("the next event", stream.message()).await.expect("it lives").expect("it goes on");
        let Some(Kind::Events(events)) = message.kind else { continue };
        for event in events.events {
            let event = event.event.and_then(|event| event.event).expect("it is set");
            // Asked at once, of the replica that did not publish it.
            let request = ListInvocationsRequest { event_id: event.id.clone(), ..Default::default() };
            let listed = tenant.at[1].invocations.clone().list_invocations(request).await.expect("a page");
            assert_eq!(listed.into_inner().invocations.len(), 3, "{} was seen before its invocations", event.id);
            seen += 1;
        }
    }
    publishing.await.expect("everything was published");
    let end = tenant.end_of_log().await;
    let requests = vec![publish_request("CUSTOM_ATOMIC", &json!({})), publish_request("CUSTOM_ABSENT", &json!({}))];
    tenant.publisher().publish_batch(PublishBatchRequest { requests }).await.expect_err("one of them is refused");
    assert_eq!(tenant.end_of_log().await, end, "a part of a refused batch is in the log");
    for path in ["/a", "/b", "/c"] {
        assert_eq!(receiver.receives(path, 40).await.len(), 40, "{path}");
    }
}
