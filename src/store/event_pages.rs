//! Pages of the log that are bounded in bytes as well as in entries, for readers that may be far behind.

use super::events::{COLUMNS, EventRow, LogPlace};
use super::{Store, StoreError};
use crate::domain::event::LogEntry;
use crate::domain::ids::{Position, TenantId};
use sqlx::{AssertSqlSafe, PgExecutor};
use std::sync::Arc;

/// Bounds of one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageBound {
    /// Entries at most.
    pub entries: u32,
    /// Bytes of events at most, attributes and what they fire included, but always at least one entry.
    pub bytes: u64,
}

/// What a row brings into memory beyond what every row does: as `LogEntry::memory_bytes` counts
/// it, or more. octet_length and pg_column_size read the size of a value that is stored out of line without reading the value, so what a
/// running sum cuts off costs nothing.
pub(in crate::store) const ROW_BYTES: &str = "(octet_length(data) + octet_length(extensions) + octet_length(source) \
     + coalesce(octet_length(subject), 0) + coalesce(octet_length(content_type), 0) \
     + pg_column_size(matched) + pg_column_size(refused) + pg_column_size(lineage))";

impl Store {
    /// Reads the next entries of a log in order, no entry beyond `up_to`, as many as the bound allows.
    pub async fn read_log_page(
        &self,
        tenant: TenantId,
        place: LogPlace,
        up_to: Position,
        bound: PageBound,
    ) -> Result<Vec<Arc<LogEntry>>, StoreError> {
        read(self.as_tenant(tenant), tenant, place, up_to, bound).await
    }
}

/// The statement of a page.
pub(in crate::store) fn statement() -> String {
    // The inner LIMIT is served in order by the primary key (tenant, day, position).
    format!(
        "SELECT {COLUMNS} FROM (
            SELECT page.*, sum({ROW_BYTES}) OVER (ORDER BY day, position) - {ROW_BYTES} AS bytes_before FROM (
                SELECT day, {COLUMNS} FROM events
                 WHERE tenant_id = $1 AND day >= $2 AND position > $3 AND position <= $4
                 ORDER BY day, position LIMIT $5) AS page) AS bounded
          WHERE bytes_before < $6 ORDER BY day, position LIMIT $5"
    )
}

/// Reads a page, in a transaction or in one of its own.
pub(in crate::store) async fn read(
    executor: impl PgExecutor<'_>,
    tenant: TenantId,
    place: LogPlace,
    up_to: Position,
    bound: PageBound,
) -> Result<Vec<Arc<LogEntry>>, StoreError> {
    // Positions have no gaps, so that this leaves nothing out. Whoever looked for more would find the end of the log, not `up_to`.
    let entries = i64::from(bound.entries).min((up_to - place.after).max(0));
    let rows: Vec<EventRow> = sqlx::query_as(AssertSqlSafe(statement()))
        .bind(tenant.0)
        .bind(place.day)
        .bind(place.after)
        .bind(up_to)
        .bind(entries)
        .bind(i64::try_from(bound.bytes).unwrap_or(i64::MAX))
        .fetch_all(executor)
        .await?;
    rows.into_iter().map(|row| row.parse().map(Arc::new)).collect()
}
