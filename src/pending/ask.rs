//! Asking one listener of a PRE event: attempts by its policy within the shared deadline, until it has decided or failed.
//!
//! A listener that cannot be reached at all fails at once: the publisher is waiting, and another one may answer the retry.

use super::Core;
use crate::clock;
use crate::domain::event::LogEntry;
use crate::domain::ids::{SubscriptionId, SubscriptionNo, TenantId};
use crate::domain::invocation::{Attempt, Outcome, OutcomeClass};
use crate::domain::pre::{Answer, EnrichError, PrePolicy, Verdict, VerdictKind, enrich};
use crate::executor::{Delivery, EncodedEvent};
use crate::publish::registry::Entry;
use crate::telemetry::measured;
use std::sync::Arc;
use tokio::time::{Instant, sleep};

/// A listener that is asked.
#[derive(Debug, Clone)]
pub(super) struct Listener {
    pub entry: Arc<Entry>,
    pub policy: PrePolicy,
}

impl Listener {
    pub fn new(entry: Arc<Entry>) -> Self {
        let policy = entry.subscription.pre_policy.clone().unwrap_or_default();
        Self { entry, policy }
    }

    /// A verdict without an attempt.
    pub fn verdict(&self, kind: VerdictKind, message: &str) -> Verdict {
        undecided(self.entry.subscription.no, self.entry.subscription.id, kind, message)
    }
}

/// A verdict of a subscription without an attempt.
pub(super) fn undecided(no: SubscriptionNo, id: SubscriptionId, kind: VerdictKind, message: &str) -> Verdict {
    Verdict {
        subscription_no: no,
        subscription: id,
        kind,
        attempt: 0,
        started_at: clock::now(),
        duration: std::time::Duration::ZERO,
        outcome: None,
        message: message.to_owned(),
        patch: None,
        failed: Vec::new(),
    }
}

/// Asks until the listener has decided or failed. `attempt_base` counts the owners that may have asked before.
pub(super) async fn ask(
    core: Arc<Core>,
    tenant: TenantId,
    listener: Listener,
    event: Arc<EncodedEvent>,
    deadline: Instant,
    attempt_base: i32,
) -> Verdict {
    let subscription = &listener.entry.subscription;
    let mut verdict = listener.verdict(VerdictKind::Failed, "");
    for made in 1..=subscription.policy.max_attempts() {
        let Some(call) = listener.entry.webhook_call(clock::now()) else {
            "no signing secret of the subscription can be opened".clone_into(&mut verdict.message);
            return verdict;
        };
        let leave = match core.leave_to_ask(tenant, &listener, deadline).await {
            Ok(leave) => leave,
            // The publisher is waiting: it is told at once, and what was answered before stands.
            Err(why) => {
                why.clone_into(&mut verdict.message);
                return verdict;
            }
        };
        verdict.attempt = attempt_base + made;
        verdict.started_at = clock::now();
        let delivery = Delivery {
            invocation: event.entry().invocation(subscription.no),
            attempt: verdict.attempt,
            replay: false,
            event: event.clone(),
        };
        let until = (Instant::now() + subscription.policy.timeout()).min(deadline);
        let (outcome, answer) = core.executor.ask(&call, &delivery, until).await;
        core.asked(tenant, &listener, leave, &outcome);
        verdict.duration = (clock::now() - verdict.started_at).to_std().unwrap_or_default();
        measured().dispatch.attempted(outcome.class.name(), verdict.duration);
        if answer != Answer::Failed {
            return judged(verdict, &listener.policy, event.entry(), outcome, answer);
        }
        let wait = subscription.policy.backoff(made, clock::jitter(), outcome.retry_after);
        let hopeless = !outcome.class.is_retryable() || is_away(&outcome);
        let last = made == subscription.policy.max_attempts() || Instant::now() + wait >= deadline;
        if hopeless || last {
            return judged(verdict, &listener.policy, event.entry(), outcome, answer);
        }
        let (number, started_at, duration) = (verdict.attempt, verdict.started_at, verdict.duration);
        verdict.failed.push(Attempt { number, started_at, duration, outcome });
        sleep(wait).await;
    }
    verdict
}

/// No connection at all: nothing to wait for within a publisher's patience.
fn is_away(outcome: &Outcome) -> bool {
    outcome.class == OutcomeClass::Unreachable && outcome.status_code == 0
}

/// What the last attempt's answer makes of a listener.
pub(super) fn judged(
    mut verdict: Verdict,
    policy: &PrePolicy,
    entry: &LogEntry,
    outcome: Outcome,
    answer: Answer,
) -> Verdict {
    verdict.message = outcome.error.clone().unwrap_or_else(|| "it failed".to_owned());
    verdict.outcome = Some(outcome);
    match answer {
        Answer::Agreed(patch) => return agreed(verdict, policy, entry, patch),
        Answer::Rejected(reason) => {
            verdict.kind = VerdictKind::Rejected;
            verdict.message = reason;
        }
        Answer::Failed => {}
    }
    verdict
}

/// A listener that agrees, with an enrichment that is checked by itself: the places of all listeners are apart.
fn agreed(mut verdict: Verdict, policy: &PrePolicy, entry: &LogEntry, patch: Option<String>) -> Verdict {
    let fits = match &patch {
        None => Ok(()),
        Some(_) if !entry.event.has_json_data() => Err(EnrichError::NotAnObject),
        Some(patch) => enrich(entry.event.data.as_bytes(), patch, &policy.enrich_paths).map(drop),
    };
    match fits {
        Ok(()) => {
            verdict.kind = VerdictKind::Succeeded;
            verdict.message = String::new();
            verdict.patch = patch;
        }
        Err(error) => spoil(&mut verdict, error.to_string()),
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
