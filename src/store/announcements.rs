//! The outbox of announcements: written in the transaction of the change they tell of, read and deleted by whoever publishes them.
//!
//! Published first and deleted then, each under an idempotency key of its own id: a crash between the two repeats a publish that
//! finds the first one.

use super::{Store, StoreError};
use crate::clock;
use crate::domain::announcement::Announcement;
use crate::domain::event::Lineage;
use crate::domain::ids::{EventId, InvocationId, SubscriptionNo, TenantId};
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

#[derive(sqlx::FromRow)]
struct Row {
    announcement_id: Uuid,
    event_type: String,
    subject: String,
    data: String,
    root_id: Option<Uuid>,
    cause_event_id: Option<Uuid>,
    cause_subscription_no: Option<SubscriptionNo>,
    depth: Option<i32>,
    lineage: Option<Vec<SubscriptionNo>>,
}

impl Row {
    fn parse(self) -> Result<Waiting, StoreError> {
        let data = serde_json::from_str(&self.data).map_err(|_| StoreError::Corrupt { what: "announcement" })?;
        let cause = self.cause_event_id.zip(self.cause_subscription_no);
        let lineage = self.root_id.map(|root| Lineage {
            root: EventId(root),
            cause: cause.map(|(event, subscription_no)| InvocationId { event: EventId(event), subscription_no }),
            depth: self.depth.unwrap_or_default(),
            subscriptions: self.lineage.unwrap_or_default(),
        });
        let announcement = Announcement { event_type: self.event_type, subject: self.subject, data, lineage };
        Ok(Waiting { id: self.announcement_id, announcement })
    }
}

impl Store {
    /// A tenant's announcements that are not published, in the order of the changes.
    pub async fn announcements(&self, tenant: TenantId, limit: u32) -> Result<Vec<Waiting>, StoreError> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT announcement_id, event_type, subject, data, root_id, cause_event_id, cause_subscription_no, depth, lineage
               FROM announcements WHERE tenant_id = $1 ORDER BY registry_version, announcement_id LIMIT $2",
        )
        .bind(tenant.0)
        .bind(i64::from(limit))
        .fetch_all(self.as_tenant(tenant))
        .await?;
        rows.into_iter().map(Row::parse).collect()
    }

    /// Deletes announcements that are published.
    pub async fn forget_announcements(&self, tenant: TenantId, ids: &[Uuid]) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM announcements WHERE tenant_id = $1 AND announcement_id = ANY($2)")
            .bind(tenant.0)
            .bind(ids)
            .execute(self.as_tenant(tenant))
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
    let lineage = announcement.lineage.as_ref();
    let cause = lineage.and_then(|lineage| lineage.cause);
    sqlx::query(
        "INSERT INTO announcements (tenant_id, registry_version, announcement_id, event_type, subject, data, created_at, root_id,
                cause_event_id, cause_subscription_no, depth, lineage)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
    )
    .bind(tenant.0)
    .bind(registry_version)
    .bind(clock::new_uuid())
    .bind(&announcement.event_type)
    .bind(&announcement.subject)
    .bind(announcement.data.to_string())
    .bind(now)
    .bind(lineage.map(|lineage| lineage.root.0))
    .bind(cause.map(|cause| cause.event.0))
    .bind(cause.map(|cause| cause.subscription_no))
    .bind(lineage.map(|lineage| lineage.depth))
    .bind(lineage.map(|lineage| lineage.subscriptions.as_slice()))
    .execute(connection)
    .await?;
    Ok(())
}
