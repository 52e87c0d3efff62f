//! The bounds of the doors: connections, calls, headers, messages, silence and slowness, each with its setting and its answer; and
//! TLS on the public port.

use std::fs;
use std::net::SocketAddr;

use carillon::proto::internal::Role;
use carillon::proto::internal::publish_service_client::PublishServiceClient;
use carillon::proto::public::event_service_client::EventServiceClient;
use carillon::proto::public::{ListEventsRequest, WatchRequest};
use futures::future::join_all;
use futures::stream::{self, BoxStream, StreamExt as _};
use http::uri::PathAndQuery;
use rustix::process::Signal;
use rustls::SupportedProtocolVersion;
use rustls_pki_types::ServerName;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Duration, interval};
use tokio_rustls::TlsConnector;
use tonic::Code;
use tonic::service::interceptor::InterceptedService;
use tonic_prost::ProstCodec;

use crate::harness::authority::{Speaks, client};
use crate::harness::connect::{Bearer, plain, tls};
use crate::harness::raw::{
    DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PREFACE, RST_STREAM, Raw, SETTINGS, call_fields, fields, frame,
};
use crate::harness::tenant::{Clients, assert_refused, create_key, publish_request};
use crate::harness::{Tenant, World, eventually, within};
use crate::watch::{positions, watch};

pub const LIST: &str = "/carillon.v1.EventService/ListEvents";
const WATCH: &str = "/carillon.v1.EventService/Watch";
pub const HEALTH_WATCH: &str = "/grpc.health.v1.Health/Watch";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
const OLD: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];

pub async fn world(settings: &str) -> (World, Tenant) {
    let world = World::start_with(1, &format!("[server]\n{settings}")).await;
    let tenant = world.tenant().await;
    (world, tenant)
}

pub async fn connect_from(ip: &str, address: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::new(ip.parse().expect("an address"), 0)).expect("all of 127/8 is here");
    socket.connect(address.parse().expect("an address")).await.expect("the port accepts")
}

/// Opens a connection and makes a call by it; none where the connection is closed instead of an answer.
pub async fn calling(ip: &str, address: &str, path: &str, key: &str) -> Option<Raw<TcpStream>> {
    let mut raw = Raw::over(connect_from(ip, address).await, &[]).await;
    let call = frame(HEADERS, END_HEADERS, 1, &call_fields(path, key, &[]));
    raw.send(&[call, frame(DATA, END_STREAM, 1, &[0; 5])].concat()).await;
    raw.next_of(HEADERS).await.map(|_| raw)
}

/// Waits until the server closes, and answers what it said until then.
async fn closed(mut stream: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut said = Vec::new();
    let _reset = within("the server closes", stream.read_to_end(&mut said)).await;
    said
}

async fn list(tenant: &Tenant) {
    tenant.events().list_events(ListEventsRequest::default()).await.expect("others are served");
}

#[tokio::test]
async fn silent_and_slow_peers_are_closed_at_their_limits() {
    let (world, tenant) = world("handshake_timeout_ms = 300\nfirst_byte_timeout_ms = 400").await;
    let addresses = &world.replicas[0].addresses;
    for address in [&addresses.public, &addresses.internal, &addresses.ops] {
        assert!(closed(TcpStream::connect(address).await.expect("it accepts")).await.is_empty());
    }
    // A handshake that drips, and requests that drip, on each port that would read them.
    let hello = [&[0x16, 3, 1, 1, 0, 1, 0, 0, 0xfc, 3, 3][..], &[7; 300]].concat();
    let half_call = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, 0, 1, &[0; 400])].concat();
    for (address, bytes) in [
        (&addresses.internal, hello),
        (
            &addresses.public,
            b"POST / HTTP/1.1\r\nhost: localhost\r\nx-slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa".to_vec(),
        ),
        (&addresses.public, half_call),
        (
            &addresses.ops,
            b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx-slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa".to_vec(),
        ),
    ] {
        let (mut reader, mut writer) = TcpStream::connect(address).await.expect("it accepts").into_split();
        let dripping = async {
            let mut ticks = interval(Duration::from_millis(20));
            for byte in bytes.iter().cycle() {
                ticks.tick().await;
                if writer.write_all(&[*byte]).await.is_err() {
                    return;
                }
            }
        };
        let closed = async {
            let mut said = Vec::new();
            reader.read_to_end(&mut said).await
        };
        within("a peer that drips is closed", async {
            tokio::select! {
                () = dripping => {}
                _ = closed => {}
            }
        })
        .await;
    }
    let mut raw = Raw::<TcpStream>::open(&addresses.public, &[]).await;
    assert_eq!(raw.end().await, Some(0), "a preface, then silence");
    list(&tenant).await;
}

#[tokio::test]
async fn a_connection_without_calls_is_told_to_end() {
    let (world, tenant) = world("idle_timeout_ms = 1000").await;
    let mut raw = Raw::<TcpStream>::open(&world.replicas[0].addresses.public, &[]).await;
    let call = frame(HEADERS, END_HEADERS, 1, &call_fields(LIST, &tenant.key, &[]));
    raw.send(&[call, frame(DATA, END_STREAM, 1, &[0; 5])].concat()).await;
    assert!(raw.next_of(HEADERS).await.is_some(), "the call is answered");
    assert_eq!(raw.end().await, Some(0));
    list(&tenant).await;
}

#[tokio::test]
async fn silent_connections_by_the_hundreds_keep_nobody_out() {
    let (world, tenant) = world("connections_max = 100\nconnections_per_peer_max = 50").await;
    let address = world.replicas[0].addresses.public.clone();
    let mut silent = Vec::new();
    for n in 0..1_000 {
        silent.push(connect_from(&format!("127.0.0.{}", 2 + n % 4), &address).await);
        if n % 100 == 0 {
            list(&tenant).await;
        }
    }
    // Who is known stays, and those who said nothing made room.
    list(&tenant).await;
    let open = connect_from("127.0.0.9", &address).await;
    drop(silent);
    drop(open);
    list(&tenant).await;
}

#[tokio::test]
async fn strangers_keep_nobody_out_whatever_they_ask_for_and_who_is_known_is_not_cut() {
    let (world, tenant) = world("connections_max = 100\nconnections_per_peer_max = 30").await;
    let address = world.replicas[0].addresses.public.clone();
    let known = async |path| calling("127.0.0.1", &address, path, &tenant.key).await.expect("a place is free");
    let mut known = [known(WATCH).await, known(LIST).await];
    let mut strangers = Vec::new();
    for n in 0..200 {
        let path = ["/x", LIST, "/grpc.health.v1.Health/Check", HEALTH_WATCH][n / 4 % 4];
        strangers.push(calling(&format!("127.0.0.{}", 1 + n % 4), &address, path, "car_unknown").await);
        if n % 20 == 19 {
            // By a connection of its own, from an address of theirs.
            let mut events = Clients::new(&world, 0, &tenant.key).events;
            events.list_events(ListEventsRequest::default()).await.expect("others are served");
        }
    }
    for raw in &mut known {
        raw.settle().await.expect("it goes on, idle or not");
    }
    let oldest = strangers[0].as_mut().expect("it was let in");
    assert!(oldest.settle().await.is_none(), "it made room");
}

#[tokio::test]
async fn g15_a_tenant_that_fills_a_port_with_idle_connections_leaves_room_for_others_and_keeps_its_watches() {
    let (world, tenant) =
        world("connections_max = 40\nconnections_per_peer_max = 10\nfirst_byte_timeout_ms = 1000").await;
    let other = world.tenant().await;
    let address = world.replicas[0].addresses.public.clone();
    let (mut watches, mut idle) = (Vec::new(), Vec::new());
    for n in 0..40 {
        let (path, held) = if n % 10 == 0 { (WATCH, &mut watches) } else { (LIST, &mut idle) };
        let raw = calling(&format!("127.0.0.{}", 1 + n / 10), &address, path, &tenant.key).await;
        held.push(raw.expect("a place is free"));
    }
    // At the same time, and none in another's stead.
    let others = join_all((0..4).map(|_| calling("127.0.0.9", &address, LIST, &other.key))).await;
    let mut others: Vec<_> = others.into_iter().map(|raw| raw.expect("there is room")).collect();
    for raw in watches.iter_mut().chain(&mut others).chain(idle.last_mut()) {
        raw.settle().await.expect("it goes on");
    }
    assert_eq!(idle[0].end().await, Some(0), "what was idle for longest is told to end");
}

#[tokio::test]
async fn a_peer_holds_no_more_connections_than_it_may() {
    let (world, tenant) = world("connections_per_peer_max = 4").await;
    let address = world.replicas[0].addresses.public.clone();
    let busy = async |ip: &str| calling(ip, &address, LIST, &tenant.key).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(busy("127.0.0.2").await.expect("a place is free"));
    }
    assert!(busy("127.0.0.2").await.is_none(), "all places of the address are taken by connections with calls");
    assert!(busy("127.0.0.3").await.is_some(), "another address has its own");
    held.pop();
    eventually("a place given back can be taken", || async { busy("127.0.0.2").await.map(|_| ()).ok_or("refused") })
        .await;
}

#[tokio::test]
async fn calls_are_bounded_for_each_connection_and_for_each_credential() {
    let (world, tenant) = world("streams_per_connection = 3\ncalls_per_credential_max = 5").await;
    let address = &world.replicas[0].addresses.public;
    let mut raw = Raw::<TcpStream>::open(address, &[]).await;
    let open = |stream: u32| frame(HEADERS, END_HEADERS, stream, &call_fields(HEALTH_WATCH, "", &[]));
    raw.settle().await.expect("its settings were read");
    for stream in [1, 3, 5, 7] {
        raw.send(&[open(stream), frame(DATA, END_STREAM, stream, &[0; 5])].concat()).await;
    }
    let refused = raw.next_of(RST_STREAM).await.expect("the connection goes on");
    assert_eq!((refused.stream, refused.payload), (7, vec![0, 0, 0, 7]), "REFUSED_STREAM");

    let other_key = create_key(&world, &tenant.slug, "", Role::Viewer).await;
    let watch = async |key: &str| {
        // Each by a connection of its own.
        let mut events = Clients::new(&world, 0, key).events;
        events.watch(WatchRequest::default()).await.map(tonic::Response::into_inner)
    };
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(watch(&tenant.key).await.expect("a place is free"));
    }
    assert_refused(watch(&tenant.key).await.map(|_| ()), Code::ResourceExhausted, "QUOTA_EXCEEDED");
    let listed = Clients::new(&world, 0, &tenant.key).events.list_events(ListEventsRequest::default()).await;
    assert_refused(listed, Code::ResourceExhausted, "QUOTA_EXCEEDED");
    watch(&other_key).await.expect("another key has its own places");
    held.clear();
    eventually("places that are given back can be taken", || async { watch(&tenant.key).await.map(|_| ()) }).await;
}

/// How a streaming call ends.
async fn end_of(address: &str, key: &str, path: &'static str, request: BoxStream<'static, ()>) -> Code {
    let mut client = tonic::client::Grpc::new(InterceptedService::new(plain(address), Bearer::new(key)));
    client.ready().await.expect("it connects");
    let call = client.streaming(tonic::Request::new(request), PathAndQuery::from_static(path), ProstCodec::default());
    let mut stream = match within("the stream begins", call).await {
        Ok(response) => response.into_inner(),
        Err(status) => return status.code(),
    };
    loop {
        match within("the stream ends", stream.message()).await {
            Ok(None) => return Code::Ok,
            Ok(Some(())) => {}
            Err(status) => return status.code(),
        }
    }
}

#[tokio::test]
async fn a_stream_whose_request_never_comes_ends_and_one_that_has_begun_goes_on() {
    let (world, tenant) = world("request_timeout_max_ms = 2000").await;
    let mut begun = watch(&tenant, 0, WatchRequest::default()).await;
    let address = &world.replicas[0].addresses.public;
    let never = |key, path| end_of(address, key, path, stream::pending().boxed());
    let ends = tokio::join!(never(&tenant.key, WATCH), never("", HEALTH_WATCH));
    assert_eq!(ends, (Code::DeadlineExceeded, Code::DeadlineExceeded));
    tenant.declare("CUSTOM_WATCHED").await;
    positions(&mut begun, 1).await;
}

#[tokio::test]
async fn streams_of_health_and_reflection_end_at_the_age_of_watches() {
    let world = World::start_with(1, "[watch]\nstream_age_min_ms = 1000\nstream_age_max_ms = 1000").await;
    let address = &world.replicas[0].addresses.public;
    let health = end_of(address, "", HEALTH_WATCH, stream::once(async {}).boxed());
    let reflection = end_of(address, "", REFLECTION, stream::pending().boxed());
    assert_eq!(tokio::join!(health, reflection), (Code::DeadlineExceeded, Code::DeadlineExceeded));
}

#[tokio::test]
async fn header_lists_and_counts_are_bounded_and_the_connection_goes_on() {
    let (world, tenant) = world("header_list_bytes_max = 16384\nheader_count_max = 50").await;
    let mut raw = Raw::<TcpStream>::open(&world.replicas[0].addresses.public, &[]).await;
    let long = "x".repeat(9_000);
    let large = call_fields(LIST, &tenant.key, &[("x-a", &long), ("x-b", &long)]);
    let (first, rest) = large.split_at(10_000);
    raw.send(&[frame(HEADERS, END_STREAM, 1, first), frame(9, END_HEADERS, 1, rest)].concat()).await;
    let refused = raw.next_of(HEADERS).await.expect("the connection goes on");
    assert_eq!((refused.stream, refused.flags & END_STREAM), (1, END_STREAM), "refused without a call: 431");
    let names: Vec<String> = (0..60).map(|n| format!("x-{n}")).collect();
    let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "")).collect();
    raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 3, &call_fields(LIST, &tenant.key, &many))).await;
    let answer = raw.next_of(HEADERS).await.expect("the connection goes on");
    assert_eq!(answer.stream, 3);
    let call = frame(HEADERS, END_HEADERS, 5, &call_fields(LIST, &tenant.key, &[]));
    raw.send(&[call, frame(DATA, END_STREAM, 5, &[0; 5])].concat()).await;
    let answer = raw.next_of(DATA).await.expect("the connection goes on");
    assert_eq!(answer.stream, 5, "only the call after the refused ones has a message");
    // The same refusal as a client library sees it.
    let mut request = tonic::Request::new(ListEventsRequest::default());
    for name in &names {
        let name: tonic::metadata::AsciiMetadataKey = name.parse().expect("a name");
        request.metadata_mut().insert(name, "x".parse().expect("a value"));
    }
    assert_refused(tenant.events().list_events(request).await, Code::InvalidArgument, "FIELD_INVALID");
    let mut request = tonic::Request::new(ListEventsRequest::default());
    request.metadata_mut().insert("x-a", "x".repeat(17_000).parse().expect("a value"));
    let status = tenant.events().list_events(request).await.expect_err("431 is no status of gRPC");
    assert!(status.code() == Code::Unknown && status.message().contains("431"), "{status:?}");
    // Beyond every measure the connection itself ends.
    let beyond = fields(std::iter::repeat_n(("x-a", &long[..70]), 200));
    let mut frames = frame(HEADERS, 0, 7, &beyond);
    for _ in 0..20 {
        frames.extend(frame(9, 0, 7, &beyond));
    }
    raw.send(&frames).await;
    assert_eq!(raw.end().await, Some(11), "ENHANCE_YOUR_CALM");
    list(&tenant).await;
}

/// What it is, the body, further headers, the expected status.
type Case = (&'static str, Vec<u8>, &'static [(&'static str, &'static str)], &'static str);

/// Sends one raw gRPC message to a method, and answers the status of the call, or the code of a reset.
async fn status_of(address: &str, key: &str, path: &str, more: &[(&str, &str)], body: &[u8]) -> Result<String, String> {
    let client: hyper_util::client::legacy::Client<_, http_body_util::Full<bytes::Bytes>> =
        hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).http2_only(true).build_http();
    let mut request = http::Request::post(format!("http://{address}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", format!("Bearer {key}"));
    for (name, value) in more {
        request = request.header(*name, *value);
    }
    let request = request.body(http_body_util::Full::new(bytes::Bytes::copy_from_slice(body))).expect("a request");
    let response = within("the call", client.request(request)).await.map_err(|error| error.to_string())?;
    let status = response.headers().get("grpc-status").map(|status| status.to_str().unwrap_or_default().to_owned());
    status.ok_or_else(|| "no status".to_owned())
}

#[tokio::test]
async fn messages_that_are_too_long_cut_off_or_packed_oddly_are_refused() {
    let (world, tenant) = world("message_bytes_max = 4096").await;
    let address = &world.replicas[0].addresses.public;
    let before = world.replicas[0].process.memory_kib();
    let message = |flag: u8, claimed: u32, bytes: &[u8]| [&[flag][..], &claimed.to_be_bytes(), bytes].concat();
    // A bomb: what it says when unpacked is a thousand times what it takes packed.
    let bomb = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3][..], &[0xed; 64]].concat();
    let packed = u32::try_from(bomb.len()).expect("it is short");
    let cases: [Case; 8] = [
        ("four gigabytes are announced", message(0, u32::MAX, b"x"), &[], "3"),
        ("one byte more than allowed", message(0, 4_097, &[0; 4_097]), &[], "3"),
        ("shorter than announced", message(0, 100, b"x"), &[], "3"),
        ("half a prefix", vec![0, 0, 0], &[], "3"),
        ("an unknown flag", message(2, 0, &[]), &[], "3"),
        ("packed without saying how", message(1, packed, &bomb), &[], "3"),
        ("an unknown encoding", message(1, 1, b"x"), &[("grpc-encoding", "lzma")], "12"),
        ("gzip, which is not taken", message(1, packed, &bomb), &[("grpc-encoding", "gzip")], "12"),
    ];
    for (what, body, more, expected) in cases {
        let status = status_of(address, &tenant.key, LIST, more, &body).await;
        assert_eq!(status, Ok(expected.to_owned()), "{what}");
    }
    for path in [
        "/carillon.v1.EventService/Nothing",
        "/carillon.v9.Nothing/Get",
        "/carillon.internal.v1.PublishService/Publish",
    ] {
        let status = status_of(address, &tenant.key, path, &[], &message(0, 0, &[])).await;
        assert_eq!(status, Ok("12".to_owned()), "{path}");
    }
    let after = world.replicas[0].process.memory_kib();
    assert!(after < before + 32 * 1_024, "memory went from {before} to {after} KiB");
    list(&tenant).await;
}

#[tokio::test]
async fn publish_is_not_on_the_public_port() {
    let world = World::shared().await;
    let channel = plain(&world.replicas[0].addresses.public);
    let published = PublishServiceClient::new(channel).publish(publish_request("CUSTOM_X", &json!({}))).await;
    assert_refused(published, Code::Unimplemented, "NOT_IMPLEMENTED");
}

#[tokio::test]
async fn a_call_that_never_ends_does_not_hold_the_shutdown() {
    let (mut world, tenant) = world("drain_timeout_ms = 60000").await;
    let hang = async |world: &World, tenant: &Tenant| {
        let mut raw = Raw::<TcpStream>::open(&world.replicas[0].addresses.public, &[]).await;
        // The body never comes.
        raw.send(&frame(HEADERS, END_HEADERS, 1, &call_fields(LIST, &tenant.key, &[]))).await;
        raw.settle().await.expect("the call is open");
        raw
    };
    let mut raw = hang(&world, &tenant).await;
    world.replicas[0].process.signal(Signal::TERM);
    assert!(raw.next_of(GOAWAY).await.is_some(), "it drains");
    world.replicas[0].process.signal(Signal::TERM);
    let status = world.replicas[0].process.ended("a second signal ends it at once").await;
    assert_eq!(status.code(), Some(130));

    let (mut world, tenant) = self::world("drain_timeout_ms = 1500").await;
    let _raw = hang(&world, &tenant).await;
    world.replicas[0].process.signal(Signal::TERM);
    let status = world.replicas[0].process.ended("the drain has a limit").await;
    assert!(status.success(), "{status}");
}

const TLS: &str = r#"
    handshake_timeout_ms = 1000
    [server.tls]
    certificate_file = "{dir}/server.pem"
    key_file = "{dir}/server.key"
"#;

#[tokio::test]
async fn the_public_port_speaks_tls_where_it_has_a_certificate() {
    let mut world = World::start_with(0, &format!("[server]{TLS}")).await;
    world.add_replica().await;
    let tenant = world.tenant().await;
    let address = world.replicas[0].addresses.public.clone();
    let config = |speaks: &Speaks| client(world.ca.cert_der(), None, speaks);
    for speaks in [Speaks::default(), Speaks { versions: OLD, ..Speaks::default() }] {
        let channel = InterceptedService::new(tls(&address, config(&speaks)), Bearer::new(&tenant.key));
        EventServiceClient::new(channel).list_events(ListEventsRequest::default()).await.expect("gRPC over TLS");
    }
    // gRPC-Web by HTTP/1.1, as from a browser.
    for speaks in
        [Speaks { protocols: &[b"http/1.1"], ..Speaks::default() }, Speaks { protocols: &[], ..Speaks::default() }]
    {
        let tcp = TcpStream::connect(&address).await.expect("the port accepts");
        let name = ServerName::try_from("localhost").expect("a name");
        let mut stream = TlsConnector::from(config(&speaks)).connect(name, tcp).await.expect("a handshake");
        let head = format!(
            "POST {LIST} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/grpc-web+proto\r\nx-grpc-web: 1\r\n\
             authorization: Bearer {}\r\ncontent-length: 5\r\nconnection: close\r\n\r\n\0\0\0\0\0",
            tenant.key
        );
        stream.write_all(head.as_bytes()).await.expect("it is open");
        let answer = String::from_utf8_lossy(&closed(stream).await).into_owned();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("grpc-status:0"), "{answer}");
    }
    let noise: Vec<u8> = (0..4_096_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let h2 = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    for bytes in [&noise[..], b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", &h2, b""] {
        let mut stream = TcpStream::connect(&address).await.expect("the port accepts");
        let _closed_already = stream.write_all(bytes).await;
        let answer = closed(stream).await;
        // At most an alert.
        assert!(answer.is_empty() || answer.len() < 16 && answer[0] == 0x15, "{answer:?}");
    }
    let odd = Speaks { protocols: &[b"spdy/3"], ..Speaks::default() };
    let name = ServerName::try_from("localhost").expect("a name");
    let tcp = TcpStream::connect(&address).await.expect("the port accepts");
    TlsConnector::from(config(&odd)).connect(name, tcp).await.expect_err("no protocol in common");
    assert!(!fs::read_to_string(world.path("replica-1.log")).expect("a log").contains("panicked"));
}
