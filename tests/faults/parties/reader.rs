//! Readers of the log: watches that resume on any replica with the cursor they have, and one that lists pages.
//!
//! What a reader was given is written down before its cursor is used again.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use carillon::proto::public::watch_request::Start;
use carillon::proto::public::watch_response::Kind;
use carillon::proto::public::{ListEventsRequest, WatchFilter, WatchRequest, WatchResponse};
use pbjson_types::Duration as ProtoDuration;
use tonic::Streaming;

use super::{Link, answered, reason, rest};
use crate::record::{Log, Record, Share};

/// Bookmarks come at least this often, so that a silent stream is a dead one.
pub(super) const BOOKMARKS: ProtoDuration = ProtoDuration { seconds: 0, nanos: 300_000_000 };
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(3);
pub(super) const AGAIN: Duration = Duration::from_millis(100);
/// Other replicas have heard of the log's end by then.
pub(super) const SETTLED: Duration = Duration::from_millis(1_500);

/// Which events a reader reads; an empty type is every type.
#[derive(Debug, Clone)]
pub struct Taste {
    pub event_type: String,
    pub share: Share,
}

/// Watches until the log is complete and read to its end.
pub async fn watch(mut link: Link, log: Log, taste: Taste) {
    let streams = AtomicU32::new(0);
    let mut cursor = String::new();
    loop {
        let request = WatchRequest {
            filters: vec![WatchFilter {
                name: String::new(),
                event_types: if taste.event_type.is_empty() { Vec::new() } else { vec![taste.event_type.clone()] },
                filter: taste.share.expression(),
            }],
            start: Some(if cursor.is_empty() { Start::Earliest(true) } else { Start::Cursor(cursor.clone()) }),
            bookmark_interval: Some(BOOKMARKS),
            ..Default::default()
        };
        match answered(link.events().watch(request)).await {
            Ok(stream) => {
                let number = streams.fetch_add(1, Ordering::Relaxed);
                open(&log, number, &taste);
                let reason = follow(&link, &log, number, stream, &mut cursor).await;
                log.write(&Record::Closed { at: log.now(), stream: number, reason: reason.clone() });
                if reason == DONE {
                    break;
                }
            }
            Err(status) => {
                let number = streams.fetch_add(1, Ordering::Relaxed);
                log.write(&Record::Closed { at: log.now(), stream: number, reason: reason(&status) });
            }
        }
        link.turn();
        rest(AGAIN).await;
    }
    log.write(&Record::Finished { position: link.scene.end().unwrap_or_default() });
}

const DONE: &str = "DONE";

/// Takes messages until the stream ends or everything is read; says why.
async fn follow(
    link: &Link,
    log: &Log,
    number: u32,
    mut stream: Streaming<WatchResponse>,
    cursor: &mut String,
) -> String {
    // A stream now and then ends by its reader's wish.
    let age = Duration::from_secs(5 + u64::from(number % 7) * 3);
    let born = tokio::time::Instant::now();
    let mut complete_since = None;
    loop {
        if link.scene.end().is_some() {
            complete_since.get_or_insert_with(tokio::time::Instant::now);
        } else if born.elapsed() > age {
            return "LEFT".to_owned();
        }
        let message = match tokio::time::timeout(SILENCE_MAX, stream.message()).await {
            Err(_) => return "SILENT".to_owned(),
            Ok(Err(status)) => return reason(&status),
            Ok(Ok(None)) => return "ENDED".to_owned(),
            Ok(Ok(Some(message))) => message,
        };
        match message.kind {
            Some(Kind::Events(events)) => {
                for event in events.events.into_iter().filter_map(|watched| watched.event) {
                    log.write(&Record::Seen { stream: number, position: event.position, event_id: event.id });
                }
            }
            Some(Kind::Bookmark(bookmark)) => {
                let settled = complete_since.is_some_and(|since| since.elapsed() > SETTLED);
                if bookmark.caught_up && settled {
                    return DONE.to_owned();
                }
            }
            Some(Kind::Gap(gap)) => return format!("GAP {} {}", gap.from_position, gap.to_position),
            Some(Kind::Created(_) | Kind::Closing(_) | Kind::FilterChanged(_)) | None => {}
        }
        *cursor = message.cursor;
    }
}

/// Reads pages until the log is complete and read to its end.
pub async fn list(mut link: Link, log: Log) {
    let taste = Taste { event_type: String::new(), share: Share::ALL };
    open(&log, 0, &taste);
    let mut cursor = String::new();
    loop {
        let complete = link.scene.end().is_some();
        let page_size = i32::try_from(1 + link.random.below(200)).expect("it is small");
        let request = ListEventsRequest { page_size, cursor: cursor.clone(), ..Default::default() };
        match answered(link.events().list_events(request)).await {
            Ok(page) => {
                for event in page.events {
                    log.write(&Record::Seen { stream: 0, position: event.position, event_id: event.id });
                }
                cursor = page.next_cursor;
                if page.end_of_log && complete {
                    break;
                }
                if page.end_of_log {
                    link.scene.pause(AGAIN).await;
                }
            }
            Err(status) if link.scene.stop.is_cancelled() && reason(&status).starts_with("CURSOR") => {
                log.write(&Record::Closed { at: log.now(), stream: 0, reason: reason(&status) });
                return;
            }
            Err(_) => {
                link.turn();
                rest(AGAIN).await;
            }
        }
    }
    log.write(&Record::Finished { position: link.scene.end().unwrap_or_default() });
}

fn open(log: &Log, stream: u32, taste: &Taste) {
    let event_type = taste.event_type.clone();
    log.write(&Record::Opened { at: log.now(), stream, share: taste.share, event_type });
}
