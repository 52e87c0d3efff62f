//! G15: everything that grows has a bound with a name, and a defined answer at the bound. Each setting here is as low as it goes.

use carillon::proto::public::{
    AddEventTypeSchemaRequest, CreateEventTypeRequest, UpdateWatchRequest, WatchFilter, WatchRequest,
};
use serde_json::json;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::tenant::{assert_refused, publish_request};
use crate::harness::{Tenant, World};

const SETTINGS: &str = "[limits]\nsubscriptions_max = 1\nevent_types_max = 1\nschema_versions_max = 1\n\
    [watch]\nstreams_per_credential_max = 1\n\
    [publish]\nevent_bytes_max = 1024\n[server]\nmessage_bytes_max = 8192";

/// Fails unless a call was refused at a bound that it names, with the number.
pub fn at_bound<T: std::fmt::Debug>(result: Result<T, Status>, named: &str, limit: &str) {
    let status = assert_refused(result, Code::ResourceExhausted, "QUOTA_EXCEEDED");
    let info = status.get_details_error_info().expect("it is set");
    assert_eq!(info.metadata["quota"], named, "{info:?}");
    assert_eq!(info.metadata["limit"], limit, "{named}: {info:?}");
    let violations = status.get_details_quota_failure().expect("it is set").violations;
    assert!(!violations.is_empty(), "{named}: no QuotaFailure");
}

async fn declare(tenant: &Tenant, name: &str) -> Result<(), Status> {
    let request = CreateEventTypeRequest { name: name.to_owned(), schema: "{}".to_owned(), ..Default::default() };
    tenant.types().create_event_type(request).await.map(drop)
}

#[tokio::test]
async fn each_bound_has_a_name_and_an_answer() {
    let world = World::start_with(1, SETTINGS).await;
    let tenant = world.tenant().await;
    declare(&tenant, "CUSTOM_ONE").await.expect("the first one");
    at_bound(declare(&tenant, "CUSTOM_TWO").await, "limits.event_types_max", "1");
    let request = AddEventTypeSchemaRequest {
        event_type: "CUSTOM_ONE".to_owned(),
        schema: "{\"title\":\"b\"}".to_owned(),
        ..Default::default()
    };
    at_bound(tenant.types().add_event_type_schema(request).await, "limits.schema_versions_max", "1");
    let subscribe = |path: &str| tenant.subscribe_request("CUSTOM_ONE", &format!("http://127.0.0.1:9/{path}"));
    tenant.events().subscribe(subscribe("a")).await.expect("the first one");
    at_bound(tenant.events().subscribe(subscribe("b")).await, "limits.subscriptions_max", "1");

    let mut first = tenant.events().watch(WatchRequest::default()).await.expect("the first one").into_inner();
    at_bound(tenant.events().watch(WatchRequest::default()).await, "watch.streams_per_credential_max", "1");
    let created = first.message().await.expect("it lives").expect("it goes on");
    let Some(carillon::proto::public::watch_response::Kind::Created(created)) = created.kind else {
        panic!("unexpected {created:?}")
    };
    let add: Vec<_> = (0..1_000)
        .map(|n| WatchFilter { name: format!("f{n}"), filter: "true".to_owned(), ..Default::default() })
        .collect();
    let request = UpdateWatchRequest { watch_id: created.watch_id, add, ..Default::default() };
    tenant.events().update_watch(request).await.expect_err("a thousand filters are too many");

    let large = publish_request("CUSTOM_ONE", &json!("x".repeat(1_025)));
    let status = assert_refused(tenant.try_publish(large).await, Code::InvalidArgument, "EVENT_TOO_LARGE");
    assert_eq!(status.get_details_error_info().expect("it is set").metadata["limit_bytes"], "1024");
    let larger = publish_request("CUSTOM_ONE", &json!("x".repeat(9_000)));
    assert_refused(tenant.try_publish(larger).await, Code::InvalidArgument, "EVENT_TOO_LARGE");
    assert_refused(declare(&tenant, &"x".repeat(9_000)).await, Code::InvalidArgument, "FIELD_INVALID");
    // What is within the bounds goes on.
    tenant.publish("CUSTOM_ONE", &json!({})).await;
}
