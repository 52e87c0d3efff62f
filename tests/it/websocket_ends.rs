//! How long a WebSocket lasts: a reader that is slow stays, and every end that the server makes has its code and its reason.

use carillon::proto::public::{WatchRequest, WatchResponse};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex, split};
use tokio::net::TcpSocket;
use tonic::Streaming;

use crate::harness::tenant::millis;
use crate::harness::{Tenant, World};
use crate::watch::watch;
use crate::websocket::open_over;

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
