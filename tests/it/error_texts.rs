//! What refusals say beside their reason: the bound that was passed, the place in the filter, nothing that is not so.

use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::json;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::tenant::{assert_refused, publish_request};
use crate::harness::{Tenant, World, within};
use carillon::proto::cloudevents::cloud_event::Data;
use carillon::proto::internal::PublishRequest;
use carillon::proto::public::ListEventsRequest;

async fn tenant() -> Tenant {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_PLAIN").await;
    tenant
}

fn text_event(event_type: &str, text: String) -> PublishRequest {
    let mut request = publish_request(event_type, &json!({}));
    request.event.as_mut().expect("it is set").data = Some(Data::TextData(text));
    request
}

fn metadata(status: &Status, key: &str) -> Option<String> {
    status.get_details_error_info().expect("it is set").metadata.get(key).cloned()
}

#[tokio::test]
async fn an_event_and_a_message_that_are_too_large_are_told_with_the_bound_that_they_pass() {
    let tenant = tenant().await;
    let letters = |bytes: usize| format!("\"{}\"", "a".repeat(bytes));
    let event = tenant.try_publish(text_event("CUSTOM_PLAIN", letters(1024 * 1024))).await;
    let event = assert_refused(event, Code::InvalidArgument, "EVENT_TOO_LARGE");
    assert!(event.message().contains("the event is larger than 1048576 bytes"), "{event:?}");
    assert_eq!(metadata(&event, "limit_bytes").as_deref(), Some("1048576"));
    let message = tenant.try_publish(text_event("CUSTOM_PLAIN", letters(5 * 1024 * 1024))).await;
    let message = assert_refused(message, Code::InvalidArgument, "EVENT_TOO_LARGE");
    assert!(message.message().contains("the request is larger than 4194304 bytes"), "{message:?}");
    assert_eq!(metadata(&message, "limit_bytes").as_deref(), Some("4194304"));
    let large = ListEventsRequest { filter: letters(5 * 1024 * 1024), ..Default::default() };
    let large = assert_refused(tenant.events().list_events(large).await, Code::InvalidArgument, "FIELD_INVALID");
    assert!(large.message().starts_with("the request is larger than 4194304 bytes"), "{large:?}");
}

#[tokio::test]
async fn data_that_is_no_json_is_refused_alike_with_and_without_a_schema() {
    let tenant = tenant().await;
    tenant.declare_with_schema("CUSTOM_SCHEMA", r#"{"type":"object"}"#).await;
    let mut messages = Vec::new();
    for event_type in ["CUSTOM_PLAIN", "CUSTOM_SCHEMA"] {
        let refused = tenant.try_publish(text_event(event_type, "{\"a\": nope}".to_owned())).await;
        let refused = assert_refused(refused, Code::InvalidArgument, "FIELD_INVALID");
        assert!(refused.message().contains("at byte 7"), "{refused:?}");
        messages.push(refused.message().to_owned());
    }
    assert_eq!(messages[0], messages[1]);
    let refused = tenant.try_publish(text_event("CUSTOM_SCHEMA", "[]".to_owned())).await;
    assert_refused(refused, Code::InvalidArgument, "SCHEMA_VIOLATION");
}

#[tokio::test]
async fn filters_that_hold_nul_or_can_never_be_true_are_refused_with_their_column() {
    let tenant = tenant().await;
    for (filter, column) in [("data.a == 'x\0'", "13"), ("1 + 1", "3"), ("\"x\"", "1"), ("data.a &&", "10")] {
        let mut request = tenant.subscribe_request("CUSTOM_PLAIN", "http://127.0.0.1:1/");
        request.filter = filter.to_owned();
        let refused = tenant.events().subscribe(request).await;
        let refused = assert_refused(refused, Code::InvalidArgument, "FILTER_INVALID");
        assert_eq!(metadata(&refused, "column").as_deref(), Some(column), "{filter:?}: {refused:?}");
        let request = ListEventsRequest { filter: filter.to_owned(), ..Default::default() };
        let refused = tenant.events().list_events(request).await;
        let refused = assert_refused(refused, Code::InvalidArgument, "FILTER_INVALID");
        assert_eq!(metadata(&refused, "column").as_deref(), Some(column), "{filter:?}: {refused:?}");
    }
}

#[tokio::test]
async fn names_that_are_near_are_told_only_where_there_are_any() {
    let tenant = tenant().await;
    let refused = tenant.try_publish(publish_request("CUSTOM_PLAIM", &json!({}))).await;
    let refused = assert_refused(refused, Code::NotFound, "EVENT_TYPE_NOT_FOUND");
    assert_eq!(metadata(&refused, "near").as_deref(), Some("CUSTOM_PLAIN"));
    let refused = tenant.try_publish(publish_request("ZZZZZZZZZZZZZZZZ", &json!({}))).await;
    let refused = assert_refused(refused, Code::NotFound, "EVENT_TYPE_NOT_FOUND");
    assert_eq!(metadata(&refused, "near"), None);
}

/// The `grpc-status` and `grpc-message` that a path answers a message with.
async fn raw(tenant: &Tenant, path: &str, message: &'static [u8]) -> (String, String) {
    let address = &World::shared().await.replicas[0].addresses.public;
    let client: Client<_, Full<bytes::Bytes>> = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let request = http::Request::post(format!("http://{address}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", format!("Bearer {}", tenant.key))
        .body(Full::new(bytes::Bytes::from_static(message)))
        .expect("a request");
    let response = within("the call", client.request(request)).await.expect("an answer");
    let mut headers = response.headers().clone();
    let body = response.into_body().collect().await.expect("a body");
    headers.extend(body.trailers().cloned().unwrap_or_default());
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    (text("grpc-status"), text("grpc-message"))
}

#[tokio::test]
async fn an_unknown_method_and_an_unreadable_message_are_told_as_what_they_are() {
    let tenant = tenant().await;
    for path in ["/no.such.Service/Method", "/carillon.v1.EventService/NoSuchMethod"] {
        let (status, message) = raw(&tenant, path, &[0; 5]).await;
        assert_eq!(status, "12", "{path}");
        assert!(
            message.contains("this%20port%20has%20no%20method") || message.contains("this port has no method"),
            "{message}"
        );
    }
    let (status, message) = raw(&tenant, "/carillon.v1.EventService/ListEvents", &[0, 0, 0, 0, 2, 0xff, 0xff]).await;
    assert_eq!(status, "3");
    assert!(message.starts_with("the"), "{message}");
}
