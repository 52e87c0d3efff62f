//! What a webhook receiver sees, and what a bad one can and cannot do.

use carillon::proto::public::{InvocationState, OutcomeClass, WebhookMode};
use serde_json::json;

use crate::harness::tenant::{millis, webhook};
use crate::harness::{Answer, Receiver, Tenant, World};

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

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    let elsewhere = receiver.url("/elsewhere");
    receiver.answers("/hook", [Answer::Full(302, vec![("location", elsewhere)], Vec::new())]);
    tenant.declare("CUSTOM_HOOKED").await;
    subscribe(&tenant, &receiver, "/hook", WebhookMode::Structured).await;
    let event_id = tenant.publish("CUSTOM_HOOKED", &json!({})).await.event_id;
    let dead = tenant.all_invocations_become(&event_id, InvocationState::DeadLettered).await;
    assert_eq!(dead[0].last_attempt.as_ref().expect("it is set").status_code, 302);
    assert!(receiver.received("/elsewhere").is_empty());
}

#[tokio::test]
async fn hostile_answers_are_judged_within_their_deadline() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_HOOKED").await;
    let cases = [
        ("/hang", Answer::Hang, OutcomeClass::Timeout),
        ("/reset", Answer::Reset, OutcomeClass::Unreachable),
        ("/refused", Answer::Full(422, Vec::new(), vec![b'y'; 200_000]), OutcomeClass::Failed),
    ];
    for (path, answer, _) in &cases {
        receiver.answers(path, [answer.clone()]);
        let mut request = tenant.subscribe_request("CUSTOM_HOOKED", &receiver.url(path));
        let policy = request.delivery_policy.as_mut().expect("it is set");
        policy.timeout = Some(millis(300));
        policy.max_attempts = 2;
        tenant.events().subscribe(request).await.expect("valid");
    }
    receiver.answers("/endless", [Answer::EndlessBody]);
    let mut request = tenant.subscribe_request("CUSTOM_HOOKED", &receiver.url("/endless"));
    request.delivery_policy.as_mut().expect("it is set").timeout = Some(millis(500));
    tenant.events().subscribe(request).await.expect("valid");

    let event_id = tenant.publish("CUSTOM_HOOKED", &json!({})).await.event_id;
    let all = crate::harness::eventually("every attempt is judged", || async {
        let all = tenant.invocations_of(&event_id).await;
        let open = |state| matches!(state, InvocationState::Pending | InvocationState::Waiting);
        if all.len() == 4 && all.iter().all(|one| !open(one.state())) { Ok(all) } else { Err(all) }
    })
    .await;
    for (path, _, expected) in cases {
        let found = all.iter().any(|one| one.last_attempt.as_ref().is_some_and(|last| last.outcome() == expected));
        assert!(found, "{path}: no {expected:?} among {all:#?}");
    }
    for invocation in &all {
        let last = invocation.last_attempt.as_ref().expect("it is set");
        assert!(last.response_excerpt.len() <= 1_024, "an unbounded excerpt");
        assert!(!last.error.contains("127.0.0.1"), "an address in {}", last.error);
    }
}
