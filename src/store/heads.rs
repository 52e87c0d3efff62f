//! The head row of each tenant's log.

use super::{Store, StoreError};
use crate::domain::ids::{Position, TenantId};
use crate::feed::Head;
use chrono::{DateTime, NaiveDate, NaiveTime, TimeDelta, Utc};
use sqlx::{PgConnection, PgExecutor};
use uuid::Uuid;

/// Everything the head row says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub struct HeadRow {
    tenant_id: Uuid,
    /// Position of the last event; 0 for an empty log.
    pub position: Position,
    /// Version of what matches.
    pub registry_version: i64,
    /// Which life of the log: changes when it is restored from a backup.
    pub log_epoch: i64,
    /// Counts changes to deferred invocations that callers made.
    pub deferred_version: i64,
    /// Commit time of the last event.
    pub committed_at: DateTime<Utc>,
    /// First position that retention has left.
    pub earliest_position: Position,
    /// Commit time of the last event that retention has taken; none where it has taken none.
    removed_until: Option<DateTime<Utc>>,
    /// The first position that was left then: where it is another one by now, a release that knows nothing of these two has cut the log.
    removed_before: Position,
}

impl HeadRow {
    /// The part that travels as news.
    pub fn head(&self) -> Head {
        Head {
            tenant: TenantId(self.tenant_id),
            position: self.position,
            registry_version: self.registry_version,
            deferred_version: self.deferred_version,
        }
    }
}

const COLUMNS: &str =
    "tenant_id, position, registry_version, log_epoch, deferred_version, committed_at, earliest_position,
     removed_until, removed_before";

impl Store {
    /// Reads one head; none for an unknown tenant.
    pub async fn head(&self, tenant: TenantId) -> Result<Option<HeadRow>, StoreError> {
        read(self.as_tenant(tenant), tenant).await
    }

    /// The time after which nothing is gone from a log: whoever starts to read at it or before it may miss events. None where retention
    /// has taken nothing.
    pub async fn removed_until(&self, head: &HeadRow) -> Result<Option<DateTime<Utc>>, StoreError> {
        if head.removed_before == head.earliest_position {
            return Ok(head.removed_until);
        }
        // Whole days went: all that is gone is from before the day of the first event that is left, or, where none is, was the last of
        // the log.
        let first: Option<NaiveDate> = sqlx::query_scalar(
            "SELECT day FROM events WHERE tenant_id = $1 AND position >= $2 ORDER BY day, position LIMIT 1",
        )
        .bind(head.tenant_id)
        .bind(head.earliest_position)
        .fetch_optional(self.as_tenant(TenantId(head.tenant_id)))
        .await?;
        let before = |day: NaiveDate| day.and_time(NaiveTime::MIN).and_utc() - TimeDelta::microseconds(1);
        Ok(Some(first.map_or(head.committed_at, before)))
    }
}

/// Reads one head, in a transaction or in one of its own.
pub(in crate::store) async fn read(
    executor: impl PgExecutor<'_>,
    tenant: TenantId,
) -> Result<Option<HeadRow>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM tenant_heads WHERE tenant_id = $1");
    Ok(sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(tenant.0).fetch_optional(executor).await?)
}

/// What a change of the registry got: the new version, and the log position after which it applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub struct RegistryChange {
    /// The new registry version.
    pub registry_version: i64,
    /// The log's position at the change: events after it see the new state.
    pub position: Position,
}

/// Takes the head row's lock and raises the registry version: the first statement of every change to what matches.
///
/// The lock is held to the end of the caller's transaction, so no publish commits between the change and its position.
pub(in crate::store) async fn bump_registry(
    connection: &mut PgConnection,
    tenant: TenantId,
    now: DateTime<Utc>,
) -> Result<RegistryChange, StoreError> {
    Ok(sqlx::query_as(
        "UPDATE tenant_heads SET registry_version = registry_version + 1, changed_at = $2
          WHERE tenant_id = $1 RETURNING registry_version, position",
    )
    .bind(tenant.0)
    .bind(now)
    .fetch_one(connection)
    .await?)
}
