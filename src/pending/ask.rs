//! Asking one listener of a PRE event: attempts by its policy within the shared deadline, until it has decided or failed.
//!
//! A listener that cannot be reached at all fails at once: the publisher is waiting, and another one may answer the retry.

use super::Core;
use crate::clock;
use crate::domain::event::LogEntry;
use crate::domain::ids::{EventId, SubscriptionId, SubscriptionNo, TenantId};
use crate::domain::invocation::{Attempt, Outcome, OutcomeClass};
use crate::domain::pre::{Answer, EnrichError, PrePolicy, Verdict, VerdictKind, enrich};
use crate::domain::subscription::State;
use crate::executor::{Delivery, EncodedEvent};
use crate::long_work;
use crate::publish::registry::{Entry, TenantRegistry};
use crate::telemetry::measured;
use chrono::{DateTime, Utc};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

/// Why an enrichment does not count that was not applied by a fault of the server.
pub(super) const NOT_APPLIED: &str = "the enrichment could not be applied";
/// Why a listener is not asked whose turn does not come by the deadline.
pub(super) const NO_TIME: &str = "the time was up before it could be asked";
/// Why a listener has no say.
pub(super) const NOT_ACTIVE: &str = "the subscription is not active any more";

/// A listener that is asked.
#[derive(Debug, Clone)]
pub(super) struct Listener {
    pub entry: Arc<Entry>,
    pub policy: PrePolicy,
    /// Cancelled once it is not active any more: it does not execute, so it has no say either.
    inactive: CancellationToken,
}

impl Listener {
    pub fn new(entry: Arc<Entry>) -> Self {
        let policy = entry.subscription.pre_policy.clone().unwrap_or_default();
        Self { entry, policy, inactive: CancellationToken::new() }
    }

    /// Gives up its question where the registry says that it is not active any more.
    pub fn heed(&self, registry: &TenantRegistry) {
        let found = registry.subscription(self.entry.subscription.no);
        if found.is_none_or(|entry| entry.subscription.state != State::Active) {
            self.inactive.cancel();
        }
    }

    /// Of one that was left no time to be asked.
    pub fn unheard(&self, now: DateTime<Utc>) -> Verdict {
        if self.inactive.is_cancelled() {
            return self.verdict(VerdictKind::Skipped, NOT_ACTIVE, now);
        }
        Verdict { late: true, ..self.verdict(VerdictKind::Failed, NO_TIME, now) }
    }

    /// A verdict without an attempt.
    pub fn verdict(&self, kind: VerdictKind, message: &str, now: DateTime<Utc>) -> Verdict {
        undecided((self.entry.subscription.no, self.entry.subscription.id), kind, message, now)
    }
}

/// A verdict of a subscription without an attempt, at a time by the database's clock.
pub(super) fn undecided(
    (no, id): (SubscriptionNo, SubscriptionId),
    kind: VerdictKind,
    message: &str,
    now: DateTime<Utc>,
) -> Verdict {
    Verdict {
        subscription_no: no,
        subscription: id,
        kind,
        attempt: 0,
        started_at: now,
        duration: std::time::Duration::ZERO,
        outcome: None,
        message: message.to_owned(),
        patch: None,
        failed: Vec::new(),
        late: false,
    }
}

/// The numbers that one owner of an event gives to the attempts that it makes. None is given twice, whoever owns the event: a number is
/// written down before it is given, but for the first one of the first owner, which every other one takes for given.
#[derive(Debug)]
pub(super) struct Numbers {
    /// What is written down under.
    pub token: i64,
    /// The highest that former owners may have given; 0 where there were none.
    pub base: i32,
    /// The highest that is written down.
    pub written: AtomicI32,
}

impl Numbers {
    /// Those of an owner. `former` is the highest number that its predecessors have written down; none where there were none.
    pub fn after(former: Option<i32>, token: i64) -> Self {
        let base = former.map_or(0, |written| written.max(1));
        Self { token, base, written: AtomicI32::new(base) }
    }

    /// Writes a number down, so that nobody gives it again. Errors: why it must not be given.
    async fn write_down(&self, core: &Core, tenant: TenantId, event: EventId, number: i32) -> Result<(), &'static str> {
        if number == 1 || number <= self.written.load(Ordering::Relaxed) {
            return Ok(());
        }
        match core.write(|| core.store.note_attempt(tenant, event, self.token, number)).await {
            Ok(true) => {
                self.written.fetch_max(number, Ordering::Relaxed);
                Ok(())
            }
            Ok(false) => Err("the event is not asked about here any more"),
            Err(error) => {
                tracing::warn!(%event, %error, "the number of an attempt could not be written down");
                Err("another attempt could not be recorded")
            }
        }
    }
}

/// Asks until the listener has decided or failed, or is not active any more, by the deadline at the latest.
pub(super) async fn ask(
    core: Arc<Core>,
    tenant: TenantId,
    listener: Listener,
    event: Arc<EncodedEvent>,
    deadline: Instant,
    numbers: Arc<Numbers>,
) -> Verdict {
    let subscription = &listener.entry.subscription;
    let invocation = event.entry().invocation(subscription.no);
    let attempts_max = subscription.policy.max_attempts();
    let mut verdict = listener.verdict(VerdictKind::Failed, "", core.store.now());
    for made in 1..=attempts_max {
        let Some(call) = listener.entry.webhook_call(core.store.now()) else {
            return unasked(verdict, "no signing secret of the subscription can be opened");
        };
        let number = numbers.base + made;
        let turn = async {
            numbers.write_down(&core, tenant, invocation.event, number).await.map_err(str::to_owned)?;
            core.leave_to_ask(tenant, &listener, deadline).await
        };
        // Where it is not to be asked, the publisher is told at once.
        let leave = match listener.inactive.run_until_cancelled(timeout_at(deadline, turn)).await {
            Some(Ok(Ok(leave))) => leave,
            Some(Ok(Err(why))) => return unasked(verdict, &why),
            Some(Err(_)) => return Verdict { late: true, ..unasked(verdict, NO_TIME) },
            None => return skipped(verdict),
        };
        verdict.attempt = number;
        let began = Instant::now();
        verdict.started_at = core.store.now();
        let delivery = Delivery { invocation, attempt: number, replay: false, event: event.clone() };
        let own_end = began + subscription.policy.timeout();
        let asking = core.executor.ask(&call, &delivery, own_end.min(deadline));
        let asked = listener.inactive.run_until_cancelled(asking).await;
        let Some((outcome, answer)) = asked else { return skipped(verdict) };
        // From here on its answer counts, also where that disables it: 410.
        verdict.duration = began.elapsed();
        core.asked(tenant, &listener, leave, &outcome, || event.entry().event.lineage.caused_by(invocation)).await;
        measured().dispatch.attempted(outcome.class.name(), verdict.duration);
        let wait = subscription.policy.backoff(made, clock::jitter(), outcome.retry_after);
        let used_up = made == attempts_max;
        let no_time = Instant::now() + wait >= deadline;
        // Of a silence the deadline is to blame where the policy would have let it last longer, and where it would have had the listener
        // asked again: wherever the deadline happens to fall, in an attempt or in the wait for the next one.
        let cut_off = deadline < own_end && began + verdict.duration >= deadline;
        verdict.late = outcome.class == OutcomeClass::Timeout && (cut_off || no_time && !used_up);
        // Nothing to wait for within a publisher's patience where there is no way to it at all.
        if answer != Answer::Failed || !outcome.class.is_retryable() || used_up || no_time {
            return judged(tenant, verdict, &listener.policy, event.entry(), outcome, answer).await;
        }
        let (started_at, duration) = (verdict.started_at, verdict.duration);
        verdict.failed.push(Attempt { number, started_at, duration, outcome });
        if listener.inactive.run_until_cancelled(sleep(wait)).await.is_none() {
            return skipped(verdict);
        }
    }
    verdict
}

/// A listener that is not active any more, whatever its attempts came to so far.
fn skipped(mut verdict: Verdict) -> Verdict {
    verdict.kind = VerdictKind::Skipped;
    NOT_ACTIVE.clone_into(&mut verdict.message);
    verdict
}

/// The failure of a listener that is not asked, or not again: how its last attempt ended stands.
fn unasked(mut verdict: Verdict, why: &str) -> Verdict {
    why.clone_into(&mut verdict.message);
    verdict.outcome = verdict.failed.pop().map(|last| last.outcome);
    verdict
}

/// What the last attempt's answer makes of a listener.
pub(super) async fn judged(
    tenant: TenantId,
    mut verdict: Verdict,
    policy: &PrePolicy,
    entry: &LogEntry,
    outcome: Outcome,
    answer: Answer,
) -> Verdict {
    verdict.message = outcome.error.clone().unwrap_or_else(|| "it failed".to_owned());
    verdict.outcome = Some(outcome);
    match answer {
        Answer::Agreed(patch) => return agreed(tenant, verdict, policy, entry, patch).await,
        Answer::Rejected(reason) => {
            verdict.kind = VerdictKind::Rejected;
            verdict.message = reason;
        }
        Answer::Failed | Answer::Unreached => {}
    }
    verdict
}

/// A listener that agrees, with an enrichment that is checked by itself: the places of all listeners are apart.
async fn agreed(
    tenant: TenantId,
    mut verdict: Verdict,
    policy: &PrePolicy,
    entry: &LogEntry,
    patch: Option<String>,
) -> Verdict {
    let fits = match patch.clone() {
        None => Ok(()),
        Some(_) if !entry.event.has_json_data() => Err(EnrichError::NotAnObject.to_string()),
        Some(patch) => {
            let (event, paths) = (entry.event.clone(), policy.enrich_paths.clone());
            let work =
                move || enrich(event.data.as_bytes(), &patch, &paths).map(drop).map_err(|error| error.to_string());
            long_work::on(tenant, entry.event.bytes(), work).await.unwrap_or_else(|| Err(NOT_APPLIED.to_owned()))
        }
    };
    match fits {
        Ok(()) => {
            verdict.kind = VerdictKind::Succeeded;
            verdict.message = String::new();
            // That of a listener that may change nothing changes nothing.
            verdict.patch = patch.filter(|_| !policy.enrich_paths.is_empty());
        }
        Err(message) => spoil(&mut verdict, message),
    }
    verdict
}

/// Makes a failure of what looked like a success.
pub(super) fn spoil(verdict: &mut Verdict, message: String) {
    verdict.kind = VerdictKind::Failed;
    verdict.patch = None;
    if let Some(outcome) = &mut verdict.outcome {
        outcome.class = OutcomeClass::Failed;
        outcome.error = Some(message.clone());
    }
    verdict.message = message;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pending::tests::World;
    use crate::store::pending::PendingState;
    use chrono::TimeDelta;
    use std::time::Duration;

    #[tokio::test(flavor = "multi_thread")]
    async fn an_attempt_begins_by_the_clock_of_the_database() {
        let world = World::new().await;
        let tenant = world.database.tenant("acme").await;
        let listener = Listener::new(world.listener(tenant).await);
        world.wait(tenant, PendingState::Gated, 1).await;
        let (core, now) = (world.core.clone(), clock::now());
        let due = core.store.due_gated(tenant, now, &[], 1).await.expect("it is due");
        let claimed = core.store.claim_pending(tenant, PendingState::Gated, now, Duration::ZERO, &[due[0].event]).await;
        let event = Arc::new(EncodedEvent::new(claimed.expect("claimed").remove(0).entry));
        core.store.set_clock(now - TimeDelta::minutes(3), now);
        let (deadline, numbers) = (Instant::now() + Duration::from_secs(20), Arc::new(Numbers::after(None, 1)));
        let verdict = ask(core.clone(), tenant, listener, event, deadline, numbers).await;
        assert_eq!(verdict.attempt, 1, "{verdict:?}");
        assert!(verdict.started_at <= core.store.now(), "{verdict:?}");
        drop(core);
        world.end().await;
    }
}
