//! A PublishRequest becomes an event and its idempotency key.

use crate::api::status::{ApiError, FieldViolation};
use crate::clock;
use crate::domain::access::Publisher;
use crate::domain::catalogue::Catalogue;
use crate::domain::event::{Attribute, Event};
use crate::domain::ids::EventId;
use crate::proto::internal::PublishRequest;
use crate::publish::key::request_hash;
use crate::store::publish::NewKey;
use crate::telemetry::traces;
use crate::wire::event::cloud_event_to_domain;
use crate::wire::time::{parse_duration, parse_timestamp};
use chrono::{DateTime, Utc};
use prost::Message as _;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

/// A request that has the right shape; what the catalogue says of it comes next.
#[derive(Debug, Clone)]
pub(super) struct Parsed {
    pub(super) event: Arc<Event>,
    pub(super) schema_version: i32,
    pub(super) key: Option<NewKey>,
    /// When it is to be published, where that is ahead.
    pub(super) deliver_at: Option<DateTime<Utc>>,
    /// What the publisher gives its listeners.
    pub(super) pre_timeout: Option<Duration>,
}

/// Parses one request. `prefix` is empty, or `requests[3].`; `now` is the time by the database's clock, which an event has that says none.
pub(super) fn parse(
    request: PublishRequest,
    publisher: &Publisher,
    prefix: &str,
    now: DateTime<Utc>,
) -> Result<Parsed, ApiError> {
    let invalid = |field: &str, description: &str| ApiError::FieldInvalid {
        violations: vec![FieldViolation { field: format!("{prefix}{field}"), description: description.to_owned() }],
    };
    let deliver_at = request.deliver_at.as_ref();
    let deliver_at = deliver_at.map(|at| parse_timestamp(&format!("{prefix}deliver_at"), at)).transpose()?;
    let pre_timeout = request.pre_timeout.as_ref();
    let pre_timeout = pre_timeout.map(|time| parse_duration(&format!("{prefix}pre_timeout"), time)).transpose()?;
    if pre_timeout.is_some_and(|time| time < Duration::from_millis(1)) {
        return Err(invalid("pre_timeout", "must be at least 1 ms"));
    }
    if request.schema_version < 0 {
        return Err(invalid("schema_version", "must not be negative"));
    }
    let printable = request.idempotency_key.bytes().all(|b| (b' '..=b'~').contains(&b));
    if request.idempotency_key.len() > 256 || !printable {
        return Err(invalid("idempotency_key", "must be at most 256 printable ASCII characters"));
    }
    let mut request = request;
    let given_key = std::mem::take(&mut request.idempotency_key);
    // What the key stands for is the event and its schema version: a retry may count its delay anew, and have less patience.
    (request.deliver_at, request.pre_timeout) = (None, None);
    // Without a key there is nothing to compare, and most have none.
    let has_key = !given_key.is_empty() || request.event.as_ref().is_some_and(|event| !event.id.is_empty());
    let hash = if has_key { request_hash(&request.encode_to_vec()) } else { [0; 32] };
    let event = request.event.ok_or_else(|| invalid("event", "is required"))?;
    let mut parsed = cloud_event_to_domain(event, &format!("{prefix}event"))?;
    // Permission comes before existence: a type that may not be published is not looked up.
    if !publisher.may_publish(&parsed.event_type) || Catalogue::is_carillons_own(parsed.event_type.as_str()) {
        return Err(ApiError::EventTypeForbidden { event_type: parsed.event_type.to_string() });
    }
    let key = if given_key.is_empty() {
        // CloudEvents: (source, id) identifies an event.
        parsed.publisher_id.as_ref().map(|id| {
            let mut key = "ce/".to_owned();
            for byte in request_hash(format!("{}\0{id}", parsed.source).as_bytes()) {
                write!(key, "{byte:02x}").expect("writing to a string cannot fail");
            }
            key
        })
    } else {
        Some(format!("key/{given_key}"))
    };
    let extensions = &mut parsed.extensions;
    // By CloudEvents' distributed tracing extension: one that the publisher has set says where the event comes from, and stays.
    if !extensions.iter().any(|(name, _)| name == traces::TRACEPARENT)
        && let Some(traceparent) = traces::traceparent()
    {
        extensions.push((traces::TRACEPARENT.to_owned(), Attribute::String(traceparent)));
        extensions.sort_by(|a, b| a.0.cmp(&b.0));
    }
    if let Some(id) = parsed.publisher_id.take() {
        extensions.push(("publisherid".to_owned(), Attribute::String(id)));
        extensions.sort_by(|a, b| a.0.cmp(&b.0));
    }
    Ok(Parsed {
        event: Arc::new(parsed.into_event(EventId(clock::new_uuid()), now)),
        schema_version: request.schema_version,
        key: key.map(|key| NewKey { key, request_hash: hash }),
        deliver_at: deliver_at.filter(|at| *at > now),
        pre_timeout,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::{PublisherIdentityId, TenantId};
    use crate::proto::cloudevents::CloudEvent;
    use chrono::TimeDelta;
    use uuid::Uuid;

    #[test]
    fn an_event_without_a_time_has_that_of_the_database() {
        let publisher = Publisher {
            id: PublisherIdentityId(Uuid::nil()),
            tenant: TenantId(Uuid::nil()),
            subject: String::new(),
            event_types: [].into(),
        };
        let (source, spec_version) = ("/here".to_owned(), "1.0".to_owned());
        let event = CloudEvent { source, spec_version, r#type: "CUSTOM_A".to_owned(), ..CloudEvent::default() };
        let request = PublishRequest { event: Some(event), ..PublishRequest::default() };
        // The clock of this process is a day behind.
        let now = clock::now() + TimeDelta::days(1);
        assert_eq!(parse(request, &publisher, "", now).expect("it is well formed").event.time, now);
    }
}
