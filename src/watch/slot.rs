//! What the outside holds of a stream: its waker, when its transport last took something, and a change of filters that waits.
//!
//! A transport that is blocked does not ask its stream for anything, so a stream cannot notice by itself that it is stalled.

use super::filter_set::FilterChange;
use crate::domain::access::Subject;
use crate::domain::ids::{TenantId, WatchId};
use futures::task::AtomicWaker;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Waker;
use std::time::Duration;
use tokio::time::Instant;

const NO_PANIC: &str = "nothing panics while it holds the lock";
/// Stands for "the transport is waiting for us".
const WAITING: u64 = u64::MAX;

/// The outer half of a stream.
#[derive(Debug)]
pub(super) struct Slot {
    id: WatchId,
    tenant: TenantId,
    subject: Subject,
    waker: AtomicWaker,
    born: Instant,
    /// Milliseconds after `born` at which the transport last took something, and has not asked beyond; or WAITING.
    handed_ms: AtomicU64,
    stalled: AtomicBool,
    /// Counted among the open ones.
    counted: AtomicBool,
    /// Says whether a change waits, without the lock.
    asked: AtomicBool,
    change: Mutex<Option<Box<FilterChange>>>,
}

impl Slot {
    pub(super) fn new(id: WatchId, tenant: TenantId, subject: Subject) -> Self {
        Self {
            id,
            tenant,
            subject,
            waker: AtomicWaker::new(),
            born: Instant::now(),
            handed_ms: AtomicU64::new(0),
            stalled: AtomicBool::new(false),
            counted: AtomicBool::new(true),
            asked: AtomicBool::new(false),
            change: Mutex::new(None),
        }
    }

    pub(super) fn id(&self) -> WatchId {
        self.id
    }

    pub(super) fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// Whom it counts for.
    pub(super) fn subject(&self) -> &Subject {
        &self.subject
    }

    /// True for the first call: who gets it gives the stream's place among the open ones back.
    pub(super) fn uncount(&self) -> bool {
        self.counted.swap(false, Ordering::AcqRel)
    }

    /// Leaves a change of filters for the stream, in place of one that still waits.
    pub(super) fn offer(&self, change: FilterChange) {
        *self.change.lock().expect(NO_PANIC) = Some(Box::new(change));
        self.asked.store(true, Ordering::Release);
        self.wake();
    }

    /// True where a change waits.
    pub(super) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    /// Takes the change that waits.
    pub(super) fn take_change(&self) -> Option<Box<FilterChange>> {
        if !self.asked.swap(false, Ordering::AcqRel) {
            return None;
        }
        self.change.lock().expect(NO_PANIC).take()
    }

    /// Wakes the stream if it waits.
    pub(super) fn wake(&self) {
        self.waker.wake();
    }

    /// Asks to be woken. What the stream waits for must be looked at again after this.
    pub(super) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// The transport has been handed something, or has taken more of it.
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
