//! H1: places in a log and in a list that are not ours, not theirs, or not there. Those that retention took are in
//! `g12_no_silent_loss`.

use carillon::proto::public::watch_request::Start;
use carillon::proto::public::{
    ListEventTypesRequest, ListEventsRequest, ListInvocationsRequest, ListSubscriptionsRequest, WatchRequest,
};
use serde_json::json;
use tonic::Code;

use super::Expected::{Fine, Refused};
use super::{Row, TYPE};
use crate::harness::tenant::publish_request;

const MALFORMED: super::Expected = Refused(Code::InvalidArgument, "CURSOR_MALFORMED", "cursor");
const UNREADABLE: super::Expected = Refused(Code::InvalidArgument, "PAGE_TOKEN_INVALID", "page_token");

#[tokio::test]
async fn h1_cursors_and_page_tokens_that_were_changed_or_carried_elsewhere_are_refused() {
    let mut row = Row::open().await;
    for n in 0..3 {
        row.publish("an event", publish_request(TYPE, &json!({ "n": n })), Fine).await;
    }
    let page = ListEventsRequest { page_size: 1, ..Default::default() };
    let cursor = row.tenant.events().list_events(page.clone()).await.expect("a page").into_inner().next_cursor;
    let request = ListEventTypesRequest { page_size: 1, ..Default::default() };
    let token = row.tenant.types().list_event_types(request).await.expect("a page").into_inner().next_page_token;
    let mut changed: Vec<(String, String)> = Vec::new();
    for (what, good) in [("cursor", &cursor), ("token", &token)] {
        for at in 0..good.len() {
            let mut bytes = good.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'Q' } else { b'A' };
            let text = String::from_utf8(bytes).expect("ASCII");
            if text != *good {
                changed.push((format!("a {what} with another character at {at}"), text));
            }
        }
        for length in [1, 2, good.len() / 2, good.len() - 1] {
            changed.push((format!("a {what} cut to {length}"), good[..length].to_owned()));
        }
        changed.push((format!("a {what} that goes on"), format!("{good}A")));
        changed.push((format!("a {what} with padding"), format!("{good}==")));
        changed.push((format!("a {what} twice"), good.repeat(2)));
        changed.push((format!("a {what} in upper case"), good.to_uppercase()));
    }
    for text in [" ", "0", "\0", "null", "../", "\u{202e}", "AAAA"] {
        changed.push((format!("{text:?}"), text.to_owned()));
    }
    changed.push(("100 KiB".to_owned(), "A".repeat(100 << 10)));
    let mut cursors = changed.clone();
    cursors.push(("a page token".to_owned(), token.clone()));
    let mut texts = Vec::new();
    let mut events = row.tenant.events();
    for (member, text) in cursors {
        let request = ListEventsRequest { cursor: text.clone(), ..Default::default() };
        let listed = events.list_events(request).await;
        texts.extend(listed.as_ref().err().map(|status| (status.message().to_owned(), status.details().to_vec())));
        row.check(&member, listed, MALFORMED);
        let request = WatchRequest { start: Some(Start::Cursor(text.clone())), ..Default::default() };
        row.check(&member, events.watch(request).await, MALFORMED);
        let start = Some(Start::Watch("wat_00000000000000000000000000".to_owned()));
        let request = WatchRequest { start, resume_cursor: text, ..Default::default() };
        let resumed = Refused(Code::InvalidArgument, "CURSOR_MALFORMED", "resume_cursor");
        row.check(&member, events.watch(request).await, resumed);
    }
    texts.dedup();
    row.ensure("all of them", texts.len() == 1, "tampering is told apart");
    let mut tokens = changed;
    tokens.push(("a cursor".to_owned(), cursor.clone()));
    tokens.push(("another call's".to_owned(), token.clone()));
    for (member, text) in tokens {
        let request = ListSubscriptionsRequest { page_token: text.clone(), ..Default::default() };
        row.check(&member, events.list_subscriptions(request).await, UNREADABLE);
        let request = ListInvocationsRequest { page_token: text, ..Default::default() };
        row.check(&member, row.tenant.invocations().list_invocations(request).await, UNREADABLE);
    }
    let request = ListEventTypesRequest { page_token: token.clone(), origin: 2, ..Default::default() };
    row.check("with another filter", row.tenant.types().list_event_types(request).await, UNREADABLE);

    let other = row.world.tenant().await;
    let request = ListEventTypesRequest { page_token: token.clone(), ..Default::default() };
    row.check("another tenant's token", other.types().list_event_types(request).await, UNREADABLE);
    let request = ListEventsRequest { cursor: cursor.clone(), ..Default::default() };
    let foreign = Refused(Code::FailedPrecondition, "CURSOR_FOREIGN", "");
    row.check("another tenant's cursor", other.events().list_events(request.clone()).await, foreign);
    let watch = WatchRequest { start: Some(Start::Cursor(cursor)), ..Default::default() };
    row.check("another tenant's cursor", other.events().watch(watch).await, foreign);
    row.check("the good cursor", row.tenant.at[1].events.clone().list_events(request).await, Fine);
    let request = ListEventTypesRequest { page_token: token, ..Default::default() };
    row.check("the good token", row.tenant.at[1].types.clone().list_event_types(request).await, Fine);
    row.close().await;
}
