//! Connections that are told to end: what crosses the goodbye is answered, and what comes long after it is not.

use crate::edges::{HEALTH_WATCH, LIST, calling, world};
use crate::harness::raw::{
    ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, Raw, call_fields, frame,
};
use crate::harness::within;
use tokio::net::TcpStream;

const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";

#[tokio::test]
async fn a_call_that_crosses_the_goodbye_of_its_connection_is_answered() {
    let (world, tenant) = world("connections_max = 8\nfirst_byte_timeout_ms = 600000").await;
    let address = world.replicas[0].addresses.public.clone();
    let mut known = Vec::new();
    // As many as one tenant may have of these.
    for _ in 0..6 {
        known.push(calling("127.0.0.1", &address, LIST, &tenant.key).await.expect("a place is free"));
    }
    let _newcomer = calling("127.0.0.2", &address, LIST, &tenant.key).await.expect("there is room");
    let leaving = &mut known[0];
    let goodbye = leaving.next_of(GOAWAY).await.expect("it makes room");
    assert_eq!(goodbye.payload, [0x7f, 255, 255, 255, 0, 0, 0, 0], "what is on its way may come");
    let heard = loop {
        let ping = leaving.next_of(PING).await.expect("it goes on");
        if ping.flags & ACK == 0 {
            break frame(PING, ACK, 0, &ping.payload);
        }
    };
    let call = frame(HEADERS, END_HEADERS, 3, &call_fields(LIST, &tenant.key, &[]));
    leaving.send(&[call, heard, frame(DATA, END_STREAM, 3, &[0; 5])].concat()).await;
    let (mut last, mut over) = (None, false);
    while let Some(frame) = leaving.next().await {
        match frame.kind {
            GOAWAY => last = Some(frame.payload[..4].to_vec()),
            HEADERS | DATA => over |= frame.stream == 3 && frame.flags & END_STREAM != 0,
            _ => {}
        }
    }
    assert!(over, "the call is answered");
    assert_eq!(last, Some(vec![0, 0, 0, 3]), "what comes after it is told to be safe to send again");
}

#[tokio::test]
async fn a_peer_that_never_says_that_it_has_heard_the_goodbye_makes_no_further_calls() {
    let (world, _) = world("idle_timeout_ms = 1000\nfirst_byte_timeout_ms = 500").await;
    let mut raw = Raw::<TcpStream>::open(&world.replicas[0].addresses.public, &[]).await;
    let call = |stream: u32, path| {
        let head = frame(HEADERS, END_HEADERS, stream, &call_fields(path, "", &[]));
        [head, frame(DATA, END_STREAM, stream, &[0; 5])].concat()
    };
    raw.send(&call(1, HEALTH_WATCH)).await;
    assert!(raw.next_of(GOAWAY).await.is_some(), "it has no call but a stream");
    let refused = within("a call is refused", async {
        for stream in (3..).step_by(2) {
            raw.send(&call(stream, HEALTH_CHECK)).await;
            loop {
                let frame = raw.next().await.expect("the open stream goes on");
                if frame.stream == stream && frame.kind == RST_STREAM {
                    return frame;
                }
                if frame.stream == stream && frame.flags & END_STREAM != 0 {
                    break;
                }
            }
        }
        unreachable!("there are enough numbers")
    })
    .await;
    assert_eq!(refused.payload, [0, 0, 0, 7], "REFUSED_STREAM, at call {}", refused.stream);
    assert!(raw.settle().await.is_some(), "the open stream goes on");
}
