//! A reader whose filter changes while its watch runs, by UpdateWatch on whichever replica: the change splits the stream at one place.
//!
//! The place is written down twice, as the stream says it and as the answer to the change does. After an end of the stream a later watch
//! takes filter and place up again (`start: watch`).

use std::time::Duration;

use carillon::proto::public::watch_request::Start;
use carillon::proto::public::watch_response::Kind;
use carillon::proto::public::{ListEventsRequest, UpdateWatchRequest, WatchFilter, WatchRequest, WatchResponse};
use tokio::task::JoinHandle;
use tonic::Streaming;

use super::reader::{AGAIN, BOOKMARKS, SETTLED, SILENCE_MAX};
use super::{Link, answered, reason, rest};
use crate::record::{Log, Record, Share};

/// Name of the one filter.
const NAME: &str = "share";
/// Events of a stream between two changes.
const CHANGE_EVERY: u32 = 40;
const DONE: &str = "DONE";

/// What a change came to: the version and the cursor of its place.
type Changed = Option<(i64, String)>;

struct Switcher {
    link: Link,
    log: Log,
    /// Of the present stream, and its filter's version.
    watch_id: String,
    version: i64,
    cursor: String,
    /// Numbers streams.
    streams: u32,
    /// The change under way, with its filter.
    changing: Option<(Share, JoinHandle<Changed>)>,
    /// Places to be found in the log once it is complete: version, cursor, and whether an answer told it.
    places: Vec<(i64, String, bool)>,
}

/// Watches until the log is complete and read to its end.
pub async fn run(link: Link, log: Log) {
    let first = share(1);
    log.write(&Record::Chosen { version: 1, share: first });
    let mut switcher = Switcher {
        link,
        log,
        watch_id: String::new(),
        version: 1,
        cursor: String::new(),
        streams: 0,
        changing: None,
        places: Vec::new(),
    };
    loop {
        let request = switcher.request(first);
        let number = switcher.streams;
        switcher.streams += 1;
        let reason = match answered(switcher.link.events().watch(request)).await {
            Ok(stream) => switcher.follow(number, stream).await,
            Err(status) => reason(&status),
        };
        switcher.log.write(&Record::Closed { at: switcher.log.now(), stream: number, reason: reason.clone() });
        if reason == DONE {
            break;
        }
        switcher.link.turn();
        rest(AGAIN).await;
    }
    switcher.end().await;
}

impl Switcher {
    fn request(&self, first: Share) -> WatchRequest {
        let request = WatchRequest { bookmark_interval: Some(BOOKMARKS), ..Default::default() };
        if self.watch_id.is_empty() {
            return WatchRequest { filters: vec![filter(first)], start: Some(Start::Earliest(true)), ..request };
        }
        let start = Some(Start::Watch(self.watch_id.clone()));
        WatchRequest { start, resume_cursor: self.cursor.clone(), ..request }
    }

    /// Takes messages until the stream ends or everything is read; says why.
    async fn follow(&mut self, number: u32, mut stream: Streaming<WatchResponse>) -> String {
        // A stream now and then ends by its reader's wish.
        let age = Duration::from_secs(4 + u64::from(number % 5) * 3);
        let born = tokio::time::Instant::now();
        self.log.write(&Record::Opened {
            at: self.log.now(),
            stream: number,
            share: Share::ALL,
            event_type: String::new(),
        });
        let (mut complete_since, mut taken) = (None, 0);
        loop {
            if self.link.scene.end().is_some() {
                complete_since.get_or_insert_with(tokio::time::Instant::now);
            } else if born.elapsed() > age {
                return "LEFT".to_owned();
            }
            self.heard().await;
            if self.changing.is_none() && taken >= CHANGE_EVERY && !self.link.scene.stop.is_cancelled() {
                taken = 0;
                self.change();
            }
            let message = match tokio::time::timeout(SILENCE_MAX, stream.message()).await {
                Err(_) => return "SILENT".to_owned(),
                Ok(Err(status)) => return reason(&status),
                Ok(Ok(None)) => return "ENDED".to_owned(),
                Ok(Ok(Some(message))) => message,
            };
            match message.kind {
                Some(Kind::Created(created)) => {
                    self.watch_id = created.watch_id;
                    self.version = created.filter_version;
                }
                Some(Kind::FilterChanged(changed)) => {
                    self.version = changed.filter_version;
                    self.places.push((changed.filter_version, message.cursor.clone(), false));
                }
                Some(Kind::Events(events)) => {
                    for event in events.events.into_iter().filter_map(|watched| watched.event) {
                        taken += 1;
                        self.log.write(&Record::Seen { stream: number, position: event.position, event_id: event.id });
                    }
                }
                Some(Kind::Bookmark(bookmark)) => {
                    let settled = complete_since.is_some_and(|since| since.elapsed() > SETTLED);
                    if bookmark.caught_up && settled {
                        return DONE.to_owned();
                    }
                }
                Some(Kind::Gap(gap)) => return format!("GAP {} {}", gap.from_position, gap.to_position),
                Some(Kind::Closing(_)) | None => {}
            }
            self.cursor = message.cursor;
        }
    }

    /// Begins a change of the present stream's filter.
    fn change(&mut self) {
        let to = share(self.version + 1 + i64::from(self.streams));
        let request = UpdateWatchRequest {
            watch_id: self.watch_id.clone(),
            add: vec![filter(to)],
            filter_version: self.version,
            request_id: uuid::Uuid::new_v4().to_string(),
            ..Default::default()
        };
        let link = Link::new(&self.link.scene, self.link.random.fork());
        self.changing = Some((to, tokio::spawn(update(link, request))));
    }

    /// Writes down what a change came to, once that is known.
    async fn heard(&mut self) {
        if self.changing.as_ref().is_some_and(|(_, task)| task.is_finished())
            && let Some((share, task)) = self.changing.take()
            && let Ok(Some((version, cursor))) = task.await
        {
            self.log.write(&Record::Chosen { version, share });
            self.places.push((version, cursor, true));
        }
    }

    /// Finds every place in the log, which is complete.
    async fn end(mut self) {
        if let Some((share, task)) = self.changing.take()
            && let Ok(Some((version, cursor))) = task.await
        {
            self.log.write(&Record::Chosen { version, share });
            self.places.push((version, cursor, true));
        }
        let end = self.link.scene.end().unwrap_or_default();
        for (version, cursor, told) in std::mem::take(&mut self.places) {
            let after = loop {
                let request = ListEventsRequest { cursor: cursor.clone(), page_size: 1, ..Default::default() };
                match answered(self.link.events().list_events(request)).await {
                    Ok(page) => break page.events.first().map_or(end, |event| event.position - 1),
                    Err(_) => {
                        self.link.turn();
                        rest(AGAIN).await;
                    }
                }
            };
            self.log.write(&Record::Split { version, after, told });
        }
        self.log.write(&Record::Finished { position: end });
    }
}

/// Asks until it is known whether the change was made: a retry gets the first answer.
async fn update(mut link: Link, request: UpdateWatchRequest) -> Changed {
    let mut first = true;
    loop {
        match answered(link.events().update_watch(request.clone())).await {
            Ok(answer) => return Some((answer.filter_version, answer.cursor)),
            Err(status) => match reason(&status).as_str() {
                "WATCH_NOT_FOUND" | "QUOTA_EXCEEDED" => return None,
                // Later it may be the request itself that changes the filter just now.
                "ETAG_MISMATCH" if first => return None,
                _ => {}
            },
        }
        first = false;
        link.turn();
        rest(AGAIN).await;
    }
}

fn share(number: i64) -> Share {
    let modulus = 2 + number % 4;
    Share { modulus, remainder: number % modulus }
}

fn filter(share: Share) -> WatchFilter {
    WatchFilter { name: NAME.to_owned(), event_types: Vec::new(), filter: share.expression() }
}
