//! F: filters that are none, cost too much, or fail when they are evaluated.

use carillon::proto::public::{
    ListEventsRequest, SubscribeRequest, Subscription, UpdateSubscriptionRequest, WatchFilter, WatchRequest,
};
use serde_json::json;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::Expected::{Fine, Refused};
use super::{Row, TYPE, at_most, quickest};
use crate::harness::tenant::publish_request;
use crate::harness::{Receiver, eventually};
use crate::operations::get;

#[tokio::test]
async fn f1_filters_that_cannot_be_run_are_refused_with_their_column() {
    let mut row = Row::open().await;
    let request = row.tenant.subscribe_request(TYPE, "http://127.0.0.1:9/hook");
    let made =
        row.tenant.events().subscribe(request).await.expect("valid").into_inner().subscription.expect("it is set");
    // Each step doubles the text of the one before.
    let doubling =
        (0..20).fold("data.a".to_owned(), |text, n| format!("[{text}].map(x{n}, x{n} + x{n})[0]")) + " == ''";
    let filters = [
        "data.a ==".to_owned(),
        "data.a && (".to_owned(),
        "'unterminated".to_owned(),
        "\"unterminated".to_owned(),
        "nonsense(data)".to_owned(),
        "unknown.field == 1".to_owned(),
        "data.a = 1".to_owned(),
        "data.a == 1;".to_owned(),
        "\u{1f514}".to_owned(),
        r"data.a == '\uD800'".to_owned(),
        ")".to_owned(),
        format!("data.a == '{}'", "x".repeat(5_000)),
        format!("{}1{}", "(".repeat(2_000), ")".repeat(2_000)),
        format!("{}1{}", "[".repeat(1_000), "]".repeat(1_000)),
        format!("{}true", "!".repeat(3_000)),
        "[1,2].all(a, [1,2].all(b, [1,2].all(c, a + b + c > 0)))".to_owned(),
        "data.list.map(a, data.list.map(b, a + b)).size() > 0".to_owned(),
        format!("data.a.matches('{}')", "((a{1,100}){1,100}){1,100}"),
        "data.a.matches('(')".to_owned(),
        "data.a.matches('(?=a)')".to_owned(),
        format!("{}'a'{}", "(".repeat(200), " + 'a')".repeat(200)),
        doubling,
        vec!["event.source.matches('[\\\\pL\\\\pN]a1b1c1')"; 16].join(" || "),
        format!("data.a.matches('(?i)[{}&&a]')", "\\\\p{any}".repeat(25)),
    ];
    for filter in &filters {
        let given = |status: &Status| {
            let metadata = status.get_details_error_info().map(|info| info.metadata).unwrap_or_default();
            metadata.get("column").is_some_and(|column| column.parse::<u32>().is_ok_and(|column| column >= 1))
        };
        let subscribe = SubscribeRequest {
            filter: filter.clone(),
            ..row.tenant.subscribe_request(TYPE, "http://127.0.0.1:9/other")
        };
        let update = UpdateSubscriptionRequest {
            subscription: Some(Subscription { id: made.id.clone(), filter: filter.clone(), ..Default::default() }),
            update_mask: Some(pbjson_types::FieldMask { paths: vec!["filter".to_owned()] }),
            ..Default::default()
        };
        let list = ListEventsRequest { filter: filter.clone(), ..Default::default() };
        let named = WatchFilter { name: "a".to_owned(), filter: filter.clone(), ..Default::default() };
        let watch = WatchRequest { filters: vec![named], ..Default::default() };
        let mut events = row.tenant.events();
        let (_, taken) = quickest(async || events.subscribe(subscribe.clone()).await).await;
        row.ensure(filter, taken < at_most(50), format!("refused after {taken:?}"));
        let answers = [
            ("filter", events.subscribe(subscribe).await.err()),
            ("subscription.filter", events.update_subscription(update).await.err()),
            ("filter", events.list_events(list).await.err()),
            ("filters[0].filter", events.watch(watch).await.err()),
        ];
        for (field, answer) in answers {
            let column = answer.as_ref().is_some_and(given);
            row.ensure(filter, column, format!("{field}: without a column: {answer:?}"));
            let plain = answer.as_ref().is_some_and(|status| !status.message().contains(" { "));
            row.ensure(filter, plain, format!("{field}: tells how it was made: {answer:?}"));
            let refused = Refused(Code::InvalidArgument, "FILTER_INVALID", field);
            row.check(filter, answer.map_or(Ok(()), Err), refused);
        }
    }
    row.close().await;
}

#[tokio::test]
async fn f2_filters_that_fail_at_run_time_do_not_match_and_harm_nobody() {
    let mut row = Row::open().await;
    let receiver = Receiver::start().await;
    let filters = [
        "1 / data.zero == 1",
        "1 % data.zero == 1",
        "data.absent.deeper == 1",
        "data.text > 1",
        "data.list[7] == 1",
        "9223372036854775807 + data.one > 0",
        "data.text.matches(data.text)",
        "int(data.text) == 1",
        "data",
    ];
    let mut refused_at_save = 0;
    for (index, filter) in filters.iter().enumerate() {
        let request = SubscribeRequest {
            filter: (*filter).to_owned(),
            ..row.tenant.subscribe_request(TYPE, &receiver.url(&format!("/bad-{index}")))
        };
        // Some of them can be seen through before they ever run, which is as good.
        match row.tenant.events().subscribe(request).await {
            Ok(_) => {}
            Err(status) => {
                refused_at_save += 1;
                row.ensure(filter, crate::harness::tenant::reason(&status) == "FILTER_INVALID", &status);
            }
        }
    }
    row.ensure("the filters", refused_at_save < 4, format!("{refused_at_save} were refused"));
    row.tenant.subscribe(TYPE, &receiver, "/good").await;
    let before = failures(&row).await;
    let data = json!({"zero": 0, "one": 1, "text": "a", "list": [1]});
    for _ in 0..3 {
        let answer = row.publish("an event", publish_request(TYPE, &data), Fine).await;
        let fired = answer.map(|answer| answer.invocations.len());
        row.ensure("an event", fired == Some(1), format!("{fired:?} subscriptions fire"));
    }
    receiver.receives("/good", 3).await;
    eventually("the failures are counted", || async {
        let now = failures(&row).await;
        if now >= before + 3.0 { Ok(()) } else { Err((before, now)) }
    })
    .await;
    for (index, filter) in filters.iter().enumerate() {
        let received = receiver.received(&format!("/bad-{index}"));
        row.ensure(filter, received.is_empty(), "it fired");
    }
    row.close().await;
}

/// How many filters have failed, on all replicas.
async fn failures(row: &Row) -> f64 {
    let mut sum = 0.0;
    for replica in &row.world.replicas {
        let (_, text) = get(&format!("http://{}/metrics", replica.addresses.ops)).await;
        let lines = text.lines().filter(|line| line.starts_with("carillon_filter_errors_total{"));
        sum += lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>();
    }
    sum
}
