//! What the outside holds of a stream: its waker, and when its transport last took something.
//!
//! A transport that is blocked does not ask its stream for anything, so a stream cannot notice by itself that it is stalled.

use crate::domain::ids::WatchId;
use futures::task::AtomicWaker;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Waker;
use std::time::Duration;
use tokio::time::Instant;

/// Stands for "the transport is waiting for us".
const WAITING: u64 = u64::MAX;

/// The outer half of a stream.
#[derive(Debug)]
pub(super) struct Slot {
    id: WatchId,
    waker: AtomicWaker,
    born: Instant,
    /// Milliseconds after `born` at which the transport was last handed something that it has not asked beyond; or WAITING.
    handed_ms: AtomicU64,
    stalled: AtomicBool,
}

impl Slot {
    pub(super) fn new(id: WatchId) -> Self {
        Self {
            id,
            waker: AtomicWaker::new(),
            born: Instant::now(),
            handed_ms: AtomicU64::new(0),
            stalled: AtomicBool::new(false),
        }
    }

    pub(super) fn id(&self) -> WatchId {
        self.id
    }

    /// Wakes the stream if it waits.
    pub(super) fn wake(&self) {
        self.waker.wake();
    }

    /// Asks to be woken. What the stream waits for must be looked at again after this.
    pub(super) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// The transport has been handed something.
    pub(super) fn note_handed(&self, now: Instant) {
        self.handed_ms.store(self.millis(now), Ordering::Relaxed);
    }

    /// The transport waits for us.
    pub(super) fn note_waiting(&self) {
        self.handed_ms.store(WAITING, Ordering::Relaxed);
    }

    /// True where it was marked, or where the transport comes back after more than the limit.
    pub(super) fn is_stalled(&self, limit: Duration, now: Instant) -> bool {
        self.stalled.load(Ordering::Relaxed) || self.silence(now).is_some_and(|silence| silence >= limit)
    }

    /// Marks it where the limit has passed; true where this call has marked it.
    pub(super) fn mark_if_stalled(&self, limit: Duration) -> bool {
        self.silence(Instant::now()).is_some_and(|silence| silence >= limit)
            && !self.stalled.swap(true, Ordering::Relaxed)
    }

    /// How long the transport has taken nothing although it could.
    fn silence(&self, now: Instant) -> Option<Duration> {
        match self.handed_ms.load(Ordering::Relaxed) {
            WAITING => None,
            handed => Some(Duration::from_millis(self.millis(now).saturating_sub(handed))),
        }
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.born).as_millis()).unwrap_or(WAITING - 1)
    }
}
