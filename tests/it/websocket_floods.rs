//! Floods of frames over a WebSocket: its connection ends, the server's memory stays where it was, and others are served meanwhile.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use carillon::proto::public::ListEventsRequest;
use http::HeaderValue;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::harness::{Tenant, World, within};

/// No flood may need more frames than this to be ended.
const FRAMES_MAX: u32 = 2_000_000;
/// What a flood may take of the server's memory: allocators keep some of what they were once given.
const MEMORY_KIB_MAX: u64 = 32 * 1_024;

const TEXT: u8 = 0x81;
const BEGIN: u8 = 0x01;
const MORE: u8 = 0x00;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;

/// A frame of a client, masked with zeros.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("it is short");
    [&[first, 0x80 | length, 0, 0, 0, 0][..], payload].concat()
}

/// A connection that has become a WebSocket, for frames that are written by hand.
async fn open(world: &World, tenant: &Tenant) -> TcpStream {
    let address = &world.replicas[0].addresses.public;
    let mut request = format!("ws://{address}/v1/watch").into_client_request().expect("a URL");
    let bearer = HeaderValue::from_str(&format!("Bearer {}", tenant.key)).expect("visible ASCII");
    request.headers_mut().append("authorization", bearer);
    let tcp = TcpStream::connect(address).await.expect("the public port accepts");
    let (socket, _) = tokio_tungstenite::client_async(request, tcp).await.expect("a WebSocket");
    socket.into_inner()
}

/// What the server's close frame says; none where it closes without one.
async fn closed(mut reader: impl AsyncRead + Unpin) -> Option<Vec<u8>> {
    loop {
        let [first, length] = [reader.read_u8().await.ok()?, reader.read_u8().await.ok()?];
        let length = match length {
            126 => reader.read_u16().await.ok()?.into(),
            127 => usize::try_from(reader.read_u64().await.ok()?).expect("it fits"),
            short => short.into(),
        };
        let mut payload = vec![0; length];
        reader.read_exact(&mut payload).await.ok()?;
        if first == CLOSE {
            return Some(payload);
        }
    }
}

async fn list(tenant: &Tenant) {
    tenant.events().list_events(ListEventsRequest::default()).await.expect("others are served");
}

#[tokio::test]
async fn every_flood_of_frames_ends_its_websocket() {
    let world = World::start_with(1, "[server]\ncontrol_frames_burst = 500").await;
    let tenant = world.tenant().await;
    list(&tenant).await;
    let before = world.replicas[0].process.memory_kib();
    let watch = frame(TEXT, b"{}");
    let floods = [
        ("pings", watch.clone(), frame(PING, &[b'x'; 100])),
        ("pings before the first message", Vec::new(), frame(PING, b"")),
        ("answers to no ping", watch.clone(), frame(PONG, b"")),
        ("empty fragments", [watch, frame(BEGIN, b"")].concat(), frame(MORE, b"")),
        ("empty fragments of the first message", frame(BEGIN, b"{"), frame(MORE, b"")),
    ];
    for (what, opening, flood) in floods {
        let (reader, mut writer) = open(&world, &tenant).await.into_split();
        writer.write_all(&opening).await.expect("it is open");
        let (sent, told, chunk) = (AtomicU32::new(0), AtomicBool::new(false), flood.repeat(100));
        let sending = async {
            // A flood does not stop because it is told to: it ends with its connection.
            while writer.write_all(&chunk).await.is_ok() {
                let sent = sent.fetch_add(100, Ordering::Relaxed);
                assert!(told.load(Ordering::Relaxed) || sent < FRAMES_MAX, "{what}: every frame was taken");
            }
        };
        let reading = async {
            let said = closed(reader).await.unwrap_or_else(|| panic!("{what}: it ended without a word"));
            told.store(true, Ordering::Relaxed);
            println!("{what}: {} frames were sent until it was noticed", sent.load(Ordering::Relaxed));
            assert_eq!(said[..2], 1_008_u16.to_be_bytes(), "{what}: {said:?}");
        };
        within(what, async { tokio::join!(sending, reading, list(&tenant)) }).await;
    }
    let after = world.replicas[0].process.memory_kib();
    assert!(after < before + MEMORY_KIB_MAX, "memory went from {before} to {after} KiB");
    assert!(!world.replicas[0].process.log_tail().contains("panicked"));
}

#[tokio::test]
async fn g15_a_websocket_that_pings_and_never_reads_is_ended_and_memory_stays_flat() {
    // So many pings may come that only their answers hold this one up.
    let settings = "[server]\ncontrol_frames_burst = 1000000\n[watch]\nstall_timeout_ms = 500";
    let world = World::start_with(1, settings).await;
    let tenant = world.tenant().await;
    list(&tenant).await;
    let process = &world.replicas[0].process;
    let before = process.memory_kib();
    let mut socket = open(&world, &tenant).await;
    socket.write_all(&frame(TEXT, b"{}")).await.expect("it is open");
    let chunk = frame(PING, &[b'x'; 100]).repeat(1_000);
    let flooding = async {
        while socket.write_all(&chunk).await.is_ok() {
            let now = process.memory_kib();
            assert!(now < before + MEMORY_KIB_MAX, "memory went from {before} to {now} KiB");
        }
    };
    within("the server ends it", flooding).await;
    list(&tenant).await;
    assert!(!process.log_tail().contains("panicked"));
}
