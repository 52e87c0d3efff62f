//! Invocations: the life of one subscription's run for one event.
//!
//! ```text
//!            publish                    attempt succeeds
//! (matched) ---------> PENDING ------------------------------> SUCCEEDED
//!    |                  |   \ attempt fails, attempts left          ^
//!    | in own lineage   |    `-------------> WAITING ---------------'
//!    v                  |                    |     ^ \ attempts used up, or failed for good
//! CANCELLED <-----------+--------------------'     |  `-------> DEAD_LETTERED
//!   (caller, subscription disabled or deleted)     `--- redrive --'
//! ```

use super::event_type::EventTypeName;
use super::ids::{InvocationId, Position, SubscriptionId};
use chrono::{DateTime, Utc};
use std::time::Duration;

/// Where an invocation is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// No attempt has ended.
    Pending,
    /// Runs again later.
    Waiting,
    /// Final: accepted.
    Succeeded,
    /// Kept for a redrive.
    DeadLettered,
    /// Final: will not run.
    Cancelled,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OutcomeClass {
    /// The listener accepted the event.
    Succeeded,
    /// The listener refuses the event for good.
    Rejected,
    /// The listener answered with an error that may pass.
    Failed,
    /// The listener asked to slow down.
    Throttled,
    /// No answer in time.
    Timeout,
    /// No connection, broken TLS, or the connection broke.
    Unreachable,
    /// The egress guard refused the address.
    BlockedAddress,
    /// The receiver is gone for good; its subscription is disabled.
    Gone,
}

impl OutcomeClass {
    /// Its name in metrics and traces.
    pub fn name(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Rejected => "rejected",
            Self::Failed => "failed",
            Self::Throttled => "throttled",
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::BlockedAddress => "blocked_address",
            Self::Gone => "gone",
        }
    }

    /// Its name in events.
    pub fn code(self) -> &'static str {
        match self {
            Self::Succeeded => "SUCCEEDED",
            Self::Rejected => "REJECTED",
            Self::Failed => "FAILED",
            Self::Throttled => "THROTTLED",
            Self::Timeout => "TIMEOUT",
            Self::Unreachable => "UNREACHABLE",
            Self::BlockedAddress => "BLOCKED_ADDRESS",
            Self::Gone => "GONE",
        }
    }

    /// True where another attempt may end better.
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::Failed | Self::Throttled | Self::Timeout | Self::Unreachable)
    }
}

/// What an executor returns: a value, never an `Err`, since a failed listener is data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// How it ended.
    pub class: OutcomeClass,
    /// HTTP status; 0 where there was no answer.
    pub status_code: u16,
    /// The receiver's wish for the next attempt.
    pub retry_after: Option<Duration>,
    /// Start of the answer's body, at most 1 KiB.
    pub excerpt: Option<String>,
    /// What went wrong, without addresses.
    pub error: Option<String>,
}

/// One try, as recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// 1 for the first.
    pub number: i32,
    /// When it started.
    pub started_at: DateTime<Utc>,
    /// How long it took.
    pub duration: Duration,
    /// How it ended.
    pub outcome: Outcome,
}

/// Why an invocation was cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelReason {
    /// A caller's wish.
    Caller,
    /// The subscription was disabled before it ran.
    SubscriptionDisabled,
    /// The subscription was deleted before it ran.
    SubscriptionDeleted,
    /// The subscription is in the event's own lineage.
    ChainCycle,
    /// The events that followed from the event's root have used up their budget.
    ChainBudget,
}

impl CancelReason {
    /// Its name in the API and in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Caller => "CALLER",
            Self::SubscriptionDisabled => "SUBSCRIPTION_DISABLED",
            Self::SubscriptionDeleted => "SUBSCRIPTION_DELETED",
            Self::ChainCycle => "CHAIN_CYCLE",
            Self::ChainBudget => "CHAIN_BUDGET",
        }
    }
}

/// An invocation as its record shows it.
#[derive(Debug, Clone)]
pub struct Invocation {
    /// Its id.
    pub id: InvocationId,
    /// The event's type.
    pub event_type: EventTypeName,
    /// The event's place.
    pub event_position: Position,
    /// The subscription.
    pub subscription: SubscriptionId,
    /// The app that owns the subscription; empty where it is deleted.
    pub app_slug: String,
    /// Where it is in its life.
    pub state: State,
    /// Number of the last attempt, also of one that was lost with the replica that made it; 0 for none.
    pub attempt_count: i32,
    /// When the event was committed.
    pub created_at: DateTime<Utc>,
    /// When it became final.
    pub ended_at: Option<DateTime<Utc>>,
    /// When it runs next; only [`State::Waiting`].
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// The last attempt.
    pub last_attempt: Option<Attempt>,
    /// Why it was cancelled.
    pub cancel_reason: Option<String>,
    /// True where its subscription missed the event when it happened.
    pub replay: bool,
}
