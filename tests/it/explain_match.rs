//! `ExplainMatch`: which subscriptions fire, why the others do not, and what a draft filter makes of stored events.

use carillon::proto::internal::{CreateAppRequest, PublishBatchRequest, Role};
use carillon::proto::public::{
    DisableSubscriptionRequest, DraftFilter, DraftMatch, ExplainMatchRequest, ExplainMatchResponse, MatchExplanation,
    MatchReason, MatchRecord, Subscription, UpdateSubscriptionRequest,
};
use serde_json::{Value, json};
use tonic::Code;

use crate::harness::tenant::{Clients, admin, assert_refused, cloud_event, create_key, publish_request};
use crate::harness::{Tenant, World};

const NAME: &str = "CUSTOM_EXPLAINED";

async fn subscribe(tenant: &Tenant, path: &str, filter: &str, schema_version: i32) -> String {
    let mut request = tenant.subscribe_request(NAME, &format!("http://127.0.0.1:9/{path}"));
    request.filter = filter.to_owned();
    request.schema_version = schema_version;
    tenant.events().subscribe(request).await.expect("valid").into_inner().subscription.expect("it is set").id
}

async fn explain(tenant: &Tenant, request: ExplainMatchRequest) -> ExplainMatchResponse {
    tenant.at[1].events.clone().explain_match(request).await.expect("an answer").into_inner()
}

fn stored(event_id: &str) -> ExplainMatchRequest {
    ExplainMatchRequest { event_id: event_id.to_owned(), ..Default::default() }
}

fn written(data: &Value) -> ExplainMatchRequest {
    ExplainMatchRequest { event: Some(cloud_event(NAME, data)), ..Default::default() }
}

fn of<'a>(answer: &'a ExplainMatchResponse, id: &str) -> &'a MatchExplanation {
    answer.explanations.iter().find(|one| one.subscription_id == id).expect("every subscription is explained")
}

#[tokio::test]
async fn every_subscription_to_the_type_is_explained_and_of_others_none() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare_with_schema(NAME, "{}").await;
    tenant.declare("CUSTOM_ANOTHER").await;
    let other = tenant.subscribe_request("CUSTOM_ANOTHER", "http://127.0.0.1:9/other");
    tenant.events().subscribe(other).await.expect("valid");
    let fires = subscribe(&tenant, "fires", "data.n == 3", 1).await;
    let filtered = subscribe(&tenant, "filtered", "data.n > 1 && data.s == 'y'", 0).await;
    let failing = subscribe(&tenant, "failing", "data.absent == 1", 0).await;
    let disabled = subscribe(&tenant, "disabled", "", 0).await;
    let request =
        DisableSubscriptionRequest { subscription_id: disabled.clone(), etag: String::new(), ..Default::default() };
    tenant.events().disable_subscription(request).await.expect("it is active");
    let data = json!({"n": 3, "s": "x"});
    let published = tenant.publish(NAME, &data).await;
    assert_eq!(published.invocations.len(), 1);

    for (request, recorded) in [(stored(&published.event_id), true), (written(&data), false)] {
        let answer = explain(&tenant, request).await;
        assert_eq!(answer.subscription_ids, vec![fires.clone()]);
        assert_eq!(answer.explanations.len(), 4);
        let record = |record: MatchRecord| if recorded { record } else { MatchRecord::Unspecified };
        for (id, reason, recorded_as) in [
            (&fires, MatchReason::Fires, MatchRecord::Fired),
            (&filtered, MatchReason::Filter, MatchRecord::NotFired),
            (&failing, MatchReason::FilterError, MatchRecord::NotFired),
            (&disabled, MatchReason::State, MatchRecord::NotFired),
        ] {
            let one = of(&answer, id);
            assert_eq!((one.reason(), one.record()), (reason, record(recorded_as)), "{one:?}");
            assert_eq!((one.fires, one.app.as_str()), (reason == MatchReason::Fires, "shop"));
            assert!(!one.message.is_empty() && !one.changed_since, "{one:?}");
        }
        let deciding = &of(&answer, &filtered).deciding;
        assert_eq!(deciding.len(), 1, "{deciding:?}");
        assert_eq!(
            (deciding[0].expression.as_str(), deciding[0].column, deciding[0].end_column),
            ("data.s == 'y'", 15, 28)
        );
        let operand = &deciding[0].operands[0];
        assert_eq!((operand.expression.as_str(), operand.value.as_str()), ("data.s", "\"x\""));
        let failed = &of(&answer, &failing).deciding[0];
        assert_eq!((failed.expression.as_str(), failed.error.as_str()), ("data.absent == 1", "no such key: absent"));
    }
}

#[tokio::test]
async fn a_pinned_version_and_a_later_change_are_told() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare_with_schema(NAME, "{}").await;
    let request = carillon::proto::public::AddEventTypeSchemaRequest {
        event_type: NAME.to_owned(),
        schema: r#"{"type": "object"}"#.to_owned(),
        ..Default::default()
    };
    tenant.types().add_event_type_schema(request).await.expect("valid");
    let pinned = subscribe(&tenant, "pinned", "", 1).await;
    let published = tenant.publish(NAME, &json!({})).await;
    let answer = explain(&tenant, stored(&published.event_id)).await;
    let one = of(&answer, &pinned);
    assert_eq!((one.reason(), one.record()), (MatchReason::SchemaVersion, MatchRecord::NotFired));
    let old = explain(&tenant, ExplainMatchRequest { schema_version: 1, ..written(&json!({})) }).await;
    assert!(of(&old, &pinned).fires, "{old:?}");
    // The second version takes objects only, the first one whatever there is; as for a publish.
    for (schema_version, accepted) in [(0, false), (1, true), (2, false)] {
        let request = ExplainMatchRequest { schema_version, ..written(&json!([1])) };
        let answer = tenant.events().explain_match(request).await;
        if accepted {
            answer.expect("it fits");
        } else {
            assert_refused(answer, Code::InvalidArgument, "SCHEMA_VIOLATION");
        }
    }
    let missing = ExplainMatchRequest { schema_version: 3, ..written(&json!({})) };
    assert_refused(tenant.events().explain_match(missing).await, Code::NotFound, "SCHEMA_VERSION_NOT_FOUND");

    let subscription = Subscription { id: pinned.clone(), schema_version: 2, ..Default::default() };
    let update_mask = Some(pbjson_types::FieldMask { paths: vec!["schema_version".to_owned()] });
    let request = UpdateSubscriptionRequest { subscription: Some(subscription), update_mask, ..Default::default() };
    tenant.events().update_subscription(request).await.expect("valid");
    let answer = explain(&tenant, stored(&published.event_id)).await;
    let one = of(&answer, &pinned);
    assert!(one.fires && one.changed_since && one.record() == MatchRecord::NotFired, "{one:?}");
}

async fn draft(tenant: &Tenant, filter: &str, last_events: i32) -> DraftMatch {
    let draft = DraftFilter { event_type: NAME.to_owned(), filter: filter.to_owned(), last_events };
    let request = ExplainMatchRequest { draft: Some(draft), ..Default::default() };
    explain(tenant, request).await.draft.expect("it is set")
}

#[tokio::test]
async fn a_draft_filter_counts_what_it_would_have_matched() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare(NAME).await;
    tenant.declare("CUSTOM_ANOTHER").await;
    let nothing = draft(&tenant, "true", 0).await;
    assert_eq!((nothing.of_type, nothing.matched), (0, 0));
    let mut ids = Vec::new();
    for n in 0..20 {
        ids.push(tenant.publish(NAME, &json!({"n": n})).await.event_id);
    }
    tenant.publish(NAME, &json!({"other": 1})).await;
    tenant.publish("CUSTOM_ANOTHER", &json!({"n": 1})).await;
    let whole = draft(&tenant, "data.n >= 5", 0).await;
    // The log also holds what Carillon tells of the event types themselves.
    assert!(whole.looked_at >= 22, "{whole:?}");
    assert_eq!((whole.of_type, whole.matched, whole.failed), (21, 15, 1));
    let newest: Vec<_> = ids.iter().rev().take(10).cloned().collect();
    assert_eq!(whole.sample_event_ids, newest);
    assert_eq!((whole.failures[0].message.as_str(), whole.failures[0].count), ("no such key: n", 1));
    // What else is in the log does not count, however much it is: the newest event of the type has no `n`.
    for _ in 0..30 {
        tenant.publish("CUSTOM_ANOTHER", &json!({"n": 1})).await;
    }
    let few = draft(&tenant, "data.n >= 5", 5).await;
    assert_eq!((few.looked_at, few.of_type, few.matched, few.failed), (36, 5, 4, 1), "{few:?}");
    assert_eq!(few.sample_event_ids, newest[..4]);
}

#[tokio::test]
async fn explanations_come_in_pages_and_an_app_sees_its_own() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    tenant.declare(NAME).await;
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(subscribe(&tenant, &n.to_string(), "", 0).await);
    }
    let mut request = ExplainMatchRequest { page_size: 2, ..written(&json!({})) };
    let mut seen = Vec::new();
    loop {
        let page = explain(&tenant, request.clone()).await;
        assert!(page.explanations.len() <= 2);
        seen.extend(page.subscription_ids);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(seen, ids);
    request.page_token = "bm9uc2Vuc2U".to_owned();
    assert_refused(tenant.events().explain_match(request).await, Code::InvalidArgument, "PAGE_TOKEN_INVALID");

    let app = CreateAppRequest { tenant: tenant.slug.clone(), slug: "other".to_owned(), ..Default::default() };
    admin(world).create_app(app).await.expect("an app can be made");
    let key = create_key(world, &tenant.slug, "other", Role::Viewer).await;
    let answer =
        Clients::new(world, 0, &key).events.explain_match(written(&json!({}))).await.expect("a viewer may ask");
    assert_eq!(answer.into_inner(), ExplainMatchResponse::default());
}

/// A filter that takes its time over [`numbers`], and matches nothing.
fn costly() -> String {
    let tests: Vec<String> = (1..=16).map(|n| format!("x == -{n}")).collect();
    format!("data.l.exists(x, {})", tests.join(" || "))
}

fn numbers() -> Value {
    json!({ "l": (0..10_000).collect::<Vec<i32>>() })
}

#[tokio::test]
async fn g15_a_page_of_costly_filters_ends_early_and_the_next_one_goes_on_from_there() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare(NAME).await;
    let mut ids = Vec::new();
    for n in 0..150 {
        ids.push(subscribe(&tenant, &n.to_string(), &costly(), 0).await);
    }
    let mut request = ExplainMatchRequest { page_size: 1_000, ..written(&numbers()) };
    let mut seen = Vec::new();
    for _ in 0..2 {
        let page = explain(&tenant, request.clone()).await;
        let explained = page.explanations.iter().map(|one| one.subscription_id.clone());
        seen.extend(explained);
        assert!(seen.len() < ids.len(), "one page explains no more than its time allows");
        assert!(page.explanations.iter().all(|one| one.reason() == MatchReason::Filter), "{page:?}");
        assert!(!page.next_page_token.is_empty() && !page.explanations.is_empty(), "{page:?}");
        request.page_token = page.next_page_token;
    }
    assert_eq!(seen, ids[..seen.len()]);
}

#[tokio::test]
async fn g15_a_costly_draft_is_tried_on_as_many_events_as_its_time_allows() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare(NAME).await;
    let requests = || (0..10).map(|_| publish_request(NAME, &numbers())).collect();
    for _ in 0..20 {
        tenant.publisher().publish_batch(PublishBatchRequest { requests: requests() }).await.expect("valid");
    }
    let tried = draft(&tenant, &costly(), 0).await;
    assert!((1..200).contains(&tried.of_type) && tried.matched + tried.failed == 0, "{tried:?}");
    assert_eq!(draft(&tenant, "event.source == '/test'", 0).await.matched, 200, "what costs little is tried on all");
}

#[tokio::test]
async fn bad_requests_are_refused() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    tenant.declare(NAME).await;
    let other = world.tenant().await;
    other.declare(NAME).await;
    let foreign = other.try_publish(publish_request(NAME, &json!({}))).await.expect("valid").event_id;
    let drafted = |event_type: &str, filter: &str, last_events| ExplainMatchRequest {
        draft: Some(DraftFilter { event_type: event_type.to_owned(), filter: filter.to_owned(), last_events }),
        ..Default::default()
    };
    let mut unknown = written(&json!({}));
    unknown.event.as_mut().expect("it is set").r#type = "CUSTOM_NONE".to_owned();
    for (request, code, reason) in [
        (ExplainMatchRequest::default(), Code::InvalidArgument, "FIELD_INVALID"),
        (
            ExplainMatchRequest { event_id: foreign.clone(), ..written(&json!({})) },
            Code::InvalidArgument,
            "FIELD_INVALID",
        ),
        (stored("evt_nonsense"), Code::InvalidArgument, "FIELD_INVALID"),
        (stored(&foreign), Code::NotFound, "EVENT_NOT_FOUND"),
        (unknown, Code::NotFound, "EVENT_TYPE_NOT_FOUND"),
        (ExplainMatchRequest { schema_version: -1, ..written(&json!({})) }, Code::InvalidArgument, "FIELD_INVALID"),
        (drafted("CUSTOM_NONE", "true", 0), Code::NotFound, "EVENT_TYPE_NOT_FOUND"),
        (drafted(NAME, "", 0), Code::InvalidArgument, "FIELD_INVALID"),
        (drafted(NAME, "data.n >", 0), Code::InvalidArgument, "FILTER_INVALID"),
        (drafted(NAME, "true", -1), Code::InvalidArgument, "FIELD_INVALID"),
    ] {
        let shown = format!("{request:?}");
        let status = tenant.events().explain_match(request).await.expect_err(&shown);
        assert_eq!((status.code(), crate::harness::tenant::reason(&status).as_str()), (code, reason), "{shown}");
    }
}
