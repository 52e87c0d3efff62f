//! B: messages that no client library would send, values out of their range, masks over what cannot change.

use bytes::Bytes;
use carillon::proto::cloudevents::cloud_event::CloudEventAttributeValue;
use carillon::proto::cloudevents::cloud_event::cloud_event_attribute_value::Attr;
use carillon::proto::internal::{
    ListApiKeysRequest, ListAppsRequest, ListAuditRecordsRequest, ListPublisherIdentitiesRequest, ListTenantsRequest,
    PublishRequest, WaitEventRequest,
};
use carillon::proto::public::{
    CreateEventTypeRequest, EventType, GetEventTypeRequest, ListEventTypeSchemasRequest, ListEventTypesRequest,
    ListEventsRequest, ListInvocationsRequest, ListSubscriptionsRequest, RedriveInvocationsRequest, Subscription,
    UpdateEventTypeRequest, UpdateSubscriptionRequest, WatchRequest,
};
use serde_json::json;

use super::Expected::Fine;
use super::{Row, TYPE, invalid, raw};
use crate::harness::tenant::{admin, cloud_event, publish_request};

#[tokio::test]
async fn b1_bytes_that_are_no_message_are_a_bad_request() {
    let mut row = Row::open().await;
    let bearer = [format!("Bearer {}", row.tenant.key)];
    let groups = |depth: usize| [vec![0x7b; depth], vec![0x7c; depth]].concat();
    let members: [(&str, Vec<u8>, bool); 12] = [
        ("nothing", vec![], true),
        ("an unknown group", groups(5), true),
        ("an unknown field", vec![0xc2, 0x3e, 0x01, 0x41], true),
        ("unknown groups 101 deep", groups(101), false),
        ("unknown groups 100,000 deep", groups(100_000), false),
        ("a group that ends before it starts", vec![0x7c], false),
        ("a text as a number", vec![0x0a, 0x01, 0x41], false),
        ("a number of eleven bytes", [vec![0x08], vec![0xff; 10], vec![0x01]].concat(), false),
        ("a text longer than the message", vec![0x12, 0x7f, 0x61], false),
        ("a length of 2^63", [vec![0x12], vec![0xff; 8], vec![0x7f]].concat(), false),
        ("a text that is not UTF-8", vec![0x12, 0x02, 0xff, 0xfe], false),
        ("field number 0", vec![0x00, 0x01], false),
    ];
    for (member, body, fine) in members {
        let expected = if fine { Fine } else { invalid("") };
        for replica in [0, 1] {
            let channel = row.world.public(replica);
            let path = "/carillon.v1.EventService/ListEvents";
            let result = raw::call(channel, path, &bearer, Bytes::from(body.clone())).await;
            row.check(member, result, expected);
        }
        if !fine {
            let channel = row.world.internal(0, &row.tenant.identity);
            let path = "/carillon.internal.v1.PublishService/PublishBatch";
            // The second field does not exist here, so only what breaks the encoding itself is wrong.
            if !member.contains("text") {
                row.check(member, raw::call(channel, path, &[], Bytes::from(body)).await, expected);
            }
        }
    }
    let nested = |depth: usize| {
        let mut request = publish_request(TYPE, &json!({}));
        let text = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        request.event.as_mut().expect("it is set").data =
            Some(carillon::proto::cloudevents::cloud_event::Data::TextData(text));
        request
    };
    row.publish("data 127 deep", nested(127), Fine).await;
    for depth in [128, 129, 1_000, 100_000] {
        row.publish(&format!("data {depth} deep"), nested(depth), invalid("event.data")).await;
    }
    row.close().await;
}

#[tokio::test]
async fn b2_values_out_of_range_are_named_or_clamped() {
    let mut row = Row::open().await;
    let (mut events, mut types, mut invocations) = (row.tenant.events(), row.tenant.types(), row.tenant.invocations());
    let mut admin = admin(row.world);
    for (size, field) in [(-1, "page_size"), (i32::MIN, "page_size"), (0, ""), (i32::MAX, "")] {
        let expected = if field.is_empty() { Fine } else { invalid(field) };
        macro_rules! page {
            ($client:ident . $method:ident, $request:ident $($fields:tt)*) => {
                let request = $request { page_size: size, $($fields)* ..Default::default() };
                let result = $client.$method(request).await;
                row.check(&format!("{} of {size}", stringify!($method)), result, expected);
            };
        }
        page!(events.list_events, ListEventsRequest);
        page!(events.list_subscriptions, ListSubscriptionsRequest);
        page!(types.list_event_types, ListEventTypesRequest);
        page!(types.get_event_type, GetEventTypeRequest name: TYPE.to_owned(),);
        page!(types.list_event_type_schemas, ListEventTypeSchemasRequest event_type: TYPE.to_owned(),);
        page!(invocations.list_invocations, ListInvocationsRequest);
        page!(admin.list_tenants, ListTenantsRequest);
        page!(admin.list_apps, ListAppsRequest tenant: row.tenant.slug.clone(),);
        page!(admin.list_api_keys, ListApiKeysRequest tenant: row.tenant.slug.clone(),);
        page!(admin.list_publisher_identities, ListPublisherIdentitiesRequest tenant: row.tenant.slug.clone(),);
        page!(admin.list_audit_records, ListAuditRecordsRequest tenant: row.tenant.slug.clone(),);
    }
    let times = [(-62_135_596_801, 0), (253_402_300_800, 0), (i64::MIN, 0), (i64::MAX, 0), (0, -1), (0, 1_000_000_000)];
    for (seconds, nanos) in times {
        let time = carillon::proto::Timestamp { seconds, nanos };
        let member = format!("{seconds} s {nanos} ns");
        let request = ListEventsRequest { start_time: Some(time), ..Default::default() };
        row.check(&member, events.list_events(request).await, invalid("start_time"));
        let request = ListEventsRequest { end_time: Some(time), ..Default::default() };
        row.check(&member, events.list_events(request).await, invalid("end_time"));
        let request = ListInvocationsRequest { start_time: Some(time), ..Default::default() };
        row.check(&member, invocations.list_invocations(request).await, invalid("start_time"));
        let request = RedriveInvocationsRequest { end_time: Some(time), ..Default::default() };
        row.check(&member, invocations.redrive_invocations(request).await, invalid("end_time"));
        let mut event = cloud_event(TYPE, &json!({}));
        let value = CloudEventAttributeValue { attr: Some(Attr::CeTimestamp(time)) };
        event.attributes.insert("time".to_owned(), value);
        let request = PublishRequest { event: Some(event), ..Default::default() };
        row.publish(&member, request, invalid("event.attributes.time")).await;
    }
    for (seconds, nanos) in [(-1, 0), (0, -1), (1, -1), (-1, 1), (0, 1_000_000_000), (i64::MAX, 0), (i64::MIN, 0)] {
        let duration = pbjson_types::Duration { seconds, nanos };
        let member = format!("{seconds} s {nanos} ns");
        for field in ["timeout", "initial_backoff", "max_backoff"] {
            let mut request = row.tenant.subscribe_request(TYPE, "http://127.0.0.1:9/hook");
            let policy = request.delivery_policy.as_mut().expect("it is set");
            let (place, path) = match field {
                "timeout" => (&mut policy.timeout, "delivery_policy.timeout"),
                "initial_backoff" => (&mut policy.initial_backoff, "delivery_policy.initial_backoff"),
                _ => (&mut policy.max_backoff, "delivery_policy.max_backoff"),
            };
            *place = Some(duration);
            row.check(&member, events.subscribe(request).await, invalid(path));
        }
        // Waiting for longer than the server lets anyone wait is clamped; a time that is none is refused.
        if seconds < i64::MAX {
            let request =
                WaitEventRequest { event_id: "evt_00000000000000000000000000".to_owned(), timeout: Some(duration) };
            row.check(&member, row.tenant.publisher().wait_event(request).await, invalid("timeout"));
            let request = WatchRequest { bookmark_interval: Some(duration), ..Default::default() };
            row.check(&member, events.watch(request).await, invalid("bookmark_interval"));
        }
    }
    let request = ListEventTypesRequest { origin: 99, ..Default::default() };
    row.check("an unknown origin", types.list_event_types(request).await, invalid("origin"));
    let request = CreateEventTypeRequest { name: "CUSTOM_X".to_owned(), phase: -7, ..Default::default() };
    row.check("an unknown phase", types.create_event_type(request).await, invalid("phase"));
    let request = ListSubscriptionsRequest { states: vec![1, 99], ..Default::default() };
    row.check("an unknown state", events.list_subscriptions(request).await, invalid("states[1]"));
    let request = ListInvocationsRequest { states: vec![99], ..Default::default() };
    row.check("an unknown state", invocations.list_invocations(request).await, invalid("states[0]"));
    let request = ListEventsRequest { view: 99, ..Default::default() };
    row.check("an unknown view", events.list_events(request).await, invalid("view"));
    let request = WatchRequest { on_expired: 99, ..Default::default() };
    row.check("an unknown answer to expiry", events.watch(request).await, invalid("on_expired"));
    for number in ["NaN", "Infinity", "-Infinity", "-", "01", "1.", ".5", "0x10", "1e", "+1"] {
        let mut request = publish_request(TYPE, &json!({}));
        request.event.as_mut().expect("it is set").data =
            Some(carillon::proto::cloudevents::cloud_event::Data::TextData(format!("{{\"n\":{number}}}")));
        row.publish(number, request, invalid("event.data")).await;
    }
    row.close().await;
}

#[tokio::test]
async fn b3_masks_over_what_cannot_change_are_refused() {
    let mut row = Row::open().await;
    let request = row.tenant.subscribe_request(TYPE, "http://127.0.0.1:9/hook");
    let made =
        row.tenant.events().subscribe(request).await.expect("valid").into_inner().subscription.expect("it is set");
    let paths = [
        "id",
        "app",
        "event_type",
        "state",
        "etag",
        "create_time",
        "effective_position",
        "nonsense",
        "",
        "**",
        "display_name.x",
        "target.webhook.nonsense",
        "DISPLAY_NAME",
        "display_name,filter",
        "\u{0}",
        "../filter",
    ];
    for path in paths {
        let update_mask = Some(pbjson_types::FieldMask { paths: vec!["display_name".to_owned(), path.to_owned()] });
        let subscription =
            Subscription { id: made.id.clone(), display_name: "changed".to_owned(), ..Default::default() };
        let request = UpdateSubscriptionRequest {
            subscription: Some(subscription),
            update_mask: update_mask.clone(),
            ..Default::default()
        };
        row.check(path, row.tenant.events().update_subscription(request).await, invalid("update_mask"));
        let event_type = EventType { name: TYPE.to_owned(), display_name: "changed".to_owned(), ..Default::default() };
        let request = UpdateEventTypeRequest { event_type: Some(event_type), update_mask, ..Default::default() };
        row.check(path, row.tenant.types().update_event_type(request).await, invalid("update_mask"));
    }
    let request = carillon::proto::public::GetSubscriptionRequest { subscription_id: made.id.clone() };
    let read = row.tenant.events().get_subscription(request).await.expect("it is there").into_inner().subscription;
    row.ensure("the subscription", read == Some(made), "it was changed in part");
    row.close().await;
}
