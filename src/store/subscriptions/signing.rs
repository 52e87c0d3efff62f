//! The signing secrets of subscriptions, sealed; see `store::secrets`.

use super::SubscriptionRefusal;
use crate::domain::ids::{SubscriptionId, TenantId};
use crate::store::secrets::StoredSecret;
use crate::store::{Store, StoreError};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use std::collections::HashMap;
use uuid::Uuid;

/// How many secrets of one subscription may sign at once.
pub const SIGNING_SECRETS_MAX: usize = 10;

#[derive(sqlx::FromRow)]
struct SecretRow {
    subscription_id: Uuid,
    secret_id: Uuid,
    key_id: String,
    ciphertext: Vec<u8>,
    expires_at: Option<DateTime<Utc>>,
}

impl Store {
    /// The secrets of some subscriptions that still sign, oldest first. A subscription has [`SIGNING_SECRETS_MAX`] at most.
    pub(super) async fn secrets_of(
        &self,
        tenant: TenantId,
        subscriptions: &[Uuid],
    ) -> Result<HashMap<Uuid, Vec<StoredSecret>>, StoreError> {
        let rows: Vec<SecretRow> = sqlx::query_as(
            "SELECT subscription_id, secret_id, key_id, ciphertext, expires_at FROM webhook_secrets
              WHERE tenant_id = $1 AND subscription_id = ANY($2) AND (expires_at IS NULL OR expires_at > $3)
              ORDER BY subscription_id, secret_id",
        )
        .bind(tenant.0)
        .bind(subscriptions)
        .bind(self.now())
        .fetch_all(self.as_tenant(tenant))
        .await?;
        let mut secrets: HashMap<Uuid, Vec<StoredSecret>> = HashMap::with_capacity(subscriptions.len());
        for row in rows {
            let SecretRow { subscription_id, secret_id: id, key_id, ciphertext, expires_at } = row;
            secrets.entry(subscription_id).or_default().push(StoredSecret { id, key_id, ciphertext, expires_at });
        }
        Ok(secrets)
    }
}

/// Adds a signing secret.
pub(super) async fn insert_secret(
    tx: &mut PgConnection,
    tenant: TenantId,
    subscription: SubscriptionId,
    secret: &StoredSecret,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO webhook_secrets (tenant_id, subscription_id, secret_id, key_id, ciphertext, created_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(tenant.0)
    .bind(subscription.0)
    .bind(secret.id)
    .bind(&secret.key_id)
    .bind(&secret.ciphertext)
    .bind(now)
    .bind(secret.expires_at)
    .execute(tx)
    .await?;
    Ok(())
}

/// Gives the present secrets an end, and removes those whose end is over.
pub(super) async fn retire_secrets(
    tx: &mut PgConnection,
    tenant: TenantId,
    subscription: SubscriptionId,
    expire_at: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<(), SubscriptionRefusal> {
    sqlx::query(
        "UPDATE webhook_secrets SET expires_at = $3
          WHERE tenant_id = $1 AND subscription_id = $2 AND (expires_at IS NULL OR expires_at > $3)",
    )
    .bind(tenant.0)
    .bind(subscription.0)
    .bind(expire_at)
    .execute(&mut *tx)
    .await?;
    sqlx::query("DELETE FROM webhook_secrets WHERE tenant_id = $1 AND subscription_id = $2 AND expires_at <= $3")
        .bind(tenant.0)
        .bind(subscription.0)
        .bind(now)
        .execute(&mut *tx)
        .await?;
    let left: i64 =
        sqlx::query_scalar("SELECT count(*) FROM webhook_secrets WHERE tenant_id = $1 AND subscription_id = $2")
            .bind(tenant.0)
            .bind(subscription.0)
            .fetch_one(tx)
            .await?;
    if usize::try_from(left).is_ok_and(|left| left < SIGNING_SECRETS_MAX) {
        Ok(())
    } else {
        Err(SubscriptionRefusal::TooManySecrets(SIGNING_SECRETS_MAX))
    }
}
