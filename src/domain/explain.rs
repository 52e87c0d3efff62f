//! What a subscription makes of an event: whether it fires, and what decides that it does not.
//!
//! The order of the checks is that of matching (`publish::prepare`), which decides the same without the words.

use super::event::Event;
use super::filter::{Deciding, FilterContext};
use super::subscription::{State, Subscription};

/// Why a subscription fires for an event or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It fires.
    Fires,
    /// It is not active.
    State(State),
    /// It is pinned to another schema version.
    SchemaVersion {
        /// The version it is pinned to.
        pinned: i32,
        /// The event's.
        event: i32,
    },
    /// Its filter is not true.
    Filter(Vec<Deciding>),
    /// Its filter cannot be evaluated.
    FilterError {
        /// Why.
        error: String,
        /// The parts that fail.
        deciding: Vec<Deciding>,
    },
    /// It is in the event's own lineage.
    Lineage,
}

/// What a subscription, as it is, makes of an event.
pub fn explain(subscription: &Subscription, event: &Event, context: &FilterContext<'_>) -> Reason {
    if subscription.state != State::Active {
        return Reason::State(subscription.state);
    }
    if !subscription.takes_version(event.schema_version) {
        return Reason::SchemaVersion { pinned: subscription.schema_version, event: event.schema_version };
    }
    if let Some(filter) = &subscription.filter {
        let explanation = filter.explain(context);
        match explanation.matched {
            Ok(true) => {}
            Ok(false) => return Reason::Filter(explanation.deciding),
            Err(error) => return Reason::FilterError { error: error.0, deciding: explanation.deciding },
        }
    }
    if event.lineage.subscriptions.contains(&subscription.no) { Reason::Lineage } else { Reason::Fires }
}
