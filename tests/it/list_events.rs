//! `EventService.ListEvents`: the log read a page at a time.

use carillon::proto::public::{EventView, ListEventsRequest};
use serde_json::json;
use tonic::Code;

use crate::harness::tenant::{assert_refused, reason};
use crate::harness::{Tenant, World};

async fn ten_events() -> Tenant {
    let tenant = World::shared().await.tenant().await;
    for name in ["CUSTOM_A_ONE", "CUSTOM_A_TWO", "CUSTOM_B"] {
        tenant.declare(name).await;
    }
    for n in 0..10 {
        let name = ["CUSTOM_A_ONE", "CUSTOM_A_TWO", "CUSTOM_B"][n % 3];
        tenant.publish(name, &json!({"n": n})).await;
    }
    tenant
}

/// Positions of every page, read on from cursor to cursor over both replicas.
async fn read_all(tenant: &Tenant, mut request: ListEventsRequest) -> Vec<i64> {
    let mut positions = Vec::new();
    for page_number in 0.. {
        let mut client = tenant.at[page_number % tenant.at.len()].events.clone();
        let page = client.list_events(request.clone()).await.expect("a page").into_inner();
        positions.extend(page.events.iter().map(|event| event.position));
        if page.end_of_log {
            break;
        }
        assert_ne!(request.cursor, page.next_cursor, "no progress");
        request.cursor = page.next_cursor;
    }
    positions
}

#[tokio::test]
async fn pages_cover_the_log_in_order_on_any_replica() {
    let tenant = ten_events().await;
    let all = read_all(&tenant, ListEventsRequest { page_size: 3, ..Default::default() }).await;
    assert_eq!(all, (1..=13).collect::<Vec<i64>>(), "three declarations and what was published");
    let prefix = ListEventsRequest { page_size: 2, event_types: vec!["CUSTOM_A_*".to_owned()], ..Default::default() };
    assert_eq!(read_all(&tenant, prefix).await, [4, 5, 7, 8, 10, 11, 13]);
    let filtered = ListEventsRequest { page_size: 2, filter: "data.n >= 7".to_owned(), ..Default::default() };
    assert_eq!(read_all(&tenant, filtered).await, [11, 12, 13]);
}

#[tokio::test]
async fn a_page_starts_and_ends_at_a_time() {
    let tenant = ten_events().await;
    let all = tenant.events().list_events(ListEventsRequest::default()).await.expect("a page").into_inner().events;
    let (from, to) = (all[4].commit_time, all[7].commit_time);
    let request = ListEventsRequest { start_time: from, end_time: to, ..Default::default() };
    let expected: Vec<i64> = all
        .iter()
        .filter(|event| {
            let time = |t: Option<carillon::proto::Timestamp>| t.map(|t| (t.seconds, t.nanos));
            time(event.commit_time) >= time(from) && time(event.commit_time) < time(to)
        })
        .map(|event| event.position)
        .collect();
    assert!(!expected.is_empty());
    assert_eq!(read_all(&tenant, request).await, expected);
}

#[tokio::test]
async fn metadata_leaves_the_data_out() {
    let tenant = ten_events().await;
    let request = ListEventsRequest { view: EventView::Metadata.into(), ..Default::default() };
    let events = tenant.events().list_events(request).await.expect("a page").into_inner().events;
    assert_eq!(events.len(), 13);
    assert!(events.iter().all(|event| event.event.as_ref().is_some_and(|event| event.data.is_none())));
}

#[tokio::test]
async fn bad_cursors_have_their_reasons() {
    let tenant = ten_events().await;
    let other = ten_events().await;
    let page = ListEventsRequest { page_size: 3, ..Default::default() };
    let own = tenant.events().list_events(page.clone()).await.expect("a page").into_inner().next_cursor;
    let foreign = other.events().list_events(page).await.expect("a page").into_inner().next_cursor;
    let flipped = {
        let mut bytes = own.clone().into_bytes();
        let middle = bytes.len() / 2;
        bytes[middle] = if bytes[middle] == b'A' { b'B' } else { b'A' };
        String::from_utf8(bytes).expect("ASCII")
    };
    let long = "A".repeat(100 << 10);
    let mut texts = Vec::new();
    for cursor in [&flipped, &own[..own.len() - 3], "x", &long] {
        let request = ListEventsRequest { cursor: cursor.to_owned(), ..Default::default() };
        let result = tenant.events().list_events(request).await;
        texts.push(assert_refused(result, Code::InvalidArgument, "CURSOR_MALFORMED").message().to_owned());
    }
    texts.dedup();
    assert_eq!(texts.len(), 1, "tampering can be told apart: {texts:?}");
    let request = ListEventsRequest { cursor: foreign, ..Default::default() };
    let status = tenant.events().list_events(request).await.expect_err("another tenant's cursor");
    assert!(["CURSOR_FOREIGN", "CURSOR_MALFORMED"].contains(&reason(&status).as_str()), "{status:?}");
}
