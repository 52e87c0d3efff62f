//! What the engine reads of a log: the next page of a tenant, entries by position, and heads. Nothing of it goes to a caller as it is.
//!
//! What is read of one tenant is delivered to its receivers, so it is read behind the wall, as for a caller.

use super::dispatch::{Place, not_pending};
use super::event_pages::{self, PageBound, ROW_BYTES};
use super::events::{COLUMNS, EventRow, LogPlace};
use super::{Store, StoreError, heads};
use crate::domain::event::LogEntry;
use crate::domain::ids::{Position, TenantId};
use crate::feed::Head;
use chrono::NaiveDate;
use std::collections::HashSet;
use std::sync::Arc;
use uuid::Uuid;

/// A page of a log as its owner reads it.
#[derive(Debug, Clone)]
pub struct LogTail {
    /// Its entries in order, as [`Store::read_log_page`] reads them.
    pub entries: Vec<Arc<LogEntry>>,
    /// Those of their invocations that are finished, deferred or dead.
    pub not_pending: HashSet<Place>,
    /// Where the head is, read after the entries; none for an unknown tenant.
    pub head: Option<Head>,
}

impl Store {
    /// Reads the next page of a log with what is settled of it. In one transaction, since it is read for every commit of another
    /// replica: to name the tenant for each of its statements would cost two round trips each.
    pub async fn log_tail(
        &self,
        tenant: TenantId,
        place: LogPlace,
        up_to: Position,
        bound: PageBound,
    ) -> Result<LogTail, StoreError> {
        let read = async {
            let mut tx = self.begin_owed(tenant).await?;
            let entries = event_pages::read(&mut *tx, tenant, place, up_to, bound).await?;
            let not_pending = match entries.last() {
                Some(last) => not_pending(&mut tx, tenant, place, last.position).await?,
                None => HashSet::new(),
            };
            let head = heads::read(&mut *tx, tenant).await?.map(|row| row.head());
            tx.commit().await?;
            Ok(LogTail { entries, not_pending, head })
        };
        self.within(read).await
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
            .fetch_all(self.as_tenant(tenant))
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
