//! `PublishService.PublishBatch`: all or none, in order, at adjacent positions.

use std::sync::Arc;

use carillon::clock;
use carillon::proto::internal::{PublishBatchRequest, PublishRequest};
use carillon::proto::public::{CreateEventTypeRequest, EventPhase};
use chrono::TimeDelta;
use serde_json::json;
use tokio::sync::Semaphore;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::harness::tenant::{assert_refused, publish_request, reason};
use crate::harness::{Answer, Receiver, World};

#[tokio::test]
async fn a_batch_takes_adjacent_positions_in_its_order() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_BATCHED").await;
    tenant.subscribe("CUSTOM_BATCHED", &receiver, "/hook").await;
    let requests = (0..100).map(|n| publish_request("CUSTOM_BATCHED", &json!({"n": n}))).collect();
    let answer = tenant.publisher().publish_batch(PublishBatchRequest { requests }).await.expect("a valid batch");
    let positions: Vec<i64> = answer.into_inner().responses.iter().map(|response| response.position).collect();
    assert_eq!(positions, (3..=102).collect::<Vec<i64>>());
    let received = receiver.receives("/hook", 100).await;
    assert!(received.iter().all(|received| received.verified == Some(true)));
}

#[tokio::test]
async fn one_bad_event_refuses_the_whole_batch_and_is_named() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare_with_schema("CUSTOM_BATCHED", r#"{"type": "object"}"#).await;
    let data = [json!({}), json!({}), json!([]), json!({})];
    let requests = data.iter().map(|data| publish_request("CUSTOM_BATCHED", data)).collect();
    let result = tenant.publisher().publish_batch(PublishBatchRequest { requests }).await;
    let status = assert_refused(result, Code::InvalidArgument, "SCHEMA_VIOLATION");
    let fields = status.get_details_bad_request().expect("it is set").field_violations;
    assert!(fields.iter().all(|violation| violation.field.contains("requests[2]")), "{fields:?}");
    assert_eq!(tenant.publish("CUSTOM_BATCHED", &json!({})).await.position, 2, "a part of the batch was kept");
}

#[tokio::test]
async fn the_size_of_a_batch_is_bounded() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_BATCHED").await;
    for count in [0, 1_001] {
        let requests = (0..count).map(|n| publish_request("CUSTOM_BATCHED", &json!(n))).collect();
        let result = tenant.publisher().publish_batch(PublishBatchRequest { requests }).await;
        assert_refused(result, Code::InvalidArgument, "FIELD_INVALID");
    }
    let requests = (0..1_000).map(|n| publish_request("CUSTOM_BATCHED", &json!(n))).collect();
    let answer = tenant.publisher().publish_batch(PublishBatchRequest { requests }).await.expect("the largest batch");
    assert_eq!(answer.into_inner().responses.last().map(|response| response.position), Some(1_001));
}

#[tokio::test]
async fn an_answer_that_would_not_fit_names_a_share_of_the_invocations_and_how_many_there_are() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_BATCHED").await;
    for n in 0..60 {
        let request = tenant.subscribe_request("CUSTOM_BATCHED", &receiver.url(&format!("/{n}")));
        tenant.events().subscribe(request).await.expect("valid");
    }
    let requests: Vec<_> = (0..1_000).map(|n| publish_request("CUSTOM_BATCHED", &json!({"n": n}))).collect();
    let one = tenant.try_publish(requests[0].clone()).await.expect("valid");
    assert_eq!((one.invocations.len(), one.total_invocations), (60, 60));
    let answer = tenant.publisher().publish_batch(PublishBatchRequest { requests }).await.expect("it arrives");
    let responses = answer.into_inner().responses;
    let size: usize = responses.iter().map(prost::Message::encoded_len).sum();
    assert!(size < 2 << 20, "{size} bytes");
    for response in &responses {
        assert_eq!((response.invocations.len(), response.total_invocations), (20, 60));
        assert!(response.invocations.iter().all(|one| one.subscription_id.starts_with("sub_")));
    }
    assert_eq!(tenant.invocations_of(&responses[999].event_id).await.len(), 60);
}

#[tokio::test]
async fn whatever_refuses_a_batch_says_which_event_it_is() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_BATCHED").await;
    let good = |n: i32| publish_request("CUSTOM_BATCHED", &json!({ "n": n }));
    let keyed = |n: i32| PublishRequest { idempotency_key: "taken".to_owned(), ..good(n) };
    tenant.try_publish(keyed(0)).await.expect("the key is new");
    let cases = [
        (publish_request("CUSTOM_ABSENT", &json!({})), "EVENT_TYPE_NOT_FOUND", "requests[2].event"),
        (publish_request("SUBSCRIPTION_CREATED", &json!({})), "EVENT_TYPE_FORBIDDEN", "requests[2].event"),
        (PublishRequest { schema_version: 7, ..good(0) }, "SCHEMA_VERSION_NOT_FOUND", "requests[2].event"),
        (keyed(1), "REQUEST_ID_REUSED", "requests[2].idempotency_key"),
    ];
    for (bad, expected, path) in cases {
        let requests = vec![good(1), good(2), bad, good(3)];
        let status = tenant.publisher().publish_batch(PublishBatchRequest { requests }).await.expect_err(expected);
        let info = status.get_details_error_info().expect("it is set");
        assert_eq!(info.reason, expected);
        let of_key = status.get_details_precondition_failure().map(|failure| failure.violations[0].subject.clone());
        assert_eq!(info.metadata.get("field").cloned().or(of_key).as_deref(), Some(path), "{status:?}");
    }
}

#[tokio::test]
async fn a_time_that_has_passed_keeps_its_place_in_the_batch() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_BATCHED").await;
    let passed = Some((clock::now() - TimeDelta::seconds(5)).into());
    let requests = [passed, None, passed]
        .map(|deliver_at| PublishRequest { deliver_at, ..publish_request("CUSTOM_BATCHED", &json!({})) })
        .into();
    let answer = tenant.publisher().publish_batch(PublishBatchRequest { requests }).await.expect("a valid batch");
    let positions: Vec<i64> = answer.into_inner().responses.iter().map(|response| response.position).collect();
    assert_eq!(positions, [2, 3, 4]);
}

#[tokio::test]
async fn a_batch_that_is_refused_at_the_door_has_no_effect() {
    let world = World::start_with(1, "[pending]\nscheduled_max = 1\nphases_max = 1\n").await;
    let (tenant, receiver) = (world.tenant().await, Receiver::start().await);
    tenant.declare("CUSTOM_BATCHED").await;
    let (name, phase) = ("CUSTOM_PRE".to_owned(), EventPhase::Pre.into());
    let declare = CreateEventTypeRequest { name, phase, ..Default::default() };
    tenant.types().create_event_type(declare).await.expect("a PRE type can be declared");
    let gate = Arc::new(Semaphore::new(0));
    receiver.answers("/pre", [Answer::Gated(gate.clone())]);
    tenant.subscribe("CUSTOM_PRE", &receiver, "/pre").await;
    let ordinary = || publish_request("CUSTOM_BATCHED", &json!({}));
    let pre = || publish_request("CUSTOM_PRE", &json!({}));
    let delayed = |days, n: i32| {
        let deliver_at = Some((clock::now() + TimeDelta::days(days)).into());
        PublishRequest { deliver_at, ..publish_request("CUSTOM_BATCHED", &json!({ "n": n })) }
    };
    let taken = |request| PublishRequest { idempotency_key: "taken".to_owned(), ..request };
    // All the room for delayed events, and for those that ask.
    let first = tenant.try_publish(taken(delayed(1, 1))).await.expect("it is accepted");
    let asking = tokio::spawn({
        let mut publisher = tenant.publisher();
        async move { publisher.publish(pre()).await }
    });
    receiver.receives("/pre", 1).await;
    let end = tenant.end_of_log().await;
    let cases = [
        (delayed(40, 1), "FIELD_INVALID", "requests[1].deliver_at"),
        (taken(delayed(1, 2)), "REQUEST_ID_REUSED", "requests[1].idempotency_key"),
        (delayed(1, 1), "QUOTA_EXCEEDED", "pending.scheduled_max"),
        (pre(), "QUOTA_EXCEEDED", "pending.phases_max"),
    ];
    let batch = |requests| {
        let mut publisher = tenant.publisher();
        async move { publisher.publish_batch(PublishBatchRequest { requests }).await.map(tonic::Response::into_inner) }
    };
    for (refused, expected, told) in cases {
        for _ in 0..2 {
            let status = batch(vec![ordinary(), refused.clone()]).await.expect_err(told);
            assert_eq!(reason(&status), expected, "{status:?}");
            let details = status.get_error_details();
            let field = details.bad_request().map(|bad| bad.field_violations[0].field.as_str());
            let key = details.precondition_failure().map(|failure| failure.violations[0].subject.as_str());
            let quota = details.quota_failure().map(|failure| failure.violations[0].subject.as_str());
            assert_eq!(field.or(key).or(quota), Some(told), "{status:?}");
            assert_eq!(tenant.end_of_log().await, end, "{told}: a part of the batch was kept");
        }
    }
    // What is accepted already needs no room.
    let answers = batch(vec![ordinary(), taken(delayed(1, 1))]).await.expect("the first answer").responses;
    assert_eq!((answers[0].position, &answers[1].event_id, answers[1].duplicate), (end + 1, &first.event_id, true));
    gate.add_permits(10);
    asking.await.expect("no panic").expect("its listener agreed");
    // With one place they ask in turn.
    let answers = batch(vec![pre(), pre(), ordinary(), pre()]).await.expect("all agree").responses;
    assert!(answers.iter().all(|answer| answer.position > 0), "{answers:?}");
}
