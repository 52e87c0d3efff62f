//! What becomes of an event that is due: it is claimed where there is room for it, and goes into the log or asks its listeners.
//!
//! A delayed event of a type that has no seat left (`seats`) is not claimed. It stays where it is, as one that may be cancelled, and its
//! time to be decided begins when it is claimed and matched.

use super::ask::{Listener, NOT_ACTIVE, undecided};
use super::phase::Phase;
use super::room::{Room, Taken};
use super::running::Handle;
use super::turns::Left;
use super::{Core, listeners, put_in_order};
use crate::domain::event::LogEntry;
use crate::domain::ids::{EventId, SubscriptionNo, TenantId};
use crate::domain::pre::{AbortReason, Aborted, Verdict, VerdictKind};
use crate::publish::PublishError;
use crate::publish::prepare::prepare;
use crate::store::StoreError;
use crate::store::pending::{NewPending, PendingCommit, PendingEvent, PendingState, WaitsFor};
use crate::telemetry::measured;
use std::sync::Arc;

/// How often an event is matched again because the registry moved on.
const ROUNDS_MAX: u32 = 20;

impl Core {
    /// Claims the first of what is due of a tenant, as far as there is room for it: in memory, and of delayed events with their listeners.
    pub(super) async fn claim_due(
        self: &Arc<Self>,
        tenant: TenantId,
        state: PendingState,
    ) -> Result<(Vec<(PendingEvent, Room)>, Left), StoreError> {
        let now = self.store.now();
        let (mut rooms, left) = match state {
            PendingState::Scheduled => self.room_for_delayed(tenant, now).await?,
            _ => self.room_for_taken_over(tenant, now).await?,
        };
        if rooms.is_empty() {
            return Ok((Vec::new(), left));
        }
        let events: Vec<EventId> = rooms.keys().copied().collect();
        let claimed = self.store.claim_pending(tenant, state, now, self.lease(), &events).await?;
        let claimed: Vec<_> =
            claimed.into_iter().filter_map(|row| Some((rooms.remove(&row.entry.event.id)?, row))).collect();
        // What another replica is about to claim is not looked at over and over.
        let left = if claimed.is_empty() { Left::Busy } else { left };
        let told = |(room, row): (Taken, PendingEvent)| (row, Room::new(room, self.clone(), tenant, state));
        Ok((claimed.into_iter().map(told).collect(), left))
    }

    /// Brings one claimed event on its way. What fails now is claimed again when the lease ends.
    pub(super) async fn bring(self: &Arc<Self>, row: PendingEvent, room: Room) {
        let event = row.entry.event.id;
        let done = match row.state {
            PendingState::Gated => self.take_over(row, room).await,
            PendingState::Scheduled => self.publish_due(row, room).await,
            PendingState::Aborted | PendingState::Cancelled => Ok(()),
        };
        if let Err(error) = done {
            tracing::warn!(%event, %error, "a pending event could not be brought on its way; it is tried again");
        }
    }

    /// Goes on with a phase whose owner has gone silent: what is decided stays, who has not answered is asked again.
    ///
    /// Of a delayed event nobody waits for the answer: where its first owner has left none, its time begins anew.
    async fn take_over(self: &Arc<Self>, mut row: PendingEvent, room: Room) -> Result<(), StoreError> {
        let (tenant, event) = (row.tenant, row.entry.event.id);
        let mut verdicts = self.store.pending_verdicts(tenant, event).await?;
        let anew = self.store.now() + row.pre_timeout;
        if row.deliver_at.is_some()
            && verdicts.is_empty()
            && self.store.renew_deadline(tenant, event, row.token, anew).await?
        {
            row.deadline_at = Some(anew);
        }
        let registry = self.registry.reload(row.tenant).await?;
        let mut listeners = listeners(&registry, &row.entry.matched);
        listeners.extend(self.gone_since(&registry, &verdicts).await?);
        put_in_order(&mut listeners);
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
            let now = self.store.now();
            verdicts.extend(ids.into_iter().map(|named| undecided(named, VerdictKind::Skipped, NOT_ACTIVE, now)));
        }
        let attempted = Some(row.attempted);
        self.phase(row, listeners, verdicts, attempted, room);
        Ok(())
    }

    /// Asks listeners. `attempted` is what former owners that asked before have written down, where there were any.
    fn phase(
        self: &Arc<Self>,
        row: PendingEvent,
        listeners: Vec<Listener>,
        verdicts: Vec<Verdict>,
        attempted: Option<i32>,
        room: Room,
    ) {
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
        self.spawn_in(phase, Handle::new(), room);
    }

    /// Publishes a delayed event: matched now, and checked by the schema version it was accepted with, or the latest where it had none.
    async fn publish_due(self: &Arc<Self>, row: PendingEvent, room: Room) -> Result<(), StoreError> {
        for _ in 0..ROUNDS_MAX {
            let registry = self.registry.tenant(row.tenant).await?;
            let event = row.entry.event.clone();
            let version = event.schema_version;
            let prepared = prepare(&self.registry, &registry, event, version, None, Some(self.event_bytes_max)).await;
            let prepared = match prepared {
                Ok(prepared) => prepared,
                Err(PublishError::Store(error)) => return Err(error),
                Err(error) => return self.give_up(&row, &error).await,
            };
            if prepared.is_gated() {
                let deadline_at = self.store.now() + row.pre_timeout;
                let new = NewPending {
                    tenant: row.tenant,
                    event: prepared.event,
                    matched: prepared.matched,
                    refused: prepared.refused,
                    registry_version: prepared.registry_version,
                    key: None,
                    waits_for: WaitsFor::Listeners { deadline_at, lease: self.lease() },
                    pre_timeout: row.pre_timeout,
                    max: i64::MAX,
                };
                // Before the gate, which says whether they are those of the match.
                let listeners = listeners(&registry, &new.matched);
                if self.store.gate_pending(row.token, &new).await? {
                    let NewPending { event, matched, refused, .. } = new;
                    let entry = LogEntry { event, matched, refused, ..LogEntry::clone(&row.entry) };
                    let row = PendingEvent { entry: Arc::new(entry), deadline_at: Some(deadline_at), ..row };
                    self.phase(row, listeners, Vec::new(), None, room);
                    return Ok(());
                }
            } else if self.commit_due(row.tenant, row.token, prepared).await? {
                return Ok(());
            }
            // Either the registry moved on, or the event is not this replica's any more.
            let mine = self.store.pending_event(row.tenant, row.entry.event.id).await?;
            if mine.is_none_or(|mine| mine.token != row.token || mine.state != PendingState::Scheduled) {
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
        let Some(place) = self.write_in_turn(tenant, |patience| self.store.commit_pending(&commit, patience)).await?
        else {
            return Ok(false);
        };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pending::tests::World;
    use sqlx::Executor as _;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_delayed_event_that_is_in_the_log_is_not_looked_for_any_more() {
        let world = World::new().await;
        let tenant = world.database.tenant("acme").await;
        world.wait(tenant, PendingState::Scheduled, 1).await;
        let core = &world.core;
        let (row, room) = core.claim_due(tenant, PendingState::Scheduled).await.expect("claimed").0.remove(0);
        // What waits cannot be read within the wall of a tenant, and is committed outside of it.
        let sql = "CREATE POLICY unreadable ON pending_events AS RESTRICTIVE FOR SELECT USING
                     (1 / CASE WHEN coalesce(current_setting('carillon.tenant', true), '') = '' THEN 1 ELSE 0 END = 1)";
        world.database.connection().await.execute(sql).await.expect("a policy");
        let event = row.entry.event.id;
        core.store.pending_event(tenant, event).await.expect_err("it cannot be read");
        core.publish_due(row, room).await.expect("it is in the log");
        assert!(core.store.event(tenant, event).await.expect("readable").is_some());
        world.end().await;
    }
}
