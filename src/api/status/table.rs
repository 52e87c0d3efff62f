//! The table itself: each error's code, reason and details, and how they become a status of bounded size.

use super::{ApiError, DOMAIN, PreVerdict, reason_name};
use crate::clock;
use crate::domain::schema::compatibility::Direction;
use crate::proto::public::ErrorReason;
use crate::store::StoreError;
use std::collections::HashMap;
use std::time::Duration;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation as BadField, PreconditionViolation, QuotaViolation, StatusExt as _};

/// Upper bound of a whole status, message and details as they travel.
const STATUS_BYTES_MAX: usize = 4_000;
/// Upper bounds of single texts.
const MESSAGE_BYTES_MAX: usize = 480;
const TEXT_BYTES_MAX: usize = 240;
/// A cursor has to arrive whole; anything longer than this is not one.
const METADATA_BYTES_MAX: usize = 480;
/// More violations than this help nobody.
const VIOLATIONS_MAX: usize = 16;
/// Listeners of a PRE event that a status names: as many as fit without a text of theirs. Those with more are read by the event's id.
const LISTENERS_MAX: usize = 50;

impl ApiError {
    /// The table.
    pub(super) fn entry(&self) -> Entry {
        match self {
            Self::FieldInvalid { violations } => Entry::new(Code::InvalidArgument, ErrorReason::FieldInvalid)
                .bad_fields(violations.iter().map(|v| (v.field.clone(), v.description.clone()))),
            Self::FilterInvalid { field, column, message } => {
                Entry::new(Code::InvalidArgument, ErrorReason::FilterInvalid)
                    .metadata("column", column.to_string())
                    .bad_fields([(field.clone(), message.clone())])
            }
            Self::PageTokenInvalid => Entry::new(Code::InvalidArgument, ErrorReason::PageTokenInvalid)
                .bad_fields([("page_token".to_owned(), self.to_string())]),
            Self::SchemaViolation { event_type, version, field, violations } => {
                Entry::new(Code::InvalidArgument, ErrorReason::SchemaViolation)
                    .metadata("event_type", event_type)
                    .metadata("schema_version", version.to_string())
                    .bad_fields(violations.iter().map(|v| {
                        let description = match v.schema_pointer.as_str() {
                            "" => v.message.clone(),
                            pointer => format!("{} (schema: {pointer})", v.message),
                        };
                        (format!("{field}{}", v.data_pointer), description)
                    }))
            }
            Self::EventTooLarge { field, limit_bytes } => Entry::new(Code::InvalidArgument, ErrorReason::EventTooLarge)
                .metadata("limit_bytes", limit_bytes.to_string())
                .bad_fields([(field.clone(), self.to_string())]),
            Self::SchemaInvalid { field, pointer, message } => {
                Entry::new(Code::InvalidArgument, ErrorReason::SchemaInvalid)
                    .metadata("pointer", pointer)
                    .bad_fields([(field.clone(), message.clone())])
            }
            Self::AddressBlocked { field, message } => Entry::new(Code::InvalidArgument, ErrorReason::AddressBlocked)
                .bad_fields([(field.clone(), message.clone())]),

            Self::EventTypeNotFound { name, near } => Entry::new(Code::NotFound, ErrorReason::EventTypeNotFound)
                .list("near", near)
                .resource("carillon.dev/EventType", name),
            Self::SchemaVersionNotFound { event_type, version } => {
                Entry::new(Code::NotFound, ErrorReason::SchemaVersionNotFound)
                    .resource("carillon.dev/EventTypeSchema", &format!("{event_type}/{version}"))
            }
            Self::SubscriptionNotFound { subscription } => {
                Entry::new(Code::NotFound, ErrorReason::SubscriptionNotFound)
                    .resource("carillon.dev/Subscription", subscription)
            }
            Self::EventNotFound { event } | Self::EventNotInLog { event } => {
                Entry::new(Code::NotFound, ErrorReason::EventNotFound).resource("carillon.dev/Event", event)
            }
            Self::InvocationNotFound { invocation } => Entry::new(Code::NotFound, ErrorReason::InvocationNotFound)
                .resource("carillon.dev/Invocation", invocation),
            Self::TenantNotFound { tenant } => {
                Entry::new(Code::NotFound, ErrorReason::TenantNotFound).resource("carillon.dev/Tenant", tenant)
            }
            Self::AppNotFound { app } => {
                Entry::new(Code::NotFound, ErrorReason::AppNotFound).resource("carillon.dev/App", app)
            }
            Self::ApiKeyNotFound { api_key } => {
                Entry::new(Code::NotFound, ErrorReason::ApiKeyNotFound).resource("carillon.dev/ApiKey", api_key)
            }
            Self::PublisherIdentityNotFound { publisher_identity } => {
                Entry::new(Code::NotFound, ErrorReason::PublisherIdentityNotFound)
                    .resource("carillon.dev/PublisherIdentity", publisher_identity)
            }
            Self::NotSubscribed { event_type } => {
                Entry::new(Code::NotFound, ErrorReason::NotSubscribed).resource("carillon.dev/EventType", event_type)
            }
            Self::WatchNotFound { watch } => {
                Entry::new(Code::NotFound, ErrorReason::WatchNotFound).resource("carillon.dev/Watch", watch)
            }

            Self::AlreadySubscribed { subscription } => Entry::new(Code::AlreadyExists, ErrorReason::AlreadySubscribed)
                .metadata("subscription", subscription)
                .resource("carillon.dev/Subscription", subscription),
            Self::EnrichPathTaken { path, subscription } => {
                let entry = Entry::new(Code::AlreadyExists, ErrorReason::EnrichPathTaken).metadata("path", path);
                match subscription {
                    Some(subscription) => entry.resource("carillon.dev/Subscription", subscription),
                    None => entry,
                }
            }
            Self::EventTypeExists { name } => {
                Entry::new(Code::AlreadyExists, ErrorReason::EventTypeExists).resource("carillon.dev/EventType", name)
            }
            Self::TenantExists { tenant } => {
                Entry::new(Code::AlreadyExists, ErrorReason::TenantExists).resource("carillon.dev/Tenant", tenant)
            }
            Self::AppExists { app } => {
                Entry::new(Code::AlreadyExists, ErrorReason::AppExists).resource("carillon.dev/App", app)
            }
            Self::PublisherIdentityExists { subject } => {
                Entry::new(Code::AlreadyExists, ErrorReason::PublisherIdentityExists)
                    .resource("carillon.dev/PublisherIdentity", subject)
            }

            Self::RequestIdReused { field } => Entry::new(Code::FailedPrecondition, ErrorReason::RequestIdReused)
                .precondition("REQUEST_ID_REUSED", field, &self.to_string()),
            Self::CursorForeign(field) => Entry::new(Code::FailedPrecondition, ErrorReason::CursorForeign)
                .precondition("CURSOR_FOREIGN", field, &self.to_string()),
            Self::CursorAhead(field) => Entry::new(Code::FailedPrecondition, ErrorReason::CursorAhead).precondition(
                "CURSOR_AHEAD",
                field,
                &self.to_string(),
            ),
            Self::InvocationState { invocation, state } => {
                Entry::new(Code::FailedPrecondition, ErrorReason::InvocationState)
                    .metadata("state", state)
                    .precondition("INVOCATION_STATE", invocation, &self.to_string())
            }
            Self::EventTypeState { name, message } => Entry::new(Code::FailedPrecondition, ErrorReason::EventTypeState)
                .precondition("EVENT_TYPE_STATE", name, message),
            Self::SubscriptionState { subscription, message } => Entry::new(
                Code::FailedPrecondition,
                ErrorReason::SubscriptionState,
            )
            .precondition("SUBSCRIPTION_STATE", subscription, message),
            Self::PreRejected { event, verdicts, .. } => {
                Entry::new(Code::FailedPrecondition, ErrorReason::PreRejected).verdicts(event, verdicts)
            }
            Self::SchemaIncompatible { event_type, version, breaks } => {
                let entry = Entry::new(Code::FailedPrecondition, ErrorReason::SchemaIncompatible)
                    .metadata("event_type", event_type)
                    .metadata("schema_version", version.to_string())
                    .metadata("breaks", breaks.len().to_string());
                breaks.iter().fold(entry, |entry, one| {
                    let kind = match (one.undecided, one.direction) {
                        (true, _) => "UNDECIDED",
                        (false, Direction::Backward) => "BACKWARD",
                        (false, Direction::Forward) => "FORWARD",
                    };
                    entry.precondition(kind, &one.pointer, &one.message)
                })
            }
            Self::ResourceState { kind, name, message } => {
                Entry::new(Code::FailedPrecondition, ErrorReason::ResourceState)
                    .metadata("resource_type", *kind)
                    .precondition("RESOURCE_STATE", name, message)
            }

            Self::CursorMalformed(field) => Entry::new(Code::InvalidArgument, ErrorReason::CursorMalformed)
                .bad_fields([(field.clone(), self.to_string())]),
            Self::CursorExpired { earliest } => {
                Entry::new(Code::OutOfRange, ErrorReason::CursorExpired).metadata("earliest_cursor", earliest)
            }

            Self::QuotaExceeded { quota, limit, retry_delay } => {
                Entry::new(Code::ResourceExhausted, ErrorReason::QuotaExceeded)
                    .metadata("quota", quota)
                    .metadata("limit", limit.to_string())
                    .quota(quota, &self.to_string())
                    .retry(*retry_delay)
            }
            Self::SlowConsumer { resume_cursor } => {
                Entry::new(Code::ResourceExhausted, ErrorReason::SlowConsumer).metadata("resume_cursor", resume_cursor)
            }

            Self::EtagMismatch { resource } => {
                Entry::new(Code::Aborted, ErrorReason::EtagMismatch).metadata("resource", resource)
            }
            Self::LeaseLost => Entry::new(Code::Aborted, ErrorReason::LeaseLost),

            Self::ServerDraining => {
                Entry::new(Code::Unavailable, ErrorReason::ServerDraining).retry(Some(jittered(100, 1_000)))
            }
            Self::StreamAge { resume_cursor } => Entry::new(Code::Unavailable, ErrorReason::StreamAge)
                .metadata("resume_cursor", resume_cursor)
                .retry(Some(jittered(0, 1_000))),
            Self::PreListenerUnavailable { event, verdicts, .. } => {
                // No RetryInfo: the same key gets the same answer.
                Entry::new(Code::Unavailable, ErrorReason::PreListenerUnavailable).verdicts(event, verdicts)
            }
            Self::PreDeadline { event, verdicts, .. } => {
                Entry::new(Code::DeadlineExceeded, ErrorReason::PreDeadline).verdicts(event, verdicts)
            }
            Self::Deadline | Self::DeadlineOfChange => Entry::new(Code::DeadlineExceeded, ErrorReason::Deadline),

            Self::CredentialInvalid => Entry::new(Code::Unauthenticated, ErrorReason::CredentialInvalid),
            Self::RoleInsufficient { required } => Entry::new(Code::PermissionDenied, ErrorReason::RoleInsufficient)
                .metadata("required", required.as_str()),
            Self::EventTypeForbidden { event_type } => {
                Entry::new(Code::PermissionDenied, ErrorReason::EventTypeForbidden).metadata("event_type", event_type)
            }

            Self::MethodNotFound { method } => {
                Entry::new(Code::Unimplemented, ErrorReason::NotImplemented).metadata("method", method)
            }
            Self::NotImplemented { feature } => {
                Entry::new(Code::Unimplemented, ErrorReason::NotImplemented).metadata("feature", feature)
            }
            Self::Store(error) => match error {
                StoreError::Unavailable(_)
                | StoreError::TooSlow(_)
                | StoreError::Locked
                | StoreError::PartitionMissing => {
                    Entry::new(Code::Unavailable, ErrorReason::StoreUnavailable).retry(Some(jittered(500, 2_000)))
                }
                StoreError::Crowded => Entry::new(Code::ResourceExhausted, ErrorReason::QuotaExceeded)
                    .metadata("quota", "database.connections_max")
                    .quota("database.connections_max", &self.to_string())
                    .retry(Some(jittered(500, 2_000))),
                StoreError::Full(_) => {
                    Entry::new(Code::Unavailable, ErrorReason::StorageFull).retry(Some(jittered(5_000, 10_000)))
                }
                StoreError::RequestIdReused => Entry::new(Code::FailedPrecondition, ErrorReason::RequestIdReused),
                // A constraint that nobody expected to break, a row that does not parse and work that died are our own faults.
                StoreError::Conflict { .. }
                | StoreError::Corrupt { .. }
                | StoreError::Interrupted
                | StoreError::Statement(_) => Entry::new(Code::Internal, ErrorReason::Internal),
            },
            Self::At { field, error } => error.entry().metadata("field", field),
            Self::Internal { .. } => Entry::new(Code::Internal, ErrorReason::Internal),
        }
    }
}

/// One row of the table, and what travels with it.
pub(super) struct Entry {
    pub(super) code: Code,
    pub(super) reason: ErrorReason,
    metadata: HashMap<String, String>,
    fields: Vec<BadField>,
    preconditions: Vec<PreconditionViolation>,
    /// Whether texts of preconditions go before any of these is left out where there is no room for all.
    texts_first: bool,
    quotas: Vec<QuotaViolation>,
    resource: Option<(&'static str, String)>,
    retry: Option<Duration>,
}

impl Entry {
    fn new(code: Code, reason: ErrorReason) -> Self {
        Self {
            code,
            reason,
            metadata: HashMap::new(),
            fields: Vec::new(),
            preconditions: Vec::new(),
            texts_first: false,
            quotas: Vec::new(),
            resource: None,
            retry: None,
        }
    }

    pub(super) fn metadata(mut self, key: &'static str, value: impl AsRef<str>) -> Self {
        self.metadata.insert(key.to_owned(), truncated(value.as_ref(), METADATA_BYTES_MAX));
        self
    }

    /// Names, separated by commas; absent where there are none.
    fn list(self, key: &'static str, names: &[String]) -> Self {
        if names.is_empty() { self } else { self.metadata(key, names.join(",")) }
    }

    fn bad_fields(mut self, fields: impl IntoIterator<Item = (String, String)>) -> Self {
        let fields = fields.into_iter().take(VIOLATIONS_MAX);
        self.fields.extend(fields.map(|(field, description)| {
            BadField::new(truncated(&field, TEXT_BYTES_MAX), truncated(&description, TEXT_BYTES_MAX))
        }));
        self
    }

    fn precondition(mut self, kind: &'static str, subject: &str, description: &str) -> Self {
        if self.preconditions.len() < VIOLATIONS_MAX {
            self.preconditions.push(violation(kind, subject, description));
        }
        self
    }

    fn verdicts(self, event: &str, verdicts: &[PreVerdict]) -> Self {
        let mut entry = self.metadata("event", event).metadata("listeners", verdicts.len().to_string());
        let named = verdicts.iter().take(LISTENERS_MAX);
        entry.preconditions = named.map(|one| violation(one.verdict, &one.subscription, &one.description)).collect();
        entry.texts_first = true;
        entry
    }

    fn quota(mut self, subject: &str, description: &str) -> Self {
        self.quotas
            .push(QuotaViolation::new(truncated(subject, TEXT_BYTES_MAX), truncated(description, TEXT_BYTES_MAX)));
        self
    }

    fn resource(mut self, kind: &'static str, name: &str) -> Self {
        self.resource = Some((kind, truncated(name, TEXT_BYTES_MAX)));
        self
    }

    fn retry(mut self, delay: Option<Duration>) -> Self {
        self.retry = delay;
        self
    }

    /// Builds the status; texts and lists get shorter, from their ends, until the whole is small enough.
    pub(super) fn into_status(mut self, message: &str) -> Status {
        let message = truncated(message, MESSAGE_BYTES_MAX);
        loop {
            let status = self.status(&message);
            // Messages travel percent-encoded and details as base64.
            let escaped: usize =
                message.bytes().map(|b| if (b' '..=b'~').contains(&b) && b != b'%' { 1 } else { 3 }).sum();
            let list = self.fields.len().max(self.preconditions.len());
            if status.details().len().div_ceil(3) * 4 + escaped <= STATUS_BYTES_MAX || list <= 1 {
                return status;
            }
            let last_text = self.preconditions.iter_mut().skip(1).rfind(|one| !one.description.is_empty());
            if let Some(one) = last_text.filter(|_| self.texts_first) {
                one.description.clear();
                continue;
            }
            self.fields.truncate(list - 1);
            self.preconditions.truncate(list - 1);
        }
    }

    fn status(&self, message: &str) -> Status {
        let mut details = ErrorDetails::with_error_info(reason_name(self.reason), DOMAIN, self.metadata.clone());
        if !self.fields.is_empty() {
            details.set_bad_request(self.fields.clone());
        }
        if !self.preconditions.is_empty() {
            details.set_precondition_failure(self.preconditions.clone());
        }
        if !self.quotas.is_empty() {
            details.set_quota_failure(self.quotas.clone());
        }
        if let Some((kind, name)) = &self.resource {
            details.set_resource_info(*kind, name.clone(), "", "");
        }
        if self.retry.is_some() {
            details.set_retry_info(self.retry);
        }
        Status::with_error_details(self.code, message, details)
    }
}

fn violation(kind: &'static str, subject: &str, description: &str) -> PreconditionViolation {
    PreconditionViolation::new(kind, truncated(subject, TEXT_BYTES_MAX), truncated(description, TEXT_BYTES_MAX))
}

/// A delay between the two, so that clients that were cut together do not come back together.
fn jittered(from_ms: u64, to_ms: u64) -> Duration {
    Duration::from_millis(from_ms) + Duration::from_millis(to_ms - from_ms).mul_f64(clock::jitter())
}

/// At most `bytes_max` bytes of a text, cut between characters, with a sign that it was cut.
fn truncated(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let mut end = bytes_max - "…".len();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}
