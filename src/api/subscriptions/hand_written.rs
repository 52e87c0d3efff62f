//! Events that are written by hand for a test run or an explanation: parsed and checked as a publish does it, so that nothing is tried
//! that could not happen.

use crate::api::publish::errors::to_api_error;
use crate::api::registry::{Known, RegistryDeps, invalid};
use crate::api::status::ApiError;
use crate::clock;
use crate::domain::event::{Attribute, Event};
use crate::domain::event_type::EventTypeName;
use crate::domain::ids::{EventId, TenantId};
use crate::domain::trial::TEST_ATTRIBUTE;
use crate::long_work;
use crate::proto::cloudevents::CloudEvent;
use crate::publish::prepare::check_against;
use crate::wire::event::cloud_event_to_domain;
use chrono::{DateTime, Utc};
use std::sync::Arc;

/// Where a hand-written event comes from where it does not say so.
const SOURCE: &str = "/carillon/test";

/// An event that nobody publishes, marked as a test. What it leaves out has a default.
pub(super) fn hand_written(
    mut event: CloudEvent,
    event_type: Option<&EventTypeName>,
    now: DateTime<Utc>,
) -> Result<Event, ApiError> {
    if let (true, Some(name)) = (event.r#type.is_empty(), event_type) {
        name.as_str().clone_into(&mut event.r#type);
    }
    if event.source.is_empty() {
        SOURCE.clone_into(&mut event.source);
    }
    let mut parsed = cloud_event_to_domain(event, "event").map_err(invalid)?;
    if event_type.is_some() {
        parsed.extensions.retain(|(name, _)| name != TEST_ATTRIBUTE);
        parsed.extensions.push((TEST_ATTRIBUTE.to_owned(), Attribute::Boolean(true)));
        parsed.extensions.sort_by(|a, b| a.0.cmp(&b.0));
    }
    Ok(parsed.into_event(EventId(clock::new_uuid()), now))
}

/// Checks the data of an event against the schema version that the event has. `path` leads to the event, and is empty where the request
/// holds its data alone.
///
/// Errors: SCHEMA_VIOLATION, SCHEMA_VERSION_NOT_FOUND, FIELD_INVALID for data that is not JSON.
pub(super) async fn check(
    deps: &RegistryDeps,
    tenant: TenantId,
    known: &Known,
    event: Event,
    path: &str,
) -> Result<Arc<Event>, ApiError> {
    let compiled = deps.schema(tenant, known, event.schema_version).await?;
    let event = Arc::new(event);
    let checked = Arc::clone(&event);
    // Away from the reactor: a large payload takes a while.
    let result = long_work::run(tenant, move || check_against(&checked, compiled.as_ref())).await;
    let result = result.ok_or_else(|| ApiError::internal("check data against a schema", "it panicked"))?;
    result.map_err(|error| to_api_error(error, path))?;
    Ok(event)
}
