//! Waiting for what becomes of an event, wherever it is decided.
//!
//! A phase that runs here is waited for itself. Of anything else the tenant's log tells where it ends well, as soon as that is heard; how
//! it ends otherwise, and what was not heard, is found by a look now and then, which reads nothing of the event but how it stands.

use super::phase::Ended;
use super::{Answer, Pending, PendingError};
use crate::domain::ids::{EventId, TenantId};
use crate::domain::pre::Aborted;
use crate::store::StoreError;
use crate::store::pending::PendingState;
use chrono::{DateTime, Utc};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Whether a wait ends at a delayed event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// It is scheduled or final.
    Accepted,
    /// It is final.
    Final,
}

/// Between two looks where nothing is heard. The replica that owns the event is told as often that somebody waits here.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Between news of the log and a look, at least; each of a log that moves on and on waits twice as long, up to the time above.
const GATHER: Duration = Duration::from_millis(2);

/// How an event stands at one moment.
#[derive(Debug)]
pub enum Stands {
    /// Nothing becomes of it any more but this.
    Final(Answer),
    /// It waits for this time.
    Scheduled(DateTime<Utc>),
    /// Its listeners are asked.
    Gated,
}

impl Pending {
    /// How an event stands, pending or not, by one look.
    ///
    /// Errors: as [`Self::wait`].
    pub async fn stands(&self, tenant: TenantId, event: EventId, duplicate: bool) -> Result<Stands, PendingError> {
        let store = &self.store;
        let Some(row) = store.pending_standing(tenant, event).await? else {
            let entry = store.event(tenant, event).await?.ok_or(PendingError::NotFound)?;
            let mut said = store.committed_verdicts(tenant, &[(entry.day(), entry.position)]).await?;
            let verdicts = said.remove(&entry.position).unwrap_or_default().into();
            return Ok(Stands::Final(Answer::Committed { entry, verdicts, duplicate }));
        };
        match (row.state, row.abort) {
            (PendingState::Scheduled, _) => Ok(Stands::Scheduled(row.deliver_at.unwrap_or_default())),
            (PendingState::Gated, _) => Ok(Stands::Gated),
            (PendingState::Cancelled, _) => Err(PendingError::Cancelled),
            (PendingState::Aborted, Some((reason, message))) => {
                let verdicts = store.pending_verdicts(tenant, event).await?;
                Err(PendingError::Aborted(Arc::new(Aborted { event, reason, message, verdicts })))
            }
            (PendingState::Aborted, None) => Err(StoreError::Corrupt { what: "aborted event" }.into()),
        }
    }

    /// Waits for what becomes of an event, pending or not.
    ///
    /// Errors: [`PendingError::NotFound`], and what the event was refused with.
    pub async fn wait(
        &self,
        tenant: TenantId,
        event: EventId,
        until: Until,
        duplicate: bool,
    ) -> Result<Answer, PendingError> {
        let core = &self.core;
        let mut moved = core.feed.moved(tenant);
        let mut gather = Duration::ZERO;
        loop {
            moved.mark_unchanged();
            if let Some(attachment) = core.attach(tenant, event) {
                match attachment.ended().await {
                    Ended::Committed(entry, verdicts) => return Ok(Answer::Committed { entry, verdicts, duplicate }),
                    Ended::Not(error) => return Err(error),
                    Ended::Elsewhere => {}
                }
            }
            match self.stands(tenant, event, duplicate).await? {
                Stands::Final(answer) => return Ok(answer),
                Stands::Scheduled(at) if until == Until::Accepted => {
                    return Ok(Answer::Scheduled { event, at, duplicate });
                }
                Stands::Gated => self.store.attach_pending(tenant, event).await?,
                Stands::Scheduled(_) => {}
            }
            // Bounded by the caller's deadline, which drops this.
            let heard = timeout(LOOK_AGAIN, moved.changed()).await.is_ok();
            gather = if heard { (gather * 2).clamp(GATHER, LOOK_AGAIN) } else { Duration::ZERO };
            sleep(gather).await;
        }
    }
}
