//! G10, the second wall: where the program has lost its own predicate, the database still keeps tenants apart.

use carillon::proto::internal::{
    ListApiKeysRequest, ListAppsRequest, ListAuditRecordsRequest, ListPublisherIdentitiesRequest,
};
use carillon::proto::public::{
    CancelInvocationRequest, DisableSubscriptionRequest, GetEventRequest, GetEventTypeRequest, GetInvocationRequest,
    GetSubscriptionRequest, InvocationState, ListEventTypesRequest, ListEventsRequest, ListInvocationsRequest,
    ListSubscriptionsRequest, RedriveInvocationsRequest, RetryInvocationRequest, RotateSubscriptionSecretRequest,
    UpdateEventTypeRequest, WatchRequest, watch_request::Start,
};
use serde_json::json;
use tonic::{Response, Status};

use crate::harness::database::Cluster;
use crate::harness::stripper::Stripper;
use crate::harness::tenant::{admin, publish_request};
use crate::harness::{Answer, Receiver, Tenant, World};
use crate::watch;

/// What one tenant has, by what others must not be able to name.
struct Things {
    tenant: Tenant,
    subscription: String,
    dead_subscription: String,
    event: String,
    dead: String,
    dead_event: String,
}

/// A tenant with something in every list: a delivered event, a dead letter, two subscriptions.
async fn furnished(world: &World, receiver: &Receiver, name: &str) -> Things {
    let tenant = world.tenant().await;
    tenant.declare(name).await;
    tenant.declare("CUSTOM_BOTH").await;
    let subscription = tenant.subscribe(name, receiver, &format!("/{name}")).await.subscription.expect("it is set").id;
    let path = format!("/dead-{name}");
    let dead_subscription = tenant.subscribe("CUSTOM_BOTH", receiver, &path).await.subscription.expect("it is set").id;
    receiver.answers(&path, [Answer::Status(400)]);
    let event = tenant.publish(name, &json!({ "of": name })).await.event_id;
    tenant.all_invocations_become(&event, InvocationState::Succeeded).await;
    let published = tenant.publish("CUSTOM_BOTH", &json!({ "of": name })).await;
    tenant.all_invocations_become(&published.event_id, InvocationState::DeadLettered).await;
    tenant.told("INVOCATION_DEAD_LETTERED", &published.invocations[0].invocation_id).await;
    let dead = published.invocations[0].invocation_id.clone();
    Things { tenant, subscription, dead_subscription, event, dead, dead_event: published.event_id }
}

fn text<T: std::fmt::Debug>(answer: Result<Response<T>, Status>) -> String {
    match answer {
        Ok(answer) => format!("{:?}", answer.into_inner()),
        Err(status) => format!("{:?} {}", status.code(), status.message()),
    }
}

/// Everything that a tenant's caller can read: lists, one's own by id, and another tenant's by id.
async fn read(own: &Things, foreign: &Things) -> Vec<(&'static str, String)> {
    let (mut events, mut types, mut invocations) = (own.tenant.events(), own.tenant.types(), own.tenant.invocations());
    let mut read = vec![
        ("types", text(types.list_event_types(ListEventTypesRequest { page_size: 1_000, ..Default::default() }).await)),
        ("subscriptions", text(events.list_subscriptions(ListSubscriptionsRequest::default()).await)),
        ("events", text(events.list_events(ListEventsRequest { page_size: 1_000, ..Default::default() }).await)),
        ("invocations", text(invocations.list_invocations(ListInvocationsRequest::default()).await)),
    ];
    for of in [own, foreign] {
        let request = GetSubscriptionRequest { subscription_id: of.subscription.clone() };
        read.push(("subscription", text(events.get_subscription(request).await)));
        read.push(("event", text(events.get_event(GetEventRequest { event_id: of.event.clone() }).await)));
        let request = GetInvocationRequest { invocation_id: of.dead.clone() };
        read.push(("invocation", text(invocations.get_invocation(request).await)));
        let request = ListInvocationsRequest { subscription_id: of.dead_subscription.clone(), ..Default::default() };
        read.push(("invocations of a subscription", text(invocations.list_invocations(request).await)));
    }
    for name in ["CUSTOM_OWN", "CUSTOM_FOREIGN"] {
        let request = GetEventTypeRequest { name: name.to_owned(), ..Default::default() };
        read.push(("type", text(types.get_event_type(request).await)));
    }
    read
}

/// What an operator reads of one tenant.
async fn administered(world: &World, of: &Things) -> Vec<(&'static str, String)> {
    let (mut admin, tenant) = (admin(world), of.tenant.slug.clone());
    vec![
        ("apps", text(admin.list_apps(ListAppsRequest { tenant: tenant.clone(), ..Default::default() }).await)),
        ("keys", text(admin.list_api_keys(ListApiKeysRequest { tenant: tenant.clone(), ..Default::default() }).await)),
        (
            "identities",
            text(
                admin
                    .list_publisher_identities(ListPublisherIdentitiesRequest {
                        tenant: tenant.clone(),
                        ..Default::default()
                    })
                    .await,
            ),
        ),
        ("audit", text(admin.list_audit_records(ListAuditRecordsRequest { tenant, ..Default::default() }).await)),
    ]
}

/// Replicas whose statements can lose their predicate, with two furnished tenants.
async fn stage(replicas: usize) -> (World, Receiver, Stripper, Things, Things) {
    let mut world = World::start(0).await;
    let socket = Cluster::shared().await.postgres.places().socket();
    let stripper = Stripper::start(socket).await;
    let (address, _) = world.database_url.split_once('?').expect("it has options");
    let database = address.rsplit_once('/').expect("it names a database").1;
    world.settings = format!(
        "[database]\nurl = \"postgres://carillon_server@127.0.0.1:{}/{database}?sslmode=disable&statement-cache-capacity=0\"",
        stripper.port
    );
    for _ in 0..replicas {
        world.add_replica().await;
    }
    let receiver = Receiver::start().await;
    let own = furnished(&world, &receiver, "CUSTOM_OWN").await;
    let foreign = furnished(&world, &receiver, "CUSTOM_FOREIGN").await;
    (world, receiver, stripper, own, foreign)
}

#[tokio::test]
async fn statements_without_their_predicate_read_nothing_of_another_tenant() {
    let (world, _receiver, stripper, own, foreign) = stage(1).await;
    let (whole, whole_admin) = (read(&own, &foreign).await, administered(&world, &own).await);
    stripper.strip(true);
    let before = stripper.stripped().len();
    let (stripped, stripped_admin) = (read(&own, &foreign).await, administered(&world, &own).await);
    let statements = stripper.stripped().len() - before;
    assert!(statements > stripped.len(), "{statements} statements");
    assert_eq!(whole, stripped);
    assert_eq!(whole_admin, stripped_admin);

    // It is the wall that did it: without it the same calls tell of the other tenant.
    let lift = "DO $$ DECLARE t regclass; BEGIN
                    FOR t IN SELECT polrelid::regclass FROM pg_policy WHERE polname = 'tenant_wall' LOOP
                        EXECUTE format('ALTER TABLE %s DISABLE ROW LEVEL SECURITY', t);
                    END LOOP;
                END $$";
    Cluster::run(&world.database_url, lift.to_owned()).await;
    let open = read(&own, &foreign).await;
    let changed: Vec<_> =
        open.iter().zip(&whole).filter(|(open, whole)| open != whole).map(|(open, _)| open.0).collect();
    for what in ["types", "subscriptions", "events", "invocations", "subscription", "event", "type"] {
        assert!(changed.contains(&what), "{what} is kept apart by something else: {changed:?}");
    }
    assert_ne!(whole_admin, administered(&world, &own).await);
}

#[tokio::test]
async fn changes_without_their_predicate_change_nothing_of_another_tenant() {
    let (world, _receiver, stripper, own, foreign) = stage(1).await;
    let mine = || async { (read(&foreign, &own).await, administered(&world, &foreign).await) };
    let before = mine().await;
    stripper.strip(true);
    let (mut events, mut types, mut invocations) = (own.tenant.events(), own.tenant.types(), own.tenant.invocations());
    let description = Some(carillon::proto::public::EventType {
        name: "CUSTOM_OWN".to_owned(),
        description: "changed".to_owned(),
        ..Default::default()
    });
    let update_mask = Some(pbjson_types::FieldMask { paths: vec!["description".to_owned()] });
    let request = UpdateEventTypeRequest { event_type: description, update_mask, ..Default::default() };
    types.update_event_type(request).await.expect("one's own can be changed");
    for id in [&own.subscription, &foreign.subscription] {
        let request = RotateSubscriptionSecretRequest { subscription_id: id.clone(), ..Default::default() };
        let rotated = events.rotate_subscription_secret(request).await;
        assert_eq!(rotated.is_ok(), *id == own.subscription, "{rotated:?}");
        let request = DisableSubscriptionRequest { subscription_id: id.clone(), ..Default::default() };
        let disabled = events.disable_subscription(request).await;
        assert_eq!(disabled.is_ok(), *id == own.subscription, "{disabled:?}");
    }
    for id in [&own.dead, &foreign.dead] {
        let request = CancelInvocationRequest { invocation_id: id.clone(), ..Default::default() };
        let cancelled = invocations.cancel_invocation(request).await;
        assert_eq!(cancelled.is_ok(), *id == own.dead, "{cancelled:?}");
    }
    let redriven = invocations.redrive_invocations(RedriveInvocationsRequest { limit: 10, ..Default::default() }).await;
    assert_eq!(redriven.expect("it is allowed").into_inner().redriven_count, 0, "one's own dead letter is cancelled");
    stripper.strip(false);
    assert_eq!(before, mine().await);
}

/// Publishes to one's own receiver through each replica, of which one at most has the event in memory to deliver, then retries
/// the dead letter, and watches the log from its beginning.
async fn delivered(one: &Things, name: &str, receiver: &Receiver) {
    for publisher in &one.tenant.publishers {
        let request = publish_request(name, &json!({ "of": name }));
        let event = publisher.clone().publish(request).await.expect("published").into_inner().event_id;
        one.tenant.all_invocations_become(&event, InvocationState::Succeeded).await;
    }
    receiver.answers(&format!("/dead-{name}"), [Answer::Status(200)]);
    let request = RetryInvocationRequest { invocation_id: one.dead.clone(), ..Default::default() };
    one.tenant.invocations().retry_invocation(request).await.expect("it is dead");
    one.tenant.all_invocations_become(&one.dead_event, InvocationState::Succeeded).await;

    let request = ListEventsRequest { page_size: 1_000, ..Default::default() };
    let log = one.tenant.events().list_events(request).await.expect("a page").into_inner().events;
    let request = WatchRequest { start: Some(Start::Earliest(true)), ..Default::default() };
    let mut stream = watch::watch(&one.tenant, 0, request).await;
    let (watched, _) = watch::events(&mut stream, log.len()).await;
    assert_eq!(watched, log, "{name}");
    for path in [format!("/{name}"), format!("/dead-{name}")] {
        for received in receiver.received(&path) {
            assert_eq!(received.json()["data"]["of"], name, "at {path}");
        }
    }
}

#[tokio::test]
async fn deliveries_and_watches_without_their_predicate_bring_nothing_of_another_tenant() {
    let (_world, receiver, stripper, own, foreign) = stage(2).await;
    stripper.strip(true);
    for ((one, name), (other, others)) in
        [((&own, "CUSTOM_OWN"), (&foreign, "CUSTOM_FOREIGN")), ((&foreign, "CUSTOM_FOREIGN"), (&own, "CUSTOM_OWN"))]
    {
        // Where one's next events come, the other one has some already.
        for _ in 0..16 {
            other.tenant.publish(others, &json!({ "of": others })).await;
        }
        delivered(one, name, &receiver).await;
    }
    let stripped = stripper.stripped();
    for read in
        ["position > $3 AND position <= $4\n                 ORDER BY day, position LIMIT $5", "AS wanted(on_day, at)"]
    {
        assert!(stripped.iter().any(|statement| statement.contains(read)), "nothing was read by {read}");
    }
}
