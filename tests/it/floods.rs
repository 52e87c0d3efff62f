//! Floods of HTTP/2 frames: the connection that sends one ends, the server's memory stays where it was, and others are served
//! meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use carillon::proto::public::ListEventsRequest;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::raw::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PRIORITY, RST_STREAM, Raw, SETTINGS,
    WINDOW_UPDATE, call_fields, frame, goaway_code, read_frame,
};
use crate::harness::wait::PATIENCE;
use crate::harness::{Tenant, World};

const LIST: &str = "/carillon.v1.EventService/ListEvents";
const ENHANCE_YOUR_CALM: u32 = 11;

/// No flood may need more frames than this to be ended.
const FRAMES_MAX: u32 = 2_000_000;
/// What a flood may leave behind in the server's memory: allocators keep some of what they were once given.
const RESIDUE_KIB_MAX: u64 = 48 * 1_024;

async fn world() -> (World, Tenant) {
    let world = World::start_with(1, "[server]\ncontrol_frames_burst = 500").await;
    let tenant = world.tenant().await;
    tenant.declare("CUSTOM_FLOODED").await;
    tenant.publish("CUSTOM_FLOODED", &json!({"n": 1})).await;
    (world, tenant)
}

/// Sends chunks of frames until the connection ends: the code of its GOAWAY, and how many frames were sent until that came.
///
/// What is sent after it is thrown away, for as long as the server lingers to be heard; that says nothing about the flood.
async fn flood(address: &str, flood: &Flood) -> (u32, u32) {
    let what = flood.what;
    let mut raw = Raw::<TcpStream>::open(address, &[]).await;
    raw.send(&flood.opening).await;
    let Raw { mut reader, mut writer } = raw;
    let (sent, told) = (AtomicU32::new(0), AtomicBool::new(false));
    let sending = async {
        let mut round = 0;
        loop {
            let (frames, bytes) = (flood.chunk)(round);
            // A flood does not stop because it is told to: it ends with its connection.
            if writer.write_all(&bytes).await.is_err() {
                break;
            }
            let so_far = sent.fetch_add(frames, Ordering::Relaxed);
            assert!(told.load(Ordering::Relaxed) || so_far < FRAMES_MAX, "{what}: every frame was taken");
            round += 1;
        }
    };
    let reading = async {
        while let Some(frame) = read_frame(&mut reader).await {
            if frame.kind == GOAWAY && goaway_code(&frame) != 0 {
                told.store(true, Ordering::Relaxed);
                return Some((goaway_code(&frame), sent.load(Ordering::Relaxed)));
            }
        }
        None
    };
    let both = async { tokio::join!(sending, reading) };
    let ((), told) = timeout(PATIENCE, both).await.unwrap_or_else(|_| panic!("{what}: the connection goes on"));
    told.unwrap_or_else(|| panic!("{what}: the connection ended without a GOAWAY"))
}

/// Makes the chunk of a round: how many frames, and their bytes.
type Chunks = Box<dyn Fn(u32) -> (u32, Vec<u8>) + Send + Sync>;

/// A flood: what it opens with, what it goes on with, and the codes of the GOAWAY that may end it.
struct Flood {
    what: &'static str,
    opening: Vec<u8>,
    chunk: Chunks,
    codes: &'static [u32],
}

/// A frame sent a hundred times at once, again and again.
fn always(frame: &[u8]) -> Chunks {
    let chunk = frame.repeat(100);
    Box::new(move |_| (100, chunk.clone()))
}

/// Every flood, by a client with a key.
fn floods(key: String) -> Vec<Flood> {
    let open = move |stream: u32, flags: u8| frame(HEADERS, END_HEADERS | flags, stream, &call_fields(LIST, &key, &[]));
    let stream = |round: u32, at: u32| (round * 100 + at) * 2 + 1;
    let (open_a, open_b) = (open.clone(), open.clone());
    let rapid = Box::new(move |round| {
        let pairs = (0..100).flat_map(|at| {
            [open_a(stream(round, at), 0), frame(RST_STREAM, 0, stream(round, at), &8_u32.to_be_bytes())].concat()
        });
        (200, pairs.collect())
    });
    // Errors that the server has to answer with a reset of its own.
    let made_to_reset = Box::new(move |round| {
        let pairs = (0..100).flat_map(|at| {
            [open_b(stream(round, at), 0), frame(WINDOW_UPDATE, 0, stream(round, at), &[0x7f, 255, 255, 255])].concat()
        });
        (200, pairs.collect())
    });
    let half = frame(HEADERS, 0, 1, &call_fields(LIST, "x", &[]));
    let bomb = {
        // One entry of the dynamic table, named by a byte each time.
        let mut block = vec![0x40, 1, b'a', 127, 0x81, 0x1d];
        block.extend(vec![b'x'; 3_840]);
        block.extend(vec![0xbe; 10_000]);
        move |round: u32| (1, frame(HEADERS, END_HEADERS | END_STREAM, round * 2 + 1, &block))
    };
    let floods: Vec<(&'static str, Vec<u8>, Chunks, &'static [u32])> = vec![
        ("rapid resets", Vec::new(), rapid, &[ENHANCE_YOUR_CALM]),
        ("resets that the server is made to send", Vec::new(), made_to_reset, &[ENHANCE_YOUR_CALM]),
        (
            "continuations",
            half.clone(),
            always(&frame(CONTINUATION, 0, 1, &[0, 1, b'a', 1, b'b'])),
            &[ENHANCE_YOUR_CALM],
        ),
        ("empty continuations", half, always(&frame(CONTINUATION, 0, 1, &[])), &[ENHANCE_YOUR_CALM]),
        ("settings", Vec::new(), always(&frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])), &[ENHANCE_YOUR_CALM]),
        ("empty settings", Vec::new(), always(&frame(SETTINGS, 0, 0, &[])), &[ENHANCE_YOUR_CALM]),
        ("pings", Vec::new(), always(&frame(PING, 0, 0, &[1; 8])), &[ENHANCE_YOUR_CALM]),
        ("answers to no ping", Vec::new(), always(&frame(PING, ACK, 0, &[1; 8])), &[ENHANCE_YOUR_CALM]),
        ("priorities", Vec::new(), always(&frame(PRIORITY, 0, 3, &[0, 0, 0, 1, 9])), &[ENHANCE_YOUR_CALM]),
        ("unknown frames", Vec::new(), always(&frame(0xbe, 0, 0, b"what")), &[ENHANCE_YOUR_CALM]),
        ("window updates", Vec::new(), always(&frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])), &[ENHANCE_YOUR_CALM]),
        ("empty data", open(1, 0), always(&frame(DATA, 0, 1, &[])), &[ENHANCE_YOUR_CALM]),
        ("header bombs", Vec::new(), Box::new(bomb), &[ENHANCE_YOUR_CALM]),
        (
            "a window beyond what windows can be",
            Vec::new(),
            always(&frame(WINDOW_UPDATE, 0, 0, &[0x7f, 255, 255, 255])),
            &[3, ENHANCE_YOUR_CALM],
        ),
        ("a frame larger than allowed", Vec::new(), always(&frame(DATA, 0, 1, &[0; 16_385])), &[6]),
        (
            "resets of what never was",
            Vec::new(),
            always(&frame(RST_STREAM, 0, 99, &[0, 0, 0, 8])),
            &[1, ENHANCE_YOUR_CALM],
        ),
    ];
    floods.into_iter().map(|(what, opening, chunk, codes)| Flood { what, opening, chunk, codes }).collect()
}

#[tokio::test]
async fn every_flood_ends_its_connection_and_nothing_else() {
    let (world, tenant) = world().await;
    let address = world.replicas[0].addresses.public.clone();
    // What the first calls allocate for good is not the floods'.
    tenant.events().list_events(ListEventsRequest::default()).await.expect("a page");
    let before = world.replicas[0].process.memory_kib();
    for one in floods(tenant.key.clone()) {
        let canary = async {
            for _ in 0..10 {
                tenant.events().list_events(ListEventsRequest::default()).await.expect("others are served");
            }
        };
        let ((code, frames), ()) = tokio::join!(flood(&address, &one), canary);
        let Flood { what, codes, .. } = one;
        assert!(codes.contains(&code), "{what}: GOAWAY with code {code}, not {codes:?}");
        println!("{what}: ended with code {code}; {frames} frames were sent until it was noticed");
    }
    tenant.publish("CUSTOM_FLOODED", &json!({"n": 2})).await;
    let after = world.replicas[0].process.memory_kib();
    assert!(after < before + RESIDUE_KIB_MAX, "memory went from {before} to {after} KiB");
    assert!(!world.replicas[0].process.log_tail().contains("panicked"));
}

/// How long the slowest but two of so many calls takes: the 99th percentile.
async fn p99(tenant: &Tenant) -> Duration {
    const CALLS: usize = 300;
    let (mut events, mut taken) = (tenant.events(), Vec::new());
    for _ in 0..CALLS {
        let sent = Instant::now();
        events.list_events(ListEventsRequest::default()).await.expect("others are served");
        taken.push(sent.elapsed());
    }
    taken.sort_unstable();
    taken[CALLS * 99 / 100 - 1]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_every_flood_others_wait_no_longer_than_three_times_as_long() {
    const RATIO_MAX: u32 = 3;
    /// A flooder takes a part of this machine for itself, which is not what the server spends on it.
    const RETURNS_AFTER: Duration = Duration::from_millis(50);
    /// A machine that is busy with something else hits one turn or the other; a flood that is felt is felt in each.
    const TURNS: usize = 5;
    let (world, tenant) = world().await;
    let tenant = &tenant;
    p99(tenant).await;
    let mut felt = Vec::new();
    // Who floods has no key: what calls of others cost that may be made is not the question.
    for one in floods("nobody".to_owned()) {
        let (what, mut turns) = (one.what, Vec::new());
        let one = Arc::new(one);
        let within = |turns: &[(Duration, Duration)]| turns.iter().any(|(alone, beside)| *beside <= *alone * RATIO_MAX);
        while turns.len() < TURNS && !within(&turns) {
            let alone = p99(tenant).await;
            let (address, again) = (world.replicas[0].addresses.public.clone(), Arc::clone(&one));
            // One connection after the other, for as long as others are looked at: who is turned away is back at once.
            let mut returns = tokio::time::interval(RETURNS_AFTER);
            returns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let flooding = tokio::spawn(async move {
                loop {
                    returns.tick().await;
                    flood(&address, &again).await;
                }
            });
            let beside = p99(tenant).await;
            assert!(!flooding.is_finished(), "{what}: {:?}", flooding.await);
            flooding.abort();
            turns.push((alone, beside));
        }
        println!("{what}: alone and beside it, p99 was {turns:?}");
        felt.extend((!within(&turns)).then_some((what, turns)));
    }
    assert!(felt.is_empty(), "alone and beside them, p99 was {felt:#?}");
}

#[tokio::test]
async fn resets_one_at_a_time_end_their_connection_too() {
    let (world, tenant) = world().await;
    let mut raw = Raw::<TcpStream>::open(&world.replicas[0].addresses.public, &[]).await;
    let head = call_fields(LIST, &tenant.key, &[]);
    let mut pairs = 0;
    loop {
        let stream = pairs * 2 + 1;
        let pair = [frame(HEADERS, END_HEADERS, stream, &head), frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())];
        raw.send(&pair.concat()).await;
        pairs += 1;
        // Each is read before the next is sent, so no burst is seen.
        if raw.settle().await.is_none() {
            break;
        }
        assert!(pairs < 5_000, "the connection goes on");
    }
    assert!(pairs > 100, "a client may change its mind: {pairs}");
    tenant.events().list_events(ListEventsRequest::default()).await.expect("others are served");
}

#[tokio::test]
async fn a_peer_that_opens_no_window_for_its_answers_is_let_go() {
    let world = World::start_with(1, "[server]\nanswer_timeout_ms = 500").await;
    let tenant = world.tenant().await;
    // SETTINGS_INITIAL_WINDOW_SIZE is 0: no answer can be written.
    let mut raw = Raw::<TcpStream>::open(&world.replicas[0].addresses.public, &[(4, 0)]).await;
    for call in 0..50 {
        let head = frame(HEADERS, END_HEADERS, call * 2 + 1, &call_fields(LIST, &tenant.key, &[]));
        raw.send(&[head, frame(DATA, END_STREAM, call * 2 + 1, &[0; 5])].concat()).await;
    }
    assert_eq!(raw.end().await, Some(0), "it is told, and then closed");
    tenant.events().list_events(ListEventsRequest::default()).await.expect("others are served");
}
