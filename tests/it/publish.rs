//! `PublishService.Publish`: what is accepted, where it ends up, and what is refused.

use carillon::proto::Timestamp;
use carillon::proto::cloudevents::cloud_event::CloudEventAttributeValue;
use carillon::proto::cloudevents::cloud_event::Data;
use carillon::proto::cloudevents::cloud_event::cloud_event_attribute_value::Attr;
use carillon::proto::internal::publish_service_client::PublishServiceClient;
use carillon::proto::internal::{CancelEventRequest, CreatePublisherIdentityRequest, PublishRequest, WaitEventRequest};
use carillon::proto::public::{GetEventRequest, InvocationState, ListEventsRequest};
use serde_json::json;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::harness::connect::Identity;
use crate::harness::tenant::{admin, assert_refused, cloud_event, publish_request};
use crate::harness::{Receiver, World};

#[tokio::test]
async fn a_published_event_arrives_signed_at_its_receiver() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_ORDER_PLACED").await;
    let subscribed = tenant.subscribe("CUSTOM_ORDER_PLACED", &receiver, "/hook").await;

    let answer = tenant.publish("CUSTOM_ORDER_PLACED", &json!({"order": 17})).await;

    assert_eq!(answer.position, 3, "the declaration, the subscription, and this");
    assert!(!answer.duplicate);
    assert_eq!(answer.invocations.len(), 1);
    let received = receiver.receives("/hook", 1).await;
    assert_eq!(received[0].verified, Some(true));
    assert_eq!(received[0].header("webhook-id"), answer.invocations[0].invocation_id);
    assert!(received[0].header("content-type").starts_with("application/cloudevents+json"));
    let body = received[0].json();
    assert_eq!((&body["id"], &body["type"]), (&json!(answer.event_id), &json!("CUSTOM_ORDER_PLACED")));
    assert_eq!(body["data"], json!({"order": 17}));
    let invocations = tenant.all_invocations_become(&answer.event_id, InvocationState::Succeeded).await;
    assert_eq!(invocations[0].subscription_id, subscribed.subscription.expect("it is set").id);
}

#[tokio::test]
async fn the_data_is_kept_byte_for_byte() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_RAW").await;
    tenant.subscribe("CUSTOM_RAW", &receiver, "/hook").await;
    let exact = "{ \"big\": 9007199254740993, \"tiny\": 1e-400, \"b\": 1,\n\"a\": \"\\u00e9 ✓ {{x}} %s\" }";
    let mut event = cloud_event("CUSTOM_RAW", &json!(null));
    event.data = Some(Data::TextData(exact.to_owned()));

    let answer =
        tenant.try_publish(PublishRequest { event: Some(event), ..Default::default() }).await.expect("valid JSON");

    let request = GetEventRequest { event_id: answer.event_id };
    let stored = tenant.events().get_event(request).await.expect("it is stored").into_inner().event.expect("it is set");
    assert_eq!(stored.event.expect("it is set").data, Some(Data::TextData(exact.to_owned())));
    let received = receiver.receives("/hook", 1).await;
    let body = String::from_utf8(received[0].body.to_vec()).expect("UTF-8");
    assert!(body.contains("9007199254740993") && body.contains("1e-400"), "numbers were rounded: {body}");
}

#[tokio::test]
async fn attributes_of_every_kind_come_back() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_ATTRIBUTES").await;
    let attribute = |attr| CloudEventAttributeValue { attr: Some(attr) };
    let mut event = cloud_event("CUSTOM_ATTRIBUTES", &json!({}));
    for (name, attr) in [
        ("subject", Attr::CeString("orders/17".to_owned())),
        ("flag", Attr::CeBoolean(true)),
        ("count", Attr::CeInteger(-7)),
        ("link", Attr::CeUriRef("/a?b#c".to_owned())),
    ] {
        event.attributes.insert(name.to_owned(), attribute(attr));
    }
    let sent = event.attributes.clone();
    let answer = tenant.try_publish(PublishRequest { event: Some(event), ..Default::default() }).await.expect("valid");
    let request = GetEventRequest { event_id: answer.event_id.clone() };
    let stored = tenant.events().get_event(request).await.expect("it is stored").into_inner().event.expect("it is set");
    let stored = stored.event.expect("it is set");
    assert_eq!(stored.id, answer.event_id);
    for (name, value) in sent {
        assert_eq!(stored.attributes.get(&name), Some(&value), "{name}");
    }
    assert!(stored.attributes.contains_key("time"));
}

#[tokio::test]
async fn a_time_is_cut_to_microseconds_and_the_same_wherever_it_is_read() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_TIMED").await;
    tenant.subscribe("CUSTOM_TIMED", &receiver, "/hook").await;
    let at = Timestamp { seconds: 1_700_000_000, nanos: 123_456_789 };
    let cut = Attr::CeTimestamp(Timestamp { nanos: 123_456_000, ..at });
    let text = Attr::CeString("2023-11-14T23:13:20.123456789+01:00".to_owned());
    for time in [Attr::CeTimestamp(at), text] {
        let mut event = cloud_event("CUSTOM_TIMED", &json!({}));
        let time = CloudEventAttributeValue { attr: Some(time) };
        event.attributes.insert("time".to_owned(), time.clone());
        event.attributes.insert("seenat".to_owned(), CloudEventAttributeValue { attr: Some(Attr::CeTimestamp(at)) });
        let request = PublishRequest { event: Some(event), ..PublishRequest::default() };
        let id = tenant.try_publish(request).await.expect("published").event_id;
        let read = tenant.events().get_event(GetEventRequest { event_id: id.clone() }).await.expect("it is there");
        let listed = tenant.events().list_events(ListEventsRequest::default()).await.expect("a page").into_inner();
        let listed = listed.events.into_iter().find(|event| event.id == id);
        for event in [read.into_inner().event, listed] {
            let attributes = event.expect("it is there").event.expect("a CloudEvent").attributes;
            for name in ["time", "seenat"] {
                assert_eq!(attributes[name].attr.as_ref(), Some(&cut), "{name} of {time:?}");
            }
        }
    }
    for received in receiver.receives("/hook", 2).await {
        let body = received.json();
        assert_eq!(body["time"], "2023-11-14T22:13:20.123456Z", "{body}");
        assert_eq!(body["seenat"], "2023-11-14T22:13:20.123456Z", "{body}");
    }
}

#[tokio::test]
async fn an_unknown_event_type_is_refused_with_near_names() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_ORDER_PLACED").await;
    let result = tenant.try_publish(publish_request("CUSTOM_ORDER_PLACD", &json!({}))).await;
    let status = assert_refused(result, Code::NotFound, "EVENT_TYPE_NOT_FOUND");
    let info = status.get_details_error_info().expect("it is set");
    assert!(info.metadata["near"].contains("CUSTOM_ORDER_PLACED"), "{info:?}");
}

#[tokio::test]
async fn data_that_breaks_the_schema_is_refused_with_a_pointer() {
    let tenant = World::shared().await.tenant().await;
    let schema = json!({"type": "object", "properties": {"lines": {"type": "array", "items": {"type": "integer"}}}});
    tenant.declare_with_schema("CUSTOM_STRICT", &schema.to_string()).await;
    let result = tenant.try_publish(publish_request("CUSTOM_STRICT", &json!({"lines": [1, "two"]}))).await;
    let status = assert_refused(result, Code::InvalidArgument, "SCHEMA_VIOLATION");
    let fields = status.get_details_bad_request().expect("it is set").field_violations;
    assert!(fields.iter().any(|violation| violation.field.contains("/lines/1")), "{fields:?}");
    assert!(!status.message().contains("two"), "the value is repeated: {}", status.message());
}

#[tokio::test]
async fn broken_requests_name_their_field() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_FIELDS").await;
    let event = || cloud_event("CUSTOM_FIELDS", &json!({}));
    let not_json = |text: &str| {
        let mut event = event();
        event.data = Some(Data::TextData(text.to_owned()));
        PublishRequest { event: Some(event), ..Default::default() }
    };
    let mut without_source = event();
    without_source.source.clear();
    let mut nul = event();
    nul.source = "/a\0b".to_owned();
    let cases = [
        ("event", PublishRequest::default()),
        ("source", PublishRequest { event: Some(without_source), ..Default::default() }),
        ("source", PublishRequest { event: Some(nul), ..Default::default() }),
        ("data", not_json("{\"a\": 1")),
        ("data", not_json("{} trailing")),
        ("data", not_json("\u{feff}{}")),
        ("data", not_json(&"[".repeat(10_000))),
        (
            "idempotency_key",
            PublishRequest { event: Some(event()), idempotency_key: "k".repeat(257), ..Default::default() },
        ),
        (
            "idempotency_key",
            PublishRequest { event: Some(event()), idempotency_key: "ключ".to_owned(), ..Default::default() },
        ),
    ];
    for (field, request) in cases {
        let status = assert_refused(tenant.try_publish(request).await, Code::InvalidArgument, "FIELD_INVALID");
        let fields = status.get_details_bad_request().expect("it is set").field_violations;
        assert!(fields.iter().any(|violation| violation.field.contains(field)), "{field}: {fields:?}");
    }
    let before = tenant.end_of_log().await;
    let answer = tenant.publish("CUSTOM_FIELDS", &json!({})).await;
    assert_eq!(answer.position, before + 1, "a refused event took a position");
}

#[tokio::test]
async fn the_size_limit_is_exact() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_LARGE").await;
    let of = |bytes: usize| publish_request("CUSTOM_LARGE", &json!("x".repeat(bytes)));
    let status = assert_refused(tenant.try_publish(of(2 << 20)).await, Code::InvalidArgument, "EVENT_TOO_LARGE");
    let info = status.get_details_error_info().expect("it is set");
    let limit: usize = info.metadata["limit_bytes"].parse().expect("a number");
    assert_refused(tenant.try_publish(of(limit)).await, Code::InvalidArgument, "EVENT_TOO_LARGE");
    // The bound counts the whole event; a kilobyte is more than the attributes of this one take.
    tenant.try_publish(of(limit - 1_024)).await.expect("an event below the limit is accepted");
}

#[tokio::test]
async fn an_identity_publishes_only_the_types_it_may() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    tenant.declare("CUSTOM_ALLOWED_ONE").await;
    tenant.declare("CUSTOM_OTHER").await;
    let uri = format!("spiffe://carillon.test/limited/{}", tenant.slug);
    let request = CreatePublisherIdentityRequest {
        tenant: tenant.slug.clone(),
        subject: format!("uri:{uri}"),
        event_types: vec!["CUSTOM_ALLOWED_*".to_owned()],
        ..Default::default()
    };
    admin(world).create_publisher_identity(request).await.expect("an identity can be registered");
    let mut limited = PublishServiceClient::new(world.internal(1, &Identity::issue(&world.ca, &uri)));
    limited.publish(publish_request("CUSTOM_ALLOWED_ONE", &json!({}))).await.expect("an allowed type");
    let result = limited.publish(publish_request("CUSTOM_OTHER", &json!({}))).await;
    assert_refused(result, Code::PermissionDenied, "EVENT_TYPE_FORBIDDEN");
}

#[tokio::test]
async fn an_identity_waits_for_and_takes_back_only_events_of_types_it_may_publish() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    let [allowed, other] = ["CUSTOM_ALLOWED", "CUSTOM_OTHER"];
    let uri = format!("spiffe://carillon.test/waiting/{}", tenant.slug);
    let request = CreatePublisherIdentityRequest {
        tenant: tenant.slug.clone(),
        subject: format!("uri:{uri}"),
        event_types: vec![allowed.to_owned()],
        ..Default::default()
    };
    admin(world).create_publisher_identity(request).await.expect("an identity can be registered");
    let mut limited = PublishServiceClient::new(world.internal(1, &Identity::issue(&world.ca, &uri)));
    let wait = |event_id: &str| WaitEventRequest { event_id: event_id.to_owned(), ..Default::default() };
    let cancel = |event_id: &str| CancelEventRequest { event_id: event_id.to_owned(), ..Default::default() };
    let absent = "evt_00000000000000000000000000";
    for event_type in [allowed, other] {
        tenant.declare(event_type).await;
        let committed = tenant.publish(event_type, &json!({})).await.event_id;
        let at = (carillon::clock::now() + chrono::TimeDelta::hours(1)).into();
        let later = PublishRequest { deliver_at: Some(at), ..publish_request(event_type, &json!({})) };
        let delayed = tenant.try_publish(later).await.expect("it is accepted").event_id;
        if event_type == allowed {
            limited.wait_event(wait(&committed)).await.expect("it is final");
            limited.cancel_event(cancel(&delayed)).await.expect("it is delayed");
            continue;
        }
        let unknown = limited.wait_event(wait(absent)).await;
        let unknown = assert_refused(unknown, Code::NotFound, "EVENT_NOT_FOUND").message().replace(absent, "");
        for id in [&committed, &delayed] {
            let status = assert_refused(limited.wait_event(wait(id)).await, Code::NotFound, "EVENT_NOT_FOUND");
            assert_eq!(status.message().replace(id, ""), unknown);
            assert_refused(limited.cancel_event(cancel(id)).await, Code::NotFound, "EVENT_NOT_FOUND");
        }
        tenant.publisher().cancel_event(cancel(&delayed)).await.expect("it is still there");
    }
}

#[tokio::test]
async fn publish_does_not_exist_on_the_public_port() {
    let world = World::shared().await;
    let status = PublishServiceClient::new(world.public(0))
        .publish(publish_request("CUSTOM_ANY", &json!({})))
        .await
        .expect_err("the public port has no such service");
    assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
}
