//! First answers of mutations that carried a request id, kept for 24 h so that a retry gets the same answer.
//!
//! A change takes its id in its own transaction, before it does anything: of two racing calls one makes the change, and the other
//! waits for its end and reads its answer. What is kept is bytes; who asks may have sealed them.

use super::{Store, StoreError};
use crate::domain::ids::TenantId;
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgConnection;
use std::fmt;

/// A caller's request id, and what it was sent with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestKey {
    /// The id, 1 to 256 printable ASCII characters.
    pub id: String,
    /// The RPC.
    pub method: &'static str,
    /// SHA-256 over the request's body.
    pub body_hash: [u8; 32],
}

/// A change that was made, or the stored first answer of its request id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Once<T> {
    /// The change was made now.
    Made(T),
    /// It was made before: the answer as it was stored.
    Before(Vec<u8>),
}

impl<T> Once<T> {
    /// What was made now; none where it was made before.
    pub fn made(self) -> Option<T> {
        match self {
            Self::Made(made) => Some(made),
            Self::Before(_) => None,
        }
    }
}

type Encode<T> = Box<dyn FnOnce(&T) -> Result<Vec<u8>, StoreError> + Send + Sync>;

/// The request id of a change, where it has one, and how the answer to it is kept.
pub struct Repeatable<T> {
    kept: Option<(RequestKey, Encode<T>)>,
}

impl<T> Repeatable<T> {
    /// `answer` encodes what a retry gets.
    pub fn new(
        key: RequestKey,
        answer: impl FnOnce(&T) -> Result<Vec<u8>, StoreError> + Send + Sync + 'static,
    ) -> Self {
        Self { kept: Some((key, Box::new(answer))) }
    }

    /// True where a retry is to get the answer.
    pub fn is_kept(&self) -> bool {
        self.kept.is_some()
    }

    /// Takes the id, in the transaction of the change: the first answer where it was taken before.
    ///
    /// Errors: [`StoreError::RequestIdReused`] where that was with another RPC or another body.
    pub(in crate::store) async fn begin(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
        now: DateTime<Utc>,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let Some((key, _)) = &self.kept else { return Ok(None) };
        // Waits for a transaction that has taken the same id; an expired one gives way.
        let taken = sqlx::query(
            "INSERT INTO request_ids (tenant_id, request_id, method, request_hash, response, expires_at)
             VALUES ($1, $2, $3, $4, '', $5)
             ON CONFLICT ON CONSTRAINT request_ids_pk DO UPDATE SET method = EXCLUDED.method,
                 request_hash = EXCLUDED.request_hash, response = EXCLUDED.response, expires_at = EXCLUDED.expires_at
              WHERE request_ids.expires_at <= $6",
        )
        .bind(tenant.0)
        .bind(&key.id)
        .bind(key.method)
        .bind(key.body_hash.as_slice())
        .bind(now + KEPT)
        .bind(now)
        .execute(&mut *connection)
        .await?;
        if taken.rows_affected() > 0 {
            return Ok(None);
        }
        let found = earlier(connection, tenant, key, now).await?;
        // It can only be missing where it was swept in between.
        found.map(Some).ok_or(StoreError::Interrupted)
    }

    /// Keeps the answer, in the transaction of the change, which has taken the id.
    pub(in crate::store) async fn keep(
        self,
        connection: &mut PgConnection,
        tenant: TenantId,
        made: &T,
        now: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        let Some((key, answer)) = self.kept else { return Ok(()) };
        write(connection, tenant, &key, &answer(made)?, now).await?;
        // Each new answer takes a few with it that are no longer kept, so the table stays small without a task of its own. The row
        // comparison says no more than `expires_at <= $2`: in the index of all tenants' times what others have left would be read.
        sqlx::query(
            "DELETE FROM request_ids WHERE tenant_id = $1 AND request_id IN (
                 SELECT request_id FROM request_ids WHERE tenant_id = $1 AND (tenant_id, expires_at) <= ($1, $2)
                  ORDER BY expires_at LIMIT $3)",
        )
        .bind(tenant.0)
        .bind(now)
        .bind(SWEPT_PER_ANSWER)
        .execute(connection)
        .await?;
        Ok(())
    }
}

impl<T> Default for Repeatable<T> {
    /// A change without a request id.
    fn default() -> Self {
        Self { kept: None }
    }
}

impl<T> fmt::Debug for Repeatable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Repeatable").field(&self.kept.as_ref().map(|(key, _)| key)).finish()
    }
}

/// How long first answers are kept.
const KEPT: TimeDelta = TimeDelta::hours(24);

/// How many expired answers a new one removes.
const SWEPT_PER_ANSWER: i64 = 8;

impl Store {
    /// Looks an id up outside of any transaction: spares a retry the checks that its first call has passed. The look in the
    /// transaction of the change decides.
    ///
    /// Errors: [`StoreError::RequestIdReused`].
    pub async fn earlier_answer(&self, tenant: TenantId, key: &RequestKey) -> Result<Option<Vec<u8>>, StoreError> {
        self.within(async {
            let mut tx = self.begin_as(tenant).await?;
            let known = earlier(&mut tx, tenant, key, self.now()).await?;
            tx.commit().await?;
            Ok(known)
        })
        .await
    }

    /// Keeps what a call was answered that changed nothing, or whose answer was not known before its change was made.
    pub async fn keep_answer(&self, tenant: TenantId, key: &RequestKey, answer: &[u8]) -> Result<(), StoreError> {
        self.within(async {
            let mut tx = self.begin_as(tenant).await?;
            write(&mut tx, tenant, key, answer, self.now()).await?;
            tx.commit().await?;
            Ok(())
        })
        .await
    }
}

/// Frees an id whose change was taken back, in the transaction that does it.
pub(in crate::store) async fn forget(
    connection: &mut PgConnection,
    tenant: TenantId,
    key: &RequestKey,
) -> Result<(), StoreError> {
    sqlx::query(
        "DELETE FROM request_ids WHERE tenant_id = $1 AND method = $2 AND request_id = $3 AND request_hash = $4",
    )
    .bind(tenant.0)
    .bind(key.method)
    .bind(&key.id)
    .bind(key.body_hash.as_slice())
    .execute(connection)
    .await?;
    Ok(())
}

/// The first answer of an id.
async fn earlier(
    connection: &mut PgConnection,
    tenant: TenantId,
    key: &RequestKey,
    now: DateTime<Utc>,
) -> Result<Option<Vec<u8>>, StoreError> {
    let found: Option<(String, Vec<u8>, Vec<u8>)> = sqlx::query_as(
        "SELECT method, request_hash, response FROM request_ids
          WHERE tenant_id = $1 AND request_id = $2 AND expires_at > $3",
    )
    .bind(tenant.0)
    .bind(&key.id)
    .bind(now)
    .fetch_optional(connection)
    .await?;
    match found {
        Some((method, hash, _)) if method != key.method || hash != key.body_hash => Err(StoreError::RequestIdReused),
        found => Ok(found.map(|(_, _, answer)| answer)),
    }
}

/// Writes the answer of an id that this call has taken, or that nobody has.
async fn write(
    connection: &mut PgConnection,
    tenant: TenantId,
    key: &RequestKey,
    answer: &[u8],
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    // Of two different calls with one id that change nothing, the later one leaves the first one's answer alone.
    sqlx::query(
        "INSERT INTO request_ids (tenant_id, request_id, method, request_hash, response, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT ON CONSTRAINT request_ids_pk DO UPDATE SET method = EXCLUDED.method,
             request_hash = EXCLUDED.request_hash, response = EXCLUDED.response, expires_at = EXCLUDED.expires_at
          WHERE request_ids.method = EXCLUDED.method AND request_ids.request_hash = EXCLUDED.request_hash OR request_ids.expires_at <= $7",
    )
    .bind(tenant.0)
    .bind(&key.id)
    .bind(key.method)
    .bind(key.body_hash.as_slice())
    .bind(answer)
    .bind(now + KEPT)
    .bind(now)
    .execute(connection)
    .await?;
    Ok(())
}
