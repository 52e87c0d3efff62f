//! How receivers do: one small row for a subscription whose receiver has not done well.
//!
//! Of POST event types it is written by the owner of the tenant, under its token, where a circuit changes, a long pause begins or nothing
//! but failures has come for a while, and read by the next owner. Of PRE event types, which any replica asks about, the row is the truth: it is read with
//! the statement that accepts an event, and what an answer changes is worked out under the row's lock. Everybody else reads it with the
//! subscription.

use super::heads::{self, RegistryChange};
use super::subscriptions::{circuit_code, circuit_from_code};
use super::{Store, StoreError, announcements};
use crate::domain::announcement::Announcement;
use crate::domain::health::HealthRow;
use crate::domain::ids::{SubscriptionNo, TenantId};
use crate::domain::subscription::Circuit;
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::postgres::PgRow;
use sqlx::{FromRow as _, Row as _};
use std::time::Duration;
use uuid::Uuid;

/// The columns of a row.
pub(in crate::store) const COLUMNS: &str =
    "subscription_no, registry_version, circuit, since, failures, failing_since, paused_until, probe_until, revision";

/// What becomes of a row.
#[derive(Debug, Clone, PartialEq)]
pub struct Merged {
    /// As it is to be.
    pub row: HealthRow,
    /// What is to be told of it.
    pub told: Option<Announcement>,
    /// Whether nothing but failures came for too long: the caller has the subscription disabled.
    pub disable: bool,
}

#[derive(sqlx::FromRow)]
struct Row {
    subscription_no: SubscriptionNo,
    registry_version: i64,
    circuit: i16,
    since: Option<DateTime<Utc>>,
    failures: i32,
    failing_since: Option<DateTime<Utc>>,
    paused_until: Option<DateTime<Utc>>,
    probe_until: Option<DateTime<Utc>>,
    revision: i64,
}

/// Reads a row that holds [`COLUMNS`].
pub(in crate::store) fn parse(row: &PgRow) -> Result<HealthRow, StoreError> {
    let row = Row::from_row(row)?;
    let state = circuit_from_code(row.circuit).ok_or(StoreError::Corrupt { what: "circuit" })?;
    Ok(HealthRow {
        subscription_no: row.subscription_no,
        registry_version: row.registry_version,
        circuit: Circuit { state, since: row.since, failures: row.failures },
        failing_since: row.failing_since,
        paused_until: row.paused_until,
        probe_until: row.probe_until,
        revision: row.revision,
    })
}

impl Store {
    /// Writes how receivers do, each at most once, where `token` is still the owner's; otherwise nothing.
    pub async fn keep_health(&self, tenant: TenantId, token: i64, rows: &[HealthRow]) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO subscription_health (tenant_id, subscription_no, registry_version, circuit, since, failures,
                    failing_since, paused_until)
             SELECT $1, k.subscription_no, k.registry_version, k.circuit, k.since, k.failures, k.failing_since, k.paused_until
               FROM unnest($3::integer[], $4::bigint[], $5::smallint[], $6::timestamptz[], $7::integer[], $8::timestamptz[],
                           $9::timestamptz[])
                    AS k(subscription_no, registry_version, circuit, since, failures, failing_since, paused_until)
              WHERE EXISTS (SELECT FROM dispatch_cursors WHERE tenant_id = $1 AND token = $2)
             ON CONFLICT (tenant_id, subscription_no) DO UPDATE SET registry_version = EXCLUDED.registry_version,
                    circuit = EXCLUDED.circuit, since = EXCLUDED.since, failures = EXCLUDED.failures,
                    failing_since = EXCLUDED.failing_since, paused_until = EXCLUDED.paused_until",
        )
        .bind(tenant.0)
        .bind(token)
        .bind(rows.iter().map(|row| row.subscription_no).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.registry_version).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| circuit_code(row.circuit.state)).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.circuit.since).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.circuit.failures).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.failing_since).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.paused_until).collect::<Vec<_>>())
        .execute(self.engine())
        .await?;
        Ok(())
    }

    /// Changes how receivers of PRE event types do by what they are now: `merge` gets the row of each of these subscriptions, in this
    /// order, and answers what becomes of those that change. `subscriptions` are numbers, ascending and each once, with the registry
    /// version that a row begins with where there is none.
    ///
    /// Returns what it has become, and the change of the registry where something is told, by which the announcements are found.
    pub async fn merge_health(
        &self,
        tenant: TenantId,
        subscriptions: Vec<(SubscriptionNo, i64)>,
        merge: impl FnOnce(Vec<HealthRow>) -> Vec<Merged> + Send + 'static,
    ) -> Result<(Vec<Merged>, Option<RegistryChange>), StoreError> {
        let store = self.clone();
        self.run(async move {
            let now = store.now();
            let mut tx = store.begin_owed(tenant).await?;
            let (numbers, versions): (Vec<_>, Vec<_>) = subscriptions.into_iter().unzip();
            // Changes nothing but takes the locks, in one order. Whoever takes a head's lock first never comes here.
            let sql = format!(
                "INSERT INTO subscription_health AS h (tenant_id, subscription_no, registry_version, circuit, failures)
                 SELECT $1, k.no, k.version, 1, 0 FROM unnest($2::integer[], $3::bigint[]) AS k(no, version) ORDER BY k.no
                 ON CONFLICT (tenant_id, subscription_no) DO UPDATE SET revision = h.revision
                 RETURNING {COLUMNS}"
            );
            let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
                .bind(tenant.0)
                .bind(numbers)
                .bind(versions)
                .fetch_all(&mut *tx)
                .await?;
            let mut rows = rows.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
            rows.sort_by_key(|row| row.subscription_no);
            let mut merged = merge(rows);
            for one in &mut merged {
                one.row.revision += 1;
            }
            write(&mut tx, tenant, &merged).await?;
            let mut change = None;
            if merged.iter().any(|one| one.told.is_some()) {
                // Every change of the registry's version has its announcements looked for.
                let bumped = heads::bump_registry(&mut tx, tenant, now).await?;
                for told in merged.iter().filter_map(|one| one.told.as_ref()) {
                    announcements::record(&mut tx, tenant, bumped.registry_version, told, now).await?;
                }
                change = Some(bumped);
            }
            tx.commit().await?;
            Ok((merged, change))
        })
        .await
    }

    /// Takes the one question that finds out whether the receiver of a PRE event type is well again, until `until` at most: where its
    /// circuit has been open for `open`, or half open without such a question. None where that is another one's, or not due.
    pub async fn claim_probe(
        &self,
        tenant: TenantId,
        subscription: (SubscriptionNo, i64),
        open: Duration,
        until: DateTime<Utc>,
    ) -> Result<Option<HealthRow>, StoreError> {
        let now = self.now();
        let sql = format!(
            "UPDATE subscription_health
                SET circuit = 3, since = CASE WHEN circuit = 2 THEN $4 ELSE since END, probe_until = $5, revision = revision + 1
              WHERE tenant_id = $1 AND subscription_no = $2 AND registry_version = $3
                AND (circuit = 2 AND since <= $6 OR circuit = 3 AND (probe_until IS NULL OR probe_until <= $4))
             RETURNING {COLUMNS}"
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(tenant.0)
            .bind(subscription.0)
            .bind(subscription.1)
            .bind(now)
            .bind(until)
            .bind(now - TimeDelta::from_std(open).unwrap_or(TimeDelta::hours(1)))
            .fetch_optional(self.engine())
            .await?;
        row.as_ref().map(parse).transpose()
    }

    /// Gives such a question back that nobody waited for.
    pub async fn release_probe(
        &self,
        tenant: TenantId,
        subscription_no: SubscriptionNo,
        until: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE subscription_health SET probe_until = NULL, revision = revision + 1
              WHERE tenant_id = $1 AND subscription_no = $2 AND probe_until = $3",
        )
        .bind(tenant.0)
        .bind(subscription_no)
        .bind(until)
        .execute(self.engine())
        .await?;
        Ok(())
    }

    /// How the receivers of these tenants do, as far as that is kept.
    pub async fn health(&self, tenants: &[TenantId]) -> Result<Vec<(TenantId, HealthRow)>, StoreError> {
        let ids: Vec<Uuid> = tenants.iter().map(|tenant| tenant.0).collect();
        // No limit: a row for each subscription that does badly, at most.
        let sql = format!("SELECT tenant_id, {COLUMNS} FROM subscription_health WHERE tenant_id = ANY($1)");
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(ids).fetch_all(self.engine()).await?;
        rows.iter().map(|row| Ok((TenantId(row.try_get("tenant_id")?), parse(row)?))).collect()
    }
}

/// Writes rows whose locks are held.
async fn write(tx: &mut sqlx::PgConnection, tenant: TenantId, merged: &[Merged]) -> Result<(), StoreError> {
    let rows = || merged.iter().map(|one| &one.row);
    sqlx::query(
        "UPDATE subscription_health h
            SET registry_version = k.registry_version, circuit = k.circuit, since = k.since, failures = k.failures,
                failing_since = k.failing_since, paused_until = k.paused_until, probe_until = k.probe_until, revision = k.revision
           FROM unnest($2::integer[], $3::bigint[], $4::smallint[], $5::timestamptz[], $6::integer[], $7::timestamptz[],
                       $8::timestamptz[], $9::timestamptz[], $10::bigint[])
                AS k(subscription_no, registry_version, circuit, since, failures, failing_since, paused_until, probe_until, revision)
          WHERE h.tenant_id = $1 AND h.subscription_no = k.subscription_no",
    )
    .bind(tenant.0)
    .bind(rows().map(|row| row.subscription_no).collect::<Vec<_>>())
    .bind(rows().map(|row| row.registry_version).collect::<Vec<_>>())
    .bind(rows().map(|row| circuit_code(row.circuit.state)).collect::<Vec<_>>())
    .bind(rows().map(|row| row.circuit.since).collect::<Vec<_>>())
    .bind(rows().map(|row| row.circuit.failures).collect::<Vec<_>>())
    .bind(rows().map(|row| row.failing_since).collect::<Vec<_>>())
    .bind(rows().map(|row| row.paused_until).collect::<Vec<_>>())
    .bind(rows().map(|row| row.probe_until).collect::<Vec<_>>())
    .bind(rows().map(|row| row.revision).collect::<Vec<_>>())
    .execute(tx)
    .await?;
    Ok(())
}
