//! `PublishService.CancelEvent`: a delayed or pending event is taken back, by one caller, before it is born.

use carillon::proto::internal::WaitEventRequest;
use carillon::proto::public::{CreateEventTypeRequest, EventPhase, InvocationState};
use chrono::TimeDelta;
use serde_json::json;
use tonic::Code;

use crate::delayed::{TYPE, cancel, count, later};
use crate::harness::database::Cluster;
use crate::harness::tenant::{assert_refused, publish_request};
use crate::harness::{Answer, Receiver, World, within};

#[tokio::test]
async fn a_delayed_event_is_cancelled_by_exactly_one_of_many_callers() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare(TYPE).await;
    let mut request = later(TimeDelta::hours(1));
    request.idempotency_key = "later-1".to_owned();
    let id = tenant.try_publish(request.clone()).await.expect("it is accepted").event_id;
    let again = tenant.try_publish(request.clone()).await.expect("the first answer");
    assert!(again.duplicate && again.event_id == id && again.deliver_time.is_some());
    let racers = (0..20).map(|racer| cancel(&tenant, racer % 2, &id));
    let results = futures::future::join_all(racers).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
    for refused in results.into_iter().filter(Result::is_err) {
        assert_refused(refused, Code::FailedPrecondition, "RESOURCE_STATE");
    }
    let waited = tenant.publisher().wait_event(WaitEventRequest { event_id: id, timeout: None }).await;
    assert_refused(waited, Code::FailedPrecondition, "RESOURCE_STATE");
    assert_refused(tenant.try_publish(request).await, Code::FailedPrecondition, "RESOURCE_STATE");
    assert_eq!(count(&tenant).await, 0);
    let absent = cancel(&tenant, 0, "evt_00000000000000000000000000").await;
    assert_refused(absent, Code::NotFound, "EVENT_NOT_FOUND");
    assert_refused(cancel(&tenant, 0, "evt_x").await, Code::InvalidArgument, "FIELD_INVALID");
}

#[tokio::test]
async fn another_tenants_delayed_event_cannot_be_cancelled() {
    let world = World::shared().await;
    let (tenant, other) = (world.tenant().await, world.tenant().await);
    tenant.declare(TYPE).await;
    let id = tenant.try_publish(later(TimeDelta::hours(1))).await.expect("it is accepted").event_id;
    assert_refused(cancel(&other, 0, &id).await, Code::NotFound, "EVENT_NOT_FOUND");
    cancel(&tenant, 0, &id).await.expect("it is still there");
}

#[tokio::test]
async fn a_pre_event_whose_listeners_are_asked_can_be_cancelled_on_either_replica() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    let pre = CreateEventTypeRequest { name: TYPE.to_owned(), phase: EventPhase::Pre.into(), ..Default::default() };
    tenant.types().create_event_type(pre).await.expect("a PRE type can be declared");
    tenant.subscribe(TYPE, &receiver, "/pre").await;
    receiver.answers("/pre", [Answer::Hang]);
    for (turn, replica) in [(1, 0), (2, 1)] {
        let mut publisher = tenant.publisher();
        let publishing = tokio::spawn(async move { publisher.publish(publish_request(TYPE, &json!({}))).await });
        let asked = receiver.receives("/pre", turn).await;
        let id = asked[turn - 1].json()["id"].as_str().expect("an id").to_owned();
        cancel(&tenant, replica, &id).await.expect("its listener is still asked");
        let answer = within("the publisher", publishing).await.expect("no panic");
        assert_refused(answer, Code::FailedPrecondition, "RESOURCE_STATE");
        // Its listener was called, and nothing denies that.
        let listed = tenant.all_invocations_become(&id, InvocationState::Cancelled).await;
        assert_eq!(listed.iter().map(|one| one.cancel_reason.as_str()).collect::<Vec<_>>(), ["PRE_CANCELLED"]);
    }
    assert_eq!(count(&tenant).await, 0);
}

#[tokio::test]
async fn what_a_listener_decided_is_on_record_where_its_event_is_cancelled_before_that_is_written() {
    let world = World::start(2).await;
    let (tenant, receiver) = (world.tenant().await, Receiver::start().await);
    let pre = CreateEventTypeRequest { name: TYPE.to_owned(), phase: EventPhase::Pre.into(), ..Default::default() };
    tenant.types().create_event_type(pre).await.expect("a PRE type can be declared");
    tenant.subscribe(TYPE, &receiver, "/pre").await;
    let mut holder = Cluster::superuser(&world.database_url).await;
    let decided = [
        (200, "WITH locked AS MATERIALIZED", InvocationState::Succeeded, ""),
        (409, "WITH ended AS", InvocationState::Cancelled, "PRE_REJECTED"),
    ];
    for (turn, (status, written_by, state, reason)) in decided.into_iter().enumerate() {
        receiver.answers("/pre", [Answer::Status(status)]);
        let lock = "BEGIN; LOCK TABLE pending_verdicts IN SHARE MODE";
        sqlx::raw_sql(lock).execute(&mut holder).await.expect("no decision can be written");
        let mut publisher = tenant.publisher();
        let publishing = tokio::spawn(async move { publisher.publish(publish_request(TYPE, &json!({}))).await });
        let asked = receiver.receives("/pre", turn + 1).await;
        let id = asked[turn].json()["id"].as_str().expect("an id").to_owned();
        Cluster::is_held_up(&world.database_url, written_by).await;
        cancel(&tenant, 1, &id).await.expect("it is still pending");
        sqlx::raw_sql("ROLLBACK").execute(&mut holder).await.expect("decisions can be written");
        let answer = within("the publisher", publishing).await.expect("no panic");
        assert_refused(answer, Code::FailedPrecondition, "RESOURCE_STATE");
        let listed = tenant.all_invocations_become(&id, state).await;
        assert_eq!(listed.iter().map(|one| one.cancel_reason.as_str()).collect::<Vec<_>>(), [reason]);
    }
    assert_eq!(count(&tenant).await, 0);
}
