//! Who changes the registry, and the record of every change, written in the change's own transaction.

use super::{Store, StoreError};
use crate::clock;
use crate::domain::ids::{AppId, TenantId};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

/// On whose behalf a change is made, and how far they see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The tenant, from the credential.
    pub tenant: TenantId,
    /// The app the credential is limited to; what another app owns is absent to it.
    pub app: Option<AppId>,
    /// The name in the audit record: `key_...`, a certificate's subject, or `carillon` for the server itself.
    pub name: String,
}

impl Principal {
    /// The server itself, acting on a tenant.
    pub fn server(tenant: TenantId) -> Self {
        Self { tenant, app: None, name: "carillon".to_owned() }
    }

    /// True where what `app` owns is visible.
    pub fn sees(&self, app: AppId) -> bool {
        self.app.is_none_or(|own| own == app)
    }
}

/// One recorded change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRecord {
    /// Its id, time-ordered.
    pub id: Uuid,
    /// When, by the database's clock.
    pub at: DateTime<Utc>,
    /// Who.
    pub actor: String,
    /// The RPC, for example `Subscribe`.
    pub action: String,
    /// What it was done to, for example `sub_...`.
    pub resource: String,
}

impl Store {
    /// Lists a tenant's recorded changes, newest first, those before `before` where given.
    pub async fn audit_records(
        &self,
        tenant: TenantId,
        before: Option<Uuid>,
        limit: u32,
    ) -> Result<Vec<AuditRecord>, StoreError> {
        let rows: Vec<(Uuid, DateTime<Utc>, String, String, String)> = sqlx::query_as(
            "SELECT audit_id, at, actor, action, resource FROM audit_records
              WHERE tenant_id = $1 AND ($2::uuid IS NULL OR audit_id < $2)
              ORDER BY audit_id DESC LIMIT $3",
        )
        .bind(tenant.0)
        .bind(before)
        .bind(i64::from(limit))
        .fetch_all(self.as_tenant(tenant))
        .await?;
        let parse = |(id, at, actor, action, resource)| AuditRecord { id, at, actor, action, resource };
        Ok(rows.into_iter().map(parse).collect())
    }
}

/// Records a change, in the transaction that makes it.
pub(in crate::store) async fn record(
    connection: &mut PgConnection,
    tenant: TenantId,
    at: DateTime<Utc>,
    actor: &str,
    action: &str,
    resource: &str,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO audit_records (tenant_id, audit_id, at, actor, action, resource) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(tenant.0)
    .bind(clock::new_uuid())
    .bind(at)
    .bind(actor)
    .bind(action)
    .bind(resource)
    .execute(connection)
    .await?;
    Ok(())
}
