//! Test runs: a listener is called once with an event that nobody publishes, and its answer judged as a publish would judge it.

use super::Pending;
use super::ask::{Listener, judged, spoil};
use super::phase::Phase;
use crate::domain::event::LogEntry;
use crate::domain::event_type::Phase as TypePhase;
use crate::domain::pre::VerdictKind;
use crate::domain::trial::Trial;
use crate::domain::webhook::WebhookCall;
use crate::executor::{Delivery, EncodedEvent};
use crate::publish::prepare::phase_of;
use crate::publish::registry::{Entry, TenantRegistry};
use std::sync::Arc;
use tokio::time::Instant;

impl Pending {
    /// Calls a listener once until the deadline. The outcome of a listener of a PRE type is its verdict: the event is decided on, and
    /// an enrichment applied and checked, by what decides on a published one. Writes nothing.
    pub async fn trial(
        &self,
        registry: &TenantRegistry,
        listener: Arc<Entry>,
        call: &WebhookCall,
        entry: Arc<LogEntry>,
        deadline: Instant,
    ) -> Trial {
        let core = &self.core;
        let subscription = &listener.subscription;
        let invocation = entry.invocation(subscription.no);
        let event = Arc::new(EncodedEvent::new(entry.clone()));
        let delivery = Delivery { invocation, attempt: 1, replay: false, event };
        let phase = phase_of(&core.registry, registry, &entry.event.event_type);
        if !phase.is_ok_and(|phase| phase == TypePhase::Pre) {
            return core.executor.trial(call, &delivery, deadline).await;
        }
        let (mut trial, answer) = core.executor.ask_trial(call, &delivery, deadline).await;
        let listener = Listener::new(listener);
        let verdict = listener.verdict(VerdictKind::Failed, "", core.store.now());
        let verdict = judged(registry.tenant(), verdict, &listener.policy, &entry, trial.outcome.clone(), answer).await;
        let enriches = verdict.patch.is_some();
        let mut phase = Phase {
            tenant: registry.tenant(),
            entry,
            token: 0,
            attempted: None,
            deliver_at: None,
            deadline,
            listeners: vec![listener],
            verdicts: vec![verdict],
            abandonable: false,
        };
        if enriches && phase.fitted(core, registry).await.is_err() {
            let unchecked = "the enriched data could not be checked";
            phase.verdicts.iter_mut().for_each(|verdict| spoil(verdict, unchecked.to_owned()));
        }
        if let Some(verdict) = phase.verdicts.pop()
            && let Some(mut outcome) = verdict.outcome
        {
            if verdict.kind == VerdictKind::Rejected {
                // The publisher gets the reason in the verdict; a test has the attempt alone.
                outcome.error = Some(format!("The receiver refuses the event: {}", verdict.message));
            }
            trial.outcome = outcome;
        }
        trial
    }
}
