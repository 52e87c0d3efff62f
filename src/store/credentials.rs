//! Finding out whose a credential is: the one question of a caller that is asked before its tenant is known.

use super::api_keys::{self, ApiKey};
use super::publisher_identities;
use super::{Store, StoreError};
use crate::domain::access::Publisher;
use crate::domain::ids::ApiKeyId;

impl Store {
    /// Reads a key and the hash of its secret. The id alone finds it: the tenant is what the key tells.
    pub async fn api_key_and_hash(&self, id: ApiKeyId) -> Result<Option<(ApiKey, [u8; 32])>, StoreError> {
        let row: Option<api_keys::Row> = sqlx::query_as(
            "SELECT api_key_id, tenant_id, app_id, role, display_name, created_at, expires_at, revoked_at, secret_hash
               FROM api_keys WHERE api_key_id = $1",
        )
        .bind(id.0)
        .fetch_optional(self.engine())
        .await?;
        row.map(api_keys::Row::parse).transpose()
    }

    /// The publishers registered for any of a certificate's names, at most two: more than one is one too many.
    pub async fn publishers_of(&self, subjects: &[String]) -> Result<Vec<Publisher>, StoreError> {
        let rows: Vec<publisher_identities::Row> = sqlx::query_as(
            "SELECT publisher_identity_id, tenant_id, subject, event_types, created_at
               FROM publisher_identities WHERE subject = ANY($1) ORDER BY publisher_identity_id LIMIT 2",
        )
        .bind(subjects)
        .fetch_all(self.engine())
        .await?;
        rows.into_iter().map(|row| publisher_identities::from_row(row).map(|identity| identity.publisher)).collect()
    }
}
