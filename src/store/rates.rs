//! Rates that replicas share: of a subscription the one moment that says everything about its token bucket (see `domain/bucket.rs`).
//!
//! For questions about PRE events alone, which any replica may ask: deliveries of a tenant have one owner, which keeps their buckets
//! in memory.

use super::{Store, StoreError};
use crate::domain::ids::{SubscriptionNo, TenantId};
use crate::domain::retry::RateLimit;
use chrono::{DateTime, Utc};

impl Store {
    /// Takes the next token of a subscription's bucket. Answers from when on it may be used; none where that is after `until`, and then
    /// none is taken.
    ///
    /// `version` is the registry version of the subscription: a later one begins with a full bucket.
    pub async fn take_token(
        &self,
        tenant: TenantId,
        subscription_no: SubscriptionNo,
        version: i64,
        limit: RateLimit,
        until: DateTime<Utc>,
    ) -> Result<Option<DateTime<Utc>>, StoreError> {
        let interval_us = i64::try_from(limit.interval().as_micros()).unwrap_or(i64::MAX);
        let token_us = (interval_us / i64::from(limit.count().max(1))).max(1);
        // The row's lock puts the replicas in turn. A bucket is empty one interval before it is full.
        Ok(sqlx::query_scalar(
            "INSERT INTO subscription_rates AS r (tenant_id, subscription_no, registry_version, full_at)
             VALUES ($1, $2, $3, $4::timestamptz + $5::bigint * interval '1 microsecond')
             ON CONFLICT (tenant_id, subscription_no) DO UPDATE
                SET registry_version = GREATEST(r.registry_version, EXCLUDED.registry_version),
                    full_at = CASE WHEN r.registry_version < EXCLUDED.registry_version THEN EXCLUDED.full_at
                                   ELSE GREATEST(r.full_at, $4) + $5::bigint * interval '1 microsecond' END
              WHERE r.registry_version < EXCLUDED.registry_version
                 OR GREATEST(r.full_at, $4) + $5::bigint * interval '1 microsecond' <= $7 + $6::bigint * interval '1 microsecond'
             RETURNING full_at - $6::bigint * interval '1 microsecond'",
        )
        .bind(tenant.0)
        .bind(subscription_no)
        .bind(version)
        .bind(self.now())
        .bind(token_us)
        .bind(interval_us)
        .bind(until)
        .fetch_optional(self.engine())
        .await?)
    }
}
