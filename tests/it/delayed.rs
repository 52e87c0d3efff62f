//! `deliver_at`: an event that is accepted now is born once, at its time.

use carillon::clock;
use carillon::proto::cloudevents::cloud_event::Data;
use carillon::proto::internal::{CancelEventRequest, PublishRequest, WaitEventRequest};
use carillon::proto::public::{
    CreateEventTypeRequest, DeleteEventTypeRequest, DeliveryPolicy, EventPhase, GetEventRequest, InvocationState,
    ListEventsRequest, Subscription, UpdateSubscriptionRequest,
};
use chrono::{DateTime, TimeDelta, Utc};
use pbjson_types::{Duration, FieldMask};
use serde_json::json;
use sqlx::Connection as _;
use std::sync::Arc;
use tokio::sync::{Mutex, Semaphore};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::database::Cluster;
use crate::harness::tenant::{assert_refused, millis, publish_request, reason};
use crate::harness::{Answer, Receiver, Tenant, World, eventually, within};

pub const TYPE: &str = "CUSTOM_LATER";
/// Longer than any test takes.
const PATIENT: Option<Duration> = Some(Duration { seconds: 30, nanos: 0 });

pub fn later(delay: TimeDelta) -> PublishRequest {
    let at = Some((clock::now() + delay).into());
    PublishRequest { deliver_at: at, ..publish_request(TYPE, &json!({"n": 1})) }
}

pub async fn cancel(tenant: &Tenant, replica: usize, event_id: &str) -> Result<(), Status> {
    let request = CancelEventRequest { event_id: event_id.to_owned(), ..Default::default() };
    tenant.publishers[replica].clone().cancel_event(request).await.map(drop)
}

pub async fn count(tenant: &Tenant) -> usize {
    let request = ListEventsRequest { event_types: vec![TYPE.to_owned()], ..Default::default() };
    let page = tenant.events().list_events(request).await.expect("a page").into_inner();
    page.events.len()
}

#[tokio::test]
async fn a_delayed_event_is_matched_and_committed_at_its_time() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare(TYPE).await;
    let request = later(TimeDelta::seconds(3));
    let at = request.deliver_at.expect("it is set");
    let answer = tenant.try_publish(request).await.expect("it is accepted");
    assert_eq!((answer.position, answer.commit_time, answer.invocations.len()), (0, None, 0));
    let due = answer.deliver_time.expect("it says when");
    assert_eq!((due.seconds, due.nanos / 1_000), (at.seconds, at.nanos / 1_000));
    let get = GetEventRequest { event_id: answer.event_id.clone() };
    let waiting = assert_refused(tenant.events().get_event(get).await, Code::NotFound, "EVENT_NOT_FOUND");
    assert!(waiting.message().contains("WaitEvent waits for it"), "{waiting:?}");
    // As one that there never was, or another tenant's.
    let get = GetEventRequest { event_id: "evt_00000000000000000000000000".to_owned() };
    let absent = assert_refused(tenant.events().get_event(get).await, Code::NotFound, "EVENT_NOT_FOUND");
    assert_eq!(absent.message(), waiting.message());
    let wait = WaitEventRequest { event_id: answer.event_id.clone(), timeout: Some(millis(50)) };
    let early = tenant.publisher().wait_event(wait).await.expect("a timeout is an answer").into_inner();
    assert!(!early.done && early.event.is_none());
    // Subscribed after it was accepted, before it is due.
    tenant.subscribe(TYPE, &receiver, "/hook").await;
    let wait = WaitEventRequest { event_id: answer.event_id.clone(), timeout: None };
    let mut other = tenant.publishers[1].clone();
    let waited = within("the event", other.wait_event(wait)).await.expect("it is born").into_inner();
    let event = waited.event.expect("it is in the log");
    assert_eq!(event.id, answer.event_id);
    assert_eq!(count(&tenant).await, 1);
    let born = event.commit_time.expect("it is set");
    assert!((born.seconds, born.nanos) >= (at.seconds, at.nanos), "{born:?} is before {at:?}");
    let fired = receiver.receives("/hook", 1).await;
    assert_eq!((fired[0].verified, fired[0].json()["id"].as_str()), (Some(true), Some(answer.event_id.as_str())));
    assert_refused(cancel(&tenant, 0, &answer.event_id).await, Code::FailedPrecondition, "RESOURCE_STATE");
}

#[tokio::test]
async fn a_time_that_has_passed_means_now_and_one_too_far_ahead_is_refused() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare(TYPE).await;
    assert!(tenant.try_publish(later(TimeDelta::hours(-1))).await.expect("it is published").position > 0);
    let far = tenant.try_publish(later(TimeDelta::days(31))).await;
    let status = assert_refused(far, Code::InvalidArgument, "FIELD_INVALID");
    assert_eq!(status.get_details_bad_request().expect("fields").field_violations[0].field, "deliver_at");
    // It is checked at the door.
    let mut unknown = later(TimeDelta::hours(1));
    unknown.event.as_mut().expect("it is set").r#type = "CUSTOM_LATTER".to_owned();
    assert_refused(tenant.try_publish(unknown).await, Code::NotFound, "EVENT_TYPE_NOT_FOUND");
}

#[tokio::test]
async fn a_retry_that_counts_its_delay_anew_gets_the_first_answer() {
    let world = World::start_with(1, "[pending]\nscheduled_max = 1\n").await;
    let tenant = world.tenant().await;
    tenant.declare(TYPE).await;
    let keyed = |delay| PublishRequest { idempotency_key: "later-1".to_owned(), ..later(delay) };
    let first = tenant.try_publish(keyed(TimeDelta::hours(1))).await.expect("it is accepted");
    // There is no room for another one: none is needed.
    for retry in
        [keyed(TimeDelta::hours(2)), PublishRequest { pre_timeout: Some(millis(50)), ..keyed(TimeDelta::hours(1)) }]
    {
        let again = tenant.try_publish(retry).await.expect("the first answer");
        assert!(again.duplicate, "{again:?}");
        assert_eq!((again.event_id, again.deliver_time), (first.event_id.clone(), first.deliver_time));
    }
    let at_once = PublishRequest { deliver_at: None, ..keyed(TimeDelta::hours(1)) };
    let again = tenant.try_publish(at_once).await.expect("the first answer");
    assert_eq!((again.duplicate, again.event_id), (true, first.event_id.clone()));
    let mut other = keyed(TimeDelta::hours(1));
    other.event = publish_request(TYPE, &json!({"n": 2})).event;
    assert_refused(tenant.try_publish(other).await, Code::FailedPrecondition, "REQUEST_ID_REUSED");
    assert_eq!(count(&tenant).await, 0, "it waits for its time");
}

#[tokio::test]
async fn a_retry_gets_the_time_of_the_first_answer_also_while_the_event_is_brought_on_its_way() {
    let world = World::start(1).await;
    let tenant = world.tenant().await;
    tenant.declare(TYPE).await;
    let keyed = PublishRequest { idempotency_key: "later-1".to_owned(), ..later(TimeDelta::seconds(2)) };
    let mut holder = Cluster::superuser(&world.database_url).await;
    let first = tenant.try_publish(keyed.clone()).await.expect("it is accepted");
    let mut lock = holder.begin().await.expect("a transaction");
    sqlx::query("SELECT 1 FROM tenant_heads FOR UPDATE").execute(&mut *lock).await.expect("locked");
    let watcher = Mutex::new(Cluster::superuser(&world.database_url).await);
    eventually("it is claimed", || async {
        let sql = "SELECT token FROM pending_events";
        let token: i64 = sqlx::query_scalar(sql).fetch_one(&mut *watcher.lock().await).await.expect("it waits");
        if token > 1 { Ok(()) } else { Err(token) }
    })
    .await;
    let again = tenant.try_publish(keyed).await.expect("the first answer");
    assert_eq!((again.duplicate, again.deliver_time), (true, first.deliver_time));
    lock.rollback().await.expect("released");
}

#[tokio::test]
async fn a_delayed_pre_event_asks_its_listeners_when_it_is_due() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    let pre = CreateEventTypeRequest { name: TYPE.to_owned(), phase: EventPhase::Pre.into(), ..Default::default() };
    tenant.types().create_event_type(pre).await.expect("a PRE type can be declared");
    tenant.subscribe(TYPE, &receiver, "/pre").await;
    let passes = tenant.try_publish(later(TimeDelta::milliseconds(1_500))).await.expect("it is accepted").event_id;
    assert!(receiver.received("/pre").is_empty(), "nobody is asked before its time");
    let wait = WaitEventRequest { event_id: passes, timeout: None };
    let waited = tenant.publisher().wait_event(wait).await.expect("its listener agrees").into_inner();
    assert!(waited.done && waited.event.is_some());
    assert_eq!(waited.invocations[0].state(), InvocationState::Succeeded);
    receiver.answers("/pre", [Answer::Status(409)]);
    let refused = tenant.try_publish(later(TimeDelta::milliseconds(500))).await.expect("it is accepted").event_id;
    let wait = WaitEventRequest { event_id: refused, timeout: None };
    assert_refused(tenant.publisher().wait_event(wait).await, Code::FailedPrecondition, "PRE_REJECTED");
    assert_eq!(count(&tenant).await, 1);
}

#[tokio::test]
async fn delayed_pre_events_that_fall_due_together_have_their_time_when_their_listener_takes_them() {
    let world = World::start(1).await;
    let (tenant, receiver) = (world.tenant().await, Receiver::start().await);
    let pre = CreateEventTypeRequest { name: TYPE.to_owned(), phase: EventPhase::Pre.into(), ..Default::default() };
    tenant.types().create_event_type(pre).await.expect("a PRE type can be declared");
    tenant.declare("CUSTOM_BEHIND").await;
    let gate = Arc::new(Semaphore::new(0));
    receiver.answers("/pre", [Answer::Gated(gate.clone())]);
    let mut listener = tenant.subscribe_request(TYPE, &receiver.url("/pre"));
    listener.delivery_policy = Some(DeliveryPolicy { max_in_flight: 2, timeout: PATIENT, ..Default::default() });
    let listener = tenant.events().subscribe(listener).await.expect("a listener can be subscribed").into_inner();
    let listener = listener.subscription.expect("it is set").id;
    let at = clock::now() + TimeDelta::milliseconds(1_500);
    let due = |event_type, at: DateTime<Utc>| PublishRequest {
        deliver_at: Some(at.into()),
        pre_timeout: PATIENT,
        ..publish_request(event_type, &json!({}))
    };
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(tenant.try_publish(due(TYPE, at)).await.expect("it is accepted").event_id);
    }
    let behind = due("CUSTOM_BEHIND", at + TimeDelta::milliseconds(1));
    let behind = tenant.try_publish(behind).await.expect("it is accepted").event_id;
    // What is due behind them has not to wait for them; once it is there they were all looked at.
    let wait = |event_id: &String| WaitEventRequest { event_id: event_id.clone(), timeout: PATIENT };
    let waited = tenant.publisher().wait_event(wait(&behind)).await.expect("it is born").into_inner();
    assert!(waited.event.is_some(), "{waited:?}");
    receiver.receives("/pre", 2).await;
    let (asked, delayed): (i64, i64) = sqlx::query_as(
        "SELECT count(*) FILTER (WHERE state = 2 AND deadline_at IS NOT NULL), count(*) FILTER (WHERE state = 1 AND deadline_at IS NULL)
           FROM pending_events",
    )
    .fetch_one(&mut Cluster::superuser(&world.database_url).await)
    .await
    .expect("counts");
    assert_eq!((asked, delayed), (2, 4));
    // It takes more from now on: nobody has to answer first.
    let takes = |max_in_flight| Some(DeliveryPolicy { max_in_flight, timeout: PATIENT, ..Default::default() });
    let request = UpdateSubscriptionRequest {
        subscription: Some(Subscription { id: listener, delivery_policy: takes(5), ..Default::default() }),
        update_mask: Some(FieldMask { paths: vec!["delivery_policy".to_owned()] }),
        ..Default::default()
    };
    tenant.events().update_subscription(request).await.expect("a listener can be changed");
    receiver.receives("/pre", 5).await;
    gate.add_permits(6);
    for id in &ids {
        let waited = tenant.publisher().wait_event(wait(id)).await.expect("its listener agrees").into_inner();
        assert!(waited.event.is_some(), "{waited:?}");
    }
}

/// What operators are told of a delayed event that was not published.
async fn aborted(tenant: &Tenant, event_id: &str) -> serde_json::Value {
    tenant.told("DELAYED_EVENT_ABORTED", event_id).await;
    let request = ListEventsRequest {
        event_types: vec!["DELAYED_EVENT_ABORTED".to_owned()],
        filter: format!("event.subject == '{event_id}'"),
        ..Default::default()
    };
    let mut events = tenant.events().list_events(request).await.expect("a page").into_inner().events;
    assert_eq!(events.len(), 1, "it is told once");
    match events.remove(0).event.and_then(|event| event.data) {
        Some(Data::TextData(text)) => serde_json::from_str(&text).expect("JSON"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_delayed_event_that_cannot_be_published_any_more_is_told_to_operators_and_to_who_asks() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare(TYPE).await;
    let request = PublishRequest { idempotency_key: "gone".to_owned(), ..later(TimeDelta::seconds(2)) };
    let id = tenant.try_publish(request.clone()).await.expect("it is accepted").event_id;
    let delete = DeleteEventTypeRequest { name: TYPE.to_owned(), ..Default::default() };
    tenant.types().delete_event_type(delete).await.expect("it is there");
    let told = aborted(&tenant, &id).await;
    assert_eq!(
        (&told["event"], &told["event_type"], &told["reason"]),
        (&json!(id), &json!(TYPE), &json!("UNPUBLISHABLE"))
    );
    assert!(told["message"].as_str().is_some_and(|message| message.contains(TYPE)), "{told}");
    let at = |name: &str| told[name].as_str().and_then(|text| text.parse::<chrono::DateTime<chrono::Utc>>().ok());
    let deliver_at = request.deliver_at.as_ref().expect("it is set");
    assert_eq!(at("deliver_at").map(|at| at.timestamp()), Some(deliver_at.seconds), "{told}");
    assert!(at("accepted_at") < at("deliver_at") && at("deliver_at") <= at("aborted_at"), "{told}");
    let wait = WaitEventRequest { event_id: id.clone(), timeout: None };
    let waited = tenant.publisher().wait_event(wait).await;
    for answer in [waited.map(drop), tenant.try_publish(request).await.map(drop)] {
        let status = assert_refused(answer, Code::FailedPrecondition, "RESOURCE_STATE");
        let violation = status.get_details_precondition_failure().expect("it is named").violations.remove(0);
        assert_eq!(violation.subject, id);
    }
}

#[tokio::test]
async fn a_delayed_pre_event_that_is_refused_is_told_to_operators() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    let pre = CreateEventTypeRequest { name: TYPE.to_owned(), phase: EventPhase::Pre.into(), ..Default::default() };
    tenant.types().create_event_type(pre).await.expect("a PRE type can be declared");
    let subscribed = tenant.subscribe(TYPE, &receiver, "/pre").await.subscription.expect("it is set");
    receiver.answers("/pre", [Answer::Status(409)]);
    // Of one whose publisher waits the answer is enough.
    tenant.try_publish(publish_request(TYPE, &json!({}))).await.expect_err("it is refused");
    let id = tenant.try_publish(later(TimeDelta::milliseconds(500))).await.expect("it is accepted").event_id;
    assert_eq!(aborted(&tenant, &id).await["reason"], "PRE_REJECTED");
    let said = tenant.invocations_of(&id).await.remove(0);
    assert_eq!(
        (said.subscription_id, said.cancel_reason.as_str(), said.attempt_count),
        (subscribed.id, "PRE_REJECTED", 1)
    );
    let request = ListEventsRequest { event_types: vec!["DELAYED_EVENT_ABORTED".to_owned()], ..Default::default() };
    assert_eq!(tenant.events().list_events(request).await.expect("a page").into_inner().events.len(), 1);
}

#[tokio::test]
async fn the_number_of_scheduled_events_is_bounded() {
    let world = World::start_with(1, "[pending]\nscheduled_max = 2\nschedule_horizon_hours = 2\n").await;
    let tenant = world.tenant().await;
    tenant.declare(TYPE).await;
    let first = tenant.try_publish(later(TimeDelta::hours(1))).await.expect("it is accepted").event_id;
    tenant.try_publish(later(TimeDelta::hours(1))).await.expect("it is accepted");
    let refused = tenant.try_publish(later(TimeDelta::hours(1))).await;
    let status = assert_refused(refused, Code::ResourceExhausted, "QUOTA_EXCEEDED");
    assert_eq!(status.get_details_error_info().expect("it is set").metadata["quota"], "pending.scheduled_max");
    cancel(&tenant, 0, &first).await.expect("it is cancelled");
    tenant.try_publish(later(TimeDelta::hours(1))).await.expect("there is room again");
    let far = tenant.try_publish(later(TimeDelta::hours(3))).await;
    assert_refused(far, Code::InvalidArgument, "FIELD_INVALID");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delayed_events_are_born_once_although_the_replica_that_took_them_dies() {
    let mut world = World::start(2).await;
    let tenant = world.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare(TYPE).await;
    tenant.subscribe(TYPE, &receiver, "/hook").await;
    let mut ids = Vec::new();
    for n in 0..40 {
        let mut request = later(TimeDelta::milliseconds(1_500 + 25 * n));
        request.idempotency_key = format!("later-{n}");
        let accepted = tenant.publishers[1].clone().publish(request).await.expect("it is accepted");
        ids.push(accepted.into_inner().event_id);
    }
    // In the middle of it: some are born, others are claimed or still wait.
    receiver.receives("/hook", 5).await;
    world.replicas[1].process.kill();
    for id in &ids {
        let wait = || WaitEventRequest { event_id: id.clone(), timeout: None };
        eventually("the event is born and delivered", || async {
            let waited = tenant.publisher().wait_event(wait()).await.map_err(|status| reason(&status))?;
            if waited.into_inner().done { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
    }
    assert_eq!(count(&tenant).await, ids.len(), "each is born once");
}

#[tokio::test]
async fn a_tenant_whose_log_is_locked_delays_nobody_elses_events() {
    let world = World::start(1).await;
    let (stuck, other) = (world.tenant().await, world.tenant().await);
    for tenant in [&stuck, &other] {
        tenant.declare(TYPE).await;
    }
    let (at, of_stuck) = (TimeDelta::milliseconds(400), |n: i64| later(TimeDelta::milliseconds(300 + n)));
    for n in 0..20 {
        stuck.try_publish(of_stuck(n)).await.expect("it is accepted");
    }
    let mut connection = Cluster::superuser(&world.database_url).await;
    let mut lock = connection.begin().await.expect("a transaction");
    let sql =
        "SELECT 1 FROM tenant_heads h JOIN tenants t ON t.tenant_id = h.tenant_id WHERE t.slug = $1 FOR UPDATE OF h";
    sqlx::query(sql).bind(&stuck.slug).execute(&mut *lock).await.expect("locked");
    let before = count(&stuck).await;
    for _ in 0..3 {
        other.try_publish(later(at)).await.expect("it is accepted");
    }
    eventually("the other tenant's events are in the log", || async {
        let born = count(&other).await;
        if born == 3 { Ok(()) } else { Err(born) }
    })
    .await;
    assert_eq!(count(&stuck).await, before, "the lock was held all the time");
    lock.rollback().await.expect("released");
    eventually("the events that were held up are in the log", || async {
        let born = count(&stuck).await;
        if born == 20 { Ok(()) } else { Err(born) }
    })
    .await;
}
