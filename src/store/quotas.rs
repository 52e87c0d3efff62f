//! Quotas of tenants: what operators have set, and whose backlog is full.

use super::heads::{self, RegistryChange};
use super::settle::Fenced;
use super::{Store, StoreError};
use crate::domain::ids::TenantId;
use crate::domain::quotas::{Overrides, Quota};
use sqlx::PgConnection;
use std::collections::{HashMap, HashSet};
use uuid::Uuid;

impl Store {
    /// What is set for a tenant, and whether its backlog is full.
    pub async fn quotas(&self, tenant: TenantId) -> Result<(Overrides, bool), StoreError> {
        // One row at least, so that the flag is always told.
        let rows: Vec<(Option<String>, Option<i64>, bool)> = sqlx::query_as(
            "SELECT q.name, q.value, EXISTS (SELECT FROM full_backlogs WHERE tenant_id = $1)
               FROM (SELECT 1) AS one LEFT JOIN tenant_quotas q ON q.tenant_id = $1 ORDER BY q.name LIMIT $2",
        )
        .bind(tenant.0)
        .bind(ROWS_MAX)
        .fetch_all(self.as_tenant(tenant))
        .await?;
        let full = rows.first().is_some_and(|row| row.2);
        let pairs = rows.into_iter().filter_map(|(name, value, _)| name.zip(value));
        Ok((parse(pairs), full))
    }

    /// What is set for each of these tenants; those of which nothing is set are left out.
    pub async fn all_quotas(&self, tenants: &[TenantId]) -> Result<HashMap<TenantId, Overrides>, StoreError> {
        let ids: Vec<Uuid> = tenants.iter().map(|tenant| tenant.0).collect();
        // A page of tenants, and a few quotas of each.
        let rows: Vec<(Uuid, String, i64)> =
            sqlx::query_as("SELECT tenant_id, name, value FROM tenant_quotas WHERE tenant_id = ANY($1)")
                .bind(ids)
                .fetch_all(self.engine())
                .await?;
        let mut all: HashMap<TenantId, Overrides> = HashMap::new();
        for (tenant, name, value) in rows {
            if let Some(quota) = Quota::of_name(&name) {
                all.entry(TenantId(tenant)).or_default().set(quota, u64::try_from(value).ok());
            }
        }
        Ok(all)
    }

    /// Which of these tenants have a full backlog.
    pub async fn full_backlogs(&self, tenants: &[TenantId]) -> Result<HashSet<TenantId>, StoreError> {
        let ids: Vec<Uuid> = tenants.iter().map(|tenant| tenant.0).collect();
        let rows: Vec<Uuid> = sqlx::query_scalar("SELECT tenant_id FROM full_backlogs WHERE tenant_id = ANY($1)")
            .bind(ids)
            .fetch_all(self.engine())
            .await?;
        Ok(rows.into_iter().map(TenantId).collect())
    }

    /// How many deferred invocations a tenant has, up to a bound.
    pub async fn deferred_count(&self, tenant: TenantId, most: i64) -> Result<i64, StoreError> {
        let sql = "SELECT count(*) FROM (SELECT 1 FROM deferred_invocations WHERE tenant_id = $1 LIMIT $2) AS counted";
        Ok(sqlx::query_scalar(sql).bind(tenant.0).bind(most).fetch_one(self.as_tenant(tenant)).await?)
    }

    /// Says that a tenant's backlog is full, or that it is not any more, where `token` is still the owner's. Every publisher that
    /// commits from then on learns of it, since its registry is no longer the present one.
    pub async fn mark_backlog(
        &self,
        tenant: TenantId,
        token: i64,
        standing: BacklogStanding,
    ) -> Result<(Fenced, Option<RegistryChange>), StoreError> {
        let store = self.clone();
        self.run(async move {
            let now = store.now();
            let mut tx = store.begin_owed(tenant).await?;
            // The head first and the cursor second, as everybody who takes both.
            let change = heads::bump_registry(&mut tx, tenant, now).await?;
            let fence: Option<i64> =
                sqlx::query_scalar("SELECT token FROM dispatch_cursors WHERE tenant_id = $1 AND token = $2 FOR UPDATE")
                    .bind(tenant.0)
                    .bind(token)
                    .fetch_optional(&mut *tx)
                    .await?;
            if fence.is_none() {
                tx.rollback().await?;
                return Ok((Fenced::Yes, None));
            }
            match standing {
                BacklogStanding::Full => {
                    sqlx::query("INSERT INTO full_backlogs (tenant_id, since) VALUES ($1, $2) ON CONFLICT DO NOTHING")
                        .bind(tenant.0)
                        .bind(now)
                        .execute(&mut *tx)
                        .await?
                }
                BacklogStanding::Free => {
                    sqlx::query("DELETE FROM full_backlogs WHERE tenant_id = $1")
                        .bind(tenant.0)
                        .execute(&mut *tx)
                        .await?
                }
            };
            tx.commit().await?;
            Ok((Fenced::No, Some(change)))
        })
        .await
    }
}

/// Whether more may be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BacklogStanding {
    /// Nothing.
    Full,
    /// More.
    Free,
}

/// More than there are quotas; names of a later release are read over.
const ROWS_MAX: i64 = 64;

fn parse(rows: impl Iterator<Item = (String, i64)>) -> Overrides {
    let mut overrides = Overrides::default();
    for (name, value) in rows {
        if let Some(quota) = Quota::of_name(&name) {
            overrides.set(quota, u64::try_from(value).ok());
        }
    }
    overrides
}

/// What is set for a tenant, in the transaction that changes it.
pub(in crate::store) async fn read(connection: &mut PgConnection, tenant: TenantId) -> Result<Overrides, StoreError> {
    let rows: Vec<(String, i64)> =
        sqlx::query_as("SELECT name, value FROM tenant_quotas WHERE tenant_id = $1 ORDER BY name LIMIT $2")
            .bind(tenant.0)
            .bind(ROWS_MAX)
            .fetch_all(connection)
            .await?;
    Ok(parse(rows.into_iter()))
}

/// Sets quotas, or takes what was set away.
pub(in crate::store) async fn write(
    connection: &mut PgConnection,
    tenant: TenantId,
    changes: &[(Quota, Option<u64>)],
) -> Result<(), StoreError> {
    for (quota, value) in changes {
        match value.and_then(|value| i64::try_from(value).ok()) {
            Some(value) => {
                sqlx::query(
                    "INSERT INTO tenant_quotas (tenant_id, name, value) VALUES ($1, $2, $3)
                     ON CONFLICT ON CONSTRAINT tenant_quotas_pk DO UPDATE SET value = EXCLUDED.value",
                )
                .bind(tenant.0)
                .bind(quota.name())
                .bind(value)
                .execute(&mut *connection)
                .await?
            }
            None => {
                sqlx::query("DELETE FROM tenant_quotas WHERE tenant_id = $1 AND name = $2")
                    .bind(tenant.0)
                    .bind(quota.name())
                    .execute(&mut *connection)
                    .await?
            }
        };
    }
    Ok(())
}
