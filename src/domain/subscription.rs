//! Subscriptions: a listener bound to one event type.

use super::event_type::EventTypeName;
use super::filter::Filter;
use super::ids::{AppId, Position, SubscriptionId, SubscriptionNo};
use super::pre::PrePolicy;
use super::retry::DeliveryPolicy;
use super::webhook::WebhookTarget;
use chrono::{DateTime, Utc};

/// Whether a subscription fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Fires.
    Active,
    /// Does not execute.
    Disabled,
    /// Unsubscribed; kept, can be restored.
    Deleted,
}

/// What a subscription runs. Further kinds are further variants.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// A signed HTTP call.
    Webhook(WebhookTarget),
}

impl Target {
    /// The kind's name in the API.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Webhook(_) => "webhook",
        }
    }
}

/// Events that a replay cannot bring any more: retention has removed them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplayGap {
    /// Position of the first of them.
    pub from: Position,
    /// Position of the first event behind them.
    pub to: Position,
}

/// Whether attempts are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CircuitState {
    /// They are.
    #[default]
    Closed,
    /// They wait.
    Open,
    /// One is made to see whether the receiver is well again.
    HalfOpen,
}

/// The circuit of a subscription's receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Circuit {
    /// Whether attempts are made.
    pub state: CircuitState,
    /// Since when; none for one that never opened.
    pub since: Option<DateTime<Utc>>,
    /// Failures in a row when it changed last.
    pub failures: i32,
}

/// A listener bound to one event type.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// Its id.
    pub id: SubscriptionId,
    /// Its number in the tenant.
    pub no: SubscriptionNo,
    /// The app that owns it.
    pub app: AppId,
    /// That app's slug; empty where it is deleted, which only a deleted subscription outlives.
    pub app_slug: String,
    /// What it listens to.
    pub event_type: EventTypeName,
    /// Name for people.
    pub display_name: String,
    /// When it fires; none fires always.
    pub filter: Option<Filter>,
    /// The schema version it is pinned to: it fires only for events that were recorded with it. 0 fires whatever the version.
    pub schema_version: i32,
    /// What it runs.
    pub target: Target,
    /// How it is attempted.
    pub policy: DeliveryPolicy,
    /// What its answer counts for; only where the event type is PRE.
    pub pre_policy: Option<PrePolicy>,
    /// Whether it fires.
    pub state: State,
    /// Why it is not active: `CALLER`, `GONE`, `FAILING`; empty while it is.
    pub state_reason: String,
    /// Its circuit, as its owner last noted it.
    pub circuit: Circuit,
    /// Until when its receiver wants no calls, likewise; none where that is over.
    pub paused_until: Option<DateTime<Utc>>,
    /// The position after which filter and state apply.
    pub effective_position: Position,
    /// The registry version of its last change: its etag.
    pub registry_version: i64,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
    /// When it was unsubscribed.
    pub deleted_at: Option<DateTime<Utc>>,
}

impl Subscription {
    /// True where the pinned schema version lets it fire for an event that was recorded with `schema_version`.
    pub fn takes_version(&self, schema_version: i32) -> bool {
        self.schema_version == 0 || self.schema_version == schema_version
    }
}
