//! What the edge accepts and refuses of subscriptions.

use super::*;
use crate::domain::announcement::Announcement;
use crate::domain::ids::AppId;
use crate::domain::subscription::Circuit;
use pbjson_types::Duration as ProtoDuration;
use std::collections::BTreeSet;
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
fn a_patch_changes_what_its_mask_names_and_nothing_else() {
    let mask = |paths: &[&str]| FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() };
    let policy = proto::DeliveryPolicy { max_attempts: 3, timeout: Some(seconds(5)), ..Default::default() };
    let sent = proto::Subscription {
        app: "ignored".to_owned(),
        filter: "true".to_owned(),
        delivery_policy: Some(policy),
        ..Default::default()
    };
    let patched = |paths: &[&str]| {
        let patch = parse_patch(sent.clone(), Some(&mask(paths))).expect("a valid mask");
        patch.apply(stored()).expect("within bounds")
    };
    let one = patched(&["delivery_policy.max_attempts"]);
    assert_eq!((one.policy.max_attempts(), one.policy.timeout()), (3, Duration::from_secs(30)));
    assert!(one.filter.is_none() && one.display_name == "Name" && one.app_slug == "shop");
    let whole = patched(&["delivery_policy", "display_name"]);
    assert_eq!((whole.policy.timeout(), whole.display_name.as_str()), (Duration::from_secs(5), ""));
    let set = parse_patch(sent.clone(), None).expect("no mask").apply(stored()).expect("within bounds");
    assert_eq!((set.policy.max_attempts(), set.display_name.as_str()), (3, "Name"));
    assert!(set.filter.is_some());
    assert!(parse_patch(proto::Subscription::default(), None).expect("nothing").is_empty());
    for path in [
        "id",
        "app",
        "event_type",
        "state",
        "target.webhook.x",
        "**",
        "",
        "delivery_policy.x",
        "delivery_policy.max_attempts.x",
        "delivery_policy.ordering.x",
        "deliveryPolicy",
    ] {
        match parse_patch(sent.clone(), Some(&mask(&[path]))) {
            Err(SubscriptionError::Field(error)) => assert_eq!(error.field, "update_mask", "{path}"),
            other => panic!("{path}: {other:?}"),
        }
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
fn a_mask_names_fields_of_any_depth_and_what_is_beside_them_stays() {
    let policy = proto::DeliveryPolicy {
        rate_limit: Some(proto::RateLimit { count: 7, interval: Some(seconds(60)) }),
        circuit_breaker: Some(proto::CircuitBreaker { failure_threshold: 4, open_duration: Some(seconds(9)) }),
        ordering: Some(proto::OrderingPolicy {
            key: "data.key".to_owned(),
            on_dead_letter: proto::OnDeadLetter::Block.into(),
        }),
        ..Default::default()
    };
    let sent = |policy: &proto::DeliveryPolicy| proto::Subscription {
        delivery_policy: Some(policy.clone()),
        target: Some(webhook("https://example.com/new")),
        ..Default::default()
    };
    let patched = |policy: &proto::DeliveryPolicy, before: &Subscription, paths: &[&str]| {
        let mask = FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() };
        parse_patch(sent(policy), Some(&mask)).expect("a valid mask").apply(before.clone())
    };
    let nested = [
        "rate_limit.count",
        "rate_limit.interval",
        "circuit_breaker.failure_threshold",
        "circuit_breaker.open_duration",
        "ordering.key",
        "ordering.on_dead_letter",
    ]
    .map(|path| format!("delivery_policy.{path}"));
    let all = patched(&policy, &stored(), &nested.each_ref().map(String::as_str)).expect("within bounds");
    let shown = |subscription: &Subscription| policy_to_proto(&subscription.policy);
    assert_eq!(
        (shown(&all).rate_limit, shown(&all).circuit_breaker, shown(&all).ordering),
        (policy.rate_limit, policy.circuit_breaker, policy.ordering.clone())
    );
    // One by one, with nothing else of its message in the request: each goes back to its default, and what is beside it stays.
    let one = |path: &str| patched(&proto::DeliveryPolicy::default(), &all, &[path]).map(|after| shown(&after));
    let interval = one("delivery_policy.rate_limit.interval").expect("within bounds").rate_limit;
    assert_eq!(interval, Some(proto::RateLimit { count: 7, interval: Some(seconds(1)) }));
    let breaker = one("delivery_policy.circuit_breaker.open_duration").expect("within bounds").circuit_breaker;
    assert_eq!(breaker.map(|breaker| breaker.failure_threshold), Some(4));
    let ordering = one("delivery_policy.ordering.on_dead_letter").expect("within bounds").ordering.expect("it stays");
    assert_eq!((ordering.key.as_str(), ordering.on_dead_letter()), ("data.key", proto::OnDeadLetter::Skip));
    assert_eq!(one("delivery_policy.ordering").expect("within bounds").ordering, None);
    // What is required beside it is not there.
    for (path, missing) in [("ordering.on_dead_letter", "ordering.key"), ("rate_limit.interval", "rate_limit.count")] {
        let refused = patched(&policy, &stored(), &[&format!("delivery_policy.{path}")]).expect_err(path);
        assert_eq!(field_of(refused), format!("subscription.delivery_policy.{missing}"));
    }
    for path in ["target", "target.webhook"] {
        let Target::Webhook(webhook) = patched(&policy, &stored(), &[path]).expect("within bounds").target;
        assert!(webhook.uri.to_string().ends_with("/new") && webhook.headers().is_empty(), "{path}");
    }
}

#[test]
fn a_star_replaces_everything_and_takes_the_default_of_what_is_left_out() {
    let target = |uri: &str| {
        let webhook = proto::WebhookTarget { uri: uri.to_owned(), ..Default::default() };
        Some(proto::Target { kind: Some(proto::target::Kind::Webhook(webhook)) })
    };
    let sent = proto::Subscription { target: target("https://example.com/new"), ..Default::default() };
    let star = |sent: &proto::Subscription| parse_patch(sent.clone(), Some(&FieldMask { paths: vec!["*".to_owned()] }));
    let before = Subscription { schema_version: 3, pre_policy: None, ..stored() };
    let after = star(&sent).expect("valid").apply(before.clone()).expect("within bounds");
    assert_eq!((after.display_name.as_str(), after.filter.is_none(), after.schema_version), ("", true, 0));
    assert_eq!(after.policy, DeliveryPolicy::default());
    assert_eq!((after.id, after.app_slug.as_str(), after.pre_policy), (before.id, "shop", None));
    let Target::Webhook(webhook) = after.target;
    assert!(webhook.uri.to_string().ends_with("/new") && webhook.headers().is_empty());
    // A veto goes back to its default where there is one, and cannot be given to another.
    let vetoing =
        Subscription { pre_policy: Some(PrePolicy { priority: 7, ..PrePolicy::default() }), ..before.clone() };
    let after = star(&sent).expect("valid").apply(vetoing).expect("within bounds");
    assert_eq!(after.pre_policy, Some(PrePolicy::default()));
    let given = proto::Subscription { pre_policy: Some(proto::PrePolicy::default()), ..sent };
    let refused = star(&given).expect("valid").apply(before).expect_err("no PRE type");
    assert_eq!(field_of(refused), "subscription.pre_policy");
    let without = star(&proto::Subscription::default());
    assert!(
        matches!(without, Err(SubscriptionError::Field(error)) if error.field.contains("webhook")),
        "a URI is required"
    );
}

#[test]
fn a_patch_is_bounded_together_with_what_it_leaves() {
    let policy = proto::DeliveryPolicy {
        max_backoff: Some(ProtoDuration { seconds: 0, nanos: 5_000_000 }),
        ..Default::default()
    };
    let sent = proto::Subscription { delivery_policy: Some(policy), ..Default::default() };
    let patch = parse_patch(sent, None).expect("a valid patch");
    // Below the initial back-off of 1 s that is stored.
    let refused = patch.apply(stored()).expect_err("shorter than the first back-off");
    assert_eq!(field_of(refused), "subscription.delivery_policy.max_backoff");
}

#[test]
fn headers_are_replaced_as_a_whole() {
    let patch = |target| {
        let sent = proto::Subscription { target: Some(target), ..Default::default() };
        let mask = FieldMask { paths: vec!["target.webhook.headers".to_owned()] };
        parse_patch(sent, Some(&mask)).expect("a valid patch")
    };
    let headers = |subscription: &Subscription| {
        let Target::Webhook(webhook) = &subscription.target;
        webhook.headers().to_vec()
    };
    let first = patch(with_headers(&[("x-a", "1"), ("x-b", "2")])).apply(stored()).expect("patched");
    assert_eq!(headers(&first).len(), 2);
    let second = patch(with_headers(&[("x-c", "3")])).apply(first).expect("patched");
    assert_eq!(headers(&second), [("x-c".to_owned(), "3".to_owned())]);
    let none = patch(with_headers(&[])).apply(second).expect("patched");
    assert!(headers(&none).is_empty());
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

/// What a mask may name, but for `*`.
const PATHS: [&str; 28] = [
    "display_name",
    "filter",
    "schema_version",
    "target",
    "target.webhook",
    "target.webhook.uri",
    "target.webhook.mode",
    "target.webhook.headers",
    "delivery_policy",
    "delivery_policy.max_attempts",
    "delivery_policy.initial_backoff",
    "delivery_policy.max_backoff",
    "delivery_policy.timeout",
    "delivery_policy.max_in_flight",
    "delivery_policy.rate_limit",
    "delivery_policy.rate_limit.count",
    "delivery_policy.rate_limit.interval",
    "delivery_policy.circuit_breaker",
    "delivery_policy.circuit_breaker.failure_threshold",
    "delivery_policy.circuit_breaker.open_duration",
    "delivery_policy.auto_disable_after",
    "delivery_policy.ordering",
    "delivery_policy.ordering.key",
    "delivery_policy.ordering.on_dead_letter",
    "pre_policy",
    "pre_policy.failure_policy",
    "pre_policy.priority",
    "pre_policy.enrich_paths",
];

#[test]
fn whatever_a_mask_names_its_change_is_told() {
    let policy = |limit, breaker, key, on_dead_letter| proto::DeliveryPolicy {
        rate_limit: limited(limit, Some(seconds(i64::from(limit)))).rate_limit,
        circuit_breaker: breaking(breaker, Some(seconds(i64::from(breaker)))).circuit_breaker,
        ordering: ordered(key, on_dead_letter).ordering,
        ..Default::default()
    };
    let present = parse_policy("delivery_policy", Some(&policy(1, 1, "data.a", 1)), parse_key).expect("valid");
    let before = Subscription { policy: present, ..stored() };
    let mut target = with_headers(&[("x-a", "1")]);
    if let Some(proto::target::Kind::Webhook(webhook)) = &mut target.kind {
        webhook.mode = proto::WebhookMode::Raw.into();
    }
    let sent = proto::Subscription {
        display_name: "Other".to_owned(),
        filter: "data.n == 1".to_owned(),
        schema_version: 2,
        target: Some(target),
        delivery_policy: Some(proto::DeliveryPolicy {
            max_attempts: 2,
            initial_backoff: Some(seconds(2)),
            max_backoff: Some(seconds(7_200)),
            timeout: Some(seconds(2)),
            max_in_flight: 2,
            auto_disable_after: Some(seconds(60)),
            ..policy(2, 2, "data.b", 2)
        }),
        pre_policy: Some(proto::PrePolicy {
            failure_policy: proto::PreFailurePolicy::Ignore.into(),
            priority: 7,
            enrich_paths: vec!["/a".to_owned()],
        }),
        ..Default::default()
    };
    let told = |path: &str, before: &Subscription, sent: &proto::Subscription| {
        let patch = parse_patch(sent.clone(), Some(&FieldMask { paths: vec![path.to_owned()] })).expect("a mask");
        let after = patch.apply(before.clone()).expect("a valid subscription");
        let told = Announcement::subscription_changed(before, &after, "key_1").data;
        told["changes"].as_object().expect("an object").clone()
    };
    let vetoing = Subscription { pre_policy: Some(PrePolicy::default()), ..before.clone() };
    for path in PATHS {
        let name = path.split('.').next().expect("a name");
        let changes = told(path, if name == "pre_policy" { &vetoing } else { &before }, &sent);
        assert_eq!(changes.keys().collect::<Vec<_>>(), [name], "{path}: {changes:?}");
        assert_ne!(changes[name].get("before"), changes[name].get("after"), "{path}: {changes:?}");
    }
    let sent = proto::Subscription { delivery_policy: None, ..sent };
    let names: BTreeSet<String> = told("*", &vetoing, &sent).into_iter().map(|(name, _)| name).collect();
    let all: BTreeSet<&str> = PATHS.into_iter().filter_map(|path| path.split('.').next()).collect();
    assert_eq!(names, all.into_iter().map(str::to_owned).collect());
}
