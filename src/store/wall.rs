//! The second wall between tenants: every way to a connection leads through here, and says for whom it is.
//!
//! Every tenant table has forced row-level security (`migrations/0020_wall.sql`), and the server's role owns none of them. What
//! serves a tenant, its callers or its receivers, runs in a transaction that names the tenant first ([`Store::as_tenant`],
//! [`Store::begin_as`], [`Store::begin_owed`]): where a statement has lost its own predicate it still sees and writes nothing of others.
//! What serves all tenants at once, or writes and is fast only in a single round trip, runs on [`Store::engine`], which names none and
//! is let through by the name of its connections; `store/tests/wall.rs` counts its uses. For what their calls ask for, tenants take turns
//! at the connections: one that asks for much waits for itself.

use super::Store;
use super::pool::{Pool, Tx, Within};
use crate::domain::ids::TenantId;
use std::time::Duration;

/// The name by which the policies know the engine's connections. Releases from before the wall have the same, so that they go on
/// while a database is brought to this one.
pub(in crate::store) const ENGINE: &str = "carillon";

/// The connections of a store. Its pool is not to be had but by the methods of this file.
#[derive(Debug, Clone)]
pub(in crate::store) struct Doors(Pool);

impl Doors {
    pub(in crate::store) fn new(pool: Pool) -> Self {
        Self(pool)
    }
}

impl Store {
    /// For single statements of one tenant: each is a transaction of its own.
    pub(in crate::store) fn as_tenant(&self, tenant: TenantId) -> Within {
        Within::new(self.doors.0.clone(), self.turns.then_some(tenant), opening(tenant))
    }

    /// Begins a transaction of one tenant. Whoever begins one bounds what it does by [`Store::run`] or [`Store::within`].
    pub(in crate::store) async fn begin_as(&self, tenant: TenantId) -> Result<Tx, sqlx::Error> {
        self.doors.0.begin_for(self.turns.then_some(tenant), opening(tenant)).await
    }

    /// The same for what the service owes a tenant, such as its deliveries: it waits for no turn among the tenant's calls.
    pub(in crate::store) async fn begin_owed(&self, tenant: TenantId) -> Result<Tx, sqlx::Error> {
        self.doors.0.begin(opening(tenant)).await
    }

    /// The same for what waits for a lock no longer than for `patience`.
    pub(in crate::store) async fn begin_owed_within(
        &self,
        tenant: TenantId,
        patience: Duration,
    ) -> Result<Tx, sqlx::Error> {
        let patience = patience.as_millis().max(1);
        self.doors.0.begin(format!("{}; SET LOCAL lock_timeout = {patience}", opening(tenant))).await
    }

    /// The same for what goes through an index entry by entry: a plan that sorts what is left for each of them would read everything as
    /// often, and where the statistics know nothing of what is there yet it looks no worse.
    pub(in crate::store) async fn begin_owed_walking(&self, tenant: TenantId) -> Result<Tx, sqlx::Error> {
        let walking = "SET LOCAL enable_sort = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_seqscan = off";
        self.doors.0.begin(format!("{}; {walking}", opening(tenant))).await
    }

    /// For statements across tenants, and for those of the hot path. Each names its tenants by itself.
    pub(in crate::store) fn engine(&self) -> &Pool {
        &self.doors.0
    }

    /// Runs work on the database to its end, or to the end of patience; see [`Pool::within`].
    pub(in crate::store) async fn within<T, E, F>(&self, work: F) -> Result<T, E>
    where
        E: From<sqlx::Error>,
        F: Future<Output = Result<T, E>>,
    {
        self.doors.0.within(work).await
    }
}

/// Begins a transaction and names its tenant, in one round trip. An id is hexadecimal digits and hyphens, whoever sent it.
fn opening(tenant: TenantId) -> String {
    format!("BEGIN; SET LOCAL carillon.tenant = '{}'", tenant.0.hyphenated())
}
