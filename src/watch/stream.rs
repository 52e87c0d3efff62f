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
use super::codec;
use super::filter_set::{FilterChange, FilterSet};
use super::ring::{Reading, RingEntry, Segment};
use super::select::{Group, select};
use super::slot::Slot;
use super::tail::{Page, Tail};
use super::terms::{Ending, OnExpired, Standing, Terms};
use crate::clock;
use crate::domain::access::Caller;
use crate::domain::ids::{Position, WatchId};
use crate::proto::public::watch_response::Kind;
use crate::proto::public::{EventView, WatchBookmark, WatchClosing, WatchCreated, WatchFilterChanged, WatchGap};
use crate::store::StoreError;
use crate::store::events::LogPlace;
use crate::telemetry::measured;
use bytes::Bytes;
use futures::Stream;
use futures::future::{BoxFuture, FutureExt as _, join, ready};
use std::collections::VecDeque;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

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
    group: Arc<Group>,
    filter_version: i64,
    /// Changes at places further on, which an earlier watch saw there.
    scheduled: VecDeque<(LogPlace, FilterChange)>,
    /// A change that is on its way into effect at this place; nothing is sent meanwhile.
    applying: Option<Box<Applying>>,
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
    expires_at: Option<Instant>,
    caller: Caller,
    check_at: Instant,
    checking: Option<BoxFuture<'static, Standing>>,
    timer: Pin<Box<Sleep>>,
}

/// A change of filters on its way into effect.
struct Applying {
    version: i64,
    /// The filters, and true where they are in effect from here on, false where they were withdrawn.
    becoming: BoxFuture<'static, (bool, FilterSet)>,
}

enum Turn {
    /// A message to send.
    Message(Bytes),
    /// Nothing to send; the waker is registered with what it waits for, or nothing is there.
    Nothing,
    /// Much was looked at in vain; go on later.
    Yield,
    /// Costly filters wait for their time.
    Wait(Instant),
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
            group: tail.group(terms.filters, terms.app),
            filter_version: terms.filter_version,
            scheduled: terms.scheduled,
            applying: None,
            view: terms.view,
            on_expired: terms.on_expired,
            reading: None,
            held: VecDeque::new(),
            filtered_out: 0,
            bookmark_interval: terms.bookmark_interval,
            last_message: now,
            ends_at: terms.ends_at,
            expires_at: terms.expires_at,
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

    /// Its identifier.
    pub fn id(&self) -> WatchId {
        self.slot.id()
    }

    /// The place up to which everything was sent or filtered out.
    pub fn position(&self) -> Position {
        self.at.after
    }

    /// The transport, which has not asked for more, has taken some of the last message.
    pub fn note_taken(&mut self) {
        self.slot.note_handed(Instant::now());
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Ending>>> {
        match std::mem::replace(&mut self.phase, Phase::Open) {
            Phase::Opening => {
                let watch_id = self.slot.id().to_string();
                return self.message(Kind::Created(WatchCreated { watch_id, filter_version: self.filter_version }));
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
            let changed = self.change_filters(cx);
            if let Poll::Ready(Some(changed)) = changed {
                return self.message(changed);
            }
            // A change on its way into effect holds its place: nothing may be sent past it.
            let is_held = changed.is_pending();
            match if is_held { Turn::Nothing } else { self.produce(cx) } {
                Turn::Message(frame) => {
                    self.note_message(now);
                    return Poll::Ready(Some(Ok(frame)));
                }
                Turn::End(ending) => return self.close(ending),
                Turn::Yield => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Turn::Wait(at) => {
                    if now >= self.last_message + self.bookmark_interval {
                        return self.message(self.bookmark());
                    }
                    self.slot.register(cx.waker());
                    self.timer.as_mut().reset(at.min(self.last_message + self.bookmark_interval));
                    if self.timer.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    continue;
                }
                Turn::Nothing => {}
            }
            if now >= self.last_message + self.bookmark_interval {
                return self.message(self.bookmark());
            }
            // First register, then look again: what changed in between is either seen here or wakes.
            self.slot.register(cx.waker());
            let has_more = self.reading.is_none() && self.tail.end() > self.at.after
                || self.slot.is_asked() && self.scheduled.is_empty();
            if has_more && !is_held || self.shared.is_draining() || self.tail.is_over() {
                continue;
            }
            let end = self.expires_at.map_or(self.ends_at, |expiry| expiry.min(self.ends_at));
            let deadline = (self.last_message + self.bookmark_interval).min(end).min(self.next_check());
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
        if self.tail.is_over() {
            return Some(Ending::Foreign);
        }
        if self.shared.is_draining() {
            return Some(Ending::Draining);
        }
        if self.expires_at.is_some_and(|expiry| now >= expiry) {
            return Some(Ending::CredentialInvalid);
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

    /// Puts the next change of filters into effect at the present place, once it is compiled, and recorded there. Pending while that takes.
    fn change_filters(&mut self, cx: &mut Context<'_>) -> Poll<Option<Kind>> {
        loop {
            if let Some(applying) = &mut self.applying {
                let Poll::Ready((in_effect, set)) = applying.becoming.as_mut().poll(cx) else { return Poll::Pending };
                if let Some(applied) = self.applying.take().filter(|_| in_effect) {
                    return Poll::Ready(Some(self.filters_changed(applied.version, set)));
                }
            }
            let tenant = self.caller.tenant;
            let (change, recording) = if self.scheduled.is_empty() {
                let Some(change) = self.slot.take_change() else { return Poll::Ready(None) };
                // News comes more than once.
                if change.version <= self.filter_version {
                    continue;
                }
                let recording = (self.shared.record)(tenant, self.slot.id(), change.version, self.at);
                (*change, recording)
            } else {
                let due = self.scheduled.pop_front_if(|(place, _)| place.after <= self.at.after);
                let Some((_, change)) = due else { return Poll::Ready(None) };
                // It was recorded with the stream.
                (change, ready(true).boxed())
            };
            let set = change.set.reusing(&self.group.filters);
            let becoming = join(recording, set.compiled(tenant)).boxed();
            self.applying = Some(Box::new(Applying { version: change.version, becoming }));
        }
    }

    fn filters_changed(&mut self, version: i64, set: FilterSet) -> Kind {
        let app = self.group.filters.app().map(Arc::from);
        self.group = self.tail.group(set, app);
        self.filter_version = version;
        Kind::FilterChanged(WatchFilterChanged { filter_version: version })
    }

    /// Makes the next message, if there is anything to send.
    fn produce(&mut self, cx: &mut Context<'_>) -> Turn {
        loop {
            // The turn of costly filters is waited for here, where nothing is held that others could need.
            if !self.held.is_empty() {
                if let Some(at) = self.tail.filters_wait(&self.group, Instant::now()) {
                    return Turn::Wait(at);
                }
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
            if self.scheduled.is_empty()
                && let Some(segment) = self.tail.segment(&self.group, self.at.after, self.view)
            {
                return self.take_segment(segment);
            }
            match self.tail.read(self.at.after) {
                Reading::AtEnd => return Turn::Nothing,
                Reading::Behind { up_to } => {
                    measured().watch.fallen_out.inc();
                    self.reading = Some(self.tail.read_page(self.at, up_to));
                }
                Reading::Entries(entries) => {
                    if let Some(at) = self.tail.filters_wait(&self.group, Instant::now()) {
                        return Turn::Wait(at);
                    }
                    if !self.scheduled.is_empty() {
                        return self.deliver(&entries, Leftover::InRing);
                    }
                    let made = self.tail.make_segment(&self.group, &entries, self.view);
                    return made.map_or(Turn::Nothing, |segment| self.take_segment(segment));
                }
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

    /// Sends what all streams with these filters send from here.
    fn take_segment(&mut self, segment: Segment) -> Turn {
        self.at = segment.to;
        self.filtered_out = self.filtered_out.saturating_add(segment.skipped);
        segment.frame.map_or_else(|| self.found_nothing(), Turn::Message)
    }

    /// Looks at entries that no other stream shares, up to the next change of filters.
    fn deliver(&mut self, entries: &[Arc<RingEntry>], leftover: Leftover) -> Turn {
        let group = Arc::clone(&self.group);
        let up_to = self.scheduled.front().map_or(Position::MAX, |(place, _)| place.after);
        let found = select(&group.filters, entries, self.view, &self.shared.config, up_to);
        self.tail.charge(&group, found.took, found.looked_at);
        self.filtered_out = self.filtered_out.saturating_add(found.skipped);
        if let Some(to) = found.to {
            self.at = to;
        }
        if leftover == Leftover::Keep {
            self.held = entries[found.looked_at..].iter().cloned().collect();
        }
        if found.wanted.is_empty() {
            self.found_nothing()
        } else {
            Turn::Message(codec::events_frame(&self.tail.cursor(self.at), &found.wanted, self.view))
        }
    }

    fn found_nothing(&self) -> Turn {
        if self.filtered_out >= self.shared.config.bookmark_events {
            Turn::Message(codec::frame(self.tail.cursor(self.at), self.bookmark()))
        } else {
            Turn::Yield
        }
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
            reason: (self.shared.ending_reason)(&ending).to_owned(),
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
        self.shared.release(&self.slot);
        self.tail.leave(self.slot.id());
    }
}

#[cfg(test)]
mod tests;
