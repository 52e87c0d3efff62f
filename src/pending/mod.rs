//! Events that are accepted and not in the log yet: PRE events whose listeners are asked, and delayed ones.
//!
//! ```text
//! PRE ------> row GATED ----> phase: ask all listeners ----> committed (publish's statement, with their outcomes) | ABORTED
//! deliver_at -> row SCHEDULED --due--> matched now --> committed, or GATED first
//!                  `---------------- CancelEvent, while it is neither ----------------> CANCELLED
//! ```
//!
//! A row is owned by the replica that holds its token, for as long as its lease; both kinds of row are due at one time, and whichever
//! replica is there first claims them. The pulse says when the next one is due: nothing here polls. Phases are tasks of the server: a
//! publisher that goes away is noticed, one that comes back with the same key finds its phase again.
//!
//! Carillon's own events never come here: their types are POST.

mod admission;
mod ask;
mod claimed;
mod config;
mod decided;
mod due;
mod enriched;
mod error;
mod heads;
mod health;
mod phase;
mod receivers;
mod room;
mod running;
mod seats;
#[cfg(test)]
mod tests;
mod trial;
mod turns;
mod wait;

pub use admission::Admission;
pub use config::Config;
pub use error::PendingError;
pub use wait::{Stands, Until};

use crate::domain::event::LogEntry;
use crate::domain::event_type::EventTypeName;
use crate::domain::health::HealthRow;
use crate::domain::ids::{EventId, SubscriptionNo, TenantId};
use crate::domain::places::Places;
use crate::domain::pre::Verdict;
use crate::executor::Executor;
use crate::feed::Feed;
use crate::publish::prepare::Prepared;
use crate::publish::registry::{Registry, TenantRegistry};
use crate::publish::{self, PublishError};
use crate::store::audit::Principal;
use crate::store::pending::{Accepted, NewPending, PendingState, WaitsFor};
use crate::store::publish::IDEMPOTENCY_CONSTRAINT;
use crate::store::request_ids::{Once, Repeatable};
use crate::store::{Store, StoreError};
use crate::turnstile::Turnstile;
use admission::Held;
use ask::Listener;
use chrono::{DateTime, TimeDelta, Utc};
use dashmap::DashMap;
use due::Freed;
use heads::Heads;
use phase::{Ended, Phase};
use receivers::Receivers;
use running::{Attachment, Handle};
use seats::Seats;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What pending events need.
pub struct Parts {
    /// Postgres; what callers ask for takes turns there.
    pub store: Store,
    /// What matches.
    pub registry: Registry,
    /// Asks listeners.
    pub executor: Executor,
    /// News of what is committed, and of what is due.
    pub feed: Feed,
}

/// Accepts events that wait. Cheap to clone.
#[derive(Clone)]
pub struct Pending {
    core: Arc<Core>,
    /// For what callers ask: each tenant's take turns.
    store: Store,
}

struct Core {
    /// For what the service owes the events that it has accepted: it waits for no turn, since they have a deadline.
    store: Store,
    registry: Registry,
    executor: Executor,
    feed: Feed,
    config: Config,
    event_bytes_max: usize,
    /// How long a key and its answer are kept.
    kept: TimeDelta,
    phases: DashMap<(TenantId, EventId), Arc<Handle>>,
    /// Of the phases that publishers begin here.
    places: Places,
    /// Bytes of these events.
    room: Places,
    /// Of the phases of delayed events here: half as many as publishers have. They count among what their tenant may have at all replicas.
    due_places: Places,
    /// Of the first of a type, where it finds none of these: as many again.
    first_places: Places,
    /// Bytes of the delayed events that are due.
    due_room: Places,
    /// Bytes of the PRE events of other replicas: somebody may wait for them, and delayed events take nothing from them.
    taken_over_room: Places,
    /// Of those whose time is up, where they find no room.
    over_places: Places,
    seats: Seats,
    freed: Freed,
    heads: Heads,
    receivers: Receivers,
    questions: Turnstile,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// What became of an event.
#[derive(Debug, Clone)]
pub enum Answer {
    /// It is in the log.
    Committed {
        /// The event with its place.
        entry: Arc<LogEntry>,
        /// What its listeners said, where it is a PRE event.
        verdicts: Arc<[Verdict]>,
        /// True where an earlier call with the same key published it.
        duplicate: bool,
    },
    /// It waits for its time.
    Scheduled {
        /// Its id.
        event: EventId,
        /// When.
        at: DateTime<Utc>,
        /// True where an earlier call with the same key scheduled it.
        duplicate: bool,
    },
}

/// Why an event cannot be cancelled.
#[derive(Debug, Clone)]
pub enum CancelRefusal {
    /// There is no such event.
    NotFound,
    /// It is too late; the state it is in.
    TooLate(&'static str),
    /// The store failed.
    Store(StoreError),
}

impl From<StoreError> for CancelRefusal {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// What of a caller's own deadline is kept for its answer, at most; a tenth of shorter ones.
const ANSWER_MARGIN: Duration = Duration::from_millis(500);
/// PRE events of other replicas that are decided without room in memory, since their time is up: at the same time, of all tenants.
const OVER_MAX: usize = 16;
/// What a stop waits for phases to be given back.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

impl Pending {
    /// Starts to take care of what is due.
    pub fn start(parts: Parts, config: Config, publish: &publish::Config) -> Self {
        let (store, core) = (parts.store.clone(), Arc::new(Core::new(parts, config, publish)));
        core.tasks.spawn(due::run(core.clone()));
        Self { core, store }
    }

    /// Accepts a PRE event, asks its listeners and answers with what they decided. `until` is when the caller stops waiting, `admission` the
    /// room of the batch that it is of.
    ///
    /// Errors: [`PublishError::Contended`] where the registry moved on: prepare it again. [`PublishError::KeyReused`] where its key was used
    /// before, for whatever event.
    pub async fn publish(
        &self,
        tenant: TenantId,
        prepared: Prepared,
        timeout: Option<Duration>,
        until: Option<Instant>,
        admission: Option<&Admission>,
    ) -> Result<Answer, PendingError> {
        let core = self.core.clone();
        let held = admission.and_then(|admission| admission.held.clone());
        let asked = core.pre_timeout(timeout);
        // The answer has to travel before the caller's own deadline.
        let left = until.map_or(asked, |until| until.saturating_duration_since(Instant::now()));
        let timeout = asked.min(left.saturating_sub((left / 10).min(ANSWER_MARGIN)));
        let id = prepared.event.id;
        // In a task of its own: a caller that goes away now must not leave a row behind that nobody works on.
        let accepted = tokio::spawn(async move { core.accept_gated(tenant, &prepared, timeout, held).await }).await;
        let attachment = accepted.unwrap_or_else(|_| Err(StoreError::Interrupted.into()))?;
        match attachment.ended().await {
            Ended::Committed(entry, verdicts) => Ok(Answer::Committed { entry, verdicts, duplicate: false }),
            Ended::Not(error) => Err(error),
            Ended::Elsewhere => self.wait(tenant, id, Until::Final, false).await,
        }
    }

    /// Accepts an event that is published at a time ahead.
    ///
    /// Errors: as [`Self::publish`], and [`PendingError::TooFar`], [`PendingError::Full`].
    pub async fn schedule(
        &self,
        tenant: TenantId,
        prepared: Prepared,
        at: DateTime<Utc>,
        timeout: Option<Duration>,
        admission: Option<&Admission>,
    ) -> Result<Answer, PendingError> {
        self.check_time(at)?;
        let core = self.core.clone();
        let max = if admission.is_some() { i64::MAX } else { core.config.scheduled_max.into() };
        let event = prepared.event.id;
        let accepted = tokio::spawn(async move {
            let keys_expire_at = at + core.kept;
            let new = NewPending {
                tenant,
                event: prepared.event,
                matched: Arc::new([]),
                refused: Arc::new([]),
                registry_version: prepared.registry_version,
                key: prepared.key.map(|key| (key, keys_expire_at)),
                waits_for: WaitsFor::Time(at),
                pre_timeout: core.pre_timeout(timeout),
                max,
            };
            core.accept(&new, core.scheduled_full()).await?;
            core.feed.note_pending_due(at);
            Ok(())
        })
        .await;
        accepted.unwrap_or_else(|_| Err(PendingError::from(StoreError::Interrupted)))?;
        Ok(Answer::Scheduled { event, at, duplicate: false })
    }

    /// Errors: [`PendingError::TooFar`] where it is further ahead than events may be scheduled.
    pub fn check_time(&self, at: DateTime<Utc>) -> Result<(), PendingError> {
        let hours = self.core.config.schedule_horizon_hours;
        let last = self.core.store.now() + TimeDelta::hours(i64::from(hours));
        if at > last { Err(PendingError::TooFar { hours }) } else { Ok(()) }
    }

    /// Takes an event back while it is delayed or its listeners are asked.
    pub async fn cancel(
        &self,
        by: &Principal,
        event: EventId,
        request: Repeatable<()>,
    ) -> Result<Once<()>, CancelRefusal> {
        let (core, store, tenant) = (&self.core, &self.store, by.tenant);
        if let Some(done) = store.cancel_pending(by, event, core.kept, request).await? {
            if let Some(handle) = core.phases.get(&(tenant, event)) {
                handle.cancelled.cancel();
            }
            return Ok(done);
        }
        match store.pending_standing(tenant, event).await? {
            Some(row) if row.state == PendingState::Aborted => Err(CancelRefusal::TooLate("ABORTED")),
            Some(_) => Err(CancelRefusal::TooLate("CANCELLED")),
            None if store.event(tenant, event).await?.is_some() => Err(CancelRefusal::TooLate("COMMITTED")),
            None => Err(CancelRefusal::NotFound),
        }
    }

    /// The type of an event of the tenant, in the log or not yet; none where there is no such event.
    pub async fn event_type(&self, tenant: TenantId, event: EventId) -> Result<Option<EventTypeName>, StoreError> {
        if let Some(row) = self.store.pending_event(tenant, event).await? {
            return Ok(Some(row.entry.event.event_type.clone()));
        }
        Ok(self.store.event(tenant, event).await?.map(|entry| entry.event.event_type.clone()))
    }

    /// How many PRE events ask their listeners here, now.
    pub fn phases(&self) -> usize {
        self.core.phases.len()
    }

    /// Gives every phase that still runs to other replicas, and stops.
    pub async fn stop(self) {
        self.core.stop.cancel();
        self.core.tasks.close();
        if tokio::time::timeout(STOP_PATIENCE, self.core.tasks.wait()).await.is_err() {
            tracing::warn!("pending events were not given back in time; their leases end by themselves");
        }
    }
}

impl Core {
    fn new(Parts { store, registry, executor, feed }: Parts, config: Config, publish: &publish::Config) -> Self {
        Self {
            heads: Heads::new(store.connections_max(), Duration::from_millis(publish.lock_patience_ms)),
            store: store.owed(),
            registry,
            executor,
            feed,
            places: Places::new(config.phases_max as usize),
            room: Places::new(config.phases_bytes_max),
            due_places: Places::new(config.phases_max.div_ceil(2) as usize),
            first_places: Places::new(config.phases_max.div_ceil(2) as usize),
            due_room: Places::new(config.due_bytes_max / 2),
            taken_over_room: Places::new(config.due_bytes_max / 2),
            over_places: Places::new(OVER_MAX),
            seats: Seats::default(),
            freed: Freed::default(),
            questions: Turnstile::leaving_as_many(config.questions_max),
            config,
            event_bytes_max: publish.event_bytes_max,
            kept: TimeDelta::hours(i64::from(publish.idempotency_hours)),
            phases: DashMap::new(),
            receivers: Receivers::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }
    }

    fn pre_timeout(&self, asked: Option<Duration>) -> Duration {
        let longest = Duration::from_millis(self.config.pre_timeout_max_ms);
        asked.unwrap_or(Duration::from_millis(self.config.pre_timeout_ms)).min(longest)
    }

    fn lease(&self) -> Duration {
        Duration::from_millis(self.config.lease_ms)
    }

    /// Until when a final row is kept: no shorter than its key, which a delayed event has from its time on.
    fn final_until(&self, deliver_at: Option<DateTime<Utc>>) -> DateTime<Utc> {
        let now = self.store.now();
        deliver_at.map_or(now, |at| at.max(now)) + self.kept
    }

    /// Answers how the receivers that the event fires do.
    async fn accept(&self, new: &NewPending, full: PendingError) -> Result<Vec<HealthRow>, PendingError> {
        match self.store.accept_pending(new).await {
            Ok(Accepted::Yes { health }) => Ok(health),
            Ok(Accepted::Full) => Err(full),
            Ok(Accepted::Stale) => {
                self.registry.reload(new.tenant).await?;
                Err(PublishError::Contended.into())
            }
            Err(StoreError::Conflict { constraint }) if constraint.starts_with(IDEMPOTENCY_CONSTRAINT) => {
                Err(PublishError::KeyReused.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn accept_gated(
        self: &Arc<Self>,
        tenant: TenantId,
        prepared: &Prepared,
        timeout: Duration,
        held: Option<Held>,
    ) -> Result<Attachment, PendingError> {
        let registry = self.registry.tenant(tenant).await?;
        let listeners = listeners(&registry, &prepared.matched);
        let (held, max) = match held {
            Some(held) => (held, i64::MAX),
            None => {
                let enrichment = self.enrichment_bytes(listeners.iter().map(|listener| &listener.entry));
                (self.hold(tenant, 1, prepared.event.memory_bytes(), enrichment)?, self.config.phases_max.into())
            }
        };
        let accepted_at = self.store.now();
        let deadline_at = accepted_at + timeout;
        let new = NewPending {
            tenant,
            event: prepared.event.clone(),
            matched: prepared.matched.clone(),
            refused: prepared.refused.clone(),
            registry_version: prepared.registry_version,
            key: prepared.key.clone().map(|key| (key, accepted_at + self.kept)),
            waits_for: WaitsFor::Listeners { deadline_at, lease: self.lease() },
            pre_timeout: timeout,
            max,
        };
        let health = self.accept(&new, self.phases_full()).await?;
        self.receivers.know(tenant, &listeners, &health);
        let entry = LogEntry {
            position: 0,
            committed_at: accepted_at,
            event: new.event,
            matched: new.matched,
            refused: new.refused,
        };
        let phase = Phase {
            tenant,
            entry: Arc::new(entry),
            token: Store::first_pending_token(),
            attempted: None,
            deliver_at: None,
            deadline: self.instant_of(deadline_at),
            listeners,
            verdicts: Vec::new(),
            abandonable: true,
        };
        let handle = Handle::new();
        let attachment = handle.attach();
        self.spawn_in(phase, handle, held);
        Ok(attachment)
    }
}

/// The listeners in the order in which their enrichments are applied.
fn listeners(registry: &TenantRegistry, matched: &[SubscriptionNo]) -> Vec<Listener> {
    let mut listeners: Vec<Listener> =
        matched.iter().filter_map(|no| registry.subscription(*no)).map(Listener::new).collect();
    put_in_order(&mut listeners);
    listeners
}

fn put_in_order(listeners: &mut [Listener]) {
    listeners.sort_by(|one, other| {
        let key = |listener: &Listener| {
            let subscription = &listener.entry.subscription;
            (listener.policy.priority, subscription.display_name.clone(), subscription.id)
        };
        key(one).cmp(&key(other))
    });
}
