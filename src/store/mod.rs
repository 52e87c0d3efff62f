//! All SQL: one file per table or duty, rows private to it. Knows the domain, nothing above it.
//!
//! Rules: every statement on a tenant's table names `tenant_id`; every list has a limit and a total order; times come in as
//! parameters; no transaction is open while a listener runs; changes of several statements run in tasks that a cancelled RPC cannot
//! drop (`Store::run`).

pub mod announcements;
pub mod api_keys;
pub mod apps;
pub mod audit;
pub mod chain_budgets;
pub mod connect;
mod credentials;
pub mod dispatch;
mod error;
pub mod event_pages;
pub mod event_types;
pub mod events;
pub mod expired;
pub mod heads;
pub mod health;
pub mod invocation_changes;
pub mod invocations;
pub mod leases;
mod log_end;
pub mod log_tail;
pub mod measure;
pub mod notify;
mod overwrite;
mod partitions;
pub mod pending;
mod pool;
pub mod publish;
pub mod publisher_identities;
pub mod purge;
pub mod quotas;
pub mod rates;
pub mod replays;
pub mod request_ids;
mod restores;
pub mod retention;
pub mod role;
pub mod secrets;
pub mod settings;
pub mod settle;
pub mod subscriptions;
pub mod tenants;
#[cfg(test)]
pub(crate) mod tests;
mod wall;
pub mod watches;

pub use error::StoreError;

use crate::clock;
use chrono::{DateTime, TimeDelta, Utc};
use pool::{Doubt, Pool};
use secrets::Keyring;
use sqlx::PgPool;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use wall::Doors;

/// The forward-only schema steps, applied in order.
pub static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("src/store/migrations");

/// The one way to Postgres. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    doors: Doors,
    /// Database time minus local time, microseconds; see [`Store::now`].
    clock_offset_us: Arc<AtomicI64>,
    statements: Arc<publish::Statements>,
    /// Whether it hears hints of other replicas.
    listens: bool,
    /// What seals and opens secrets that are columns of other rows.
    keyring: Option<Keyring>,
    /// Whether its work for tenants takes turns; see [`Store::owed`].
    turns: bool,
}

impl Store {
    /// Takes a pool that is connected to a migrated database.
    pub fn new(pool: PgPool) -> Self {
        let answer_max = Duration::from_millis(connect::Config::default().answer_timeout_ms);
        Self::of(Pool::new(pool, answer_max, Doubt::default()))
    }

    fn of(pool: Pool) -> Self {
        Self {
            doors: Doors::new(pool),
            clock_offset_us: Arc::default(),
            statements: Arc::default(),
            listens: true,
            keyring: None,
            turns: true,
        }
    }

    /// The same for what the service owes its tenants, such as commits, what is matched and deliveries: it waits for no turn among the
    /// calls of the tenant that it works for, since others wait for it.
    #[must_use]
    pub fn owed(&self) -> Self {
        Self { turns: false, ..self.clone() }
    }

    /// With the keys for the headers of webhooks: who has none can neither save nor read any.
    #[must_use]
    pub fn with_keyring(self, keyring: Keyring) -> Self {
        Self { keyring: Some(keyring), ..self }
    }

    fn statements(&self) -> &publish::Statements {
        &self.statements
    }

    /// The database's clock, as last measured by [`Store::measure_clock`], in microseconds.
    pub fn now(&self) -> DateTime<Utc> {
        clock::now() + TimeDelta::microseconds(self.clock_offset_us.load(Ordering::Relaxed))
    }

    /// Measures how far the database's clock is from the local one.
    pub async fn measure_clock(&self) -> Result<(), StoreError> {
        let before = clock::now();
        let database: DateTime<Utc> = sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(self.engine()).await?;
        let middle = before + (clock::now() - before) / 2;
        let offset = (database - middle).num_microseconds().unwrap_or_default();
        // Half a round trip of uncertainty is not worth moving the clock for.
        self.clock_offset_us.store(if offset.abs() < 1_000 { 0 } else { offset }, Ordering::Relaxed);
        Ok(())
    }

    /// Runs a piece of work in a task of its own, so that a caller that goes away cannot drop it inside a transaction. Bounded:
    /// see [`Pool::within`].
    pub(in crate::store) async fn run<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let store = self.clone();
        tokio::spawn(async move { store.within(work).await }).await.unwrap_or_else(|_| Err(StoreError::Interrupted))
    }
}
