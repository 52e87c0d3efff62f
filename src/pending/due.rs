//! What is due: delayed events whose time has come, and PRE events whose owner has gone silent.
//!
//! One timer per replica, set by the pulse to the first time of all and by what is scheduled here. Whoever claims an event owns it
//! until the lease ends; an event is born by a statement that names the claim's token, so it is born once.

use super::ask::{Listener, undecided};
use super::phase::{Handle, Phase};
use super::{Core, listeners};
use crate::domain::event::LogEntry;
use crate::domain::ids::{SubscriptionNo, TenantId};
use crate::domain::pre::{AbortReason, Aborted, Verdict, VerdictKind};
use crate::domain::subscription::State;
use crate::publish::PublishError;
use crate::publish::prepare::prepare;
use crate::store::StoreError;
use crate::store::pending::{NewPending, PendingCommit, PendingEvent, PendingState, WaitsFor};
use crate::telemetry::measured;
use futures::StreamExt as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};

/// Events of one tenant that are claimed at a time.
const CLAIM_MAX: u32 = 64;
/// Due events that are looked at, over all tenants, to choose whose are claimed.
const LOOK_MAX: u32 = 256;
/// Claimed events that are published at the same time.
const AT_ONCE: usize = 8;
/// After a look that failed.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Why a listener is not asked.
const NOT_ACTIVE: &str = "the subscription is not active any more";
/// How often an event is matched again because the registry moved on.
const ROUNDS_MAX: u32 = 20;

/// Runs until the server stops.
pub(super) async fn run(core: Arc<Core>) {
    let mut next = core.feed.pending_due();
    loop {
        let due_at = *next.borrow_and_update();
        let due = async {
            match due_at {
                Some(at) => {
                    let wait = (at - core.store.now()).to_std().unwrap_or_default();
                    sleep_until(Instant::now() + wait).await;
                }
                None => std::future::pending().await,
            }
        };
        // Every arm is cancel-safe: a signal, a channel that keeps its value, a timer.
        tokio::select! {
            () = core.stop.cancelled() => return,
            changed = next.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = due => {
                let look = async {
                    core.run_due().await?;
                    core.store.next_pending_due().await
                };
                match look.await {
                    Ok(due_at) => core.feed.set_pending_due(due_at),
                    Err(error) => {
                        tracing::warn!(%error, "pending events that are due could not be looked at; it is tried again");
                        sleep(LOOK_AGAIN).await;
                    }
                }
            }
        }
    }
}

impl Core {
    /// Claims what is due and brings each on its way, until nothing is left that this replica may claim.
    async fn run_due(self: &Arc<Self>) -> Result<(), StoreError> {
        loop {
            let mut claimed = Vec::new();
            for tenant in self.store.tenants_with_due(self.store.now(), LOOK_MAX).await? {
                claimed
                    .extend(self.store.claim_pending(tenant, self.store.now(), self.lease_until(), CLAIM_MAX).await?);
            }
            if claimed.is_empty() || self.stop.is_cancelled() {
                return Ok(());
            }
            futures::stream::iter(claimed).for_each_concurrent(AT_ONCE, |row| self.bring(row)).await;
        }
    }

    /// Brings one claimed event on its way. What fails now is claimed again when the lease ends.
    async fn bring(self: &Arc<Self>, row: PendingEvent) {
        let event = row.entry.event.id;
        let done = match row.state {
            PendingState::Gated => self.take_over(row).await,
            PendingState::Scheduled => self.publish_due(row).await,
            PendingState::Aborted | PendingState::Cancelled => Ok(()),
        };
        if let Err(error) = done {
            tracing::warn!(%event, %error, "a pending event could not be brought on its way; it is tried again");
        }
    }

    /// Goes on with a phase whose owner has gone silent: what is decided stays, who has not answered is asked again.
    async fn take_over(self: &Arc<Self>, row: PendingEvent) -> Result<(), StoreError> {
        let mut verdicts = self.store.pending_verdicts(row.tenant, row.entry.event.id).await?;
        let registry = self.registry.reload(row.tenant).await?;
        let listeners = listeners(&registry, &row.entry.matched);
        let decided = |no: &SubscriptionNo| verdicts.iter().any(|verdict| verdict.subscription_no == *no);
        let gone: Vec<SubscriptionNo> = row
            .entry
            .matched
            .iter()
            .filter(|no| registry.subscription(**no).is_none() && !decided(no))
            .copied()
            .collect();
        if !gone.is_empty() {
            let ids = self.store.subscription_ids(row.tenant, &gone).await?;
            verdicts.extend(ids.into_iter().map(|(no, id)| undecided(no, id, VerdictKind::Skipped, NOT_ACTIVE)));
        }
        let attempted = Some(row.attempted);
        self.phase(row, listeners, verdicts, attempted);
        Ok(())
    }

    /// Asks listeners. `attempted` is what former owners that asked before have written down, where there were any.
    fn phase(
        self: &Arc<Self>,
        row: PendingEvent,
        listeners: Vec<Listener>,
        mut verdicts: Vec<Verdict>,
        attempted: Option<i32>,
    ) {
        // One that was disabled or unsubscribed meanwhile does not execute, so it has no say either.
        for listener in listeners.iter().filter(|listener| listener.entry.subscription.state != State::Active) {
            if !verdicts.iter().any(|verdict| verdict.subscription_no == listener.entry.subscription.no) {
                verdicts.push(listener.verdict(VerdictKind::Skipped, NOT_ACTIVE));
            }
        }
        let phase = Phase {
            tenant: row.tenant,
            deadline: self.instant_of(row.deadline_at.unwrap_or(row.entry.committed_at)),
            entry: row.entry,
            token: row.token,
            deliver_at: row.deliver_at,
            attempted,
            listeners,
            verdicts,
            abandonable: false,
        };
        self.spawn(phase, Handle::new());
    }

    /// Publishes a delayed event: checked and matched now, by the schema version it was accepted with.
    async fn publish_due(self: &Arc<Self>, row: PendingEvent) -> Result<(), StoreError> {
        for _ in 0..ROUNDS_MAX {
            let registry = self.registry.tenant(row.tenant).await?;
            let event = row.entry.event.clone();
            let version = event.schema_version;
            let prepared = prepare(&self.registry, &registry, event, version, None, self.event_bytes_max).await;
            let prepared = match prepared {
                Ok(prepared) => prepared,
                Err(PublishError::Store(error)) => return Err(error),
                Err(error) => return self.give_up(&row, &error).await,
            };
            let done = if prepared.is_gated() {
                let deadline_at = self.store.now() + row.pre_timeout;
                let new = NewPending {
                    tenant: row.tenant,
                    event: prepared.event,
                    matched: prepared.matched,
                    refused: prepared.refused,
                    registry_version: prepared.registry_version,
                    key: None,
                    waits_for: WaitsFor::Listeners { deadline_at, lease_until: self.lease_until() },
                    pre_timeout: row.pre_timeout,
                    max: i64::MAX,
                };
                // Before the gate, which says whether they are those of the match.
                let listeners = listeners(&registry, &new.matched);
                let gated = self.store.gate_pending(row.token, &new).await?;
                if gated {
                    let NewPending { event, matched, refused, .. } = new;
                    let entry = LogEntry { event, matched, refused, ..LogEntry::clone(&row.entry) };
                    let row = PendingEvent { entry: Arc::new(entry), deadline_at: Some(deadline_at), ..row };
                    self.phase(row, listeners, Vec::new(), None);
                    return Ok(());
                }
                gated
            } else {
                self.commit_due(row.tenant, row.token, prepared).await?
            };
            // Either the registry moved on, or the event is not this replica's any more.
            let mine = self.store.pending_event(row.tenant, row.entry.event.id).await?;
            if done || mine.is_none_or(|mine| mine.token != row.token || mine.state != PendingState::Scheduled) {
                return Ok(());
            }
            self.registry.reload(row.tenant).await?;
        }
        Ok(())
    }

    async fn commit_due(
        &self,
        tenant: TenantId,
        token: i64,
        prepared: crate::publish::prepare::Prepared,
    ) -> Result<bool, StoreError> {
        let commit = PendingCommit {
            tenant,
            event: prepared.event,
            token,
            registry_version: Some(prepared.registry_version),
            matched: prepared.matched,
            refused: prepared.refused,
            verdicts: Vec::new(),
        };
        let Some(place) = self.write(|| self.store.commit_pending(&commit)).await? else { return Ok(false) };
        measured().publish.events.inc();
        let PendingCommit { event, matched, refused, .. } = commit;
        let (position, committed_at) = (place.position, place.committed_at);
        let entry = Arc::new(LogEntry { position, committed_at, event, matched, refused });
        self.feed.send_committed(tenant, vec![entry]);
        Ok(true)
    }

    async fn give_up(&self, row: &PendingEvent, error: &PublishError) -> Result<(), StoreError> {
        tracing::warn!(event = %row.entry.event.id, tenant = %row.tenant, %error, "a delayed event cannot be published any more");
        let (event, reason) = (row.entry.event.id, AbortReason::Unpublishable);
        let aborted = Aborted { event, reason, message: error.to_string(), verdicts: Vec::new() };
        self.abort((row.tenant, row.token), &row.entry, row.deliver_at, &aborted).await.map(drop)
    }
}
