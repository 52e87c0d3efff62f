//! Checking an event against the catalogue, and deciding what it fires.

use super::PublishError;
use super::registry::{Entry, Registry, TenantRegistry};
use crate::domain::catalogue::Catalogue;
use crate::domain::event::{Data, Event};
use crate::domain::event_type::{CompiledSchema, EventTypeName, Phase};
use crate::domain::filter::{Filter, FilterContext};
use crate::domain::ids::SubscriptionNo;
use crate::domain::json::check_json;
use crate::domain::schema::{Schema, Violation};
use crate::domain::subscription::Subscription;
use crate::long_work::{self, LARGE_BYTES, TURN};
use crate::store::StoreError;
use crate::store::publish::NewKey;
use crate::telemetry::{FilterPlace, measured};
use std::sync::Arc;
use std::time::Instant;

/// An event that was checked and matched at one version of the registry.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The event, with the schema version it was checked against.
    pub event: Arc<Event>,
    /// The schema version the publisher asked for; 0 for the latest.
    pub requested_schema: i32,
    /// What it fires.
    pub matched: Arc<[SubscriptionNo]>,
    /// What it would fire, had its lineage not refused it.
    pub refused: Arc<[SubscriptionNo]>,
    /// When its listeners run.
    pub phase: Phase,
    /// The registry version all this was decided with.
    pub registry_version: i64,
    /// The publisher's idempotency key.
    pub key: Option<NewKey>,
    /// What bounds its size whatever the tenant's quota is, bytes: none for what a publisher sends.
    pub own_bytes_max: Option<usize>,
}

impl Prepared {
    /// True where listeners must agree before it may be committed.
    pub fn is_gated(&self) -> bool {
        self.phase == Phase::Pre && !self.matched.is_empty()
    }
}

/// Checks an event and decides what it fires. `own_bytes_max` bounds its size in place of the tenant's quota.
pub async fn prepare(
    registry: &Registry,
    tenant: &TenantRegistry,
    mut event: Arc<Event>,
    requested_schema: i32,
    key: Option<NewKey>,
    own_bytes_max: Option<usize>,
) -> Result<Prepared, PublishError> {
    let limit = own_bytes_max.unwrap_or_else(|| tenant.event_bytes_max());
    if event.bytes() > limit {
        return Err(PublishError::TooLarge { limit });
    }
    let before = tenant.version();
    let decided = match decide(registry, tenant, &event, requested_schema).await {
        // The registry in memory may be older than the declaration that the publisher knows of: a refusal is judged again by
        // the database's present version, whoever has loaded that meanwhile.
        Err(error) if error.is_by_registry() => {
            registry.reload(tenant.tenant()).await?;
            if tenant.version() == before {
                return Err(error);
            }
            decide(registry, tenant, &event, requested_schema).await?
        }
        decided => decided?,
    };
    if event.schema_version != decided.schema_version {
        Arc::make_mut(&mut event).schema_version = decided.schema_version;
    }
    Ok(Prepared {
        event,
        requested_schema,
        matched: decided.matched.into(),
        refused: decided.refused.into(),
        phase: decided.phase,
        registry_version: decided.registry_version,
        key,
        own_bytes_max,
    })
}

/// What one version of the registry says about an event.
struct Decision {
    registry_version: i64,
    schema_version: i32,
    phase: Phase,
    matched: Vec<SubscriptionNo>,
    refused: Vec<SubscriptionNo>,
}

/// Checks and matches an event by the registry as it is in memory.
async fn decide(
    registry: &Registry,
    tenant: &TenantRegistry,
    event: &Arc<Event>,
    requested_schema: i32,
) -> Result<Decision, PublishError> {
    // The version is read before anything is looked up: if it is still the database's at commit, so was all that follows.
    let (registry_version, listeners) = tenant.listeners(&event.event_type);
    let phase = phase_of(registry, tenant, &event.event_type)?;
    let schema_version = check_data(registry, tenant, event, requested_schema).await?;
    let (mut matched, mut refused) = (Vec::new(), Vec::new());
    if let Some(listeners) = listeners {
        let mut matching = Matching { schema_version, begun: 0, matched, refused, failed: None };
        if !matching.go_on(event, &listeners, Instant::now() + TURN) {
            let event = event.clone();
            let rest = move |matching: &mut Matching, end| matching.go_on(&event, &listeners, end);
            matching = long_work::in_order(tenant.tenant(), matching, rest).await.ok_or(StoreError::Interrupted)?;
        }
        if let Some(error) = matching.failed {
            return Err(error.into());
        }
        (matched, refused) = (matching.matched, matching.refused);
    }
    Ok(Decision { registry_version, schema_version, phase, matched, refused })
}

/// How far the matching of an event is.
struct Matching {
    schema_version: i32,
    /// How many listeners were looked at.
    begun: usize,
    matched: Vec<SubscriptionNo>,
    refused: Vec<SubscriptionNo>,
    /// Why it cannot be said what fires.
    failed: Option<StoreError>,
}

impl Matching {
    /// Matches at least one listener, and further ones until the end; true where none is left, or it has failed. Each filter is bounded,
    /// and there may be many.
    fn go_on(&mut self, event: &Event, listeners: &[Arc<Entry>], end: Instant) -> bool {
        let context = FilterContext::new(event);
        let first = self.begun;
        for entry in &listeners[first..] {
            let subscription = &entry.subscription;
            if self.begun > first && subscription.filter.is_some() && Instant::now() > end + context.reading() {
                return false;
            }
            self.begun += 1;
            let fires = match fires(subscription, &context, self.schema_version) {
                Ok(fires) => fires,
                Err(error) => {
                    self.failed = Some(error);
                    return true;
                }
            };
            if fires {
                let looped = event.lineage.subscriptions.contains(&subscription.no);
                if looped { &mut self.refused } else { &mut self.matched }.push(subscription.no);
            }
        }
        true
    }
}

/// Whether a subscription to an event's type fires for it. Errors: its filter or ordering key is none that this release knows, so that
/// nobody can tell whether, or in which order.
pub fn fires(
    subscription: &Subscription,
    context: &FilterContext<'_>,
    schema_version: i32,
) -> Result<bool, StoreError> {
    if !subscription.takes_version(schema_version) {
        return Ok(false);
    }
    let key = subscription.policy.ordering().map(|ordering| &ordering.key);
    if !subscription.filter.iter().chain(key).all(Filter::compiles) {
        tracing::error!(subscription = %subscription.id, "its filter or ordering key cannot be compiled");
        return Err(StoreError::Corrupt { what: "subscription filter" });
    }
    let Some(filter) = &subscription.filter else { return Ok(true) };
    // A filter that cannot be evaluated over this event does not match.
    Ok(filter.matches(context).unwrap_or_else(|_| measured().filter_failed(FilterPlace::Subscription)))
}

/// The phase of a type that may be published.
pub fn phase_of(registry: &Registry, tenant: &TenantRegistry, name: &EventTypeName) -> Result<Phase, PublishError> {
    if let Some(system) = registry.catalogue().get(name.as_str()) {
        return Ok(system.event_type.phase);
    }
    match tenant.custom_type(name) {
        Some(custom) => Ok(custom.phase),
        None => Err(unknown_type(registry, tenant, name.as_str())),
    }
}

/// The error for a type that does not exist, with names that are close to it.
pub fn unknown_type(registry: &Registry, tenant: &TenantRegistry, name: &str) -> PublishError {
    let custom = tenant.custom_names();
    let system = registry.catalogue().iter().map(|system| system.event_type.name.as_str());
    let near = Catalogue::nearest(name, system.chain(custom.iter().map(EventTypeName::as_str)), 5);
    PublishError::EventTypeNotFound { name: name.to_owned(), near }
}

/// Checks data that was changed after the event had been prepared, by the same schema version: by none where there was none.
pub async fn check_again(
    registry: &Registry,
    tenant: &TenantRegistry,
    event: &Arc<Event>,
    event_bytes_max: usize,
) -> Result<(), PublishError> {
    if event.bytes() > event_bytes_max {
        return Err(PublishError::TooLarge { limit: event_bytes_max });
    }
    if event.schema_version == 0 {
        let checked = event.clone();
        let work = move || check_against(&checked, None).map(drop);
        return long_work::on(tenant.tenant(), event.bytes(), work).await.ok_or(StoreError::Interrupted)?;
    }
    check_data(registry, tenant, event, event.schema_version).await.map(drop)
}

/// Checks the data, and says against which schema version (0 for none).
async fn check_data(
    registry: &Registry,
    tenant: &TenantRegistry,
    event: &Arc<Event>,
    requested: i32,
) -> Result<i32, PublishError> {
    let compiled = registry.schema(tenant, &event.event_type, requested).await?;
    if event.bytes() <= LARGE_BYTES
        && let Some(checked) = check_by(event, compiled.as_ref(), Schema::validate_briefly)
    {
        return checked;
    }
    let checked = event.clone();
    let work = move || check_against(&checked, compiled.as_ref());
    long_work::run(tenant.tenant(), work).await.ok_or(StoreError::Interrupted)?
}

/// Checks the data against a version of its type's schema, where it has any, and says which that is (0 for none).
pub fn check_against(event: &Event, compiled: Option<&CompiledSchema>) -> Result<i32, PublishError> {
    let checked = check_by(event, compiled, |schema, data| Some(schema.validate(data)));
    checked.expect("what is checked to its end has a result")
}

/// As [`check_against`], by a way to check data that may give up; none where it does.
fn check_by(
    event: &Event,
    compiled: Option<&CompiledSchema>,
    validate: impl FnOnce(&Schema, &[u8]) -> Option<Result<(), Vec<Violation>>>,
) -> Option<Result<i32, PublishError>> {
    let json = event.has_json_data();
    let readable = || if json { readable_json(event) } else { Ok(()) };
    let Some(compiled) = compiled else { return Some(readable().map(|()| 0)) };
    // A type with a schema takes JSON only; no data at all is judged as the absent document it is.
    let result = if json {
        validate(&compiled.schema, event.data.as_bytes())?
    } else {
        let message = match event.data {
            Data::None => "there is no data, but the type has a schema",
            _ => "the data is not JSON by its datacontenttype, but the type has a schema",
        };
        Err(vec![Violation { data_pointer: String::new(), schema_pointer: String::new(), message: message.to_owned() }])
    };
    Some(match result {
        Ok(()) => Ok(compiled.version),
        // What is no JSON at all is told alike whether the type has a schema or not.
        Err(violations) => readable().and_then(|()| {
            let event_type = event.event_type.clone();
            Err(PublishError::SchemaViolation { event_type, version: compiled.version, violations })
        }),
    })
}

/// Errors: the data is not JSON, or holds a key that no payload may have.
fn readable_json(event: &Event) -> Result<(), PublishError> {
    check_json(event.data.as_bytes()).map_err(PublishError::DataUnreadable)
}
