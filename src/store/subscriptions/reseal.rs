//! Sealing every tenant's signing secrets and webhook headers with another key: what `carillon reseal` does.

use super::row::{open_headers, seal_headers};
use crate::domain::ids::{SubscriptionId, TenantId};
use crate::store::secrets::{Keyring, KeyringError, StoredSecret};
use crate::store::{Store, StoreError};
use sqlx::types::Json;
use uuid::Uuid;

/// How many secrets are read at a time to be sealed anew.
const RESEALED_AT_A_TIME: i64 = 500;

/// A webhook's headers as stored: tenant, subscription, as they were saved before headers were sealed, sealed.
type StoredHeaders = (Uuid, Uuid, Option<Json<Vec<(String, String)>>>, Option<Vec<u8>>);

/// Why stored secrets cannot all be sealed anew. What was sealed before stays so.
#[derive(Debug, thiserror::Error)]
pub enum ResealError {
    /// A statement failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The headers of a webhook do not open with the configured keys.
    #[error("the headers of subscription {subscription} do not open with the configured keys")]
    Headers {
        /// Whose headers.
        subscription: SubscriptionId,
    },
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

impl Store {
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
            .fetch_all(self.engine())
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
                .execute(self.engine())
                .await
                .map_err(StoreError::from)?;
                resealed += done.rows_affected();
            }
        }
    }
    /// Seals the headers of every webhook that another key than the keyring's first has sealed, or none; answers of how many.
    ///
    /// As [`Self::reseal_secrets`], replicas may run meanwhile.
    pub async fn reseal_headers(&self, keyring: &Keyring) -> Result<u64, ResealError> {
        let (mut after, mut resealed) = ((Uuid::nil(), Uuid::nil()), 0);
        loop {
            let rows: Vec<StoredHeaders> = sqlx::query_as(
                "SELECT tenant_id, subscription_id, webhook_headers, webhook_headers_sealed FROM subscriptions
                  WHERE (webhook_headers IS NOT NULL OR webhook_headers_sealed IS NOT NULL)
                    AND (tenant_id, subscription_id) > ($1, $2)
                  ORDER BY tenant_id, subscription_id LIMIT $3",
            )
            .bind(after.0)
            .bind(after.1)
            .bind(RESEALED_AT_A_TIME)
            .fetch_all(self.engine())
            .await
            .map_err(StoreError::from)?;
            if rows.is_empty() {
                return Ok(resealed);
            }
            for (tenant, id, plain, sealed) in rows {
                after = (tenant, id);
                if sealed.as_deref().is_some_and(|sealed| Keyring::key_id_of(sealed).ok() == Some(keyring.first_id())) {
                    continue;
                }
                let (tenant, subscription) = (TenantId(tenant), SubscriptionId(id));
                let headers = match &sealed {
                    Some(sealed) => open_headers(Some(keyring), tenant, subscription, sealed),
                    None => plain.map(|Json(headers)| headers),
                };
                let headers = headers.ok_or(ResealError::Headers { subscription })?;
                let done = sqlx::query(
                    "UPDATE subscriptions SET webhook_headers = NULL, webhook_headers_sealed = $3
                      WHERE tenant_id = $1 AND subscription_id = $2 AND webhook_headers_sealed IS NOT DISTINCT FROM $4
                        AND (webhook_headers IS NULL) = ($4::bytea IS NOT NULL)",
                )
                .bind(tenant.0)
                .bind(id)
                .bind(seal_headers(Some(keyring), tenant, subscription, &headers)?)
                .bind(&sealed)
                .execute(self.engine())
                .await
                .map_err(StoreError::from)?;
                resealed += done.rows_affected();
            }
        }
    }
}
