//! What a replica does for the streams that it holds, whosever they are, and the end of watches that nobody resumes.

use super::PendingChange;
use crate::domain::ids::{ReplicaId, TenantId, WatchId};
use crate::store::{Store, StoreError};
use chrono::{DateTime, Utc};
use uuid::Uuid;

impl Store {
    /// The change that a replica's watch has to put into effect.
    pub async fn pending_watch_change(
        &self,
        holder: ReplicaId,
        watch: WatchId,
    ) -> Result<Option<PendingChange>, StoreError> {
        let row: Option<(Uuid, i64, Vec<u8>)> = sqlx::query_as(
            "SELECT tenant_id, filter_version, filters FROM watches
              WHERE replica_id = $1 AND watch_id = $2 AND position IS NULL ORDER BY filter_version LIMIT 1",
        )
        .bind(holder.0)
        .bind(watch.0)
        .fetch_optional(self.engine())
        .await?;
        let parse = |(tenant, version, filters)| PendingChange { tenant: TenantId(tenant), version, filters };
        Ok(row.map(parse))
    }

    /// Refuses the changes of a replica's watch whose stream has ended: they are gone for whoever waits for them.
    pub async fn refuse_watch_changes(&self, holder: ReplicaId, watch: WatchId) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM watches WHERE replica_id = $1 AND watch_id = $2 AND position IS NULL")
            .bind(holder.0)
            .bind(watch.0)
            .execute(self.engine())
            .await?;
        Ok(())
    }

    /// Forgets watches that nobody can resume any more: at most `limit` rows. Returns how many.
    pub async fn delete_expired_watches(&self, now: DateTime<Utc>, limit: u32) -> Result<u64, StoreError> {
        let done = sqlx::query(
            "DELETE FROM watches w USING (
                 SELECT tenant_id, watch_id, filter_version FROM watches WHERE expires_at < $1
                  ORDER BY expires_at LIMIT $2) AS old
              WHERE w.tenant_id = old.tenant_id AND w.watch_id = old.watch_id
                AND w.filter_version = old.filter_version AND w.expires_at < $1",
        )
        .bind(now)
        .bind(i64::from(limit))
        .execute(self.engine())
        .await?;
        Ok(done.rows_affected())
    }
}
