//! The newest events of one tenant's log in memory, each encoded once: contiguous positions, bounded in entries and bytes.
//!
//! A watch is a position. Where its position has left the ring, it reads pages from the store until it is back. Nothing here
//! does I/O or waits.

use crate::domain::event::LogEntry;
use crate::domain::ids::Position;
use crate::proto::public::EventView;
use crate::store::events::LogPlace;
use crate::wire::event::entry_to_proto;
use bytes::Bytes;
use prost::Message as _;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// An entry of the log, encoded at most once per view.
#[derive(Debug)]
pub struct RingEntry {
    entry: Arc<LogEntry>,
    full: OnceLock<Bytes>,
    metadata: OnceLock<Bytes>,
}

impl RingEntry {
    /// Takes an entry; encoding waits for the first reader.
    pub fn new(entry: Arc<LogEntry>) -> Self {
        Self { entry, full: OnceLock::new(), metadata: OnceLock::new() }
    }

    /// The entry itself.
    pub fn entry(&self) -> &LogEntry {
        &self.entry
    }

    /// Its place in the log.
    pub fn position(&self) -> Position {
        self.entry.position
    }

    /// The encoded `carillon.v1.Event`.
    pub fn encoded(&self, view: EventView) -> &Bytes {
        let slot = if view == EventView::Metadata { &self.metadata } else { &self.full };
        slot.get_or_init(|| entry_to_proto(&self.entry, view).encode_to_vec().into())
    }

    /// What it costs to keep, with the encoded forms that it has or will have.
    fn bytes(&self) -> usize {
        const OVERHEAD: usize = 512;
        let event = &self.entry.event;
        OVERHEAD + self.entry.memory_bytes() + event.bytes() + event.attribute_bytes()
    }
}

/// What a ring has for a reader.
#[derive(Debug)]
pub enum Reading {
    /// The position has left the ring, or never was in it: read pages up to the given end.
    Behind {
        /// The ring's last position.
        up_to: Position,
    },
    /// Nothing newer yet.
    AtEnd,
    /// The next entries, at least one.
    Entries(Vec<Arc<RingEntry>>),
}

/// What the rings of all tenants cost together, and may cost.
#[derive(Debug, Clone)]
pub struct Rings {
    bytes: Arc<AtomicUsize>,
    bytes_max: usize,
}

impl Rings {
    /// No rings yet.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes: Arc::default(), bytes_max }
    }

    fn are_full(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) > self.bytes_max
    }
}

/// The newest entries of a log.
#[derive(Debug)]
pub struct Ring {
    entries: VecDeque<Arc<RingEntry>>,
    /// The place of the last entry; where the ring began while it is empty.
    end: LogPlace,
    bytes: usize,
    entries_max: usize,
    bytes_max: usize,
    rings: Rings,
}

impl Ring {
    /// An empty ring that goes on after `end`.
    pub fn new(end: LogPlace, entries_max: usize, bytes_max: usize, rings: Rings) -> Self {
        Self { entries: VecDeque::new(), end, bytes: 0, entries_max: entries_max.max(1), bytes_max, rings }
    }

    /// The place of the last entry.
    pub fn end(&self) -> LogPlace {
        self.end
    }

    /// What it holds: entries, and the bytes that they cost.
    pub fn size(&self) -> (usize, usize) {
        (self.entries.len(), self.bytes)
    }

    /// Adds the next entry and drops the oldest ones beyond the bounds. True where it was the next one.
    pub fn push(&mut self, entry: Arc<LogEntry>) -> bool {
        if entry.position != self.end.after + 1 {
            return false;
        }
        self.end = LogPlace { after: entry.position, day: entry.day() };
        let entry = Arc::new(RingEntry::new(entry));
        self.bytes += entry.bytes();
        self.rings.bytes.fetch_add(entry.bytes(), Ordering::Relaxed);
        self.entries.push_back(entry);
        while self.entries.len() > 1 && self.is_over() {
            if let Some(oldest) = self.entries.pop_front() {
                self.give_back(oldest.bytes());
            }
        }
        true
    }

    /// Goes on after a place further ahead: what lies between is no longer anywhere.
    pub fn skip_to(&mut self, place: LogPlace) {
        if place.after > self.end.after {
            self.clear();
            self.end = place;
        }
    }

    /// Forgets the entries but not the place: readers go to the store.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.give_back(self.bytes);
    }

    fn is_over(&self) -> bool {
        self.entries.len() > self.entries_max || self.bytes > self.bytes_max || self.rings.are_full()
    }

    fn give_back(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.rings.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// The entries after a position, at most `limit`.
    pub fn read(&self, after: Position, limit: usize) -> Reading {
        if after >= self.end.after {
            return Reading::AtEnd;
        }
        // Positions in the ring are contiguous, so the offset is a subtraction.
        let offset = self.entries.front().and_then(|first| usize::try_from(after + 1 - first.position()).ok());
        match offset {
            Some(offset) => Reading::Entries(self.entries.range(offset..).take(limit).cloned().collect()),
            None => Reading::Behind { up_to: self.end.after },
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}

/// A ready-made message of what some filters select, and the place after it.
#[derive(Debug, Clone)]
pub struct Segment {
    /// The place after the last event that was looked at.
    pub to: LogPlace,
    /// The gRPC frame, cursor included; none where nothing was selected.
    pub frame: Option<Bytes>,
    /// How many events were not selected.
    pub skipped: u32,
    /// True where a bound ended it, so that it would not grow if it were made again.
    pub full: bool,
}

/// What a segment costs beside its bytes.
const SEGMENT_OVERHEAD: usize = 128;

/// Messages that streams at the same place share, by the position they start after, the view and the group of filters.
#[derive(Debug)]
pub struct Segments {
    made: BTreeMap<(Position, bool, u32), Segment>,
    bytes: usize,
    bytes_max: usize,
}

impl Segments {
    /// An empty cache.
    pub fn new(bytes_max: usize) -> Self {
        Self { made: BTreeMap::new(), bytes: 0, bytes_max }
    }

    /// The message after a position, if it holds all there is to send up to `end`, or all that a message may hold.
    pub fn get(&self, after: Position, view: EventView, group: u32, end: Position) -> Option<Segment> {
        let segment = self.made.get(&(after, view == EventView::Metadata, group))?;
        (segment.full || segment.to.after >= end).then(|| segment.clone())
    }

    /// Keeps a message, in place of the one for the same position, and drops those furthest back beyond the bound.
    pub fn put(&mut self, after: Position, view: EventView, group: u32, segment: Segment) {
        self.bytes += segment.bytes();
        if let Some(former) = self.made.insert((after, view == EventView::Metadata, group), segment) {
            self.bytes -= former.bytes();
        }
        while self.bytes > self.bytes_max {
            let Some((_, oldest)) = self.made.pop_first() else { break };
            self.bytes -= oldest.bytes();
        }
    }
}

impl Segment {
    fn bytes(&self) -> usize {
        SEGMENT_OVERHEAD + self.frame.as_ref().map_or(0, Bytes::len)
    }
}

#[cfg(test)]
mod tests;
