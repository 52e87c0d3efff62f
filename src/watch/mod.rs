//! Watching: live, ordered, resumable streams of a tenant's log, for any number of readers at the cost of one.
//!
//! ```text
//! news of commits ─┐                         ┌─> stream: place in the log ──> transport, when it asks
//!                  ├─> tail: fills the ring ─┼─> stream ...
//! pages of the log ┘   (one per tenant)      └─> stream behind the ring: pages of the log
//! ```
//!
//! - `tail`: one task per watched tenant puts events into the `ring`, in order and without holes, whatever news says.
//! - `ring`: the newest events, each encoded once, and ready-made messages that streams at the same place share.
//! - `select`: which entries a watch wants; watches with the same filters share what one of them has evaluated.
//! - `stream`: the state machine of one watch; it makes a message only when its transport asks for one.
//! - `slot`: the outer half of a stream, by which stalled readers are found and changes of filters arrive.
//! - `open`, `update`: the two calls. A change of filters is a row that the holder of the stream puts into effect.
//! - `remembered`, `unremembered`: how much of such rows there may be; those that could not be written yet.
//! - `place`: cursors and times as places in the log, shared with ListEvents.
//!
//! Nothing here writes to the log, and no reader can slow down another one, a publisher, or a delivery.

pub mod codec;
mod config;
pub mod filter;
pub mod filter_set;
mod open;
pub mod place;
mod remembered;
pub mod ring;
mod select;
mod slot;
mod stream;
mod tail;
mod terms;
mod unremembered;
mod update;

pub use config::Config;
pub use open::{OpenError, Start, WatchRequest};
pub use remembered::Full;
pub use stream::WatchStream;
pub use terms::{CredentialCheck, Ending, EndingReason, OnExpired, Standing};
pub use update::{UpdateError, Updated, WatchUpdate};

use crate::domain::access::Subject;
use crate::domain::cursor::CursorSealer;
use crate::domain::ids::{Position, ReplicaId, TenantId, WatchId};
use crate::feed::{Feed, News, WatchNews};
use crate::store::event_pages::PageBound;
use crate::store::events::LogPlace;
use crate::store::{Store, StoreError};
use crate::turnstile::Turnstile;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use remembered::Remembered;
use ring::Rings;
use slot::Slot;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tail::{Page, ReadPage, Tail};
use tokio::sync::{broadcast, mpsc};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use unremembered::Unremembered;

/// How often stalled streams and idle tails are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// How long a stop waits for what is under way in the store.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
const NO_PANIC: &str = "nothing panics while it holds the lock";

/// Every watch of this process. Cheap to clone.
#[derive(Clone)]
pub struct Watches {
    shared: Arc<Shared>,
}

/// Records that a change of filters is in effect from a place on. True where it is, false where it was withdrawn; goes on trying
/// while the store is away, because until it is known nothing may be sent past the place.
type RecordChange = dyn Fn(TenantId, WatchId, i64, LogPlace) -> BoxFuture<'static, bool> + Send + Sync;

/// What the streams share.
struct Shared {
    config: Arc<Config>,
    /// Who holds the streams, for other replicas.
    replica: ReplicaId,
    feed: Feed,
    record: Arc<RecordChange>,
    store: Store,
    sealer: CursorSealer,
    credential_check: Arc<CredentialCheck>,
    ending_reason: EndingReason,
    /// Reads of the store by tails.
    tail_reads: Turnstile,
    /// Reads by streams that are behind: apart, so that they never hold up those that are not. Tenants take turns.
    catch_up_reads: Turnstile,
    rings: Rings,
    remembered: Remembered,
    unremembered: Mutex<Vec<Unremembered>>,
    state: Mutex<State>,
    draining: AtomicBool,
    stop: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Default)]
struct State {
    tails: HashMap<TenantId, TailHandle>,
    open: HashMap<TenantId, usize>,
    open_by_subject: HashMap<Subject, usize>,
    streams: usize,
}

impl State {
    /// The tail of a life of the log. One of another life (the log was restored from a backup) is of no use to anybody: it ends, and
    /// its streams with it.
    fn tail_of(&mut self, tenant: TenantId, epoch: i64) -> Option<Arc<Tail>> {
        let handle = self.tails.get(&tenant)?;
        if handle.tail.epoch() == epoch {
            return Some(Arc::clone(&handle.tail));
        }
        handle.stop.cancel();
        handle.tail.end_life();
        self.tails.remove(&tenant);
        None
    }
}

struct TailHandle {
    tail: Arc<Tail>,
    stop: CancellationToken,
    /// Since when it has had no stream.
    idle_since: Option<Instant>,
}

impl Watches {
    /// Starts to listen to news. Runs until [`Watches::stop`].
    pub fn start(
        replica: ReplicaId,
        store: Store,
        sealer: CursorSealer,
        feed: &Feed,
        config: Config,
        credential_check: Arc<CredentialCheck>,
        ending_reason: EndingReason,
    ) -> Self {
        let news = feed.subscribe(config.news_max);
        let shared = Arc::new(Shared {
            tail_reads: Turnstile::new(config.catch_up_reads_max),
            catch_up_reads: Turnstile::new(config.catch_up_reads_max),
            rings: Rings::new(config.rings_bytes_max),
            remembered: Remembered::new(&config),
            unremembered: Mutex::default(),
            config: Arc::new(config),
            replica,
            feed: feed.clone(),
            record: update::recorder(&store, feed.clone()),
            store,
            sealer,
            credential_check,
            ending_reason,
            state: Mutex::default(),
            draining: AtomicBool::new(false),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        shared.tasks.spawn(Arc::clone(&shared).route(news));
        shared.tasks.spawn(Arc::clone(&shared).hear_changes(feed.watch_news()));
        Self { shared }
    }

    /// How many watches are open.
    pub fn streams(&self) -> usize {
        self.shared.state.lock().expect(NO_PANIC).streams
    }

    /// What the rings of all watched tenants hold: entries, and the bytes that they cost.
    pub fn rings(&self) -> (usize, usize) {
        let tails: Vec<_> = {
            let state = self.shared.state.lock().expect(NO_PANIC);
            state.tails.values().map(|handle| Arc::clone(&handle.tail)).collect()
        };
        let add = |(entries, bytes), (more, heavier): (usize, usize)| (entries + more, bytes + heavier);
        tails.iter().map(|tail| tail.ring_size()).fold((0, 0), add)
    }

    /// The settings it was started with.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// Ends every watch with a last message that says where to resume, and refuses new ones. Returns at once; the streams end
    /// as fast as their transports take the message.
    pub fn drain(&self) {
        self.shared.draining.store(true, Ordering::Release);
        let tails: Vec<_> = {
            let state = self.shared.state.lock().expect(NO_PANIC);
            state.tails.values().map(|handle| Arc::clone(&handle.tail)).collect()
        };
        for tail in tails {
            tail.wake();
        }
    }

    /// Drains, then ends the tasks and waits for them for a while.
    pub async fn stop(&self) {
        self.drain();
        self.shared.stop.cancel();
        self.shared.tasks.close();
        if tokio::time::timeout(STOP_PATIENCE, self.shared.tasks.wait()).await.is_err() {
            tracing::warn!("changes of watches did not end in time");
        }
    }
}

impl Shared {
    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Forgets an open stream; harmless to repeat.
    fn release(&self, slot: &Slot) {
        if !slot.uncount() {
            return;
        }
        let mut state = self.state.lock().expect(NO_PANIC);
        state.streams -= 1;
        count_down(&mut state.open, slot.tenant());
        count_down(&mut state.open_by_subject, slot.subject().clone());
    }

    /// A stream that is open here.
    fn slot(&self, id: WatchId) -> Option<Arc<Slot>> {
        self.state.lock().expect(NO_PANIC).tails.values().find_map(|handle| handle.tail.slot(id))
    }

    /// Brings changes of filters to the streams that are held here.
    async fn hear_changes(self: Arc<Self>, mut news: broadcast::Receiver<WatchNews>) {
        loop {
            let item = tokio::select! {
                () = self.stop.cancelled() => return,
                item = news.recv() => item,
            };
            match item {
                Ok(WatchNews::Asked(watch)) if self.slot(watch).is_some() => {
                    self.tasks.spawn(Arc::clone(&self).fetch_change(watch));
                }
                // The pulse names only what is this replica's: a stream that is not here any more has to refuse.
                Ok(WatchNews::Due(watch)) => {
                    self.tasks.spawn(Arc::clone(&self).fetch_change(watch));
                }
                // What was missed comes again with the next pulse.
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }

    /// Brings news to the tails, looks at the heads now and then, finds stalled streams and idle tails, and writes what it could not.
    async fn route(self: Arc<Self>, mut news: mpsc::Receiver<News>) {
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        let mut heads = tokio::time::interval(Duration::from_millis(self.config.head_check_ms));
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        heads.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                item = news.recv() => {
                    let Some(item) = item else { return };
                    self.pass_on(&item);
                    // Only this task empties the channel: one that is all but full right after an item was taken may have lost
                    // something. What the feed itself drops, the next pulse tells.
                    if news.len() + 1 >= news.max_capacity() {
                        heads.reset_immediately();
                    }
                }
                _ = sweep.tick() => {
                    self.sweep();
                    self.remember_again();
                }
                _ = heads.tick() => self.check_heads(),
            }
        }
    }

    fn pass_on(&self, item: &News) {
        let (News::Committed { tenant, .. } | News::Head(crate::feed::Head { tenant, .. })) = item;
        let Some(tail) = self.tail(*tenant) else { return };
        match item {
            News::Committed { entries, .. } => tail.offer(Arc::clone(entries)),
            News::Head(head) => tail.note_head(head.position),
        }
    }

    fn tail(&self, tenant: TenantId) -> Option<Arc<Tail>> {
        self.state.lock().expect(NO_PANIC).tails.get(&tenant).map(|handle| Arc::clone(&handle.tail))
    }

    /// Reads the heads of all watched tenants in one statement, in a task, so that news does not wait for the store.
    fn check_heads(self: &Arc<Self>) {
        let tenants: Vec<TenantId> = self.state.lock().expect(NO_PANIC).tails.keys().copied().collect();
        if tenants.is_empty() {
            return;
        }
        let shared = Arc::clone(self);
        self.tasks.spawn(async move {
            let read = tokio::select! {
                () = shared.stop.cancelled() => return,
                read = shared.store.head_positions(&tenants) => read,
            };
            match read {
                Ok(heads) => {
                    for (tenant, position, epoch) in heads {
                        if let Some(tail) = shared.state.lock().expect(NO_PANIC).tail_of(tenant, epoch) {
                            tail.note_head(position);
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the heads of watched logs cannot be read"
                    );
                }
            }
        });
    }

    /// Gives up streams whose readers are stalled, and tails that nobody reads.
    fn sweep(&self) {
        self.remembered.sweep();
        let tails: Vec<Arc<Tail>> = {
            let state = self.state.lock().expect(NO_PANIC);
            state.tails.values().map(|handle| Arc::clone(&handle.tail)).collect()
        };
        for tail in tails {
            for slot in tail.sweep(self.config.stall_timeout()) {
                // The stream itself lives until its transport lets go of it; it no longer counts.
                self.release(&slot);
                tail.leave(slot.id());
                slot.wake();
            }
        }
        let linger = Duration::from_millis(self.config.linger_ms);
        let mut state = self.state.lock().expect(NO_PANIC);
        state.tails.retain(|_, handle| {
            if handle.tail.streams() > 0 {
                handle.idle_since = None;
                return true;
            }
            let keep = handle.idle_since.get_or_insert_with(Instant::now).elapsed() < linger;
            if !keep {
                handle.stop.cancel();
            }
            keep
        });
    }

    /// How tails and streams read the store: bounded pages, few at a time.
    fn read_page(&self, tenant: TenantId, turns: &Turnstile) -> Arc<ReadPage> {
        let (store, turns) = (self.store.clone(), turns.clone());
        let bound = PageBound {
            entries: u32::try_from(self.config.message_events_max).unwrap_or(u32::MAX),
            bytes: self.config.message_bytes_max as u64,
        };
        Arc::new(move |place: LogPlace, up_to: Position| {
            let (store, turns) = (store.clone(), turns.clone());
            async move {
                let _pass = turns.enter(tenant).await;
                let entries = store.read_log_page(tenant, place, up_to, bound).await?;
                if let Some(first) = entries.first() {
                    let readable_from = first.position;
                    return Ok(Page { entries, readable_from });
                }
                // Committed positions without events: retention has dropped them.
                let head = store.head(tenant).await?.ok_or(StoreError::Corrupt { what: "head" })?;
                if head.earliest_position <= place.after + 1 {
                    return Err(StoreError::Corrupt { what: "log" });
                }
                Ok(Page { entries, readable_from: head.earliest_position })
            }
            .boxed()
        })
    }
}

/// One less of a key; none is no entry.
fn count_down<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: K) {
    if let std::collections::hash_map::Entry::Occupied(mut entry) = counts.entry(key) {
        *entry.get_mut() -= 1;
        if *entry.get() == 0 {
            entry.remove();
        }
    }
}

#[cfg(test)]
mod tests;
