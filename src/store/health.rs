//! How receivers do: one small row for a subscription whose circuit has opened, or that has only failed for a while.
//!
//! Written by the owner of the tenant, under its token, and of PRE event types by whichever replica asks; read by the next owner, by the
//! other replicas that ask, and with the subscription by everybody else.

use super::heads::{self, RegistryChange};
use super::subscriptions::{circuit_code, circuit_from_code};
use super::{Store, StoreError, announcements};
use crate::domain::announcement::Announcement;
use crate::domain::health::HealthRow;
use crate::domain::ids::{SubscriptionNo, TenantId};
use crate::domain::subscription::Circuit;
use chrono::{DateTime, Utc};
use uuid::Uuid;

impl Store {
    /// Writes how receivers do, each at most once, where `token` is still the owner's; otherwise nothing.
    pub async fn keep_health(&self, tenant: TenantId, token: i64, rows: &[HealthRow]) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO subscription_health (tenant_id, subscription_no, registry_version, circuit, since, failures,
                    failing_since)
             SELECT $1, k.subscription_no, k.registry_version, k.circuit, k.since, k.failures, k.failing_since
               FROM unnest($3::integer[], $4::bigint[], $5::smallint[], $6::timestamptz[], $7::integer[], $8::timestamptz[])
                    AS k(subscription_no, registry_version, circuit, since, failures, failing_since)
              WHERE EXISTS (SELECT FROM dispatch_cursors WHERE tenant_id = $1 AND token = $2)
             ON CONFLICT (tenant_id, subscription_no) DO UPDATE SET registry_version = EXCLUDED.registry_version,
                    circuit = EXCLUDED.circuit, since = EXCLUDED.since, failures = EXCLUDED.failures,
                    failing_since = EXCLUDED.failing_since",
        )
        .bind(tenant.0)
        .bind(token)
        .bind(rows.iter().map(|row| row.subscription_no).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.registry_version).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| circuit_code(row.circuit.state)).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.circuit.since).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.circuit.failures).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.failing_since).collect::<Vec<_>>())
        .execute(self.engine())
        .await?;
        Ok(())
    }

    /// Writes how the receiver of a PRE event type does, where nothing newer is known, and tells of it where it has changed.
    pub async fn keep_pre_health(
        &self,
        tenant: TenantId,
        row: HealthRow,
        told: Option<Announcement>,
    ) -> Result<Option<RegistryChange>, StoreError> {
        let store = self.clone();
        self.run(async move {
            let now = store.now();
            let mut tx = store.begin_as(tenant).await?;
            // Every change of the registry's version has its announcements looked for.
            let change = match &told {
                Some(_) => Some(heads::bump_registry(&mut tx, tenant, now).await?),
                None => None,
            };
            let written = sqlx::query(
                "INSERT INTO subscription_health (tenant_id, subscription_no, registry_version, circuit, since, failures,
                        failing_since)
                 VALUES ($1, $2, $3, $4, $5, $6, $7)
                 ON CONFLICT (tenant_id, subscription_no) DO UPDATE SET registry_version = EXCLUDED.registry_version,
                        circuit = EXCLUDED.circuit, since = EXCLUDED.since, failures = EXCLUDED.failures,
                        failing_since = EXCLUDED.failing_since
                  WHERE (subscription_health.registry_version, COALESCE(subscription_health.since, 'epoch'))
                     <= (EXCLUDED.registry_version, COALESCE(EXCLUDED.since, 'epoch'))",
            )
            .bind(tenant.0)
            .bind(row.subscription_no)
            .bind(row.registry_version)
            .bind(circuit_code(row.circuit.state))
            .bind(row.circuit.since)
            .bind(row.circuit.failures)
            .bind(row.failing_since)
            .execute(&mut *tx)
            .await?;
            if written.rows_affected() == 0 {
                return Ok(None);
            }
            if let (Some(change), Some(told)) = (&change, &told) {
                announcements::record(&mut tx, tenant, change.registry_version, told, now).await?;
            }
            tx.commit().await?;
            Ok(change)
        })
        .await
    }

    /// How the receivers of these tenants do, as far as that is kept.
    pub async fn health(&self, tenants: &[TenantId]) -> Result<Vec<(TenantId, HealthRow)>, StoreError> {
        type Row = (Uuid, SubscriptionNo, i64, i16, Option<DateTime<Utc>>, i32, Option<DateTime<Utc>>);
        let ids: Vec<Uuid> = tenants.iter().map(|tenant| tenant.0).collect();
        // No limit: a row for each subscription that does badly, at most.
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT tenant_id, subscription_no, registry_version, circuit, since, failures, failing_since
               FROM subscription_health WHERE tenant_id = ANY($1)",
        )
        .bind(ids)
        .fetch_all(self.engine())
        .await?;
        let parse = |(tenant, subscription_no, registry_version, circuit, since, failures, failing_since): Row| {
            let state = circuit_from_code(circuit).ok_or(StoreError::Corrupt { what: "circuit" })?;
            let circuit = Circuit { state, since, failures };
            Ok((TenantId(tenant), HealthRow { subscription_no, registry_version, circuit, failing_since }))
        };
        rows.into_iter().map(parse).collect()
    }
}
