//! Apps: the namespaces inside a tenant that own subscriptions.

use super::audit::{self, Principal};
use super::request_ids::{Once, Repeatable};
use super::{Store, StoreError, heads};
use crate::clock;
use crate::domain::ids::{AppId, TenantId};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

/// An app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct App {
    /// Its id.
    pub id: AppId,
    /// Its name in the API, unique in the tenant.
    pub slug: String,
    /// Name for people.
    pub display_name: String,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// Why a change of apps is refused.
#[derive(Debug, thiserror::Error)]
pub enum AppRefusal {
    /// The slug is taken.
    #[error("an app of that slug exists")]
    Exists,
    /// No such app.
    #[error("no such app")]
    NotFound,
    /// It owns subscriptions that are not deleted.
    #[error("the app still owns subscriptions")]
    NotEmpty,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for AppRefusal {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

type AppRow = (Uuid, String, String, DateTime<Utc>);

fn from_row((id, slug, display_name, created_at): AppRow) -> App {
    App { id: AppId(id), slug, display_name, created_at }
}

impl Store {
    /// Reads an app by its slug.
    pub async fn app_by_slug(&self, tenant: TenantId, slug: &str) -> Result<Option<App>, StoreError> {
        let row: Option<AppRow> = sqlx::query_as(
            "SELECT app_id, slug, display_name, created_at FROM apps WHERE tenant_id = $1 AND slug = $2",
        )
        .bind(tenant.0)
        .bind(slug)
        .fetch_optional(self.as_tenant(tenant))
        .await?;
        Ok(row.map(from_row))
    }

    /// Reads an app by its id.
    pub async fn app(&self, tenant: TenantId, id: AppId) -> Result<Option<App>, StoreError> {
        let row: Option<AppRow> = sqlx::query_as(
            "SELECT app_id, slug, display_name, created_at FROM apps WHERE tenant_id = $1 AND app_id = $2",
        )
        .bind(tenant.0)
        .bind(id.0)
        .fetch_optional(self.as_tenant(tenant))
        .await?;
        Ok(row.map(from_row))
    }

    /// Lists a tenant's apps by slug, those after `after` where given.
    pub async fn apps(&self, tenant: TenantId, after: Option<&str>, limit: u32) -> Result<Vec<App>, StoreError> {
        // The C collation makes the order the same on every installation, and as the slug's own bytes.
        let rows: Vec<AppRow> = sqlx::query_as(
            "SELECT app_id, slug, display_name, created_at FROM apps
              WHERE tenant_id = $1 AND ($2::text IS NULL OR slug COLLATE \"C\" > $2)
              ORDER BY slug COLLATE \"C\" LIMIT $3",
        )
        .bind(tenant.0)
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(self.as_tenant(tenant))
        .await?;
        Ok(rows.into_iter().map(from_row).collect())
    }

    /// Creates an app. Errors: [`AppRefusal::Exists`].
    pub async fn create_app(
        &self,
        by: Principal,
        slug: String,
        display_name: String,
        request: Repeatable<App>,
    ) -> Result<Once<App>, AppRefusal> {
        let store = self.clone();
        self.run(async move { Ok(store.create_app_in(&by, slug, display_name, request).await) }).await?
    }

    async fn create_app_in(
        &self,
        by: &Principal,
        slug: String,
        display_name: String,
        request: Repeatable<App>,
    ) -> Result<Once<App>, AppRefusal> {
        let now = self.now();
        let app = App { id: AppId(clock::new_uuid()), slug, display_name, created_at: now };
        let mut tx = self.begin_as(by.tenant).await?;
        if let Some(answer) = request.begin(&mut tx, by.tenant, now).await? {
            return Ok(Once::Before(answer));
        }
        let made = sqlx::query(
            "INSERT INTO apps (tenant_id, app_id, slug, display_name, created_at) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT ON CONSTRAINT apps_slug_unique DO NOTHING",
        )
        .bind(by.tenant.0)
        .bind(app.id.0)
        .bind(&app.slug)
        .bind(&app.display_name)
        .bind(now)
        .execute(&mut *tx)
        .await?;
        if made.rows_affected() == 0 {
            return Err(AppRefusal::Exists);
        }
        audit::record(&mut tx, by.tenant, now, &by.name, "CreateApp", &app.id.to_string()).await?;
        request.keep(&mut tx, by.tenant, &app, now).await?;
        tx.commit().await?;
        Ok(Once::Made(app))
    }

    /// Deletes an app that owns no live subscription, and revokes the API keys that are limited to it. Errors: [`AppRefusal::NotFound`], [`AppRefusal::NotEmpty`].
    pub async fn delete_app(
        &self,
        by: Principal,
        slug: String,
        request: Repeatable<()>,
    ) -> Result<Once<()>, AppRefusal> {
        let store = self.clone();
        self.run(async move { Ok(store.delete_app_in(&by, &slug, request).await) }).await?
    }

    async fn delete_app_in(&self, by: &Principal, slug: &str, request: Repeatable<()>) -> Result<Once<()>, AppRefusal> {
        let now = self.now();
        let mut tx = self.begin_as(by.tenant).await?;
        // The head lock keeps a racing Subscribe or Undelete from adding a subscription behind the check.
        heads::bump_registry(&mut tx, by.tenant, now).await?;
        if let Some(answer) = request.begin(&mut tx, by.tenant, now).await? {
            return Ok(Once::Before(answer));
        }
        let app: Option<Uuid> = sqlx::query_scalar("SELECT app_id FROM apps WHERE tenant_id = $1 AND slug = $2")
            .bind(by.tenant.0)
            .bind(slug)
            .fetch_optional(&mut *tx)
            .await?;
        let app = app.ok_or(AppRefusal::NotFound)?;
        let live: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM subscriptions WHERE tenant_id = $1 AND app_id = $2 AND state <> 3)",
        )
        .bind(by.tenant.0)
        .bind(app)
        .fetch_one(&mut *tx)
        .await?;
        if live {
            return Err(AppRefusal::NotEmpty);
        }
        // A key that was limited to the app has nothing left that it may act on; its streams end with it.
        sqlx::query("UPDATE api_keys SET revoked_at = COALESCE(revoked_at, $3) WHERE tenant_id = $1 AND app_id = $2")
            .bind(by.tenant.0)
            .bind(app)
            .bind(now)
            .execute(&mut *tx)
            .await?;
        sqlx::query("DELETE FROM apps WHERE tenant_id = $1 AND app_id = $2")
            .bind(by.tenant.0)
            .bind(app)
            .execute(&mut *tx)
            .await?;
        audit::record(&mut tx, by.tenant, now, &by.name, "DeleteApp", &AppId(app).to_string()).await?;
        request.keep(&mut tx, by.tenant, &(), now).await?;
        tx.commit().await?;
        Ok(Once::Made(()))
    }
}

/// Reads an app's slug under the caller's lock; none where it was deleted.
pub(in crate::store) async fn slug_of(
    connection: &mut PgConnection,
    tenant: TenantId,
    app: AppId,
) -> Result<Option<String>, StoreError> {
    Ok(sqlx::query_scalar("SELECT slug FROM apps WHERE tenant_id = $1 AND app_id = $2")
        .bind(tenant.0)
        .bind(app.0)
        .fetch_optional(connection)
        .await?)
}
