//! Why an event is not published.

use crate::domain::event_type::EventTypeName;
use crate::domain::json::JsonError;
use crate::domain::quotas::Quota;
use crate::domain::schema::Violation;
use crate::store::StoreError;
use std::time::Duration;

/// Why an event is not published. Cheap to clone: one failed commit answers many callers.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PublishError {
    /// No such type, or a retired one.
    #[error("event type {name} is not in the catalogue")]
    EventTypeNotFound {
        /// The name as given.
        name: String,
        /// Similar names that exist.
        near: Vec<String>,
    },
    /// No such schema version.
    #[error("event type {event_type} has no schema version {version}")]
    SchemaVersionNotFound {
        /// The type.
        event_type: EventTypeName,
        /// The version asked for.
        version: i32,
    },
    /// The data breaks the schema.
    #[error("the data breaks the schema of {event_type}, version {version}")]
    SchemaViolation {
        /// The type.
        event_type: EventTypeName,
        /// The version checked.
        version: i32,
        /// At most 32.
        violations: Vec<Violation>,
    },
    /// The data is declared as JSON, and is not or holds a key that no payload may have.
    #[error("the data cannot be read as JSON")]
    DataUnreadable(#[source] JsonError),
    /// Larger than the bound.
    #[error("the event is larger than {limit} bytes")]
    TooLarge {
        /// The bound, bytes.
        limit: usize,
    },
    /// The idempotency key was used with another body.
    #[error("the idempotency key was used before with another event")]
    KeyReused,
    /// Listeners must agree first: the event is for the gate, not for the writer.
    #[error("the event's listeners must agree first")]
    Gated,
    /// The tenant's registry changed faster than the event could be matched.
    #[error("the tenant's subscriptions change too fast to publish just now")]
    Contended,
    /// The events that wait for a commit take all the room there is.
    #[error("too much waits to be committed; come back later")]
    QueueFull {
        /// The room, bytes.
        limit_bytes: usize,
    },
    /// The tenant is at a quota.
    #[error("the tenant's {} is {limit}", quota.name())]
    Quota {
        /// Which.
        quota: Quota,
        /// What it is.
        limit: u64,
        /// When it makes sense to try again; none where waiting does not help.
        retry: Option<Duration>,
    },
    /// The server is shutting down.
    #[error("the server is draining")]
    Draining,
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
}

impl PublishError {
    /// Whether the same event may be accepted another time.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Contended | Self::QueueFull { .. } | Self::Quota { .. } | Self::Draining | Self::Store(_))
    }

    /// Whether a newer version of the tenant's registry may judge otherwise.
    pub(super) fn is_by_registry(&self) -> bool {
        matches!(
            self,
            Self::EventTypeNotFound { .. } | Self::SchemaVersionNotFound { .. } | Self::SchemaViolation { .. }
        )
    }
}
