//! News of the log within this process: what was committed here, and which heads moved elsewhere.
//!
//! News is a hint: it may be late, repeated or dropped when a reader is behind. Readers go by positions and read what they
//! miss from the store; [`News::Head`] arrives for every head that moved at least once a second (see `dispatch::pulse`).

use crate::domain::event::LogEntry;
use crate::domain::ids::{Position, TenantId, WatchId};
use crate::domain::memory::{Kept, Memory};
use chrono::{DateTime, Utc};
use dashmap::DashMap;
use std::ops::Deref;
use std::sync::{Arc, RwLock};
use tokio::sync::{broadcast, mpsc, watch};

/// The head of a tenant's log, as last seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Whose log.
    pub tenant: TenantId,
    /// Position of the last event.
    pub position: Position,
    /// Version of what matches.
    pub registry_version: i64,
    /// Counts changes to deferred invocations that callers made.
    pub deferred_version: i64,
}

/// Something that readers of the log want to know.
#[derive(Debug, Clone)]
pub enum News {
    /// Entries this process committed: one tenant's, adjacent positions, in order.
    Committed {
        /// Whose log.
        tenant: TenantId,
        /// At least one.
        entries: Arc<Batch>,
    },
    /// A head that may have moved.
    Head(Head),
}

/// Entries on their way to the readers, which are not kept for slow ones without bound.
#[derive(Debug)]
pub struct Batch {
    entries: Vec<Arc<LogEntry>>,
    _kept: Kept,
}

impl Batch {
    /// Counts the entries among the bytes that are under way, until the last reader lets go of them.
    pub(crate) fn new(entries: Vec<Arc<LogEntry>>, under_way: &Memory) -> Self {
        let bytes = entries.iter().map(|entry| entry.memory_bytes()).sum();
        Self { entries, _kept: under_way.keep(bytes) }
    }
}

impl Deref for Batch {
    type Target = [Arc<LogEntry>];

    fn deref(&self) -> &Self::Target {
        &self.entries
    }
}

/// Something about the filters of a watch; a hint like all news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchNews {
    /// A change waits for the replica that holds the watch, whichever that is.
    Asked(WatchId),
    /// A change waits for this replica, which holds the watch or has held it.
    Due(WatchId),
    /// A change is in effect.
    Changed(WatchId),
}

/// Hints about watches that a reader may be behind.
const WATCH_NEWS_MAX: usize = 1_024;
/// Bytes of events that may be on their way to readers, where nothing else is said.
const UNDER_WAY_MAX: usize = 64 * 1024 * 1024;

/// Spreads news to every reader in this process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Feed {
    readers: Arc<RwLock<Vec<mpsc::Sender<News>>>>,
    under_way: Memory,
    watches: broadcast::Sender<WatchNews>,
    /// How far logs have come as far as that is heard, of the tenants whose log somebody waits for.
    moved: Arc<DashMap<TenantId, watch::Sender<Position>>>,
    /// Counts the batches of outcomes that this process has recorded.
    settled: Arc<watch::Sender<u64>>,
    /// When the first pending event is due, as last heard.
    pending_due: Arc<watch::Sender<Option<DateTime<Utc>>>>,
}

impl Default for Feed {
    fn default() -> Self {
        Self {
            readers: Arc::default(),
            under_way: Memory::new(UNDER_WAY_MAX),
            watches: broadcast::Sender::new(WATCH_NEWS_MAX),
            moved: Arc::default(),
            settled: Arc::default(),
            pending_due: Arc::default(),
        }
    }
}

impl Feed {
    /// A new reader that may fall `capacity` items behind before it loses news.
    pub fn subscribe(&self, capacity: usize) -> mpsc::Receiver<News> {
        let (sender, receiver) = mpsc::channel(capacity);
        self.readers.write().expect("no reader panics while it holds the lock").push(sender);
        receiver
    }

    /// Keeps at most that many bytes of events on their way to readers; news of entries beyond it is dropped.
    #[must_use]
    pub fn bounded(self, bytes: usize) -> Self {
        Self { under_way: Memory::new(self.under_way.bytes_max().min(bytes)), ..self }
    }

    /// Tells every reader what was committed here: one tenant's, adjacent positions, in order. Never waits.
    pub fn send_committed(&self, tenant: TenantId, entries: Vec<Arc<LogEntry>>) {
        if let Some(last) = entries.last() {
            self.note_moved(tenant, last.position);
        }
        // Readers that are this far behind go by the store.
        if !self.under_way.is_full() {
            self.send(&News::Committed { tenant, entries: Arc::new(Batch::new(entries, &self.under_way)) });
        }
    }

    /// Tells every reader; never waits.
    pub fn send(&self, news: &News) {
        if let News::Head(head) = news {
            self.note_moved(head.tenant, head.position);
        }
        for reader in self.readers.read().expect("no reader panics while it holds the lock").iter() {
            // A full or closed channel loses the hint, as documented above.
            let _ = reader.try_send(news.clone());
        }
    }

    /// Changes when a tenant's log is heard to have moved on.
    pub fn moved(&self, tenant: TenantId) -> watch::Receiver<Position> {
        self.moved.entry(tenant).or_default().subscribe()
    }

    fn note_moved(&self, tenant: TenantId, position: Position) {
        let Some(known) = self.moved.get(&tenant) else { return };
        known.send_if_modified(|known| {
            let newer = position > *known;
            *known = position.max(*known);
            newer
        });
        let nobody = known.receiver_count() == 0;
        drop(known);
        if nobody {
            // Looked at again under the lock under which somebody may have begun to wait.
            self.moved.remove_if(&tenant, |_, known| known.receiver_count() == 0);
        }
    }

    /// Passes on a hint about a watch.
    pub fn send_watch(&self, news: WatchNews) {
        // Nobody may listen, as in tests of other parts.
        let _ = self.watches.send(news);
    }

    /// Hints about watches from now on.
    pub fn watch_news(&self) -> broadcast::Receiver<WatchNews> {
        self.watches.subscribe()
    }

    /// Says that outcomes were recorded here.
    pub fn note_settled(&self) {
        self.settled.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Says when the first pending event of all is due, as the database has it.
    pub fn set_pending_due(&self, at: Option<DateTime<Utc>>) {
        self.pending_due.send_if_modified(|known| std::mem::replace(known, at) != at);
    }

    /// Says that a pending event is due at that time: a timer here need not wait for the next look at the database.
    pub fn note_pending_due(&self, at: DateTime<Utc>) {
        self.pending_due.send_if_modified(|known| {
            let sooner = known.is_none_or(|known| at < known);
            if sooner {
                *known = Some(at);
            }
            sooner
        });
    }

    /// Changes with the time when the first pending event is due.
    pub fn pending_due(&self) -> watch::Receiver<Option<DateTime<Utc>>> {
        self.pending_due.subscribe()
    }

    /// Changes whenever outcomes were recorded here; those that wait for an event's end look again.
    pub fn settled(&self) -> watch::Receiver<u64> {
        self.settled.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(tenant: TenantId, position: Position) -> News {
        News::Head(Head { tenant, position, registry_version: 0, deferred_version: 0 })
    }

    #[test]
    fn who_waits_for_a_log_hears_that_it_moves_on_and_of_no_other_and_is_forgotten_then() {
        let feed = Feed::default();
        let [one, other] = [1, 2].map(|n| TenantId(uuid::Uuid::from_u128(n)));
        let mut moved = feed.moved(one);
        let mut heard = || {
            let heard = moved.has_changed().expect("the feed lives");
            moved.mark_unchanged();
            heard
        };
        assert!(!heard());
        feed.send(&head(other, 9));
        assert!(!heard(), "another log");
        feed.send(&head(one, 5));
        assert!(heard());
        for position in [5, 4] {
            feed.send(&head(one, position));
            assert!(!heard(), "a repeated or late hint is none");
        }
        assert_eq!(feed.moved.len(), 1, "of those that nobody waits for nothing is kept");
        drop(moved);
        feed.send(&head(one, 6));
        assert!(feed.moved.is_empty());
    }
}
