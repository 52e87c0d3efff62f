//! The writer: group commit.
//!
//! Publish calls hand their prepared events over; while commits run, the next batch gathers; at low load a call commits at
//! once. A commit is one statement. The writer's tasks belong to the server, not to the calls: a caller that goes away loses
//! only its answer.
//!
//! A tenant's trouble is its own: one whose head row somebody else holds is committed by a task of its own (`aside`), and where a
//! commit of several calls is refused, each is tried by itself.

mod aside;
mod calls;
mod repeated;
#[cfg(test)]
mod tests;

use super::PublishError;
use super::config::Config;
use super::prepare::{Prepared, prepare};
use super::registry::Registry;
use crate::clock;
use crate::domain::event::{Data, Event, Lineage, LogEntry};
use crate::domain::event_type::EventTypeName;
use crate::domain::ids::{EventId, TenantId};
use crate::feed::Feed;
use crate::store::publish::{
    CommitConnection, Committed, CommittedBatch, Decided, IDEMPOTENCY_CONSTRAINT, NewKey, OnLocked, UsedKey,
};
use crate::store::{Store, StoreError};
use crate::telemetry::{measured, traces};
use aside::Aside;
use calls::{batches, bytes_of, fail, split, weight};
use chrono::TimeDelta;
use futures::FutureExt as _;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, Span};

/// Accepts events for commit. Cheap to clone.
#[derive(Clone)]
pub struct Writer {
    queue: mpsc::Sender<Call>,
    core: Arc<Core>,
    /// What calls may hold in memory until they are answered, in units of [`ROOM_UNIT`].
    room: Arc<Semaphore>,
}

/// Where a published event is.
#[derive(Debug, Clone)]
pub struct Published {
    /// The event with its place.
    pub entry: Arc<LogEntry>,
    /// True where an earlier call with the same key published it.
    pub duplicate: bool,
}

/// How often a call is tried again before it is told to come back later: each round means that the registry changed, or that a
/// key was taken, between two statements.
const ROUNDS_MAX: u32 = 100;

/// Bytes that one permit of a writer's room stands for.
const ROOM_UNIT: usize = 1_024;

type Answer = Result<Vec<Published>, PublishError>;

/// One call: events of one tenant that commit together, in order, or not at all.
struct Call {
    tenant: TenantId,
    events: Vec<Prepared>,
    answer: oneshot::Sender<Answer>,
    /// Its share of the writer's room, given back once it is answered.
    room: OwnedSemaphorePermit,
    /// What it is traced by.
    span: Span,
}

/// What one commit left to do.
enum Round {
    /// These calls must be tried again.
    Done(Vec<Call>),
    /// These calls must be tried again, but for those that repeat one of these keys.
    Repeated(Vec<Call>, Vec<UsedKey>),
    /// Nothing was written: while the commit waited for a lock, somebody else took a key of these calls.
    KeyTaken(Vec<Call>),
    /// Nothing was written: Postgres refused the statement, which may be the fault of one call alone.
    Refused(Vec<Call>),
}

struct Core {
    store: Store,
    registry: Registry,
    feed: Feed,
    config: Config,
    aside: Aside,
}

/// The tasks of a running writer.
pub struct WriterTasks {
    tasks: JoinSet<()>,
    aside: TaskTracker,
}

impl WriterTasks {
    /// Ends once every [`Writer`] is dropped and what it accepted is committed or answered.
    pub async fn join(mut self) {
        while self.tasks.join_next().await.is_some() {}
        // Only committers start such tasks, and they have ended.
        self.aside.close();
        self.aside.wait().await;
    }
}

impl Writer {
    /// Starts `commits_in_flight` committing tasks.
    pub fn start(store: Store, registry: Registry, feed: Feed, config: Config) -> (Self, WriterTasks) {
        let (queue, receiver) = mpsc::channel(config.queue_calls_max);
        let committers = config.commits_in_flight.clamp(1, 16);
        let room = Arc::new(Semaphore::new(config.queue_bytes_max / ROOM_UNIT));
        let core = Arc::new(Core { store, registry, feed, config, aside: Aside::default() });
        let receiver = Arc::new(Mutex::new(receiver));
        let mut tasks = JoinSet::new();
        for _ in 0..committers {
            tasks.spawn(core.clone().run(receiver.clone()));
        }
        let aside = core.aside.tasks();
        (Self { queue, core, room }, WriterTasks { tasks, aside })
    }

    /// The bounds it works with.
    pub fn config(&self) -> &Config {
        &self.core.config
    }

    /// Reads how many calls wait for a commit, without keeping the writer alive.
    pub fn depth(&self) -> impl Fn() -> usize + Send + Sync + 'static {
        let queue = self.queue.downgrade();
        move || queue.upgrade().map_or(0, |queue| queue.max_capacity() - queue.capacity())
    }

    /// The registry it matches with.
    pub fn registry(&self) -> &Registry {
        &self.core.registry
    }

    /// Commits one tenant's prepared events together; answers once they are on disk.
    ///
    /// An event whose key was used before with the same request answers with the first one, whatever happens to the others.
    ///
    /// Errors: [`PublishError::QueueFull`] where the events that wait for a commit take the room there is, [`PublishError::Gated`]
    /// where listeners must agree first; nothing is written.
    pub async fn write(&self, tenant: TenantId, events: Vec<Prepared>) -> Answer {
        if events.iter().any(Prepared::is_gated) {
            return Err(PublishError::Gated);
        }
        let limit = self.core.config.queue_bytes_max;
        // One that is larger than all of the room goes alone.
        let units = bytes_of(&events).div_ceil(ROOM_UNIT).min(limit / ROOM_UNIT);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let room = self.room.clone().try_acquire_many_owned(units);
        let room = room.map_err(|_| PublishError::QueueFull { limit_bytes: limit })?;
        let (answer, answered) = oneshot::channel();
        self.queue
            .send(Call { tenant, events, answer, room, span: traces::current() })
            .await
            .map_err(|_| PublishError::Draining)?;
        // Dropped without an answer: a fault of the server, or its end.
        answered.await.unwrap_or_else(|_| Err(StoreError::Interrupted.into()))
    }

    /// Publishes one of Carillon's own events. `key` makes a repetition harmless.
    pub async fn publish_system(
        &self,
        tenant: TenantId,
        event_type: EventTypeName,
        subject: String,
        data: &serde_json::Value,
        lineage: Option<Lineage>,
        key: &str,
    ) -> Result<Published, PublishError> {
        let prepared = self.prepare_system(tenant, event_type, subject, data, lineage, key).await?;
        let mut published = self.write(tenant, vec![prepared]).await?;
        published.pop().ok_or(PublishError::Draining)
    }

    /// One of Carillon's own events, ready for [`Writer::write`].
    pub async fn prepare_system(
        &self,
        tenant: TenantId,
        event_type: EventTypeName,
        subject: String,
        data: &serde_json::Value,
        lineage: Option<Lineage>,
        key: &str,
    ) -> Result<Prepared, PublishError> {
        let id = EventId(clock::new_uuid());
        let event = Arc::new(Event {
            id,
            event_type,
            schema_version: 0,
            source: "/carillon".to_owned(),
            subject: Some(subject),
            time: self.core.store.now(),
            content_type: Some("application/json".to_owned()),
            extensions: Vec::new(),
            data: Data::Text(data.to_string().into()),
            lineage: lineage.unwrap_or_else(|| Lineage::root(id)),
        });
        let key = NewKey { key: format!("carillon/{key}"), request_hash: [0; 32] };
        let registry = self.core.registry.tenant(tenant).await?;
        prepare(&self.core.registry, &registry, event, 0, Some(key), Some(self.core.config.event_bytes_max)).await
    }
}

impl Core {
    /// Gathers and commits until every sender is gone. The receiver's lock is held only while gathering, so that the next
    /// committer gathers while this one commits.
    async fn run(self: Arc<Self>, queue: Arc<Mutex<mpsc::Receiver<Call>>>) {
        let mut connection = self.store.commit_connection(Duration::from_millis(self.config.lock_patience_ms));
        loop {
            let calls = {
                let mut queue = queue.lock().await;
                let Some(first) = queue.recv().await else { return };
                self.gather(first, &mut queue)
            };
            // A fault in one batch must not end publishing: its callers learn of it, the next batch goes on.
            let calls = self.without_those_aside(calls);
            if AssertUnwindSafe(self.commit(&mut connection, calls)).catch_unwind().await.is_err() {
                tracing::error!("a batch of publish calls was dropped by a fault of the server");
            }
        }
    }

    /// What is waiting right now, up to the bounds: a call that begins below them is taken whole.
    fn gather(&self, first: Call, queue: &mut mpsc::Receiver<Call>) -> Vec<Call> {
        let (mut events, mut bytes) = (weight(&first).0, weight(&first).1);
        let mut calls = vec![first];
        while events < self.config.commit_events_max && bytes < self.config.commit_bytes_max {
            let Ok(call) = queue.try_recv() else { break };
            let (more_events, more_bytes) = weight(&call);
            events += more_events;
            bytes += more_bytes;
            calls.push(call);
        }
        calls
    }

    async fn commit(self: &Arc<Self>, connection: &mut CommitConnection, calls: Vec<Call>) {
        // Rounds: a call drops out when it is answered; what is left is tried again with what the round taught.
        let mut rest = calls;
        let mut rounds = 0;
        let mut each_alone = false;
        let mut locks = OnLocked::Wait;
        while !rest.is_empty() {
            let waiting = rest.len();
            rounds += 1;
            if rounds > ROUNDS_MAX {
                fail(rest, &PublishError::Contended);
                return;
            }
            let (now, later) = split(rest, self.config.batch_scope, each_alone);
            let span =
                traces::commit(now.iter().map(|call| &call.span), now.iter().map(|call| call.events.len()).sum());
            rest = match self.commit_round(connection, now, rounds, locks).instrument(span).await {
                Round::Done(mut left) => {
                    left.extend(later);
                    left
                }
                // Answered for all that wait, not for this round alone: a storm of repetitions of one key costs one round.
                Round::Repeated(mut calls, used) => {
                    calls.extend(later);
                    self.answer_repeated(calls, used).await
                }
                // Seldom more than once: who has the locks first sees every key that was taken under them, which those of PRE events are not.
                Round::KeyTaken(mut calls) => {
                    locks = OnLocked::WaitFirst;
                    calls.extend(later);
                    calls
                }
                Round::Refused(mut calls) => {
                    each_alone = true;
                    calls.extend(later);
                    calls
                }
            };
            // Calls that commit one after another are no sign of a registry that moves too fast.
            if rest.len() < waiting {
                rounds = 0;
            }
        }
    }

    /// One commit.
    async fn commit_round(
        self: &Arc<Self>,
        connection: &mut CommitConnection,
        calls: Vec<Call>,
        round: u32,
        locks: OnLocked,
    ) -> Round {
        let calls = self.match_again(calls).await;
        if calls.is_empty() {
            return Round::Done(calls);
        }
        let batches = batches(&calls);
        let expires = self.store.now() + TimeDelta::hours(i64::from(self.config.idempotency_hours.max(24)));
        let budget = self.config.chain_invocations_max;
        let started = Instant::now();
        let mut written = connection.commit_events(&batches, expires, budget, locks).await;
        let some_locked = matches!(written, Err(StoreError::Locked));
        if some_locked && !connection.is_patient() {
            if batches.len() == 1 {
                self.put_aside(calls);
                return Round::Done(Vec::new());
            }
            // Somebody holds the head of one of these tenants, and not for a moment only: the others do not wait for it.
            written = connection.commit_events(&batches, expires, budget, OnLocked::Skip).await;
        }
        match written {
            Ok(Committed { written, used, mut decided }) => {
                // Of a tenant one of whose calls repeats a key nothing was written: its other calls come again without it.
                let held: HashSet<TenantId> = used.iter().map(|used| used.tenant).collect();
                let (held, calls): (Vec<Call>, Vec<Call>) =
                    calls.into_iter().partition(|call| held.contains(&call.tenant));
                let places: HashMap<TenantId, _> = written.into_iter().map(|batch| (batch.tenant, batch)).collect();
                let (mut stale, mut events) = (Vec::new(), 0);
                let mut tenants: BTreeMap<TenantId, Vec<Call>> = BTreeMap::new();
                for call in calls {
                    if places.contains_key(&call.tenant) {
                        events += call.events.len();
                        tenants.entry(call.tenant).or_default().push(call);
                    } else {
                        measured().publish.registry_misses.inc();
                        stale.push(call);
                    }
                }
                if events > 0 {
                    measured().publish.committed(events, started.elapsed());
                }
                for (tenant, calls) in tenants {
                    self.answer(places[&tenant], &mut decided, calls);
                }
                let mut left = if some_locked {
                    // Locked or stale: the task that takes it finds out.
                    self.put_aside(stale);
                    Vec::new()
                } else {
                    self.reload(stale).await
                };
                left.extend(held);
                if used.is_empty() { Round::Done(left) } else { Round::Repeated(left, used) }
            }
            // On a distributed Postgres the name carries the shard's number behind it.
            Err(StoreError::Conflict { constraint }) if constraint.starts_with(IDEMPOTENCY_CONSTRAINT) => {
                Round::KeyTaken(calls)
            }
            Err(StoreError::PartitionMissing) if round < 3 => {
                match self.store.ensure_partitions(self.store.now().date_naive(), 1).await {
                    Ok(()) => Round::Done(calls),
                    Err(error) => Round::Done(fail(calls, &error.into())),
                }
            }
            Err(StoreError::Statement(_) | StoreError::Conflict { .. }) if calls.len() > 1 => Round::Refused(calls),
            // Two replicas that locked heads in a circle, which the lock order excludes, would end here too.
            Err(error) => Round::Done(fail(calls, &error.into())),
        }
    }

    /// Brings every call to its tenant's present registry version; calls that no longer pass are answered.
    async fn match_again(&self, calls: Vec<Call>) -> Vec<Call> {
        let mut ready = Vec::with_capacity(calls.len());
        for mut call in calls {
            let registry = match self.registry.tenant(call.tenant).await {
                Ok(registry) => registry,
                Err(error) => {
                    let _ = call.answer.send(Err(error.into()));
                    continue;
                }
            };
            let version = registry.version();
            let mut refused = None;
            for prepared in &mut call.events {
                if prepared.registry_version == version {
                    continue;
                }
                let event = prepared.event.clone();
                let key = prepared.key.clone();
                let limit = prepared.own_bytes_max;
                match prepare(&self.registry, &registry, event, prepared.requested_schema, key, limit).await {
                    // It has got listeners that may refuse it.
                    Ok(again) if again.is_gated() => refused = Some(PublishError::Gated),
                    Ok(again) => *prepared = again,
                    Err(error) => refused = Some(error),
                }
            }
            if let Some(error) = refused {
                let _ = call.answer.send(Err(error));
            } else {
                ready.push(call);
            }
        }
        // The registry may have moved between two calls of one tenant: all must be at one version.
        let mut versions: HashMap<TenantId, i64> = HashMap::new();
        for call in &ready {
            for prepared in &call.events {
                let version = versions.entry(call.tenant).or_default();
                *version = (*version).max(prepared.registry_version);
            }
        }
        let uniform = |call: &Call| call.events.iter().all(|e| e.registry_version == versions[&call.tenant]);
        if ready.iter().all(uniform) { ready } else { Box::pin(self.match_again(ready)).await }
    }

    async fn reload(&self, stale: Vec<Call>) -> Vec<Call> {
        let mut left = Vec::with_capacity(stale.len());
        let mut reloaded: HashMap<TenantId, Result<(), StoreError>> = HashMap::new();
        for call in stale {
            let outcome = match reloaded.entry(call.tenant) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => new.insert(self.registry.reload(call.tenant).await.map(drop)),
            };
            match outcome {
                Ok(()) => left.push(call),
                Err(error) => drop(call.answer.send(Err(error.clone().into()))),
            }
        }
        left
    }

    fn answer(&self, place: CommittedBatch, decided: &mut HashMap<EventId, Decided>, calls: Vec<Call>) {
        let CommittedBatch { tenant, first_position: mut position, committed_at } = place;
        let mut entries = Vec::new();
        let mut answers = Vec::with_capacity(calls.len());
        for call in calls {
            let mut published = Vec::with_capacity(call.events.len());
            for Prepared { event, matched, refused, .. } in call.events {
                // The budget of its chain may have left less of what it fires.
                let left = if event.lineage.depth > 0 { decided.remove(&event.id) } else { None };
                let Decided { matched, refused } = left.unwrap_or(Decided { matched, refused });
                let entry = Arc::new(LogEntry { position, committed_at, event, matched, refused });
                position += 1;
                entries.push(entry.clone());
                published.push(Published { entry, duplicate: false });
            }
            answers.push((call.answer, published));
        }
        // Dispatch and watch hear of it first: their work is on the way while the answers travel.
        self.feed.send_committed(tenant, entries);
        for (answer, published) in answers {
            // A caller that went away has lost only its answer.
            let _ = answer.send(Ok(published));
        }
    }
}
