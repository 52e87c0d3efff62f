//! First answers of mutations that carried a request id, kept for 24 h so that a retry gets the same answer.
//!
//! Looked up and written under the tenant's head lock, in the transaction of the change itself: of two racing calls one makes the
//! change and the other reads its answer.

use super::{Store, StoreError};
use crate::domain::ids::TenantId;
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgConnection;

/// A caller's request id, and what it was sent with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestKey {
    /// The id, 1 to 256 printable ASCII characters.
    pub id: String,
    /// The RPC; ids of different RPCs are unrelated.
    pub method: &'static str,
    /// SHA-256 over the request's body.
    pub body_hash: [u8; 32],
}

/// What is known of a request id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Earlier {
    /// Nothing: go on.
    Unknown,
    /// The first answer, as it was stored.
    Answer(Vec<u8>),
    /// The id was used with another body.
    OtherBody,
}

/// A change that was made, or the stored first answer of its request id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Once<T> {
    /// The change was made now.
    Made(T),
    /// It was made before: the answer as it was stored.
    Before(Vec<u8>),
}

/// How long first answers are kept.
const KEPT: TimeDelta = TimeDelta::hours(24);

/// How many expired answers a new one removes.
const SWEPT_PER_ANSWER: i64 = 8;

impl Store {
    /// Looks an id up outside of any transaction: spares a retry the head lock. The answer under the lock decides.
    pub async fn earlier_answer(&self, tenant: TenantId, key: &RequestKey) -> Result<Earlier, StoreError> {
        self.within(async {
            let mut tx = self.begin_as(tenant).await?;
            let known = earlier(&mut tx, tenant, key, self.now()).await?;
            tx.commit().await?;
            Ok(known)
        })
        .await
    }
}

/// Reads what is known of an id.
pub(in crate::store) async fn earlier(
    connection: &mut PgConnection,
    tenant: TenantId,
    key: &RequestKey,
    now: DateTime<Utc>,
) -> Result<Earlier, StoreError> {
    let found: Option<(Vec<u8>, Vec<u8>)> = sqlx::query_as(
        "SELECT request_hash, response FROM request_ids
          WHERE tenant_id = $1 AND method = $2 AND request_id = $3 AND expires_at > $4",
    )
    .bind(tenant.0)
    .bind(key.method)
    .bind(&key.id)
    .bind(now)
    .fetch_optional(connection)
    .await?;
    Ok(match found {
        None => Earlier::Unknown,
        Some((hash, answer)) if hash == key.body_hash => Earlier::Answer(answer),
        Some(_) => Earlier::OtherBody,
    })
}

/// Keeps the first answer, in the transaction of the change; an expired one of the same id gives way.
pub(in crate::store) async fn keep(
    connection: &mut PgConnection,
    tenant: TenantId,
    key: &RequestKey,
    answer: &[u8],
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO request_ids (tenant_id, request_id, method, request_hash, response, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT ON CONSTRAINT request_ids_pk DO UPDATE SET
             request_hash = EXCLUDED.request_hash, response = EXCLUDED.response, expires_at = EXCLUDED.expires_at",
    )
    .bind(tenant.0)
    .bind(&key.id)
    .bind(key.method)
    .bind(key.body_hash.as_slice())
    .bind(answer)
    .bind(now + KEPT)
    .execute(&mut *connection)
    .await?;
    // Each new answer takes a few with it that are no longer kept, so the table stays small without a task of its own.
    sqlx::query(
        "DELETE FROM request_ids WHERE tenant_id = $1 AND (method, request_id) IN (
             SELECT method, request_id FROM request_ids WHERE tenant_id = $1 AND expires_at <= $2
              ORDER BY expires_at LIMIT $3)",
    )
    .bind(tenant.0)
    .bind(now)
    .bind(SWEPT_PER_ANSWER)
    .execute(connection)
    .await?;
    Ok(())
}
