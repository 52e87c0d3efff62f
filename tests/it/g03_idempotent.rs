//! G3: one idempotency key makes at most one event, and every retry gets the first answer.

use std::collections::HashSet;

use carillon::clock;
use carillon::proto::internal::{CancelEventRequest, PublishBatchRequest, PublishRequest, PublishResponse};
use carillon::proto::public::{
    AddEventTypeSchemaRequest, CreateEventTypeRequest, DeleteEventTypeRequest, DisableSubscriptionRequest, EventPhase,
    InvocationState, PreFailurePolicy, PrePolicy, SubscribeRequest,
};
use chrono::TimeDelta;
use futures::future::join_all;
use serde_json::json;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::tenant::{assert_refused, publish_request};
use crate::harness::{Answer, Receiver, Tenant, World, eventually};

fn keyed(event_type: &str, key: &str) -> PublishRequest {
    PublishRequest { idempotency_key: key.to_owned(), ..publish_request(event_type, &json!({"n": 1})) }
}

async fn batch(tenant: &Tenant, requests: Vec<PublishRequest>) -> Result<Vec<PublishResponse>, Status> {
    let answer = tenant.publisher().publish_batch(PublishBatchRequest { requests }).await;
    answer.map(|answer| answer.into_inner().responses)
}

#[tokio::test]
async fn a_hundred_racers_on_two_replicas_make_one_event() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_RACED").await;
    tenant.subscribe("CUSTOM_RACED", &receiver, "/hook").await;
    let mut request = publish_request("CUSTOM_RACED", &json!({"n": 1}));
    request.idempotency_key = "race".to_owned();
    let racers = (0..100).map(|racer| {
        let (mut publisher, request) = (tenant.publishers[racer % 2].clone(), request.clone());
        async move { publisher.publish(request).await.expect("every racer gets the answer").into_inner() }
    });
    let answers = join_all(racers).await;
    assert_eq!(answers.iter().filter(|answer| !answer.duplicate).count(), 1);
    let same: HashSet<_> = answers
        .iter()
        .map(|answer| (answer.event_id.clone(), answer.position, answer.invocations[0].invocation_id.clone()))
        .collect();
    assert_eq!(same.len(), 1, "{same:?}");
    assert_eq!(tenant.publish("CUSTOM_RACED", &json!({"n": 2})).await.position, same.iter().next().expect("one").1 + 1);
    receiver.receives("/hook", 2).await;
    assert_eq!(receiver.received("/hook").len(), 2);
}

#[tokio::test]
async fn the_same_key_with_another_body_is_refused() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_RACED").await;
    let mut request = publish_request("CUSTOM_RACED", &json!({"n": 1}));
    request.idempotency_key = "key".to_owned();
    let first = tenant.try_publish(request.clone()).await.expect("the first");
    let mut other = publish_request("CUSTOM_RACED", &json!({"n": 2}));
    other.idempotency_key = "key".to_owned();
    assert_refused(tenant.try_publish(other).await, Code::FailedPrecondition, "REQUEST_ID_REUSED");
    let again = tenant.publishers[1].clone().publish(request).await.expect("the retry").into_inner();
    assert!(again.duplicate);
    assert_eq!((again.event_id, again.commit_time), (first.event_id, first.commit_time));
}

#[tokio::test]
async fn the_publishers_own_id_serves_as_key_together_with_the_source() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_RACED").await;
    let mut request = publish_request("CUSTOM_RACED", &json!({"n": 1}));
    request.event.as_mut().expect("it is set").id = "order-17".to_owned();
    let first = tenant.try_publish(request.clone()).await.expect("the first");
    let again = tenant.try_publish(request.clone()).await.expect("the retry");
    assert_eq!((again.event_id.as_str(), again.duplicate), (first.event_id.as_str(), true));
    request.event.as_mut().expect("it is set").source = "/another".to_owned();
    let other = tenant.try_publish(request).await.expect("another source");
    assert_ne!(other.event_id, first.event_id);
}

#[tokio::test]
async fn a_retry_gets_the_first_answer_whatever_has_become_of_its_type() {
    let tenant = World::shared().await.tenant().await;
    let kept = "CUSTOM_KEPT";
    tenant.declare(kept).await;
    for (deleted, in_batch) in [(true, false), (true, true), (false, false), (false, true)] {
        let name = format!("CUSTOM_GONE_{deleted}_{in_batch}");
        tenant.declare(&name).await;
        let requests = vec![keyed(&name, &format!("{name}-1")), keyed(kept, &format!("{name}-2"))];
        let first = batch(&tenant, requests.clone()).await.expect("both are new");
        if deleted {
            let delete = DeleteEventTypeRequest { name: name.clone(), ..Default::default() };
            tenant.types().delete_event_type(delete).await.expect("it is there");
        } else {
            let schema = r#"{"required": ["other"]}"#.to_owned();
            let add = AddEventTypeSchemaRequest { event_type: name.clone(), schema, ..Default::default() };
            tenant.types().add_event_type_schema(add).await.expect("valid");
        }
        // The first retry finds a registry in memory that is behind, the second one that is not.
        for _ in 0..2 {
            let again = if in_batch {
                batch(&tenant, requests.clone()).await.expect("the first answers")
            } else {
                vec![tenant.try_publish(requests[0].clone()).await.expect("the first answer")]
            };
            for (again, first) in again.iter().zip(&first) {
                assert!(again.duplicate, "{again:?}");
                assert_eq!((&again.event_id, again.position), (&first.event_id, first.position));
            }
        }
        // What is not repeated whole is refused, and says what is wrong with it: by a replica that has heard of the change, which a retry
        // does not have to.
        let status = eventually("its type does not take it any more", || async {
            let refused = batch(&tenant, vec![publish_request(kept, &json!({})), requests[0].clone()]).await;
            refused.map_or_else(Ok, Err)
        })
        .await;
        let info = status.get_details_error_info().expect("it is set");
        let fields = status.get_details_bad_request().map(|bad| bad.field_violations[0].field.clone());
        let field = info.metadata.get("field").cloned().or(fields).unwrap_or_default();
        assert!(field.starts_with("requests[1].event"), "{status:?}");
    }
}

#[tokio::test]
async fn a_retry_of_a_batch_gets_the_refusal_of_its_pre_event_also_when_nobody_listens_any_more() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    let pre =
        CreateEventTypeRequest { name: "CUSTOM_PRE".to_owned(), phase: EventPhase::Pre.into(), ..Default::default() };
    tenant.types().create_event_type(pre).await.expect("a PRE type can be declared");
    tenant.declare("CUSTOM_RACED").await;
    receiver.answers("/pre", [Answer::Status(409)]);
    let listener = tenant.subscribe("CUSTOM_PRE", &receiver, "/pre").await.subscription.expect("it is set");
    let requests = vec![keyed("CUSTOM_RACED", "x1"), keyed("CUSTOM_PRE", "x2")];
    let rejected = |answer: Result<Vec<PublishResponse>, Status>| {
        let status = assert_refused(answer, Code::FailedPrecondition, "PRE_REJECTED");
        assert_eq!(status.get_details_error_info().expect("it is set").metadata["field"], "requests[1].event");
    };
    rejected(batch(&tenant, requests.clone()).await);
    rejected(batch(&tenant, requests.clone()).await);
    let disable = DisableSubscriptionRequest { subscription_id: listener.id.clone(), ..Default::default() };
    tenant.events().disable_subscription(disable).await.expect("it is active");
    tenant.told("SUBSCRIPTION_DISABLED", &listener.id).await;
    let end = tenant.publish("CUSTOM_RACED", &json!({"n": 2})).await.position;
    rejected(batch(&tenant, requests.clone()).await);
    // Also where the rest of the batch is new: it has no part in the log then.
    rejected(batch(&tenant, vec![keyed("CUSTOM_RACED", "x3"), requests[1].clone()]).await);
    assert_eq!(tenant.end_of_log().await, end);
}

#[tokio::test]
async fn a_retry_hears_what_the_listeners_of_a_pre_event_said_whatever_has_become_of_them_and_of_its_type() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    let name = "CUSTOM_PRE_GONE";
    let pre = CreateEventTypeRequest { name: name.to_owned(), phase: EventPhase::Pre.into(), ..Default::default() };
    tenant.types().create_event_type(pre).await.expect("a PRE type can be declared");
    let mut listeners = Vec::new();
    for (path, answer) in [("/agrees", 200), ("/fails", 400)] {
        receiver.answers(path, [Answer::Status(answer)]);
        let failure_policy = PreFailurePolicy::Ignore.into();
        let request = SubscribeRequest {
            pre_policy: Some(PrePolicy { failure_policy, ..Default::default() }),
            ..tenant.subscribe_request(name, &receiver.url(path))
        };
        let made = tenant.events().subscribe(request).await.expect("a listener can be subscribed").into_inner();
        listeners.push(made.subscription.expect("it is set").id);
    }
    let first = tenant.try_publish(keyed(name, "pre")).await.expect("the failure is ignored");
    assert_eq!(first.pre_verdicts.len(), 2);
    let failed =
        first.pre_verdicts.iter().find(|verdict| verdict.subscription_id == listeners[1]).expect("it has a say");
    assert!(failed.message.contains("400"), "{failed:?}");
    receiver.answers("/agrees", [Answer::Status(400)]);
    let second = tenant.try_publish(keyed(name, "pre-2")).await.expect("both failures are ignored");
    receiver.answers("/agrees", [Answer::Status(200)]);
    for id in &listeners {
        tenant.unsubscribe(id).await;
    }
    let again = batch(&tenant, ["pre-2", "pre"].map(|key| keyed(name, key)).to_vec()).await.expect("the first answers");
    assert_eq!(
        again.iter().map(|one| &one.pre_verdicts).collect::<Vec<_>>(),
        [&second.pre_verdicts, &first.pre_verdicts]
    );
    // It is no PRE event any more that the same key would be used for now, alone or in a batch.
    let again = tenant.try_publish(keyed(name, "pre")).await.expect("the first answer");
    assert_eq!((again.duplicate, &again.pre_verdicts), (true, &first.pre_verdicts));
    let again = batch(&tenant, vec![keyed(name, "new"), keyed(name, "pre")]).await.expect("one is new");
    assert_eq!(again.iter().map(|one| &one.pre_verdicts).collect::<Vec<_>>(), [&Vec::new(), &first.pre_verdicts]);
    let delete = DeleteEventTypeRequest { name: name.to_owned(), ..Default::default() };
    tenant.types().delete_event_type(delete).await.expect("nobody listens");
    for publisher in &tenant.publishers {
        let again = publisher.clone().publish(keyed(name, "pre")).await.expect("the first answer").into_inner();
        assert_eq!((again.duplicate, &again.event_id), (true, &first.event_id));
        assert_eq!(again.pre_verdicts, first.pre_verdicts);
    }
    // Those of an ordinary event are called after it is in the log: they had no say.
    tenant.declare("CUSTOM_PLAIN").await;
    tenant.subscribe("CUSTOM_PLAIN", &receiver, "/agrees").await;
    let plain = tenant.try_publish(keyed("CUSTOM_PLAIN", "plain")).await.expect("it is published");
    tenant.all_invocations_become(&plain.event_id, InvocationState::Succeeded).await;
    let again = tenant.try_publish(keyed("CUSTOM_PLAIN", "plain")).await.expect("the first answer");
    assert_eq!((again.duplicate, again.pre_verdicts), (true, Vec::new()));
}

#[tokio::test]
async fn a_batch_that_repeats_a_delayed_event_without_its_delay_gets_the_first_answer() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_RACED").await;
    let deliver_at = Some((clock::now() + TimeDelta::hours(1)).into());
    let delayed = PublishRequest { deliver_at, ..keyed("CUSTOM_RACED", "a") };
    let first = tenant.try_publish(delayed).await.expect("it is accepted");
    let again = batch(&tenant, vec![keyed("CUSTOM_RACED", "a")]).await.expect("the first answer").remove(0);
    assert!(again.duplicate);
    assert_eq!((&again.event_id, again.deliver_time), (&first.event_id, first.deliver_time));
    let with_another = |key: &str| vec![keyed("CUSTOM_RACED", key), keyed("CUSTOM_RACED", "a")];
    let answers = batch(&tenant, with_another("b")).await.expect("one is new");
    assert_eq!(answers.iter().map(|answer| answer.duplicate).collect::<Vec<_>>(), [false, true]);
    assert_eq!((answers[0].position, &answers[1].event_id), (2, &first.event_id));
    let cancel = CancelEventRequest { event_id: first.event_id, ..Default::default() };
    tenant.publisher().cancel_event(cancel).await.expect("it waits");
    for requests in [vec![keyed("CUSTOM_RACED", "a")], with_another("c")] {
        assert_refused(batch(&tenant, requests).await, Code::FailedPrecondition, "RESOURCE_STATE");
    }
    assert_eq!(tenant.end_of_log().await, 2);
}
