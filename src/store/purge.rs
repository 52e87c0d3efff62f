//! Purging: deleted subscriptions and retired event types go for good once they have had their time to be undeleted, and audit records
//! once they have had theirs.
//!
//! In bounded batches, across tenants. What a record names must not go before the record does, and a new event type must not meet events
//! of an old one of its name: both stay while the log holds an event from before their deletion.

use super::{Store, StoreError};
use chrono::{DateTime, Utc};

impl Store {
    /// Removes subscriptions that were deleted before a time, with their secrets and what is kept of their receivers: `limit` at most.
    /// Returns how many.
    ///
    /// Who undeletes one meanwhile has its row locked: it stays.
    pub async fn purge_subscriptions(&self, before: DateTime<Utc>, limit: u32) -> Result<u64, StoreError> {
        // The index on the time of deletion serves the order; the head says from where on the log is there.
        let purged: i64 = sqlx::query_scalar(
            "WITH old AS (
                 SELECT s.tenant_id, s.subscription_id FROM subscriptions s JOIN tenant_heads h ON h.tenant_id = s.tenant_id
                  WHERE s.state = 3 AND s.deleted_at < $1 AND s.effective_position < h.earliest_position
                  ORDER BY s.deleted_at, s.tenant_id, s.subscription_id LIMIT $2),
             gone AS (
                 DELETE FROM subscriptions s USING old o
                  WHERE s.tenant_id = o.tenant_id AND s.subscription_id = o.subscription_id AND s.state = 3 AND s.deleted_at < $1
                 RETURNING s.tenant_id, s.subscription_id, s.subscription_no),
             secrets AS (
                 DELETE FROM webhook_secrets w USING gone g
                  WHERE w.tenant_id = g.tenant_id AND w.subscription_id = g.subscription_id),
             health AS (
                 DELETE FROM subscription_health c USING gone g
                  WHERE c.tenant_id = g.tenant_id AND c.subscription_no = g.subscription_no),
             rates AS (
                 DELETE FROM subscription_rates r USING gone g
                  WHERE r.tenant_id = g.tenant_id AND r.subscription_no = g.subscription_no)
             SELECT count(*) FROM gone",
        )
        .bind(before)
        .bind(i64::from(limit))
        .fetch_one(self.engine())
        .await?;
        Ok(u64::try_from(purged).unwrap_or_default())
    }

    /// Removes event types that were retired before a time, with their schemas: `limit` at most. Returns how many.
    pub async fn purge_event_types(&self, before: DateTime<Utc>, limit: u32) -> Result<u64, StoreError> {
        let purged: i64 = sqlx::query_scalar(
            "WITH old AS (
                 SELECT t.tenant_id, t.name FROM event_types t JOIN tenant_heads h ON h.tenant_id = t.tenant_id
                  WHERE t.deleted_at IS NOT NULL AND t.deleted_at < $1
                    AND COALESCE(t.deleted_position, 0) < h.earliest_position
                  ORDER BY t.deleted_at, t.tenant_id, t.name LIMIT $2),
             gone AS (
                 DELETE FROM event_types t USING old o
                  WHERE t.tenant_id = o.tenant_id AND t.name = o.name AND t.deleted_at IS NOT NULL AND t.deleted_at < $1
                 RETURNING t.tenant_id, t.name),
             schemas AS (
                 DELETE FROM event_type_schemas d USING gone g WHERE d.tenant_id = g.tenant_id AND d.event_type = g.name)
             SELECT count(*) FROM gone",
        )
        .bind(before)
        .bind(i64::from(limit))
        .fetch_one(self.engine())
        .await?;
        Ok(u64::try_from(purged).unwrap_or_default())
    }

    /// Removes audit records from before a time, but none of the last 30 days: `limit` at most, the oldest first. Returns how many.
    pub async fn purge_audit_records(&self, before: DateTime<Utc>, limit: u32) -> Result<u64, StoreError> {
        // Only the table's owner may: the function runs as that one.
        let purged: i64 = sqlx::query_scalar("SELECT forget_audit_records($1, $2)")
            .bind(before)
            .bind(i64::from(limit))
            .fetch_one(self.engine())
            .await?;
        Ok(u64::try_from(purged).unwrap_or_default())
    }
}
