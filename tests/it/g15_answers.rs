//! G15: answers that nobody takes are bounded in bytes, wherever they wait: for a window of HTTP/2, or for a socket that is not read.

use carillon::proto::public::{CreateEventTypeRequest, ListEventTypesRequest, ListEventsRequest, ListEventsResponse};
use serde_json::json;
use tokio::net::TcpStream;
use tonic::{Code, Status};

use crate::g15_bounded::at_bound;
use crate::harness::raw::{DATA, END_HEADERS, END_STREAM, HEADERS, Raw, SETTINGS, WINDOW_UPDATE, call_fields, frame};
use crate::harness::{Tenant, World, eventually};

const LIST: &str = "/carillon.v1.EventService/ListEvents";
/// Calls of a megabyte each that are made at once.
const CALLS: usize = 300;
/// The window of a stream that takes anything.
const WINDOW: u32 = 0x7fff_ffff;
/// What the replica may have of memory; of it, answers have 8 MiB.
const MEMORY_KIB_MAX: u64 = 128 * 1_024;

/// A replica with little memory, and a tenant whose pages are large.
async fn world() -> (World, Tenant) {
    let world = World::start_with(1, &format!("[server]\nmemory_bytes = {}", MEMORY_KIB_MAX * 1_024)).await;
    let tenant = world.tenant().await;
    fill(&tenant).await;
    page(&tenant).await.expect("there is room");
    (world, tenant)
}

async fn fill(tenant: &Tenant) {
    tenant.declare("CUSTOM_LARGE").await;
    let text = "x".repeat(500_000);
    for n in 0..4 {
        tenant.publish("CUSTOM_LARGE", &json!({"n": n, "text": text})).await;
    }
}

async fn page(tenant: &Tenant) -> Result<ListEventsResponse, Status> {
    tenant.events().list_events(ListEventsRequest::default()).await.map(tonic::Response::into_inner)
}

async fn call_for_pages(raw: &mut Raw<TcpStream>, tenant: &Tenant) {
    for stream in (1..).step_by(2).take(CALLS) {
        let head = frame(HEADERS, END_HEADERS, stream, &call_fields(LIST, &tenant.key, &[]));
        raw.send(&[head, frame(DATA, END_STREAM, stream, &[0; 5])].concat()).await;
    }
}

fn stays_within_its_memory(world: &World) {
    let most = world.replicas[0].process.memory_peak_kib();
    println!("{most} KiB of memory at most");
    assert!(most <= MEMORY_KIB_MAX, "{most} KiB");
}

#[tokio::test]
async fn g15_answers_that_nobody_takes_are_bounded_in_bytes_and_only_their_tenant_is_refused() {
    let (world, tenant) = world().await;
    let other = world.tenant().await;
    fill(&other).await;
    // A window of nothing: no answer can be written.
    let mut raw = Raw::<TcpStream>::open(&world.replicas[0].addresses.public, &[(4, 0)]).await;
    call_for_pages(&mut raw, &tenant).await;
    let (mut held, mut refused) = (0, 0);
    while held + refused < CALLS {
        let head = raw.next_of(HEADERS).await.expect("the connection goes on");
        // A refusal has no message that would wait for a window.
        if head.flags & END_STREAM == 0 { held += 1 } else { refused += 1 }
    }
    println!("{held} answers are held");
    assert!((2..=8).contains(&held), "{held} answers of a megabyte");
    stays_within_its_memory(&world);

    let change = || CreateEventTypeRequest {
        name: "CUSTOM_CHANGE".to_owned(),
        schema: "{}".to_owned(),
        ..CreateEventTypeRequest::default()
    };
    at_bound(page(&tenant).await, "server.answers_bytes_max", "8388608");
    let small = ListEventTypesRequest { page_size: 1, ..ListEventTypesRequest::default() };
    tenant.types().list_event_types(small).await.expect("what is small is answered");
    tenant.types().create_event_type(change()).await.expect("what is small is answered");
    page(&other).await.expect("another tenant has room");
    other.types().create_event_type(change()).await.expect("another tenant has room");

    // What is held arrives once it is let, and gives its room back.
    let windows = [&[0, 4][..], &WINDOW.to_be_bytes()].concat();
    let of_connection = (WINDOW - 65_535).to_be_bytes();
    raw.send(&[frame(SETTINGS, 0, 0, &windows), frame(WINDOW_UPDATE, 0, 0, &of_connection)].concat()).await;
    let (mut ended, mut bytes) = (0, 0);
    while ended < held {
        let frame = raw.next().await.expect("the connection goes on");
        match frame.kind {
            DATA => bytes += frame.payload.len(),
            HEADERS => ended += usize::from(frame.flags & END_STREAM != 0),
            _ => {}
        }
    }
    assert!(bytes > held * 1_000_000, "{bytes} bytes of {held} pages");
    eventually("the room is free again", || async { page(&tenant).await.map(drop) }).await;
}

#[tokio::test]
async fn g15_answers_to_a_socket_that_is_not_read_count_until_they_are_written() {
    let (world, tenant) = world().await;
    let mut raw = Raw::<TcpStream>::open(&world.replicas[0].addresses.public, &[(4, WINDOW)]).await;
    raw.send(&frame(WINDOW_UPDATE, 0, 0, &(WINDOW - 65_535).to_be_bytes())).await;
    call_for_pages(&mut raw, &tenant).await;
    eventually("the room is full", || async {
        match page(&tenant).await {
            Err(status) if status.code() == Code::ResourceExhausted => Ok(()),
            other => Err(other.map(drop)),
        }
    })
    .await;
    stays_within_its_memory(&world);
    drop(raw);
    eventually("the room is free again", || async { page(&tenant).await.map(drop) }).await;
}
