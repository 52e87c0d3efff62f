//! Cleaning rows that have outlived their time, in bounded batches.

use super::{Store, StoreError};
use chrono::{DateTime, Utc};
use sqlx::postgres::PgQueryResult;

impl Store {
    /// Deletes idempotency keys, request ids, final pending events and signing secrets that ended before `now`: at most `limit` of each.
    /// Returns how many in all.
    ///
    /// The ids of a batch are chosen by the index on the end of life, so a batch never scans what is alive.
    pub async fn delete_expired(&self, now: DateTime<Utc>, limit: u32) -> Result<u64, StoreError> {
        let keys = sqlx::query(
            "DELETE FROM idempotency_keys k USING (
                 SELECT tenant_id, key FROM idempotency_keys WHERE expires_at < $1 ORDER BY expires_at LIMIT $2) AS old
              WHERE k.tenant_id = old.tenant_id AND k.key = old.key AND k.expires_at < $1",
        )
        .bind(now)
        .bind(i64::from(limit))
        .execute(self.engine())
        .await?;
        let requests = sqlx::query(
            "DELETE FROM request_ids r USING (
                 SELECT tenant_id, request_id FROM request_ids WHERE expires_at < $1 ORDER BY expires_at LIMIT $2) AS old
              WHERE r.tenant_id = old.tenant_id AND r.request_id = old.request_id AND r.expires_at < $1",
        )
        .bind(now)
        .bind(i64::from(limit))
        .execute(self.engine())
        .await?;
        // With what their listeners answered.
        let pending = sqlx::query(
            "WITH old AS (
                 DELETE FROM pending_events p USING (
                     SELECT tenant_id, event_id FROM pending_events WHERE expires_at < $1 ORDER BY expires_at LIMIT $2) AS o
                  WHERE p.tenant_id = o.tenant_id AND p.event_id = o.event_id AND p.expires_at < $1
                 RETURNING p.tenant_id, p.event_id),
             said AS (
                 DELETE FROM pending_verdicts v USING old o WHERE v.tenant_id = o.tenant_id AND v.event_id = o.event_id)
             SELECT tenant_id FROM old",
        )
        .bind(now)
        .bind(i64::from(limit))
        .execute(self.engine())
        .await?;
        // What a rotation has replaced: whoever has it in memory knows its end.
        let secrets = sqlx::query(
            "DELETE FROM webhook_secrets w USING (
                 SELECT tenant_id, subscription_id, secret_id FROM webhook_secrets WHERE expires_at < $1
                  ORDER BY expires_at LIMIT $2) AS old
              WHERE w.tenant_id = old.tenant_id AND w.subscription_id = old.subscription_id AND w.secret_id = old.secret_id
                AND w.expires_at < $1",
        )
        .bind(now)
        .bind(i64::from(limit))
        .execute(self.engine())
        .await?;
        let deleted = [keys, requests, pending, secrets];
        Ok(deleted.iter().map(PgQueryResult::rows_affected).sum())
    }
}
