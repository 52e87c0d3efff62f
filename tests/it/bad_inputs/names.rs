//! D: ids and names of every wrong shape, and idempotency keys that are used twice. Whose ids they are is in `g10_tenants`.

use carillon::proto::internal::{
    CreateApiKeyRequest, CreateAppRequest, CreatePublisherIdentityRequest, CreateTenantRequest, GetTenantRequest,
    RevokeApiKeyRequest, Role, Tenant, UpdateTenantRequest, WaitEventRequest,
};
use carillon::proto::public::{
    AddEventTypeSchemaRequest, CancelInvocationRequest, CreateEventTypeRequest, DeleteEventTypeRequest, EventType,
    GetEventRequest, GetEventTypeRequest, GetInvocationRequest, GetSubscriptionRequest, ListEventsRequest,
    ListInvocationsRequest, SubscribeRequest, Subscription, UnsubscribeRequest, UpdateEventTypeRequest,
    UpdateSubscriptionRequest, UpdateWatchRequest,
};
use serde_json::json;
use tonic::Code;

use super::Expected::{Fine, Refused};
use super::{Row, TYPE, invalid};
use crate::harness::tenant::{admin, publish_request};

/// Texts that are no id, no name and no slug.
fn hostile() -> Vec<String> {
    let mut texts: Vec<String> = [
        " ",
        "\t",
        "a\0b",
        "../../etc/passwd",
        "..\\..\\",
        "%2e%2e%2f",
        "'; DROP TABLE events; --",
        "\" OR \"\"=\"",
        "%s%s%n%x",
        "{0}${jndi:ldap://x}",
        // The first letter is Cyrillic.
        "\u{421}USTOM_BAD",
        "CUSTOM\u{200b}_BAD",
        "\u{202e}CUSTOM_BAD",
        "CUSTOM_BAD\u{feff}",
        "CUSTOM_B\u{0041}\u{030a}D",
        "-evt",
        "9sub",
        "\u{1f514}",
    ]
    .map(str::to_owned)
    .to_vec();
    texts.push("x".repeat(1 << 20));
    texts
}

#[tokio::test]
async fn d2_ids_and_names_of_any_wrong_shape_name_their_field() {
    let mut row = Row::open().await;
    let (mut events, mut types, mut invocations) = (row.tenant.events(), row.tenant.types(), row.tenant.invocations());
    let (mut admin, mut publisher) = (admin(row.world), row.tenant.publisher());
    for text in std::iter::once(String::new()).chain(hostile()) {
        macro_rules! refused {
            ($client:ident . $method:ident, $field:literal, $request:expr) => {
                let result = $client.$method($request).await;
                row.check(&format!("{} of {text:?}", stringify!($method)), result, invalid($field));
            };
        }
        let id = || text.clone();
        refused!(events.get_subscription, "subscription_id", GetSubscriptionRequest { subscription_id: id() });
        refused!(events.get_event, "event_id", GetEventRequest { event_id: id() });
        refused!(events.update_watch, "watch_id", UpdateWatchRequest { watch_id: id(), ..Default::default() });
        refused!(invocations.get_invocation, "invocation_id", GetInvocationRequest { invocation_id: id() });
        refused!(
            invocations.cancel_invocation,
            "invocation_id",
            CancelInvocationRequest { invocation_id: id(), ..Default::default() }
        );
        refused!(publisher.wait_event, "event_id", WaitEventRequest { event_id: id(), ..Default::default() });
        refused!(types.get_event_type, "name", GetEventTypeRequest { name: id(), ..Default::default() });
        refused!(types.delete_event_type, "name", DeleteEventTypeRequest { name: id(), ..Default::default() });
        refused!(types.create_event_type, "name", CreateEventTypeRequest { name: id(), ..Default::default() });
        refused!(
            types.add_event_type_schema,
            "event_type",
            AddEventTypeSchemaRequest { event_type: id(), schema: "{}".to_owned(), ..Default::default() }
        );
        let of = row.tenant.subscribe_request(TYPE, "http://127.0.0.1:9/hook");
        let request = carillon::proto::public::SubscribeRequest { app: id(), ..of.clone() };
        refused!(events.subscribe, "app", request);
        let request = carillon::proto::public::SubscribeRequest { event_type: id(), ..of };
        refused!(events.subscribe, "event_type", request);
        refused!(admin.create_tenant, "slug", CreateTenantRequest { slug: id(), ..Default::default() });
        let tenant = row.tenant.slug.clone();
        refused!(admin.create_app, "slug", CreateAppRequest { tenant, slug: id(), ..Default::default() });
        let tenant = row.tenant.slug.clone();
        refused!(
            admin.revoke_api_key,
            "api_key_id",
            RevokeApiKeyRequest { tenant, api_key_id: id(), ..Default::default() }
        );
        let tenant = row.tenant.slug.clone();
        refused!(
            admin.create_publisher_identity,
            "subject",
            CreatePublisherIdentityRequest { tenant, subject: id(), ..Default::default() }
        );
        refused!(admin.get_tenant, "tenant", GetTenantRequest { tenant: id() });
        row.publish(&format!("the type {text:?}"), publish_request(&text, &json!({})), invalid("event.type")).await;
        if text.is_empty() {
            // What is empty in these selects everything, or something else.
            continue;
        }
        refused!(
            events.unsubscribe,
            "subscription_id",
            UnsubscribeRequest { subscription_id: id(), ..Default::default() }
        );
        refused!(
            events.list_events,
            "event_types[0]",
            ListEventsRequest { event_types: vec![id()], ..Default::default() }
        );
        refused!(
            invocations.list_invocations,
            "event_id",
            ListInvocationsRequest { event_id: id(), ..Default::default() }
        );
        refused!(
            invocations.list_invocations,
            "subscription_id",
            ListInvocationsRequest { subscription_id: id(), ..Default::default() }
        );
    }
    row.close().await;
}

#[tokio::test]
async fn d3_a_key_that_was_used_for_something_else_is_refused() {
    let mut row = Row::open().await;
    let reused = Refused(Code::FailedPrecondition, "REQUEST_ID_REUSED", "");
    let with_key = |key: &str, n: i32| {
        let mut request = publish_request(TYPE, &json!({ "n": n }));
        key.clone_into(&mut request.idempotency_key);
        request
    };
    let longest = "k".repeat(256);
    for key in ["once", " ", "'; --", "%s", longest.as_str()] {
        row.publish(key, with_key(key, 1), Fine).await;
        let again = row.tenant.try_publish(with_key(key, 1)).await;
        let again = row.check(key, again, Fine);
        row.ensure(key, again.is_some_and(|answer| answer.duplicate), "a retry is not told to be one");
        row.publish(key, with_key(key, 2), reused).await;
    }
    for key in ["k".repeat(257), "k".repeat(1 << 20), "\0".to_owned(), "\u{e4}".to_owned(), "a\r\nb".to_owned()] {
        row.publish(&key, with_key(&key, 1), invalid("idempotency_key")).await;
        let mut request = row.tenant.subscribe_request(TYPE, "http://127.0.0.1:9/hook");
        request.request_id.clone_from(&key);
        row.check(&key, row.tenant.events().subscribe(request).await, invalid("request_id"));
        let request =
            CreateEventTypeRequest { name: "CUSTOM_KEYED".to_owned(), request_id: key.clone(), ..Default::default() };
        row.check(&key, row.tenant.types().create_event_type(request).await, invalid("request_id"));
    }
    let create = |name: &str| CreateEventTypeRequest {
        name: name.to_owned(),
        request_id: "once".to_owned(),
        ..Default::default()
    };
    row.check("a first creation", row.tenant.types().create_event_type(create("CUSTOM_KEYED")).await, Fine);
    row.check("its retry", row.tenant.at[1].types.clone().create_event_type(create("CUSTOM_KEYED")).await, Fine);
    row.check("another one", row.tenant.types().create_event_type(create("CUSTOM_OTHER")).await, reused);
    row.close().await;
}

#[tokio::test]
async fn d4_texts_for_people_that_hide_or_turn_what_they_say_name_their_field() {
    let mut row = Row::open().await;
    let (mut events, mut types, mut admin) = (row.tenant.events(), row.tenant.types(), admin(row.world));
    let request = row.tenant.subscribe_request(TYPE, "http://127.0.0.1:9/hook");
    let made = events.subscribe(request).await.expect("valid").into_inner().subscription.expect("it is set");
    let texts = ["\0", "a\u{1b}[2Jb", "a\u{7f}b", "a\u{9b}31mb", "a\r\nb", "a\u{202e}b", "a\u{2066}b", "a\u{200e}b"];
    let only_names = ["a\nb", "a\tb", "  ", "\u{200d}", "a\u{200b}b", "a\u{feff}b", "a\u{2060}b", "a\u{2028}b"];
    let texts = texts.into_iter().chain(only_names);
    for (n, text) in texts.enumerate() {
        let display_name = || text.to_owned();
        let request = CreateEventTypeRequest {
            name: "CUSTOM_NAMED".to_owned(),
            display_name: display_name(),
            ..Default::default()
        };
        row.check(text, types.create_event_type(request).await, invalid("display_name"));
        let event_type = EventType { name: TYPE.to_owned(), display_name: display_name(), ..Default::default() };
        let request = UpdateEventTypeRequest { event_type: Some(event_type), ..Default::default() };
        row.check(text, types.update_event_type(request).await, invalid("event_type.display_name"));
        let of = row.tenant.subscribe_request(TYPE, "http://127.0.0.1:9/hook");
        let request = SubscribeRequest { display_name: display_name(), ..of };
        row.check(text, events.subscribe(request).await, invalid("display_name"));
        let subscription = Subscription { id: made.id.clone(), display_name: display_name(), ..Default::default() };
        let request = UpdateSubscriptionRequest { subscription: Some(subscription), ..Default::default() };
        row.check(text, events.update_subscription(request).await, invalid("subscription.display_name"));
        let slug = || "never-made".to_owned();
        let request = CreateTenantRequest { slug: slug(), display_name: display_name(), ..Default::default() };
        row.check(text, admin.create_tenant(request).await, invalid("display_name"));
        let changed = Tenant { slug: row.tenant.slug.clone(), display_name: display_name(), ..Default::default() };
        let request = UpdateTenantRequest { tenant: Some(changed), ..Default::default() };
        row.check(text, admin.update_tenant(request).await, invalid("tenant.display_name"));
        let tenant = row.tenant.slug.clone();
        let request = CreateAppRequest { tenant, slug: slug(), display_name: display_name(), ..Default::default() };
        row.check(text, admin.create_app(request).await, invalid("display_name"));
        let (tenant, role) = (row.tenant.slug.clone(), Role::Viewer.into());
        let request = CreateApiKeyRequest { tenant, role, display_name: display_name(), ..Default::default() };
        row.check(text, admin.create_api_key(request).await, invalid("display_name"));

        let outcome = |field| if only_names.contains(&text) { Fine } else { invalid(field) };
        let event_type = EventType { name: TYPE.to_owned(), description: text.to_owned(), ..Default::default() };
        let request = UpdateEventTypeRequest { event_type: Some(event_type), ..Default::default() };
        row.check(text, types.update_event_type(request).await, outcome("event_type.description"));
        let name = format!("CUSTOM_TEXT_{n}");
        let request = CreateEventTypeRequest { name, description: text.to_owned(), ..Default::default() };
        row.check(text, types.create_event_type(request).await, outcome("description"));
    }
    row.close().await;
}
