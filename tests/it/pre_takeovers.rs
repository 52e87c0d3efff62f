//! PRE events whose owner dies while it asks: what the next owner goes on with.

use carillon::proto::internal::{PublishRequest, WaitEventRequest};
use carillon::proto::public::{CreateEventTypeRequest, DeliveryPolicy, EventPhase, InvocationState};
use pbjson_types::Duration;
use serde_json::json;

use crate::harness::tenant::{millis, publish_request};
use crate::harness::{Answer, Receiver, World, eventually, within};

const TYPE: &str = "CUSTOM_PRE_TAKEN_OVER";

#[tokio::test]
async fn attempts_of_a_next_owner_go_on_above_those_of_the_one_that_died() {
    let mut world = World::start(2).await;
    let (tenant, receiver) = (world.tenant().await, Receiver::start().await);
    let pre = CreateEventTypeRequest { name: TYPE.to_owned(), phase: EventPhase::Pre.into(), ..Default::default() };
    tenant.types().create_event_type(pre).await.expect("a PRE type can be declared");
    let mut listener = tenant.subscribe_request(TYPE, &receiver.url("/ill"));
    listener.delivery_policy = Some(DeliveryPolicy {
        max_attempts: 50,
        initial_backoff: Some(millis(100)),
        max_backoff: Some(millis(200)),
        ..Default::default()
    });
    tenant.events().subscribe(listener).await.expect("a listener can be subscribed");
    receiver.answers("/ill", [Answer::Status(500)]);
    let request =
        PublishRequest { pre_timeout: Some(Duration { seconds: 30, nanos: 0 }), ..publish_request(TYPE, &json!({})) };
    let mut publisher = tenant.publishers[1].clone();
    let publishing = tokio::spawn(async move { publisher.publish(request).await });
    let asked = receiver.receives("/ill", 5).await;
    let event_id = asked[0].json()["id"].as_str().expect("an id").to_owned();
    world.replicas[1].process.kill();
    within("its publisher hears of it", publishing).await.expect("no panic").expect_err("its replica is dead");
    let before = receiver.received("/ill").len();
    receiver.receives("/ill", before + 3).await;
    receiver.answers("/ill", [Answer::Status(200)]);
    let wait = WaitEventRequest { event_id: event_id.clone(), timeout: Some(Duration { seconds: 30, nanos: 0 }) };
    let waited = within("the event", tenant.publisher().wait_event(wait)).await.expect("it is born").into_inner();
    assert!(waited.done && waited.event.is_some());
    let ended = eventually("its invocation is recorded", || async {
        let all = tenant.invocations_of(&event_id).await;
        all.into_iter().find(|one| one.state() == InvocationState::Succeeded).ok_or("not yet")
    })
    .await;
    let made = receiver.received("/ill").len();
    assert!(usize::try_from(ended.attempt_count).is_ok_and(|number| number >= made), "{made} made: {ended:?}");
    // A number that was written down and not used is left out; nothing else is.
    assert!(usize::try_from(ended.attempt_count).is_ok_and(|number| number <= made + 1), "{made} made: {ended:?}");
}
