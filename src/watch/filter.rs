//! Which events a reader wants: event types and a CEL filter, and the named set of them that a watch carries.

use crate::domain::announcement::tells_of_another_app;
use crate::domain::event::Event;
use crate::domain::event_type::EventTypePattern;
use crate::domain::filter::{Filter, FilterContext};
use crate::telemetry::{FilterPlace, measured};
use std::sync::Arc;

/// Event types and a filter; both must agree.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// None means every type.
    pub event_types: Vec<EventTypePattern>,
    /// None means every event.
    pub filter: Option<Filter>,
}

impl Selection {
    /// True where it selects every event.
    pub fn is_everything(&self) -> bool {
        self.event_types.is_empty() && self.filter.is_none()
    }

    /// Whether it selects the event. An evaluation that fails selects nothing.
    pub fn matches(&self, event: &Event) -> bool {
        self.matches_in(event, &mut None)
    }

    /// The same, with what several selections share.
    fn matches_in<'e>(&self, event: &'e Event, context: &mut Option<FilterContext<'e>>) -> bool {
        let typed =
            self.event_types.is_empty() || self.event_types.iter().any(|pattern| pattern.matches(&event.event_type));
        // The context parses the payload, so it is made only for events whose type matches.
        typed
            && self.filter.as_ref().is_none_or(|filter| {
                let matches = filter.matches(context.get_or_insert_with(|| FilterContext::new(event)));
                matches.unwrap_or_else(|_| measured().filter_failed(FilterPlace::Watch))
            })
    }
}

/// A selection with its name within the watch.
#[derive(Debug, Clone)]
pub struct NamedSelection {
    /// Unique in the watch; empty for a single unnamed one.
    pub name: String,
    /// What it selects.
    pub selection: Selection,
}

/// The filters of one watch: an event that any of them selects is delivered once.
#[derive(Debug, Clone, Default)]
pub struct Filters {
    named: Box<[NamedSelection]>,
    /// Slug of the app that the watch's credential is limited to: what is told of other apps' subscriptions is not for it.
    app: Option<Arc<str>>,
}

/// Whether a watch wants an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// No filter selects it.
    Skip,
    /// It is delivered, with the indices of the filters that select it as a bit set.
    Deliver(u16),
}

impl Filters {
    /// Filters that a watch may carry.
    pub const MAX: usize = 16;

    /// Takes at most [`Filters::MAX`] filters with unique names; none selects every event.
    pub fn new(named: Vec<NamedSelection>) -> Self {
        debug_assert!(named.len() <= Self::MAX, "checked where the request is parsed");
        Self { named: named.into(), app: None }
    }

    /// The same for a credential that is limited to an app.
    #[must_use]
    pub fn of_app(self, app: Option<Arc<str>>) -> Self {
        Self { app, ..self }
    }

    /// The expressions among them.
    pub fn filters(&self) -> impl Iterator<Item = &Filter> {
        self.named.iter().filter_map(|named| named.selection.filter.as_ref())
    }

    /// The app that they are limited to.
    pub fn app(&self) -> Option<&str> {
        self.app.as_deref()
    }

    /// True where every event is delivered without a name.
    pub fn is_plain(&self) -> bool {
        self.app.is_none() && self.names_nothing()
    }

    fn names_nothing(&self) -> bool {
        match &*self.named {
            [] => true,
            [only] => only.name.is_empty() && only.selection.is_everything(),
            _ => false,
        }
    }

    /// Decides on one event.
    pub fn verdict(&self, event: &Event) -> Verdict {
        if self.app().is_some_and(|app| tells_of_another_app(event, app)) {
            return Verdict::Skip;
        }
        if self.names_nothing() {
            return Verdict::Deliver(0);
        }
        let mut context = None;
        let mut matched = 0_u16;
        for (index, named) in self.named.iter().enumerate() {
            if named.selection.matches_in(event, &mut context) {
                matched |= 1 << index;
            }
        }
        if matched == 0 { Verdict::Skip } else { Verdict::Deliver(matched) }
    }

    /// The names behind a verdict's bits; an unnamed filter has none.
    pub fn names(&self, matched: u16) -> impl Iterator<Item = &str> {
        self.named
            .iter()
            .enumerate()
            .filter(move |(index, named)| matched >> index & 1 == 1 && !named.name.is_empty())
            .map(|(_, named)| named.name.as_str())
    }
}
