//! Pending events that are due: when the next one will be, whose they are, and who becomes their owner.

use super::{DELIVER_AT, PendingEvent, PendingState, columns, parse, parse_state, state_code};
use crate::domain::event_type::EventTypeName;
use crate::domain::ids::{EventId, TenantId};
use crate::store::event_pages::ROW_BYTES;
use crate::store::{Store, StoreError};
use chrono::{DateTime, Utc};
use std::time::Duration;
use uuid::Uuid;

/// An event that may be claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueEvent {
    /// Its id.
    pub event: EventId,
    /// Its type.
    pub event_type: EventTypeName,
    /// Bytes that it brings into memory.
    pub bytes: usize,
}

impl Store {
    /// When the first pending event that is not due yet will be; none where there is none.
    pub async fn next_pending_due(&self, now: DateTime<Utc>) -> Result<Option<DateTime<Utc>>, StoreError> {
        // In the order of the index, from `now` on: what is due already, however much it is, is not read.
        let sql = "SELECT due_at FROM pending_events WHERE due_at > $1 ORDER BY due_at LIMIT 1";
        Ok(sqlx::query_scalar(sql).bind(now).fetch_optional(self.engine()).await?)
    }

    /// The pending events that have been due for longest: whose each is, and what it waits for.
    pub async fn first_due(&self, now: DateTime<Utc>, limit: u32) -> Result<Vec<(TenantId, PendingState)>, StoreError> {
        // Reads across tenants, as only the owner of a replica's timers does; claims are per tenant.
        let rows: Vec<(Uuid, i16)> =
            sqlx::query_as("SELECT tenant_id, state FROM pending_events WHERE due_at <= $1 ORDER BY due_at LIMIT $2")
                .bind(now)
                .bind(i64::from(limit))
                .fetch_all(self.engine())
                .await?;
        rows.into_iter().map(|(tenant, state)| Ok((TenantId(tenant), parse_state(state)?))).collect()
    }

    /// Tenants with pending events in a state that are due, in the order of their ids, behind one.
    pub async fn tenants_with_due(
        &self,
        state: PendingState,
        now: DateTime<Utc>,
        after: TenantId,
        limit: u32,
    ) -> Result<Vec<TenantId>, StoreError> {
        // One look into the index for each tenant, which finds its first event: that costs the same however many are due.
        let tenants: Vec<Uuid> = sqlx::query_scalar(
            "SELECT h.tenant_id FROM tenant_heads h
              WHERE h.tenant_id > $3
                AND (SELECT min(p.due_at) FROM pending_events p WHERE p.tenant_id = h.tenant_id AND p.state = $1) <= $2
              ORDER BY h.tenant_id LIMIT $4",
        )
        .bind(state_code(state))
        .bind(now)
        .bind(after.0)
        .bind(i64::from(limit))
        .fetch_all(self.engine())
        .await?;
        Ok(tenants.into_iter().map(TenantId).collect())
    }

    /// A tenant's events in a state that are due, those that wait longest first; without those that the caller works on already, and
    /// those of some types.
    pub async fn due_pending(
        &self,
        tenant: TenantId,
        state: PendingState,
        now: DateTime<Utc>,
        without: &[EventId],
        without_types: &[EventTypeName],
        limit: u32,
    ) -> Result<Vec<DueEvent>, StoreError> {
        // The row comparison, which says no more than `due_at <= $3`, is what the index of the tenant has an order for: in that of all
        // tenants, one with many would be read through for the others. The type is an expression, of which the planner knows nothing: where
        // all events are of one, it would take them for excluded, and sort what it believes to be few.
        let sql = format!(
            "SELECT event_id, event_type, {ROW_BYTES} FROM pending_events
              WHERE tenant_id = $1 AND state = $2 AND due_at IS NOT NULL AND (tenant_id, state, due_at) <= ($1, $2, $3)
                AND event_id <> ALL($4) AND (event_type || '') <> ALL($5)
              ORDER BY due_at, event_id LIMIT $6"
        );
        let rows: Vec<(Uuid, String, i32)> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
            .bind(tenant.0)
            .bind(state_code(state))
            .bind(now)
            .bind(without.iter().map(|event| event.0).collect::<Vec<_>>())
            .bind(without_types.iter().map(EventTypeName::as_str).collect::<Vec<_>>())
            .bind(i64::from(limit))
            .fetch_all(self.engine())
            .await?;
        rows.into_iter()
            .map(|(event, event_type, bytes)| {
                let event_type =
                    EventTypeName::parse(&event_type).map_err(|_| StoreError::Corrupt { what: "event type" })?;
                let bytes = usize::try_from(bytes).unwrap_or_default();
                Ok(DueEvent { event: EventId(event), event_type, bytes })
            })
            .collect()
    }

    /// Gives a delayed event whose owner has gone silent a new time to be decided, once: the attempt that its owner may have made is written
    /// down. False where that was done before, or it is not the caller's.
    pub async fn renew_deadline(
        &self,
        tenant: TenantId,
        event: EventId,
        token: i64,
        deadline_at: DateTime<Utc>,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "UPDATE pending_events SET deadline_at = $4, attempted = 1
              WHERE tenant_id = $1 AND event_id = $2 AND token = $3 AND state = 2 AND attempted = 0 AND deliver_at IS NOT NULL",
        )
        .bind(tenant.0)
        .bind(event.0)
        .bind(token)
        .bind(deadline_at)
        .execute(self.engine())
        .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Becomes the owner of these events of a tenant for a `lease`, as far as they are due in the state still.
    pub async fn claim_pending(
        &self,
        tenant: TenantId,
        state: PendingState,
        now: DateTime<Utc>,
        lease: Duration,
        events: &[EventId],
    ) -> Result<Vec<PendingEvent>, StoreError> {
        // SKIP LOCKED: what another replica claims at this moment is its.
        let sql = format!(
            "WITH due AS (
                 SELECT event_id AS id FROM pending_events
                  WHERE tenant_id = $1 AND event_id = ANY($5) AND state = $2 AND due_at <= $3 FOR UPDATE SKIP LOCKED)
             UPDATE pending_events SET token = token + 1, due_at = clock_timestamp() + $4, deliver_at = {DELIVER_AT}
               FROM due d WHERE tenant_id = $1 AND event_id = d.id RETURNING {}",
            columns()
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(tenant.0)
            .bind(state_code(state))
            .bind(now)
            .bind(lease)
            .bind(events.iter().map(|event| event.0).collect::<Vec<_>>())
            .fetch_all(self.engine())
            .await?;
        // Each row goes as soon as its event is made of it.
        rows.into_iter().map(|row| parse(&row)).collect()
    }
}
