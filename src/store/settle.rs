//! Writing what happened: outcomes, attempts, deferred work, dead letters, and the cursor, all in one.
//!
//! Every settle begins with the fence: it moves the tenant's cursor where the token is still the owner's, and writes nothing
//! where it is not. A success costs one appended row; only exceptions pay for more.

use super::dispatch::{Place, class_number, state_number};
use super::events::LogPlace;
use super::leases::shard_of;
use super::{Store, StoreError};
use crate::domain::filter::OrderingKey;
use crate::domain::ids::TenantId;
use crate::domain::invocation::{CancelReason, Outcome, State};
use crate::planted::{self, Defect};
use chrono::{DateTime, NaiveDate, Utc};
use sqlx::{AssertSqlSafe, PgConnection, PgExecutor};
use std::time::Duration;
use uuid::Uuid;

/// How an attempt went, as it is recorded.
#[derive(Debug, Clone)]
pub struct Tried {
    /// Number of the attempt, 1 for the first; 0 where none was made.
    pub attempt: i32,
    /// When it started.
    pub started_at: DateTime<Utc>,
    /// How long it took.
    pub duration: Duration,
    /// How it ended; none for a cancellation without an attempt.
    pub outcome: Option<Outcome>,
}

/// What becomes of an invocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Final: accepted.
    Succeeded,
    /// Final: will not run.
    Cancelled(CancelReason),
    /// Runs again.
    Deferred {
        /// Number of the last attempt.
        attempt: i32,
        /// Number of the last attempt that does not count towards the limit.
        base: i32,
        /// When.
        due_at: DateTime<Utc>,
    },
    /// Used up its attempts.
    Dead {
        /// When.
        at: DateTime<Utc>,
        /// The registry version of the subscription that the last one was made for.
        version: i64,
    },
}

/// One invocation's change in a settle.
#[derive(Debug, Clone)]
pub struct Settled {
    /// Which.
    pub place: Place,
    /// The event's day.
    pub day: NaiveDate,
    /// True where it has a row in `deferred_invocations`.
    pub deferred: bool,
    /// What it is in order with.
    pub key: Option<OrderingKey>,
    /// The attempt that was made, if any.
    pub tried: Option<Tried>,
    /// What becomes of it.
    pub fate: Fate,
}

impl Settled {
    /// True where others of its ordering key may have to wait for what it writes.
    pub fn holds_up(&self) -> bool {
        self.key.is_some() && matches!(self.fate, Fate::Deferred { .. } | Fate::Dead { .. })
    }

    /// True where one appended row says all.
    fn is_plain(&self) -> bool {
        !self.deferred && matches!(self.fate, Fate::Succeeded | Fate::Cancelled(_))
    }
}

/// Whether a settle was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fenced {
    /// It was.
    No,
    /// Another owner holds the tenant: nothing was written.
    Yes,
}

impl Store {
    /// Writes what happened and moves the cursor, all or nothing, where `token` is still the owner's.
    ///
    /// An outcome that exists already stays: a caller's cancellation that came first wins; an attempt that ran on is recorded as
    /// what it was. Callers' changes lock the cursor's row too, so what a transaction here sees after its fence does not change under it.
    pub async fn settle(
        &self,
        tenant: TenantId,
        token: i64,
        cursor: LogPlace,
        changes: &[Settled],
    ) -> Result<Fenced, StoreError> {
        loop {
            let token =
                if planted::has(Defect::IgnoreFence) { self.overwrite(tenant, token, changes).await? } else { token };
            let plain = if changes.iter().all(Settled::is_plain) {
                self.settle_plain(tenant, token, cursor, changes).await?
            } else {
                None
            };
            let fenced = match plain {
                Some(fenced) => fenced,
                None => self.within(self.settle_all(tenant, token, cursor, changes)).await?,
            };
            // The owner may have changed in between, which is no fence for who ignores it.
            if fenced == Fenced::No || !planted::has(Defect::IgnoreFence) {
                return Ok(fenced);
            }
        }
    }

    async fn settle_all(
        &self,
        tenant: TenantId,
        token: i64,
        cursor: LogPlace,
        changes: &[Settled],
    ) -> Result<Fenced, StoreError> {
        let mut transaction = self.begin_owed(tenant).await?;
        let fence =
            sqlx::query("UPDATE dispatch_cursors SET position = $3, day = $4 WHERE tenant_id = $1 AND token = $2")
                .bind(tenant.0)
                .bind(token)
                .bind(cursor.after)
                .bind(cursor.day)
                .execute(&mut *transaction)
                .await?;
        if fence.rows_affected() == 0 {
            transaction.rollback().await?;
            return Ok(Fenced::Yes);
        }
        write_finals(&mut transaction, tenant, changes).await?;
        write_attempts(&mut transaction, tenant, changes).await?;
        write_deferred(&mut transaction, tenant, changes, self.now()).await?;
        write_dead(&mut transaction, tenant, changes).await?;
        transaction.commit().await?;
        Ok(Fenced::No)
    }

    /// The common case in one statement and one round trip: the fence and appended outcomes. None, and nothing written, where one of
    /// them exists already: that is rare, and to expect it of every row would cost half as much again.
    async fn settle_plain(
        &self,
        tenant: TenantId,
        token: i64,
        cursor: LogPlace,
        changes: &[Settled],
    ) -> Result<Option<Fenced>, StoreError> {
        let columns = Finals::of(changes.iter());
        let fence = sqlx::query_scalar::<_, i32>(
            "WITH fence AS (
                 UPDATE dispatch_cursors SET position = $12, day = $13 WHERE tenant_id = $1 AND token = $14 RETURNING 1),
             done AS (
                 INSERT INTO outcomes (tenant_id, day, position, subscription_no, state, attempt, outcome_class, status_code,
                        duration_us, started_at, excerpt, reason)
                 SELECT $1, o.day, o.position, o.subscription_no, o.state, o.attempt, o.outcome_class, o.status_code,
                        o.duration_us, o.started_at, o.excerpt, CASE WHEN o.state = 5 THEN o.reason END
                   FROM unnest($2::date[], $3::bigint[], $4::integer[], $5::smallint[], $6::integer[], $7::smallint[],
                               $8::smallint[], $9::integer[], $10::timestamptz[], $11::text[], $15::text[])
                        AS o(day, position, subscription_no, state, attempt, outcome_class, status_code, duration_us,
                             started_at, excerpt, reason)
                  WHERE EXISTS (SELECT FROM fence))
             SELECT 1 FROM fence",
        )
        .bind(tenant.0)
        .bind(columns.day)
        .bind(columns.position)
        .bind(columns.subscription_no)
        .bind(columns.state)
        .bind(columns.attempt)
        .bind(columns.outcome_class)
        .bind(columns.status_code)
        .bind(columns.duration_us)
        .bind(columns.started_at)
        .bind(columns.excerpt)
        .bind(cursor.after)
        .bind(cursor.day)
        .bind(token)
        .bind(columns.reason)
        .fetch_optional(self.engine())
        .await
        .map_err(StoreError::from);
        match fence {
            Ok(Some(_)) => Ok(Some(Fenced::No)),
            Ok(None) => Ok(Some(Fenced::Yes)),
            Err(StoreError::Conflict { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Columns of final invocations.
#[derive(Default)]
struct Finals<'a> {
    day: Vec<NaiveDate>,
    position: Vec<i64>,
    subscription_no: Vec<i32>,
    state: Vec<i16>,
    attempt: Vec<i32>,
    outcome_class: Vec<i16>,
    status_code: Vec<i16>,
    duration_us: Vec<i32>,
    started_at: Vec<DateTime<Utc>>,
    excerpt: Vec<Option<&'a str>>,
    reason: Vec<Option<&'static str>>,
}

impl<'a> Finals<'a> {
    fn of(changes: impl Iterator<Item = &'a Settled>) -> Self {
        let mut columns = Self::default();
        for change in changes {
            let (state, reason) = match change.fate {
                Fate::Succeeded => (State::Succeeded, None),
                Fate::Cancelled(reason) => (State::Cancelled, Some(reason.as_str())),
                Fate::Deferred { .. } | Fate::Dead { .. } => continue,
            };
            let Some(tried) = &change.tried else { continue };
            let outcome = tried.outcome.as_ref();
            columns.day.push(change.day);
            columns.position.push(change.place.position);
            columns.subscription_no.push(change.place.subscription_no);
            columns.state.push(state_number(state));
            columns.attempt.push(tried.attempt);
            columns.outcome_class.push(outcome.map_or(0, |outcome| class_number(outcome.class)));
            columns.status_code.push(outcome.map_or(0, |outcome| status_number(outcome.status_code)));
            columns.duration_us.push(microseconds(tried.duration));
            columns.started_at.push(tried.started_at);
            columns.excerpt.push(outcome.and_then(|outcome| outcome.excerpt.as_deref()));
            columns.reason.push(reason);
        }
        columns
    }
}

async fn write_finals(connection: &mut PgConnection, tenant: TenantId, changes: &[Settled]) -> Result<(), StoreError> {
    let columns = Finals::of(changes.iter());
    let wanted = columns.position.len();
    if wanted == 0 {
        return Ok(());
    }
    let written = sqlx::query(
        "INSERT INTO outcomes (tenant_id, day, position, subscription_no, state, attempt, outcome_class, status_code,
                duration_us, started_at, excerpt, reason)
         SELECT $1, o.day, o.position, o.subscription_no, o.state, o.attempt, o.outcome_class, o.status_code,
                o.duration_us, o.started_at, o.excerpt, o.reason
           FROM unnest($2::date[], $3::bigint[], $4::integer[], $5::smallint[], $6::integer[], $7::smallint[], $8::smallint[],
                       $9::integer[], $10::timestamptz[], $11::text[], $12::text[])
                AS o(day, position, subscription_no, state, attempt, outcome_class, status_code, duration_us, started_at,
                     excerpt, reason)
         ON CONFLICT DO NOTHING",
    )
    .bind(tenant.0)
    .bind(columns.day)
    .bind(columns.position)
    .bind(columns.subscription_no)
    .bind(columns.state)
    .bind(columns.attempt)
    .bind(columns.outcome_class)
    .bind(columns.status_code)
    .bind(columns.duration_us)
    .bind(columns.started_at)
    .bind(columns.excerpt)
    .bind(columns.reason)
    .execute(&mut *connection)
    .await?;
    if usize::try_from(written.rows_affected()).unwrap_or_default() < wanted {
        write_late(&mut *connection, tenant, changes).await?;
    }
    let deferred = Keys::of(
        changes.iter().filter(|change| change.deferred && matches!(change.fate, Fate::Succeeded | Fate::Cancelled(_))),
    );
    if !deferred.position.is_empty() {
        sqlx::query(
            "DELETE FROM deferred_invocations d USING unnest($2::bigint[], $3::integer[]) AS k(position, subscription_no)
              WHERE d.tenant_id = $1 AND d.position = k.position AND d.subscription_no = k.subscription_no",
        )
        .bind(tenant.0)
        .bind(deferred.position)
        .bind(deferred.subscription_no)
        .execute(connection)
        .await?;
    }
    Ok(())
}

/// Records attempts that did not end their invocation well. The last attempt of a success is in its outcome.
async fn write_attempts(
    connection: &mut PgConnection,
    tenant: TenantId,
    changes: &[Settled],
) -> Result<(), StoreError> {
    let failed = |fate: &Fate| matches!(fate, Fate::Deferred { .. } | Fate::Dead { .. });
    insert_attempts(connection, tenant, changes, failed, "").await
}

/// Records attempts that succeeded after a caller had cancelled their invocation: it stays cancelled, and its record says the truth.
async fn write_late(executor: impl PgExecutor<'_>, tenant: TenantId, changes: &[Settled]) -> Result<(), StoreError> {
    let cancelled =
        "WHERE EXISTS (SELECT FROM outcomes o WHERE o.tenant_id = $1 AND o.day = a.day AND o.position = a.position
                        AND o.subscription_no = a.subscription_no AND o.state = 5)";
    insert_attempts(executor, tenant, changes, |fate| matches!(fate, Fate::Succeeded), cancelled).await
}

async fn insert_attempts(
    executor: impl PgExecutor<'_>,
    tenant: TenantId,
    changes: &[Settled],
    wanted: impl Fn(&Fate) -> bool,
    condition: &'static str,
) -> Result<(), StoreError> {
    let failed: Vec<(&Settled, &Tried, &Outcome)> = changes
        .iter()
        .filter(|change| wanted(&change.fate))
        .filter_map(|change| {
            let tried = change.tried.as_ref()?;
            Some((change, tried, tried.outcome.as_ref()?))
        })
        .collect();
    if failed.is_empty() {
        return Ok(());
    }
    let keys = Keys::of(failed.iter().map(|(change, _, _)| *change));
    let sql = format!(
        "INSERT INTO attempts (tenant_id, day, position, subscription_no, attempt, outcome_class, status_code, duration_us,
                started_at, excerpt, error)
         SELECT $1, a.day, a.position, a.subscription_no, a.attempt, a.outcome_class, a.status_code, a.duration_us,
                a.started_at, a.excerpt, a.error
           FROM unnest($2::date[], $3::bigint[], $4::integer[], $5::integer[], $6::smallint[], $7::smallint[], $8::integer[],
                       $9::timestamptz[], $10::text[], $11::text[])
                AS a(day, position, subscription_no, attempt, outcome_class, status_code, duration_us, started_at, excerpt, error)
         {condition} ON CONFLICT DO NOTHING"
    );
    sqlx::query(AssertSqlSafe(sql))
        .bind(tenant.0)
        .bind(keys.day)
        .bind(keys.position)
        .bind(keys.subscription_no)
        .bind(failed.iter().map(|(_, tried, _)| tried.attempt).collect::<Vec<_>>())
        .bind(failed.iter().map(|(_, _, outcome)| class_number(outcome.class)).collect::<Vec<_>>())
        .bind(failed.iter().map(|(_, _, outcome)| status_number(outcome.status_code)).collect::<Vec<_>>())
        .bind(failed.iter().map(|(_, tried, _)| microseconds(tried.duration)).collect::<Vec<_>>())
        .bind(failed.iter().map(|(_, tried, _)| tried.started_at).collect::<Vec<_>>())
        .bind(failed.iter().map(|(_, _, outcome)| outcome.excerpt.as_deref()).collect::<Vec<_>>())
        .bind(failed.iter().map(|(_, _, outcome)| outcome.error.as_deref()).collect::<Vec<_>>())
        .execute(executor)
        .await?;
    Ok(())
}

async fn write_deferred(
    connection: &mut PgConnection,
    tenant: TenantId,
    changes: &[Settled],
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    // A row that a caller has cancelled stays gone; a new one is not written for what a caller has cancelled. What a caller has made due
    // meanwhile is due from now: an attempt that is on record is none that an earlier end has cut off.
    const AGAIN: &str = "UPDATE deferred_invocations d
            SET attempt = k.attempt, attempt_base = k.attempt_base, hastened_at = NULL,
                due_at = CASE WHEN d.hastened_at IS NULL THEN k.due_at ELSE LEAST(k.due_at, $10) END
           FROM unnest($2::date[], $3::bigint[], $4::integer[], $5::integer[], $6::integer[], $7::timestamptz[], $9::uuid[])
                AS k(day, position, subscription_no, attempt, attempt_base, due_at, ordering_key)
          WHERE d.tenant_id = $1 AND d.position = k.position AND d.subscription_no = k.subscription_no AND d.attempt < k.attempt AND $8 >= 0";
    const FIRST: &str =
        "INSERT INTO deferred_invocations (tenant_id, day, position, subscription_no, attempt, attempt_base, due_at, shard, ordering_key)
         SELECT $1, k.day, k.position, k.subscription_no, k.attempt, k.attempt_base, k.due_at, $8, k.ordering_key
           FROM unnest($2::date[], $3::bigint[], $4::integer[], $5::integer[], $6::integer[], $7::timestamptz[], $9::uuid[])
                AS k(day, position, subscription_no, attempt, attempt_base, due_at, ordering_key)
          WHERE NOT EXISTS (SELECT FROM outcomes o WHERE o.tenant_id = $1 AND o.day = k.day AND o.position = k.position
                               AND o.subscription_no = k.subscription_no) AND $10::timestamptz IS NOT NULL
         ON CONFLICT DO NOTHING";
    // New rows first: an invocation that was put aside while it ran may have ended within the same settle.
    for (sql, has_row) in [(FIRST, false), (AGAIN, true)] {
        let mut keys = Keys::default();
        let (mut attempts, mut bases, mut due_ats) = (Vec::new(), Vec::new(), Vec::new());
        for change in changes.iter().filter(|change| change.deferred == has_row) {
            if let Fate::Deferred { attempt, base, due_at } = change.fate {
                keys.push(change);
                attempts.push(attempt);
                bases.push(base);
                due_ats.push(due_at);
            }
        }
        if keys.position.is_empty() {
            continue;
        }
        sqlx::query(sql)
            .bind(tenant.0)
            .bind(keys.day)
            .bind(keys.position)
            .bind(keys.subscription_no)
            .bind(attempts)
            .bind(bases)
            .bind(due_ats)
            .bind(shard_of(tenant))
            .bind(keys.ordering_key)
            .bind(now)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

async fn write_dead(connection: &mut PgConnection, tenant: TenantId, changes: &[Settled]) -> Result<(), StoreError> {
    const INTO: &str =
        "INSERT INTO dead_letters (tenant_id, day, position, subscription_no, attempt, dead_at, ordering_key, registry_version)
         SELECT $1, k.day, k.position, k.subscription_no, k.attempt, k.dead_at, k.ordering_key, k.version
           FROM unnest($2::date[], $3::bigint[], $4::integer[], $5::integer[], $6::timestamptz[], $7::uuid[], $8::bigint[])
                AS k(day, position, subscription_no, attempt, dead_at, ordering_key, version)";
    // A settle may be repeated after its answer was lost, and a caller may have redriven the dead letter in between: the row of
    // that stays, and is known by an attempt number that is not lower.
    let from_deferred = format!(
        "WITH gone AS (
             DELETE FROM deferred_invocations d USING unnest($3::bigint[], $4::integer[], $5::integer[])
                    AS k(position, subscription_no, attempt)
              WHERE d.tenant_id = $1 AND d.position = k.position AND d.subscription_no = k.subscription_no AND d.attempt < k.attempt
             RETURNING d.position, d.subscription_no)
         {INTO} JOIN gone g ON g.position = k.position AND g.subscription_no = k.subscription_no ON CONFLICT DO NOTHING"
    );
    let at_once = format!(
        "{INTO} WHERE NOT EXISTS (SELECT FROM outcomes o WHERE o.tenant_id = $1 AND o.day = k.day AND o.position = k.position
                               AND o.subscription_no = k.subscription_no)
            AND NOT EXISTS (SELECT FROM deferred_invocations d WHERE d.tenant_id = $1 AND d.position = k.position
                               AND d.subscription_no = k.subscription_no) ON CONFLICT DO NOTHING"
    );
    for (sql, has_row) in [(from_deferred, true), (at_once, false)] {
        let mut keys = Keys::default();
        let (mut attempts, mut dead_ats, mut versions) = (Vec::new(), Vec::new(), Vec::new());
        for change in changes.iter().filter(|change| change.deferred == has_row) {
            if let Fate::Dead { at, version } = change.fate {
                keys.push(change);
                attempts.push(change.tried.as_ref().map_or(0, |tried| tried.attempt));
                dead_ats.push(at);
                versions.push(version);
            }
        }
        if keys.position.is_empty() {
            continue;
        }
        sqlx::query(AssertSqlSafe(sql))
            .bind(tenant.0)
            .bind(keys.day)
            .bind(keys.position)
            .bind(keys.subscription_no)
            .bind(attempts)
            .bind(dead_ats)
            .bind(keys.ordering_key)
            .bind(versions)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// Key columns.
#[derive(Default)]
struct Keys {
    day: Vec<NaiveDate>,
    position: Vec<i64>,
    subscription_no: Vec<i32>,
    ordering_key: Vec<Option<Uuid>>,
}

impl Keys {
    fn of<'a>(changes: impl Iterator<Item = &'a Settled>) -> Self {
        let mut keys = Self::default();
        changes.for_each(|change| keys.push(change));
        keys
    }

    fn push(&mut self, change: &Settled) {
        self.day.push(change.day);
        self.position.push(change.place.position);
        self.subscription_no.push(change.place.subscription_no);
        self.ordering_key.push(change.key.map(|key| key.0));
    }
}

fn status_number(status: u16) -> i16 {
    i16::try_from(status).unwrap_or_default()
}

/// Whole microseconds, at most 35 minutes: attempts end long before.
fn microseconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_micros()).unwrap_or(i32::MAX)
}
