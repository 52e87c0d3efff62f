//! A tenant as the engine holds it: its state machine, and which loads of it are under way.
//!
//! Starts loads where they are wanted; what they bring comes back to the engine as inputs.

use super::LOAD_AGAIN;
use super::backlog::Backlog;
use crate::dispatch::run::{Life, Shared};
use crate::dispatch::tenant::{Tenant, WantedPage};
use crate::dispatch::{announce, load, replay};
use crate::publish::registry::TenantRegistry;
use crate::store::StoreError;
use chrono::{DateTime, Utc};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// A tenant with what the engine itself keeps of it.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each says whether one kind of load is under way; they are independent"
)]
pub(super) struct Held {
    pub tenant: Tenant,
    pub registry: Option<Arc<TenantRegistry>>,
    /// The registry's version for which what waits was last looked at.
    pub heeded: i64,
    /// True while the registry is being brought up to date: nothing starts meanwhile.
    pub refreshing: bool,
    /// True where work waits for a reload to say that it is to be cancelled.
    pub unsure: bool,
    /// The reload that is under way, as the tenant numbers it.
    pub reload: Option<u64>,
    /// The deferred_version that memory reflects.
    pub reviewed: i64,
    pub reviewing: bool,
    /// True after a review: loads go before the next one, so that callers who change much do not stop them.
    pub loads_first: bool,
    pub announcing: bool,
    /// Announcements wait until then after a failure; nothing else does.
    pub announce_at: DateTime<Utc>,
    /// True while a step of a replay is under way.
    pub replaying: bool,
    /// The next one waits until then.
    pub replay_at: DateTime<Utc>,
    /// True while it is being written how receivers do.
    pub keeping: bool,
    /// That waits until then after a failure.
    pub keep_at: DateTime<Utc>,
    /// Whether more is waiting than may.
    pub backlog: Backlog,
    /// In the list of tenants that may start something.
    pub in_turn: bool,
    /// Loads wait until then after a failure.
    pub not_before: DateTime<Utc>,
    pub settle_at: DateTime<Utc>,
    /// True where the cursor is to be written though nothing else is.
    pub cursor_too: bool,
    /// The timer that is set.
    pub armed: Option<DateTime<Utc>>,
    /// Ends the attempts that run, with this.
    pub over: CancellationToken,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.over.cancel();
    }
}

impl Held {
    /// True where nothing runs and everything that happened is written.
    pub fn is_quiet(&self) -> bool {
        self.tenant.is_quiet() && !self.keeping && self.tenant.notes.is_empty()
    }

    /// True where the registry is as new as the head says.
    pub fn is_current(&self) -> bool {
        let version = self.registry.as_ref().map(|registry| registry.version());
        !self.refreshing && !self.unsure && version.is_some_and(|version| version >= self.tenant.head.registry_version)
    }

    /// Takes note of whether events are to be put in order before they are taken.
    pub fn look_at_ordering(&mut self) {
        self.tenant.ordered = self.registry.as_ref().is_none_or(|registry| registry.has_ordering());
    }

    /// Looks at what waits where subscriptions may have changed. The registry is shared: whoever else brings it up to date, a publisher
    /// or the feed, does not say so here.
    fn heed(&mut self, now: DateTime<Utc>) {
        let Some(registry) = self.registry.as_ref().filter(|registry| registry.version() > self.heeded) else { return };
        self.heeded = registry.version();
        let state = |no| registry.subscription(no).map(|found| found.subscription.state);
        self.tenant.review_inactive(now, state);
        self.tenant.review_parked(now);
    }

    /// Starts the loads that the tenant wants.
    pub fn load(&mut self, shared: &Arc<Shared>, life: Life, now: DateTime<Utc>) {
        self.heed(now);
        // A review sees what is in memory: what a load brings meanwhile may have been cancelled after it was read, and would
        // run. So the two never overlap.
        let changed = self.tenant.head.deferred_version > self.reviewed;
        if !self.reviewing && (!changed || self.loads_first) {
            self.loads_first = false;
            self.look_at_ordering();
            match self.tenant.wants_page(now, &shared.config) {
                Some(WantedPage::Log(place, up_to)) => load::page(shared, life, place, up_to),
                Some(WantedPage::Keys(entries)) => load::keys(shared, life, entries),
                None => {}
            }
            for wanted in self.tenant.wants_due(now, &shared.config) {
                load::due(shared, life, wanted, self.tenant.head.registry_version);
            }
        }
        if changed && !self.reviewing && !self.tenant.is_loading() {
            self.reviewing = true;
            load::review(shared, life, self.tenant.waiting_rows(), self.tenant.cursor());
        }
        if self.unsure && !self.refreshing {
            self.unsure = false;
            self.refreshing = true;
            self.reload = Some(self.tenant.begin_reload());
            load::registry(shared, life, None);
        } else if !self.refreshing && !self.is_current() && self.tenant.heeds_registry() {
            self.refreshing = true;
            load::registry(shared, life, Some(self.tenant.head.registry_version));
        }
        if self.tenant.announce && !self.announcing && now >= self.announce_at {
            self.tenant.announce = false;
            self.announcing = true;
            announce::spawn(shared, life);
        }
        if self.tenant.replay && !self.replaying && now >= self.replay_at {
            self.tenant.replay = false;
            self.replaying = true;
            replay::spawn(shared, life, self.tenant.busy(&shared.config));
        }
    }

    /// Writes how receivers do, where that has changed. One at a time, so that an older note never follows a newer one.
    pub fn keep_health(&mut self, shared: &Arc<Shared>, life: Life, now: DateTime<Utc>) {
        if !self.keeping && !self.tenant.notes.is_empty() && now >= self.keep_at {
            self.keeping = true;
            announce::health(shared, life, std::mem::take(&mut self.tenant.notes));
        }
    }

    pub fn put_off(&mut self, error: &StoreError, now: DateTime<Utc>, what: &'static str) {
        tracing::warn!(tenant = %self.tenant.id, %error, "{what}; it is tried again");
        self.not_before = now + LOAD_AGAIN;
    }
}
