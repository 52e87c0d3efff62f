//! Why a pending event does not come to be.

use crate::domain::pre::Aborted;
use crate::publish::PublishError;
use crate::store::StoreError;
use std::sync::Arc;

/// Why a pending event does not come to be. Cheap to clone: one phase answers many callers.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PendingError {
    /// Its listeners did not let it pass.
    #[error("the event was aborted: {}", .0.message)]
    Aborted(Arc<Aborted>),
    /// A caller took it back.
    #[error("the event was cancelled")]
    Cancelled,
    /// A bound is reached.
    #[error("{quota} is at its bound of {limit}")]
    Full {
        /// The setting.
        quota: &'static str,
        /// The bound.
        limit: u64,
    },
    /// Further ahead than events may be scheduled.
    #[error("the time is more than {hours} hours ahead")]
    TooFar {
        /// The bound.
        hours: u32,
    },
    /// There is no such event.
    #[error("no such event")]
    NotFound,
    /// It cannot be published.
    #[error(transparent)]
    Publish(#[from] PublishError),
}

impl PendingError {
    /// Whether an earlier call of the same event may have fared otherwise. How an event ended is no such refusal, and a store that fails
    /// has nothing to say of earlier calls.
    pub fn may_be_repetition(&self) -> bool {
        match self {
            Self::Aborted(_) | Self::Cancelled | Self::NotFound => false,
            // Of what has too much to do nothing more is asked.
            Self::Publish(error) => !matches!(
                error,
                PublishError::Draining
                    | PublishError::Store(_)
                    | PublishError::Contended
                    | PublishError::QueueFull { .. }
            ),
            Self::Full { .. } | Self::TooFar { .. } => true,
        }
    }
}

impl From<StoreError> for PendingError {
    fn from(error: StoreError) -> Self {
        Self::Publish(error.into())
    }
}
