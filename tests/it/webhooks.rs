//! What a webhook receiver sees.

use carillon::proto::public::WebhookMode;
use serde_json::json;

use crate::harness::tenant::webhook;
use crate::harness::{Receiver, Tenant, World};

async fn subscribe(tenant: &Tenant, receiver: &Receiver, path: &str, mode: WebhookMode) {
    let mut request = tenant.subscribe_request("CUSTOM_HOOKED", &receiver.url(path));
    request.target = Some(webhook(&receiver.url(path), mode));
    let answer = tenant.events().subscribe(request).await.expect("valid").into_inner();
    receiver.trust(path, &answer.signing_secret);
}

#[tokio::test]
async fn each_mode_carries_the_event_its_own_way_and_is_signed() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_HOOKED").await;
    let modes =
        [("/structured", WebhookMode::Structured), ("/binary", WebhookMode::Binary), ("/raw", WebhookMode::Raw)];
    for (path, mode) in modes {
        subscribe(&tenant, &receiver, path, mode).await;
    }
    let event_id = tenant.publish("CUSTOM_HOOKED", &json!({"n": 1})).await.event_id;
    for (path, _) in modes {
        let received = &receiver.receives(path, 1).await[0];
        assert_eq!(received.verified, Some(true), "{path}");
        let body = received.json();
        match path {
            "/structured" => assert_eq!((&body["id"], &body["data"]), (&json!(event_id), &json!({"n": 1}))),
            "/binary" => {
                assert_eq!(body, json!({"n": 1}));
                assert_eq!(received.header("ce-id"), event_id);
                assert_eq!(received.header("ce-type"), "CUSTOM_HOOKED");
                assert_eq!(received.header("ce-specversion"), "1.0");
            }
            _ => {
                assert_eq!(body, json!({"n": 1}));
                assert!(received.headers.keys().all(|name| !name.as_str().starts_with("ce-")));
            }
        }
    }
}
