//! Every change to tenants' own event types, each in one transaction under the tenant's head lock.

use super::{
    EventTypeChange, EventTypeQuota, EventTypeRecord, EventTypeRefusal, NewEventType, compatibility_code, phase_code,
    read,
};
use crate::domain::announcement::Announcement;
use crate::domain::event_type::{EventType, EventTypeName, Origin, SchemaVersion};
use crate::domain::ids::TenantId;
use crate::domain::schema::compatibility::Compatibility;
use crate::store::audit::{self, Principal};
use crate::store::heads::RegistryChange;
use crate::store::request_ids::{Once, Repeatable};
use crate::store::{Store, StoreError, announcements, heads};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;

impl Store {
    /// Declares an event type, with its first schema version where one is given.
    pub async fn create_event_type(
        &self,
        by: Principal,
        new: NewEventType,
        quota: EventTypeQuota,
        request: Repeatable<EventTypeRecord>,
    ) -> Result<Once<EventTypeRecord>, EventTypeRefusal> {
        let store = self.clone();
        self.run(async move {
            let now = store.now();
            let work = async {
                let mut tx = store.begin_as(by.tenant).await?;
                let change = heads::bump_registry(&mut tx, by.tenant, now).await?;
                if let Some(answer) = request.begin(&mut tx, by.tenant, now).await? {
                    return Ok(Once::Before(answer));
                }
                let made = create(&mut tx, &by, new, quota, change.registry_version, now).await?;
                request.keep(&mut tx, by.tenant, &made, now).await?;
                tx.commit().await?;
                Ok(Once::Made(made))
            };
            Ok(work.await)
        })
        .await?
    }

    /// Changes an event type's texts or state; `etag` must match where given.
    pub async fn change_event_type(
        &self,
        by: Principal,
        name: EventTypeName,
        etag: Option<i64>,
        change: EventTypeChange,
        quota: EventTypeQuota,
        request: Repeatable<EventTypeRecord>,
    ) -> Result<Once<EventTypeRecord>, EventTypeRefusal> {
        let store = self.clone();
        self.run(async move {
            let now = store.now();
            let work = async {
                let mut tx = store.begin_as(by.tenant).await?;
                let registry = heads::bump_registry(&mut tx, by.tenant, now).await?;
                if let Some(answer) = request.begin(&mut tx, by.tenant, now).await? {
                    return Ok(Once::Before(answer));
                }
                let changed = apply(&mut tx, &by, &name, etag, &change, quota, registry, now).await?;
                request.keep(&mut tx, by.tenant, &changed, now).await?;
                tx.commit().await?;
                Ok(Once::Made(changed))
            };
            Ok(work.await)
        })
        .await?
    }

    /// Registers the next schema version of an event type, which was compared with what `compared` says of the type.
    pub async fn add_schema(
        &self,
        by: Principal,
        compared: EventType,
        document: String,
        quota: EventTypeQuota,
        request: Repeatable<SchemaVersion>,
    ) -> Result<Once<SchemaVersion>, EventTypeRefusal> {
        let store = self.clone();
        self.run(async move {
            let now = store.now();
            let work = async {
                let mut tx = store.begin_as(by.tenant).await?;
                let registry_version = heads::bump_registry(&mut tx, by.tenant, now).await?.registry_version;
                if let Some(answer) = request.begin(&mut tx, by.tenant, now).await? {
                    return Ok(Once::Before(answer));
                }
                let name = compared.name;
                let record = read(&mut tx, by.tenant, name.as_str()).await?.ok_or(EventTypeRefusal::NotFound)?;
                if record.event_type.deleted_at.is_some() {
                    return Err(EventTypeRefusal::Deleted);
                }
                let present = (record.event_type.latest_schema, record.event_type.compatibility);
                // Without a demand nothing was compared, so two that add at the same time need not see each other.
                if present != (compared.latest_schema, compared.compatibility) && present.1 != Compatibility::None {
                    return Err(EventTypeRefusal::SchemasChanged);
                }
                if record.event_type.latest_schema >= quota.schema_versions {
                    return Err(EventTypeRefusal::TooManyVersions(quota.schema_versions));
                }
                let made = SchemaVersion { version: record.event_type.latest_schema + 1, document, created_at: now };
                insert_schema(&mut tx, by.tenant, &name, &made).await?;
                sqlx::query(
                    "UPDATE event_types SET latest_schema = $3, registry_version = $4, updated_at = $5
                      WHERE tenant_id = $1 AND name = $2",
                )
                .bind(by.tenant.0)
                .bind(name.as_str())
                .bind(made.version)
                .bind(registry_version)
                .bind(now)
                .execute(&mut *tx)
                .await?;
                audit::record(&mut tx, by.tenant, now, &by.name, "AddEventTypeSchema", name.as_str()).await?;
                let before = record.event_type;
                let after = EventType { latest_schema: made.version, updated_at: now, ..before.clone() };
                let told = Announcement::event_type_changed(&before, &after, &by.name);
                announcements::record(&mut tx, by.tenant, registry_version, &told, now).await?;
                request.keep(&mut tx, by.tenant, &made, now).await?;
                tx.commit().await?;
                Ok(Once::Made(made))
            };
            Ok(work.await)
        })
        .await?
    }
}

async fn create(
    tx: &mut PgConnection,
    by: &Principal,
    new: NewEventType,
    quota: EventTypeQuota,
    registry_version: i64,
    now: DateTime<Utc>,
) -> Result<EventTypeRecord, EventTypeRefusal> {
    if read(tx, by.tenant, new.name.as_str()).await?.is_some() {
        return Err(EventTypeRefusal::Exists);
    }
    check_quota(tx, by.tenant, quota).await?;
    let latest_schema = i32::from(new.schema.is_some());
    sqlx::query(
        "INSERT INTO event_types (tenant_id, name, phase, display_name, description, latest_schema, registry_version,
             created_at, updated_at, compatibility) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8, $9)",
    )
    .bind(by.tenant.0)
    .bind(new.name.as_str())
    .bind(phase_code(new.phase))
    .bind(&new.display_name)
    .bind(&new.description)
    .bind(latest_schema)
    .bind(registry_version)
    .bind(now)
    .bind(compatibility_code(new.compatibility))
    .execute(&mut *tx)
    .await?;
    if let Some(document) = new.schema {
        let first = SchemaVersion { version: 1, document, created_at: now };
        insert_schema(tx, by.tenant, &new.name, &first).await?;
    }
    audit::record(tx, by.tenant, now, &by.name, "CreateEventType", new.name.as_str()).await?;
    let event_type = EventType {
        name: new.name,
        origin: Origin::Custom,
        phase: new.phase,
        display_name: new.display_name,
        description: new.description,
        latest_schema,
        compatibility: new.compatibility,
        created_at: now,
        updated_at: now,
        deleted_at: None,
    };
    let told = Announcement::event_type_created(&event_type, &by.name);
    announcements::record(tx, by.tenant, registry_version, &told, now).await?;
    Ok(EventTypeRecord { event_type, registry_version })
}

#[expect(clippy::too_many_arguments, reason = "the values of one row's change, used once")]
async fn apply(
    tx: &mut PgConnection,
    by: &Principal,
    name: &EventTypeName,
    etag: Option<i64>,
    change: &EventTypeChange,
    quota: EventTypeQuota,
    registry: RegistryChange,
    now: DateTime<Utc>,
) -> Result<EventTypeRecord, EventTypeRefusal> {
    let RegistryChange { registry_version, position } = registry;
    let record = read(tx, by.tenant, name.as_str()).await?.ok_or(EventTypeRefusal::NotFound)?;
    if etag.is_some_and(|etag| etag != record.registry_version) {
        return Err(EventTypeRefusal::Etag);
    }
    let before = record.event_type.clone();
    let mut event_type = record.event_type;
    let deleted = event_type.deleted_at.is_some();
    let action = match change {
        EventTypeChange::Describe { .. } | EventTypeChange::Delete if deleted => return Err(EventTypeRefusal::Deleted),
        EventTypeChange::Describe { display_name, description, compatibility } => {
            event_type.display_name = display_name.clone().unwrap_or(event_type.display_name);
            event_type.description = description.clone().unwrap_or(event_type.description);
            event_type.compatibility = compatibility.unwrap_or(event_type.compatibility);
            "UpdateEventType"
        }
        EventTypeChange::Delete => {
            // Subscribe checks the type under the same head lock, so none can be added behind this check.
            let subscribed: bool = sqlx::query_scalar(
                "SELECT EXISTS (SELECT FROM subscriptions WHERE tenant_id = $1 AND event_type = $2 AND state <> 3)",
            )
            .bind(by.tenant.0)
            .bind(name.as_str())
            .fetch_one(&mut *tx)
            .await?;
            if subscribed {
                return Err(EventTypeRefusal::Subscribed);
            }
            event_type.deleted_at = Some(now);
            "DeleteEventType"
        }
        EventTypeChange::Undelete if !deleted => return Err(EventTypeRefusal::NotDeleted),
        EventTypeChange::Undelete => {
            let quota = EventTypeQuota { deleted_event_types: i64::MAX, ..quota };
            check_quota(tx, by.tenant, quota).await?;
            event_type.deleted_at = None;
            "UndeleteEventType"
        }
    };
    event_type.updated_at = now;
    sqlx::query(
        "UPDATE event_types SET display_name = $3, description = $4, deleted_at = $5, registry_version = $6, updated_at = $7,
             compatibility = $8, deleted_position = $9
          WHERE tenant_id = $1 AND name = $2",
    )
    .bind(by.tenant.0)
    .bind(name.as_str())
    .bind(&event_type.display_name)
    .bind(&event_type.description)
    .bind(event_type.deleted_at)
    .bind(registry_version)
    .bind(now)
    .bind(compatibility_code(event_type.compatibility))
    .bind(event_type.deleted_at.map(|_| position))
    .execute(&mut *tx)
    .await?;
    audit::record(tx, by.tenant, now, &by.name, action, name.as_str()).await?;
    let told = Announcement::event_type_changed(&before, &event_type, &by.name);
    announcements::record(tx, by.tenant, registry_version, &told, now).await?;
    Ok(EventTypeRecord { event_type, registry_version })
}

/// Refuses one more active type than the tenant may have, and any where as many are retired and not purged as may be.
async fn check_quota(tx: &mut PgConnection, tenant: TenantId, quota: EventTypeQuota) -> Result<(), EventTypeRefusal> {
    let (active, deleted): (i64, i64) = sqlx::query_as(
        "SELECT count(*) FILTER (WHERE deleted_at IS NULL), count(*) FILTER (WHERE deleted_at IS NOT NULL)
           FROM event_types WHERE tenant_id = $1",
    )
    .bind(tenant.0)
    .fetch_one(tx)
    .await?;
    if active >= quota.event_types {
        return Err(EventTypeRefusal::TooMany(quota.event_types));
    }
    if deleted >= quota.deleted_event_types {
        return Err(EventTypeRefusal::TooManyDeleted(quota.deleted_event_types));
    }
    Ok(())
}

async fn insert_schema(
    tx: &mut PgConnection,
    tenant: TenantId,
    name: &EventTypeName,
    schema: &SchemaVersion,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO event_type_schemas (tenant_id, event_type, version, document, created_at) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(tenant.0)
    .bind(name.as_str())
    .bind(schema.version)
    .bind(&schema.document)
    .bind(schema.created_at)
    .execute(tx)
    .await?;
    Ok(())
}
