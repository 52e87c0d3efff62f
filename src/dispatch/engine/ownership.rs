//! The engine's shards: taking them, claiming their tenants, losing them, giving them back.

use super::backlog::Backlog;
use super::held::Held;
use super::{Engine, TICK};
use crate::dispatch::load;
use crate::dispatch::run::{ClaimedShard, Input, Shared, spawn};
use crate::dispatch::tenant::Tenant;
use crate::domain::ids::TenantId;
use crate::feed::News;
use crate::planted::{self, Defect};
use crate::store::StoreError;
use crate::store::leases::{Handover, ShardLease, shard_of};
use chrono::{DateTime, TimeDelta, Utc};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

impl Engine {
    pub(super) fn take_shards(&mut self, input: Input, now: DateTime<Utc>) {
        match input {
            Input::Claimed { shard, token, tenant, result } => {
                if let Some(tenant) = tenant {
                    self.claiming.remove(&tenant);
                }
                self.claimed(shard, token, tenant, result, now);
            }
            Input::Pulse { asked_at, lease_until, pulse } => {
                if let Some(until) = lease_until {
                    let renewed = self.shards.renewed(&pulse.renewed, asked_at, until);
                    for shard in renewed.lost {
                        tracing::warn!(shard, "a dispatch shard was lost to another replica");
                        if !planted::has(Defect::IgnoreFence) {
                            self.forget_shard(shard);
                        }
                    }
                    if self.stopping {
                        self.shards.leave_all(now, &self.shared.config);
                    } else if !renewed.found.is_empty() {
                        tracing::info!(shards = renewed.found.len(), "dispatch shards were taken without an answer");
                        load::claim_shards(&self.shared, renewed.found);
                    }
                }
                // Not only through the feed: that one may lose them.
                for head in pulse.heads {
                    self.hear(&News::Head(head), now);
                }
                if self.stopping {
                    return;
                }
                self.shards.shed(pulse.replicas, now, &self.shared.config);
                if let Some(limit) = self.shards.wanted(pulse.replicas, pulse.free, now, &self.shared.config) {
                    let take = async move |shared: Arc<Shared>| {
                        shared.parts.store.take_shards(shared.replica, limit, shared.lease()).await
                    };
                    spawn(&self.shared, take, |result| Input::Taken { result });
                }
            }
            Input::Taken { result: Ok(leases) } => {
                let lease = TimeDelta::milliseconds(i64::try_from(self.shared.config.lease_ms).unwrap_or(i64::MAX));
                self.shards.taken(&leases, now, lease / 2);
                if self.stopping {
                    self.shards.leave_all(now, &self.shared.config);
                } else if !leases.is_empty() {
                    tracing::info!(shards = leases.len(), "took dispatch shards");
                    load::claim_shards(&self.shared, leases);
                }
            }
            Input::Taken { result: Err(error) } => {
                self.shards.taken(&[], now, TimeDelta::zero());
                tracing::warn!(%error, "dispatch shards could not be taken; it is tried again");
            }
            Input::Released { shards, result } => {
                self.releasing = false;
                match result {
                    Ok(()) => {
                        for (shard, _) in shards {
                            match self.shards.get(shard) {
                                Some(owned) if self.stopping && owned.left_unclean => self.given_back.1 += 1,
                                Some(_) if self.stopping => self.given_back.0 += 1,
                                _ => {}
                            }
                            self.shards.remove(shard, now);
                            self.forget_shard(shard);
                        }
                    }
                    Err(error) => tracing::warn!(%error, "dispatch shards could not be given back; it is tried again"),
                }
            }
            Input::Swept => self.sweeping = false,
            Input::Counted { .. } | Input::Marked { .. } => self.take_backlog(input),
            _ => {}
        }
    }

    fn claimed(
        &mut self,
        shard: i32,
        token: i64,
        tenant: Option<TenantId>,
        result: Result<ClaimedShard, StoreError>,
        now: DateTime<Utc>,
    ) {
        if self.shards.get(shard).is_none_or(|owned| owned.token != token) {
            return;
        }
        let mut claimed = match result {
            Ok(claimed) => claimed,
            Err(error) => {
                tracing::warn!(shard, %error, "tenants could not be claimed; it is tried again");
                // A single tenant comes again with its next news; a shard must be claimed whole.
                if tenant.is_none() {
                    let shared = self.shared.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(TICK).await;
                        load::claim_shards(&shared, vec![ShardLease { shard, token }]);
                    });
                }
                return;
            }
        };
        for found in &claimed.tenants {
            let id = found.head.tenant;
            if let Some(held) = self.tenants.get_mut(&id)
                && held.tenant.token >= found.token
            {
                // Claimed twice: what is in memory stays, but the head may have moved meanwhile.
                if held.tenant.hear_head(&found.head) {
                    self.touch(id);
                }
                continue;
            }
            let mut tenant = Tenant::new(found, self.shared.memory.clone());
            tenant.due_summary(&claimed.due.remove(&id).unwrap_or_default());
            tenant.announce = claimed.unannounced.contains(&id);
            tenant.replay = claimed.replaying.contains(&id);
            tenant.restore_health(&claimed.health.remove(&id).unwrap_or_default());
            tenant.restore_rates(&claimed.rates.remove(&id).unwrap_or_default());
            let held = Held {
                reviewed: tenant.head.deferred_version,
                tenant,
                registry: None,
                heeded: 0,
                refreshing: false,
                unsure: false,
                reload: None,
                reviewing: false,
                loads_first: false,
                announcing: false,
                announce_at: DateTime::UNIX_EPOCH,
                replaying: false,
                replay_at: DateTime::UNIX_EPOCH,
                keeping: false,
                keep_at: DateTime::UNIX_EPOCH,
                backlog: Backlog::new(claimed.full.contains(&id), claimed.with_rows.contains(&id)),
                in_turn: false,
                not_before: DateTime::UNIX_EPOCH,
                settle_at: now,
                cursor_too: false,
                armed: None,
                over: CancellationToken::new(),
            };
            self.forget(id);
            self.tenants.insert(id, held);
            self.touch(id);
        }
    }

    /// Drops a tenant from memory. Attempts that run are cut off: their results would count for nothing, and those that hang would take
    /// the room of others.
    pub(super) fn forget(&mut self, tenant: TenantId) {
        if let Some(held) = self.tenants.remove(&tenant) {
            self.apart -= held.tenant.apart();
        }
    }

    fn forget_shard(&mut self, shard: i32) {
        let gone: Vec<TenantId> = self.tenants.keys().copied().filter(|id| shard_of(*id) == shard).collect();
        for tenant in gone {
            self.forget(tenant);
        }
    }

    pub(super) fn begin_stop(&mut self) {
        let now = self.shared.parts.store.now();
        self.stopping = true;
        self.stop_until = now + TimeDelta::milliseconds(i64::try_from(self.shared.config.drain_ms).unwrap_or(i64::MAX));
        self.shards.leave_all(now, &self.shared.config);
        self.touched.extend(self.tenants.keys().copied());
        // Look at once whether something is quiet already.
        self.ticked_at = DateTime::UNIX_EPOCH;
    }

    /// True where nothing of a tenant may start.
    pub(super) fn is_closed(&self, tenant: TenantId) -> bool {
        self.shards.of(tenant).is_none_or(|(_, owned)| owned.is_closed())
    }

    /// Lets what is not slow of a leaving shard go on while that waits for a slow attempt, and gathers it in once that has ended.
    pub(super) fn hold_open(&mut self, now: DateTime<Utc>) {
        let slow =
            self.tenants.iter().filter(|(_, held)| held.tenant.slow() > 0).map(|(id, _)| shard_of(*id)).collect();
        let changed = self.shards.hold_open(&slow, now);
        self.touched.extend(self.tenants.keys().filter(|id| changed.contains(&shard_of(**id))));
    }

    /// Gives back the shards that are leaving: cleanly where they are quiet, and anyway where their time is up.
    pub(super) fn give_back(&mut self, now: DateTime<Utc>) {
        if self.releasing {
            return;
        }
        let all = |is: fn(&Held) -> bool| -> HashSet<i32> {
            self.tenants.iter().filter(|(_, held)| is(held)).map(|(id, _)| shard_of(*id)).collect()
        };
        let (busy, moving) = (all(|held| !held.is_quiet()), all(|held| held.tenant.is_moving()));
        let (mut clean, mut unclean) = (Vec::new(), Vec::new());
        for (shard, owned) in self.shards.leaving() {
            if owned.left_unclean {
                // Its tenants are forgotten, so it looks quiet; what ran then was cut off, and may have been made all the same.
                unclean.push((shard, owned.token));
            } else if !busy.contains(&shard) {
                clean.push((shard, owned.token));
            } else if owned.is_overdue(!moving.contains(&shard), now) {
                unclean.push((shard, owned.token));
            }
        }
        let (shards, handover) = if clean.is_empty() { (unclean, Handover::Unclean) } else { (clean, Handover::Clean) };
        if shards.is_empty() {
            return;
        }
        self.releasing = true;
        // Nothing more of them may start or settle here: a settle that is under way is fenced by the new owner's claim.
        for (shard, _) in &shards {
            if handover == Handover::Unclean {
                self.shards.leave_unclean(*shard);
            }
            self.forget_shard(*shard);
        }
        let given = shards.clone();
        let release =
            async move |shared: Arc<Shared>| shared.parts.store.release_shards(shared.replica, &given, handover).await;
        spawn(&self.shared, release, move |result| Input::Released { shards, result });
    }

    /// True where everything is settled, or where the time for it is up.
    pub(super) fn is_stopped(&self, now: DateTime<Utc>) -> bool {
        now >= self.stop_until || self.tenants.values().all(Held::is_quiet)
    }

    pub(super) async fn finish(&mut self) {
        let store = &self.shared.parts.store;
        let busy: HashSet<i32> =
            self.tenants.iter().filter(|(_, held)| !held.is_quiet()).map(|(id, _)| shard_of(*id)).collect();
        let quiet: Vec<(i32, i64)> = self
            .shards
            .leaving()
            .filter(|(shard, owned)| !owned.left_unclean && !busy.contains(shard))
            .map(|(shard, owned)| (shard, owned.token))
            .collect();
        let left = self.shards.leaving().count() - quiet.len();
        let leave = async {
            store.release_shards(self.shared.replica, &quiet, Handover::Clean).await?;
            store.leave(self.shared.replica).await
        };
        // Bounded: a database that is away must not hold up the stop; the leases end by themselves.
        match tokio::time::timeout(Duration::from_secs(2), leave).await {
            Ok(Ok(())) => {
                self.given_back = (self.given_back.0 + quiet.len(), self.given_back.1 + left);
                let (clean, unclean) = self.given_back;
                tracing::info!(clean, unclean, "gave the dispatch shards back");
            }
            Ok(Err(error)) => tracing::warn!(%error, "the dispatch shards could not be given back; their leases end"),
            Err(_) => tracing::warn!("giving the dispatch shards back took too long; their leases end"),
        }
    }
}
