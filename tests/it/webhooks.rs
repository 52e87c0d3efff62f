//! What a webhook receiver sees.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use carillon::domain::webhook::{SigningSecret, VerificationKey};
use carillon::proto::public::{
    GetSubscriptionRequest, InvocationState, RotateSubscriptionSecretRequest, SignatureScheme, SubscribeRequest,
    Subscription, SubscriptionState, UpdateSubscriptionRequest, WebhookMode,
};
use serde_json::json;
use tokio::sync::Semaphore;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::harness::receiver::Received;
use crate::harness::tenant::assert_refused;
use crate::harness::tenant::webhook;
use crate::harness::{Answer, Receiver, Tenant, World, eventually};

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

/// Whether a delivery's signatures verify with a key, by their prefix.
fn verifies(received: &Received, key: &str) -> bool {
    let key = VerificationKey::parse(key).expect("a key");
    let message =
        [received.header("webhook-id").as_bytes(), received.header("webhook-timestamp").as_bytes(), &received.body];
    key.fits(received.header("webhook-signature"), &message.join(&b"."[..]))
}

#[tokio::test]
async fn a_v1a_delivery_verifies_with_the_public_key_and_a_rotation_keeps_the_scheme() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_HOOKED").await;
    let mut request = tenant.subscribe_request("CUSTOM_HOOKED", &receiver.url("/public"));
    request.signature_scheme = SignatureScheme::V1a.into();
    let made = tenant.events().subscribe(request).await.expect("valid").into_inner();
    assert!(made.signing_secret.starts_with("whsk_") && made.public_key.starts_with("whpk_"), "{made:?}");
    tenant.publish("CUSTOM_HOOKED", &json!({})).await;
    let first = &receiver.receives("/public", 1).await[0];
    assert!(first.header("webhook-signature").starts_with("v1a,") && verifies(first, &made.public_key));
    assert!(!verifies(&Received { body: "other".into(), ..first.clone() }, &made.public_key));

    let id = made.subscription.expect("it is set").id;
    let rotate = RotateSubscriptionSecretRequest { subscription_id: id, ..Default::default() };
    let rotated = tenant.events().rotate_subscription_secret(rotate.clone()).await.expect("valid").into_inner();
    let to_shared = RotateSubscriptionSecretRequest { signature_scheme: SignatureScheme::V1.into(), ..rotate.clone() };
    let shared = tenant.events().rotate_subscription_secret(to_shared).await.expect("valid").into_inner();
    assert!(shared.public_key.is_empty(), "{shared:?}");
    tenant.publish("CUSTOM_HOOKED", &json!({})).await;
    let second = &receiver.receives("/public", 2).await[1];
    for key in [made.public_key, rotated.public_key, shared.signing_secret] {
        assert!(verifies(second, &key), "{key} does not verify {}", second.header("webhook-signature"));
    }
    let kept = tenant.events().rotate_subscription_secret(rotate.clone()).await.expect("valid").into_inner();
    assert!(kept.signing_secret.starts_with("whsec_"), "as the newest signs, not as the first: {kept:?}");
    let back = RotateSubscriptionSecretRequest { signature_scheme: SignatureScheme::V1a.into(), ..rotate.clone() };
    tenant.events().rotate_subscription_secret(back).await.expect("valid");
    let kept = tenant.events().rotate_subscription_secret(rotate).await.expect("valid").into_inner();
    assert!(kept.public_key.starts_with("whpk_"), "{kept:?}");
}

#[tokio::test]
async fn a_scheme_that_the_secret_is_not_of_is_refused() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_HOOKED").await;
    let shared = format!("whsec_{}", STANDARD.encode([1; 32]));
    let private = SigningSecret::from_seed([1; 32]).expect("a seed").reveal();
    let cases = [
        (shared, SignatureScheme::V1a as i32, "signature_scheme"),
        (private, SignatureScheme::V1 as i32, "signature_scheme"),
        (String::new(), 99, "signature_scheme"),
        (format!("whsk_{}", STANDARD.encode([1; 33])), 0, "signing_secret"),
    ];
    for (signing_secret, signature_scheme, field) in cases {
        let request = SubscribeRequest {
            signing_secret,
            signature_scheme,
            ..tenant.subscribe_request("CUSTOM_HOOKED", "https://hooks.example.com/")
        };
        let refused = tenant.events().subscribe(request).await;
        let status = assert_refused(refused, Code::InvalidArgument, "FIELD_INVALID");
        let violations = status.get_details_bad_request().expect("it names the field").field_violations;
        assert_eq!(violations[0].field, field, "{status:?}");
    }
}

#[tokio::test]
async fn a_receiver_that_is_gone_disables_its_subscription() {
    let (tenant, receiver) = Tenant::with_listener(vec![Answer::Status(410)]).await;
    let published = tenant.publish("CUSTOM_RUN", &json!({})).await;
    let dead = tenant.all_invocations_become(&published.event_id, InvocationState::DeadLettered).await;
    let request = GetSubscriptionRequest { subscription_id: dead[0].subscription_id.clone() };
    eventually("the subscription is disabled as GONE", || async {
        let answer = tenant.events().get_subscription(request.clone()).await.expect("it is there").into_inner();
        let subscription = answer.subscription.expect("it is set");
        if subscription.state_reason == "GONE" { Ok(()) } else { Err(subscription) }
    })
    .await;
    assert!(tenant.publish("CUSTOM_RUN", &json!({})).await.invocations.is_empty());
    assert_eq!(receiver.received("/hook").len(), 1);
}

#[tokio::test]
async fn a_receiver_that_is_gone_says_nothing_of_the_one_that_has_replaced_it() {
    let gate = Arc::new(Semaphore::new(0));
    let (tenant, receiver) = Tenant::with_listener(vec![Answer::GatedStatus(gate.clone(), 410)]).await;
    let old = tenant.publish("CUSTOM_RUN", &json!({})).await;
    let id = tenant.invocations_of(&old.event_id).await[0].subscription_id.clone();
    receiver.receives("/hook", 1).await;
    let target = Some(webhook(&receiver.url("/new"), WebhookMode::Structured));
    let subscription = Some(Subscription { id: id.clone(), target, ..Default::default() });
    let update = UpdateSubscriptionRequest { subscription, ..Default::default() };
    tenant.events().update_subscription(update).await.expect("the receiver is another one");
    gate.add_permits(1);
    let dead = tenant.all_invocations_become(&old.event_id, InvocationState::DeadLettered).await;
    // It is told only once it is decided whether it disables the subscription.
    tenant.told("INVOCATION_DEAD_LETTERED", &dead[0].id).await;
    let answer = tenant.events().get_subscription(GetSubscriptionRequest { subscription_id: id }).await;
    let subscription = answer.expect("it is there").into_inner().subscription.expect("it is set");
    assert_eq!(subscription.state(), SubscriptionState::Active, "{subscription:?}");
    let new = tenant.publish("CUSTOM_RUN", &json!({})).await;
    tenant.all_invocations_become(&new.event_id, InvocationState::Succeeded).await;
    assert_eq!((receiver.received("/hook").len(), receiver.received("/new").len()), (1, 1));
}
