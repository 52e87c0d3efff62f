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
    /// True where the time of its listeners is up, and none is given anew.
    pub is_over: bool,
}

impl DueEvent {
    fn parse((event, event_type, bytes, is_over): (Uuid, String, i32, bool)) -> Result<Self, StoreError> {
        let bytes = usize::try_from(bytes).unwrap_or_default();
        Ok(Self { event: EventId(event), event_type: parse_type(&event_type)?, bytes, is_over })
    }
}

fn parse_type(name: &str) -> Result<EventTypeName, StoreError> {
    EventTypeName::parse(name).map_err(|_| StoreError::Corrupt { what: "event type" })
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

    /// A tenant's PRE events whose owner has gone silent, in the order of their deadlines; without those that the caller works on already.
    pub async fn due_gated(
        &self,
        tenant: TenantId,
        now: DateTime<Utc>,
        without: &[EventId],
        limit: u32,
    ) -> Result<Vec<DueEvent>, StoreError> {
        // The row comparison, which says no more than `due_at <= $2`, is what the index of the tenant has an order for: in that of all
        // tenants, one with many would be read through for the others. As many as a tenant's phases are by default are put in order.
        let sql = format!(
            "SELECT event_id, event_type, bytes, COALESCE(deadline_at <= $2 AND deliver_at IS NULL, false) FROM (
                SELECT event_id, event_type, deadline_at, deliver_at, {ROW_BYTES} AS bytes FROM pending_events
                 WHERE tenant_id = $1 AND state = 2 AND due_at IS NOT NULL AND (tenant_id, state, due_at) <= ($1, 2, $2)
                   AND event_id <> ALL($3)
                 ORDER BY due_at, event_id LIMIT 1000) AS due
              ORDER BY deadline_at, event_id LIMIT $4"
        );
        let rows = sqlx::query_as(sqlx::AssertSqlSafe(sql))
            .bind(tenant.0)
            .bind(now)
            .bind(without.iter().map(|event| event.0).collect::<Vec<_>>())
            .bind(i64::from(limit))
            .fetch_all(self.as_tenant(tenant))
            .await?;
        rows.into_iter().map(DueEvent::parse).collect()
    }

    /// The types of a tenant's delayed events that are due, the one first whose first event has waited longest.
    pub async fn due_types(&self, tenant: TenantId, now: DateTime<Utc>) -> Result<Vec<EventTypeName>, StoreError> {
        // From the first event of each type to that of the next: it costs the same however many of a type are due. No limit: as many as the
        // tenant has types at most.
        const FIRST: &str = "SELECT event_type, due_at FROM pending_events WHERE tenant_id = $1 AND state = 1";
        let sql = format!(
            "WITH RECURSIVE types AS (
                 ({FIRST} ORDER BY event_type, due_at LIMIT 1)
                 UNION ALL
                 SELECT next.event_type, next.due_at FROM types t
                  CROSS JOIN LATERAL ({FIRST} AND event_type > t.event_type ORDER BY event_type, due_at LIMIT 1) AS next)
             SELECT event_type FROM types WHERE due_at <= $2 ORDER BY due_at, event_type"
        );
        let names: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
            .bind(tenant.0)
            .bind(now)
            .fetch_all(self.as_tenant(tenant))
            .await?;
        names.iter().map(|name| parse_type(name)).collect()
    }

    /// A tenant's delayed events that are due: of each of these types so many at most, those first that have waited longest.
    pub async fn due_of_types(
        &self,
        tenant: TenantId,
        now: DateTime<Utc>,
        types: &[(EventTypeName, u32)],
    ) -> Result<Vec<DueEvent>, StoreError> {
        let (names, counts): (Vec<&str>, Vec<i64>) =
            types.iter().map(|(name, count)| (name.as_str(), i64::from(*count))).unzip();
        let sql = format!(
            "SELECT due.event_id, due.event_type, due.bytes, false FROM unnest($3::text[], $4::bigint[]) AS wanted(event_type, count)
              CROSS JOIN LATERAL (
                    SELECT p.event_id, p.event_type, p.due_at, {ROW_BYTES} AS bytes FROM pending_events p
                     WHERE p.tenant_id = $1 AND p.state = 1 AND p.event_type = wanted.event_type AND p.due_at <= $2
                     ORDER BY p.due_at, p.event_id LIMIT wanted.count) AS due
              ORDER BY due.due_at, due.event_id"
        );
        let rows = sqlx::query_as(sqlx::AssertSqlSafe(sql))
            .bind(tenant.0)
            .bind(now)
            .bind(names)
            .bind(counts)
            .fetch_all(self.as_tenant(tenant))
            .await?;
        rows.into_iter().map(DueEvent::parse).collect()
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
            .fetch_all(self.as_tenant(tenant))
            .await?;
        // Each row goes as soon as its event is made of it.
        rows.into_iter().map(|row| parse(&row)).collect()
    }
}
