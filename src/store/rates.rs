//! Rates that replicas share: of a subscription the one moment that says everything about its token bucket (see `domain/bucket.rs`).
//!
//! Of PRE event types, about which any replica may ask, the row is the bucket. Deliveries of a tenant have one owner, which keeps their
//! buckets in memory: what of them is worth it is written with what it settles, for the next owner.

use super::{Store, StoreError};
use crate::domain::ids::{SubscriptionNo, TenantId};
use crate::domain::retry::RateLimit;
use chrono::{DateTime, Utc};
use uuid::Uuid;

/// When the bucket of a subscription is full again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Which.
    pub subscription_no: SubscriptionNo,
    /// Its registry version: a later one begins with a full bucket.
    pub registry_version: i64,
    /// When.
    pub full_at: DateTime<Utc>,
}

impl Store {
    /// Writes when the buckets of deliveries are full again, each at most once, where `token` is still the owner's; otherwise nothing.
    pub async fn keep_rates(&self, tenant: TenantId, token: i64, rates: &[Rate]) -> Result<(), StoreError> {
        if rates.is_empty() {
            return Ok(());
        }
        sqlx::query(
            "INSERT INTO subscription_rates (tenant_id, subscription_no, registry_version, full_at)
             SELECT $1, k.subscription_no, k.registry_version, k.full_at
               FROM unnest($3::integer[], $4::bigint[], $5::timestamptz[]) AS k(subscription_no, registry_version, full_at)
              WHERE EXISTS (SELECT FROM dispatch_cursors WHERE tenant_id = $1 AND token = $2)
             ON CONFLICT (tenant_id, subscription_no) DO UPDATE
                SET registry_version = EXCLUDED.registry_version, full_at = EXCLUDED.full_at",
        )
        .bind(tenant.0)
        .bind(token)
        .bind(rates.iter().map(|rate| rate.subscription_no).collect::<Vec<_>>())
        .bind(rates.iter().map(|rate| rate.registry_version).collect::<Vec<_>>())
        .bind(rates.iter().map(|rate| rate.full_at).collect::<Vec<_>>())
        .execute(self.engine())
        .await?;
        Ok(())
    }

    /// The buckets of these tenants that are not full, as far as that is kept.
    pub async fn rates(&self, tenants: &[TenantId]) -> Result<Vec<(TenantId, Rate)>, StoreError> {
        let ids: Vec<Uuid> = tenants.iter().map(|tenant| tenant.0).collect();
        // No limit: a row for each subscription that has a rate limit, at most.
        let rows: Vec<(Uuid, SubscriptionNo, i64, DateTime<Utc>)> = sqlx::query_as(
            "SELECT tenant_id, subscription_no, registry_version, full_at FROM subscription_rates
              WHERE tenant_id = ANY($1) AND full_at > $2",
        )
        .bind(ids)
        .bind(self.now())
        .fetch_all(self.engine())
        .await?;
        let rate = |(tenant, subscription_no, registry_version, full_at)| {
            (TenantId(tenant), Rate { subscription_no, registry_version, full_at })
        };
        Ok(rows.into_iter().map(rate).collect())
    }

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
