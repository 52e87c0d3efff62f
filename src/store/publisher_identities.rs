//! Publisher identities: certificate names that may publish, each for one tenant.

use super::audit;
use super::request_ids::{Once, Repeatable};
use super::{Store, StoreError};
use crate::clock;
use crate::domain::access::Publisher;
use crate::domain::event_type::EventTypePattern;
use crate::domain::ids::{PublisherIdentityId, TenantId};
use chrono::{DateTime, Utc};
use uuid::Uuid;

/// A registered identity.
#[derive(Debug, Clone)]
pub struct PublisherIdentity {
    /// What the auth layer hands on.
    pub publisher: Publisher,
    /// When it was registered.
    pub created_at: DateTime<Utc>,
}

pub(in crate::store) type Row = (Uuid, Uuid, String, Vec<String>, DateTime<Utc>);

pub(in crate::store) fn from_row(
    (id, tenant, subject, event_types, created_at): Row,
) -> Result<PublisherIdentity, StoreError> {
    let patterns: Result<_, _> = event_types.iter().map(|text| EventTypePattern::parse(text)).collect();
    let event_types = patterns.map_err(|_| StoreError::Corrupt { what: "publisher identity" })?;
    let publisher = Publisher { id: PublisherIdentityId(id), tenant: TenantId(tenant), subject, event_types };
    Ok(PublisherIdentity { publisher, created_at })
}

impl Store {
    /// Registers an identity; none where the subject is registered already, in whatever tenant.
    pub async fn create_publisher_identity(
        &self,
        actor: String,
        tenant: TenantId,
        subject: String,
        event_types: Vec<EventTypePattern>,
        request: Repeatable<PublisherIdentity>,
    ) -> Result<Option<Once<PublisherIdentity>>, StoreError> {
        let store = self.clone();
        self.run(async move {
            let now = store.now();
            let id = PublisherIdentityId(clock::new_uuid());
            let patterns: Vec<String> = event_types.iter().map(ToString::to_string).collect();
            let mut tx = store.begin_as(tenant).await?;
            if let Some(answer) = request.begin(&mut tx, tenant, now).await? {
                return Ok(Some(Once::Before(answer)));
            }
            let made = sqlx::query(
                "INSERT INTO publisher_identities (publisher_identity_id, tenant_id, subject, event_types, created_at)
                 VALUES ($1, $2, $3, $4, $5)
                 ON CONFLICT ON CONSTRAINT publisher_identities_subject_unique DO NOTHING",
            )
            .bind(id.0)
            .bind(tenant.0)
            .bind(&subject)
            .bind(patterns)
            .bind(now)
            .execute(&mut *tx)
            .await?;
            if made.rows_affected() == 0 {
                return Ok(None);
            }
            audit::record(&mut tx, tenant, now, &actor, "CreatePublisherIdentity", &id.to_string()).await?;
            let publisher = Publisher { id, tenant, subject, event_types: event_types.into() };
            let made = PublisherIdentity { publisher, created_at: now };
            request.keep(&mut tx, tenant, &made, now).await?;
            tx.commit().await?;
            Ok(Some(Once::Made(made)))
        })
        .await
    }

    /// Lists a tenant's identities by subject, those after `after` where given.
    pub async fn publisher_identities(
        &self,
        tenant: TenantId,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<PublisherIdentity>, StoreError> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT publisher_identity_id, tenant_id, subject, event_types, created_at
               FROM publisher_identities WHERE tenant_id = $1 AND ($2::text IS NULL OR subject COLLATE \"C\" > $2)
              ORDER BY subject COLLATE \"C\" LIMIT $3",
        )
        .bind(tenant.0)
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(self.as_tenant(tenant))
        .await?;
        rows.into_iter().map(from_row).collect()
    }

    /// Removes an identity. Answers whether there was one.
    pub async fn delete_publisher_identity(
        &self,
        actor: String,
        tenant: TenantId,
        id: PublisherIdentityId,
        request: Repeatable<()>,
    ) -> Result<Option<Once<()>>, StoreError> {
        let store = self.clone();
        self.run(async move {
            let now = store.now();
            let mut tx = store.begin_as(tenant).await?;
            if let Some(answer) = request.begin(&mut tx, tenant, now).await? {
                return Ok(Some(Once::Before(answer)));
            }
            let gone =
                sqlx::query("DELETE FROM publisher_identities WHERE tenant_id = $1 AND publisher_identity_id = $2")
                    .bind(tenant.0)
                    .bind(id.0)
                    .execute(&mut *tx)
                    .await?;
            if gone.rows_affected() == 0 {
                return Ok(None);
            }
            audit::record(&mut tx, tenant, now, &actor, "DeletePublisherIdentity", &id.to_string()).await?;
            request.keep(&mut tx, tenant, &(), now).await?;
            tx.commit().await?;
            Ok(Some(Once::Made(())))
        })
        .await
    }
}
