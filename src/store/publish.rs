//! Committing events: positions, events with everything they fire, and idempotency keys, in one statement and one round trip.
//!
//! The statement locks each tenant's head row until commit, so positions are gapless and in commit order. It writes nothing
//! for a tenant whose registry version is not the expected one: the caller reloads its index, matches again and comes back. Nor for one
//! of whose calls repeats a key: it answers with what that was used for, and the caller comes back with the others. Of events that follow
//! from others it answers what they fire: the budget of their chain may not reach for all of it.

use super::chain_budgets::{self, Charges, Clauses};
use super::connect::IDLE_TRUSTED;
use super::events::{DATA_BINARY, DATA_NONE, DATA_PROTO, DATA_TEXT, encode_extensions, encode_proto};
use super::{Store, StoreError};
use crate::domain::event::{Data, Event};
use crate::domain::ids::{EventId, Position, SubscriptionNo, TenantId};
use crate::planted::{self, Defect};
use chrono::{DateTime, Utc};
use sqlx::{Connection as _, PgConnection, Row as _};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Name of the constraint that a repeated idempotency key breaks.
pub const IDEMPOTENCY_CONSTRAINT: &str = "idempotency_keys_pk";

/// An event to write, with what it fires.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// The event.
    pub event: Arc<Event>,
    /// The subscriptions it fires.
    pub matched: Arc<[SubscriptionNo]>,
    /// The subscriptions that its lineage refuses.
    pub refused: Arc<[SubscriptionNo]>,
    /// The publisher's idempotency key with the hash of the request.
    pub key: Option<NewKey>,
}

/// An idempotency key and what it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewKey {
    /// At most 1,024 bytes.
    pub key: String,
    /// SHA-256 over the request.
    pub request_hash: [u8; 32],
}

/// One tenant's share of a commit.
#[derive(Debug)]
pub struct TenantBatch {
    /// Whose log.
    pub tenant: TenantId,
    /// The registry version that the matches were decided with.
    pub registry_version: i64,
    /// In log order.
    pub events: Vec<NewEvent>,
}

/// Where a tenant's share went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommittedBatch {
    /// Whose log.
    pub tenant: TenantId,
    /// Position of the first event.
    pub first_position: Position,
    /// Commit time of all of them.
    pub committed_at: DateTime<Utc>,
}

/// What a commit came to.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The shares that were written.
    pub written: Vec<CommittedBatch>,
    /// The keys that were used before. Of their tenants nothing was written.
    pub used: Vec<UsedKey>,
    /// What the budgets of their chains have left of the events that follow from others, where any of them fires something.
    pub decided: HashMap<EventId, Decided>,
}

/// What an event fires, and what it refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// The subscriptions it fires.
    pub matched: Arc<[SubscriptionNo]>,
    /// The subscriptions that its lineage, or the budget of its chain, refuses.
    pub refused: Arc<[SubscriptionNo]>,
}

/// A key that was used before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsedKey {
    /// Whose key.
    pub tenant: TenantId,
    /// The key.
    pub key: String,
    /// SHA-256 over the first request.
    pub request_hash: Vec<u8>,
    /// The event it made.
    pub event: EventId,
}

/// The head rows of several tenants are locked in tenant order, so that two replicas never wait for each other in a circle.
const LOCK_MANY: &str = "locked AS MATERIALIZED (
        SELECT h.tenant_id, w.n, w.version FROM tenant_heads h JOIN want w ON h.tenant_id = w.tenant_id
         ORDER BY h.tenant_id FOR UPDATE OF h)";
/// The same without the heads that somebody else holds.
const LOCK_FREE: &str = "locked AS MATERIALIZED (
        SELECT h.tenant_id, w.n, w.version FROM tenant_heads h JOIN want w ON h.tenant_id = w.tenant_id
         ORDER BY h.tenant_id FOR UPDATE OF h SKIP LOCKED)";
/// One head row needs no order: the update itself takes the lock.
const LOCK_ONE: &str = "locked AS (SELECT w.tenant_id, w.n, w.version FROM want w)";

/// The locks alone, in the same order. A statement that begins once it has them sees all that was committed under them.
const LOCK_FIRST: &str = "SELECT FROM tenant_heads WHERE tenant_id = ANY($1) ORDER BY tenant_id FOR UPDATE";

/// The keys of a commit that were used before.
const USED: &str = "used AS MATERIALIZED (
        SELECT k.tenant_id, i.key, i.request_hash, i.event_id FROM unnest($24::uuid[], $25::text[]) AS k(tenant_id, key)
          JOIN idempotency_keys i ON i.tenant_id = k.tenant_id AND i.key = k.key),
    ";
/// Nothing is written of a tenant of theirs.
const UNUSED: &str = "
           AND NOT EXISTS (SELECT FROM used u WHERE u.tenant_id = h.tenant_id)";
/// Takes the others.
const TAKEN: &str = ",
    keyed AS (
        INSERT INTO idempotency_keys (tenant_id, key, request_hash, event_id, expires_at)
        SELECT h.tenant_id, k.key, k.request_hash, k.event_id, $28
          FROM unnest($24::uuid[], $25::text[], $26::bytea[], $27::uuid[]) AS k(tenant_id, key, request_hash, event_id)
          JOIN head h ON h.tenant_id = k.tenant_id)";
/// Tells what was used before.
const ANSWERS: &str = "
     UNION ALL
    SELECT tenant_id, NULL, NULL, key, request_hash, event_id";

/// What the events of a commit bring with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Keyed,
    /// Some spend of the budget of their chain; any may have keys.
    Chained,
}

fn statement(lock: &str, kind: Kind) -> String {
    let at = if planted::has(Defect::MisdateCommits) {
        "$4 - h.position % 2 * interval '1 s'"
    } else {
        "GREATEST(h.committed_at, $4)"
    };
    // Most commits have no keys, and then what is about them would cost each a sixth of its time.
    let (used, unused, taken) = if kind == Kind::Plain { ("", "", "") } else { (USED, UNUSED, TAKEN) };
    let answers = match kind {
        Kind::Plain => String::new(),
        Kind::Keyed => format!("{ANSWERS} FROM used"),
        Kind::Chained => format!("{ANSWERS}, NULL, NULL FROM used"),
    };
    let clauses = if kind == Kind::Chained { chain_budgets::SOME } else { chain_budgets::NONE };
    let Clauses { charged, parameter, column, joined, matched, refused, returning, no_lists, lists } = clauses;
    format!(
        "WITH {used}want AS (
        SELECT w.tenant_id, w.n, w.version FROM unnest($1::uuid[], $2::bigint[], $3::bigint[]) AS w(tenant_id, n, version)),
    {lock},
    head AS (
        UPDATE tenant_heads h
           SET position = h.position + l.n, committed_at = {at}, changed_at = $4
          FROM locked l WHERE h.tenant_id = l.tenant_id AND h.registry_version = l.version{unused}
        RETURNING h.tenant_id, h.position - l.n AS base, h.committed_at),{charged}
    written AS (
        INSERT INTO events (tenant_id, day, position, event_id, committed_at, event_type, schema_version, source, subject, event_time,
               content_type, extensions, data_kind, data, matched, refused, root_id, cause_event_id, cause_subscription_no, depth, lineage)
        SELECT h.tenant_id, (h.committed_at AT TIME ZONE 'UTC')::date, h.base + e.ordinal, e.event_id, h.committed_at, e.event_type,
               e.schema_version, e.source, e.subject, e.event_time, e.content_type, e.extensions, e.data_kind, e.data,
               {matched}, {refused}, e.root_id, e.cause_event_id, e.cause_subscription_no, e.depth, e.lineage::integer[]
          FROM unnest($5::uuid[], $6::bigint[], $7::uuid[], $8::text[], $9::integer[], $10::text[], $11::text[], $12::timestamptz[],
               $13::text[], $14::bytea[], $15::smallint[], $16::bytea[], $17::text[], $18::text[], $19::uuid[], $20::uuid[],
               $21::integer[], $22::integer[], $23::text[]{parameter})
               AS e(tenant_id, ordinal, event_id, event_type, schema_version, source, subject, event_time, content_type, extensions,
                    data_kind, data, matched, refused, root_id, cause_event_id, cause_subscription_no, depth, lineage{column})
          JOIN head h ON h.tenant_id = e.tenant_id{joined}{returning}){taken}
    SELECT tenant_id, base, committed_at, NULL::text AS key, NULL::bytea AS request_hash, NULL::uuid AS event_id{no_lists}
      FROM head{answers}{lists}"
    )
}

/// Column-wise parameters of the statement.
#[derive(Default)]
struct Columns<'a> {
    tenant_id: Vec<Uuid>,
    ordinal: Vec<i64>,
    event_id: Vec<Uuid>,
    event_type: Vec<&'a str>,
    schema_version: Vec<i32>,
    source: Vec<&'a str>,
    subject: Vec<Option<&'a str>>,
    event_time: Vec<DateTime<Utc>>,
    content_type: Vec<Option<&'a str>>,
    extensions: Vec<Vec<u8>>,
    data_kind: Vec<i16>,
    data: Vec<std::borrow::Cow<'a, [u8]>>,
    matched: Vec<String>,
    refused: Vec<String>,
    root_id: Vec<Uuid>,
    cause_event_id: Vec<Option<Uuid>>,
    cause_subscription_no: Vec<Option<i32>>,
    depth: Vec<i32>,
    lineage: Vec<String>,
    key_tenant_id: Vec<Uuid>,
    key: Vec<&'a str>,
    key_hash: Vec<&'a [u8]>,
    key_event_id: Vec<Uuid>,
}

impl<'a> Columns<'a> {
    fn push(&mut self, tenant: TenantId, ordinal: i64, new: &'a NewEvent) {
        let event = &*new.event;
        self.tenant_id.push(tenant.0);
        self.ordinal.push(ordinal);
        self.event_id.push(event.id.0);
        self.event_type.push(event.event_type.as_str());
        self.schema_version.push(event.schema_version);
        self.source.push(&event.source);
        self.subject.push(event.subject.as_deref());
        self.event_time.push(event.time);
        self.content_type.push(event.content_type.as_deref());
        self.extensions.push(encode_extensions(&event.extensions));
        let (kind, data) = match &event.data {
            Data::None => (DATA_NONE, (&[] as &[u8]).into()),
            Data::Binary(bytes) => (DATA_BINARY, bytes.as_ref().into()),
            Data::Text(bytes) => (DATA_TEXT, bytes.as_ref().into()),
            Data::Proto { type_url, value } => (DATA_PROTO, encode_proto(type_url, value).into()),
        };
        self.data_kind.push(kind);
        self.data.push(data);
        let lost = planted::has(Defect::LoseFanOut) && event.id.0.as_bytes()[15].is_multiple_of(16);
        self.matched.push(if lost { int_array(&[]) } else { int_array(&new.matched) });
        self.refused.push(int_array(&new.refused));
        self.root_id.push(event.lineage.root.0);
        self.cause_event_id.push(event.lineage.cause.map(|cause| cause.event.0));
        self.cause_subscription_no.push(event.lineage.cause.map(|cause| cause.subscription_no));
        self.depth.push(event.lineage.depth);
        self.lineage.push(int_array(&event.lineage.subscriptions));
        if let Some(key) = new.key.as_ref().filter(|_| !planted::has(Defect::ForgetKeys)) {
            self.key_tenant_id.push(tenant.0);
            self.key.push(&key.key);
            self.key_hash.push(&key.request_hash);
            self.key_event_id.push(event.id.0);
        }
    }
}

/// Arrays of arrays cannot be ragged in Postgres, so inner arrays travel as their text form.
fn int_array(numbers: &[i32]) -> String {
    let mut text = String::with_capacity(2 + numbers.len() * 4);
    text.push('{');
    for (i, number) in numbers.iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        write!(text, "{comma}{number}").expect("writing to a string cannot fail");
    }
    text.push('}');
    text
}

/// What a commit does about a tenant whose head somebody else holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnLocked {
    /// Waits as long as the connection's patience allows.
    Wait,
    /// The same, before the statement begins: it then sees every key that others have written while it waited.
    WaitFirst,
    /// Leaves it out.
    Skip,
}

/// A connection that commits keep, beside those of the pool: taking one from it and giving it back would cost two further
/// round trips each.
pub struct CommitConnection {
    store: Store,
    connection: Option<PgConnection>,
    used_at: Instant,
    patience: Duration,
    patient: bool,
}

impl CommitConnection {
    /// True where it waits for a lock for as long as callers may wait.
    pub fn is_patient(&self) -> bool {
        self.patient
    }

    /// The connection, alive as far as can be known: one that was idle for long is asked for a sign of life first.
    pub(in crate::store) async fn get(&mut self) -> Result<&mut PgConnection, StoreError> {
        if self.used_at.elapsed() > IDLE_TRUSTED
            && let Some(connection) = &mut self.connection
            && connection.ping().await.is_err()
        {
            self.connection = None;
        }
        self.used_at = Instant::now();
        match &mut self.connection {
            Some(connection) => Ok(connection),
            none => {
                // Beside the pool, so that closing the pool does not wait for it. Its patience is a setting of its start: one that
                // is set by a statement would stay with the connection of a pooler.
                let patience = self.patience.as_millis().max(1).to_string();
                Ok(none.insert(self.store.engine().connect("lock_timeout", &patience).await?))
            }
        }
    }

    /// Commits the shares of several tenants; `batches` holds each tenant once.
    ///
    /// Returns the shares that were written, and the keys that were used before. A share that is missing has such a key, had another
    /// registry version, or was locked and skipped; it wrote nothing. What follows from one event fires `chain_budget` invocations at most.
    ///
    /// Errors: [`StoreError::Conflict`] with [`IDEMPOTENCY_CONSTRAINT`] where somebody else took a key while this waited for a lock,
    /// [`StoreError::Locked`], and then nothing at all is written; [`StoreError::PartitionMissing`]; with [`StoreError::Unavailable`] the outcome may be
    /// unknown.
    pub async fn commit_events(
        &mut self,
        batches: &[TenantBatch],
        keys_expire_at: DateTime<Utc>,
        chain_budget: u32,
        on_locked: OnLocked,
    ) -> Result<Committed, StoreError> {
        let mut columns = Columns::default();
        for batch in batches {
            for (ordinal, new) in (1..).zip(&batch.events) {
                columns.push(batch.tenant, ordinal, new);
            }
        }
        let tenants: Vec<Uuid> = batches.iter().map(|batch| batch.tenant.0).collect();
        let counts: Vec<i64> =
            batches.iter().map(|batch| i64::try_from(batch.events.len()).unwrap_or(i64::MAX)).collect();
        let versions: Vec<i64> = batches.iter().map(|batch| batch.registry_version).collect();
        let data: Vec<&[u8]> = columns.data.iter().map(AsRef::as_ref).collect();
        let statements = self.store.statements();
        let charges = Charges::of(batches);
        let kind = match &charges {
            Some(_) => Kind::Chained,
            None if columns.key.is_empty() => Kind::Plain,
            None => Kind::Keyed,
        };
        let sql = match on_locked {
            OnLocked::Skip => statements.free.of(kind),
            OnLocked::Wait | OnLocked::WaitFirst if batches.len() == 1 => statements.one.of(kind),
            OnLocked::Wait | OnLocked::WaitFirst => statements.many.of(kind),
        };
        let now = self.store.now();
        let pool = self.store.engine().clone();
        let mut commit = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(tenants.clone())
            .bind(counts)
            .bind(versions)
            .bind(now)
            .bind(columns.tenant_id)
            .bind(columns.ordinal)
            .bind(columns.event_id)
            .bind(columns.event_type)
            .bind(columns.schema_version)
            .bind(columns.source)
            .bind(columns.subject)
            .bind(columns.event_time)
            .bind(columns.content_type)
            .bind(columns.extensions)
            .bind(columns.data_kind)
            .bind(data)
            .bind(columns.matched)
            .bind(columns.refused)
            .bind(columns.root_id)
            .bind(columns.cause_event_id)
            .bind(columns.cause_subscription_no)
            .bind(columns.depth)
            .bind(columns.lineage);
        if kind != Kind::Plain {
            commit = commit
                .bind(columns.key_tenant_id)
                .bind(columns.key)
                .bind(columns.key_hash)
                .bind(columns.key_event_id)
                .bind(keys_expire_at);
        }
        if let Some(Charges { rest, tenant_id, root_id, fires }) = charges {
            commit = commit.bind(rest).bind(tenant_id).bind(root_id).bind(fires).bind(i64::from(chain_budget));
        }
        let rows = pool
            .within(async {
                let connection = self.get().await?;
                if on_locked != OnLocked::WaitFirst {
                    return Ok(commit.fetch_all(connection).await?);
                }
                let mut transaction = connection.begin().await?;
                sqlx::query(LOCK_FIRST).bind(tenants).execute(&mut *transaction).await?;
                let rows = commit.fetch_all(&mut *transaction).await?;
                transaction.commit().await?;
                Ok(rows)
            })
            .await;
        if matches!(rows, Err(StoreError::Unavailable(_))) {
            // It may be broken, or still be busy with what nobody waits for any longer.
            self.connection = None;
        }
        let mut committed = Committed::default();
        for row in rows? {
            let tenant = TenantId(row.try_get("tenant_id")?);
            if let Some(base) = row.try_get::<Option<i64>, _>("base")? {
                let (first_position, committed_at) = (base + 1, row.try_get("committed_at")?);
                committed.written.push(CommittedBatch { tenant, first_position, committed_at });
                continue;
            }
            let event = EventId(row.try_get("event_id")?);
            if let Some(key) = row.try_get("key")? {
                let request_hash = row.try_get("request_hash")?;
                committed.used.push(UsedKey { tenant, key, request_hash, event });
            } else {
                let numbers = |column| row.try_get::<Vec<SubscriptionNo>, _>(column).map(Arc::from);
                committed.decided.insert(event, Decided { matched: numbers("matched")?, refused: numbers("refused")? });
            }
        }
        Ok(committed)
    }
}

impl Store {
    /// A connection for commits, taken from the pool at its first use, that waits for a lock for as long as `patience` says.
    pub fn commit_connection(&self, patience: Duration) -> CommitConnection {
        CommitConnection { store: self.clone(), connection: None, used_at: Instant::now(), patience, patient: false }
    }

    /// The same for commits that may wait as long as their callers.
    pub fn patient_commit_connection(&self, patience: Duration) -> CommitConnection {
        CommitConnection { patient: true, ..self.commit_connection(patience) }
    }

    /// Looks up which of a tenant's keys were used before.
    pub async fn used_keys(&self, tenant: TenantId, keys: &[&str]) -> Result<Vec<UsedKey>, StoreError> {
        let rows: Vec<(String, Vec<u8>, Uuid)> = sqlx::query_as(
            "SELECT i.key, i.request_hash, i.event_id
               FROM unnest($2::text[]) AS k(key) JOIN idempotency_keys i ON i.tenant_id = $1 AND i.key = k.key",
        )
        .bind(tenant.0)
        .bind(keys)
        .fetch_all(self.as_tenant(tenant))
        .await?;
        let parse = |(key, request_hash, event)| UsedKey { tenant, key, request_hash, event: EventId(event) };
        Ok(rows.into_iter().map(parse).collect())
    }
}

/// Statement texts that are put together once.
#[derive(Debug)]
pub(in crate::store) struct Statements {
    one: Texts,
    many: Texts,
    free: Texts,
}

/// One statement for each kind of events.
#[derive(Debug)]
struct Texts {
    plain: Arc<str>,
    keyed: Arc<str>,
    chained: Arc<str>,
}

impl Texts {
    fn new(lock: &str) -> Self {
        let text = |kind| statement(lock, kind).into();
        Self { plain: text(Kind::Plain), keyed: text(Kind::Keyed), chained: text(Kind::Chained) }
    }

    fn of(&self, kind: Kind) -> Arc<str> {
        match kind {
            Kind::Plain => self.plain.clone(),
            Kind::Keyed => self.keyed.clone(),
            Kind::Chained => self.chained.clone(),
        }
    }
}

impl Default for Statements {
    fn default() -> Self {
        Self { one: Texts::new(LOCK_ONE), many: Texts::new(LOCK_MANY), free: Texts::new(LOCK_FREE) }
    }
}
