//! Dispatch: from "an event is committed" to "every invocation of it is recorded".
//!
//! ```text
//! feed (committed here) --.                                                     executor (side effects)
//! pulse (heads elsewhere) -+-> engine: one task that owns every tenant's state --start--> attempt tasks --.
//! loads (log, deferred) ---'     ^    tenant.rs decides, without I/O             <------- ended ----------'
//!                                '---- settled ---- settle tasks: fence, outcomes, cursor in one statement
//! ```
//!
//! - **Ownership.** Tenants are hashed over 64 shards; a replica leases shards, takes its fair share, and more only where nobody else
//!   takes them, and gives the surplus away. A new owner raises the tenant's fencing token: whatever the former one still writes affects no row (G6).
//! - **Pending is derived.** The event row lists what it matched; outcomes are appended. An owner reads on from the tenant's
//!   cursor, or takes what this process committed straight from memory where it follows on.
//! - **Aside.** What waits long (a retry, a full queue, a listener that hangs) gets a row in `deferred_invocations`, so that it
//!   holds neither the cursor nor memory, and delays nobody else (G9).
//! - **At least once.** A result that was not settled is lost with its owner: the invocation runs again under the same id. A
//!   new owner cannot know whether the former one had started an attempt; where the lease was not given back properly,
//!   everything unfinished from before its end goes on one attempt number higher. Lost attempts do not count towards
//!   `max_attempts`: `attempt_base` rises with them.
//! - **Bounded.** Attempts in flight (per subscription, tenant, process), loads, queues, memory, pages and settles have bounds, all in
//!   [`Config`]. Attempts that run long are counted apart, so that listeners that hang do not use up the room of the others; those of a
//!   tenant that another replica dispatches now are cut off.
//!
//! Nothing here performs a side effect outside the store; listeners run in the executor, with no transaction open.

mod announce;
mod config;
mod engine;
mod keys;
mod load;
mod pulse;
mod queue;
mod replay;
mod run;
mod settle;
mod shards;
mod sweep;
mod tenant;
#[cfg(test)]
mod tests;
mod turns;

pub use config::{Config, ConfigError};

use crate::clock;
use crate::domain::ids::ReplicaId;
use crate::domain::memory::Memory;
use crate::executor::Executor;
use crate::feed::Feed;
use crate::publish::registry::Registry;
use crate::publish::writer::Writer;
use crate::store::Store;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

/// What dispatching works with.
#[derive(Clone)]
pub struct Parts {
    /// Postgres.
    pub store: Store,
    /// Subscriptions and their secrets.
    pub registry: Registry,
    /// Publishes operator events.
    pub writer: Writer,
    /// Runs listeners.
    pub executor: Executor,
    /// News from and to this process.
    pub feed: Feed,
}

/// How much work there is at the moment, for metrics.
#[derive(Debug, Default)]
pub struct Load {
    shards: AtomicUsize,
    tenants: AtomicUsize,
    running: AtomicUsize,
    memory_bytes: AtomicUsize,
    lag: AtomicUsize,
    backlog: AtomicUsize,
}

impl Load {
    /// Shards owned.
    pub fn shards(&self) -> usize {
        self.shards.load(Ordering::Relaxed)
    }

    /// Tenants in memory.
    pub fn tenants(&self) -> usize {
        self.tenants.load(Ordering::Relaxed)
    }

    /// Attempts in flight.
    pub fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    /// Bytes of events that wait or run.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes.load(Ordering::Relaxed)
    }

    /// Invocations of the tenants in memory that are not finished.
    pub fn backlog(&self) -> usize {
        self.backlog.load(Ordering::Relaxed)
    }

    /// Events between the written cursors of the tenants in memory and their heads.
    pub fn lag(&self) -> usize {
        self.lag.load(Ordering::Relaxed)
    }
}

/// The running dispatcher of this process.
#[derive(Debug)]
pub struct Dispatch {
    replica: ReplicaId,
    load: Arc<Load>,
    stop: CancellationToken,
    /// What a stop may take at most.
    stop_max: Duration,
    engine: JoinHandle<()>,
    pulse: JoinHandle<()>,
}

impl Dispatch {
    /// Starts to take shards and to dispatch.
    pub fn start(parts: Parts, config: Config) -> Self {
        let replica = ReplicaId(clock::new_uuid());
        let (load, stop) = (Arc::<Load>::default(), CancellationToken::new());
        let (inputs, received) = mpsc::unbounded_channel();
        let news = parts.feed.subscribe(NEWS_MAX);
        let stop_max = Duration::from_millis(config.drain_ms) + STOP_GRACE;
        let loads = run::Loads::new(config.loads_max);
        let memory = Memory::new(config.memory_bytes_max);
        let shared = Arc::new(run::Shared { parts, config, replica, inputs, stop: stop.clone(), memory, loads });
        let pulse = tokio::spawn(pulse::beat(shared.clone()));
        let engine = tokio::spawn(engine::Engine::new(shared, load.clone()).run(news, received));
        Self { replica, load, stop, stop_max, engine, pulse }
    }

    /// This process, as the lease table knows it.
    pub fn replica(&self) -> ReplicaId {
        self.replica
    }

    /// How much work there is at the moment.
    pub fn load(&self) -> &Arc<Load> {
        &self.load
    }

    /// Its tasks, to notice should one end by itself.
    pub fn tasks(&self) -> [AbortHandle; 2] {
        [self.engine.abort_handle(), self.pulse.abort_handle()]
    }

    /// Begins to drain: takes no further shard, starts no further attempt, gives back what is quiet. [`Self::stop`] waits for its end.
    pub fn drain(&self) {
        self.stop.cancel();
    }

    /// Cancelled once it drains.
    pub fn draining(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Drains: starts no further attempt, waits for those that run up to `drain_ms`, settles, gives the shards back.
    pub async fn stop(self) {
        self.drain();
        let until = Instant::now() + self.stop_max;
        for mut task in [self.engine, self.pulse] {
            match timeout_at(until, &mut task).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "a dispatch task has ended badly"),
                // A statement that never answers: the leases end by themselves.
                Err(_) => {
                    tracing::warn!("a dispatch task did not end in time; it is left behind");
                    task.abort();
                }
            }
        }
    }
}

/// What a stop may take beyond the draining: a pulse or a giving back that is under way.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// News that the engine may be behind before it loses some and reads the log instead.
const NEWS_MAX: usize = 4_096;
