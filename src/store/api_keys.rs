//! API keys: credentials of the public port. Only a hash of the secret is kept.

use super::audit;
use super::request_ids::{Once, Repeatable};
use super::{Store, StoreError};
use crate::clock;
use crate::domain::access::Role;
use crate::domain::ids::{ApiKeyId, AppId, TenantId};
use chrono::{DateTime, Utc};
use uuid::Uuid;

/// An API key as stored, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Its id.
    pub id: ApiKeyId,
    /// Its tenant.
    pub tenant: TenantId,
    /// The app it is limited to.
    pub app: Option<AppId>,
    /// What it may do.
    pub role: Role,
    /// Name for people.
    pub display_name: String,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// From then on it is refused.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
}

/// A key to make.
#[derive(Debug, Clone)]
pub struct NewApiKey {
    /// Its tenant.
    pub tenant: TenantId,
    /// The app it is limited to.
    pub app: Option<AppId>,
    /// What it may do.
    pub role: Role,
    /// Name for people.
    pub display_name: String,
    /// From then on it is refused.
    pub expires_at: Option<DateTime<Utc>>,
    /// SHA-256 of the secret.
    pub secret_hash: [u8; 32],
}

#[derive(sqlx::FromRow)]
pub(in crate::store) struct Row {
    api_key_id: Uuid,
    tenant_id: Uuid,
    app_id: Option<Uuid>,
    role: i16,
    display_name: String,
    created_at: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
    revoked_at: Option<DateTime<Utc>>,
    secret_hash: Vec<u8>,
}

impl Row {
    pub(in crate::store) fn parse(self) -> Result<(ApiKey, [u8; 32]), StoreError> {
        let corrupt = StoreError::Corrupt { what: "API key" };
        let role = match self.role {
            1 => Role::Viewer,
            2 => Role::Subscriber,
            3 => Role::Developer,
            4 => Role::Admin,
            _ => return Err(corrupt),
        };
        let key = ApiKey {
            id: ApiKeyId(self.api_key_id),
            tenant: TenantId(self.tenant_id),
            app: self.app_id.map(AppId),
            role,
            display_name: self.display_name,
            created_at: self.created_at,
            expires_at: self.expires_at,
            revoked_at: self.revoked_at,
        };
        Ok((key, self.secret_hash.try_into().map_err(|_| corrupt)?))
    }
}

fn role_number(role: Role) -> i16 {
    match role {
        Role::Viewer => 1,
        Role::Subscriber => 2,
        Role::Developer => 3,
        Role::Admin => 4,
    }
}

impl Store {
    /// Creates a key.
    pub async fn create_api_key(
        &self,
        actor: String,
        new: NewApiKey,
        request: Repeatable<ApiKey>,
    ) -> Result<Once<ApiKey>, StoreError> {
        let store = self.clone();
        self.run(async move {
            let now = store.now();
            let id = ApiKeyId(clock::new_uuid());
            let mut tx = store.begin_as(new.tenant).await?;
            if let Some(answer) = request.begin(&mut tx, new.tenant, now).await? {
                return Ok(Once::Before(answer));
            }
            sqlx::query(
                "INSERT INTO api_keys (api_key_id, tenant_id, app_id, role, secret_hash, display_name, created_at, expires_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            )
            .bind(id.0)
            .bind(new.tenant.0)
            .bind(new.app.map(|app| app.0))
            .bind(role_number(new.role))
            .bind(new.secret_hash)
            .bind(&new.display_name)
            .bind(now)
            .bind(new.expires_at)
            .execute(&mut *tx)
            .await?;
            audit::record(&mut tx, new.tenant, now, &actor, "CreateApiKey", &id.to_string()).await?;
            let made = ApiKey {
                id,
                tenant: new.tenant,
                app: new.app,
                role: new.role,
                display_name: new.display_name,
                created_at: now,
                expires_at: new.expires_at,
                revoked_at: None,
            };
            request.keep(&mut tx, made.tenant, &made, now).await?;
            tx.commit().await?;
            Ok(Once::Made(made))
        })
        .await
    }

    /// Lists a tenant's keys, newest first, those before `before` where given.
    pub async fn api_keys(
        &self,
        tenant: TenantId,
        before: Option<Uuid>,
        limit: u32,
    ) -> Result<Vec<ApiKey>, StoreError> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT api_key_id, tenant_id, app_id, role, display_name, created_at, expires_at, revoked_at, secret_hash
               FROM api_keys WHERE tenant_id = $1 AND ($2::uuid IS NULL OR api_key_id < $2)
              ORDER BY api_key_id DESC LIMIT $3",
        )
        .bind(tenant.0)
        .bind(before)
        .bind(i64::from(limit))
        .fetch_all(self.as_tenant(tenant))
        .await?;
        rows.into_iter().map(|row| row.parse().map(|(key, _)| key)).collect()
    }

    /// Revokes a key, once; none where the tenant has no such key.
    pub async fn revoke_api_key(
        &self,
        actor: String,
        tenant: TenantId,
        id: ApiKeyId,
        request: Repeatable<ApiKey>,
    ) -> Result<Option<Once<ApiKey>>, StoreError> {
        let store = self.clone();
        self.run(async move {
            let now = store.now();
            let mut tx = store.begin_as(tenant).await?;
            if let Some(answer) = request.begin(&mut tx, tenant, now).await? {
                return Ok(Some(Once::Before(answer)));
            }
            // A key that was revoked before keeps its time.
            let row: Option<Row> = sqlx::query_as(
                "UPDATE api_keys SET revoked_at = COALESCE(revoked_at, $3) WHERE tenant_id = $1 AND api_key_id = $2
                 RETURNING api_key_id, tenant_id, app_id, role, display_name, created_at, expires_at, revoked_at, secret_hash",
            )
            .bind(tenant.0)
            .bind(id.0)
            .bind(now)
            .fetch_optional(&mut *tx)
            .await?;
            let Some(row) = row else { return Ok(None) };
            let (key, _) = row.parse()?;
            audit::record(&mut tx, tenant, now, &actor, "RevokeApiKey", &id.to_string()).await?;
            request.keep(&mut tx, tenant, &key, now).await?;
            tx.commit().await?;
            Ok(Some(Once::Made(key)))
        })
        .await
    }
}
