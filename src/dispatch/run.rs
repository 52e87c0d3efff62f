//! What the engine's tasks share, what they tell it, how they do it, and the task of one attempt.
//!
//! An attempt calls the executor and reports how it went. It writes nothing: what the result means is decided by the engine,
//! and recorded by a settle.

use super::replay::Step;
use super::tenant::{Batch, Ended, HealthNote, LogPage, Start};
use super::{Config, Parts};
use crate::domain::event::LogEntry;
use crate::domain::filter::OrderingKey;
use crate::domain::health::HealthRow;
use crate::domain::ids::{Position, ReplicaId, SubscriptionNo, TenantId};
use crate::domain::invocation::{Outcome, OutcomeClass};
use crate::domain::memory::Memory;
use crate::planted::{self, Defect};
use crate::publish::registry::TenantRegistry;
use crate::store::StoreError;
use crate::store::dispatch::{ClaimedTenant, DeferredRow, Place};
use crate::store::heads::RegistryChange;
use crate::store::leases::{Pulse, ShardLease};
use crate::store::quotas::BacklogStanding;
use crate::store::rates::Rate;
use crate::store::settle::Fenced;
use crate::telemetry::measured;
use crate::turnstile::{Pass, Turnstile};
use chrono::{DateTime, Utc};
use futures::FutureExt as _;
use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What every task of the dispatcher knows.
pub(super) struct Shared {
    pub parts: Parts,
    pub config: Config,
    pub replica: ReplicaId,
    /// To the engine. Unbounded in type only: attempts, loads and settles under way are bounded, and each reports once.
    pub inputs: mpsc::UnboundedSender<Input>,
    pub stop: CancellationToken,
    /// What is kept of events that wait or run, all tenants together.
    pub memory: Memory,
    /// What may be read at the same time.
    pub loads: Loads,
}

/// Turns of what is read for tenants. A storm of it leaves connections to the writer, the pulse and the settles, and whatever one tenant
/// has aside leaves places to the others, and to what is new of its own.
pub(super) struct Loads {
    all: Turnstile,
    /// In front of these: work that waits in the database, and what is counted of it.
    aside: Turnstile,
}

impl Loads {
    /// Takes how many there may be; at least four.
    pub fn new(most: usize) -> Self {
        // One tenant has three quarters at most, of which what it has aside gets two, and what all have aside three.
        Self { all: Turnstile::new(most), aside: Turnstile::shared(most - most / 4, most / 2) }
    }

    /// A turn to read where a tenant is, and what is new of it.
    pub async fn enter(&self, tenant: TenantId) -> Pass {
        self.all.enter(tenant).await
    }

    /// A turn to read what a tenant has aside.
    pub async fn enter_aside(&self, tenant: TenantId) -> [Pass; 2] {
        let aside = self.aside.enter(tenant).await;
        [self.all.enter(tenant).await, aside]
    }
}

impl Shared {
    /// Tells the engine; nobody listens once it has stopped.
    pub fn tell(&self, input: Input) {
        let _ = self.inputs.send(input);
    }

    pub fn lease(&self) -> Duration {
        Duration::from_millis(self.config.lease_ms)
    }
}

/// Deferred rows of one subscription with their events.
pub(super) struct DuePage {
    pub rows: Vec<DeferredRow>,
    /// Of the rows that were due at `at`.
    pub events: HashMap<Position, Arc<LogEntry>>,
    pub at: DateTime<Utc>,
    /// True where rows may be left behind these.
    pub more: bool,
    /// Where they were read in the order of their keys: what the others wait for.
    pub rest: Option<Rest>,
}

/// What a read in the order of keys left behind.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rest {
    /// The last key that it met, where there may be further ones.
    pub after: Option<OrderingKey>,
    /// True where it left nothing that is in no order and due.
    pub looked: bool,
    /// When the first of it is due that is not due yet.
    pub due_at: Option<DateTime<Utc>>,
    /// True where there is any, or where new work may have to wait for a dead letter or a replay.
    pub left: bool,
    /// Where rows are left that come after what was known of the log: up to where it was known.
    pub beyond: Option<Position>,
    /// How far a replay under way has come.
    pub replayed: Option<Position>,
}

/// A look at what callers have changed.
pub(super) struct Review {
    /// The deferred_version that it reflects, at least.
    pub version: i64,
    pub due: Vec<(SubscriptionNo, DateTime<Utc>)>,
    /// Whether there are deferred rows.
    pub any_rows: bool,
    pub revoked: HashSet<Place>,
}

/// The tenants of a shard as its new owner finds them.
#[derive(Default)]
pub(super) struct ClaimedShard {
    pub tenants: Vec<ClaimedTenant>,
    pub due: HashMap<TenantId, Vec<(SubscriptionNo, DateTime<Utc>)>>,
    /// Those that have deferred rows.
    pub with_rows: HashSet<TenantId>,
    /// Those whose backlog is full.
    pub full: HashSet<TenantId>,
    pub unannounced: HashSet<TenantId>,
    pub health: HashMap<TenantId, Vec<HealthRow>>,
    pub rates: HashMap<TenantId, Vec<Rate>>,
    pub replaying: HashSet<TenantId>,
}

/// Which life of a tenant in memory a task worked for: results for an earlier one are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Life {
    pub tenant: TenantId,
    pub token: i64,
}

/// What tasks tell the engine.
pub(super) enum Input {
    Ended { life: Life, key: u32, ended: Ended },
    Settled { life: Life, batch: Batch, fenced: Fenced },
    Page { life: Life, result: Result<(LogPage, Option<Arc<TenantRegistry>>), StoreError> },
    Due { life: Life, subscription_no: SubscriptionNo, result: Result<DuePage, StoreError> },
    Reviewed { life: Life, result: Result<Review, StoreError> },
    Registry { life: Life, result: Result<Arc<TenantRegistry>, StoreError> },
    Announced { life: Life, result: Result<(), StoreError> },
    Replayed { life: Life, result: Result<Option<Step>, StoreError> },
    Counted { life: Life, result: Result<i64, StoreError> },
    Marked { life: Life, standing: BacklogStanding, result: Result<Option<RegistryChange>, StoreError> },
    HealthKept { life: Life, notes: Vec<HealthNote>, result: Result<(), StoreError> },
    Claimed { shard: i32, token: i64, tenant: Option<TenantId>, result: Result<ClaimedShard, StoreError> },
    Pulse { asked_at: DateTime<Utc>, lease_until: Option<DateTime<Utc>>, pulse: Pulse },
    Taken { result: Result<Vec<ShardLease>, StoreError> },
    Released { shards: Vec<(i32, i64)>, result: Result<(), StoreError> },
    Swept,
}

/// Does work in a task of its own and tells the engine what came of it.
pub(super) fn spawn<T, Work>(
    shared: &Arc<Shared>,
    work: impl FnOnce(Arc<Shared>) -> Work,
    answer: impl FnOnce(Result<T, StoreError>) -> Input + Send + 'static,
) where
    T: Send + 'static,
    Work: Future<Output = Result<T, StoreError>> + Send + 'static,
{
    let work = work(shared.clone());
    let shared = shared.clone();
    tokio::spawn(async move {
        let result = caught(work).await;
        shared.tell(answer(result));
    });
}

/// Fails where the work panics: whoever waits for its answer would wait for ever.
pub(super) async fn caught<T>(work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!("a fault of the server ended a task of the dispatcher");
        Err(StoreError::Interrupted)
    })
}

/// Runs one attempt in a task of its own, until its tenant's life here is over: what comes after that counts for nothing, and the next
/// owner makes the attempt again.
pub(super) fn spawn_attempt(shared: &Arc<Shared>, life: Life, over: &CancellationToken, start: Start) {
    let (shared, over) = (shared.clone(), over.clone());
    tokio::spawn(async move {
        // By the database's clock: what is due is compared with it, also where that is when an attempt began.
        let (started_at, began) = (shared.parts.store.now(), Instant::now());
        let key = start.key;
        let took = || began.elapsed();
        let outcome = tokio::select! {
            outcome = caught(async { Ok(attempt(&shared, start).await) }) => {
                let outcome = outcome.unwrap_or_else(|_| failed("a fault of the server ended the attempt"));
                measured().dispatch.attempted(outcome.class.name(), took());
                outcome
            }
            () = over.cancelled() => failed("its tenant is not dispatched here any more"),
        };
        let ended = Ended { started_at, duration: took(), outcome };
        shared.tell(Input::Ended { life, key, ended });
    });
}

async fn attempt(shared: &Shared, start: Start) -> Outcome {
    let Start { call, delivery, timeout, .. } = start;
    let Some(call) = call else {
        return failed("a secret of the subscription cannot be opened with the configured keys");
    };
    let (executor, deadline) = (&shared.parts.executor, Instant::now() + timeout);
    let chosen = delivery.event.entry().position % 16 == 0;
    if chosen && planted::has(Defect::AttemptTwice) {
        let _once_too_often = executor.execute(&call, &delivery, deadline).await;
    }
    if chosen && planted::has(Defect::SkipAttempts) {
        return Outcome { class: OutcomeClass::Succeeded, error: None, ..failed("") };
    }
    executor.execute(&call, &delivery, deadline).await
}

fn failed(error: &str) -> Outcome {
    Outcome {
        class: OutcomeClass::Failed,
        status_code: 0,
        retry_after: None,
        excerpt: None,
        error: Some(error.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::dispatch::tests::{NAME, World};
    use crate::executor::{Delivery, EncodedEvent};
    use chrono::TimeDelta;

    #[tokio::test(flavor = "multi_thread")]
    async fn an_attempt_begins_by_the_clock_of_the_database() {
        let world = World::new().await;
        let (_, no) = world.subscribe("shop", NAME, "/fine").await;
        let entry = world.publish(1).await.remove(0);
        let (shared, mut inputs) = world.shared(Config::default());
        let now = clock::now();
        world.store.set_clock(now - TimeDelta::minutes(3), now);
        let event = Arc::new(EncodedEvent::new(entry.clone()));
        let delivery = Delivery { invocation: entry.invocation(no), attempt: 1, replay: false, event };
        let start = Start { key: 1, call: None, delivery, timeout: Duration::from_secs(1), cost: 1 };
        let life = Life { tenant: world.tenant, token: 1 };
        spawn_attempt(&shared, life, &CancellationToken::new(), start);
        let Some(Input::Ended { ended, .. }) = inputs.recv().await else { panic!("an attempt ends") };
        assert!(ended.started_at <= world.store.now(), "{ended:?}");
        world.end().await;
    }
}
