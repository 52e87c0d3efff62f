//! What waits of the tenants that a replica takes over or reviews.
//!
//! However many subscriptions and rows they have, each statement reads a page of one tenant, and tenants take turns: connections are
//! free for others in between.

use super::{Store, StoreError};
use crate::domain::ids::{SubscriptionNo, TenantId};
use chrono::{DateTime, Utc};
use uuid::Uuid;

/// Subscriptions of one statement.
pub(in crate::store) const PAGE: usize = 1_000;

/// The earliest deferred invocation of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DueSubscription {
    /// The tenant.
    pub tenant: TenantId,
    /// The subscription.
    pub subscription_no: SubscriptionNo,
    /// When its first row is due.
    pub due_at: DateTime<Utc>,
    /// False where nothing of it is deferred, and others hold its work up.
    pub has_rows: bool,
}

impl Store {
    /// The first due time of every subscription of these tenants that has deferred work, or dead letters or a replay that hold work up.
    pub async fn due_subscriptions(&self, tenants: &[TenantId]) -> Result<Vec<DueSubscription>, StoreError> {
        let mut due = Vec::new();
        let waiting = "EXISTS (SELECT FROM deferred_invocations d WHERE d.tenant_id = h.tenant_id)
                    OR EXISTS (SELECT FROM dead_letters l WHERE l.tenant_id = h.tenant_id)
                    OR EXISTS (SELECT FROM replays r WHERE r.tenant_id = h.tenant_id)";
        let waiting = self.tenants_where(tenants, waiting).await?;
        // Each with the subscription behind which its next page begins.
        let mut left: Vec<(TenantId, SubscriptionNo)> = waiting.into_iter().map(|tenant| (tenant, 0)).collect();
        while !left.is_empty() {
            let mut unfinished = Vec::new();
            for (tenant, after) in left {
                let page = self.due_page(tenant, after).await?;
                let last = page.last().map(|last| last.subscription_no).filter(|_| page.len() == PAGE);
                unfinished.extend(last.map(|last| (tenant, last)));
                due.extend(page);
            }
            left = unfinished;
        }
        Ok(due)
    }

    /// A page of what [`Self::due_subscriptions`] reads, by subscription number.
    pub(in crate::store) async fn due_page(
        &self,
        tenant: TenantId,
        after: SubscriptionNo,
    ) -> Result<Vec<DueSubscription>, StoreError> {
        // In the order of an index each, so that a page ends where its limit is reached: of rows by (tenant, subscription, due_at), from one
        // subscription's first to the next one's and none between them; of subscriptions by their number. A subscription is among the
        // first of all where it is among the first of its kind.
        let rows: Vec<(SubscriptionNo, DateTime<Utc>, bool)> = sqlx::query_as(
            "WITH RECURSIVE first AS (
                 (SELECT subscription_no, due_at FROM deferred_invocations
                   WHERE tenant_id = $1 AND subscription_no > $2 ORDER BY subscription_no, due_at LIMIT 1)
                 UNION ALL
                 SELECT n.subscription_no, n.due_at FROM first f CROSS JOIN LATERAL (
                     SELECT subscription_no, due_at FROM deferred_invocations
                      WHERE tenant_id = $1 AND subscription_no > f.subscription_no
                      ORDER BY subscription_no, due_at LIMIT 1) AS n)
             SELECT subscription_no, min(due_at), bool_or(has_rows) FROM (
                 (SELECT subscription_no, due_at, true AS has_rows FROM first LIMIT $4)
                 UNION ALL
                 (SELECT s.subscription_no, $3, false FROM subscriptions s
                   WHERE s.tenant_id = $1 AND s.subscription_no > $2 AND s.ordering_on_dead_letter = 2
                     AND EXISTS (SELECT FROM dead_letters d WHERE d.tenant_id = $1 AND d.subscription_no = s.subscription_no
                                    AND d.ordering_key IS NOT NULL)
                   ORDER BY s.subscription_no LIMIT $4)
                 UNION ALL
                 (SELECT r.subscription_no, $3, false FROM replays r
                    JOIN subscriptions s ON s.tenant_id = $1 AND s.subscription_no = r.subscription_no AND s.ordering_key IS NOT NULL
                   WHERE r.tenant_id = $1 AND r.subscription_no > $2 ORDER BY r.subscription_no LIMIT $4)) AS waiting
              GROUP BY subscription_no ORDER BY subscription_no LIMIT $4",
        )
        .bind(tenant.0)
        .bind(after)
        .bind(self.now())
        .bind(i64::try_from(PAGE).unwrap_or(i64::MAX))
        .fetch_all(self.engine())
        .await?;
        let parse = |(subscription_no, due_at, has_rows)| DueSubscription { tenant, subscription_no, due_at, has_rows };
        Ok(rows.into_iter().map(parse).collect())
    }

    /// Which of these tenants have dead letters or changes that are not announced.
    pub async fn unannounced_tenants(&self, tenants: &[TenantId]) -> Result<Vec<TenantId>, StoreError> {
        let unannounced =
            "EXISTS (SELECT FROM dead_letters d WHERE d.tenant_id = h.tenant_id AND d.announced_at IS NULL)
                        OR EXISTS (SELECT FROM removed_dead_letters r WHERE r.tenant_id = h.tenant_id)
                        OR EXISTS (SELECT FROM announcements a WHERE a.tenant_id = h.tenant_id)";
        self.tenants_where(tenants, unannounced).await
    }

    /// Which of these tenants have rows of a kind. One look into an index for each, however many rows there are.
    async fn tenants_where(&self, tenants: &[TenantId], exists: &str) -> Result<Vec<TenantId>, StoreError> {
        let sql = format!(
            "SELECT h.tenant_id FROM tenant_heads h WHERE h.tenant_id = ANY($1) AND ({exists}) ORDER BY h.tenant_id LIMIT $2"
        );
        let ids: Vec<Uuid> = tenants.iter().map(|tenant| tenant.0).collect();
        let limit = i64::try_from(ids.len()).unwrap_or(i64::MAX);
        let rows: Vec<Uuid> =
            sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).bind(ids).bind(limit).fetch_all(self.engine()).await?;
        Ok(rows.into_iter().map(TenantId).collect())
    }
}
