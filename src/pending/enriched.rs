//! The enrichments of a PRE event: applied in the order of its listeners, and what comes of them checked again.

use super::Core;
use super::ask::{Listener, NOT_APPLIED, spoil};
use super::phase::Phase;
use crate::domain::event::{Data, Event};
use crate::domain::ids::SubscriptionNo;
use crate::domain::pre::{AbortReason, EnrichPath, FailurePolicy, Verdict, enrich};
use crate::long_work;
use crate::publish::prepare::check_again;
use crate::publish::registry::TenantRegistry;
use std::sync::Arc;

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

impl Phase {
    /// The event with every enrichment, checked again. Errors: why it is aborted instead; the verdicts say who failed.
    pub(super) async fn enriched(&mut self, core: &Core) -> Result<Arc<Event>, AbortReason> {
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
}
