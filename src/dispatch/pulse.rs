//! The heartbeat: one statement a second keeps the leases and finds the heads that moved elsewhere; hints between replicas make
//! that faster. An idle replica asks the database nothing else.
//!
//! A hint is sent at most every few milliseconds, in a statement of its own, and only where another replica lives or owns a shard still.

use super::run::{Input, Shared};
use crate::domain::ids::TenantId;
use crate::feed::{Head, News, WatchNews};
use crate::store::StoreError;
use crate::store::leases::Renewal;
use crate::store::notify::{HeadListener, Hint};
use chrono::{DateTime, TimeDelta, Utc};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// Heads are asked for from so long before the last look: a change is stamped before it commits, and a lost hint is repeated.
const OVERLAP: TimeDelta = TimeDelta::seconds(10);
/// Every so many pulses the look goes further back: a statement may wait for a connection and for locks between the stamp and the
/// commit for longer than the usual overlap.
const WIDE_EVERY: u32 = 60;
/// How far that one goes back: well over the longest wait for a connection and the longest statement together.
const WIDE_OVERLAP: TimeDelta = TimeDelta::minutes(5);
/// A pulse that takes longer has failed: the next one may find a connection that works.
const POLL_MAX: Duration = Duration::from_secs(10);
/// Between two attempts to listen.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);
const NEWS_MAX: usize = 1_024;
/// Heads that are remembered, to tell what this process committed from what it heard.
const KNOWN_MAX: usize = 100_000;

/// Runs until the dispatcher has stopped; beats on while it drains, so that the leases hold.
pub(super) async fn beat(shared: Arc<Shared>) {
    let news = shared.parts.feed.subscribe(NEWS_MAX);
    let every = Duration::from_millis(shared.config.poll_ms);
    Beat::new(shared).run(news, every).await;
}

struct Beat {
    shared: Arc<Shared>,
    lease: TimeDelta,
    /// Heads that other replicas know, or have told.
    known: HashMap<TenantId, Head>,
    /// Heads that moved here.
    unsent: HashMap<TenantId, Head>,
    /// True where another replica lives, or owns something still.
    others: bool,
    since: Option<DateTime<Utc>>,
    renewed_at: Option<DateTime<Utc>>,
    /// Since the last one that looked far back.
    pulses: u32,
}

impl Beat {
    fn new(shared: Arc<Shared>) -> Self {
        Self {
            lease: TimeDelta::from_std(shared.lease()).unwrap_or(TimeDelta::seconds(15)),
            shared,
            known: HashMap::new(),
            unsent: HashMap::new(),
            others: false,
            since: None,
            renewed_at: None,
            pulses: 0,
        }
    }

    async fn run(&mut self, mut news: mpsc::Receiver<News>, every: Duration) {
        let gather = Duration::from_millis(self.shared.config.notify_gather_ms);
        let mut listener: Option<HeadListener> = None;
        let mut listen_at = Instant::now();
        let mut next_poll = Instant::now();
        let mut notify_at: Option<Instant> = None;
        // Ends with the engine, which closes its inputs once everything is given back.
        while !self.shared.inputs.is_closed() {
            if listener.is_none() && Instant::now() >= listen_at {
                listener = match self.shared.parts.store.listen().await {
                    Ok(listener) => Some(listener),
                    Err(error) => {
                        tracing::debug!(%error, "hints from other replicas cannot be heard; polling goes on");
                        listen_at = Instant::now() + LISTEN_AGAIN;
                        None
                    }
                };
            }
            // Every arm is cancel-safe: channel receives, timers, and a listener that keeps what it has not handed out.
            tokio::select! {
                biased;
                () = self.shared.inputs.closed() => return,
                () = sleep_until(next_poll) => {
                    self.poll().await;
                    next_poll = Instant::now() + every;
                }
                () = sleep_until(notify_at.unwrap_or(next_poll)), if notify_at.is_some() => {
                    notify_at = None;
                    self.notify().await;
                }
                head = hear(&mut listener) => match head {
                    Ok(Hint::Head(head)) => self.hinted(head),
                    Ok(Hint::Watch(news)) => self.shared.parts.feed.send_watch(news),
                    Err(error) => {
                        tracing::info!(%error, "the connection that hears hints broke; polling goes on");
                        listener = None;
                        listen_at = Instant::now() + LISTEN_AGAIN;
                    }
                },
                item = news.recv() => {
                    let Some(item) = item else { return };
                    self.note(&item);
                    while let Ok(item) = news.try_recv() {
                        self.note(&item);
                    }
                    if notify_at.is_none() && !self.unsent.is_empty() {
                        notify_at = Some(Instant::now() + gather);
                    }
                }
            }
        }
    }

    async fn poll(&mut self) {
        let store = &self.shared.parts.store;
        let asked_at = store.now();
        // A third of the lease: two pulses may fail before it ends.
        let leaving = self.shared.stop.is_cancelled();
        let renew = leaving || self.renewed_at.is_none_or(|at| asked_at - at >= self.lease / 3);
        let wide = self.pulses >= WIDE_EVERY;
        let since = self.since.unwrap_or(asked_at) - if wide { WIDE_OVERLAP } else { OVERLAP };
        let keep = if leaving { Renewal::Leaving } else { Renewal::Staying };
        let lease = renew.then(|| keep(self.shared.lease()));
        let asked = tokio::time::timeout(POLL_MAX, store.pulse(self.shared.replica, lease, since)).await;
        match asked {
            Ok(Ok(pulse)) => {
                self.pulses = if wide { 0 } else { self.pulses + 1 };
                self.since = Some(asked_at);
                self.others = pulse.others;
                self.shared.parts.feed.set_pending_due(pulse.pending_due);
                if renew {
                    self.renewed_at = Some(asked_at);
                }
                for head in &pulse.heads {
                    // What is long known was repeated often enough.
                    if !wide || self.known.get(&head.tenant) != Some(head) {
                        self.heard(*head);
                    }
                }
                for watch in &pulse.watches {
                    self.shared.parts.feed.send_watch(WatchNews::Due(*watch));
                }
                let lease_until = renew.then(|| asked_at + self.lease);
                self.shared.tell(Input::Pulse { asked_at, lease_until, pulse });
            }
            Ok(Err(error)) => tracing::warn!(%error, "the pulse failed"),
            Err(_) => tracing::warn!("the pulse took too long"),
        }
    }

    /// A hint: news where it says something new. Most that do not are this replica's own; whoever has lost one hears it by the poll.
    fn hinted(&mut self, head: Head) {
        if !self.knows(&head) {
            self.heard(head);
        }
    }

    /// A head from elsewhere, or from the poll: news for this process if it is new, and nothing to tell others.
    fn heard(&mut self, head: Head) {
        if self.known.get(&head.tenant) == Some(&head) {
            // Repeated while it is recent, so that a reader that lost it gets another chance.
            self.shared.parts.feed.send(&News::Head(head));
            return;
        }
        if self.known.len() >= KNOWN_MAX {
            self.known.clear();
        }
        self.known.insert(head.tenant, head);
        self.shared.parts.feed.send(&News::Head(head));
    }

    /// News of this process: what others do not know yet is told them.
    fn note(&mut self, news: &News) {
        let head = match news {
            News::Committed { tenant, entries } => {
                let Some(last) = entries.last() else { return };
                Head { tenant: *tenant, position: last.position, registry_version: 0, deferred_version: 0 }
            }
            News::Head(head) => *head,
        };
        if self.knows(&head) || !self.others {
            return;
        }
        let base = self.unsent.get(&head.tenant).or(self.known.get(&head.tenant)).copied().unwrap_or(head);
        let head = Head {
            tenant: head.tenant,
            position: base.position.max(head.position),
            registry_version: base.registry_version.max(head.registry_version),
            deferred_version: base.deferred_version.max(head.deferred_version),
        };
        self.unsent.insert(head.tenant, head);
    }

    /// True where others know, or have told, all that a head says.
    fn knows(&self, head: &Head) -> bool {
        self.known.get(&head.tenant).is_some_and(|known| {
            known.position >= head.position
                && known.registry_version >= head.registry_version
                && known.deferred_version >= head.deferred_version
        })
    }

    async fn notify(&mut self) {
        let heads: Vec<Head> = self.unsent.drain().map(|(_, head)| head).collect();
        for head in &heads {
            self.known.insert(head.tenant, *head);
        }
        if let Err(error) = self.shared.parts.store.notify(&heads).await {
            // Others find the heads by their own poll.
            tracing::debug!(%error, "a hint could not be sent");
        }
    }
}

/// Hears the next hint; never where there is no listener.
async fn hear(listener: &mut Option<HeadListener>) -> Result<Hint, StoreError> {
    match listener {
        Some(listener) => listener.next().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::Config;
    use crate::dispatch::tests::World;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_replica_that_leaves_gets_hints_for_as_long_as_it_owns_a_shard() {
        let world = World::new().await;
        let (store, lease) = (&world.store, Duration::from_secs(60));
        let leaving = crate::domain::ids::ReplicaId(crate::clock::new_uuid());
        store.prepare_shards().await.expect("prepared");
        assert_eq!(store.take_shards(leaving, 1, lease).await.expect("answered").len(), 1);
        store.pulse(leaving, Some(Renewal::Leaving(lease)), store.now()).await.expect("answered");
        let (shared, mut inputs) = world.shared(Config::default());
        let mut beat = Beat::new(shared);
        let head = Head { tenant: world.tenant, position: 5, registry_version: 1, deferred_version: 0 };
        beat.poll().await;
        beat.note(&News::Head(head));
        assert_eq!(beat.unsent.len(), 1);
        let Some(Input::Pulse { pulse, .. }) = inputs.recv().await else { panic!("it tells what it saw") };
        assert_eq!(pulse.replicas, 1, "it leaves its shards to those that stay");
        store.leave(leaving).await.expect("answered");
        beat.poll().await;
        beat.note(&News::Head(Head { position: 6, ..head }));
        assert_eq!(beat.unsent[&world.tenant].position, 5, "nobody is left to be told");
        world.end().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_replica_does_not_hear_its_own_hints_as_news() {
        let world = World::new().await;
        let (shared, _inputs) = world.shared(Config::default());
        let mut beat = Beat { others: true, ..Beat::new(shared) };
        let head = |position| Head { tenant: world.tenant, position, registry_version: 1, deferred_version: 0 };
        for position in [5, 6] {
            beat.note(&News::Head(head(position)));
            beat.notify().await;
        }
        let mut news = world.parts.feed.subscribe(16);
        for position in [5, 6, 7] {
            beat.hinted(head(position));
        }
        beat.heard(head(7));
        let heard: Vec<_> = std::iter::from_fn(|| news.try_recv().ok()).collect();
        let position = |news: &News| if let News::Head(head) = news { head.position } else { 0 };
        assert_eq!(heard.iter().map(position).collect::<Vec<_>>(), [7, 7], "another one's, and what the poll repeats");
        world.end().await;
    }
}
