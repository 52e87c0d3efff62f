//! How long a WebSocket lasts: a reader that is slow stays, and every end that the server makes has its code and its reason.

use carillon::proto::internal::{CreateApiKeyRequest, RevokeApiKeyRequest, Role};
use carillon::proto::public::{WatchRequest, WatchResponse};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex, split};
use tokio::net::{TcpSocket, TcpStream};
use tonic::Streaming;

use crate::harness::tenant::{admin, millis};
use crate::harness::{Tenant, World, eventually};
use crate::watch::watch;
use crate::websocket::{Socket, bearer, handshake, open_over, tcp, with};

/// A watch of a tenant without events, whose bookmarks are the beat to which a slow reader reads.
pub async fn beat(world: &World) -> Streaming<WatchResponse> {
    let quiet = world.tenant().await;
    watch(&quiet, 0, WatchRequest { bookmark_interval: Some(millis(100)), ..Default::default() }).await
}

/// A connection to a replica of which no more than so many bytes are read at each beat, and of which the kernel keeps little.
async fn slow(world: &World, bytes: usize) -> DuplexStream {
    let mut beat = beat(world).await;
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(32 * 1024).expect("it may be small");
    let address = world.replicas[0].addresses.public.parse().expect("an address");
    let mut tcp = socket.connect(address).await.expect("the public port accepts");
    let (near, far) = duplex(1 << 20);
    tokio::spawn(async move {
        let (mut reader, mut writer) = tcp.split();
        let (mut sent, mut read) = split(far);
        let reading = async {
            let mut buffer = vec![0; bytes];
            while let Ok(Some(_)) = beat.message().await {
                let Ok(count @ 1..) = reader.read(&mut buffer).await else { return };
                read.write_all(&buffer[..count]).await.expect("the test reads");
            }
        };
        tokio::select! {
            () = reading => {}
            _ = tokio::io::copy(&mut sent, &mut writer) => {}
        }
    });
    near
}

async fn publish(tenant: &Tenant, count: usize) {
    let text = "x".repeat(60_000);
    for n in 0..count {
        tenant.publish("CUSTOM_FLOOD", &json!({"n": n, "text": text})).await;
    }
}

#[tokio::test]
async fn g13_a_websocket_that_is_read_slowly_all_the_time_lasts_and_gets_everything() {
    // A message takes longer than the limit, and so does what a kernel would take beforehand.
    let settings = "[server]\nkeepalive_ms = 1000\n[watch]\nstall_timeout_ms = 3000\nmessage_bytes_max = 2000000\n";
    let world = World::start_with(1, settings).await;
    let tenant = world.tenant().await;
    tenant.declare("CUSTOM_FLOOD").await;
    publish(&tenant, 48).await;
    let connection = slow(&world, 32 * 1024).await;
    let first = json!({"earliest": true});
    let (mut socket, created) = open_over(connection, &world, 0, &tenant.key, &first).await;
    assert!(created.get("created").is_some(), "{created}");
    let mut seen = Vec::new();
    // The declaration of the type is the log's first event.
    while seen.len() < 49 {
        seen.extend(socket.events().await.into_iter().map(|(position, _)| position));
    }
    publish(&tenant, 1).await;
    seen.extend(socket.events().await.into_iter().map(|(position, _)| position));
    let all: Vec<String> = (1..=50).map(|position: i64| position.to_string()).collect();
    assert_eq!(seen, all, "it goes on, and nothing is lost");
}

/// Reads a socket to its end: its messages, and what the close frame says.
async fn end_of(socket: &mut Socket<TcpStream>) -> (Vec<Value>, (u16, String)) {
    let mut messages = Vec::new();
    loop {
        match socket.next().await {
            Ok(message) => messages.push(message),
            Err(closed) => return (messages, closed),
        }
    }
}

#[tokio::test]
async fn what_ends_a_websocket_from_outside_has_its_code_and_its_reason() {
    let settings = "[watch]\ncredential_check_ms = 200\nstream_age_min_ms = 5000\nstream_age_max_ms = 5000\n";
    let world = World::start_with(1, settings).await;
    let tenant = world.tenant().await;
    let create = CreateApiKeyRequest { tenant: tenant.slug.clone(), role: Role::Viewer.into(), ..Default::default() };
    let key = admin(&world).create_api_key(create).await.expect("a key").into_inner();
    let (old, _) = open_over(tcp(&world, 0).await, &world, 0, &tenant.key, &json!({})).await;
    let (revoked, _) = open_over(tcp(&world, 0).await, &world, 0, &key.secret, &json!({})).await;
    let request = with(handshake(&world, 0), "authorization", &bearer(&tenant.key));
    let (silent, _) = tokio_tungstenite::client_async(request, tcp(&world, 0).await).await.expect("a WebSocket");
    let api_key_id = key.api_key.expect("it is set").id;
    let revoke = RevokeApiKeyRequest { tenant: tenant.slug.clone(), api_key_id, ..Default::default() };
    admin(&world).revoke_api_key(revoke).await.expect("revoked");
    for (mut socket, code, reason, is_announced) in [
        (revoked, 4016, "CREDENTIAL_INVALID", true),
        (old, 4014, "STREAM_AGE", true),
        (Socket(silent), 4004, "DEADLINE", false),
    ] {
        let (messages, closed) = end_of(&mut socket).await;
        assert_eq!(closed, (code, reason.to_owned()), "{messages:?}");
        let error = messages.last().expect("it says why");
        assert_eq!(error["error"]["reason"], reason, "{messages:?}");
        let closing = messages.iter().rev().nth(1).map(|message| &message["closing"]["reason"]);
        assert_eq!(closing, is_announced.then_some(&json!(reason)), "{messages:?}");
    }
}

#[tokio::test]
async fn a_websocket_that_is_not_read_is_told_so_with_the_cursor_that_goes_on() {
    let world = World::start_with(1, "[watch]\nstall_timeout_ms = 1000\nstreams_per_tenant_max = 1\n").await;
    let tenant = world.tenant().await;
    tenant.declare("CUSTOM_FLOOD").await;
    publish(&tenant, 40).await;
    let (mut stalled, _) = open_over(tcp(&world, 0).await, &world, 0, &tenant.key, &json!({"earliest": true})).await;
    eventually("the stalled watch is given up", || async {
        tenant.events().watch(WatchRequest::default()).await.map(drop).map_err(|status| status.code())
    })
    .await;

    let (mut messages, closed) = end_of(&mut stalled).await;
    assert_eq!(closed, (4008, "SLOW_CONSUMER".to_owned()));
    let error = messages.pop().expect("it says why");
    assert_eq!(error["error"]["reason"], "SLOW_CONSUMER", "{error}");
    let cursor = &error["error"]["metadata"]["resume_cursor"];
    let last = messages.iter().rev().find(|message| message.get("cursor").is_some());
    assert_eq!(last.map(|message| &message["cursor"]), Some(cursor), "what was on its way has come");
    let positions = |message: &Value| -> Vec<String> {
        let events = message["events"]["events"].as_array().into_iter().flatten();
        events.map(|watched| watched["event"]["position"].as_str().expect("64 bits are text").to_owned()).collect()
    };
    let mut seen: Vec<String> = messages.iter().flat_map(positions).collect();
    assert!(seen.len() < 41, "it was ended before it had everything");
    // The place of the watch that was only tried may still be taken for a moment.
    let mut resumed = eventually("a place for the resumed watch", || async {
        let first = json!({"cursor": cursor});
        let (socket, said) = open_over(tcp(&world, 0).await, &world, 0, &tenant.key, &first).await;
        if said.get("created").is_some() { Ok(socket) } else { Err(said) }
    })
    .await;
    while seen.len() < 41 {
        seen.extend(positions(&resumed.text().await));
    }
    let all: Vec<String> = (1..=41).map(|position: i64| position.to_string()).collect();
    assert_eq!(seen, all, "nothing lost, nothing twice");
}
