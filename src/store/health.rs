//! How receivers do: one small row for a subscription whose circuit has opened, or that has only failed for a while.
//!
//! Written by the owner of the tenant, under its token; read by the next owner, and with the subscription by everybody else.

use super::subscriptions::{circuit_code, circuit_from_code};
use super::{Store, StoreError};
use crate::domain::ids::{SubscriptionNo, TenantId};
use crate::domain::subscription::Circuit;
use chrono::{DateTime, Utc};
use uuid::Uuid;

/// How the receiver of a subscription does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HealthRow {
    /// The subscription.
    pub subscription_no: SubscriptionNo,
    /// Its registry version: a later one begins anew.
    pub registry_version: i64,
    /// Its circuit.
    pub circuit: Circuit,
    /// Since when nothing but failures came; none for one of which something else came, or that is not known for long.
    pub failing_since: Option<DateTime<Utc>>,
}

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
