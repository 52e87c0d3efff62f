//! The tail of one watched tenant's log: one task that fills the ring from news and, where news has holes, from the store, and
//! wakes the streams once per batch.
//!
//! It goes by positions: news may come late, twice or out of order, and changes nothing but how soon an event is seen. It must
//! never put an event into the ring that does not directly follow the last one.

use super::codec;
use super::config::Config;
use super::filter_set::FilterSet;
use super::place;
use super::ring::{Reading, Ring, RingEntry, Rings, Segment, Segments};
use super::select::{Group, select};
use super::slot::Slot;
use crate::domain::cursor::CursorSealer;
use crate::domain::event::LogEntry;
use crate::domain::ids::{Position, TenantId, WatchId};
use crate::feed::Batch;
use crate::long_work::TURN;
use crate::proto::public::EventView;
use crate::store::StoreError;
use crate::store::events::LogPlace;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Batches of news that may wait for the ones before them.
const WAITING_BATCHES_MAX: usize = 1_024;
/// First and last delay between reads that fail.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// How long a stream that is behind tries to read before it ends: longer than a fail-over of Postgres takes.
const READ_PATIENCE: Duration = Duration::from_secs(30);
const NO_PANIC: &str = "nothing panics while it holds the lock";

/// Entries read from the store.
#[derive(Debug, Clone)]
pub(super) struct Page {
    /// In order and contiguous.
    pub(super) entries: Vec<Arc<LogEntry>>,
    /// The first position, among those asked for, that can be read: later than the first asked for where retention was faster.
    pub(super) readable_from: Position,
}

/// Reads the page after a place, up to a position. Bounded in size and in how many run at once by whoever makes it.
pub(super) type ReadPage = dyn Fn(LogPlace, Position) -> BoxFuture<'static, Result<Page, StoreError>> + Send + Sync;

/// How the store is read for one tenant.
pub(super) struct Reads {
    /// By the tail itself.
    pub(super) fill: Arc<ReadPage>,
    /// By streams that are behind the ring.
    pub(super) catch_up: Arc<ReadPage>,
}

/// The tail of one tenant's log.
pub(super) struct Tail {
    tenant: TenantId,
    epoch: i64,
    sealer: CursorSealer,
    config: Arc<Config>,
    reads: Reads,
    ring: Mutex<Ring>,
    segments: Mutex<Segments>,
    /// The ring's last position, readable without its lock.
    end: AtomicI64,
    /// The furthest position that is known to be committed.
    known: AtomicI64,
    /// The log has begun another life: what is read by positions from now on are other events.
    is_over: AtomicBool,
    inbox: Mutex<Vec<Arc<Batch>>>,
    news: Notify,
    slots: Mutex<HashMap<WatchId, Arc<Slot>>>,
    groups: Mutex<Groups>,
    /// When costly filters of the tenant's watches may be evaluated again.
    filters_at: Mutex<Instant>,
}

/// The filters in use, by their encoded form.
#[derive(Default)]
struct Groups {
    known: HashMap<Vec<u8>, Weak<Group>>,
    last_id: u32,
    /// How many there were after those without a watch were last forgotten.
    kept: usize,
}

impl Tail {
    /// A tail that goes on after the log's present end.
    pub(super) fn new(
        tenant: TenantId,
        epoch: i64,
        end: LogPlace,
        sealer: CursorSealer,
        config: Arc<Config>,
        rings: Rings,
        reads: Reads,
    ) -> Self {
        Self {
            tenant,
            epoch,
            sealer,
            reads,
            ring: Mutex::new(Ring::new(end, config.ring_entries_max, config.ring_bytes_max, rings)),
            segments: Mutex::new(Segments::new(config.shared_bytes_max)),
            end: AtomicI64::new(end.after),
            known: AtomicI64::new(end.after),
            is_over: AtomicBool::new(false),
            inbox: Mutex::default(),
            news: Notify::new(),
            slots: Mutex::default(),
            groups: Mutex::default(),
            filters_at: Mutex::new(Instant::now()),
            config,
        }
    }

    /// Which life of the log it reads.
    pub(super) fn epoch(&self) -> i64 {
        self.epoch
    }

    /// Ends its streams: the log has begun another life.
    pub(super) fn end_life(&self) {
        self.is_over.store(true, Ordering::Release);
        self.wake();
    }

    /// True where the log has begun another life.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// What the ring holds: entries, and the bytes that they cost.
    pub(super) fn ring_size(&self) -> (usize, usize) {
        self.ring.lock().expect(NO_PANIC).size()
    }

    /// The last position that streams can read from the ring.
    pub(super) fn end(&self) -> Position {
        self.end.load(Ordering::Acquire)
    }

    /// True where a position is the log's end, as far as is known here.
    pub(super) fn is_at_end(&self, position: Position) -> bool {
        position >= self.end() && position >= self.known.load(Ordering::Acquire)
    }

    /// The text form of a place in this log.
    pub(super) fn cursor(&self, at: LogPlace) -> String {
        place::to_cursor(&self.sealer, self.tenant, self.epoch, at)
    }

    /// A read of the store for a stream that is behind the ring. One that fails is tried again, for a while.
    pub(super) fn read_page(&self, after: LogPlace, up_to: Position) -> BoxFuture<'static, Result<Page, StoreError>> {
        let (read, tenant) = (Arc::clone(&self.reads.catch_up), self.tenant);
        async move {
            let (begun, mut retry) = (Instant::now(), RETRY_MIN);
            loop {
                match read(after, up_to).await {
                    Err(error) if begun.elapsed() + retry < READ_PATIENCE => {
                        tracing::warn!(error = &error as &dyn std::error::Error, %tenant, "a watch that is behind cannot read");
                        tokio::time::sleep(retry).await;
                        retry = (retry * 2).min(RETRY_MAX);
                    }
                    done => return done,
                }
            }
        }
        .boxed()
    }

    /// The entries after a position that the ring still has.
    pub(super) fn read(&self, after: Position) -> Reading {
        self.ring.lock().expect(NO_PANIC).read(after, self.config.message_events_max)
    }

    /// The group of all watches with these filters, of credentials that are limited to the same app or to none.
    pub(super) fn group(&self, set: FilterSet, app: Option<Arc<str>>) -> Arc<Group> {
        let mut key = set.encode();
        key.push(u8::from(app.is_some()));
        key.extend_from_slice(app.as_deref().unwrap_or_default().as_bytes());
        let filters = set.into_filters().of_app(app);
        // Two ways to say "everything" are one group.
        let key = if filters.is_plain() { Vec::new() } else { key };
        let mut groups = self.groups.lock().expect(NO_PANIC);
        if let Some(group) = groups.known.get(&key).and_then(Weak::upgrade) {
            return group;
        }
        if groups.known.len() > 2 * groups.kept + 16 {
            groups.known.retain(|_, group| group.strong_count() > 0);
            groups.kept = groups.known.len();
        }
        groups.last_id = groups.last_id.wrapping_add(1);
        let group = Arc::new(Group::new(groups.last_id, filters));
        groups.known.insert(key, Arc::downgrade(&group));
        group
    }

    /// Until when a stream waits whose filters are costly, and looks again; none where it has its turn. What is costly of a tenant has one
    /// turn at a time, and as long a pause after it: together it takes half of one thread.
    pub(super) fn filters_wait(&self, group: &Group, now: Instant) -> Option<Instant> {
        let expected = group.costs()?;
        let mut at = self.filters_at.lock().expect(NO_PANIC);
        if *at > now {
            return Some(*at);
        }
        *at = now + expected;
        None
    }

    /// Notes what a group's filters took for so many events.
    pub(super) fn charge(&self, group: &Group, took: Duration, looked_at: usize) {
        // A thread that was paused meanwhile is no cost of filters.
        let took = took.min(TURN * 16);
        group.note(took, looked_at);
        if group.costs().is_some() {
            let mut at = self.filters_at.lock().expect(NO_PANIC);
            *at = (*at).max(Instant::now() + took);
        }
    }

    /// The message of what a group wants after a position, shared by all its streams that are there; none where it was not made
    /// yet.
    pub(super) fn segment(&self, group: &Group, after: Position, view: EventView) -> Option<Segment> {
        self.segments.lock().expect(NO_PANIC).get(after, view, group.id, self.end())
    }

    /// Makes that message from entries of the ring and keeps it for the streams that come after; none without entries.
    pub(super) fn make_segment(
        &self,
        group: &Arc<Group>,
        entries: &[Arc<RingEntry>],
        view: EventView,
    ) -> Option<Segment> {
        let after = entries.first()?.position() - 1;
        let found = select(&group.filters, entries, view, &self.config, Position::MAX);
        self.charge(group, found.took, found.looked_at);
        let to = found.to?;
        let full = found.looked_at < entries.len() || entries.len() >= self.config.message_events_max;
        let frame = (!found.wanted.is_empty()).then(|| codec::events_frame(&self.cursor(to), &found.wanted, view));
        let segment = Segment { to, frame, skipped: found.skipped, full };
        if Arc::strong_count(group) > 1 {
            self.segments.lock().expect(NO_PANIC).put(after, view, group.id, segment.clone());
        }
        Some(segment)
    }

    /// Takes entries that were committed in this process. Never waits.
    pub(super) fn offer(&self, entries: Arc<Batch>) {
        let Some(last) = entries.last().map(|entry| entry.position) else { return };
        {
            let mut inbox = self.inbox.lock().expect(NO_PANIC);
            // Whatever does not fit is read from the store, because `known` says that it exists.
            if inbox.len() < WAITING_BATCHES_MAX {
                inbox.push(entries);
            }
        }
        self.note_head(last);
    }

    /// Takes note that the log reaches a position.
    pub(super) fn note_head(&self, position: Position) {
        self.known.fetch_max(position, Ordering::AcqRel);
        self.news.notify_one();
    }

    /// Adds a stream.
    pub(super) fn join(&self, slot: Arc<Slot>) {
        self.slots.lock().expect(NO_PANIC).insert(slot.id(), slot);
    }

    /// A stream that is open.
    pub(super) fn slot(&self, id: WatchId) -> Option<Arc<Slot>> {
        self.slots.lock().expect(NO_PANIC).get(&id).cloned()
    }

    /// Removes a stream.
    pub(super) fn leave(&self, id: WatchId) {
        self.slots.lock().expect(NO_PANIC).remove(&id);
    }

    /// How many streams it has.
    pub(super) fn streams(&self) -> usize {
        self.slots.lock().expect(NO_PANIC).len()
    }

    /// Wakes every stream that waits.
    pub(super) fn wake(&self) {
        for slot in self.slots.lock().expect(NO_PANIC).values() {
            slot.wake();
        }
    }

    /// Marks the streams whose readers have taken nothing for too long, and returns them.
    pub(super) fn sweep(&self, stall_timeout: Duration) -> Vec<Arc<Slot>> {
        let slots = self.slots.lock().expect(NO_PANIC);
        slots.values().filter(|slot| slot.mark_if_stalled(stall_timeout)).cloned().collect()
    }

    /// Fills the ring until told to stop. What streams still need after that they read from the store.
    pub(super) async fn run(&self, stop: CancellationToken) {
        self.fill_from_news(&stop).await;
        self.ring.lock().expect(NO_PANIC).clear();
        *self.segments.lock().expect(NO_PANIC) = Segments::new(self.config.shared_bytes_max);
    }

    async fn fill_from_news(&self, stop: &CancellationToken) {
        let mut waiting = BTreeMap::new();
        let mut hole_since: Option<Instant> = None;
        let mut retry = RETRY_MIN;
        loop {
            let patience = hole_since.map(|since| since + Duration::from_millis(self.config.reorder_wait_ms));
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.news.notified() => {}
                () = sleep_until(patience) => {}
            }
            loop {
                self.absorb(&mut waiting);
                if self.end() >= self.known.load(Ordering::Acquire) {
                    hole_since = None;
                    break;
                }
                // Commits overtake each other on the way here by microseconds; the one that is missing is likely next.
                let since = *hole_since.get_or_insert_with(Instant::now);
                if !waiting.is_empty() && since.elapsed() < Duration::from_millis(self.config.reorder_wait_ms) {
                    break;
                }
                let read = tokio::select! {
                    () = stop.cancelled() => return,
                    read = self.fill() => read,
                };
                if let Err(error) = read {
                    tracing::warn!(error = &error as &dyn std::error::Error, tenant = %self.tenant, "a watched log cannot be read");
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(retry) => {}
                    }
                    retry = (retry * 2).min(RETRY_MAX);
                } else {
                    retry = RETRY_MIN;
                }
            }
        }
    }

    /// Moves news into the ring as far as it follows without a hole.
    fn absorb(&self, waiting: &mut BTreeMap<Position, Arc<Batch>>) {
        for batch in std::mem::take(&mut *self.inbox.lock().expect(NO_PANIC)) {
            if let Some(first) = batch.first() {
                waiting.insert(first.position, batch);
            }
        }
        if waiting.is_empty() {
            return;
        }
        let end = {
            let mut ring = self.ring.lock().expect(NO_PANIC);
            while let Some(first) = waiting.first_entry() {
                if *first.key() > ring.end().after + 1 {
                    break;
                }
                for entry in first.remove().iter() {
                    // Entries that the ring has already are refused by it.
                    ring.push(Arc::clone(entry));
                }
            }
            ring.end().after
        };
        if waiting.len() > WAITING_BATCHES_MAX {
            waiting.clear();
        }
        self.advance_to(end);
    }

    /// Reads one page from the store into the ring.
    async fn fill(&self) -> Result<(), StoreError> {
        let from = self.ring.lock().expect(NO_PANIC).end();
        let page = (self.reads.fill)(from, self.known.load(Ordering::Acquire)).await?;
        let end = {
            let mut ring = self.ring.lock().expect(NO_PANIC);
            if page.readable_from > from.after + 1 {
                // Streams that come to this hole find it themselves when they read the store, and say so.
                ring.skip_to(LogPlace { after: page.readable_from - 1, day: from.day });
            }
            for entry in page.entries {
                ring.push(entry);
            }
            ring.end().after
        };
        self.advance_to(end);
        Ok(())
    }

    fn advance_to(&self, end: Position) {
        if self.end.swap(end, Ordering::AcqRel) < end {
            self.wake();
        }
    }
}

/// Sleeps until a time; for ever where there is none.
async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
