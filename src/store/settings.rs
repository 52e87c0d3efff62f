//! Values that every replica shares and that are made once, such as the key that seals cursors. Kept sealed, like all secrets.

use super::secrets::{Keyring, KeyringError};
use super::{Store, StoreError};
use crate::clock;

/// Name of the key that seals cursors and page tokens.
pub const CURSOR_KEY: &str = "cursor_key";

/// Why a shared value cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SettingError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It does not open with the keys there are.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
}

impl Store {
    /// The 32 bytes of that name; made at random by whoever asks first.
    pub async fn setting_or_create(&self, name: &'static str, keyring: &Keyring) -> Result<[u8; 32], SettingError> {
        let made = keyring.seal_bytes(&clock::random_bytes::<32>(), name.as_bytes())?;
        sqlx::query("INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(name)
            .bind(made)
            .execute(self.engine())
            .await
            .map_err(StoreError::from)?;
        // Read back: of replicas that race, one has won.
        let sealed = self.setting(name).await?.ok_or(StoreError::Corrupt { what: "setting" })?;
        let value = keyring.open_bytes(&sealed, name.as_bytes())?;
        Ok(value.try_into().map_err(|_| StoreError::Corrupt { what: "setting" })?)
    }

    /// Seals the value of that name with the keyring's first key; true where another key had sealed it.
    pub async fn reseal_setting(&self, name: &'static str, keyring: &Keyring) -> Result<bool, SettingError> {
        let Some(sealed) = self.setting(name).await? else { return Ok(false) };
        if Keyring::key_id_of(&sealed)? == keyring.first_id() {
            return Ok(false);
        }
        let value = keyring.open_bytes(&sealed, name.as_bytes())?;
        let done = sqlx::query("UPDATE settings SET value = $2 WHERE name = $1 AND value = $3")
            .bind(name)
            .bind(keyring.seal_bytes(&value, name.as_bytes())?)
            .bind(sealed)
            .execute(self.engine())
            .await
            .map_err(StoreError::from)?;
        Ok(done.rows_affected() > 0)
    }

    async fn setting(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(sqlx::query_scalar("SELECT value FROM settings WHERE name = $1")
            .bind(name)
            .fetch_optional(self.engine())
            .await?)
    }
}
