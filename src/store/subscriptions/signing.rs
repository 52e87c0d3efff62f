//! The signing secrets of subscriptions, sealed; see `store::secrets`.

use super::SubscriptionRefusal;
use crate::domain::ids::{SubscriptionId, TenantId};
use crate::store::secrets::{Keyring, KeyringError, StoredSecret};
use crate::store::{Store, StoreError};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use std::collections::HashMap;
use uuid::Uuid;

/// How many secrets of one subscription may sign at once.
pub const SIGNING_SECRETS_MAX: usize = 10;

/// How many secrets are read at a time to be sealed anew.
const RESEALED_AT_A_TIME: i64 = 500;

/// Why stored secrets cannot all be sealed anew. What was sealed before stays so.
#[derive(Debug, thiserror::Error)]
pub enum ResealError {
    /// A statement failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// One does not open with the configured keys.
    #[error("the signing secret of subscription {subscription} cannot be sealed anew")]
    Keyring {
        /// Whose secret.
        subscription: SubscriptionId,
        /// Why.
        #[source]
        source: KeyringError,
    },
}

#[derive(sqlx::FromRow)]
struct SecretRow {
    subscription_id: Uuid,
    secret_id: Uuid,
    key_id: String,
    ciphertext: Vec<u8>,
    expires_at: Option<DateTime<Utc>>,
}

impl Store {
    /// The secrets of some subscriptions, oldest first. A subscription has [`SIGNING_SECRETS_MAX`] at most.
    pub(super) async fn secrets_of(
        &self,
        tenant: TenantId,
        subscriptions: &[Uuid],
    ) -> Result<HashMap<Uuid, Vec<StoredSecret>>, StoreError> {
        let rows: Vec<SecretRow> = sqlx::query_as(
            "SELECT subscription_id, secret_id, key_id, ciphertext, expires_at FROM webhook_secrets
              WHERE tenant_id = $1 AND subscription_id = ANY($2) ORDER BY subscription_id, secret_id",
        )
        .bind(tenant.0)
        .bind(subscriptions)
        .fetch_all(self.pool())
        .await?;
        let mut secrets: HashMap<Uuid, Vec<StoredSecret>> = HashMap::with_capacity(subscriptions.len());
        for row in rows {
            let SecretRow { subscription_id, secret_id: id, key_id, ciphertext, expires_at } = row;
            secrets.entry(subscription_id).or_default().push(StoredSecret { id, key_id, ciphertext, expires_at });
        }
        Ok(secrets)
    }

    /// Seals every secret that another key than the keyring's first has sealed; answers how many.
    ///
    /// Replicas may run meanwhile: the secrets themselves stay as they are, and one that is rotated or retired at this moment is
    /// sealed with the first key already, or is gone.
    pub async fn reseal_secrets(&self, keyring: &Keyring) -> Result<u64, ResealError> {
        let first = keyring.first_id();
        let (mut after, mut resealed) = ((Uuid::nil(), Uuid::nil(), Uuid::nil()), 0);
        loop {
            let rows: Vec<(Uuid, Uuid, Uuid, String, Vec<u8>)> = sqlx::query_as(
                "SELECT tenant_id, subscription_id, secret_id, key_id, ciphertext FROM webhook_secrets
                  WHERE key_id <> $1 AND (tenant_id, subscription_id, secret_id) > ($2, $3, $4)
                  ORDER BY tenant_id, subscription_id, secret_id LIMIT $5",
            )
            .bind(first)
            .bind(after.0)
            .bind(after.1)
            .bind(after.2)
            .bind(RESEALED_AT_A_TIME)
            .fetch_all(self.pool())
            .await
            .map_err(StoreError::from)?;
            if rows.is_empty() {
                return Ok(resealed);
            }
            for (tenant, subscription, id, key_id, ciphertext) in rows {
                after = (tenant, subscription, id);
                let (tenant, subscription) = (TenantId(tenant), SubscriptionId(subscription));
                let stored = StoredSecret { id, key_id, ciphertext, expires_at: None };
                let anew = keyring
                    .open_secret(tenant, subscription, &stored)
                    .and_then(|secret| keyring.seal_secret(tenant, subscription, id, &secret))
                    .map_err(|source| ResealError::Keyring { subscription, source })?;
                let done = sqlx::query(
                    "UPDATE webhook_secrets SET key_id = $4, ciphertext = $5
                      WHERE tenant_id = $1 AND subscription_id = $2 AND secret_id = $3 AND key_id = $6",
                )
                .bind(tenant.0)
                .bind(subscription.0)
                .bind(id)
                .bind(&anew.key_id)
                .bind(&anew.ciphertext)
                .bind(&stored.key_id)
                .execute(self.pool())
                .await
                .map_err(StoreError::from)?;
                resealed += done.rows_affected();
            }
        }
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
