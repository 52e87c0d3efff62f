//! Reading a log from its end: for what looks at the last events only.

use super::event_pages::{PageBound, ROW_BYTES};
use super::events::{COLUMNS, EventRow};
use super::{Store, StoreError};
use crate::domain::event::LogEntry;
use crate::domain::ids::{Position, TenantId};
use chrono::NaiveDate;

impl Store {
    /// Reads the entries before a position, newest first, as many as the bound allows. `day` is not before that of any of them.
    pub async fn read_log_before(
        &self,
        tenant: TenantId,
        day: NaiveDate,
        before: Position,
        bound: PageBound,
    ) -> Result<Vec<LogEntry>, StoreError> {
        // As read_log_page, the other way round: the primary key (tenant, day, position) serves the inner LIMIT backwards, and what the
        // running sum cuts off is not read.
        let sql = format!(
            "SELECT {COLUMNS} FROM (
                SELECT page.*, sum({ROW_BYTES}) OVER (ORDER BY day DESC, position DESC) - {ROW_BYTES} AS bytes_before
                  FROM (
                    SELECT day, {COLUMNS} FROM events
                     WHERE tenant_id = $1 AND day <= $2 AND position < $3
                     ORDER BY day DESC, position DESC LIMIT $4) AS page) AS bounded
              WHERE bytes_before < $5 ORDER BY day DESC, position DESC LIMIT $4"
        );
        let rows: Vec<EventRow> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
            .bind(tenant.0)
            .bind(day)
            .bind(before)
            .bind(i64::from(bound.entries))
            .bind(i64::try_from(bound.bytes).unwrap_or(i64::MAX))
            .fetch_all(self.as_tenant(tenant))
            .await?;
        rows.into_iter().map(EventRow::parse).collect()
    }
}
