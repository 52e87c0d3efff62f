//! Who may do what: credentials, roles, apps, and certificates of the internal port.

use carillon::dev::{Ca, CertRequest};
use carillon::proto::internal::publish_service_client::PublishServiceClient;
use carillon::proto::internal::{CreateAppRequest, Role};
use carillon::proto::public::watch_request::Start;
use carillon::proto::public::watch_response::Kind;
use carillon::proto::public::{
    CreateEventTypeRequest, DisableSubscriptionRequest, DraftFilter, ExplainMatchRequest, GetEventRequest,
    GetSubscriptionRequest, ListEventTypesRequest, ListEventsRequest, ListSubscriptionsRequest,
    RotateSubscriptionSecretRequest, UnsubscribeRequest, WatchRequest, target,
};
use chrono::TimeDelta;
use serde_json::json;
use tonic::{Code, Request};

use crate::harness::connect::{Identity, anonymous, tls};
use crate::harness::tenant::{Clients, admin, assert_refused, create_key, publish_request, reason};
use crate::harness::{Receiver, World, eventually, within};

#[tokio::test]
async fn each_role_stops_where_the_next_begins() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    tenant.declare("CUSTOM_ROLES").await;
    for (role, subscribes, declares) in
        [(Role::Viewer, false, false), (Role::Subscriber, true, false), (Role::Developer, true, true)]
    {
        let secret = create_key(world, &tenant.slug, "", role).await;
        let clients = Clients::new(world, 1, &secret);
        clients.types.clone().list_event_types(ListEventTypesRequest::default()).await.expect("everyone reads");
        let request = tenant.subscribe_request("CUSTOM_ROLES", &format!("http://127.0.0.1:9/{role:?}"));
        let subscribed = clients.events.clone().subscribe(request).await;
        let name = format!("CUSTOM_BY_{}", format!("{role:?}").to_uppercase());
        let declared =
            clients.types.clone().create_event_type(CreateEventTypeRequest { name, ..Default::default() }).await;
        for (may, refusal) in [(subscribes, subscribed.err()), (declares, declared.err())] {
            match refusal {
                None => assert!(may, "{role:?} was let in"),
                Some(status) => {
                    assert!(!may, "{role:?}: {status:?}");
                    assert_eq!(
                        (status.code(), reason(&status).as_str()),
                        (Code::PermissionDenied, "ROLE_INSUFFICIENT")
                    );
                }
            }
        }
    }
}

#[tokio::test]
async fn a_key_of_an_app_sees_only_that_apps_subscriptions() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_APPS").await;
    let foreign = tenant.subscribe("CUSTOM_APPS", &receiver, "/hook").await.subscription.expect("it is set");
    let request = CreateAppRequest { tenant: tenant.slug.clone(), slug: "limited".to_owned(), ..Default::default() };
    admin(world).create_app(request).await.expect("an app can be made");
    let secret = create_key(world, &tenant.slug, "limited", Role::Admin).await;
    let clients = Clients::new(world, 0, &secret);

    let listed = clients.events.clone().list_subscriptions(ListSubscriptionsRequest::default()).await;
    assert!(listed.expect("a page").into_inner().subscriptions.is_empty());
    let request = GetSubscriptionRequest { subscription_id: foreign.id.clone() };
    assert_refused(clients.events.clone().get_subscription(request).await, Code::NotFound, "SUBSCRIPTION_NOT_FOUND");
    let request = UnsubscribeRequest { subscription_id: foreign.id, ..Default::default() };
    assert_refused(clients.events.clone().unsubscribe(request).await, Code::NotFound, "SUBSCRIPTION_NOT_FOUND");
    let request = tenant.subscribe_request("CUSTOM_APPS", &receiver.url("/other"));
    assert_refused(clients.events.clone().subscribe(request.clone()).await, Code::NotFound, "APP_NOT_FOUND");
    let own = carillon::proto::public::SubscribeRequest { app: "limited".to_owned(), ..request };
    clients.events.clone().subscribe(own.clone()).await.expect("its own app");

    // What Carillon tells of subscriptions follows the same line: read, listed, watched, subscribed to.
    let told = ListEventsRequest { event_types: vec!["SUBSCRIPTION_*".to_owned()], ..Default::default() };
    let all = eventually("both are told", || async {
        let page = tenant.events().list_events(told.clone()).await.expect("a page").into_inner();
        if page.events.len() == 2 { Ok(page.events) } else { Err(page.events.len()) }
    })
    .await;
    let seen = clients.events.clone().list_events(told).await.expect("a page").into_inner().events;
    assert_eq!(seen.iter().map(|event| &event.id).collect::<Vec<_>>(), [&all[1].id]);
    let draft =
        DraftFilter { event_type: "SUBSCRIPTION_CREATED".to_owned(), filter: "true".to_owned(), last_events: 0 };
    let drafted = ExplainMatchRequest { draft: Some(draft), ..Default::default() };
    let drafted = clients.events.clone().explain_match(drafted).await.expect("a draft").into_inner().draft;
    let drafted = drafted.expect("it is set");
    assert_eq!((drafted.of_type, drafted.matched), (1, 1));
    assert_eq!(drafted.sample_event_ids, [all[1].id.clone()]);
    let get = GetEventRequest { event_id: all[0].id.clone() };
    assert_refused(clients.events.clone().get_event(get).await, Code::NotFound, "EVENT_NOT_FOUND");
    let watch = WatchRequest { start: Some(Start::Earliest(true)), ..Default::default() };
    let mut stream = clients.events.clone().watch(watch).await.expect("a watch").into_inner();
    let mut watched = Vec::new();
    while watched.len() < 2 {
        let message = within("a message", stream.message()).await.expect("it lives").expect("it goes on");
        if let Some(Kind::Events(events)) = message.kind {
            watched.extend(events.events.into_iter().filter_map(|one| Some(one.event?.id)));
        }
    }
    assert!(!watched.contains(&all[0].id), "the declaration of the type, and its own");
    for event_type in ["SUBSCRIPTION_CREATED", "INVOCATION_DEAD_LETTERED", "CHAIN_BUDGET_EXHAUSTED"] {
        let ops = carillon::proto::public::SubscribeRequest { event_type: event_type.to_owned(), ..own.clone() };
        assert_refused(clients.events.clone().subscribe(ops).await, Code::PermissionDenied, "EVENT_TYPE_FORBIDDEN");
    }
}

#[tokio::test]
async fn a_viewer_sees_no_credentials_of_a_target() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    tenant.declare("CUSTOM_VIEWED").await;
    let uri = "http://127.0.0.1:9/hook?token=planted";
    let mut request = tenant.subscribe_request("CUSTOM_VIEWED", uri);
    if let Some(target::Kind::Webhook(webhook)) = request.target.as_mut().and_then(|target| target.kind.as_mut()) {
        webhook.headers.insert("authorization".to_owned(), "planted".to_owned());
    }
    let made = tenant.events().subscribe(request).await.expect("valid").into_inner().subscription.expect("it is set");
    for (role, shown) in [(Role::Viewer, false), (Role::Subscriber, true)] {
        let events = Clients::new(world, 0, &create_key(world, &tenant.slug, "", role).await).events;
        let request = GetSubscriptionRequest { subscription_id: made.id.clone() };
        let found = events.clone().get_subscription(request).await.expect("it is there").into_inner();
        let listed = events.clone().list_subscriptions(ListSubscriptionsRequest::default()).await.expect("a page");
        for seen in listed.into_inner().subscriptions.into_iter().chain(found.subscription) {
            let Some(target::Kind::Webhook(webhook)) = seen.target.and_then(|target| target.kind) else {
                panic!("{role:?}")
            };
            let header = &webhook.headers["authorization"];
            assert_eq!((header == "planted", webhook.uri == uri), (shown, shown), "{role:?}: {webhook:?}");
            assert!(webhook.uri.starts_with("http://127.0.0.1:9/hook"), "{webhook:?}");
        }
    }
}

#[tokio::test]
async fn a_tenant_named_in_metadata_is_ignored() {
    let world = World::shared().await;
    let (tenant, other) = (world.tenant().await, world.tenant().await);
    other.declare("CUSTOM_SECRET").await;
    let mut request = Request::new(ListEventTypesRequest { page_size: 1_000, ..Default::default() });
    for name in ["tenant", "x-tenant", "x-carillon-tenant", "app"] {
        request.metadata_mut().insert(name, other.slug.parse().expect("a slug is ASCII"));
    }
    let types = tenant.types().list_event_types(request).await.expect("a page").into_inner().event_types;
    assert!(types.iter().all(|event_type| event_type.name != "CUSTOM_SECRET"));
}

#[tokio::test]
async fn only_a_certificate_of_our_authority_with_a_registered_name_publishes() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    tenant.declare("CUSTOM_MUTUAL").await;
    let now = carillon::clock::now();
    let stranger = Ca::generate("another CA", now - TimeDelta::hours(1), now + TimeDelta::days(1)).expect("a CA");
    let uri = format!("spiffe://carillon.test/publisher/{}", tenant.slug);
    let issue = |ca: &Ca, request: &CertRequest| {
        // The server is trusted in every case; what differs is what the client shows.
        Identity::from_issued(&world.ca, &carillon::dev::ca::issue(ca, request).expect("a certificate"))
    };
    let valid = CertRequest::client("x", &uri, now);
    let nameless = CertRequest { sans: Vec::new(), common_name: uri.clone(), ..valid.clone() };
    let expired =
        CertRequest { not_before: now - TimeDelta::hours(3), not_after: now - TimeDelta::hours(2), ..valid.clone() };
    let longer = CertRequest::client("x", &format!("{uri}/more"), now);
    let cases = [
        ("another authority", issue(&stranger, &valid)),
        ("no name but a CN", issue(&world.ca, &nameless)),
        ("expired", issue(&world.ca, &expired)),
        ("a longer name", issue(&world.ca, &longer)),
    ];
    for (what, identity) in cases {
        let mut client = PublishServiceClient::new(world.internal(0, &identity));
        let result = client.publish(publish_request("CUSTOM_MUTUAL", &json!({}))).await;
        let status = result.expect_err(what);
        // A refused handshake looks like a connection that ends, at whichever moment the client notices.
        assert!(
            [Code::Unauthenticated, Code::Unavailable, Code::Unknown, Code::Cancelled].contains(&status.code()),
            "{what}: {status:?}"
        );
    }
    let channel = tls(&world.replicas[0].addresses.internal, anonymous(&world.ca));
    let result = PublishServiceClient::new(channel).publish(publish_request("CUSTOM_MUTUAL", &json!({}))).await;
    result.expect_err("a client without a certificate");
    assert_eq!(tenant.publish("CUSTOM_MUTUAL", &json!({})).await.position, 2, "the first after the declaration");
}

#[tokio::test]
async fn a_request_id_of_one_app_answers_nothing_to_a_key_of_another() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    let receiver = Receiver::start().await;
    let request = CreateAppRequest { tenant: tenant.slug.clone(), slug: "other".to_owned(), ..Default::default() };
    admin(world).create_app(request).await.expect("an app can be made");
    tenant.declare("CUSTOM_APART").await;
    let id = tenant.subscribe("CUSTOM_APART", &receiver, "/hook").await.subscription.expect("it is set").id;
    let key = async |app: &str| Clients::new(world, 0, &create_key(world, &tenant.slug, app, Role::Admin).await);
    let (own, foreign) = (key(&tenant.app).await, key("other").await);
    let (mut own, mut foreign) = (own.events, foreign.events);
    let hidden = |refused| assert_refused(refused, Code::NotFound, "SUBSCRIPTION_NOT_FOUND");

    let subscription_id = id;
    let request = RotateSubscriptionSecretRequest {
        subscription_id: subscription_id.clone(),
        request_id: "guessed".to_owned(),
        ..Default::default()
    };
    let first = own.rotate_subscription_secret(request.clone()).await.expect("a secret").into_inner();
    let again = own.rotate_subscription_secret(request.clone()).await.expect("the first answer").into_inner();
    assert_eq!(again.signing_secret, first.signing_secret);
    hidden(foreign.rotate_subscription_secret(request).await.map(drop));
    let request = DisableSubscriptionRequest {
        subscription_id: subscription_id.clone(),
        request_id: "disabling".to_owned(),
        ..Default::default()
    };
    own.disable_subscription(request.clone()).await.expect("it is disabled");
    hidden(foreign.disable_subscription(request).await.map(drop));
    let request = UnsubscribeRequest { subscription_id, request_id: "leaving".to_owned(), ..Default::default() };
    own.unsubscribe(request.clone()).await.expect("it ends");
    hidden(foreign.unsubscribe(request).await.map(drop));
}
