//! The outbox of announcements: written in the transaction of the change they tell of, read and deleted by whoever publishes them.
//!
//! Published first and deleted then, each under an idempotency key of its own id: a crash between the two repeats a publish that
//! finds the first one.

use super::{Store, StoreError};
use crate::clock;
use crate::domain::announcement::Announcement;
use crate::domain::ids::TenantId;
use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

/// An announcement that waits.
#[derive(Debug, Clone, PartialEq)]
pub struct Waiting {
    /// Its id.
    pub id: Uuid,
    /// What to publish.
    pub announcement: Announcement,
}

impl Store {
    /// A tenant's announcements that are not published, in the order of the changes.
    pub async fn announcements(&self, tenant: TenantId, limit: u32) -> Result<Vec<Waiting>, StoreError> {
        let rows: Vec<(Uuid, String, String, String)> = sqlx::query_as(
            "SELECT announcement_id, event_type, subject, data FROM announcements
              WHERE tenant_id = $1 ORDER BY registry_version, announcement_id LIMIT $2",
        )
        .bind(tenant.0)
        .bind(i64::from(limit))
        .fetch_all(self.engine())
        .await?;
        let parse = |(id, event_type, subject, data): (_, _, _, String)| {
            let data = serde_json::from_str(&data).map_err(|_| StoreError::Corrupt { what: "announcement" })?;
            Ok(Waiting { id, announcement: Announcement { event_type, subject, data } })
        };
        rows.into_iter().map(parse).collect()
    }

    /// Deletes announcements that are published.
    pub async fn forget_announcements(&self, tenant: TenantId, ids: &[Uuid]) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM announcements WHERE tenant_id = $1 AND announcement_id = ANY($2)")
            .bind(tenant.0)
            .bind(ids)
            .execute(self.engine())
            .await?;
        Ok(())
    }
}

/// Writes an announcement, in the transaction of the change that got this registry version.
pub(in crate::store) async fn record(
    connection: &mut PgConnection,
    tenant: TenantId,
    registry_version: i64,
    announcement: &Announcement,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO announcements (tenant_id, registry_version, announcement_id, event_type, subject, data, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(tenant.0)
    .bind(registry_version)
    .bind(clock::new_uuid())
    .bind(&announcement.event_type)
    .bind(&announcement.subject)
    .bind(announcement.data.to_string())
    .bind(now)
    .execute(connection)
    .await?;
    Ok(())
}
