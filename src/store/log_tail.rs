//! What the engine reads of a log: the next entries of a tenant, entries by position, and heads. Nothing of it goes to a caller as it
//! is: it is delivered, or kept for the tenant's own watches.

use super::event_pages::{self, PageBound, ROW_BYTES};
use super::events::{COLUMNS, EventRow, LogPlace};
use super::{Store, StoreError, heads};
use crate::domain::event::LogEntry;
use crate::domain::ids::{Position, TenantId};
use crate::feed::Head;
use chrono::NaiveDate;
use std::sync::Arc;
use uuid::Uuid;

impl Store {
    /// Reads the next entries of a log in order, as [`Store::read_log_page`] does, in one round trip.
    pub async fn next_entries(
        &self,
        tenant: TenantId,
        place: LogPlace,
        up_to: Position,
        bound: PageBound,
    ) -> Result<Vec<Arc<LogEntry>>, StoreError> {
        event_pages::read(self.engine(), tenant, place, up_to, bound).await
    }

    /// Reads where a head is now; none for an unknown tenant.
    pub async fn head_now(&self, tenant: TenantId) -> Result<Option<Head>, StoreError> {
        Ok(heads::read(self.engine(), tenant).await?.map(|row| row.head()))
    }

    /// Reads entries by day and position: those that exist, in order, at most `bytes` of them, but always at least one.
    pub async fn events_at(
        &self,
        tenant: TenantId,
        places: &[(NaiveDate, Position)],
        bytes: u64,
    ) -> Result<Vec<Arc<LogEntry>>, StoreError> {
        let (days, positions): (Vec<NaiveDate>, Vec<Position>) = places.iter().copied().unzip();
        // Each by its whole key. Behind a range of days the primary key finds no position: all of the tenant's events of these days would
        // be looked at, for each position anew.
        let sql = format!(
            "SELECT {COLUMNS} FROM (
                SELECT {COLUMNS}, day, sum({ROW_BYTES}) OVER (ORDER BY day, position) - {ROW_BYTES} AS bytes_before
                  FROM unnest($2::date[], $3::bigint[]) AS wanted(on_day, at)
                  JOIN events ON tenant_id = $1 AND day = on_day AND position = at) AS bounded
              WHERE bytes_before < $5 ORDER BY day, position LIMIT $4"
        );
        let rows: Vec<EventRow> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
            .bind(tenant.0)
            .bind(&days)
            .bind(&positions)
            .bind(i64::try_from(places.len()).unwrap_or(i64::MAX))
            .bind(i64::try_from(bytes).unwrap_or(i64::MAX))
            .fetch_all(self.engine())
            .await?;
        rows.into_iter().map(|row| row.parse().map(Arc::new)).collect()
    }

    /// Reads how far many logs are, and which life of theirs it is; unknown tenants are left out.
    pub async fn head_positions(&self, tenants: &[TenantId]) -> Result<Vec<(TenantId, Position, i64)>, StoreError> {
        let ids: Vec<Uuid> = tenants.iter().map(|tenant| tenant.0).collect();
        let rows: Vec<(Uuid, Position, i64)> = sqlx::query_as(
            "SELECT tenant_id, position, log_epoch FROM tenant_heads WHERE tenant_id = ANY($1) ORDER BY tenant_id LIMIT $2",
        )
        .bind(&ids)
        .bind(i64::try_from(ids.len()).unwrap_or(i64::MAX))
        .fetch_all(self.engine())
        .await?;
        Ok(rows.into_iter().map(|(tenant, position, epoch)| (TenantId(tenant), position, epoch)).collect())
    }
}
