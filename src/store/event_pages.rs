//! Pages of the log that are bounded in bytes as well as in entries, for readers that may be far behind, and the heads of many
//! tenants at once.

use super::events::{COLUMNS, EventRow, LogPlace};
use super::{Store, StoreError};
use crate::domain::event::LogEntry;
use crate::domain::ids::{Position, TenantId};
use std::sync::Arc;
use uuid::Uuid;

/// Bounds of one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageBound {
    /// Entries at most.
    pub entries: u32,
    /// Bytes of data at most, but always at least one entry.
    pub data_bytes: u64,
}

impl Store {
    /// Reads the next entries of a log in order, no entry beyond `up_to`, as many as the bound allows.
    pub async fn read_log_page(
        &self,
        tenant: TenantId,
        place: LogPlace,
        up_to: Position,
        bound: PageBound,
    ) -> Result<Vec<Arc<LogEntry>>, StoreError> {
        // octet_length reads the size of a value that is stored out of line without reading the value, so what the running sum
        // cuts off costs nothing. The inner LIMIT is served in order by the primary key (tenant, day, position).
        let sql = format!(
            "SELECT {COLUMNS} FROM (
                SELECT page.*, sum(octet_length(data)) OVER (ORDER BY day, position) - octet_length(data) AS bytes_before FROM (
                    SELECT day, {COLUMNS} FROM events
                     WHERE tenant_id = $1 AND day >= $2 AND position > $3 AND position <= $4
                     ORDER BY day, position LIMIT $5) AS page) AS bounded
              WHERE bytes_before < $6 ORDER BY day, position LIMIT $5"
        );
        let rows: Vec<EventRow> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
            .bind(tenant.0)
            .bind(place.day)
            .bind(place.after)
            .bind(up_to)
            .bind(i64::from(bound.entries))
            .bind(i64::try_from(bound.data_bytes).unwrap_or(i64::MAX))
            .fetch_all(self.pool())
            .await?;
        rows.into_iter().map(|row| row.parse().map(Arc::new)).collect()
    }

    /// Reads the positions of many heads; unknown tenants are left out.
    pub async fn head_positions(&self, tenants: &[TenantId]) -> Result<Vec<(TenantId, Position)>, StoreError> {
        let ids: Vec<Uuid> = tenants.iter().map(|tenant| tenant.0).collect();
        let rows: Vec<(Uuid, Position)> = sqlx::query_as(
            "SELECT tenant_id, position FROM tenant_heads WHERE tenant_id = ANY($1) ORDER BY tenant_id LIMIT $2",
        )
        .bind(&ids)
        .bind(i64::try_from(ids.len()).unwrap_or(i64::MAX))
        .fetch_all(self.pool())
        .await?;
        Ok(rows.into_iter().map(|(tenant, position)| (TenantId(tenant), position)).collect())
    }
}
