//! Quotas of tenants: how much one may publish, have and wait for; what is answered at a quota, that nothing has happened then, and
//! that another tenant does not notice.

use std::sync::Arc;

use carillon::proto::internal::{
    GetTenantRequest, PublishBatchRequest, PublishRequest, Tenant as ProtoTenant, TenantQuotas, UpdateTenantRequest,
};
use carillon::proto::public::{
    CancelInvocationRequest, CreateEventTypeRequest, DeliveryPolicy, EventPhase, InvocationState, ListEventsRequest,
    ListInvocationsRequest, PrePolicy, RetryInvocationRequest, SubscribeRequest, WatchRequest,
};
use pbjson_types::FieldMask;
use serde_json::json;
use tokio::sync::Semaphore;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::tenant::{admin, assert_refused, publish_request, quick_policy};
use crate::harness::{Answer, Receiver, Tenant, World, eventually, within};

const EVENT: &str = "CUSTOM_COUNTED";

/// Fails unless a call was refused at a quota; says whether waiting helps.
fn at_quota<T: std::fmt::Debug>(result: Result<T, Status>, quota: &str, limit: u64) -> bool {
    let status = assert_refused(result, Code::ResourceExhausted, "QUOTA_EXCEEDED");
    let info = status.get_details_error_info().expect("it is set");
    assert_eq!((info.metadata["quota"].as_str(), info.metadata["limit"].as_str()), (quota, limit.to_string().as_str()));
    assert_eq!(status.get_details_quota_failure().expect("it is set").violations[0].subject, quota);
    status.get_details_retry_info().and_then(|retry| retry.retry_delay).is_some()
}

fn keyed(key: &str, bytes: usize) -> PublishRequest {
    PublishRequest { idempotency_key: key.to_owned(), ..publish_request(EVENT, &json!("x".repeat(bytes))) }
}

/// The events of the type that are in the log.
async fn stored(tenant: &Tenant) -> usize {
    let request = ListEventsRequest { event_types: vec![EVENT.to_owned()], page_size: 1_000, ..Default::default() };
    tenant.events().list_events(request).await.expect("a page").into_inner().events.len()
}

/// Publishes until it is refused; how many were taken, the key that was refused, and the refusal.
async fn fill(tenant: &Tenant, at_most: usize) -> (usize, String, Status) {
    for n in 0..at_most {
        let key = format!("k{n}");
        if let Err(status) = tenant.try_publish(keyed(&key, 10)).await {
            return (n, key, status);
        }
    }
    panic!("{at_most} events were taken")
}

async fn update(world: &World, tenant: &Tenant, quotas: TenantQuotas, paths: &[&str]) -> ProtoTenant {
    let request = UpdateTenantRequest {
        tenant: Some(ProtoTenant { slug: tenant.slug.clone(), quotas: Some(quotas), ..Default::default() }),
        update_mask: Some(FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() }),
        ..Default::default()
    };
    admin(world).update_tenant(request).await.expect("the quotas are accepted").into_inner().tenant.expect("it is set")
}

#[tokio::test]
async fn a_rate_refuses_what_is_too_much_and_a_retry_passes_while_another_tenant_is_untouched() {
    let settings = "[limits]\npublish_events_per_second = 1\npublish_events_burst = 3";
    let world = World::start_with(1, settings).await;
    let (busy, other) = (world.tenant().await, world.tenant().await);
    busy.declare(EVENT).await;
    other.declare(EVENT).await;
    // Carillon's own events are exempt: each of these is told of in the log.
    for n in 0..5 {
        busy.declare(&format!("CUSTOM_MORE_{n}")).await;
    }
    let (taken, key, status) = fill(&busy, 200).await;
    assert!(taken >= 3, "{taken}");
    assert!(at_quota(Err::<(), _>(status), "limits.publish_events_per_second", 1), "it says when to come again");
    assert_eq!(stored(&busy).await, taken, "what is refused has no effect");
    for n in 0..3 {
        other.try_publish(keyed(&format!("k{n}"), 10)).await.expect("another tenant has its own");
    }
    let again = eventually("a retry with the same key passes", || async {
        busy.try_publish(keyed(&key, 10)).await.map_err(|status| status.code())
    })
    .await;
    assert!(!again.duplicate, "it was never there");
    assert_eq!(stored(&busy).await, taken + 1);

    // More than comes at once ever, but all of it is there.
    let requests: Vec<_> = (0..4).map(|n| keyed(&format!("k{n}"), 10)).collect();
    let answers = busy.publisher().publish_batch(PublishBatchRequest { requests: requests.clone() }).await;
    assert!(answers.expect("the first answers").into_inner().responses.iter().all(|answer| answer.duplicate));
    let one_is_new = PublishBatchRequest { requests: [&requests[..3], &[keyed("new", 10)]].concat() };
    at_quota(busy.publisher().publish_batch(one_is_new).await, "limits.publish_events_burst", 3);
    let other_body = PublishBatchRequest { requests: [&requests[..3], &[keyed("k3", 11)]].concat() };
    let refused = busy.publisher().publish_batch(other_body).await;
    assert_refused(refused, Code::FailedPrecondition, "REQUEST_ID_REUSED");
    assert_eq!(stored(&busy).await, taken + 1);

    // A batch counts all its events, and is taken whole or not at all.
    let batch =
        |count: usize| PublishBatchRequest { requests: (0..count).map(|n| keyed(&format!("b{n}"), 10)).collect() };
    let refused = busy.publisher().publish_batch(batch(4)).await;
    assert!(!at_quota(refused, "limits.publish_events_burst", 3), "waiting never helps");
    assert_eq!(stored(&busy).await, taken + 1);
    eventually("a batch that fits passes", || async {
        busy.publisher().publish_batch(batch(3)).await.map(drop).map_err(|status| status.code())
    })
    .await;
    assert_eq!(stored(&busy).await, taken + 4);
}

#[tokio::test]
async fn bytes_count_by_themselves() {
    let settings = "[limits]\npublish_bytes_per_second = 1024\npublish_bytes_burst = 4096";
    let world = World::start_with(1, settings).await;
    let tenant = world.tenant().await;
    tenant.declare(EVENT).await;
    let refused = tenant.try_publish(keyed("large", 5_000)).await;
    assert!(!at_quota(refused, "limits.publish_bytes_burst", 4_096), "more than comes at once ever");
    tenant.try_publish(keyed("first", 3_900)).await.expect("it fits");
    let refused = tenant.try_publish(keyed("second", 3_900)).await;
    assert!(at_quota(refused, "limits.publish_bytes_per_second", 1_024));
    assert_eq!(stored(&tenant).await, 1);
}

#[tokio::test]
async fn an_operator_sets_a_tenants_quotas_and_every_replica_follows() {
    let world = World::start(2).await;
    let (tenant, other) = (world.tenant().await, world.tenant().await);
    tenant.declare(EVENT).await;
    other.declare(EVENT).await;
    let quotas = TenantQuotas {
        event_bytes_max: Some(1_024),
        publish_events_burst: Some(2),
        publish_events_per_second: Some(1),
        subscriptions_max: Some(1),
        watches_max: Some(1),
        ..Default::default()
    };
    let changed = update(&world, &tenant, quotas, &["quotas"]).await;
    assert_eq!(changed.quotas, Some(quotas));
    let effective = changed.effective_quotas.expect("it is set");
    assert_eq!((effective.event_bytes_max, effective.backlog_max), (Some(1_024), Some(10_000_000)));
    let get = GetTenantRequest { tenant: tenant.slug.clone() };
    let shown = admin(&world).get_tenant(get).await.expect("it exists").into_inner().tenant.expect("it is set");
    assert_eq!((shown.quotas, shown.effective_quotas), (Some(quotas), Some(effective)));

    for replica in 0..2 {
        let publish = |request| {
            let mut publisher = tenant.publishers[replica].clone();
            async move { publisher.publish(request).await }
        };
        // The first commit by what the replica knew tells it otherwise.
        let large = assert_refused(publish(keyed("", 2_000)).await, Code::InvalidArgument, "EVENT_TOO_LARGE");
        assert!(large.message().contains("1024 bytes"), "{large:?}");
        // Two at once, and one more for every second that the calls take.
        let mut taken = 0;
        let refused = loop {
            match publish(keyed("", 10)).await {
                Ok(_) => taken += 1,
                Err(status) => break status,
            }
            assert!(taken < 20, "the replica does not know the rate");
        };
        assert!(at_quota(Err::<(), _>(refused), "limits.publish_events_per_second", 1));
    }
    let subscribe = |path: &str| tenant.subscribe_request(EVENT, &format!("http://127.0.0.1:9/{path}"));
    tenant.events().subscribe(subscribe("a")).await.expect("the first one");
    let refused = tenant.events().subscribe(subscribe("b")).await;
    assert!(at_quota(refused, "limits.subscriptions_max", 1), "another one may go");
    let first = tenant.events().watch(WatchRequest::default()).await.expect("the first one");
    let second = tenant.events().watch(WatchRequest::default()).await.map(drop);
    at_quota(second, "watch.streams_per_tenant_max", 1);
    drop(first);
    for n in 0..20 {
        other.try_publish(keyed(&format!("k{n}"), 2_000)).await.expect("another tenant has the server's quotas");
    }

    // What the mask names and the request leaves unset is the server's again.
    let cleared = update(&world, &tenant, TenantQuotas::default(), &["quotas.event_bytes_max"]).await;
    assert_eq!(cleared.quotas, Some(TenantQuotas { event_bytes_max: None, ..quotas }));
    update(&world, &tenant, TenantQuotas::default(), &["quotas"]).await;
    for replica in 0..2 {
        eventually("the replica knows that they are gone", || async {
            tenant.publishers[replica].clone().publish(keyed("", 2_000)).await.map_err(|status| status.code())
        })
        .await;
    }
    for (quotas, path) in [
        (TenantQuotas { backlog_max: Some(0), ..Default::default() }, "quotas.backlog_max"),
        (TenantQuotas::default(), "quotas.other"),
        (TenantQuotas::default(), "slug"),
    ] {
        let request = UpdateTenantRequest {
            tenant: Some(ProtoTenant { slug: tenant.slug.clone(), quotas: Some(quotas), ..Default::default() }),
            update_mask: Some(FieldMask { paths: vec![path.to_owned()] }),
            ..Default::default()
        };
        assert_refused(admin(&world).update_tenant(request).await, Code::InvalidArgument, "FIELD_INVALID");
    }
    let absent = ProtoTenant { slug: "absent".to_owned(), ..Default::default() };
    let request = UpdateTenantRequest { tenant: Some(absent), ..Default::default() };
    assert_refused(admin(&world).update_tenant(request).await, Code::NotFound, "TENANT_NOT_FOUND");
}

#[tokio::test]
async fn what_listeners_make_of_a_pre_event_stays_within_its_tenants_own_bound() {
    let world = World::shared().await;
    let (tenant, receiver) = (world.tenant().await, Receiver::start().await);
    let name = "CUSTOM_PRE_COUNTED";
    let pre = CreateEventTypeRequest { name: name.to_owned(), phase: EventPhase::Pre.into(), ..Default::default() };
    tenant.types().create_event_type(pre).await.expect("a PRE type can be declared");
    let mut enriching = tenant.subscribe_request(name, &receiver.url("/plan"));
    enriching.pre_policy = Some(PrePolicy { enrich_paths: vec!["/plan".to_owned()], ..Default::default() });
    tenant.events().subscribe(enriching).await.expect("a listener can be subscribed");
    let answers = |plan: &str| {
        let json = vec![("content-type", "application/json".to_owned())];
        let body = json!({ "patch": { "plan": plan } }).to_string().into_bytes();
        receiver.answers("/plan", [Answer::Full(200, json, body)]);
    };
    let publish =
        |text: usize| tenant.try_publish(publish_request(name, &json!({ "text": "x".repeat(text), "plan": "free" })));
    answers(&"x".repeat(2_000));
    publish(10).await.expect("the server's bound is larger");

    // Accepted by the server's bound, and decided by the tenant's own, which its replica knows by then.
    let gate = Arc::new(Semaphore::new(0));
    receiver.answers("/gate", [Answer::Gated(gate.clone())]);
    tenant.events().subscribe(tenant.subscribe_request(name, &receiver.url("/gate"))).await.expect("another listener");
    answers("paid");
    let mut publisher = tenant.publisher();
    let large = publish_request(name, &json!({ "text": "x".repeat(2_000), "plan": "free" }));
    let large = tokio::spawn(async move { publisher.publish(large).await });
    receiver.receives("/gate", 1).await;
    let own = TenantQuotas { event_bytes_max: Some(1_024), ..Default::default() };
    update(world, &tenant, own, &["quotas"]).await;
    assert_refused(publish(2_000).await, Code::InvalidArgument, "EVENT_TOO_LARGE");
    gate.add_permits(100);
    within("the large event", large).await.expect("no panic").expect("it is as large as it was");

    answers(&"x".repeat(2_000));
    let refused = assert_refused(publish(10).await, Code::Unavailable, "PRE_LISTENER_UNAVAILABLE");
    let said = refused.get_details_precondition_failure().expect("a violation per listener").violations;
    assert!(said.iter().any(|said| said.description.contains("1024 bytes")), "{said:?}");
    answers(&"x".repeat(200));
    publish(10).await.expect("it fits");
}

#[tokio::test]
async fn a_full_backlog_stops_publishing_on_every_replica_until_it_has_drained() {
    let world = World::start_with(2, "[limits]\nbacklog_max = 10").await;
    let (tenant, other) = (world.tenant().await, world.tenant().await);
    let receiver = Receiver::start().await;
    for tenant in [&tenant, &other] {
        tenant.declare(EVENT).await;
    }
    let gate = Arc::new(Semaphore::new(0));
    receiver.answers("/held", [Answer::Gated(gate.clone())]);
    tenant.subscribe(EVENT, &receiver, "/held").await;
    let first = tenant.try_publish(keyed("first", 10)).await.expect("there is room");
    let published = std::sync::atomic::AtomicUsize::new(1);
    for replica in 0..2 {
        let status = eventually("the backlog is full", || async {
            match tenant.publishers[replica].clone().publish(keyed("", 10)).await {
                Err(status) => Ok(status),
                Ok(_) => Err(published.fetch_add(1, std::sync::atomic::Ordering::Relaxed)),
            }
        })
        .await;
        assert!(at_quota(Err::<(), _>(status), "limits.backlog_max", 10));
        // What is there is not published again: it needs no room.
        let mut publisher = tenant.publishers[replica].clone();
        let again = publisher.publish(keyed("first", 10)).await.expect("the first answer").into_inner();
        assert_eq!((again.event_id, again.duplicate), (first.event_id.clone(), true));
        let other = publisher.publish(keyed("first", 11)).await;
        assert_refused(other, Code::FailedPrecondition, "REQUEST_ID_REUSED");
    }
    for _ in 0..12 {
        other.try_publish(keyed("", 10)).await.expect("another tenant is untouched");
    }
    gate.add_permits(10_000);
    for replica in 0..2 {
        eventually("publishing goes on", || async {
            tenant.publishers[replica].clone().publish(keyed("", 10)).await.map_err(|status| status.code())
        })
        .await;
    }
    let all = published.into_inner() + 2;
    receiver.receives("/held", all).await;
    assert_eq!(stored(&tenant).await, all, "what was refused is not there");
}

#[tokio::test]
async fn a_full_backlog_that_another_owner_takes_over_is_counted_by_it_and_drains() {
    let mut world = World::start_with(1, "[limits]\nbacklog_max = 10\n[dispatch]\nlease_ms = 1000").await;
    let mut tenant = world.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare(EVENT).await;
    receiver.answers("/failing", [Answer::Status(500)]);
    let hour = Some(pbjson_types::Duration { seconds: 3_600, nanos: 0 });
    let policy = DeliveryPolicy { initial_backoff: hour, max_backoff: hour, ..quick_policy() };
    let request = tenant.subscribe_request(EVENT, &receiver.url("/failing"));
    let request = SubscribeRequest { delivery_policy: Some(policy), ..request };
    tenant.events().subscribe(request).await.expect("a receiver can be subscribed");
    eventually("the backlog is full", || async {
        tenant.try_publish(keyed("", 10)).await.map_or(Ok(()), |published| Err(published.position))
    })
    .await;
    let request = ListInvocationsRequest { page_size: 1_000, ..Default::default() };
    let list = async |tenant: &Tenant| {
        tenant.invocations().list_invocations(request.clone()).await.expect("a page").into_inner().invocations
    };
    eventually("all of it waits to be tried again", || async {
        let all = list(&tenant).await;
        if all.iter().all(|one| one.state() == InvocationState::Waiting) { Ok(()) } else { Err(all) }
    })
    .await;
    world.replace(0).await;
    tenant.reconnect(&world);
    at_quota(tenant.try_publish(keyed("", 10)).await, "limits.backlog_max", 10);
    let waiting = list(&tenant).await;
    let request = RetryInvocationRequest { invocation_id: waiting[0].id.clone(), ..Default::default() };
    tenant.invocations().retry_invocation(request).await.expect("it waits");
    receiver.receives("/failing", waiting.len() + 1).await;
    for invocation in waiting {
        let request = CancelInvocationRequest { invocation_id: invocation.id, ..Default::default() };
        tenant.invocations().cancel_invocation(request).await.expect("it waits");
    }
    eventually("publishing goes on", || async { tenant.try_publish(keyed("", 10)).await.map_err(|it| it.code()) })
        .await;
}
