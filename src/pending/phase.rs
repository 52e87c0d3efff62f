//! One PRE event whose listeners are asked: a task of the server's own, from the first question to the decision.
//!
//! ```text
//! accepted / taken over --> ask all at once --> all agreed ------------------> commit: position, outcomes, one statement
//!                                |   each verdict that is not the last is noted
//!                                `--> one refuses, or fails and must not --> abort: the others are cancelled
//! ```
//!
//! No transaction is open while a listener runs. Every write names the row's token: a phase that another replica has taken over ends
//! here without effect. A listener whose success is noted is never asked again.

use super::ask::{Listener, NOT_APPLIED, Numbers, ask, spoil};
use super::running::Handle;
use super::{Core, PendingError};
use crate::clock;
use crate::domain::announcement::Announcement;
use crate::domain::event::{Data, Event, LogEntry};
use crate::domain::ids::{SubscriptionNo, TenantId};
use crate::domain::pre::{AbortReason, Aborted, EnrichPath, FailurePolicy, Verdict, VerdictKind, enrich};
use crate::executor::EncodedEvent;
use crate::feed::{Head, News};
use crate::long_work;
use crate::planted::{self, Defect};
use crate::publish::prepare::check_again;
use crate::publish::registry::TenantRegistry;
use crate::store::StoreError;
use crate::store::heads::RegistryChange;
use crate::store::pending::PendingCommit;
use crate::telemetry::measured;
use chrono::{DateTime, Utc};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, interval_at, sleep};

/// Before the registry is looked at again that could not be read.
const HEED_AGAIN: Duration = Duration::from_millis(250);
/// Between two tries to write a decision that the database did not take.
const WRITE_AGAIN: Duration = Duration::from_millis(250);
/// How often a decision is tried to be written; then the lease ends, and whoever takes the event over decides again.
const WRITES_MAX: u32 = 8;

/// A patch, of which listener, and where it may change something.
type Patch = (SubscriptionNo, String, Vec<EnrichPath>);

/// An event with its patches; names the first that does not fit.
fn applied(event: &Event, patches: &[Patch]) -> (Event, Option<(SubscriptionNo, String)>) {
    let mut data = event.data.as_bytes().to_vec();
    for (no, patch, paths) in patches {
        match enrich(&data, patch, paths) {
            Ok(enriched) => data = enriched,
            Err(error) => return (event.clone(), Some((*no, error.to_string()))),
        }
    }
    let mut event = event.clone();
    event.data = match event.data {
        Data::Binary(_) => Data::Binary(data.into()),
        _ => Data::Text(data.into()),
    };
    (event, None)
}

/// A phase to run.
#[derive(Debug)]
pub(super) struct Phase {
    pub tenant: TenantId,
    pub entry: Arc<LogEntry>,
    pub token: i64,
    /// The highest attempt number that former owners have written down; none where there were none.
    pub attempted: Option<i32>,
    pub deadline: Instant,
    /// Where it was delayed: until when.
    pub deliver_at: Option<DateTime<Utc>>,
    /// In the order in which enrichments are applied.
    pub listeners: Vec<Listener>,
    /// What is known already.
    pub verdicts: Vec<Verdict>,
    /// Whether it ends where nobody waits for it. A delayed event, and one of a replica that died, goes on.
    pub abandonable: bool,
}

/// How a phase ended.
#[derive(Debug, Clone)]
pub(super) enum Ended {
    /// The event is in the log.
    Committed(Arc<LogEntry>, Arc<[Verdict]>),
    /// It never will be.
    Not(PendingError),
    /// Another replica has it, or will: its row says more.
    Elsewhere,
}

/// What the questions came to.
enum Decision {
    Commit,
    Abort(AbortReason),
    /// The row is not this replica's any more, or is given back.
    Left,
    /// A caller took it back.
    Cancelled,
}

/// Returns when the registry changes, or a while after it could not be read.
async fn changed(registry: &mut Option<(Arc<TenantRegistry>, watch::Receiver<()>)>) {
    match registry {
        // It is kept here, so it goes on telling.
        Some((_, changes)) => drop(changes.changed().await),
        None => sleep(HEED_AGAIN).await,
    }
}

impl Phase {
    /// Asks, decides, writes the decision.
    pub async fn run(mut self, core: &Arc<Core>, handle: &Handle) -> Ended {
        let decision = self.decide(core, handle).await;
        let decision = match decision {
            Decision::Commit => match self.enriched_in_time(core).await {
                Ok(event) => return self.commit(core, event).await,
                Err(reason) => Decision::Abort(reason),
            },
            other => other,
        };
        match decision {
            Decision::Abort(reason) => self.abort(core, reason).await,
            Decision::Cancelled => {
                self.note_cancelled(core).await;
                Ended::Not(PendingError::Cancelled)
            }
            // A caller may have taken it back at another replica.
            Decision::Left => {
                self.note_cancelled(core).await;
                Ended::Elsewhere
            }
            Decision::Commit => Ended::Elsewhere,
        }
    }

    async fn decide(&mut self, core: &Arc<Core>, handle: &Handle) -> Decision {
        if let Err(error) = core.look_at_circuits(self.tenant, &self.listeners).await {
            tracing::warn!(%error, "how listeners do at other replicas could not be read");
        }
        let mut registry_changes = self.heed_registry(core).await;
        let event = Arc::new(EncodedEvent::new(self.entry.clone()));
        let numbers = Arc::new(Numbers::after(self.attempted, self.token));
        let known: Vec<i32> = self.verdicts.iter().map(|verdict| verdict.subscription_no).collect();
        let in_time = Instant::now() < self.deadline;
        // Each question ends by the deadline itself, so that what it came to is counted: no timer of the phase's own races it.
        let question = |listener: &Listener| {
            ask(core.clone(), self.tenant, listener.clone(), event.clone(), self.deadline, numbers.clone())
        };
        let mut asking: FuturesUnordered<_> = self
            .listeners
            .iter()
            .filter(|listener| in_time && !known.contains(&listener.entry.subscription.no))
            .map(question)
            .collect();
        if let Some(reason) = self.aborts() {
            return Decision::Abort(reason);
        }
        let lease = Duration::from_millis(core.config.lease_ms);
        let mut renewal = interval_at(Instant::now() + lease / 3, lease / 3);
        let grace = Duration::from_millis(core.config.abandon_grace_ms);
        let mut gone = pin!(handle.abandoned(grace));
        while !asking.is_empty() {
            tokio::select! {
                Some(verdict) = asking.next() => {
                    let blocks = self.blocks(&verdict);
                    self.verdicts.push(verdict);
                    match blocks {
                        // The time is up for all: each of the others has its own end now.
                        Some(AbortReason::Deadline) if Instant::now() >= self.deadline => {}
                        Some(reason) => return Decision::Abort(reason),
                        // The last one is written with the decision itself.
                        None if !asking.is_empty() && !self.note_last(core).await => return Decision::Left,
                        None => {}
                    }
                }
                _ = renewal.tick() => {
                    let until = core.lease_until();
                    match core.store.renew_pending(self.tenant, self.entry.event.id, self.token, until).await {
                        Ok(Some(_)) => {}
                        Ok(None) => return Decision::Left,
                        Err(error) => tracing::warn!(%error, "a pending event could not be renewed; it is tried again"),
                    }
                }
                () = changed(&mut registry_changes) => registry_changes = self.heed_registry(core).await,
                () = &mut gone, if self.abandonable => {
                    if !self.waited_for_elsewhere(core, grace).await {
                        return Decision::Abort(AbortReason::Abandoned);
                    }
                    gone.set(handle.abandoned(grace));
                }
                () = core.stop.cancelled() => {
                    // Due at once: another replica goes on.
                    let now = core.store.now();
                    let _ = core.store.renew_pending(self.tenant, self.entry.event.id, self.token, now).await;
                    return Decision::Left;
                }
                () = handle.cancelled.cancelled() => return Decision::Cancelled,
            }
        }
        drop(asking);
        self.time_is_up(core.store.now());
        self.aborts().map_or(Decision::Commit, Decision::Abort)
    }

    /// Gives up the questions to listeners that are not active any more. Returns what tells when there may be others.
    async fn heed_registry(&self, core: &Core) -> Option<(Arc<TenantRegistry>, watch::Receiver<()>)> {
        let registry = core.registry.tenant(self.tenant).await.inspect_err(|error| {
            tracing::warn!(%error, "whether listeners are active could not be read; it is tried again");
        });
        let registry = registry.ok()?;
        // Before the look, so that nothing falls between the two.
        let changes = registry.changes();
        self.listeners.iter().for_each(|listener| listener.heed(&registry));
        Some((registry, changes))
    }

    /// Why the event is aborted, if it is: a refusal says more than a failure.
    fn aborts(&self) -> Option<AbortReason> {
        let reasons = || self.verdicts.iter().filter_map(|verdict| self.blocks(verdict));
        reasons().find(|reason| *reason == AbortReason::Rejected).or_else(|| reasons().next())
    }

    /// Why a verdict aborts the event, if it does.
    fn blocks(&self, verdict: &Verdict) -> Option<AbortReason> {
        let listener = |listener: &&Listener| listener.entry.subscription.no == verdict.subscription_no;
        let policy = self.listeners.iter().find(listener).map(|listener| listener.policy.failure_policy);
        match verdict.kind {
            VerdictKind::Rejected if planted::has(Defect::OpenGate) => None,
            VerdictKind::Rejected => Some(AbortReason::Rejected),
            VerdictKind::Failed if policy.unwrap_or_default() == FailurePolicy::Fail => {
                // One that takes longer than its own policy allows has failed: it says nothing of the time of all.
                Some(if verdict.late { AbortReason::Deadline } else { AbortReason::ListenerFailed })
            }
            _ => None,
        }
    }

    /// Notes the newest verdict. False where the event is not this replica's any more.
    async fn note_last(&self, core: &Core) -> bool {
        let Some(last) = self.verdicts.last() else { return true };
        let noted =
            core.store.note_verdicts(self.tenant, self.entry.event.id, self.token, std::slice::from_ref(last)).await;
        // What cannot be noted is asked again by a successor: a fault, after which that is allowed.
        noted.unwrap_or_else(|error| {
            tracing::warn!(%error, "a verdict could not be noted");
            true
        })
    }

    /// Whether a publisher waits for the event at another replica; as long as that cannot be read one may.
    async fn waited_for_elsewhere(&self, core: &Core, grace: Duration) -> bool {
        let until = core.lease_until();
        let seen = core.store.renew_pending(self.tenant, self.entry.event.id, self.token, until).await;
        let recent = core.store.now() - grace.max(Duration::from_secs(1)) * 2;
        match seen {
            Ok(seen) => seen.flatten().is_some_and(|at| at > recent),
            Err(error) => {
                tracing::warn!(%error, "whether a publisher waits elsewhere could not be read; it is tried again");
                true
            }
        }
    }

    /// Whoever was left no time to be asked has failed, unless it has no say any more.
    fn time_is_up(&mut self, now: DateTime<Utc>) {
        for listener in &self.listeners {
            let no = listener.entry.subscription.no;
            if !self.verdicts.iter().any(|verdict| verdict.subscription_no == no) {
                self.verdicts.push(listener.unheard(now));
            }
        }
    }

    /// As [`Self::enriched`], which may wait for its place among long work: the event stays this replica's meanwhile.
    async fn enriched_in_time(&mut self, core: &Core) -> Result<Arc<Event>, AbortReason> {
        let (tenant, event, token) = (self.tenant, self.entry.event.id, self.token);
        let third = Duration::from_millis(core.config.lease_ms) / 3;
        let keep = async {
            let mut renewals = interval_at(Instant::now() + third, third);
            loop {
                renewals.tick().await;
                // One that fails is tried again; an event that is not ours any more is found out by the commit.
                let _ = core.store.renew_pending(tenant, event, token, core.lease_until()).await;
            }
        };
        tokio::select! {
            enriched = self.enriched(core) => enriched,
            never = keep => never,
        }
    }

    /// The event with every enrichment, checked again. Errors: why it is aborted instead; the verdicts say who failed.
    async fn enriched(&mut self, core: &Core) -> Result<Arc<Event>, AbortReason> {
        let patched = |verdict: &&mut Verdict| verdict.patch.is_some();
        if !self.verdicts.iter_mut().any(|verdict| patched(&verdict)) {
            return Ok(self.entry.event.clone());
        }
        let registry = core.registry.tenant(self.tenant).await.map_err(|_| AbortReason::ListenerFailed)?;
        loop {
            if let Some(event) = self.fitted(core, &registry).await {
                return Ok(event);
            }
            if let Some(reason) = self.aborts() {
                return Err(reason);
            }
        }
    }

    /// The event with every enrichment, where they fit; none where some did not, whose verdicts are failures now.
    pub(super) async fn fitted(&mut self, core: &Core, registry: &TenantRegistry) -> Option<Arc<Event>> {
        let (event, broken) = self.apply().await;
        if let Some((no, message)) = broken {
            self.verdicts.iter_mut().filter(|v| v.subscription_no == no).for_each(|v| spoil(v, message.clone()));
            return None;
        }
        let event = Arc::new(event);
        let checked = check_again(&core.registry, registry, &event, core.event_bytes_max).await;
        let Err(error) = checked else { return Some(event) };
        // Those that may fail are left out first; only then does it fall on the others.
        let message = format!("the enriched data is not valid: {error}");
        let ignorable = |no: i32| {
            let listener = self.listeners.iter().find(|l| l.entry.subscription.no == no);
            listener.is_some_and(|l| l.policy.failure_policy == FailurePolicy::Ignore)
        };
        let any = self.verdicts.iter().any(|v| v.patch.is_some() && ignorable(v.subscription_no));
        for verdict in &mut self.verdicts {
            if verdict.patch.is_some() && (!any || ignorable(verdict.subscription_no)) {
                spoil(verdict, message.clone());
            }
        }
        None
    }

    /// Applies the enrichments in the order of the listeners; names the first that does not fit.
    async fn apply(&self) -> (Event, Option<(i32, String)>) {
        let patch = |listener: &Listener| {
            let no = listener.entry.subscription.no;
            let verdict = self.verdicts.iter().find(|verdict| verdict.subscription_no == no)?;
            Some((no, verdict.patch.clone()?, listener.policy.enrich_paths.clone()))
        };
        let patches: Vec<Patch> = self.listeners.iter().filter_map(patch).collect();
        let (event, unchanged) = (self.entry.event.clone(), &self.entry.event);
        let first = patches.first().map_or(0, |(no, ..)| *no);
        let done = long_work::on(self.tenant, unchanged.bytes(), move || applied(&event, &patches)).await;
        done.unwrap_or_else(|| (Event::clone(unchanged), Some((first, NOT_APPLIED.to_owned()))))
    }

    async fn commit(self, core: &Core, event: Arc<Event>) -> Ended {
        let mut verdicts = self.verdicts;
        verdicts.sort_by_key(|verdict| verdict.subscription_no);
        let commit = PendingCommit {
            tenant: self.tenant,
            event: event.clone(),
            token: self.token,
            registry_version: None,
            matched: self.entry.matched.clone(),
            refused: self.entry.refused.clone(),
            verdicts,
        };
        let write = |patience| core.store.commit_pending(&commit, patience);
        let place = match core.write_in_turn(commit.tenant, write).await {
            Ok(Some(place)) => place,
            Ok(None) => return Ended::Elsewhere,
            Err(error) => return Ended::Not(error.into()),
        };
        let entry = LogEntry {
            position: place.position,
            committed_at: place.committed_at,
            event,
            matched: commit.matched,
            refused: commit.refused,
        };
        measured().publish.events.inc();
        // The head alone, not the entry: who dispatches reads the event together with the outcomes it has, and runs nothing twice.
        core.feed.send(&News::Head(Head {
            tenant: self.tenant,
            position: place.position,
            registry_version: 0,
            deferred_version: 0,
        }));
        Ended::Committed(Arc::new(entry), commit.verdicts.into())
    }

    /// Whoever has not answered yet is not waited for.
    fn wait_no_more(&mut self, now: DateTime<Utc>) {
        for listener in &self.listeners {
            let no = listener.entry.subscription.no;
            if !self.verdicts.iter().any(|verdict| verdict.subscription_no == no) {
                self.verdicts.push(listener.verdict(VerdictKind::Cancelled, "it was not waited for", now));
            }
        }
        self.verdicts.sort_by_key(|verdict| verdict.subscription_no);
    }

    /// Notes what its listeners did of an event that a caller has taken back.
    async fn note_cancelled(mut self, core: &Core) {
        self.wait_no_more(core.store.now());
        let noted = core.store.note_cancelled(self.tenant, self.entry.event.id, self.token, &self.verdicts).await;
        if let Err(error) = noted {
            tracing::warn!(%error, "what the listeners of a cancelled event did could not be noted");
        }
    }

    async fn abort(mut self, core: &Core, reason: AbortReason) -> Ended {
        self.wait_no_more(core.store.now());
        let message = match reason {
            AbortReason::Rejected => "a listener refused the event",
            AbortReason::ListenerFailed => "a listener that must agree failed or could not be reached",
            AbortReason::Deadline => "the listeners did not all answer in time",
            AbortReason::Abandoned => "nobody waited for the answer any more",
            AbortReason::Unpublishable => "the event cannot be published any more",
        };
        let event = self.entry.event.id;
        let aborted = Aborted { event, reason, message: message.to_owned(), verdicts: self.verdicts };
        match core.abort((self.tenant, self.token), &self.entry, self.deliver_at, &aborted).await {
            Ok(true) => Ended::Not(PendingError::Aborted(Arc::new(aborted))),
            Ok(false) => Ended::Elsewhere,
            Err(error) => Ended::Not(error.into()),
        }
    }
}

impl Core {
    /// When a time of the database's clock comes, by this process's own.
    pub(super) fn instant_of(&self, at: DateTime<Utc>) -> Instant {
        Instant::now() + (at - self.store.now()).to_std().unwrap_or_default()
    }

    /// Writes that the owner's event, by tenant and token, is aborted. Of one that was delayed operators hear: its publisher has had its
    /// answer. False where it is not the owner's any more.
    pub(super) async fn abort(
        &self,
        (tenant, token): (TenantId, i64),
        entry: &LogEntry,
        deliver_at: Option<DateTime<Utc>>,
        aborted: &Aborted,
    ) -> Result<bool, StoreError> {
        let expires_at = self.final_until(deliver_at);
        let Some(deliver_at) = deliver_at else {
            return self.write(|| self.store.abort_pending(tenant, token, aborted, expires_at)).await;
        };
        let (accepted_at, now) = (entry.committed_at, self.store.now());
        let told = Announcement::delayed_event_aborted(&entry.event, accepted_at, deliver_at, aborted, now);
        let write =
            |patience| self.store.abort_delayed(tenant, token, aborted.clone(), expires_at, told.clone(), patience);
        let Some(change) = self.write_in_turn(tenant, write).await? else { return Ok(false) };
        let RegistryChange { position, registry_version } = change;
        self.feed.send(&News::Head(Head { tenant, position, registry_version, deferred_version: 0 }));
        Ok(true)
    }

    /// Writes a decision, again where the database was away: the token makes a repetition harmless.
    pub(super) async fn write<T, F: Future<Output = Result<T, StoreError>>>(
        &self,
        write: impl Fn() -> F,
    ) -> Result<T, StoreError> {
        let mut tries = 1;
        loop {
            match write().await {
                Err(StoreError::PartitionMissing) if tries < WRITES_MAX => {
                    self.store.ensure_partitions(self.store.now().date_naive(), 1).await?;
                }
                Err(StoreError::Unavailable(_) | StoreError::TooSlow(_) | StoreError::Crowded)
                    if tries < WRITES_MAX =>
                {
                    sleep(WRITE_AGAIN.mul_f64(0.5 + clock::jitter())).await;
                }
                done => return done,
            }
            tries += 1;
        }
    }
}
