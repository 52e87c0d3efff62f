//! The enrichments of a PRE event: applied in the order of its listeners, and what comes of them checked again.

use super::Core;
use super::ask::{Listener, NOT_APPLIED, spoil};
use super::decided::{TRIES_MAX, is_passing, pause};
use super::phase::{Decision, Phase};
use super::running::Handle;
use crate::domain::event::{Data, Event};
use crate::domain::ids::SubscriptionNo;
use crate::domain::pre::{
    AbortReason, ENRICH_PATH_CHARS_MAX, EnrichPath, FailurePolicy, Verdict, VerdictKind, enrich, first_changed, shown,
};
use crate::domain::schema::Violation;
use crate::long_work;
use crate::publish::PublishError;
use crate::publish::prepare::check_again;
use crate::publish::registry::{Entry, TenantRegistry};
use crate::store::StoreError;
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

/// What is wrong with the enriched data, with its place where that is known.
fn invalid(error: &PublishError, violation: Option<&Violation>) -> String {
    let Some(violation) = violation else { return format!("the enriched data is not valid: {error}") };
    // The names are the receiver's, as long as its answer and with any character that JSON can write.
    let place = shown(&violation.data_pointer, ENRICH_PATH_CHARS_MAX);
    let at = if place.is_empty() { String::new() } else { format!(" at {place}") };
    format!("the enriched data is not valid{at}: {}; {error}", violation.message)
}

impl Phase {
    /// The event with every enrichment, checked again. Errors: what is decided instead; of an abort the verdicts say who failed.
    pub(super) async fn enriched(&mut self, core: &Core, handle: &Handle) -> Result<Arc<Event>, Decision> {
        let mut tries = 1;
        loop {
            let error = match self.enrich(core).await {
                Ok(enriched) => return enriched.map_err(Decision::Abort),
                Err(error) => error,
            };
            if tries >= TRIES_MAX || !is_passing(&error) {
                return Err(Decision::Undecided(error));
            }
            tries += 1;
            tokio::select! {
                () = pause() => {}
                () = core.stop.cancelled() => return Err(Decision::Undecided(error)),
                () = handle.cancelled.cancelled() => return Err(Decision::Cancelled),
            }
        }
    }

    /// The event with every enrichment that fits, or why it is aborted. Errors: that cannot be found out now, which is no listener's fault.
    async fn enrich(&mut self, core: &Core) -> Result<Result<Arc<Event>, AbortReason>, StoreError> {
        // Each round has fewer.
        while self.verdicts.iter().any(|verdict| verdict.patch.is_some()) {
            let registry = core.registry.tenant(self.tenant).await?;
            if let Some(event) = self.fitted(core, &registry).await? {
                return Ok(Ok(event));
            }
            if let Some(reason) = self.aborts() {
                return Ok(Err(reason));
            }
        }
        Ok(Ok(self.entry.event.clone()))
    }

    /// The event with every enrichment, where they fit; none where some did not, whose verdicts are failures now.
    pub(super) async fn fitted(
        &mut self,
        core: &Core,
        registry: &TenantRegistry,
    ) -> Result<Option<Arc<Event>>, StoreError> {
        let (event, broken) = self.apply().await;
        if let Some((no, message)) = broken {
            self.verdicts.iter_mut().filter(|v| v.subscription_no == no).for_each(|v| spoil(v, message.clone()));
            return Ok(None);
        }
        let event = Arc::new(event);
        // The tenant's quota, as for what a publisher sends; of what was accepted before that was lowered, its own size.
        let event_bytes_max = registry.event_bytes_max().max(self.entry.event.bytes());
        let error = match check_again(&core.registry, registry, &event, event_bytes_max).await {
            Ok(()) => return Ok(Some(event)),
            Err(PublishError::Store(error)) => return Err(error),
            Err(error) => error,
        };
        let violations = match &error {
            PublishError::SchemaViolation { violations, .. } => &violations[..],
            _ => &[],
        };
        let changed = self.changed(violations).await;
        let first_of = |verdict: &Verdict| changed.iter().find(|(no, _)| *no == verdict.subscription_no);
        // Where none has changed what is not valid, it falls on all of them.
        let to_blame = |v: &Verdict| v.patch.is_some() && (changed.is_empty() || first_of(v).is_some());
        // Of these, those that may fail are left out first; only then does it fall on the others.
        let ignorable = |no: i32| {
            let listener = self.listeners.iter().find(|l| l.entry.subscription.no == no);
            listener.is_some_and(|l| l.policy.failure_policy == FailurePolicy::Ignore)
        };
        let any = self.verdicts.iter().any(|v| to_blame(v) && ignorable(v.subscription_no));
        for verdict in &mut self.verdicts {
            if to_blame(verdict) && (!any || ignorable(verdict.subscription_no)) {
                let violation = violations.get(first_of(verdict).map_or(0, |(_, first)| *first));
                spoil(verdict, invalid(&error, violation));
            }
        }
        Ok(None)
    }

    /// The listeners whose enrichments change a violated place, each with the first such one.
    async fn changed(&self, violations: &[Violation]) -> Vec<(SubscriptionNo, usize)> {
        let places: Vec<String> = violations.iter().map(|violation| violation.data_pointer.clone()).collect();
        let patches = self.verdicts.iter().filter_map(|v| Some((v.subscription_no, v.patch.clone()?)));
        let patches: Vec<(SubscriptionNo, String)> = patches.collect();
        let bytes = patches.iter().map(|(_, patch)| patch.len()).sum();
        let first = move |(no, patch): &(SubscriptionNo, String)| Some((*no, first_changed(patch, &places)?));
        let look = move || patches.iter().filter_map(first).collect();
        long_work::on(self.tenant, bytes, look).await.unwrap_or_default()
    }

    /// Applies the enrichments in the order of the listeners; names the first that does not fit, or whose listener nothing is known of.
    async fn apply(&self) -> (Event, Option<(SubscriptionNo, String)>) {
        let known = |no| self.listeners.iter().any(|listener| listener.entry.subscription.no == no);
        let lost = |verdict: &&Verdict| verdict.patch.is_some() && !known(verdict.subscription_no);
        if let Some(lost) = self.verdicts.iter().find(lost) {
            return (Event::clone(&self.entry.event), Some((lost.subscription_no, NOT_APPLIED.to_owned())));
        }
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

impl Core {
    /// The listeners that have unsubscribed since they enriched an event, or failed. What they said means what it did before.
    pub(super) async fn gone_since(
        &self,
        registry: &TenantRegistry,
        verdicts: &[Verdict],
    ) -> Result<Vec<Listener>, StoreError> {
        let (tenant, mut gone) = (registry.tenant(), Vec::new());
        let counts = |verdict: &&Verdict| verdict.patch.is_some() || verdict.kind == VerdictKind::Failed;
        for verdict in verdicts.iter().filter(counts) {
            if registry.subscription(verdict.subscription_no).is_none()
                && let Some(subscription) = self.store.subscription(tenant, None, verdict.subscription).await?
            {
                // It is not asked again: nothing has to be signed.
                gone.push(Listener::new(Arc::new(Entry::new(tenant, subscription, Vec::new()))));
            }
        }
        Ok(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::TenantId;
    use crate::domain::invocation::{Outcome, OutcomeClass};
    use crate::domain::pre::PrePolicy;
    use crate::pending::PendingError;
    use crate::pending::phase::Ended;
    use crate::pending::tests::World;
    use crate::store::pending::{PendingEvent, PendingState};
    use sqlx::{AssertSqlSafe, Executor as _};
    use std::time::Duration;
    use tokio::time::{Instant, timeout};

    /// A phase whose one listener has agreed and enriches.
    fn agreed(row: &PendingEvent, mut listener: Listener, failure_policy: FailurePolicy) -> Phase {
        let enrich_paths = vec![EnrichPath::parse("/plan").expect("a pointer")];
        listener.policy = PrePolicy { failure_policy, priority: 0, enrich_paths };
        let success = listener.verdict(VerdictKind::Succeeded, "", row.entry.committed_at);
        let verdict = Verdict { attempt: 1, patch: Some(r#"{"plan":"paid"}"#.to_owned()), ..success };
        Phase {
            tenant: row.tenant,
            entry: row.entry.clone(),
            token: row.token,
            attempted: None,
            deliver_at: None,
            deadline: Instant::now(),
            listeners: vec![listener],
            verdicts: vec![verdict],
            abandonable: false,
        }
    }

    async fn ended(core: &Arc<Core>, phase: Phase, handle: &Handle) -> Ended {
        timeout(Duration::from_secs(20), phase.run(core, handle)).await.expect("it ends")
    }

    /// A pending event of a type that has the one schema.
    async fn checked_by(world: &World, tenant: TenantId, name: &str, schema: &str) -> PendingEvent {
        let core = &world.core;
        world.wait(tenant, PendingState::Gated, 1).await;
        let sql = format!(
            "UPDATE pending_events SET event_type = '{name}', schema_version = 1, data_kind = 2, data = '{{}}';
             INSERT INTO event_type_schemas (tenant_id, event_type, version, document, created_at)
             VALUES ('{}', '{name}', 1, '{schema}', now())",
            tenant.0
        );
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&mut world.database.connection().await)
            .await
            .expect("it has a schema");
        let now = core.store.now();
        let due = core.store.due_gated(tenant, now, &[], 1).await.expect("it is due");
        let claimed = core.store.claim_pending(tenant, PendingState::Gated, now, core.lease(), &[due[0].event]).await;
        claimed.expect("claimed").remove(0)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn that_a_schema_cannot_be_had_is_no_failure_of_a_listener() {
        let world = World::new().await;
        let tenant = world.database.tenant("acme").await;
        let (core, listener) = (&world.core, Listener::new(world.listener(tenant).await));
        for (name, policy) in [("CUSTOM_STRICT", FailurePolicy::Fail), ("CUSTOM_LENIENT", FailurePolicy::Ignore)] {
            let row = checked_by(&world, tenant, name, r#"{"type":5}"#).await;
            let undecided = ended(core, agreed(&row, listener.clone(), policy), &Handle::new()).await;
            assert!(matches!(&undecided, Ended::Not(PendingError::Publish(PublishError::Store(_)))), "{undecided:?}");
            let noted = core.store.pending_verdicts(tenant, row.entry.event.id).await.expect("readable");
            assert_eq!(noted.iter().map(|verdict| verdict.kind).collect::<Vec<_>>(), [VerdictKind::Succeeded]);
            let mended = "UPDATE event_type_schemas SET document = '{}'";
            world.database.connection().await.execute(mended).await.expect("it compiles now");
            let born = ended(core, agreed(&row, listener.clone(), policy), &Handle::new()).await;
            let Ended::Committed(entry, _) = born else { panic!("{born:?}") };
            assert_eq!(entry.event.data.as_bytes(), br#"{"plan":"paid"}"#);
        }
        world.end().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_noted_success_whose_enrichment_does_not_fit_ends_as_a_failure_in_every_respect() {
        let world = World::new().await;
        let tenant = world.database.tenant("acme").await;
        let (core, listener) = (&world.core, Listener::new(world.listener(tenant).await));
        let row = checked_by(&world, tenant, "CUSTOM_NARROW", r#"{"required":["never"]}"#).await;
        let (event, mut phase) = (row.entry.event.id, agreed(&row, listener, FailurePolicy::Fail));
        let class = OutcomeClass::Succeeded;
        phase.verdicts[0].outcome =
            Some(Outcome { class, status_code: 200, retry_after: None, excerpt: None, error: None });
        assert!(core.store.note_verdicts(tenant, event, row.token, &phase.verdicts).await.expect("it is noted"));
        let aborted = ended(core, phase, &Handle::new()).await;
        assert!(matches!(&aborted, Ended::Not(PendingError::Aborted(_))), "{aborted:?}");
        let said = core.store.pending_verdicts(tenant, event).await.expect("readable").remove(0);
        let class = said.outcome.as_ref().map(|outcome| outcome.class);
        assert_eq!((said.kind, class), (VerdictKind::Failed, Some(OutcomeClass::Failed)), "{said:?}");
        world.end().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn whoever_waits_for_a_schema_heeds_a_cancellation() {
        let world = World::new().await;
        let tenant = world.database.tenant("acme").await;
        let (core, listener) = (&world.core, Listener::new(world.listener(tenant).await));
        let row = checked_by(&world, tenant, "CUSTOM_SLOW", "{}").await;
        let slow = "ALTER TABLE event_type_schemas RENAME TO hidden;
                    CREATE FUNCTION slow() RETURNS SETOF hidden LANGUAGE plpgsql AS
                      $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'query_canceled'; END $$;
                    CREATE VIEW event_type_schemas AS SELECT * FROM slow();
                    GRANT SELECT ON event_type_schemas TO PUBLIC";
        sqlx::raw_sql(slow).execute(&mut world.database.connection().await).await.expect("it is slow now");
        let handle = Handle::new();
        handle.cancelled.cancel();
        let cancelled = ended(core, agreed(&row, listener, FailurePolicy::Fail), &handle).await;
        assert!(matches!(&cancelled, Ended::Not(PendingError::Cancelled)), "{cancelled:?}");
        world.end().await;
    }
}
