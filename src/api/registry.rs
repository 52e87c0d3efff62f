//! What the handlers of event types and subscriptions share: their parts, their bounds, and how refusals become errors.
//!
//! Handlers parse, call the store and convert; nothing here decides what matches.

use super::auth;
use super::status::ApiError;
use super::subscriptions::explain::Explains;
use super::subscriptions::trial::Trials;
use crate::domain::access::{Caller, Role};
use crate::domain::catalogue::{Catalogue, SystemEventType};
use crate::domain::event_type::{CompiledSchema, EventType, EventTypeName};
use crate::domain::ids::TenantId;
use crate::domain::quotas::{Limits, Quota};
use crate::domain::webhook::WebhookUri;
use crate::feed::{Feed, News};
use crate::publish::registry::Registry;
use crate::store::Store;
use crate::store::apps::App;
use crate::store::audit::Principal;
use crate::store::event_types::{Deleted, EventTypeQuota, EventTypeRecord, EventTypeRefusal};
use crate::store::secrets::{Keyring, KeyringError};
use crate::wire::FieldError;
use crate::wire::page::{PageTokenError, PageTokens};
use crate::wire::subscription::SubscriptionError;
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::sync::Arc;
use tonic::Request;

/// Says whether the egress guard lets a webhook's URI be called, and why not.
pub type UriCheck = Arc<dyn Fn(&WebhookUri) -> Result<(), String> + Send + Sync>;

/// How many of a tenant's own names are looked at for one that is near.
const NEAR_CANDIDATES_MAX: u32 = 1_000;
/// How many near names an error offers.
const NEAR_MAX: usize = 5;

/// How much a tenant may have and do, where nothing else is set for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Subscriptions of a tenant that are not deleted; default 100,000.
    pub subscriptions_max: u32,
    /// Deleted subscriptions of a tenant that are not purged yet; default 100,000.
    pub deleted_subscriptions_max: u32,
    /// Event types of a tenant that are not retired; default 10,000.
    pub event_types_max: u32,
    /// Retired event types of a tenant that are not purged yet; default 10,000.
    pub deleted_event_types_max: u32,
    /// Schema versions of one event type; default 1,000.
    pub schema_versions_max: u16,
    /// Events that a tenant may publish a second on each replica.
    pub publish_events_per_second: u64,
    /// Events that may come at once after a pause.
    pub publish_events_burst: u64,
    /// Bytes of events that a tenant may publish a second on each replica.
    pub publish_bytes_per_second: u64,
    /// Bytes that may come at once after a pause.
    pub publish_bytes_burst: u64,
    /// Invocations of a tenant that are neither final nor dead letters, beyond which nothing more is published.
    pub backlog_max: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            subscriptions_max: 100_000,
            deleted_subscriptions_max: 100_000,
            event_types_max: 10_000,
            deleted_event_types_max: 10_000,
            schema_versions_max: 1_000,
            publish_events_per_second: 1_000_000,
            publish_events_burst: 1_000_000,
            publish_bytes_per_second: 1024 * 1024 * 1024,
            publish_bytes_burst: 1024 * 1024 * 1024,
            backlog_max: 10_000_000,
        }
    }
}

impl Config {
    /// Checks the bounds of the quotas. Errors: the key, and its bounds.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        for quota in Quota::ALL {
            let bounds = quota.bounds();
            if self.quota(quota).is_some_and(|value| !bounds.contains(&value)) {
                return Err((quota.name(), format!("must be {} to {}", bounds.start(), bounds.end())));
            }
        }
        Ok(())
    }

    /// What this section says of a quota; none of those that other sections set.
    pub fn quota(&self, quota: Quota) -> Option<u64> {
        Some(match quota {
            Quota::PublishEventsPerSecond => self.publish_events_per_second,
            Quota::PublishEventsBurst => self.publish_events_burst,
            Quota::PublishBytesPerSecond => self.publish_bytes_per_second,
            Quota::PublishBytesBurst => self.publish_bytes_burst,
            Quota::Backlog => self.backlog_max,
            Quota::EventBytes | Quota::Subscriptions | Quota::Watches => return None,
        })
    }
}

/// What the handlers work with. Cheap to clone.
#[derive(Clone)]
pub struct RegistryDeps {
    /// The store.
    pub store: Store,
    /// Seals signing secrets.
    pub keyring: Keyring,
    /// The system event types.
    pub catalogue: Arc<Catalogue>,
    /// Tells this process of changes.
    pub feed: Feed,
    /// Seals page tokens.
    pub page_tokens: PageTokens,
    /// What matches, and the compiled schemas.
    pub registry: Registry,
    /// Test runs of listeners.
    pub trials: Trials,
    /// Calls of ExplainMatch.
    pub explains: Explains,
    /// The egress guard.
    pub uri_check: UriCheck,
    /// The bounds.
    pub config: Config,
}

/// An event type that exists, retired or not.
pub(super) enum Known {
    /// From the catalogue files.
    System(Arc<SystemEventType>),
    /// A tenant's own.
    Custom(EventTypeRecord),
}

impl Known {
    pub(super) fn event_type(&self) -> &EventType {
        match self {
            Self::System(system) => &system.event_type,
            Self::Custom(record) => &record.event_type,
        }
    }

    pub(super) fn registry_version(&self) -> Option<i64> {
        match self {
            Self::System(_) => None,
            Self::Custom(record) => Some(record.registry_version),
        }
    }
}

/// The caller, where its role suffices, with the request's message.
pub(super) fn authorised<T>(request: Request<T>, role: Role) -> Result<(Caller, T), ApiError> {
    let caller = auth::caller(&request)?.require(role)?.clone();
    Ok((caller, request.into_inner()))
}

/// On whose behalf the store works.
pub(super) fn principal(caller: &Caller) -> Principal {
    Principal { tenant: caller.tenant, app: caller.app, name: caller.subject.to_string() }
}

/// A bad field as an error.
pub(super) fn invalid(error: FieldError) -> ApiError {
    ApiError::field(error.field, error.description)
}

/// A bad field or filter as an error.
pub(super) fn refused(error: SubscriptionError) -> ApiError {
    match error {
        SubscriptionError::Field(error) => invalid(error),
        SubscriptionError::Filter { field, error } => {
            ApiError::FilterInvalid { field, column: error.column, message: error.message }
        }
    }
}

/// A page token that is not of this call as an error.
pub(super) fn wrong_page(_: PageTokenError) -> ApiError {
    ApiError::PageTokenInvalid
}

/// A secret that cannot be sealed or opened as an error.
pub(super) fn unsealed(error: KeyringError) -> ApiError {
    ApiError::internal("seal or open a secret", error)
}

impl RegistryDeps {
    /// The quotas that apply to a tenant, as they are now.
    pub(super) async fn limits(&self, tenant: TenantId) -> Result<Limits, ApiError> {
        let (overrides, _) = self.store.quotas(tenant).await?;
        Ok(self.registry.limits().with(&overrides))
    }

    /// The bounds on event types.
    pub(super) fn event_type_quota(&self) -> EventTypeQuota {
        EventTypeQuota {
            event_types: i64::from(self.config.event_types_max),
            deleted_event_types: i64::from(self.config.deleted_event_types_max),
            schema_versions: i32::from(self.config.schema_versions_max),
        }
    }

    /// Tells this process that a tenant's registry changed, so that it publishes by it at once.
    ///
    /// Only a hint: a head that cannot be read now is noticed by the poll. The change is made, so this waits for no turn among the tenant's
    /// calls.
    pub(super) async fn announce(&self, tenant: TenantId) {
        match self.store.owed().head(tenant).await {
            Ok(Some(head)) => self.feed.send(&News::Head(head.head())),
            Ok(None) => {}
            Err(error) => tracing::debug!(error = &error as &dyn Error, "a changed head is left to the poll"),
        }
    }

    /// The app of that slug as far as the caller sees it; none also for another app's key.
    pub(super) async fn visible_app(&self, caller: &Caller, slug: &str) -> Result<Option<App>, ApiError> {
        let app = self.store.app_by_slug(caller.tenant, slug).await?;
        Ok(app.filter(|app| caller.app.is_none_or(|own| own == app.id)))
    }

    /// The event type of that name, retired or not. Errors: EVENT_TYPE_NOT_FOUND with near names.
    pub(super) async fn event_type(&self, tenant: TenantId, name: &EventTypeName) -> Result<Known, ApiError> {
        if let Some(system) = self.catalogue.get(name.as_str()) {
            return Ok(Known::System(Arc::clone(system)));
        }
        match self.store.event_type(tenant, name.as_str()).await? {
            Some(record) => Ok(Known::Custom(record)),
            None => Err(self.event_type_not_found(tenant, name).await),
        }
    }

    /// A version of a type's schema; none where the type has no schema at all (version 0).
    ///
    /// Errors: SCHEMA_VERSION_NOT_FOUND.
    pub(super) async fn schema(
        &self,
        tenant: TenantId,
        known: &Known,
        version: i32,
    ) -> Result<Option<CompiledSchema>, ApiError> {
        if version == 0 {
            return Ok(None);
        }
        let name = &known.event_type().name;
        let compiled = match known {
            Known::System(system) => {
                let of_version = system.schema.as_ref().filter(|(schema, _)| schema.version == version);
                of_version.map(|(_, compiled)| compiled.clone())
            }
            Known::Custom(record) => {
                let created_at = Some(record.event_type.created_at);
                self.registry.compiled(tenant, name, created_at, version).await?
            }
        };
        let missing = || ApiError::SchemaVersionNotFound { event_type: name.as_str().to_owned(), version };
        Ok(Some(compiled.ok_or_else(missing)?))
    }

    /// Refuses a change of a system type.
    pub(super) fn own_type(&self, name: &EventTypeName) -> Result<(), ApiError> {
        if self.catalogue.get(name.as_str()).is_none() {
            return Ok(());
        }
        let message = "a system event type cannot be changed".to_owned();
        Err(ApiError::EventTypeState { name: name.as_str().to_owned(), message })
    }

    /// EVENT_TYPE_NOT_FOUND, with the names that look most like the one asked for.
    pub(super) async fn event_type_not_found(&self, tenant: TenantId, name: &EventTypeName) -> ApiError {
        // Only a help for people: what cannot be read now is left out.
        let own = self.store.event_types(tenant, None, Deleted::Hide, NEAR_CANDIDATES_MAX).await;
        let own = own.unwrap_or_default();
        let names = self.catalogue.iter().map(|system| system.event_type.name.as_str());
        let names = names.chain(own.iter().map(|record| record.event_type.name.as_str()));
        ApiError::EventTypeNotFound {
            name: name.as_str().to_owned(),
            near: Catalogue::nearest(name.as_str(), names, NEAR_MAX),
        }
    }

    /// A refused change of an event type as an error.
    pub(super) async fn event_type_refused(
        &self,
        tenant: TenantId,
        name: &EventTypeName,
        refusal: EventTypeRefusal,
    ) -> ApiError {
        let text = name.as_str().to_owned();
        let state =
            |message: &str| ApiError::EventTypeState { name: name.as_str().to_owned(), message: message.to_owned() };
        let quota =
            |quota: &str, limit: u64| ApiError::QuotaExceeded { quota: quota.to_owned(), limit, retry_delay: None };
        match refusal {
            EventTypeRefusal::Exists => ApiError::EventTypeExists { name: text },
            EventTypeRefusal::NotFound => self.event_type_not_found(tenant, name).await,
            EventTypeRefusal::Deleted => state("the event type is retired; undelete it first"),
            EventTypeRefusal::NotDeleted => state("the event type is not retired"),
            EventTypeRefusal::Subscribed => state("the event type still has subscriptions; unsubscribe them first"),
            // A schema that lost every race is told the same: somebody else changed the type.
            EventTypeRefusal::Etag | EventTypeRefusal::SchemasChanged => ApiError::EtagMismatch { resource: text },
            EventTypeRefusal::TooMany(_) => quota("limits.event_types_max", self.config.event_types_max.into()),
            EventTypeRefusal::TooManyDeleted(_) => {
                quota("limits.deleted_event_types_max", self.config.deleted_event_types_max.into())
            }
            EventTypeRefusal::TooManyVersions(_) => {
                quota("limits.schema_versions_max", self.config.schema_versions_max.into())
            }
            EventTypeRefusal::Store(error) => error.into(),
        }
    }
}
