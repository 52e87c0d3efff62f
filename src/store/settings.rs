//! Values that every replica shares and that are made once, such as the key that seals cursors.

use super::{Store, StoreError};
use crate::clock;

/// Name of the key that seals cursors and page tokens.
pub const CURSOR_KEY: &str = "cursor_key";

impl Store {
    /// The 32 bytes of that name; made at random by whoever asks first.
    pub async fn setting_or_create(&self, name: &'static str) -> Result<[u8; 32], StoreError> {
        sqlx::query("INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(name)
            .bind(clock::random_bytes::<32>())
            .execute(self.engine())
            .await?;
        // Read back: of replicas that race, one has won.
        let value: Vec<u8> = sqlx::query_scalar("SELECT value FROM settings WHERE name = $1")
            .bind(name)
            .fetch_one(self.engine())
            .await?;
        value.try_into().map_err(|_| StoreError::Corrupt { what: "setting" })
    }
}
