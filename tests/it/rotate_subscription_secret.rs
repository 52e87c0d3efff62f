//! `EventService.RotateSubscriptionSecret`: the new secret signs beside the present ones for a while.

use carillon::proto::public::RotateSubscriptionSecretRequest;
use serde_json::json;
use tonic::Code;

use crate::harness::tenant::assert_refused;
use crate::harness::{Receiver, World};

#[tokio::test]
async fn after_a_rotation_both_secrets_verify() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_ROTATED").await;
    let subscribed = tenant.subscribe("CUSTOM_ROTATED", &receiver, "/hook").await;
    let request = RotateSubscriptionSecretRequest {
        subscription_id: subscribed.subscription.expect("it is set").id,
        ..Default::default()
    };
    let rotated = tenant.events().rotate_subscription_secret(request.clone()).await.expect("valid").into_inner();
    assert_ne!(rotated.signing_secret, subscribed.signing_secret);
    assert!(rotated.previous_expire_time.is_some());
    for (count, secret) in [(1, &subscribed.signing_secret), (2, &rotated.signing_secret)] {
        receiver.distrust("/hook");
        receiver.trust("/hook", secret);
        tenant.publish("CUSTOM_ROTATED", &json!({})).await;
        let received = receiver.receives("/hook", count).await;
        assert_eq!(received[count - 1].verified, Some(true));
        assert_eq!(received[count - 1].header("webhook-signature").split(' ').count(), 2);
    }
    let at_once =
        RotateSubscriptionSecretRequest { overlap: Some(pbjson_types::Duration { seconds: 0, nanos: 0 }), ..request };
    let last = tenant.events().rotate_subscription_secret(at_once).await.expect("valid").into_inner();
    receiver.distrust("/hook");
    receiver.trust("/hook", &last.signing_secret);
    tenant.publish("CUSTOM_ROTATED", &json!({})).await;
    let received = receiver.receives("/hook", 3).await;
    assert_eq!(received[2].verified, Some(true));
    assert_eq!(received[2].header("webhook-signature").split(' ').count(), 1);
}

#[tokio::test]
async fn there_is_nothing_to_rotate_of_an_absent_subscription() {
    let tenant = World::shared().await.tenant().await;
    let subscription_id = "sub_00000000000000000000000000".to_owned();
    let request = RotateSubscriptionSecretRequest { subscription_id, ..Default::default() };
    let result = tenant.events().rotate_subscription_secret(request).await;
    assert_refused(result, Code::NotFound, "SUBSCRIPTION_NOT_FOUND");
}
