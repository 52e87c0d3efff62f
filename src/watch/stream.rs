//! One watch: a state machine that makes the next message when the transport asks for it, and nothing before.
//!
//! ```text
//! Created -> { ring, or pages from the store while behind it } -> Events | Bookmark | Gap ... -> Closing -> the reason as status
//! ```
//!
//! A stream is a place in the log. Every message carries the cursor of the place after it, and the place moves only forward and
//! only over positions that were looked at, so whatever ends a stream, the last cursor resumes it without gap or overlap.
//! There is no buffer between the ring and the transport: a reader that is slow holds nothing but its place.

use super::Shared;
use super::codec::{self, Delivery};
use super::filter::{Filters, Verdict};
use super::ring::{Reading, RingEntry};
use super::slot::Slot;
use super::tail::{Page, Tail};
use crate::clock;
use crate::domain::access::Caller;
use crate::domain::ids::Position;
use crate::proto::public::watch_response::Kind;
use crate::proto::public::{EventView, WatchBookmark, WatchClosing, WatchCreated, WatchGap};
use crate::store::StoreError;
use crate::store::events::LogPlace;
use crate::telemetry::measured;
use bytes::Bytes;
use futures::Stream;
use futures::future::BoxFuture;
use std::collections::VecDeque;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// Events that one turn may look at without finding one to deliver, before others get theirs.
const EVENTS_PER_TURN: usize = 256;

/// What to do where retention has removed what comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExpired {
    /// End with the earliest cursor.
    Fail,
    /// Say what is missing and go on.
    FromEarliest,
}

/// Whether a credential still allows what it is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It does.
    Valid,
    /// It was revoked, has expired or lost its role.
    Revoked,
    /// It could not be looked up just now.
    Unknown,
}

/// Asks whether a caller's credential still holds.
pub type CredentialCheck = dyn Fn(&Caller) -> BoxFuture<'static, Standing> + Send + Sync;

/// Why the server ended a stream.
#[derive(Debug, thiserror::Error)]
pub enum Ending {
    /// The server goes down.
    #[error("the server is draining")]
    Draining,
    /// The stream is old enough.
    #[error("the stream has reached its age")]
    Age {
        /// Where to go on.
        resume_cursor: String,
    },
    /// The reader took nothing for too long.
    #[error("the reader made no progress")]
    SlowConsumer {
        /// Where to go on.
        resume_cursor: String,
    },
    /// The credential was revoked.
    #[error("the credential no longer holds")]
    CredentialInvalid,
    /// Retention was faster, and the caller wants to be told by an error.
    #[error("the events that come next are no longer retained")]
    Expired {
        /// The first usable cursor.
        earliest_cursor: String,
    },
    /// The store cannot be read.
    #[error("the log cannot be read")]
    Store(#[source] StoreError),
}

impl Ending {
    /// Its name among the error reasons.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Draining => "SERVER_DRAINING",
            Self::Age { .. } => "STREAM_AGE",
            Self::SlowConsumer { .. } => "SLOW_CONSUMER",
            Self::CredentialInvalid => "CREDENTIAL_INVALID",
            Self::Expired { .. } => "CURSOR_EXPIRED",
            Self::Store(_) => "STORE_UNAVAILABLE",
        }
    }
}

/// What makes one watch different from another.
pub(super) struct Terms {
    pub(super) caller: Caller,
    pub(super) filters: Filters,
    pub(super) view: EventView,
    pub(super) on_expired: OnExpired,
    pub(super) bookmark_interval: Duration,
    pub(super) start: LogPlace,
    /// Where to go on where the events after `start` are missing.
    pub(super) gap: Option<LogPlace>,
}

enum Phase {
    Opening,
    Open,
    Closing(Ending),
    Done,
}

/// One watch, as a stream of gRPC frames that may end with a reason.
pub struct WatchStream {
    shared: Arc<Shared>,
    tail: Arc<Tail>,
    slot: Arc<Slot>,
    phase: Phase,
    at: LogPlace,
    gap: Option<LogPlace>,
    filters: Filters,
    is_plain: bool,
    view: EventView,
    on_expired: OnExpired,
    /// A page that is on its way from the store.
    reading: Option<BoxFuture<'static, Result<Page, StoreError>>>,
    /// What is left of the last page.
    held: VecDeque<Arc<RingEntry>>,
    filtered_out: u32,
    bookmark_interval: Duration,
    last_message: Instant,
    ends_at: Instant,
    caller: Caller,
    check_at: Instant,
    checking: Option<BoxFuture<'static, Standing>>,
    timer: Pin<Box<Sleep>>,
}

enum Turn {
    /// A message to send.
    Message(Bytes),
    /// Nothing to send; the waker is registered with what it waits for, or nothing is there.
    Nothing,
    /// Much was looked at in vain; go on later.
    Yield,
    /// The end.
    End(Ending),
}

impl WatchStream {
    pub(super) fn new(shared: Arc<Shared>, tail: Arc<Tail>, slot: Arc<Slot>, terms: Terms) -> Self {
        let now = Instant::now();
        let check_every = Duration::from_millis(shared.config.credential_check_ms);
        Self {
            phase: Phase::Opening,
            at: terms.start,
            gap: terms.gap,
            is_plain: terms.filters.is_plain(),
            filters: terms.filters,
            view: terms.view,
            on_expired: terms.on_expired,
            reading: None,
            held: VecDeque::new(),
            filtered_out: 0,
            bookmark_interval: terms.bookmark_interval,
            last_message: now,
            ends_at: now + shared.config.stream_age(clock::jitter()),
            caller: terms.caller,
            // Streams that were opened together do not ask together.
            check_at: now + check_every.mul_f64(0.5 + clock::jitter() / 2.0),
            checking: None,
            timer: Box::pin(tokio::time::sleep_until(now)),
            shared,
            tail,
            slot,
        }
    }

    /// The place up to which everything was sent or filtered out.
    pub fn position(&self) -> Position {
        self.at.after
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Ending>>> {
        match std::mem::replace(&mut self.phase, Phase::Open) {
            Phase::Opening => {
                let watch_id = self.slot.id().to_string();
                return self.message(Kind::Created(WatchCreated { watch_id }));
            }
            Phase::Open => {}
            Phase::Closing(ending) => {
                self.phase = Phase::Done;
                return Poll::Ready(Some(Err(ending)));
            }
            Phase::Done => {
                self.phase = Phase::Done;
                return Poll::Ready(None);
            }
        }
        loop {
            let now = Instant::now();
            if let Some(ending) = self.must_end(now, cx) {
                return self.close(ending);
            }
            if let Some(earliest) = self.gap.take() {
                let gap = self.skip_to(earliest);
                return self.message(gap);
            }
            match self.produce(cx) {
                Turn::Message(frame) => {
                    self.note_message(now);
                    return Poll::Ready(Some(Ok(frame)));
                }
                Turn::End(ending) => {
                    self.phase = Phase::Done;
                    return Poll::Ready(Some(Err(ending)));
                }
                Turn::Yield => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Turn::Nothing => {}
            }
            if now >= self.last_message + self.bookmark_interval {
                return self.message(self.bookmark());
            }
            // First register, then look again: what changed in between is either seen here or wakes.
            self.slot.register(cx.waker());
            let has_more = self.reading.is_none() && self.tail.end() > self.at.after;
            if has_more || self.shared.is_draining() {
                continue;
            }
            let deadline = (self.last_message + self.bookmark_interval).min(self.ends_at).min(self.next_check());
            // Messages move the deadline away all the time; the timer is only ever moved closer, and set again when it fires.
            if deadline < self.timer.deadline() || self.timer.is_elapsed() {
                self.timer.as_mut().reset(deadline);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// When to ask for the credential's standing; far away while the answer is on its way.
    fn next_check(&self) -> Instant {
        if self.checking.is_some() { self.ends_at } else { self.check_at }
    }

    /// Why the stream must end now, the place it has reached put aside.
    fn must_end(&mut self, now: Instant, cx: &mut Context<'_>) -> Option<Ending> {
        if self.slot.is_stalled(self.shared.config.stall_timeout(), now) {
            return Some(Ending::SlowConsumer { resume_cursor: self.tail.cursor(self.at) });
        }
        if self.shared.is_draining() {
            return Some(Ending::Draining);
        }
        if now >= self.ends_at {
            return Some(Ending::Age { resume_cursor: self.tail.cursor(self.at) });
        }
        if self.checking.is_none() && now >= self.check_at {
            self.checking = Some((self.shared.credential_check)(&self.caller));
        }
        if let Some(checking) = &mut self.checking
            && let Poll::Ready(standing) = checking.as_mut().poll(cx)
        {
            self.checking = None;
            self.check_at = now + Duration::from_millis(self.shared.config.credential_check_ms);
            if standing == Standing::Revoked {
                return Some(Ending::CredentialInvalid);
            }
        }
        None
    }

    /// Makes the next message, if there is anything to send.
    fn produce(&mut self, cx: &mut Context<'_>) -> Turn {
        loop {
            if !self.held.is_empty() {
                let held: Vec<_> = std::mem::take(&mut self.held).into();
                return self.deliver(&held, Leftover::Keep);
            }
            if let Some(reading) = &mut self.reading {
                let Poll::Ready(page) = reading.as_mut().poll(cx) else { return Turn::Nothing };
                self.reading = None;
                match page {
                    Err(error) => return Turn::End(Ending::Store(error)),
                    Ok(page) => {
                        if let Some(turn) = self.take_page(page) {
                            return turn;
                        }
                        continue;
                    }
                }
            }
            if self.is_plain
                && let Some(segment) = self.tail.segment(self.at.after, self.view)
            {
                self.at = segment.to;
                return Turn::Message(segment.frame);
            }
            match self.tail.read(self.at.after) {
                Reading::AtEnd => return Turn::Nothing,
                Reading::Behind { up_to } => {
                    measured().watch.fallen_out.inc();
                    self.reading = Some(self.tail.read_page(self.at, up_to));
                }
                Reading::Entries(entries) if self.is_plain => {
                    let Some(segment) = self.tail.make_segment(&entries, self.view) else { return Turn::Nothing };
                    self.at = segment.to;
                    return Turn::Message(segment.frame);
                }
                Reading::Entries(entries) => return self.deliver(&entries, Leftover::InRing),
            }
        }
    }

    /// Takes a page from the store; a turn where retention has made a hole before it.
    fn take_page(&mut self, page: Page) -> Option<Turn> {
        let missing_from = self.at.after + 1;
        if page.readable_from > missing_from {
            let earliest = LogPlace { after: page.readable_from - 1, day: self.at.day };
            if self.on_expired == OnExpired::Fail {
                return Some(Turn::End(Ending::Expired { earliest_cursor: self.tail.cursor(earliest) }));
            }
            let gap = self.skip_to(earliest);
            self.held = page.entries.into_iter().map(|entry| Arc::new(RingEntry::new(entry))).collect();
            return Some(Turn::Message(codec::frame(self.tail.cursor(self.at), gap)));
        }
        self.held = page.entries.into_iter().map(|entry| Arc::new(RingEntry::new(entry))).collect();
        None
    }

    /// Looks at entries in order, up to the bounds of a message and of a turn.
    fn deliver(&mut self, entries: &[Arc<RingEntry>], leftover: Leftover) -> Turn {
        let mut wanted = Vec::new();
        let mut bytes = 0;
        let mut looked_at = 0;
        for entry in entries {
            let verdict = self.filters.verdict(&entry.entry().event);
            if let Verdict::Deliver(matched) = verdict {
                bytes += codec::entry_size(entry, self.view);
                if !wanted.is_empty() && bytes > self.shared.config.message_bytes_max {
                    break;
                }
                wanted.push(Delivery { entry, names: self.filters.names(matched).collect() });
            } else {
                self.filtered_out = self.filtered_out.saturating_add(1);
            }
            self.at = LogPlace { after: entry.position(), day: entry.entry().day() };
            looked_at += 1;
            if !self.is_plain && looked_at >= EVENTS_PER_TURN {
                break;
            }
        }
        let turn = if !wanted.is_empty() {
            Turn::Message(codec::events_frame(&self.tail.cursor(self.at), &wanted, self.view))
        } else if self.filtered_out >= self.shared.config.bookmark_events {
            Turn::Message(codec::frame(self.tail.cursor(self.at), self.bookmark()))
        } else {
            Turn::Yield
        };
        drop(wanted);
        if leftover == Leftover::Keep {
            self.held = entries[looked_at..].iter().cloned().collect();
        }
        turn
    }

    /// Goes on at a place further ahead, and says so.
    fn skip_to(&mut self, earliest: LogPlace) -> Kind {
        let from_position = self.at.after + 1;
        self.at = earliest;
        Kind::Gap(WatchGap { from_position, to_position: earliest.after + 1 })
    }

    fn bookmark(&self) -> Kind {
        Kind::Bookmark(WatchBookmark { caught_up: self.tail.is_at_end(self.at.after) })
    }

    fn message(&mut self, kind: Kind) -> Poll<Option<Result<Bytes, Ending>>> {
        self.note_message(Instant::now());
        Poll::Ready(Some(Ok(codec::frame(self.tail.cursor(self.at), kind))))
    }

    fn note_message(&mut self, now: Instant) {
        self.last_message = now;
        self.filtered_out = 0;
    }

    /// Says goodbye with the place reached; the reason follows as the stream's status.
    fn close(&mut self, ending: Ending) -> Poll<Option<Result<Bytes, Ending>>> {
        // Clients of a server that goes away must not all come back in the same instant.
        let delay = Duration::from_secs(2).mul_f64(clock::jitter());
        let closing = WatchClosing {
            reason: ending.reason().to_owned(),
            resume_cursor: self.tail.cursor(self.at),
            retry_delay: Some(delay.into()),
        };
        self.phase = Phase::Closing(ending);
        self.message(Kind::Closing(closing))
    }
}

/// What becomes of entries that a message has no room for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leftover {
    /// They came from the store: keep them for the next message.
    Keep,
    /// They are in the ring.
    InRing,
}

impl Stream for WatchStream {
    type Item = Result<Bytes, Ending>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let step = this.turn(cx);
        if let Poll::Ready(Some(Ok(frame))) = &step {
            measured().watch.messages.inc();
            measured().watch.sent_bytes.inc_by(frame.len() as u64);
        }
        match &step {
            Poll::Ready(_) => this.slot.note_handed(Instant::now()),
            Poll::Pending => this.slot.note_waiting(),
        }
        step
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        self.shared.release(self.caller.tenant, self.slot.id());
        self.tail.leave(self.slot.id());
    }
}

#[cfg(test)]
mod tests;
