//! Bad input at the doors: connections that say nothing or nonsense, calls that are cancelled anywhere. The same
//! processes serve on, and nothing is lost.

use std::time::Duration;

use bytes::Bytes;
use carillon::proto::internal::PublishResponse;
use carillon::proto::public::ListEventsRequest;
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::tenant::{publish_request, reason};
use crate::harness::{Tenant, World, within};

async fn tenant_with_type() -> Tenant {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_HOSTILE").await;
    tenant
}

/// Sends bytes and reads until the server closes.
async fn answer_to(address: &str, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.expect("the port accepts");
    // A server that has closed already is what some of these bytes are meant to cause.
    let _closed_already = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _reset = within("the server closes", stream.read_to_end(&mut answer)).await;
    answer
}

/// What TLS says to what is no TLS: the fatal alert decode_error. Source: RFC 8446, sections 5.1 and 6.
const NO_TLS: [u8; 7] = [21, 3, 3, 0, 2, 2, 50];

#[tokio::test]
async fn nonsense_on_the_internal_port_is_closed_and_others_are_served() {
    let tenant = tenant_with_type().await;
    let address = &World::shared().await.replicas[0].addresses.internal;
    let noise: Vec<u8> = (0..4_096_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for bytes in [&noise[..], b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let sent = String::from_utf8_lossy(&bytes[..10]);
        assert_eq!(answer_to(address, bytes).await, NO_TLS, "{sent}");
    }
    assert_eq!(answer_to(address, b"").await, b"", "nothing is said to who says nothing");
    tenant.publish("CUSTOM_HOSTILE", &json!({})).await;
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed_on_the_public_port() {
    let tenant = tenant_with_type().await;
    let address = &World::shared().await.replicas[0].addresses.public;
    answer_to(address, b"").await;
    answer_to(address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    tenant.events().list_events(ListEventsRequest::default()).await.expect("others are served");
}

#[tokio::test]
async fn odd_deadlines_are_clamped_or_exceeded() {
    let tenant = tenant_with_type().await;
    let address = &World::shared().await.replicas[0].addresses.public;
    // A client library would end the call itself; what counts here is the server's answer.
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    for (timeout, status) in
        [("1n", "4"), ("99999999H", "0"), ("99999999999999999999S", "0"), ("soon", "0"), ("20S", "0")]
    {
        let request = http::Request::post(format!("http://{address}/carillon.v1.EventService/ListEvents"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("grpc-timeout", timeout)
            .header("authorization", format!("Bearer {}", tenant.key))
            .body(Full::new(Bytes::from_static(&[0; 5])))
            .expect("a request");
        let response = within("the call", client.request(request)).await.expect("an answer");
        let in_header = response.headers().get("grpc-status").cloned();
        let body = response.into_body().collect().await.expect("a body");
        let status_of = in_header.or_else(|| body.trailers().and_then(|trailers| trailers.get("grpc-status").cloned()));
        assert_eq!(status_of.expect("a status").to_str().ok(), Some(status), "{timeout}");
    }
}

#[tokio::test]
async fn publishes_cancelled_anywhere_leave_the_service_whole() {
    let tenant = tenant_with_type().await;
    for n in 0..200_u32 {
        let mut request = publish_request("CUSTOM_HOSTILE", &json!({"n": n}));
        request.idempotency_key = format!("cancelled-{n}");
        let mut publisher = tenant.publishers[n as usize % 2].clone();
        // Dropping the call resets its stream; the moments spread over the whole life of a publish.
        let _cancelled =
            tokio::time::timeout(Duration::from_micros(u64::from(n) * 50), publisher.publish(request)).await;
    }
    // Each outcome can be read with its key, and every event is there once.
    let mut answers: Vec<PublishResponse> = Vec::new();
    for n in 0..200_u32 {
        let mut request = publish_request("CUSTOM_HOSTILE", &json!({"n": n}));
        request.idempotency_key = format!("cancelled-{n}");
        answers.push(tenant.try_publish(request).await.expect("the pool still works"));
    }
    let mut positions: Vec<i64> = answers.iter().map(|answer| answer.position).collect();
    positions.sort_unstable();
    let first = positions[0];
    assert_eq!(positions, (first..first + 200).collect::<Vec<i64>>(), "an event is missing or there twice");
}

#[tokio::test]
async fn changes_cancelled_anywhere_leave_the_service_whole() {
    const SUBSCRIPTIONS: u64 = 100;
    let tenant = tenant_with_type().await;
    let request = |n: u64| tenant.subscribe_request("CUSTOM_HOSTILE", &format!("http://127.0.0.1:9/{n}"));
    for n in 0..SUBSCRIPTIONS {
        let mut events = tenant.at[usize::from(n % 2 == 0)].events.clone();
        let _cancelled = tokio::time::timeout(Duration::from_micros(n * 80), events.subscribe(request(n))).await;
    }
    // Each is there or is not, and can be made where it is not.
    for n in 0..SUBSCRIPTIONS {
        if let Err(status) = tenant.events().subscribe(request(n)).await {
            assert_eq!(reason(&status), "ALREADY_SUBSCRIBED", "{status:?}");
        }
    }
    for publisher in &tenant.publishers {
        let published = publisher.clone().publish(publish_request("CUSTOM_HOSTILE", &json!({}))).await;
        let fired = published.expect("the pool still works").into_inner().invocations.len();
        assert_eq!(fired as u64, SUBSCRIPTIONS, "one is missing or there twice");
    }
}
