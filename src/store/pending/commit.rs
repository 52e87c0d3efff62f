//! The one statement by which a pending event is born into the log.

use super::verdicts::{AttemptColumns, VerdictColumns, outcome_columns};
use super::{Store, StoreError, data_columns};
use crate::domain::event::Event;
use crate::domain::ids::{Position, SubscriptionNo, TenantId};
use crate::domain::pre::Verdict;
use chrono::{DateTime, Utc};
use std::sync::Arc;
use std::time::Duration;

/// A pending event that is to be committed.
#[derive(Debug, Clone)]
pub struct PendingCommit {
    /// Whose event.
    pub tenant: TenantId,
    /// The event as it is to be, enriched.
    pub event: Arc<Event>,
    /// The owner's token.
    pub token: i64,
    /// The registry version that it was matched with just now; none where its listeners were matched when they began to be asked.
    pub registry_version: Option<i64>,
    /// What it fires.
    pub matched: Arc<[SubscriptionNo]>,
    /// What its lineage refuses.
    pub refused: Arc<[SubscriptionNo]>,
    /// What its listeners came to: their outcomes.
    pub verdicts: Vec<Verdict>,
}

/// Where it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommittedPending {
    /// Its place.
    pub position: Position,
    /// When.
    pub committed_at: DateTime<Utc>,
}

impl Store {
    /// Commits a pending event: its row goes, the event gets its position, and its listeners' outcomes are recorded.
    ///
    /// Returns none, and does nothing, where the row is not the caller's any more or the registry moved on.
    ///
    /// Errors: [`StoreError::Locked`] where somebody else holds the head for longer than `patience`.
    pub async fn commit_pending(
        &self,
        commit: &PendingCommit,
        patience: Duration,
    ) -> Result<Option<CommittedPending>, StoreError> {
        let (kind, data) = data_columns(&commit.event.data);
        let verdicts = VerdictColumns::of(&commit.verdicts);
        let (states, reasons) = outcome_columns(&commit.verdicts);
        let failed = AttemptColumns::of(&commit.verdicts);
        // The head is locked first, as every publish does; the row is deleted only where that gave a row, and everything else hangs on
        // the deleted row. How long the lock is waited for is set for this statement alone, before the row is locked that it lets through.
        let row: Option<(i64, DateTime<Utc>)> = sqlx::query_as(
            "WITH locked AS MATERIALIZED (
                 SELECT tenant_id FROM tenant_heads
                  WHERE tenant_id = $1 AND ($4::bigint IS NULL OR registry_version = $4)
                    AND set_config('lock_timeout', $29, true) IS NOT NULL FOR UPDATE),
             gone AS (
                 DELETE FROM pending_events p USING locked l
                  WHERE p.tenant_id = l.tenant_id AND p.event_id = $2 AND p.token = $3 AND p.state IN (1, 2)
                 RETURNING p.*),
             said AS (
                 DELETE FROM pending_verdicts v USING gone g WHERE v.tenant_id = g.tenant_id AND v.event_id = g.event_id),
             head AS (
                 UPDATE tenant_heads h
                    SET position = h.position + 1, committed_at = GREATEST(h.committed_at, $5), changed_at = $5
                   FROM gone g WHERE h.tenant_id = g.tenant_id
                 RETURNING h.tenant_id, h.position, h.committed_at),
             written AS (
                 INSERT INTO events (tenant_id, day, position, event_id, committed_at, event_type, schema_version, source, subject,
                        event_time, content_type, extensions, data_kind, data, matched, refused, root_id, cause_event_id,
                        cause_subscription_no, depth, lineage)
                 SELECT h.tenant_id, (h.committed_at AT TIME ZONE 'UTC')::date, h.position, g.event_id, h.committed_at, g.event_type,
                        $6, g.source, g.subject, g.event_time, g.content_type, g.extensions, $7, $8, $9, $10, g.root_id,
                        g.cause_event_id, g.cause_subscription_no, g.depth, g.lineage
                   FROM head h JOIN gone g ON g.tenant_id = h.tenant_id),
             ended AS (
                 INSERT INTO outcomes (tenant_id, day, position, subscription_no, state, attempt, outcome_class, status_code,
                        duration_us, started_at, excerpt, reason, message)
                 SELECT h.tenant_id, (h.committed_at AT TIME ZONE 'UTC')::date, h.position, o.subscription_no, o.state, o.attempt,
                        o.outcome_class, o.status_code, o.duration_us, o.started_at, o.excerpt, o.reason, o.message
                   FROM head h CROSS JOIN unnest($11::integer[], $12::smallint[], $13::integer[], $14::smallint[], $15::smallint[],
                        $16::integer[], $17::timestamptz[], $18::text[], $19::text[], $28::text[])
                        AS o(subscription_no, state, attempt, outcome_class, status_code, duration_us, started_at, excerpt, reason,
                             message)),
             tried AS (
                 INSERT INTO attempts (tenant_id, day, position, subscription_no, attempt, outcome_class, status_code, duration_us,
                        started_at, excerpt, error)
                 SELECT h.tenant_id, (h.committed_at AT TIME ZONE 'UTC')::date, h.position, a.subscription_no, a.attempt,
                        a.outcome_class, a.status_code, a.duration_us, a.started_at, a.excerpt, a.error
                   FROM head h CROSS JOIN unnest($20::integer[], $21::integer[], $22::smallint[], $23::smallint[], $24::integer[],
                        $25::timestamptz[], $26::text[], $27::text[])
                        AS a(subscription_no, attempt, outcome_class, status_code, duration_us, started_at, excerpt, error))
             SELECT position, committed_at FROM head",
        )
        .bind(commit.tenant.0)
        .bind(commit.event.id.0)
        .bind(commit.token)
        .bind(commit.registry_version)
        .bind(self.now())
        .bind(commit.event.schema_version)
        .bind(kind)
        .bind(data.as_ref())
        .bind(&*commit.matched)
        .bind(&*commit.refused)
        .bind(verdicts.subscription_no)
        .bind(states)
        .bind(verdicts.attempt)
        .bind(verdicts.outcome_class)
        .bind(verdicts.status_code)
        .bind(verdicts.duration_us)
        .bind(verdicts.started_at)
        .bind(verdicts.excerpt)
        .bind(reasons)
        .bind(failed.subscription_no)
        .bind(failed.attempt)
        .bind(failed.outcome_class)
        .bind(failed.status_code)
        .bind(failed.duration_us)
        .bind(failed.started_at)
        .bind(failed.excerpt)
        .bind(failed.error)
        .bind(verdicts.message)
        .bind(patience.as_millis().max(1).to_string())
        .fetch_optional(self.engine())
        .await?;
        Ok(row.map(|(position, committed_at)| CommittedPending { position, committed_at }))
    }
}
