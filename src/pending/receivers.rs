//! How the receivers of PRE events do: their circuits, how many questions each takes at a time and how fast, and what their answers say of
//! themselves beyond the event that they were asked about.
//!
//! Any replica may ask, so this is each replica's own knowledge. A circuit that opens or closes is written and told, and the others read it
//! before they ask. The tokens of a rate limit are taken in the database, so that it is one of all replicas together; the bound of
//! questions at a time is that of one replica.

use super::Core;
use super::ask::Listener;
use crate::domain::announcement::Announcement;
use crate::domain::event::Lineage;
use crate::domain::health::{Gate, Health, HealthRow};
use crate::domain::ids::{SubscriptionNo, TenantId};
use crate::domain::invocation::{Outcome, OutcomeClass};
use crate::domain::retry::{DeliveryPolicy, RateLimit};
use crate::feed::{Head, News};
use crate::store::StoreError;
use crate::store::heads::RegistryChange;
use crate::store::subscriptions::ServerReason;
use chrono::{DateTime, Utc};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep};

/// Receivers that are remembered; the least asked are forgotten.
const RECEIVERS_MAX: u64 = 100_000;
/// Between two looks at what other replicas know of a tenant's circuits.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The receivers that this process asks.
pub(super) struct Receivers {
    known: moka::sync::Cache<(TenantId, SubscriptionNo, i64), Arc<Receiver>>,
    looked: moka::sync::Cache<TenantId, ()>,
}

/// One, as of one version of its subscription.
struct Receiver {
    places: Arc<Semaphore>,
    health: Mutex<Health>,
}

/// Leave to ask once. Dropped without an end, it says nothing of the receiver.
pub(super) struct Leave {
    receiver: Arc<Receiver>,
    probe: bool,
    ended: bool,
    _place: OwnedSemaphorePermit,
}

impl Default for Receivers {
    fn default() -> Self {
        Self {
            known: moka::sync::Cache::new(RECEIVERS_MAX),
            looked: moka::sync::Cache::builder().max_capacity(RECEIVERS_MAX).time_to_live(LOOK_AGAIN).build(),
        }
    }
}

impl Receiver {
    /// Begins a question. Answers whether it is a probe, and what is to be written of that.
    ///
    /// Errors: why it is not to be asked at all.
    fn begin(&self, listener: &Listener, now: DateTime<Utc>) -> Result<(bool, Option<HealthRow>), &'static str> {
        let subscription = &listener.entry.subscription;
        let mut health = self.health();
        let probe = may_ask(&health, &subscription.policy, now)?;
        let changed = probe && health.probe(now);
        Ok((probe, changed.then(|| health.kept(subscription.no))))
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a question would be a probe. Errors: why there is none.
fn may_ask(health: &Health, policy: &DeliveryPolicy, now: DateTime<Utc>) -> Result<bool, &'static str> {
    match health.gate(policy, now) {
        Gate::Free => Ok(false),
        Gate::Probe => Ok(true),
        Gate::Wait(_) | Gate::Probing => Err("its circuit is open: it has failed too often to be asked now"),
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        if !self.ended {
            self.receiver.health().abandon(self.probe);
        }
    }
}

impl Receivers {
    fn get(&self, tenant: TenantId, listener: &Listener) -> Arc<Receiver> {
        let subscription = &listener.entry.subscription;
        let version = subscription.registry_version;
        self.known.get_with((tenant, subscription.no, version), || {
            let mut health = Health::default();
            health.is_of(version);
            let places = usize::try_from(subscription.policy.max_in_flight()).unwrap_or(1).max(1);
            Arc::new(Receiver { places: Arc::new(Semaphore::new(places)), health: Mutex::new(health) })
        })
    }
}

impl Core {
    /// Reads what other replicas know of the circuits of these listeners, now and then.
    pub(super) async fn look_at_circuits(&self, tenant: TenantId, listeners: &[Listener]) -> Result<(), StoreError> {
        let breaks = |listener: &Listener| listener.entry.subscription.policy.circuit_breaker().is_some();
        if !listeners.iter().any(breaks) || self.receivers.looked.contains_key(&tenant) {
            return Ok(());
        }
        let rows = self.store.health(&[tenant]).await?;
        self.receivers.looked.insert(tenant, ());
        for listener in listeners {
            let no = listener.entry.subscription.no;
            if let Some((_, row)) = rows.iter().find(|(_, row)| row.subscription_no == no) {
                self.receivers.get(tenant, listener).health().adopt(row);
            }
        }
        Ok(())
    }

    /// Waits for a place among the questions to a receiver, and for its rate.
    ///
    /// Errors: why it is not asked: its circuit is open, or its rate leaves no time.
    pub(super) async fn leave_to_ask(
        self: &Arc<Self>,
        tenant: TenantId,
        listener: &Listener,
        deadline: Instant,
    ) -> Result<Leave, &'static str> {
        let receiver = self.receivers.get(tenant, listener);
        // Never closed. The deadline is the whole phase's, which drops this.
        let place = Arc::clone(&receiver.places).acquire_owned().await.map_err(|_| "the server is draining")?;
        let policy = &listener.entry.subscription.policy;
        // Before a token is taken for nothing, and once more after the wait for it.
        may_ask(&receiver.health(), policy, self.store.now())?;
        if let Some(limit) = policy.rate_limit() {
            self.wait_for_rate(tenant, listener, limit, deadline).await?;
        }
        let (probe, changed) = receiver.begin(listener, self.store.now())?;
        if let Some(row) = changed {
            self.keep(tenant, row, None);
        }
        Ok(Leave { receiver, probe, ended: false, _place: place })
    }

    /// Takes a token of the rate that all replicas share, and waits until it may be used. A question that is given up meanwhile has
    /// taken its token all the same.
    ///
    /// Errors: why it is not asked.
    async fn wait_for_rate(
        &self,
        tenant: TenantId,
        listener: &Listener,
        limit: RateLimit,
        deadline: Instant,
    ) -> Result<(), &'static str> {
        let subscription = &listener.entry.subscription;
        let until = self.store.now() + deadline.saturating_duration_since(Instant::now());
        let taken = self.store.take_token(tenant, subscription.no, subscription.registry_version, limit, until).await;
        match taken {
            Ok(Some(at)) => {
                sleep((at - self.store.now()).to_std().unwrap_or_default()).await;
                Ok(())
            }
            Ok(None) => Err("its rate limit leaves no time to ask it"),
            Err(error) => {
                tracing::warn!(subscription = %subscription.id, %error, "a listener's rate limit could not be read");
                Err("its rate limit could not be read")
            }
        }
    }

    /// Takes note of how a receiver has answered. `lineage` is of what follows from the question.
    pub(super) fn asked(
        self: &Arc<Self>,
        tenant: TenantId,
        listener: &Listener,
        mut leave: Leave,
        outcome: &Outcome,
        lineage: impl FnOnce() -> Lineage,
    ) {
        leave.ended = true;
        let subscription = &listener.entry.subscription;
        let now = self.store.now();
        let (verdict, row) = {
            let mut health = leave.receiver.health();
            let verdict = health.ended(outcome, leave.probe, &subscription.policy, now);
            (verdict, health.kept(subscription.no))
        };
        if verdict.keep {
            let told =
                verdict.told.map(|_| Announcement::circuit_changed(subscription, &row.circuit).following(lineage()));
            self.keep(tenant, row, told);
        }
        let no = subscription.no;
        if outcome.class == OutcomeClass::Gone {
            self.disable(tenant, no, ServerReason::Gone { at: now });
        } else if verdict.disable {
            let (version, class) = (row.registry_version, outcome.class.code());
            self.disable(tenant, no, ServerReason::Failing { version, class });
        }
    }

    /// Writes how a receiver does, in a task of its own: the publisher does not wait for it.
    fn keep(self: &Arc<Self>, tenant: TenantId, row: HealthRow, told: Option<Announcement>) {
        let core = self.clone();
        self.tasks.spawn(async move {
            let kept = core.write(|| core.store.keep_pre_health(tenant, row, told.clone())).await;
            core.tell(tenant, kept, "how a listener does could not be written");
        });
    }

    /// Disables the subscription of a receiver, as that of any other event is. One that goes on as before says so again, should this be
    /// lost.
    fn disable(self: &Arc<Self>, tenant: TenantId, no: SubscriptionNo, reason: ServerReason) {
        let core = self.clone();
        self.tasks.spawn(async move {
            let disabled = core.write(|| core.store.disable_by_server(tenant, no, reason)).await;
            core.tell(tenant, disabled, "a subscription could not be disabled");
        });
    }

    fn tell(&self, tenant: TenantId, change: Result<Option<RegistryChange>, StoreError>, failed: &'static str) {
        match change {
            Ok(Some(RegistryChange { position, registry_version })) => {
                self.feed.send(&News::Head(Head { tenant, position, registry_version, deferred_version: 0 }));
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%tenant, %error, "{failed}"),
        }
    }
}
