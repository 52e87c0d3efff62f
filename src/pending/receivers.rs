//! The receivers of PRE events: whether each may be asked now, how many questions it takes at a time, and how fast.
//!
//! Any replica may ask. How a receiver does is known here as the row that all replicas share was read last, with what was heard here
//! since (`health`): the row is read when an event is accepted, a probe is claimed in it. The tokens of a rate limit are taken in the
//! database too, so that it is one of all replicas together; the bounds of questions at a time, to a receiver and of all tenants, are
//! those of one replica.

use super::Core;
use super::ask::Listener;
use super::health::{Note, Notes};
use crate::domain::event::Lineage;
use crate::domain::health::{Ended, Gate, Health, HealthRow};
use crate::domain::ids::{SubscriptionNo, TenantId};
use crate::domain::invocation::{Outcome, OutcomeClass};
use crate::domain::retry::{CircuitBreaker, DeliveryPolicy, RateLimit};
use crate::store::StoreError;
use crate::store::subscriptions::ServerReason;
use crate::turnstile::Pass;
use chrono::{DateTime, SecondsFormat, Utc};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, sleep, timeout};

/// Receivers that are remembered; the least asked are forgotten.
const RECEIVERS_MAX: u64 = 100_000;
/// What was read of a receiver is good for this long where a phase begins without reading it.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A publisher whose listener failed waits this long at most until that counts for all replicas.
const COUNT_PATIENCE: Duration = Duration::from_millis(500);
/// A probe is another replica's to make this long after its time was up.
const PROBE_GRACE: Duration = Duration::from_secs(1);

/// The receivers that this process asks.
pub(super) struct Receivers {
    known: moka::sync::Cache<(TenantId, SubscriptionNo, i64), Arc<Receiver>>,
    pub(super) notes: Notes,
}

/// One, as of one version of its subscription.
pub(super) struct Receiver {
    places: Arc<Semaphore>,
    health: Mutex<Health>,
    read_at: Mutex<Option<Instant>>,
}

/// Leave to ask once. Dropped without an end, it says nothing of the receiver.
pub(super) struct Leave {
    receiver: Arc<Receiver>,
    /// Where it is the probe of a half-open circuit.
    probe: Option<Probe>,
    deadline: Instant,
    places: (OwnedSemaphorePermit, Pass),
}

/// A claim to the one question that finds out whether a receiver is well again; given back where nobody waited for its answer.
struct Probe {
    core: Arc<Core>,
    tenant: TenantId,
    subscription_no: SubscriptionNo,
    until: DateTime<Utc>,
    answered: bool,
}

impl Default for Receivers {
    fn default() -> Self {
        Self { known: moka::sync::Cache::new(RECEIVERS_MAX), notes: Notes::default() }
    }
}

impl Receiver {
    pub(super) fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_at(&self) -> MutexGuard<'_, Option<Instant>> {
        self.read_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it may be asked now. True where only as a probe. Errors: why it is not asked.
    fn may_be_asked(&self, policy: &DeliveryPolicy, now: DateTime<Utc>) -> Result<bool, String> {
        let health = self.health();
        match (health.gate(policy, now), health.paused(now)) {
            (Gate::Free, _) => Ok(false),
            (Gate::Probe, _) => Ok(true),
            (_, Some(until)) => Err(paused(until)),
            (Gate::Wait(_), None) => Err("its circuit is open: it has failed too often to be asked now".to_owned()),
            (Gate::Probing, None) => {
                Err("its circuit is half open: another question finds out whether it is well again".to_owned())
            }
        }
    }
}

fn paused(until: DateTime<Utc>) -> String {
    let until = until.to_rfc3339_opts(SecondsFormat::Secs, true);
    format!("it has asked not to be called before {until} (Retry-After)")
}

impl Drop for Probe {
    fn drop(&mut self) {
        // Without a runtime the process is ending: the claim ends by itself.
        if self.answered || Handle::try_current().is_err() {
            return;
        }
        let (core, tenant, no, until) = (self.core.clone(), self.tenant, self.subscription_no, self.until);
        self.core.tasks.spawn(async move {
            if let Err(error) = core.store.release_probe(tenant, no, until).await {
                tracing::debug!(%error, "a probe is not given back; its claim ends by itself");
            }
        });
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
            let places = Arc::new(Semaphore::new(places));
            Arc::new(Receiver { places, health: Mutex::new(health), read_at: Mutex::default() })
        })
    }

    /// Takes note of what was just read of these listeners; those without a row are well.
    pub(super) fn know(&self, tenant: TenantId, listeners: &[Listener], rows: &[HealthRow]) {
        for listener in listeners {
            let receiver = self.get(tenant, listener);
            *receiver.read_at() = Some(Instant::now());
            let no = listener.entry.subscription.no;
            if let Some(row) = rows.iter().find(|row| row.subscription_no == no) {
                receiver.health().adopt(row);
            }
        }
    }
}

impl Core {
    /// Reads how these listeners do, where that was not read with their event: of one that was delayed, or was another replica's.
    pub(super) async fn look_at_circuits(&self, tenant: TenantId, listeners: &[Listener]) -> Result<(), StoreError> {
        let read = |listener: &Listener| {
            let read_at = *self.receivers.get(tenant, listener).read_at();
            read_at.is_some_and(|at| at.elapsed() < LOOK_AGAIN)
        };
        if listeners.iter().all(read) {
            return Ok(());
        }
        let rows = self.store.health(&[tenant]).await?.into_iter().map(|(_, row)| row);
        self.receivers.know(tenant, listeners, &rows.collect::<Vec<_>>());
        Ok(())
    }

    /// Waits for a place among the questions to a receiver, for the end of a pause that it has asked for, for its rate, and for its tenant's
    /// turn among all questions.
    ///
    /// Errors: why it is not asked: its circuit is open, or its pause or its rate leaves no time.
    pub(super) async fn leave_to_ask(
        self: &Arc<Self>,
        tenant: TenantId,
        listener: &Listener,
        deadline: Instant,
    ) -> Result<Leave, String> {
        let receiver = self.receivers.get(tenant, listener);
        // Never closed. The deadline is the whole phase's, which drops this.
        let place = Arc::clone(&receiver.places).acquire_owned().await.map_err(|_| "the server is draining")?;
        let policy = &listener.entry.subscription.policy;
        let pass = loop {
            self.wait_for_pause(&receiver, deadline).await?;
            // Before a token is taken for nothing, and once more after the waits.
            receiver.may_be_asked(policy, self.store.now())?;
            if let Some(limit) = policy.rate_limit() {
                self.wait_for_rate(tenant, listener, limit, deadline).await?;
            }
            // Last: who waits for anything else takes no turn.
            let pass = self.questions.enter(tenant).await;
            // It may have asked for a pause meanwhile.
            if receiver.health().paused(self.store.now()).is_none() {
                break pass;
            }
        };
        let probe = match (receiver.may_be_asked(policy, self.store.now())?, policy.circuit_breaker()) {
            (true, Some(breaker)) => self.claim(tenant, listener, &receiver, breaker, deadline).await?,
            _ => None,
        };
        Ok(Leave { receiver, probe, deadline, places: (place, pass) })
    }

    /// Claims the probe of a receiver. None where another replica's has closed its circuit meanwhile.
    ///
    /// Errors: why it is not asked.
    async fn claim(
        self: &Arc<Self>,
        tenant: TenantId,
        listener: &Listener,
        receiver: &Receiver,
        breaker: CircuitBreaker,
        deadline: Instant,
    ) -> Result<Option<Probe>, String> {
        let subscription = &listener.entry.subscription;
        let (no, version) = (subscription.no, subscription.registry_version);
        let takes = subscription.policy.timeout().min(deadline.saturating_duration_since(Instant::now()));
        let until = self.store.now() + takes + PROBE_GRACE;
        let unread = |error: StoreError| {
            tracing::warn!(subscription = %subscription.id, %error, "a listener's circuit could not be read");
            "its circuit could not be read".to_owned()
        };
        let claimed = self.store.claim_probe(tenant, (no, version), breaker.open_duration(), until).await;
        if let Some(row) = claimed.map_err(unread)? {
            receiver.health().replace(&row);
            let until = row.probe_until.unwrap_or(until);
            return Ok(Some(Probe { core: self.clone(), tenant, subscription_no: no, until, answered: false }));
        }
        let rows = self.store.health(&[tenant]).await.map_err(unread)?;
        let row = rows.iter().map(|(_, row)| row).find(|row| row.subscription_no == no);
        if let Some(row) = row.filter(|row| row.registry_version == version) {
            receiver.health().replace(row);
        }
        if receiver.may_be_asked(&subscription.policy, self.store.now())? {
            // Given back at this moment: whoever comes next claims it.
            return Err("its circuit is half open: it is asked again in a moment".to_owned());
        }
        Ok(None)
    }

    /// Waits until a receiver that has asked for a pause may be asked again.
    ///
    /// Errors: why it is not asked.
    async fn wait_for_pause(&self, receiver: &Receiver, deadline: Instant) -> Result<(), String> {
        loop {
            let now = self.store.now();
            let Some(until) = receiver.health().paused(now) else { return Ok(()) };
            let wait = (until - now).to_std().unwrap_or_default();
            if Instant::now() + wait >= deadline {
                return Err(paused(until));
            }
            sleep(wait).await;
        }
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
    ) -> Result<(), String> {
        let subscription = &listener.entry.subscription;
        let until = self.store.now() + deadline.saturating_duration_since(Instant::now());
        let taken = self.store.take_token(tenant, subscription.no, subscription.registry_version, limit, until).await;
        match taken {
            Ok(Some(at)) => {
                sleep((at - self.store.now()).to_std().unwrap_or_default()).await;
                Ok(())
            }
            Ok(None) => Err("its rate limit leaves no time to ask it".to_owned()),
            Err(error) => {
                tracing::warn!(subscription = %subscription.id, %error, "a listener's rate limit could not be read");
                Err("its rate limit could not be read".to_owned())
            }
        }
    }

    /// Takes note of how a receiver has answered. A publisher is told of a failure, and of a
    /// probe, once it counts for all replicas, or soon. `lineage` is of what follows from the question.
    pub(super) async fn asked(
        self: &Arc<Self>,
        tenant: TenantId,
        listener: &Listener,
        mut leave: Leave,
        outcome: &Outcome,
        lineage: impl FnOnce() -> Lineage,
    ) {
        let subscription = &listener.entry.subscription;
        let (no, policy, at) = (subscription.no, &subscription.policy, self.store.now());
        if outcome.class == OutcomeClass::Gone {
            self.disable(tenant, no, ServerReason::Gone { version: subscription.registry_version });
        }
        let probe = leave.probe.as_mut().map(|probe| {
            probe.answered = true;
            probe.until
        });
        let news = {
            let mut health = leave.receiver.health();
            let before = health.shared(no);
            let verdict = health.ended(outcome, probe.is_some(), policy, at);
            let mut after = health.shared(no);
            if policy.circuit_breaker().is_none() {
                // Nobody counts them.
                after.circuit.failures = before.circuit.failures;
            }
            before != after || verdict.disable
        };
        if !news {
            return;
        }
        let (counts, counted) = oneshot::channel();
        let ended = Ended { outcome: outcome.clone(), probe, at };
        let (receiver, entry) = (leave.receiver.clone(), listener.entry.clone());
        let note = Note { receiver, entry, ended, lineage: lineage(), counts };
        self.note(tenant, note);
        // Its receiver has answered: others may be asked.
        drop(leave.places);
        if outcome.class != OutcomeClass::Succeeded || probe.is_some() {
            let left = leave.deadline.saturating_duration_since(Instant::now());
            // It is dropped where it counts.
            let _ = timeout(left.min(COUNT_PATIENCE), counted).await;
        }
    }
}
