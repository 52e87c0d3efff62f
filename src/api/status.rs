//! The only table from failures to gRPC statuses: code, reason, message and details, each status under 4 KiB.
//!
//! Every handler answers with an [`ApiError`]; the reasons and their codes are those of `carillon/v1/errors.proto`, which a test
//! compares. A status never carries SQL, paths, addresses or another tenant's data: what only the operator may see goes to the
//! log, under an incident id that the status names.

mod json;
mod table;
mod text;

pub use json::to_json;

use crate::clock;
use crate::domain::access::Role;
use crate::domain::schema::Violation;
use crate::domain::schema::compatibility::Break;
use crate::proto::public::ErrorReason;
use crate::store::StoreError;
use crate::wire::FieldError;
use crate::wire::page::PageTokenError;
use std::error::Error;
use std::time::Duration;
use text::{describe_fields, store_message};
use tonic::{Code, Status};

/// The `domain` of every ErrorInfo.
pub const DOMAIN: &str = "carillon.dev";

/// A field that breaks its documented shape or bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldViolation {
    /// Path in the request, e.g. `subscription.retry_policy.max_attempts`.
    pub field: String,
    /// What is wrong, without the value.
    pub description: String,
}

/// What became of one listener of a PRE event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreVerdict {
    /// The listener's subscription id.
    pub subscription: String,
    /// `REJECTED`, `FAILED`, `CANCELLED`, `SKIPPED` or `SUCCEEDED`.
    pub verdict: &'static str,
    /// What it said, or what went wrong.
    pub description: String,
}

/// Why a call failed: one variant per reason of `carillon/v1/errors.proto`, with what its details need.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// FIELD_INVALID.
    #[error("{}", describe_fields(violations))]
    FieldInvalid {
        /// At least one.
        violations: Vec<FieldViolation>,
    },
    /// FILTER_INVALID.
    #[error("{field}: column {column}: {message}")]
    FilterInvalid {
        /// Path of the filter in the request.
        field: String,
        /// 1-based column in the filter.
        column: usize,
        /// What is wrong.
        message: String,
    },
    /// PAGE_TOKEN_INVALID.
    #[error("page_token is unreadable, or belongs to a call with other parameters")]
    PageTokenInvalid,
    /// SCHEMA_VIOLATION.
    #[error("the data breaks version {version} of the schema of {event_type}")]
    SchemaViolation {
        /// The event's type.
        event_type: String,
        /// Version of the schema.
        version: i32,
        /// Path of the data in the request, e.g. `events[3].data`.
        field: String,
        /// Where and how.
        violations: Vec<Violation>,
    },
    /// EVENT_TOO_LARGE.
    #[error("the {} is larger than {limit_bytes} bytes", if field.is_empty() { "request" } else { "event" })]
    EventTooLarge {
        /// Path of the event in the request; empty where the request as a whole is too large.
        field: String,
        /// The bound.
        limit_bytes: usize,
    },
    /// SCHEMA_INCOMPATIBLE.
    #[error("the schema is not compatible with version {version} of the schema of {event_type}")]
    SchemaIncompatible {
        /// The event type.
        event_type: String,
        /// The version it was compared with.
        version: i32,
        /// At least one.
        breaks: Vec<Break>,
    },
    /// SCHEMA_INVALID.
    #[error("{field}: not a usable JSON Schema: {message}")]
    SchemaInvalid {
        /// Path of the document in the request.
        field: String,
        /// JSON pointer into the document.
        pointer: String,
        /// What is wrong.
        message: String,
    },
    /// ADDRESS_BLOCKED.
    #[error("{field}: {message}")]
    AddressBlocked {
        /// Path of the address in the request.
        field: String,
        /// Why, without the address it resolves to.
        message: String,
    },

    /// EVENT_TYPE_NOT_FOUND.
    #[error("no such event type")]
    EventTypeNotFound {
        /// As asked for.
        name: String,
        /// Names that look like it.
        near: Vec<String>,
    },
    /// SCHEMA_VERSION_NOT_FOUND.
    #[error("the event type has no schema version {version}")]
    SchemaVersionNotFound {
        /// The event type.
        event_type: String,
        /// As asked for.
        version: i32,
    },
    /// SUBSCRIPTION_NOT_FOUND.
    #[error("no such subscription")]
    SubscriptionNotFound {
        /// As asked for.
        subscription: String,
    },
    /// EVENT_NOT_FOUND.
    #[error("no such event")]
    EventNotFound {
        /// As asked for.
        event: String,
    },
    /// EVENT_NOT_FOUND, of a call that reads the log: the event may be one that waits, and is told as any other that is not there.
    #[error(
        "no event of the log has this id; one that is delayed, or whose PRE listeners are still asked, has no place in the log yet: \
         WaitEvent waits for it"
    )]
    EventNotInLog {
        /// As asked for.
        event: String,
    },
    /// INVOCATION_NOT_FOUND.
    #[error("no such invocation")]
    InvocationNotFound {
        /// As asked for.
        invocation: String,
    },
    /// TENANT_NOT_FOUND.
    #[error("no such tenant")]
    TenantNotFound {
        /// As asked for.
        tenant: String,
    },
    /// APP_NOT_FOUND.
    #[error("no such app")]
    AppNotFound {
        /// As asked for.
        app: String,
    },
    /// API_KEY_NOT_FOUND.
    #[error("no such API key")]
    ApiKeyNotFound {
        /// As asked for.
        api_key: String,
    },
    /// PUBLISHER_IDENTITY_NOT_FOUND.
    #[error("no such publisher identity")]
    PublisherIdentityNotFound {
        /// As asked for.
        publisher_identity: String,
    },
    /// NOT_SUBSCRIBED.
    #[error("the target is not subscribed to {event_type}")]
    NotSubscribed {
        /// The event type.
        event_type: String,
    },
    /// WATCH_NOT_FOUND.
    #[error("no such watch")]
    WatchNotFound {
        /// As asked for.
        watch: String,
    },

    /// ALREADY_SUBSCRIBED.
    #[error("the same app, event type and target is subscribed already")]
    AlreadySubscribed {
        /// Id of the subscription that exists.
        subscription: String,
    },
    /// ENRICH_PATH_TAKEN.
    #[error("{path:?} may be enriched by another active subscription already")]
    EnrichPathTaken {
        /// The place.
        path: String,
        /// Id of the other subscription; none where the caller may not see it.
        subscription: Option<String>,
    },
    /// EVENT_TYPE_EXISTS.
    #[error("an event type of that name exists; one that is retired comes back by UndeleteEventType")]
    EventTypeExists {
        /// The name.
        name: String,
    },
    /// TENANT_EXISTS.
    #[error("a tenant with that slug exists")]
    TenantExists {
        /// The slug.
        tenant: String,
    },
    /// APP_EXISTS.
    #[error("an app with that slug exists in the tenant")]
    AppExists {
        /// The slug.
        app: String,
    },
    /// PUBLISHER_IDENTITY_EXISTS.
    #[error("that subject alternative name is registered already")]
    PublisherIdentityExists {
        /// The subject.
        subject: String,
    },

    /// REQUEST_ID_REUSED.
    #[error("{field} was used before for another request")]
    RequestIdReused {
        /// `request_id`, `idempotency_key`, or the latter's path in a batch.
        field: String,
    },
    /// CURSOR_FOREIGN, with the field that holds the cursor.
    #[error("the cursor belongs to another log; start again from a time or from the earliest event")]
    CursorForeign(String),
    /// CURSOR_AHEAD, with the field.
    #[error("the cursor is ahead of the log's end")]
    CursorAhead(String),
    /// INVOCATION_STATE.
    #[error("an invocation that is {state} does not allow this")]
    InvocationState {
        /// The invocation.
        invocation: String,
        /// Its state's name.
        state: String,
    },
    /// EVENT_TYPE_STATE.
    #[error("{message}")]
    EventTypeState {
        /// The name.
        name: String,
        /// Why its state does not allow the call.
        message: String,
    },
    /// SUBSCRIPTION_STATE.
    #[error("{message}")]
    SubscriptionState {
        /// The subscription.
        subscription: String,
        /// Why its state does not allow the call.
        message: String,
    },
    /// PRE_REJECTED.
    #[error("{message}")]
    PreRejected {
        /// Why, in one sentence.
        message: String,
        /// Id of the event that will not be.
        event: String,
        /// One per listener, those that decided first.
        verdicts: Vec<PreVerdict>,
    },
    /// RESOURCE_STATE.
    #[error("{message}")]
    ResourceState {
        /// `carillon.dev/App` and the like.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Why its state does not allow the call.
        message: String,
    },

    /// CURSOR_MALFORMED, with the field: one text for everything that is not a cursor of ours.
    #[error("the cursor is unreadable")]
    CursorMalformed(String),
    /// CURSOR_EXPIRED.
    #[error("the cursor or time is older than the retained log; the first usable cursor is in the metadata")]
    CursorExpired {
        /// The first usable cursor.
        earliest: String,
    },

    /// QUOTA_EXCEEDED.
    #[error("{quota} is at its bound of {limit}")]
    QuotaExceeded {
        /// Name of the bound, as in the configuration.
        quota: String,
        /// The bound.
        limit: u64,
        /// When it makes sense to try again.
        retry_delay: Option<Duration>,
    },
    /// SLOW_CONSUMER.
    #[error("the stream's reader made no progress within the stall limit")]
    SlowConsumer {
        /// Where to go on.
        resume_cursor: String,
    },

    /// ETAG_MISMATCH.
    #[error("the etag does not match: read the resource again, it has changed")]
    EtagMismatch {
        /// The resource.
        resource: String,
    },
    /// LEASE_LOST.
    #[error("the lease was lost to another worker")]
    LeaseLost,

    /// SERVER_DRAINING.
    #[error("the server is draining; connect again")]
    ServerDraining,
    /// STREAM_AGE.
    #[error("the stream reached its maximum age; resume with the last cursor")]
    StreamAge {
        /// Where to go on.
        resume_cursor: String,
    },
    /// PRE_LISTENER_UNAVAILABLE.
    #[error("{message}")]
    PreListenerUnavailable {
        /// Why, in one sentence.
        message: String,
        /// Id of the event that will not be.
        event: String,
        /// One per listener, those that decided first.
        verdicts: Vec<PreVerdict>,
    },
    /// PRE_DEADLINE.
    #[error("{message}")]
    PreDeadline {
        /// Why, in one sentence.
        message: String,
        /// Id of the event that will not be.
        event: String,
        /// One per listener, those that decided first.
        verdicts: Vec<PreVerdict>,
    },
    /// DEADLINE.
    #[error("the call's deadline passed")]
    Deadline,
    /// DEADLINE, of a call that changes something.
    #[error("the call's deadline passed; the change may have happened: repeat it with the same request_id or key")]
    DeadlineOfChange,

    /// CREDENTIAL_INVALID: one text for every kind of bad credential.
    #[error("no credential, or one that is not valid")]
    CredentialInvalid,
    /// ROLE_INSUFFICIENT.
    #[error("the credential's role does not allow this; it takes {}", required.as_str())]
    RoleInsufficient {
        /// The least role that may.
        required: Role,
    },
    /// EVENT_TYPE_FORBIDDEN.
    #[error("the credential does not cover events of this type")]
    EventTypeForbidden {
        /// The event type.
        event_type: String,
    },

    /// NOT_IMPLEMENTED.
    #[error("this release does not implement {feature}")]
    NotImplemented {
        /// The call or option.
        feature: String,
    },
    /// NOT_IMPLEMENTED, for a method that nobody knows, or that another port serves.
    #[error("this port has no method {method}")]
    MethodNotFound {
        /// Service and method.
        method: String,
    },
    /// STORE_UNAVAILABLE, STORAGE_FULL or INTERNAL, as the store's failure says.
    #[error("{}", store_message(.0))]
    Store(#[from] StoreError),
    /// The reason of `error`, which concerns one of several things in the request.
    #[error("{field}: {error}")]
    At {
        /// Path in the request, e.g. `requests[3].event`.
        field: String,
        /// What is wrong with it.
        error: Box<ApiError>,
    },
    /// INTERNAL.
    #[error("a fault of the server")]
    Internal {
        /// What failed; for the log only.
        operation: &'static str,
        /// Why; for the log only.
        #[source]
        source: Option<Box<dyn Error + Send + Sync>>,
    },
}

impl From<FieldError> for ApiError {
    fn from(error: FieldError) -> Self {
        Self::field(error.field, error.description)
    }
}

impl From<PageTokenError> for ApiError {
    fn from(_: PageTokenError) -> Self {
        Self::PageTokenInvalid
    }
}

/// Says that this release does not implement something.
pub fn not_implemented(feature: impl Into<String>) -> ApiError {
    ApiError::NotImplemented { feature: feature.into() }
}

impl ApiError {
    /// One bad field.
    pub fn field(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self::FieldInvalid { violations: vec![FieldViolation { field: field.into(), description: description.into() }] }
    }

    /// A fault of the server.
    pub fn internal(operation: &'static str, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Internal { operation, source: Some(source.into()) }
    }

    /// The reason's name as it travels, without the enum's prefix.
    pub fn reason_name(&self) -> &'static str {
        reason_name(self.entry().reason)
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        if matches!(error, ApiError::Store(StoreError::RequestIdReused)) {
            return ApiError::RequestIdReused { field: "request_id".to_owned() }.into();
        }
        let mut entry = error.entry();
        if entry.code == Code::Internal {
            let incident = clock::new_uuid().simple().to_string();
            log_incident(&incident, &error);
            entry = entry.metadata("incident", incident);
        } else if let ApiError::Store(cause) = &error {
            tracing::warn!(error = cause as &dyn Error, "a call failed on the store");
        }
        entry.into_status(&error.to_string())
    }
}

fn reason_name(reason: ErrorReason) -> &'static str {
    let name = reason.as_str_name();
    name.strip_prefix("ERROR_REASON_").unwrap_or(name)
}

/// Writes the only log line of an incident, with every cause.
fn log_incident(incident: &str, error: &ApiError) {
    match error {
        ApiError::Internal { operation, source } => {
            let cause = source.as_ref().map(|source| chain(source.as_ref())).unwrap_or_default();
            tracing::error!(incident, operation, cause, "a call failed by a fault of the server");
        }
        other => tracing::error!(incident, cause = chain(other), "a call failed by a fault of the server"),
    }
}

/// An error and its causes on one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
