//! Tenants: the isolation boundary. A tenant is born with the head of its log and its dispatch cursor, in one transaction.

use super::audit;
use super::leases::shard_of;
use super::request_ids::{Once, Repeatable};
use super::{Store, StoreError, heads, quotas};
use crate::clock;
use crate::domain::ids::TenantId;
use crate::domain::quotas::{Overrides, Quota};
use chrono::{DateTime, Utc};
use uuid::Uuid;

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// Its id.
    pub id: TenantId,
    /// Its name in the API, unique.
    pub slug: String,
    /// Name for people.
    pub display_name: String,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// What is to change of a tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TenantChange {
    /// Its name for people.
    pub display_name: Option<String>,
    /// Quotas to set, or to leave to the server again.
    pub quotas: Vec<(Quota, Option<u64>)>,
}

/// Whose the request ids of calls are that make a tenant.
pub const NO_TENANT: TenantId = TenantId(Uuid::nil());

type Row = (Uuid, String, String, DateTime<Utc>);

fn from_row((id, slug, display_name, created_at): Row) -> Tenant {
    Tenant { id: TenantId(id), slug, display_name, created_at }
}

impl Store {
    /// Creates a tenant; none where the slug is taken. `actor` goes into the audit record.
    pub async fn create_tenant(
        &self,
        actor: String,
        slug: String,
        display_name: String,
        request: Repeatable<Tenant>,
    ) -> Result<Option<Once<Tenant>>, StoreError> {
        let store = self.clone();
        self.run(async move {
            let now = store.now();
            let tenant = Tenant { id: TenantId(clock::new_uuid()), slug, display_name, created_at: now };
            // Unnamed: there is no tenant yet that the id could belong to.
            let mut tx = store.engine().begin("BEGIN".to_owned()).await?;
            if let Some(answer) = request.begin(&mut tx, NO_TENANT, now).await? {
                return Ok(Some(Once::Before(answer)));
            }
            let made = sqlx::query(
                "INSERT INTO tenants (tenant_id, slug, display_name, created_at) VALUES ($1, $2, $3, $4)
                 ON CONFLICT ON CONSTRAINT tenants_slug_unique DO NOTHING",
            )
            .bind(tenant.id.0)
            .bind(&tenant.slug)
            .bind(&tenant.display_name)
            .bind(now)
            .execute(&mut *tx)
            .await?;
            if made.rows_affected() == 0 {
                return Ok(None);
            }
            sqlx::query(
                "INSERT INTO tenant_heads (tenant_id, log_epoch, committed_at, changed_at) VALUES ($1, $2, $3, $3)",
            )
            .bind(tenant.id.0)
            .bind(new_epoch())
            .bind(now)
            .execute(&mut *tx)
            .await?;
            sqlx::query("INSERT INTO dispatch_cursors (tenant_id, shard, day) VALUES ($1, $2, $3)")
                .bind(tenant.id.0)
                .bind(shard_of(tenant.id))
                .bind(now.date_naive())
                .execute(&mut *tx)
                .await?;
            audit::record(&mut tx, tenant.id, now, &actor, "CreateTenant", &tenant.id.to_string()).await?;
            request.keep(&mut tx, NO_TENANT, &tenant, now).await?;
            tx.commit().await?;
            Ok(Some(Once::Made(tenant)))
        })
        .await
    }

    /// Changes a tenant's name and quotas; none where there is no such tenant.
    ///
    /// The registry's version rises, so that every replica reads the quotas with the next thing it publishes or dispatches.
    pub async fn update_tenant(
        &self,
        actor: String,
        id: TenantId,
        change: TenantChange,
        request: Repeatable<(Tenant, Overrides)>,
    ) -> Result<Option<Once<(Tenant, Overrides)>>, StoreError> {
        let store = self.clone();
        self.run(async move {
            let now = store.now();
            let mut tx = store.begin_as(id).await?;
            heads::bump_registry(&mut tx, id, now).await?;
            if let Some(answer) = request.begin(&mut tx, id, now).await? {
                return Ok(Some(Once::Before(answer)));
            }
            let row: Option<Row> = sqlx::query_as(
                "UPDATE tenants SET display_name = COALESCE($2, display_name) WHERE tenant_id = $1
                 RETURNING tenant_id, slug, display_name, created_at",
            )
            .bind(id.0)
            .bind(&change.display_name)
            .fetch_optional(&mut *tx)
            .await?;
            let Some(tenant) = row.map(from_row) else { return Ok(None) };
            quotas::write(&mut tx, id, &change.quotas).await?;
            let changed = (tenant, quotas::read(&mut tx, id).await?);
            audit::record(&mut tx, id, now, &actor, "UpdateTenant", &id.to_string()).await?;
            request.keep(&mut tx, id, &changed, now).await?;
            tx.commit().await?;
            Ok(Some(Once::Made(changed)))
        })
        .await
    }

    /// Reads a tenant by its slug.
    pub async fn tenant_by_slug(&self, slug: &str) -> Result<Option<Tenant>, StoreError> {
        let row: Option<Row> =
            sqlx::query_as("SELECT tenant_id, slug, display_name, created_at FROM tenants WHERE slug = $1")
                .bind(slug)
                .fetch_optional(self.engine())
                .await?;
        Ok(row.map(from_row))
    }

    /// Lists tenants by slug, those after `after` where given.
    pub async fn tenants(&self, after: Option<&str>, limit: u32) -> Result<Vec<Tenant>, StoreError> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT tenant_id, slug, display_name, created_at FROM tenants
              WHERE $1::text IS NULL OR slug COLLATE \"C\" > $1
              ORDER BY slug COLLATE \"C\" LIMIT $2",
        )
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(self.engine())
        .await?;
        Ok(rows.into_iter().map(from_row).collect())
    }
}

/// A random positive number: cursors of another life of the log must not fit this one.
pub(in crate::store) fn new_epoch() -> i64 {
    (i64::from_be_bytes(clock::random_bytes()) & i64::MAX).max(1)
}
