//! An event before and after it has a place in the log.

use super::event_type::EventTypeName;
use super::ids::{EventId, InvocationId, Position, SubscriptionNo};
use super::invocation::CancelReason;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use std::sync::Arc;

/// The type of the event that tells that the budget of a chain is used up.
pub const CHAIN_BUDGET_EXHAUSTED: &str = "CHAIN_BUDGET_EXHAUSTED";

/// A published fact: a CloudEvent 1.0 with its causal chain, before it has a place in the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Assigned by the server; the CloudEvent's `id`.
    pub id: EventId,
    /// The CloudEvent's `type`.
    pub event_type: EventTypeName,
    /// The version that the data was checked against; 0 for none.
    pub schema_version: i32,
    /// The CloudEvent's `source`, a URI reference.
    pub source: String,
    /// The CloudEvent's `subject`.
    pub subject: Option<String>,
    /// The CloudEvent's `time`.
    pub time: DateTime<Utc>,
    /// The CloudEvent's `datacontenttype`.
    pub content_type: Option<String>,
    /// Further attributes, by name, sorted, names unique and `[a-z0-9]{1,20}`.
    pub extensions: Vec<(String, Attribute)>,
    /// The payload, byte for byte as published.
    pub data: Data,
    /// Its causal chain.
    pub lineage: Lineage,
}

impl Event {
    /// True where what it fires counts against the budget of its chain: where it follows from another one. What tells that the budget is
    /// used up must not be held back by that itself; it is told once.
    pub fn spends_budget(&self) -> bool {
        self.lineage.depth > 0 && self.event_type.as_str() != CHAIN_BUDGET_EXHAUSTED
    }

    /// The text of an extension attribute; none where it is not there or no text.
    pub fn text_extension(&self, name: &str) -> Option<&str> {
        self.extensions.iter().find_map(|(known, attribute)| match attribute {
            Attribute::String(text) if known == name => Some(text.as_str()),
            _ => None,
        })
    }

    /// The size that counts towards the limit of an event: attributes and data.
    pub fn bytes(&self) -> usize {
        self.attribute_bytes() + self.data.as_bytes().len()
    }

    /// Names and values of its attributes, and the type of protobuf data.
    pub fn attribute_bytes(&self) -> usize {
        let value = |attribute: &Attribute| match attribute {
            Attribute::String(text) | Attribute::Uri(text) | Attribute::UriRef(text) => text.len(),
            Attribute::Bytes(bytes) => bytes.len(),
            Attribute::Boolean(_) | Attribute::Integer(_) | Attribute::Timestamp(_) => 8,
        };
        let type_url = if let Data::Proto { type_url, .. } = &self.data { type_url.len() } else { 0 };
        type_url
            + self.event_type.as_str().len()
            + self.source.len()
            + self.subject.as_ref().map_or(0, String::len)
            + self.content_type.as_ref().map_or(0, String::len)
            + self.extensions.iter().map(|(name, attribute)| name.len() + value(attribute)).sum::<usize>()
    }

    /// What it costs to keep in memory, bytes: every bound on memory counts an event so.
    pub fn memory_bytes(&self) -> usize {
        /// A value of its own on the heap has a header, and is rounded up.
        const ALLOCATION: usize = 16;
        const ATTRIBUTE: usize = size_of::<(String, Attribute)>() + 2 * ALLOCATION;
        size_of::<Self>()
            + 6 * ALLOCATION
            + self.bytes()
            + ATTRIBUTE * self.extensions.len()
            + size_of_val(self.lineage.subscriptions.as_slice())
    }

    /// True where the data is JSON by its content type (absent counts as JSON, as CloudEvents says).
    pub fn has_json_data(&self) -> bool {
        !matches!(self.data, Data::None | Data::Proto { .. }) && self.content_type.as_deref().is_none_or(is_json)
    }
}

/// True for `application/json`, `text/json` and every `+json` type, whatever the parameters.
pub fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || essence == "text/json" || essence.ends_with("+json")
}

/// The payload of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// No payload.
    None,
    /// `binary_data`.
    Binary(Bytes),
    /// `text_data`, UTF-8.
    Text(Bytes),
    /// `proto_data`.
    Proto {
        /// The type's URL.
        type_url: String,
        /// The encoded message.
        value: Bytes,
    },
}

impl Data {
    /// The bytes that a receiver gets.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::None => &[],
            Self::Binary(bytes) | Self::Text(bytes) | Self::Proto { value: bytes, .. } => bytes,
        }
    }
}

/// The value of a CloudEvents extension attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attribute {
    /// Boolean.
    Boolean(bool),
    /// Integer, 32 bits.
    Integer(i32),
    /// String.
    String(String),
    /// Binary.
    Bytes(Bytes),
    /// Absolute URI.
    Uri(String),
    /// URI reference.
    UriRef(String),
    /// Timestamp.
    Timestamp(DateTime<Utc>),
}

/// What caused an event. Set by the server, never trusted from a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineage {
    /// The first event of the chain; the event's own id for a root.
    pub root: EventId,
    /// The invocation that caused it; none for a root.
    pub cause: Option<InvocationId>,
    /// How many invocations lie between the root and this event.
    pub depth: i32,
    /// The subscriptions on the way from the root, in order: none of them fires again.
    pub subscriptions: Vec<SubscriptionNo>,
}

impl Lineage {
    /// The lineage of an event that nothing caused.
    pub fn root(id: EventId) -> Self {
        Self { root: id, cause: None, depth: 0, subscriptions: Vec::new() }
    }

    /// The lineage of an event that `cause` brought about.
    #[must_use]
    pub fn caused_by(&self, cause: InvocationId) -> Self {
        let mut subscriptions = self.subscriptions.clone();
        subscriptions.push(cause.subscription_no);
        Self { root: self.root, cause: Some(cause), depth: self.depth + 1, subscriptions }
    }
}

/// An event with its place in the log and everything it fires. Immutable.
#[derive(Debug, Clone, PartialEq)]
pub struct LogEntry {
    /// Place in the tenant's log.
    pub position: Position,
    /// Commit time by the database's clock; never decreases along the log.
    pub committed_at: DateTime<Utc>,
    /// The event.
    pub event: Arc<Event>,
    /// The subscriptions it fires.
    pub matched: Arc<[SubscriptionNo]>,
    /// The subscriptions that would have fired, had not the event's own lineage or the budget of its chain refused them: cancelled as
    /// [`Self::refusal`] says.
    pub refused: Arc<[SubscriptionNo]>,
}

impl LogEntry {
    /// What it costs to keep in memory, bytes, with its event.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.matched) + size_of_val(&*self.refused) + self.event.memory_bytes()
    }

    /// The invocation of one subscription for this event.
    pub fn invocation(&self, subscription_no: SubscriptionNo) -> InvocationId {
        InvocationId { event: self.event.id, subscription_no }
    }

    /// Why a subscription is refused.
    pub fn refusal(&self, subscription_no: SubscriptionNo) -> CancelReason {
        let looped = self.event.lineage.subscriptions.contains(&subscription_no);
        if looped { CancelReason::ChainCycle } else { CancelReason::ChainBudget }
    }

    /// The first subscription that the budget of its chain does not reach for.
    pub fn over_budget(&self) -> Option<SubscriptionNo> {
        self.refused.iter().copied().find(|no| self.refusal(*no) == CancelReason::ChainBudget)
    }

    /// The UTC date that partitions the log.
    pub fn day(&self) -> chrono::NaiveDate {
        self.committed_at.date_naive()
    }
}
