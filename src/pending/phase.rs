//! One PRE event whose listeners are asked: a task of the server's own, from the first question to the decision.
//!
//! ```text
//! accepted / taken over --> ask all at once --> all agreed ------------------> commit: position, outcomes, one statement
//!                                |   each verdict that is not the last is noted, and that one where the commit takes long
//!                                `--> one refuses, or fails and must not --> abort: the others are cancelled
//! ```
//!
//! No transaction is open while a listener runs. Every write names the row's token: a phase that another replica has taken over ends
//! here without effect. A listener whose success is noted is never asked again.

use super::ask::{Listener, Numbers, ask, spoil};
use super::running::Handle;
use super::{Core, PendingError};
use crate::domain::event::LogEntry;
use crate::domain::ids::{EventId, TenantId};
use crate::domain::pre::{AbortReason, FailurePolicy, Verdict, VerdictKind};
use crate::executor::EncodedEvent;
use crate::planted::{self, Defect};
use crate::publish::registry::TenantRegistry;
use crate::store::StoreError;
use chrono::{DateTime, Utc};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval_at, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Before the registry is looked at again that could not be read.
const HEED_AGAIN: Duration = Duration::from_millis(250);
/// Before it is looked for somebody who waits elsewhere once more, at least.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Before what was said last is noted by itself, where the decision takes longer to be written.
const NOTE_AFTER: Duration = Duration::from_secs(1);
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
pub(super) enum Decision {
    Commit,
    Abort(AbortReason),
    /// The row is not this replica's any more, or is given back.
    Left,
    /// A caller took it back.
    Cancelled,
    /// What it would be with its enrichments cannot be found out now.
    Undecided(StoreError),
}

/// Makes a failure of an enrichment for which those that are there have left no room: they are kept until the last listener has answered.
fn bound_enrichment(mut verdict: Verdict, left: &AtomicUsize) -> Verdict {
    let bytes = verdict.patch.as_ref().map_or(0, String::len);
    if left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_err() {
        spoil(&mut verdict, "the enrichments of the event are too large together".to_owned());
    }
    verdict
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
    /// Asks, decides, writes the decision. The event stays this replica's meanwhile.
    pub async fn run(self, core: &Arc<Core>, handle: &Handle) -> Ended {
        let (tenant, event, token, lost) = (self.tenant, self.entry.event.id, self.token, CancellationToken::new());
        let keep = async {
            core.keep(tenant, event, token, &lost).await;
            std::future::pending().await
        };
        tokio::select! {
            ended = self.decide_and_write(core, handle, &lost) => ended,
            never = keep => never,
        }
    }

    async fn decide_and_write(mut self, core: &Arc<Core>, handle: &Handle, lost: &CancellationToken) -> Ended {
        let decision = self.decide(core, handle, lost).await;
        let (tenant, event, token, began) = (self.tenant, self.entry.event.id, self.token, Instant::now());
        // What was said last is written with the decision. That none said anything in time is found out again.
        let last: Vec<Verdict> = self.verdicts.last().filter(|last| !last.late).cloned().into_iter().collect();
        let note = || core.note_said(tenant, event, token, &last);
        let slowly = async {
            sleep(NOTE_AFTER).await;
            note().await;
            std::future::pending().await
        };
        let ended = tokio::select! {
            ended = self.write(core, handle, decision) => ended,
            never = slowly => never,
        };
        match ended {
            // Whoever takes the event over does not ask again. The publisher does not wait for that where the database is away.
            Ended::Not(PendingError::Publish(_)) => drop(timeout(NOTE_AFTER, note()).await),
            // A commit that waited does not see what was noted meanwhile.
            Ended::Committed(..) | Ended::Elsewhere if began.elapsed() >= NOTE_AFTER => {
                let store = core.store.clone();
                core.tasks.spawn(async move {
                    if let Err(error) = store.forget_verdicts(tenant, event).await {
                        tracing::warn!(%event, %error, "a verdict that is not needed any more could not be deleted");
                    }
                });
            }
            _ => {}
        }
        ended
    }

    async fn write(mut self, core: &Core, handle: &Handle, decision: Decision) -> Ended {
        let decision = match decision {
            Decision::Commit => match self.enriched(core, handle).await {
                Ok(event) => return self.commit(core, event).await,
                Err(other) => other,
            },
            other => other,
        };
        match decision {
            Decision::Abort(reason) => self.abort(core, reason).await,
            Decision::Cancelled => {
                self.leave(core).await;
                Ended::Not(PendingError::Cancelled)
            }
            // A caller may have taken it back at another replica.
            Decision::Left => {
                self.leave(core).await;
                Ended::Elsewhere
            }
            Decision::Undecided(error) => Ended::Not(error.into()),
            Decision::Commit => Ended::Elsewhere,
        }
    }

    async fn decide(&mut self, core: &Arc<Core>, handle: &Handle, lost: &CancellationToken) -> Decision {
        if let Err(error) = core.look_at_circuits(self.tenant, &self.listeners).await {
            tracing::warn!(%error, "how listeners do at other replicas could not be read");
        }
        let mut registry_changes = self.heed_registry(core).await;
        // By what was noted before it was taken over: nobody else is asked then.
        if let Some(reason) = self.aborts() {
            return Decision::Abort(reason);
        }
        let event = Arc::new(EncodedEvent::new(self.entry.clone()));
        let numbers = Arc::new(Numbers::after(self.attempted, self.token));
        let known: Vec<i32> = self.verdicts.iter().map(|verdict| verdict.subscription_no).collect();
        let in_time = Instant::now() < self.deadline;
        // Each question ends by the deadline itself, so that what it came to is counted: no timer of the phase's own races it.
        let noted = self.verdicts.iter().filter_map(|verdict| verdict.patch.as_ref()).map(String::len).sum();
        let left = Arc::new(AtomicUsize::new(core.enrichment_bytes_max().saturating_sub(noted)));
        let question = |listener: &Listener| {
            let left = left.clone();
            let asked = ask(core.clone(), self.tenant, listener.clone(), event.clone(), self.deadline, numbers.clone());
            async move { bound_enrichment(asked.await, &left) }
        };
        // Tasks of their own, which end with the set: they go on while the phase waits for the database.
        let mut asking: JoinSet<Verdict> = self
            .listeners
            .iter()
            .filter(|listener| in_time && !known.contains(&listener.entry.subscription.no))
            .map(question)
            .collect();
        let grace = Duration::from_millis(core.config.abandon_grace_ms);
        let mut gone = pin!(handle.abandoned(grace));
        while !asking.is_empty() {
            tokio::select! {
                Some(verdict) = asking.join_next() => {
                    // One that panicked is asked again once the lease has ended.
                    let Ok(verdict) = verdict else { return Decision::Left };
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
                () = lost.cancelled() => return Decision::Left,
                () = changed(&mut registry_changes) => registry_changes = self.heed_registry(core).await,
                () = &mut gone, if self.abandonable => {
                    if !self.waited_for_elsewhere(core, grace).await {
                        return Decision::Abort(AbortReason::Abandoned);
                    }
                    gone.set(handle.abandoned(grace.max(LOOK_AGAIN)));
                }
                () = core.stop.cancelled() => {
                    // Due at once: another replica goes on.
                    lost.cancel();
                    let event = self.entry.event.id;
                    let _ = core.store.renew_pending(self.tenant, event, self.token, Duration::ZERO).await;
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
    pub(super) fn aborts(&self) -> Option<AbortReason> {
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
        let last = self.verdicts.last().map_or(&[][..], std::slice::from_ref);
        core.note_said(self.tenant, self.entry.event.id, self.token, last).await
    }

    /// Whether a publisher waits for the event at another replica; as long as that cannot be read one may.
    async fn waited_for_elsewhere(&self, core: &Core, grace: Duration) -> bool {
        let seen = core.store.renew_pending(self.tenant, self.entry.event.id, self.token, core.lease()).await;
        let recent = core.store.now() - grace.max(LOOK_AGAIN) * 2;
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
}

impl Core {
    /// Renews the lease of an event until it is `lost`, and says so where somebody else has it, or nobody any more.
    async fn keep(&self, tenant: TenantId, event: EventId, token: i64, lost: &CancellationToken) {
        let third = self.lease() / 3;
        let mut renewals = interval_at(Instant::now() + third, third);
        while lost.run_until_cancelled(renewals.tick()).await.is_some() {
            match self.store.renew_pending(tenant, event, token, self.lease()).await {
                Ok(Some(_)) => {}
                Ok(None) => lost.cancel(),
                Err(error) => tracing::warn!(%error, "a pending event could not be renewed; it is tried again"),
            }
        }
    }

    /// Notes what listeners said. False where the event is not the owner's any more.
    async fn note_said(&self, tenant: TenantId, event: EventId, token: i64, said: &[Verdict]) -> bool {
        // What cannot be noted is asked again by a successor: a fault, after which that is allowed.
        self.store.note_verdicts(tenant, event, token, said).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "a verdict could not be noted");
            true
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::clock;
    use crate::pending::tests::World;
    use crate::store::pending::PendingState;
    use chrono::TimeDelta;

    /// However long a statement waits for its connection, and whatever this process's clock says.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_lease_is_reckoned_by_the_database_when_it_is_taken() {
        let world = World::new().await;
        let tenant = world.database.tenant("acme").await;
        world.wait(tenant, PendingState::Gated, 1).await;
        let (core, now) = (&world.core, clock::now());
        core.store.set_clock(now - TimeDelta::minutes(3), now);
        let due = core.store.due_gated(tenant, now, &[], 1).await.expect("it is due");
        let claimed = core.store.claim_pending(tenant, PendingState::Gated, now, core.lease(), &[due[0].event]).await;
        let row = claimed.expect("claimed").remove(0);
        let renew = || core.store.renew_pending(tenant, row.entry.event.id, row.token, core.lease());
        for renewed in [false, true] {
            if renewed {
                renew().await.expect("written").expect("it is the owner's");
            }
            let ahead = "SELECT due_at > clock_timestamp() FROM pending_events";
            let ahead = sqlx::query_scalar::<_, bool>(ahead).fetch_one(&mut world.database.connection().await).await;
            assert!(ahead.expect("readable"), "renewed: {renewed}");
        }
        world.end().await;
    }
}
