//! What the listeners of pending events answered, and events that are aborted for it.

use super::{Store, StoreError};
use crate::domain::announcement::Announcement;
use crate::domain::ids::{EventId, SubscriptionId, TenantId};
use crate::domain::invocation::{Attempt, Outcome, State};
use crate::domain::pre::{AbortReason, Aborted, Verdict, VerdictKind};
use crate::store::announcements;
use crate::store::dispatch::{class_number, parse_class, state_number};
use crate::store::heads::{self, RegistryChange};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgExecutor;
use std::time::Duration;
use uuid::Uuid;

/// Column-wise parameters of verdicts.
#[derive(Default)]
pub(super) struct VerdictColumns<'a> {
    pub subscription_no: Vec<i32>,
    verdict: Vec<i16>,
    pub attempt: Vec<i32>,
    pub outcome_class: Vec<i16>,
    pub status_code: Vec<i16>,
    pub duration_us: Vec<i32>,
    pub started_at: Vec<DateTime<Utc>>,
    pub excerpt: Vec<Option<&'a str>>,
    pub message: Vec<&'a str>,
    patch: Vec<Option<&'a str>>,
    failed: Vec<Option<String>>,
}

impl<'a> VerdictColumns<'a> {
    pub fn of(verdicts: &'a [Verdict]) -> Self {
        let mut columns = Self::default();
        for verdict in verdicts {
            let outcome = verdict.outcome.as_ref();
            columns.subscription_no.push(verdict.subscription_no);
            columns.verdict.push(kind_code(verdict.kind));
            columns.attempt.push(verdict.attempt);
            columns.outcome_class.push(outcome.map_or(0, |outcome| class_number(outcome.class)));
            columns
                .status_code
                .push(outcome.map_or(0, |outcome| i16::try_from(outcome.status_code).unwrap_or_default()));
            columns.duration_us.push(i32::try_from(verdict.duration.as_micros()).unwrap_or(i32::MAX));
            columns.started_at.push(verdict.started_at);
            columns.excerpt.push(outcome.and_then(|outcome| outcome.excerpt.as_deref()));
            columns.message.push(&verdict.message);
            columns.patch.push(verdict.patch.as_deref());
            columns.failed.push(encode_failed(&verdict.failed));
        }
        columns
    }
}

/// Column-wise parameters of the attempts before the last ones.
#[derive(Default)]
pub(super) struct AttemptColumns<'a> {
    pub subscription_no: Vec<i32>,
    pub attempt: Vec<i32>,
    pub outcome_class: Vec<i16>,
    pub status_code: Vec<i16>,
    pub duration_us: Vec<i32>,
    pub started_at: Vec<DateTime<Utc>>,
    pub excerpt: Vec<Option<&'a str>>,
    pub error: Vec<Option<&'a str>>,
}

impl<'a> AttemptColumns<'a> {
    pub fn of(verdicts: &'a [Verdict]) -> Self {
        let mut columns = Self::default();
        for (no, attempt) in verdicts.iter().flat_map(|v| v.failed.iter().map(|attempt| (v.subscription_no, attempt))) {
            let outcome = &attempt.outcome;
            columns.subscription_no.push(no);
            columns.attempt.push(attempt.number);
            columns.outcome_class.push(class_number(outcome.class));
            columns.status_code.push(i16::try_from(outcome.status_code).unwrap_or_default());
            columns.duration_us.push(i32::try_from(attempt.duration.as_micros()).unwrap_or(i32::MAX));
            columns.started_at.push(attempt.started_at);
            columns.excerpt.push(outcome.excerpt.as_deref());
            columns.error.push(outcome.error.as_deref());
        }
        columns
    }
}

/// States and reasons of the outcomes of a committed event's listeners.
pub(super) fn outcome_columns(verdicts: &[Verdict]) -> (Vec<i16>, Vec<Option<String>>) {
    let column = |verdict: &Verdict| match verdict.kind {
        VerdictKind::Succeeded => (state_number(State::Succeeded), None),
        kind => (state_number(State::Cancelled), Some(format!("PRE_{}", kind.as_str()))),
    };
    verdicts.iter().map(column).unzip()
}

/// An attempt before the last one, as it is stored.
#[derive(Serialize, Deserialize)]
struct FailedRow {
    number: i32,
    started_at: DateTime<Utc>,
    duration_us: u64,
    class: i16,
    status_code: u16,
    excerpt: Option<String>,
    error: Option<String>,
}

fn encode_failed(attempts: &[Attempt]) -> Option<String> {
    let row = |attempt: &Attempt| FailedRow {
        number: attempt.number,
        started_at: attempt.started_at,
        duration_us: u64::try_from(attempt.duration.as_micros()).unwrap_or(u64::MAX),
        class: class_number(attempt.outcome.class),
        status_code: attempt.outcome.status_code,
        excerpt: attempt.outcome.excerpt.clone(),
        error: attempt.outcome.error.clone(),
    };
    let rows: Vec<FailedRow> = attempts.iter().map(row).collect();
    (!rows.is_empty()).then(|| serde_json::to_string(&rows).expect("strings, numbers and times always serialize"))
}

fn parse_failed(text: &str) -> Result<Vec<Attempt>, StoreError> {
    let rows: Vec<FailedRow> = serde_json::from_str(text).map_err(|_| StoreError::Corrupt { what: "attempt" })?;
    let attempt = |row: FailedRow| {
        let FailedRow { number, started_at, status_code, excerpt, error, .. } = row;
        let outcome = Outcome { class: parse_class(row.class)?, status_code, retry_after: None, excerpt, error };
        Ok(Attempt { number, started_at, duration: Duration::from_micros(row.duration_us), outcome })
    };
    rows.into_iter().map(attempt).collect()
}

pub(super) type Row =
    (i32, Option<Uuid>, i16, i32, i16, i16, i32, DateTime<Utc>, Option<String>, String, Option<String>, Option<String>);

impl Store {
    /// Notes what listeners answered while others are still asked. False where the event is not the caller's any more.
    pub async fn note_verdicts(
        &self,
        tenant: TenantId,
        event: EventId,
        token: i64,
        verdicts: &[Verdict],
    ) -> Result<bool, StoreError> {
        self.note_in_state(2, tenant, event, token, verdicts).await
    }

    /// Deletes what was noted of an event that does not wait any more.
    pub async fn forget_verdicts(&self, tenant: TenantId, event: EventId) -> Result<(), StoreError> {
        let sql = "DELETE FROM pending_verdicts WHERE tenant_id = $1 AND event_id = $2
                      AND NOT EXISTS (SELECT FROM pending_events p WHERE p.tenant_id = $1 AND p.event_id = $2)";
        sqlx::query(sql).bind(tenant.0).bind(event.0).execute(self.engine()).await?;
        Ok(())
    }

    /// Notes what had become of its listeners when a caller took an event back. Nothing where that is not why the event is not the caller's
    /// any more.
    pub async fn note_cancelled(
        &self,
        tenant: TenantId,
        event: EventId,
        token: i64,
        verdicts: &[Verdict],
    ) -> Result<(), StoreError> {
        self.note_in_state(4, tenant, event, token, verdicts).await.map(drop)
    }

    async fn note_in_state(
        &self,
        state: i16,
        tenant: TenantId,
        event: EventId,
        token: i64,
        verdicts: &[Verdict],
    ) -> Result<bool, StoreError> {
        let columns = VerdictColumns::of(verdicts);
        let noted: i64 = sqlx::query_scalar(
            "WITH mine AS (
                 SELECT tenant_id, event_id FROM pending_events
                  WHERE tenant_id = $1 AND event_id = $2 AND token = $3 AND state = $14 FOR UPDATE),
             noted AS (
                 INSERT INTO pending_verdicts (tenant_id, event_id, subscription_no, verdict, attempt, outcome_class, status_code,
                        duration_us, started_at, excerpt, message, patch, failed)
                 SELECT m.tenant_id, m.event_id, v.*
                   FROM mine m CROSS JOIN unnest($4::integer[], $5::smallint[], $6::integer[], $7::smallint[], $8::smallint[],
                        $9::integer[], $10::timestamptz[], $11::text[], $12::text[], $13::text[],
                        $15::text[]) AS v
                 ON CONFLICT DO NOTHING)
             SELECT count(*) FROM mine",
        )
        .bind(tenant.0)
        .bind(event.0)
        .bind(token)
        .bind(columns.subscription_no)
        .bind(columns.verdict)
        .bind(columns.attempt)
        .bind(columns.outcome_class)
        .bind(columns.status_code)
        .bind(columns.duration_us)
        .bind(columns.started_at)
        .bind(columns.excerpt)
        .bind(columns.message)
        .bind(columns.patch)
        .bind(state)
        .bind(columns.failed)
        .fetch_one(self.engine())
        .await?;
        Ok(noted > 0)
    }

    /// Writes the number of an attempt down before it is made, so that no later owner gives it again. False where the event is not the
    /// caller's any more.
    pub async fn note_attempt(
        &self,
        tenant: TenantId,
        event: EventId,
        token: i64,
        number: i32,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "UPDATE pending_events SET attempted = GREATEST(attempted, $4)
              WHERE tenant_id = $1 AND event_id = $2 AND token = $3 AND state = 2",
        )
        .bind(tenant.0)
        .bind(event.0)
        .bind(token)
        .bind(number)
        .execute(self.engine())
        .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Aborts an event: its data goes, what its listeners answered stays until `expires_at`. False where it is not the caller's.
    pub async fn abort_pending(
        &self,
        tenant: TenantId,
        token: i64,
        aborted: &Aborted,
        expires_at: DateTime<Utc>,
    ) -> Result<bool, StoreError> {
        abort(self.engine(), tenant, token, aborted, expires_at).await
    }

    /// Aborts an event as [`Self::abort_pending`] does, and tells of it. None where it is not the caller's.
    ///
    /// Errors: [`StoreError::Locked`] where somebody else holds the tenant's head for longer than `patience`.
    pub async fn abort_delayed(
        &self,
        tenant: TenantId,
        token: i64,
        aborted: Aborted,
        expires_at: DateTime<Utc>,
        told: Announcement,
        patience: Duration,
    ) -> Result<Option<RegistryChange>, StoreError> {
        let store = self.clone();
        self.run(async move {
            let now = store.now();
            let mut tx = store.begin_owed_within(tenant, patience).await?;
            // The head's lock first, as a commit takes them. Every change of the registry's version has its announcements looked for.
            let change = heads::bump_registry(&mut tx, tenant, now).await?;
            if !abort(&mut *tx, tenant, token, &aborted, expires_at).await? {
                return Ok(None);
            }
            announcements::record(&mut tx, tenant, change.registry_version, &told, now).await?;
            tx.commit().await?;
            Ok(Some(change))
        })
        .await
    }
}

async fn abort(
    executor: impl PgExecutor<'_>,
    tenant: TenantId,
    token: i64,
    aborted: &Aborted,
    expires_at: DateTime<Utc>,
) -> Result<bool, StoreError> {
    let columns = VerdictColumns::of(&aborted.verdicts);
    // What was noted before stays, but a success whose enrichment turned out not to fit is a failure after all.
    let ended: i64 = sqlx::query_scalar(
        "WITH ended AS (
             UPDATE pending_events
                SET state = 3, due_at = NULL, data = '', extensions = '', data_kind = 0, abort_reason = $14, abort_message = $15,
                    expires_at = $16
              WHERE tenant_id = $1 AND event_id = $2 AND token = $3 AND state IN (1, 2)
             RETURNING tenant_id, event_id),
         said AS (
             INSERT INTO pending_verdicts (tenant_id, event_id, subscription_no, verdict, attempt, outcome_class, status_code,
                    duration_us, started_at, excerpt, message, patch, failed)
             SELECT e.tenant_id, e.event_id, v.*
               FROM ended e CROSS JOIN unnest($4::integer[], $5::smallint[], $6::integer[], $7::smallint[], $8::smallint[],
                    $9::integer[], $10::timestamptz[], $11::text[], $12::text[], $13::text[],
                    $17::text[]) AS v
             ON CONFLICT ON CONSTRAINT pending_verdicts_pk
             DO UPDATE SET verdict = EXCLUDED.verdict, outcome_class = EXCLUDED.outcome_class, message = EXCLUDED.message,
                           patch = NULL)
         SELECT count(*) FROM ended",
    )
    .bind(tenant.0)
    .bind(aborted.event.0)
    .bind(token)
    .bind(columns.subscription_no)
    .bind(columns.verdict)
    .bind(columns.attempt)
    .bind(columns.outcome_class)
    .bind(columns.status_code)
    .bind(columns.duration_us)
    .bind(columns.started_at)
    .bind(columns.excerpt)
    .bind(columns.message)
    .bind(columns.patch)
    .bind(reason_code(aborted.reason))
    .bind(&aborted.message)
    .bind(expires_at)
    .bind(columns.failed)
    .fetch_one(executor)
    .await?;
    Ok(ended > 0)
}

pub(super) fn parse(row: Row) -> Result<Verdict, StoreError> {
    let (no, subscription, kind, attempt, class, status, duration_us, started_at, excerpt, message, patch, failed) =
        row;
    let outcome = match class {
        0 => None,
        class => Some(Outcome {
            class: parse_class(class)?,
            status_code: u16::try_from(status).unwrap_or_default(),
            retry_after: None,
            excerpt,
            error: (!message.is_empty()).then(|| message.clone()),
        }),
    };
    Ok(Verdict {
        subscription_no: no,
        subscription: SubscriptionId(subscription.unwrap_or_default()),
        kind: parse_kind(kind).ok_or(StoreError::Corrupt { what: "verdict" })?,
        attempt,
        started_at,
        duration: Duration::from_micros(u64::try_from(duration_us).unwrap_or_default()),
        outcome,
        message,
        patch,
        failed: failed.as_deref().map_or(Ok(Vec::new()), parse_failed)?,
        late: false,
    })
}

fn kind_code(kind: VerdictKind) -> i16 {
    match kind {
        VerdictKind::Succeeded => 1,
        VerdictKind::Rejected => 2,
        VerdictKind::Failed => 3,
        VerdictKind::Cancelled => 4,
        VerdictKind::Skipped => 5,
    }
}

fn parse_kind(code: i16) -> Option<VerdictKind> {
    use VerdictKind::{Cancelled, Failed, Rejected, Skipped, Succeeded};
    [Succeeded, Rejected, Failed, Cancelled, Skipped].into_iter().find(|kind| kind_code(*kind) == code)
}

fn reason_code(reason: AbortReason) -> i16 {
    match reason {
        AbortReason::Rejected => 1,
        AbortReason::ListenerFailed => 2,
        AbortReason::Deadline => 3,
        AbortReason::Abandoned => 4,
        AbortReason::Unpublishable => 5,
    }
}

pub(super) fn parse_reason(code: i16) -> Option<AbortReason> {
    use AbortReason::{Abandoned, Deadline, ListenerFailed, Rejected, Unpublishable};
    [Rejected, ListenerFailed, Deadline, Abandoned, Unpublishable]
        .into_iter()
        .find(|reason| reason_code(*reason) == code)
}
