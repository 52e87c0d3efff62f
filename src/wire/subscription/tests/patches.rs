//! What an update changes, and what it leaves.

use super::*;
use crate::domain::announcement::Announcement;
use std::collections::BTreeSet;

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
    let parts = [
        ("ordering.on_dead_letter", "ordering.key"),
        ("rate_limit.interval", "rate_limit.count"),
        ("circuit_breaker.open_duration", "circuit_breaker.failure_threshold"),
    ];
    for (path, missing) in parts {
        let path = format!("delivery_policy.{path}");
        let refused = patched(&policy, &stored(), &[&path]).expect_err(&path);
        assert_eq!(field_of(refused), format!("subscription.delivery_policy.{missing}"));
    }
    // Where the same mask takes the whole away it is gone, however the mask is put together.
    for path in &nested {
        let whole = &path[..path.rfind('.').expect("it has parts")];
        for paths in [[path, whole], [whole, path]] {
            let left = shown(&patched(&proto::DeliveryPolicy::default(), &all, &paths).expect("it is gone"));
            let is_there = [left.rate_limit.is_some(), left.circuit_breaker.is_some(), left.ordering.is_some()];
            assert_eq!(
                is_there,
                ["rate_limit", "circuit_breaker", "ordering"].map(|one| !whole.ends_with(one)),
                "{path}"
            );
        }
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
