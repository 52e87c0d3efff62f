//! What the edge accepts and refuses of subscriptions.

mod patches;

use super::*;
use crate::domain::ids::AppId;
use crate::domain::subscription::Circuit;
use pbjson_types::Duration as ProtoDuration;
use std::time::Duration;
use uuid::Uuid;

fn webhook(uri: &str) -> proto::Target {
    let webhook = proto::WebhookTarget { uri: uri.to_owned(), ..Default::default() };
    proto::Target { kind: Some(proto::target::Kind::Webhook(webhook)) }
}

fn with_headers(headers: &[(&str, &str)]) -> proto::Target {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let webhook = proto::WebhookTarget { uri: "https://a.example/".to_owned(), headers, ..Default::default() };
    proto::Target { kind: Some(proto::target::Kind::Webhook(webhook)) }
}

fn request() -> proto::SubscribeRequest {
    proto::SubscribeRequest {
        app: "shop".to_owned(),
        event_type: "USER_CREATE".to_owned(),
        target: Some(webhook("https://A.example:443/hook")),
        ..Default::default()
    }
}

fn seconds(seconds: i64) -> ProtoDuration {
    ProtoDuration { seconds, nanos: 0 }
}

fn stored() -> Subscription {
    let parsed = parse_subscribe(request()).expect("a valid request");
    Subscription {
        id: SubscriptionId(Uuid::from_u128(1)),
        no: 1,
        app: AppId(Uuid::from_u128(2)),
        app_slug: parsed.app,
        event_type: parsed.event_type,
        display_name: "Name".to_owned(),
        filter: None,
        schema_version: 0,
        target: parsed.target,
        policy: parsed.policy,
        pre_policy: None,
        state: State::Active,
        state_reason: String::new(),
        circuit: Circuit::default(),
        paused_until: None,
        effective_position: 5,
        registry_version: 7,
        created_at: chrono::DateTime::UNIX_EPOCH,
        updated_at: chrono::DateTime::UNIX_EPOCH,
        deleted_at: None,
    }
}

fn wrong_field(request: proto::SubscribeRequest) -> String {
    match parse_subscribe(request) {
        Err(SubscriptionError::Field(error)) => error.field,
        other => panic!("not a bad field: {other:?}"),
    }
}

/// The field that is refused.
fn field_of(refused: SubscriptionError) -> String {
    match refused {
        SubscriptionError::Field(error) => error.field,
        SubscriptionError::Filter { field, .. } => field,
    }
}

#[test]
fn a_bare_request_gets_the_documented_defaults() {
    let parsed = parse_subscribe(request()).expect("a valid request");
    assert_eq!(parsed.policy, DeliveryPolicy::default());
    let Target::Webhook(webhook) = parsed.target;
    assert_eq!((webhook.uri.to_string().as_str(), webhook.mode), ("https://a.example/hook", WebhookMode::Structured));
    assert!(parsed.filter.is_none() && parsed.secret.is_none());
}

#[test]
fn every_bad_field_is_named_by_its_path() {
    let policy = |policy| proto::SubscribeRequest { delivery_policy: Some(policy), ..request() };
    let target = |target| proto::SubscribeRequest { target, ..request() };
    let mut bad_mode = webhook("https://a.example/");
    if let Some(proto::target::Kind::Webhook(webhook)) = &mut bad_mode.kind {
        webhook.mode = 77;
    }
    let default = proto::DeliveryPolicy::default;
    let cases = [
        (proto::SubscribeRequest { app: String::new(), ..request() }, "app"),
        (proto::SubscribeRequest { app: "a\0".to_owned(), ..request() }, "app"),
        (proto::SubscribeRequest { event_type: "a b".to_owned(), ..request() }, "event_type"),
        (proto::SubscribeRequest { display_name: "\0".to_owned(), ..request() }, "display_name"),
        (proto::SubscribeRequest { display_name: "x".repeat(129), ..request() }, "display_name"),
        (proto::SubscribeRequest { signing_secret: "whsec_AAAA".to_owned(), ..request() }, "signing_secret"),
        (target(None), "target"),
        (target(Some(proto::Target { kind: None })), "target"),
        (target(Some(webhook(""))), "target.webhook.uri"),
        (target(Some(webhook("ftp://a.example/"))), "target.webhook.uri"),
        (target(Some(bad_mode)), "target.webhook.mode"),
        (target(Some(with_headers(&[("Host", "x")]))), "target.webhook.headers"),
        (target(Some(with_headers(&[("x-a", "1"), ("X-A", "2")]))), "target.webhook.headers"),
        (policy(proto::DeliveryPolicy { max_attempts: -1, ..default() }), "delivery_policy.max_attempts"),
        (policy(proto::DeliveryPolicy { max_attempts: 51, ..default() }), "delivery_policy.max_attempts"),
        (policy(proto::DeliveryPolicy { timeout: Some(seconds(-1)), ..default() }), "delivery_policy.timeout"),
        (policy(proto::DeliveryPolicy { timeout: Some(seconds(301)), ..default() }), "delivery_policy.timeout"),
        (policy(proto::DeliveryPolicy { timeout: Some(seconds(0)), ..default() }), "delivery_policy.timeout"),
        (
            policy(proto::DeliveryPolicy { initial_backoff: Some(seconds(3_601)), ..default() }),
            "delivery_policy.initial_backoff",
        ),
        (policy(proto::DeliveryPolicy { max_backoff: Some(seconds(0)), ..default() }), "delivery_policy.max_backoff"),
        (
            policy(proto::DeliveryPolicy { max_backoff: Some(seconds(86_401)), ..default() }),
            "delivery_policy.max_backoff",
        ),
        (policy(proto::DeliveryPolicy { max_in_flight: 1_001, ..default() }), "delivery_policy.max_in_flight"),
        (policy(limited(0, None)), "delivery_policy.rate_limit.count"),
        (policy(limited(1_000_001, None)), "delivery_policy.rate_limit.count"),
        (policy(limited(1, Some(seconds(0)))), "delivery_policy.rate_limit.interval"),
        (policy(limited(1, Some(seconds(-1)))), "delivery_policy.rate_limit.interval"),
        (policy(limited(1, Some(seconds(86_401)))), "delivery_policy.rate_limit.interval"),
        (policy(breaking(-1, None)), "delivery_policy.circuit_breaker.failure_threshold"),
        (policy(breaking(10_001, None)), "delivery_policy.circuit_breaker.failure_threshold"),
        (policy(breaking(1, Some(seconds(0)))), "delivery_policy.circuit_breaker.open_duration"),
        (policy(breaking(1, Some(seconds(3_601)))), "delivery_policy.circuit_breaker.open_duration"),
        (
            policy(proto::DeliveryPolicy { auto_disable_after: Some(seconds(0)), ..default() }),
            "delivery_policy.auto_disable_after",
        ),
        (
            policy(proto::DeliveryPolicy { auto_disable_after: Some(seconds(90 * 86_400 + 1)), ..default() }),
            "delivery_policy.auto_disable_after",
        ),
        (policy(ordered("", 0)), "delivery_policy.ordering.key"),
        (policy(ordered("data.user", 9)), "delivery_policy.ordering.on_dead_letter"),
    ];
    for (request, field) in cases {
        assert_eq!(wrong_field(request), field);
    }
}

fn limited(count: i32, interval: Option<ProtoDuration>) -> proto::DeliveryPolicy {
    proto::DeliveryPolicy { rate_limit: Some(proto::RateLimit { count, interval }), ..Default::default() }
}

fn breaking(failure_threshold: i32, open_duration: Option<ProtoDuration>) -> proto::DeliveryPolicy {
    let breaker = proto::CircuitBreaker { failure_threshold, open_duration };
    proto::DeliveryPolicy { circuit_breaker: Some(breaker), ..Default::default() }
}

#[test]
fn what_protects_a_receiver_has_its_documented_defaults_and_is_shown() {
    let both = proto::DeliveryPolicy { circuit_breaker: breaking(0, None).circuit_breaker, ..limited(5, None) };
    let request = proto::SubscribeRequest { delivery_policy: Some(both), ..request() };
    let policy = parse_subscribe(request).expect("within bounds").policy;
    let shown = to_proto(&Subscription { policy, ..stored() }).delivery_policy.expect("it is shown");
    assert_eq!(shown.rate_limit, limited(5, Some(seconds(1))).rate_limit);
    assert_eq!(shown.circuit_breaker, breaking(10, Some(seconds(30))).circuit_breaker);
    assert_eq!(shown.auto_disable_after, Some(seconds(5 * 86_400)));
}

fn ordered(key: &str, on_dead_letter: i32) -> proto::DeliveryPolicy {
    let ordering = proto::OrderingPolicy { key: key.to_owned(), on_dead_letter };
    proto::DeliveryPolicy { ordering: Some(ordering), ..Default::default() }
}

#[test]
fn an_ordering_key_is_compiled_kept_and_taken_away_by_an_empty_field_in_the_mask() {
    let bad = proto::SubscribeRequest { delivery_policy: Some(ordered("data.", 0)), ..request() };
    let refused = parse_subscribe(bad);
    assert!(
        matches!(&refused, Err(SubscriptionError::Filter { field, .. }) if field == "delivery_policy.ordering.key"),
        "{refused:?}"
    );
    let change = |policy, paths: Vec<String>, before| {
        let sent = proto::Subscription { delivery_policy: Some(policy), ..Default::default() };
        parse_patch(sent, Some(&FieldMask { paths })).expect("a valid patch").apply(before).expect("within bounds")
    };
    let path = || vec!["delivery_policy.ordering".to_owned()];
    let set = change(ordered("data.user", 2), path(), stored());
    let shown = to_proto(&set).delivery_policy.and_then(|policy| policy.ordering).expect("it is set");
    assert_eq!((shown.key.as_str(), shown.on_dead_letter), ("data.user", 2));
    assert!(set.policy.blocks_on_dead_letter());
    let other = change(proto::DeliveryPolicy::default(), vec!["delivery_policy.timeout".to_owned()], set);
    assert!(other.policy.ordering().is_some(), "another field leaves it");
    let none = change(proto::DeliveryPolicy::default(), path(), other);
    assert!(none.policy.ordering().is_none());
}

#[test]
fn a_bad_filter_is_its_own_kind_of_refusal() {
    let refused = parse_subscribe(proto::SubscribeRequest { filter: "event.type ==".to_owned(), ..request() });
    assert!(matches!(refused, Err(SubscriptionError::Filter { field, .. }) if field == "filter"));
    let refused = parse_subscribe(proto::SubscribeRequest { filter: " ".repeat(4_097), ..request() });
    assert!(matches!(refused, Err(SubscriptionError::Filter { field, .. }) if field == "filter"));
}

#[test]
fn an_unsubscribe_names_one_subscription_in_one_way() {
    let id = SubscriptionId(Uuid::from_u128(9));
    let by_id = proto::UnsubscribeRequest { subscription_id: id.to_string(), ..Default::default() };
    assert_eq!(parse_unsubscribe(by_id.clone()), Ok(Unsubscribed::Id(id)));
    let both = proto::UnsubscribeRequest { target: Some(webhook("https://a.example/")), ..by_id };
    assert_eq!(parse_unsubscribe(both).expect_err("both").field, "target");
    assert_eq!(parse_unsubscribe(proto::UnsubscribeRequest::default()).expect_err("none").field, "app");
    let by_target = proto::UnsubscribeRequest {
        app: "shop".to_owned(),
        event_type: "USER_CREATE".to_owned(),
        // What does not make the target unique is not looked at.
        target: Some(with_headers(&[("host", "refused elsewhere")])),
        ..Default::default()
    };
    assert!(matches!(parse_unsubscribe(by_target), Ok(Unsubscribed::Target { .. })));
}

#[test]
fn states_default_to_what_is_not_deleted() {
    assert_eq!(parse_states("states", &[]), Ok(vec![State::Active, State::Disabled]));
    assert_eq!(parse_states("states", &[3, 1, 3]), Ok(vec![State::Deleted, State::Active]));
    assert_eq!(parse_states("states", &[1, 9]).expect_err("unknown").field, "states[1]");
}

#[test]
fn what_is_shown_can_be_sent_back() {
    let shown = to_proto(&stored());
    assert_eq!((shown.etag.as_str(), shown.effective_position, shown.delete_time), ("7", 5, None));
    let unchanged = parse_patch(shown, None).expect("what was shown").apply(stored()).expect("within bounds");
    assert_eq!(to_proto(&unchanged), to_proto(&stored()));
}

#[test]
fn no_order_is_given_to_a_listener_of_pre_events_and_one_that_is_there_is_in_nobodys_way() {
    let present = parse_policy("delivery_policy", Some(&ordered("data.a", 2)), parse_key).expect("valid");
    let listener = Subscription { policy: present, pre_policy: Some(PrePolicy::default()), ..stored() };
    let patched = |policy: proto::DeliveryPolicy, path: &str| {
        let sent = proto::Subscription { delivery_policy: Some(policy), ..to_proto(&listener) };
        parse_patch(sent, Some(&FieldMask { paths: vec![path.to_owned()] })).expect("a mask").apply(listener.clone())
    };
    for path in ["delivery_policy", "delivery_policy.ordering", "delivery_policy.ordering.key", "*"] {
        let refused = patched(ordered("data.b", 2), path).expect_err(path);
        assert_eq!(field_of(refused), "subscription.delivery_policy.ordering", "{path}");
    }
    let kept = patched(proto::DeliveryPolicy { max_attempts: 2, ..ordered("data.a", 2) }, "*").expect("nothing is new");
    assert_eq!((kept.policy.max_attempts(), kept.policy.ordering()), (2, listener.policy.ordering()));
    let gone = patched(proto::DeliveryPolicy::default(), "delivery_policy").expect("it may go");
    assert_eq!(gone.policy.ordering(), None);
}
