//! What is decided of a PRE event is written: it is born, or aborted, or was taken back.

use super::phase::{Ended, Phase};
use super::{Core, PendingError};
use crate::clock;
use crate::domain::announcement::Announcement;
use crate::domain::event::{Event, LogEntry};
use crate::domain::ids::{EventId, TenantId};
use crate::domain::pre::{AbortReason, Aborted, Verdict, VerdictKind};
use crate::feed::{Head, News};
use crate::store::StoreError;
use crate::store::heads::RegistryChange;
use crate::store::pending::PendingCommit;
use crate::telemetry::measured;
use chrono::{DateTime, Utc};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Between two tries of what the database did not do.
const TRY_AGAIN: Duration = Duration::from_millis(250);
/// How often a decision is tried to be made or written; then the lease ends, and whoever takes the event over decides again.
pub(super) const TRIES_MAX: u32 = 8;

/// Whether the database may do at another time what it did not do.
pub(super) fn is_passing(error: &StoreError) -> bool {
    matches!(error, StoreError::Unavailable(_) | StoreError::TooSlow(_) | StoreError::Crowded)
}

/// Waits before another try.
pub(super) async fn pause() {
    sleep(TRY_AGAIN.mul_f64(0.5 + clock::jitter())).await;
}

impl Phase {
    pub(super) async fn commit(self, core: &Core, event: Arc<Event>) -> Ended {
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
            Ok(None) => {
                core.note_cancelled(commit.tenant, event.id, commit.token, &commit.verdicts).await;
                return Ended::Elsewhere;
            }
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

    /// Leaves the event to whoever has it now.
    pub(super) async fn leave(mut self, core: &Core) {
        self.wait_no_more(core.store.now());
        core.note_cancelled(self.tenant, self.entry.event.id, self.token, &self.verdicts).await;
    }

    pub(super) async fn abort(mut self, core: &Core, reason: AbortReason) -> Ended {
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
            Ok(false) => {
                core.note_cancelled(self.tenant, event, self.token, &aborted.verdicts).await;
                Ended::Elsewhere
            }
            Err(error) => Ended::Not(error.into()),
        }
    }
}

impl Core {
    /// Notes what the listeners of an event that is not its owner's any more did, should a caller have taken it back.
    async fn note_cancelled(&self, tenant: TenantId, event: EventId, token: i64, verdicts: &[Verdict]) {
        if let Err(error) = self.store.note_cancelled(tenant, event, token, verdicts).await {
            tracing::warn!(%error, "what the listeners of a cancelled event did could not be noted");
        }
    }

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
                Err(StoreError::PartitionMissing) if tries < TRIES_MAX => {
                    self.store.ensure_partitions(self.store.now().date_naive(), 1).await?;
                }
                Err(error) if tries < TRIES_MAX && is_passing(&error) => pause().await,
                done => return done,
            }
            tries += 1;
        }
    }
}
