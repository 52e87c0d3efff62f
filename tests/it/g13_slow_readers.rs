//! G13: slow readers hurt only themselves. A reader that takes nothing for the stall limit is ended with SLOW_CONSUMER, and its last
//! cursor goes on where it stopped.

use bytes::{Buf as _, Bytes};
use carillon::proto::public::watch_request::Start;
use carillon::proto::public::watch_response::Kind;
use carillon::proto::public::{WatchRequest, WatchResponse};
use h2::client::SendRequest;
use http::Request;
use prost::Message as _;
use serde_json::json;
use tokio::net::TcpStream;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::tenant::{assert_refused, millis};
use crate::harness::{Tenant, World, eventually, within};
use crate::watch::{positions, watch};
use crate::websocket_ends::beat;

/// A client that decides by itself when it reads: an HTTP/2 connection whose windows are opened by hand.
async fn connect(world: &World) -> SendRequest<Bytes> {
    let tcp = TcpStream::connect(&world.replicas[0].addresses.public).await.expect("the public port accepts");
    let (client, connection) = h2::client::handshake(tcp).await.expect("HTTP/2");
    tokio::spawn(connection);
    client.ready().await.expect("a connection")
}

/// Opens a watch of which nothing is read.
async fn open(client: &mut SendRequest<Bytes>, tenant: &Tenant, request: &WatchRequest) -> h2::RecvStream {
    let http = Request::post("http://localhost/carillon.v1.EventService/Watch")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", format!("Bearer {}", tenant.key))
        .body(())
        .expect("a request");
    let (response, mut sender) = client.send_request(http, false).expect("a stream");
    let mut body = vec![0];
    body.extend(u32::try_from(request.encoded_len()).expect("small").to_be_bytes());
    request.encode(&mut body).expect("room");
    sender.send_data(body.into(), true).expect("sent");
    let response = within("the watch's headers", response).await.expect("a response");
    assert_eq!(response.headers().get("grpc-status"), None, "{response:?}");
    response.into_body()
}

/// Reads a stream to its end: every message, and the status.
async fn read_all(body: &mut h2::RecvStream) -> (Vec<WatchResponse>, Status) {
    let mut bytes = bytes::BytesMut::new();
    while let Some(chunk) = within("the rest of a stalled watch", body.data()).await {
        let chunk = chunk.expect("the stream is not broken");
        body.flow_control().release_capacity(chunk.len()).expect("it was received");
        bytes.extend_from_slice(&chunk);
    }
    let trailers = within("the status", body.trailers()).await.expect("readable").expect("there are some");
    let messages = whole_messages(&mut bytes);
    assert!(bytes.is_empty(), "the last message is whole");
    (messages, Status::from_header_map(&trailers).expect("a status"))
}

/// Takes the messages that have come whole.
fn whole_messages(bytes: &mut bytes::BytesMut) -> Vec<WatchResponse> {
    let mut messages = Vec::new();
    while let Some((&[flag, a, b, c, d], rest)) = bytes.split_first_chunk() {
        assert_eq!(flag, 0);
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if rest.len() < length {
            break;
        }
        bytes.advance(5);
        messages.push(WatchResponse::decode(bytes.split_to(length)).expect("a message"));
    }
    messages
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_ended_as_slow_and_its_cursor_goes_on() {
    let settings = "[watch]\nstall_timeout_ms = 500\nstreams_per_tenant_max = 2\n";
    let world = World::start_with(1, settings).await;
    let tenant = world.tenant().await;
    tenant.declare("CUSTOM_FLOOD").await;
    let request = WatchRequest { start: Some(Start::Earliest(true)), ..Default::default() };
    let mut client = connect(&world).await;
    let mut stalled = open(&mut client, &tenant, &request).await;
    // Another stream is read: it must not notice.
    let mut reader = watch(&tenant, 0, request.clone()).await;
    let third = tenant.events().watch(request.clone()).await.map(|_| ());
    let status = assert_refused(third, Code::ResourceExhausted, "QUOTA_EXCEEDED");
    let quota = status.get_details_quota_failure().expect("it is set");
    assert_eq!(quota.violations[0].subject, "watch.streams_per_tenant_max");

    // Far more than a window and a message hold.
    let text = "x".repeat(60_000);
    for n in 0..40 {
        tenant.publish("CUSTOM_FLOOD", &json!({"n": n, "text": text})).await;
    }
    // The declaration of the type is the log's first event.
    assert_eq!(positions(&mut reader, 41).await.0, (1..=41).collect::<Vec<i64>>(), "the other reader is served");
    // A place among the open streams is free again once the stalled one has been given up.
    let again = eventually("the stalled watch is given up", || async {
        tenant.events().watch(request.clone()).await.map_err(|status| status.code())
    })
    .await;
    drop(again);

    let (messages, status) = read_all(&mut stalled).await;
    assert_refused(Err::<(), _>(status.clone()), Code::ResourceExhausted, "SLOW_CONSUMER");
    let mut seen = Vec::new();
    let mut closing = None;
    for message in messages {
        match message.kind.expect("it is set") {
            Kind::Events(events) => {
                seen.extend(events.events.into_iter().map(|watched| watched.event.expect("it is set").position));
            }
            Kind::Closing(last) => closing = Some(last),
            Kind::Created(_) | Kind::Bookmark(_) => {}
            other => panic!("unexpected {other:?}"),
        }
    }
    let closing = closing.expect("it says goodbye");
    assert_eq!(closing.reason, "SLOW_CONSUMER");
    let in_status = status.get_details_error_info().expect("it is set").metadata["resume_cursor"].clone();
    assert_eq!(in_status, closing.resume_cursor);
    assert!(seen.len() < 41, "it was ended before it had everything");
    let resume = WatchRequest { start: Some(Start::Cursor(closing.resume_cursor)), ..Default::default() };
    // The stream that was only tried may still count for a moment.
    let resumed = eventually("a place for the resumed watch", || async {
        tenant.events().watch(resume.clone()).await.map_err(|status| status.code())
    })
    .await;
    let mut resumed = resumed.into_inner();
    let first = within("the resumed watch", resumed.message()).await.expect("it lives").expect("it goes on");
    assert!(matches!(first.kind, Some(Kind::Created(_))), "{first:?}");
    seen.extend(positions(&mut resumed, 41 - seen.len()).await.0);
    assert_eq!(seen, (1..=41).collect::<Vec<i64>>(), "nothing lost, nothing twice");
}

#[tokio::test]
async fn g13_a_watch_that_is_read_slowly_all_the_time_lasts_however_long_its_messages_are() {
    // A message takes several times the limit.
    let settings = "[watch]\nstall_timeout_ms = 2000\nmessage_bytes_max = 2000000\n";
    let world = World::start_with(1, settings).await;
    let tenant = world.tenant().await;
    tenant.declare("CUSTOM_FLOOD").await;
    let text = "x".repeat(60_000);
    for n in 0..30 {
        tenant.publish("CUSTOM_FLOOD", &json!({"n": n, "text": text})).await;
    }
    let start = Some(Start::Earliest(true));
    let request = WatchRequest { start, bookmark_interval: Some(millis(100)), ..Default::default() };
    let mut client = connect(&world).await;
    let mut body = open(&mut client, &tenant, &request).await;
    let mut beat = beat(&world).await;
    let mut bytes = bytes::BytesMut::new();
    let mut seen = Vec::new();
    // The declaration of the type is the log's first event.
    for count in [31, 32] {
        while seen.len() < count {
            within("the beat", beat.message()).await.expect("it lives").expect("it goes on");
            // No more than a window is ever on its way.
            for _ in 0..2 {
                let chunk = within("some of the watch", body.data()).await.expect("it goes on").expect("it lives");
                body.flow_control().release_capacity(chunk.len()).expect("it was received");
                bytes.extend_from_slice(&chunk);
            }
            for message in whole_messages(&mut bytes) {
                match message.kind.expect("it is set") {
                    Kind::Events(events) => {
                        let taken = events.events.into_iter().map(|watched| watched.event.expect("it is set").position);
                        seen.extend(taken);
                    }
                    Kind::Created(_) | Kind::Bookmark(_) => {}
                    other => panic!("unexpected {other:?}"),
                }
            }
        }
        // What comes last shows that the watch goes on.
        tenant.publish("CUSTOM_FLOOD", &json!({"text": text})).await;
    }
    assert_eq!(seen, (1..=32).collect::<Vec<i64>>());
}

#[tokio::test]
async fn streams_are_counted_per_credential() {
    let world = World::start_with(1, "[watch]\nstreams_per_credential_max = 1\n").await;
    let tenant = world.tenant().await;
    let request = WatchRequest::default();
    let first = watch(&tenant, 0, request.clone()).await;
    let second = tenant.events().watch(request.clone()).await.map(|_| ());
    let status = assert_refused(second, Code::ResourceExhausted, "QUOTA_EXCEEDED");
    let quota = status.get_details_quota_failure().expect("it is set");
    assert_eq!(quota.violations[0].subject, "watch.streams_per_credential_max");
    let viewer = carillon::proto::internal::Role::Viewer;
    let other = crate::harness::tenant::create_key(&world, &tenant.slug, "", viewer).await;
    let mut others = crate::harness::tenant::Clients::new(&world, 0, &other).events;
    others.watch(request.clone()).await.expect("another key has its own");
    drop(first);
    eventually("the ended watch no longer counts", || async {
        tenant.events().watch(request.clone()).await.map(|_| ()).map_err(|status| status.code())
    })
    .await;
}

/// Reads a watch to its end: the reason in `Closing`, and the status.
async fn end_of(mut stream: tonic::Streaming<WatchResponse>) -> (Option<String>, Status) {
    let mut said = None;
    loop {
        match within("the end of a watch", stream.message()).await {
            Ok(Some(WatchResponse { kind: Some(Kind::Closing(closing)), .. })) => said = Some(closing.reason),
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ends with a reason"),
            Err(status) => return (said, status),
        }
    }
}

#[tokio::test]
async fn a_watch_ends_with_its_credential_on_every_replica() {
    use crate::harness::tenant::{Clients, admin};
    use carillon::proto::internal::{
        CreateApiKeyRequest, CreateAppRequest, DeleteAppRequest, RevokeApiKeyRequest, Role,
    };

    let world = World::start_with(2, "[watch]\ncredential_check_ms = 200\n").await;
    let tenant = world.tenant().await;
    let app = CreateAppRequest { tenant: tenant.slug.clone(), slug: "gone".to_owned(), ..Default::default() };
    admin(&world).create_app(app).await.expect("an app");
    let create = |app: &str, expire_time| CreateApiKeyRequest {
        tenant: tenant.slug.clone(),
        app: app.to_owned(),
        role: Role::Viewer.into(),
        expire_time,
        ..Default::default()
    };
    let soon = carillon::clock::now() + chrono::TimeDelta::seconds(8);
    let mut keys = Vec::new();
    for request in [create("", None), create("", Some(soon.into())), create("gone", None), create("", None)] {
        keys.push(admin(&world).create_api_key(request).await.expect("a key").into_inner());
    }
    let mut ends = Vec::new();
    for key in &keys[..3] {
        for replica in [0, 1] {
            let mut client = Clients::new(&world, replica, &key.secret).events;
            ends.push(end_of(client.watch(WatchRequest::default()).await.expect("a watch").into_inner()));
        }
    }
    let mut stays =
        Clients::new(&world, 1, &keys[3].secret).events.watch(WatchRequest::default()).await.expect("a watch");
    let id = keys[0].api_key.as_ref().expect("it is set").id.clone();
    let revoke = RevokeApiKeyRequest { tenant: tenant.slug.clone(), api_key_id: id, ..Default::default() };
    admin(&world).revoke_api_key(revoke).await.expect("revoked");
    let delete = DeleteAppRequest { tenant: tenant.slug.clone(), app: "gone".to_owned(), ..Default::default() };
    admin(&world).delete_app(delete).await.expect("deleted");
    for (said, status) in futures::future::join_all(ends).await {
        assert_eq!(said.as_deref(), Some("CREDENTIAL_INVALID"));
        assert_refused(Err::<(), _>(status), Code::Unauthenticated, "CREDENTIAL_INVALID");
    }
    let first = within("the other watch", stays.get_mut().message()).await.expect("it lives").expect("it goes on");
    assert!(matches!(first.kind, Some(Kind::Created(_))), "{first:?}");
}

#[tokio::test]
async fn a_stream_that_nobody_reads_is_reset_and_a_connection_that_carries_nothing_else_is_closed() {
    let settings = "[watch]\nstall_timeout_ms = 300\n[server]\nanswer_timeout_ms = 500\n";
    let world = World::start_with(1, settings).await;
    let tenant = world.tenant().await;
    tenant.declare("CUSTOM_FLOOD").await;
    let text = "x".repeat(60_000);
    for n in 0..40 {
        tenant.publish("CUSTOM_FLOOD", &json!({"n": n, "text": text})).await;
    }
    let everything = WatchRequest { start: Some(Start::Earliest(true)), ..Default::default() };
    let tcp = TcpStream::connect(&world.replicas[0].addresses.public).await.expect("the public port accepts");
    // The connection has room for more than the stream that takes nothing, so that the other one can be told that it stands.
    let mut wide = h2::client::Builder::new();
    wide.initial_connection_window_size(1 << 20);
    let (client, connection) = wide.handshake::<_, Bytes>(tcp).await.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let mut client = client.ready().await.expect("a connection");
    let mut stalled = open(&mut client, &tenant, &everything).await;
    // Another stream of the connection, which has nothing to take, is no stall.
    let idle = open(&mut client, &tenant, &WatchRequest::default()).await;
    let mut taken = 0;
    let reset = eventually("the stalled stream is reset", || {
        // Looks without opening the window, so nothing more is sent.
        let looked = futures::FutureExt::now_or_never(stalled.data());
        let seen = match looked {
            None => Err(format!("{taken} bytes")),
            Some(Some(Ok(chunk))) => {
                taken += chunk.len();
                Err(format!("{taken} bytes"))
            }
            Some(Some(Err(error))) => Ok(error),
            Some(None) => panic!("it ends with a reset"),
        };
        async move { seen }
    })
    .await;
    assert_eq!(reset.reason(), Some(h2::Reason::CANCEL), "{reset:?}");
    assert!(!connection.is_finished(), "the connection carries another stream");
    drop(idle);
    // One that is alone takes its connection with it.
    let alone = open(&mut client, &tenant, &everything).await;
    let ended = within("the connection is closed", connection).await.expect("no panic");
    drop((ended, alone, stalled));
    positions(&mut watch(&tenant, 0, everything).await, 41).await;
}
