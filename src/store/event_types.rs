//! Tenants' own event types and their schema versions: what they are made of in the store, and reading them.
//!
//! `change` makes every change to them.
//! System types are not here: they come from the catalogue files and are the same in every tenant.

mod change;

use super::{Store, StoreError};
use crate::domain::event_type::{EventType, EventTypeName, Origin, Phase, SchemaVersion};
use crate::domain::ids::TenantId;
use crate::domain::schema::compatibility::Compatibility;
use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection};

/// A tenant's own event type, with the registry version of its last change: its etag.
#[derive(Debug, Clone)]
pub struct EventTypeRecord {
    /// What the catalogue says of it.
    pub event_type: EventType,
    /// The registry version of its last change.
    pub registry_version: i64,
}

/// What a new event type is made of; its texts are within the documented bounds.
#[derive(Debug, Clone)]
pub struct NewEventType {
    /// Starts with `CUSTOM_`.
    pub name: EventTypeName,
    /// When its listeners run.
    pub phase: Phase,
    /// Name for people.
    pub display_name: String,
    /// What it means.
    pub description: String,
    /// The document of its first schema version.
    pub schema: Option<String>,
    /// What a further version must keep.
    pub compatibility: Compatibility,
}

/// What a change does to an event type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventTypeChange {
    /// Other texts, or another demand on further schema versions; none leaves one as it is.
    Describe {
        /// Name for people.
        display_name: Option<String>,
        /// What it means.
        description: Option<String>,
        /// What a further schema version must keep.
        compatibility: Option<Compatibility>,
    },
    /// Retire it.
    Delete,
    /// Bring it back.
    Undelete,
}

/// How many a tenant may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventTypeQuota {
    /// Event types that are not retired.
    pub event_types: i64,
    /// Retired event types that are not purged yet.
    pub deleted_event_types: i64,
    /// Schema versions of one type.
    pub schema_versions: i32,
}

/// Why a change of an event type is refused.
#[derive(Debug, thiserror::Error)]
pub enum EventTypeRefusal {
    /// The name is taken, be it by a retired type.
    #[error("an event type of that name exists")]
    Exists,
    /// No such event type.
    #[error("no such event type")]
    NotFound,
    /// It is retired, and the change needs an active one.
    #[error("the event type is retired")]
    Deleted,
    /// It is not retired, and the change needs a retired one.
    #[error("the event type is not retired")]
    NotDeleted,
    /// Subscriptions still listen to it.
    #[error("the event type still has subscriptions")]
    Subscribed,
    /// Somebody else changed it.
    #[error("the etag does not match")]
    Etag,
    /// The tenant has as many event types as it may.
    #[error("the tenant has {0} event types")]
    TooMany(i64),
    /// As many of the tenant's event types are retired and not purged as may be.
    #[error("{0} retired event types are not purged yet")]
    TooManyDeleted(i64),
    /// The type has as many schema versions as it may.
    #[error("the event type has {0} schema versions")]
    TooManyVersions(i32),
    /// A schema version was added, or the demand on it changed, since it was compared.
    #[error("the event type's schemas changed meanwhile")]
    SchemasChanged,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for EventTypeRefusal {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

#[derive(sqlx::FromRow)]
struct EventTypeRow {
    name: String,
    phase: i16,
    display_name: String,
    description: String,
    latest_schema: i32,
    compatibility: i16,
    registry_version: i64,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    deleted_at: Option<DateTime<Utc>>,
}

const COLUMNS: &str = "name, phase, display_name, description, latest_schema, compatibility, registry_version, created_at, \
     updated_at, deleted_at";

/// Rows per statement where all changes are read.
const CHANGES_PER_PAGE: i64 = 2_000;

impl EventTypeRow {
    fn parse(self) -> Result<EventTypeRecord, StoreError> {
        let corrupt = StoreError::Corrupt { what: "event type" };
        let event_type = EventType {
            name: EventTypeName::parse_custom(&self.name).map_err(|_| StoreError::Corrupt { what: "event type" })?,
            origin: Origin::Custom,
            phase: match self.phase {
                1 => Phase::Pre,
                2 => Phase::Post,
                _ => return Err(corrupt),
            },
            display_name: self.display_name,
            description: self.description,
            latest_schema: self.latest_schema,
            compatibility: match self.compatibility {
                0 => Compatibility::None,
                1 => Compatibility::Backward,
                2 => Compatibility::Forward,
                3 => Compatibility::Full,
                _ => return Err(corrupt),
            },
            created_at: self.created_at,
            updated_at: self.updated_at,
            deleted_at: self.deleted_at,
        };
        Ok(EventTypeRecord { event_type, registry_version: self.registry_version })
    }
}

fn compatibility_code(compatibility: Compatibility) -> i16 {
    match compatibility {
        Compatibility::None => 0,
        Compatibility::Backward => 1,
        Compatibility::Forward => 2,
        Compatibility::Full => 3,
    }
}

fn phase_code(phase: Phase) -> i16 {
    match phase {
        Phase::Pre => 1,
        Phase::Post => 2,
    }
}

impl Store {
    /// Every event type changed after a registry version, retired ones included, in the order of their changes.
    ///
    /// Reads in pages: a type that changes meanwhile may come twice, the later state later.
    pub async fn event_types_changed_since(
        &self,
        tenant: TenantId,
        version: i64,
    ) -> Result<Vec<EventType>, StoreError> {
        // Every change has a registry version of its own, so pages that go by it lose nothing.
        let sql = format!(
            "SELECT {COLUMNS} FROM event_types WHERE tenant_id = $1 AND registry_version > $2 AND ($4 OR deleted_at IS NULL)
              ORDER BY registry_version LIMIT $3"
        );
        let mut changed = Vec::new();
        let mut after = version;
        loop {
            let rows: Vec<EventTypeRow> = sqlx::query_as(AssertSqlSafe(sql.clone()))
                .bind(tenant.0)
                .bind(after)
                .bind(CHANGES_PER_PAGE)
                .bind(version > 0)
                .fetch_all(self.as_tenant(tenant))
                .await?;
            let full = i64::try_from(rows.len()).is_ok_and(|rows| rows == CHANGES_PER_PAGE);
            after = rows.last().map_or(after, |last| last.registry_version);
            for row in rows {
                changed.push(row.parse()?.event_type);
            }
            if !full {
                return Ok(changed);
            }
        }
    }

    /// Reads one schema version of a tenant's own type.
    pub async fn schema(
        &self,
        tenant: TenantId,
        event_type: &EventTypeName,
        version: i32,
    ) -> Result<Option<SchemaVersion>, StoreError> {
        let row: Option<(i32, String, DateTime<Utc>)> = sqlx::query_as(
            "SELECT version, document, created_at FROM event_type_schemas
              WHERE tenant_id = $1 AND event_type = $2 AND version = $3",
        )
        .bind(tenant.0)
        .bind(event_type.as_str())
        .bind(version)
        .fetch_optional(self.as_tenant(tenant))
        .await?;
        Ok(row.map(|(version, document, created_at)| SchemaVersion { version, document, created_at }))
    }

    /// Lists the schema versions of a tenant's own type, newest first, those before `before` where given.
    pub async fn schemas(
        &self,
        tenant: TenantId,
        event_type: &EventTypeName,
        before: Option<i32>,
        limit: u32,
    ) -> Result<Vec<SchemaVersion>, StoreError> {
        let rows: Vec<(i32, String, DateTime<Utc>)> = sqlx::query_as(
            "SELECT version, document, created_at FROM event_type_schemas
              WHERE tenant_id = $1 AND event_type = $2 AND ($3::integer IS NULL OR version < $3)
              ORDER BY version DESC LIMIT $4",
        )
        .bind(tenant.0)
        .bind(event_type.as_str())
        .bind(before)
        .bind(i64::from(limit))
        .fetch_all(self.as_tenant(tenant))
        .await?;
        let parse = |(version, document, created_at)| SchemaVersion { version, document, created_at };
        Ok(rows.into_iter().map(parse).collect())
    }

    /// Reads one of a tenant's own types, retired or not.
    pub async fn event_type(&self, tenant: TenantId, name: &str) -> Result<Option<EventTypeRecord>, StoreError> {
        self.within(async {
            let mut tx = self.begin_as(tenant).await?;
            let found = read(&mut tx, tenant, name).await?;
            tx.commit().await?;
            Ok(found)
        })
        .await
    }

    /// Lists a tenant's own types by name, those after `after` where given.
    pub async fn event_types(
        &self,
        tenant: TenantId,
        after: Option<&str>,
        deleted: Deleted,
        limit: u32,
    ) -> Result<Vec<EventTypeRecord>, StoreError> {
        // The C collation makes the order that of the names' bytes, as the catalogue's own.
        let sql = format!(
            "SELECT {COLUMNS} FROM event_types
              WHERE tenant_id = $1 AND ($2::text IS NULL OR name COLLATE \"C\" > $2) AND ($3 OR deleted_at IS NULL)
              ORDER BY name COLLATE \"C\" LIMIT $4"
        );
        let rows: Vec<EventTypeRow> = sqlx::query_as(AssertSqlSafe(sql))
            .bind(tenant.0)
            .bind(after)
            .bind(deleted == Deleted::Show)
            .bind(i64::from(limit))
            .fetch_all(self.as_tenant(tenant))
            .await?;
        rows.into_iter().map(EventTypeRow::parse).collect()
    }
}

/// Whether a list shows retired types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    /// Only active types.
    Hide,
    /// Retired types, too.
    Show,
}

/// True where the tenant's own type exists and is not retired; read under the caller's head lock.
pub(in crate::store) async fn is_active(
    connection: &mut PgConnection,
    tenant: TenantId,
    name: &EventTypeName,
) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM event_types WHERE tenant_id = $1 AND name = $2 AND deleted_at IS NULL)",
    )
    .bind(tenant.0)
    .bind(name.as_str())
    .fetch_one(connection)
    .await?)
}

/// Reads one of a tenant's own types, retired or not.
async fn read(
    connection: &mut PgConnection,
    tenant: TenantId,
    name: &str,
) -> Result<Option<EventTypeRecord>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM event_types WHERE tenant_id = $1 AND name = $2");
    let row: Option<EventTypeRow> =
        sqlx::query_as(AssertSqlSafe(sql)).bind(tenant.0).bind(name).fetch_optional(connection).await?;
    row.map(EventTypeRow::parse).transpose()
}
