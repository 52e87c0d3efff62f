//! What makes one watch different from another, and the reasons for which the server ends one.

use super::filter_set::{FilterChange, FilterSet};
use crate::domain::access::Caller;
use crate::proto::public::EventView;
use crate::store::StoreError;
use crate::store::events::LogPlace;
use futures::future::BoxFuture;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// What to do where retention has removed what comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExpired {
    /// End with the earliest cursor.
    Fail,
    /// Say what is missing and go on.
    FromEarliest,
}

/// Whether a credential still allows what it is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It does.
    Valid,
    /// It was revoked, has expired or lost its role.
    Revoked,
    /// It could not be looked up just now.
    Unknown,
}

/// Asks whether a caller's credential still holds.
pub type CredentialCheck = dyn Fn(&Caller) -> BoxFuture<'static, Standing> + Send + Sync;

/// Why the server ended a stream.
#[derive(Debug, thiserror::Error)]
pub enum Ending {
    /// The server goes down.
    #[error("the server is draining")]
    Draining,
    /// The stream is old enough.
    #[error("the stream has reached its age")]
    Age {
        /// Where to go on.
        resume_cursor: String,
    },
    /// The reader took nothing for too long.
    #[error("the reader made no progress")]
    SlowConsumer {
        /// Where to go on.
        resume_cursor: String,
    },
    /// The credential was revoked.
    #[error("the credential no longer holds")]
    CredentialInvalid,
    /// Retention was faster, and the caller wants to be told by an error.
    #[error("the events that come next are no longer retained")]
    Expired {
        /// The first usable cursor.
        earliest_cursor: String,
    },
    /// The log was restored from a backup, and has other events in these places.
    #[error("the log has begun another life")]
    Foreign,
    /// The store cannot be read, and could not for a while.
    #[error("the log cannot be read")]
    Store(#[source] StoreError),
}

/// Names the reason of an end as the status names it that follows: the errors' names are the API's.
pub type EndingReason = fn(&Ending) -> &'static str;

/// What makes one watch different from another.
pub(super) struct Terms {
    pub(super) caller: Caller,
    /// Slug of the app that the caller is limited to.
    pub(super) app: Option<Arc<str>>,
    pub(super) filters: FilterSet,
    pub(super) filter_version: i64,
    /// Changes that an earlier watch saw after `start`, in order: they apply again at their places.
    pub(super) scheduled: VecDeque<(LogPlace, FilterChange)>,
    pub(super) view: EventView,
    pub(super) on_expired: OnExpired,
    pub(super) bookmark_interval: Duration,
    pub(super) start: LogPlace,
    /// Where to go on where the events after `start` are missing.
    pub(super) gap: Option<LogPlace>,
    /// When the stream is old enough.
    pub(super) ends_at: Instant,
    /// When the credential ends by itself, where it does.
    pub(super) expires_at: Option<Instant>,
}
