//! Events that are accepted and not in the log: delayed ones, and PRE events whose listeners are asked.
//!
//! Such an event has a row in `pending_events` and no position, so nobody reads it by chance. It leaves by exactly one statement: the
//! row is deleted where the event is committed, with its position, its outcomes and its place in the log; or it becomes final. Every
//! write of an owner names the row's token; a new owner raises it, so that the former one's writes affect nothing.

mod asked;
mod commit;
mod due;
mod verdicts;

pub use commit::{CommittedPending, PendingCommit};
pub use due::DueEvent;

use super::events::{
    COLUMNS as EVENT_COLUMNS, DATA_BINARY, DATA_NONE, DATA_PROTO, DATA_TEXT, EventRow, encode_extensions, encode_proto,
};
use super::publish::NewKey;
use super::{Store, StoreError, health};
use crate::domain::event::{Data, Event, LogEntry};
use crate::domain::health::HealthRow;
use crate::domain::ids::{EventId, SubscriptionNo, TenantId};
use crate::domain::pre::AbortReason;
use chrono::{DateTime, Utc};
use sqlx::{FromRow as _, Row as _};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

/// What a pending event waits for, or how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PendingState {
    /// For its time.
    Scheduled,
    /// For its listeners.
    Gated,
    /// Its listeners did not let it pass.
    Aborted,
    /// A caller took it back.
    Cancelled,
}

/// A row of `pending_events`.
#[derive(Debug, Clone)]
pub struct PendingEvent {
    /// Whose event.
    pub tenant: TenantId,
    /// The event with what it fires; position 0, committed when it was accepted.
    pub entry: Arc<LogEntry>,
    /// What it waits for.
    pub state: PendingState,
    /// Fences its owners.
    pub token: i64,
    /// When the listeners must have answered.
    pub deadline_at: Option<DateTime<Utc>>,
    /// How long the listeners have.
    pub pre_timeout: Duration,
    /// Of a delayed event, also once it is due: the time that it was delayed to.
    pub deliver_at: Option<DateTime<Utc>>,
    /// The highest number of an attempt that is written down; 0 where none was needed.
    pub attempted: i32,
    /// Why it was aborted, in a word and a sentence.
    pub abort: Option<(AbortReason, String)>,
}

/// How a pending event stands, without the event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// What it waits for.
    pub state: PendingState,
    /// Of a delayed event, also once it is due: the time that it was delayed to.
    pub deliver_at: Option<DateTime<Utc>>,
    /// Why it was aborted, in a word and a sentence.
    pub abort: Option<(AbortReason, String)>,
}

/// What a new pending event waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitsFor {
    /// Its time.
    Time(DateTime<Utc>),
    /// Its listeners.
    Listeners {
        /// When they must have answered.
        deadline_at: DateTime<Utc>,
        /// How long the acceptor owns it from the statement on.
        lease: Duration,
    },
}

/// An event to accept.
#[derive(Debug, Clone)]
pub struct NewPending {
    /// Whose event.
    pub tenant: TenantId,
    /// The event, with the schema version it was checked against.
    pub event: Arc<Event>,
    /// The subscriptions it fires; none is stored for a delayed event, which is matched at its time.
    pub matched: Arc<[SubscriptionNo]>,
    /// The subscriptions that its lineage refuses.
    pub refused: Arc<[SubscriptionNo]>,
    /// The registry version that this was decided with.
    pub registry_version: i64,
    /// The publisher's key, and when it may be forgotten.
    pub key: Option<(NewKey, DateTime<Utc>)>,
    /// What it waits for.
    pub waits_for: WaitsFor,
    /// How long the listeners have.
    pub pre_timeout: Duration,
    /// How many of its kind the tenant may have.
    pub max: i64,
}

/// Whether an event was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted {
    /// It is on disk.
    Yes {
        /// How the receivers that it fires do, as far as that is kept.
        health: Vec<HealthRow>,
    },
    /// The registry moved on: match again.
    Stale,
    /// The tenant has as many as it may.
    Full,
}

/// How many events of a tenant wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// For their time.
    pub scheduled: usize,
    /// For their listeners.
    pub gated: usize,
}

const SCHEDULED: i16 = 1;
const GATED: i16 = 2;
const ABORTED: i16 = 3;
const CANCELLED: i16 = 4;

const TOKEN_FIRST: i64 = 1;

fn columns() -> String {
    let event = EVENT_COLUMNS.replace("position, ", "").replace("committed_at, ", "");
    format!(
        "tenant_id, 0::bigint AS position, created_at AS committed_at, {event}, {}, token, deadline_at, \
         pre_timeout_ms, attempted",
        standing_columns()
    )
}

impl Store {
    /// Accepts an event. Errors: [`StoreError::Conflict`] with the idempotency constraint where its key was used before.
    pub async fn accept_pending(&self, new: &NewPending) -> Result<Accepted, StoreError> {
        let event = &*new.event;
        let (state, due_at, lease, deadline_at) = match new.waits_for {
            WaitsFor::Time(at) => (SCHEDULED, Some(at), None, None),
            WaitsFor::Listeners { deadline_at, lease } => (GATED, None, Some(lease), Some(deadline_at)),
        };
        let (kind, data) = data_columns(&event.data);
        let key = new.key.as_ref();
        // Reading the registry version in the same statement makes the match exact: a change that was answered before this call is
        // seen, and one that runs beside it comes after. The count has no lock: of statements at the same moment none sees what the others
        // insert, so they may go over the bound together, which is cheaper than to make them wait for each other. Reading how the receivers do costs a listener that is well nothing: it has no row.
        let sql = format!(
            "WITH head AS (SELECT tenant_id FROM tenant_heads WHERE tenant_id = $1 AND registry_version = $2),
             room AS (
                 SELECT count(*) AS n FROM (
                     SELECT FROM pending_events WHERE tenant_id = $1 AND state = $3 AND due_at IS NOT NULL LIMIT $4) AS c),
             accepted AS (
                 INSERT INTO pending_events (tenant_id, event_id, state, token, due_at, deadline_at, pre_timeout_ms, created_at,
                        event_type, schema_version, source, subject, event_time, content_type, extensions, data_kind, data,
                        matched, refused, root_id, cause_event_id, cause_subscription_no, depth, lineage)
                 SELECT h.tenant_id, $5, $3, $6, COALESCE($7, clock_timestamp() + $30), $8, $9, $10, $11, $12, $13, $14, $15, $16,
                        $17, $18, $19, $20, $21, $22, $23, $24, $25, $26
                   FROM head h CROSS JOIN room r WHERE r.n < $4
                 RETURNING tenant_id, event_id),
             keyed AS (
                 INSERT INTO idempotency_keys (tenant_id, key, request_hash, event_id, expires_at)
                 SELECT a.tenant_id, $27, $28, a.event_id, $29 FROM accepted a WHERE $27::text IS NOT NULL)
             SELECT (SELECT count(*) FROM head) AS fresh, (SELECT count(*) FROM accepted) AS accepted, {}
               FROM (SELECT 1) AS one LEFT JOIN subscription_health ON tenant_id = $1 AND subscription_no = ANY($20)",
            health::COLUMNS
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(new.tenant.0)
            .bind(new.registry_version)
            .bind(state)
            .bind(new.max)
            .bind(event.id.0)
            .bind(TOKEN_FIRST)
            .bind(due_at)
            .bind(deadline_at)
            .bind(milliseconds(new.pre_timeout))
            .bind(self.now())
            .bind(event.event_type.as_str())
            .bind(event.schema_version)
            .bind(&event.source)
            .bind(event.subject.as_deref())
            .bind(event.time)
            .bind(event.content_type.as_deref())
            .bind(encode_extensions(&event.extensions))
            .bind(kind)
            .bind(data.as_ref())
            .bind(&*new.matched)
            .bind(&*new.refused)
            .bind(event.lineage.root.0)
            .bind(event.lineage.cause.map(|cause| cause.event.0))
            .bind(event.lineage.cause.map(|cause| cause.subscription_no))
            .bind(event.lineage.depth)
            .bind(&event.lineage.subscriptions)
            .bind(key.map(|(key, _)| key.key.as_str()))
            .bind(key.map(|(key, _)| key.request_hash.as_slice()))
            .bind(key.map(|(_, expires_at)| *expires_at))
            .bind(lease)
            .fetch_all(self.engine())
            .await?;
        let first = rows.first().ok_or(StoreError::Corrupt { what: "accepted event" })?;
        Ok(match (first.try_get::<i64, _>("fresh")?, first.try_get::<i64, _>("accepted")?) {
            (0, _) => Accepted::Stale,
            (_, 0) => Accepted::Full,
            _ => {
                let mut health = Vec::new();
                for row in &rows {
                    if row.try_get::<Option<SubscriptionNo>, _>("subscription_no")?.is_some() {
                        health.push(health::parse(row)?);
                    }
                }
                Accepted::Yes { health }
            }
        })
    }

    /// How many events of a tenant wait, counted up to bounds.
    pub async fn count_pending(
        &self,
        tenant: TenantId,
        scheduled_max: u32,
        gated_max: u32,
    ) -> Result<Waiting, StoreError> {
        let of_state = |state: i16, max: &str| {
            format!(
                "(SELECT count(*) FROM (SELECT FROM pending_events WHERE tenant_id = $1 AND state = {state} AND due_at IS NOT NULL
                   LIMIT {max}) AS c)"
            )
        };
        let sql = format!("SELECT {}, {}", of_state(SCHEDULED, "$2"), of_state(GATED, "$3"));
        let (scheduled, gated): (i64, i64) = sqlx::query_as(sqlx::AssertSqlSafe(sql))
            .bind(tenant.0)
            .bind(i64::from(scheduled_max))
            .bind(i64::from(gated_max))
            .fetch_one(self.as_tenant(tenant))
            .await?;
        let count = |many| usize::try_from(many).unwrap_or_default();
        Ok(Waiting { scheduled: count(scheduled), gated: count(gated) })
    }

    /// The token of an event that was just accepted.
    pub fn first_pending_token() -> i64 {
        TOKEN_FIRST
    }

    /// Keeps an event whose listeners are asked for another `lease`; answers when a publisher last asked for it elsewhere. None where it
    /// is not the caller's any more.
    pub async fn renew_pending(
        &self,
        tenant: TenantId,
        event: EventId,
        token: i64,
        lease: Duration,
    ) -> Result<Option<Option<DateTime<Utc>>>, StoreError> {
        Ok(sqlx::query_scalar(
            "UPDATE pending_events SET due_at = clock_timestamp() + $4
              WHERE tenant_id = $1 AND event_id = $2 AND token = $3 AND state = 2
             RETURNING attached_at",
        )
        .bind(tenant.0)
        .bind(event.0)
        .bind(token)
        .bind(lease)
        .fetch_optional(self.engine())
        .await?)
    }

    /// Tells the owner of an event that somebody waits for it here.
    pub async fn attach_pending(&self, tenant: TenantId, event: EventId) -> Result<(), StoreError> {
        sqlx::query("UPDATE pending_events SET attached_at = $3 WHERE tenant_id = $1 AND event_id = $2 AND state = 2")
            .bind(tenant.0)
            .bind(event.0)
            .bind(self.now())
            .execute(self.engine())
            .await?;
        Ok(())
    }

    /// A delayed event that is due begins to ask its listeners. False where the registry moved on or it is not the caller's.
    pub async fn gate_pending(&self, token: i64, new: &NewPending) -> Result<bool, StoreError> {
        let WaitsFor::Listeners { deadline_at, lease } = new.waits_for else { return Ok(false) };
        let done = sqlx::query(
            "UPDATE pending_events p SET state = 2, matched = $5, refused = $6, deadline_at = $7, due_at = clock_timestamp() + $8,
                    schema_version = $9
               FROM tenant_heads h
              WHERE p.tenant_id = $1 AND p.event_id = $2 AND p.token = $3 AND p.state = 1
                AND h.tenant_id = p.tenant_id AND h.registry_version = $4",
        )
        .bind(new.tenant.0)
        .bind(new.event.id.0)
        .bind(token)
        .bind(new.registry_version)
        .bind(&*new.matched)
        .bind(&*new.refused)
        .bind(deadline_at)
        .bind(lease)
        .bind(new.event.schema_version)
        .execute(self.engine())
        .await?;
        Ok(done.rows_affected() > 0)
    }
}

/// The time that an event was delayed to, which is when it is due until it is claimed.
const DELIVER_AT: &str = "COALESCE(deliver_at, CASE WHEN state = 1 THEN due_at END)";

fn standing_columns() -> String {
    format!("state, {DELIVER_AT} AS deliver_at, abort_reason, abort_message")
}

fn state_code(state: PendingState) -> i16 {
    match state {
        PendingState::Scheduled => SCHEDULED,
        PendingState::Gated => GATED,
        PendingState::Aborted => ABORTED,
        PendingState::Cancelled => CANCELLED,
    }
}

fn parse_state(code: i16) -> Result<PendingState, StoreError> {
    Ok(match code {
        SCHEDULED => PendingState::Scheduled,
        GATED => PendingState::Gated,
        ABORTED => PendingState::Aborted,
        CANCELLED => PendingState::Cancelled,
        _ => return Err(StoreError::Corrupt { what: "pending state" }),
    })
}

fn parse_standing(row: &sqlx::postgres::PgRow) -> Result<Standing, StoreError> {
    let state = parse_state(row.try_get("state")?)?;
    let abort = match row.try_get::<Option<i16>, _>("abort_reason")? {
        None => None,
        Some(code) => {
            let reason = verdicts::parse_reason(code).ok_or(StoreError::Corrupt { what: "abort reason" })?;
            Some((reason, row.try_get::<Option<String>, _>("abort_message")?.unwrap_or_default()))
        }
    };
    Ok(Standing { state, deliver_at: row.try_get("deliver_at")?, abort })
}

fn parse(row: &sqlx::postgres::PgRow) -> Result<PendingEvent, StoreError> {
    let entry = EventRow::from_row(row)?.parse()?;
    let Standing { state, deliver_at, abort } = parse_standing(row)?;
    Ok(PendingEvent {
        tenant: TenantId(row.try_get("tenant_id")?),
        entry: Arc::new(entry),
        state,
        token: row.try_get("token")?,
        deadline_at: row.try_get("deadline_at")?,
        pre_timeout: Duration::from_millis(u64::try_from(row.try_get::<i32, _>("pre_timeout_ms")?).unwrap_or_default()),
        deliver_at,
        attempted: row.try_get("attempted")?,
        abort,
    })
}

/// Kind and bytes of the data, as in `events`.
fn data_columns(data: &Data) -> (i16, Cow<'_, [u8]>) {
    match data {
        Data::None => (DATA_NONE, (&[] as &[u8]).into()),
        Data::Binary(bytes) => (DATA_BINARY, bytes.as_ref().into()),
        Data::Text(bytes) => (DATA_TEXT, bytes.as_ref().into()),
        Data::Proto { type_url, value } => (DATA_PROTO, encode_proto(type_url, value).into()),
    }
}

fn milliseconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}
