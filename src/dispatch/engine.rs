//! The engine: one task that owns the state of every tenant of this replica's shards, so that nothing on the hot path takes a
//! lock. It hears news, results and loads, asks `Tenant` what to do, and starts tasks that do it.
//!
//! It never waits for anything but its inputs, and never touches the store or a listener itself.

mod backlog;
mod held;
mod ownership;
#[cfg(test)]
mod tests;

use super::run::{Input, Life, Shared, spawn_attempt};
use super::shards::Shards;
use super::tenant::{Listener, Next};
use super::turns::Turns;
use super::{Load, announce, load, settle, sweep};
use crate::clock;
use crate::domain::ids::{SubscriptionNo, TenantId};
use crate::feed::News;
use crate::store::settle::Fenced;
use chrono::{DateTime, TimeDelta, Utc};
use held::Held;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;

/// Inputs and news taken at a time.
const GULP: usize = 1_024;
/// Longest sleep: slow attempts, cursors and leases are looked at.
const TICK: Duration = Duration::from_secs(1);
/// Before a load that failed is tried again.
const LOAD_AGAIN: TimeDelta = TimeDelta::seconds(1);
const SWEEP_EVERY: TimeDelta = TimeDelta::hours(1);

pub(super) struct Engine {
    shared: Arc<Shared>,
    load: Arc<Load>,
    shards: Shards,
    tenants: HashMap<TenantId, Held>,
    claiming: HashSet<TenantId>,
    turns: Turns,
    touched: HashSet<TenantId>,
    timers: BinaryHeap<Reverse<(DateTime<Utc>, TenantId)>>,
    running: usize,
    /// Of these, the slow ones that do not count as in flight.
    apart: usize,
    ticked_at: DateTime<Utc>,
    swept_at: Option<DateTime<Utc>>,
    sweeping: bool,
    releasing: bool,
    stopping: bool,
    /// Shards that were given back since it began to stop: those that were quiet, and the others.
    given_back: (usize, usize),
    stop_until: DateTime<Utc>,
}

impl Engine {
    pub fn new(shared: Arc<Shared>, load: Arc<Load>) -> Self {
        Self {
            shared,
            load,
            shards: Shards::default(),
            tenants: HashMap::new(),
            claiming: HashSet::new(),
            turns: Turns::default(),
            touched: HashSet::new(),
            timers: BinaryHeap::new(),
            running: 0,
            apart: 0,
            ticked_at: DateTime::UNIX_EPOCH,
            swept_at: None,
            sweeping: false,
            releasing: false,
            stopping: false,
            given_back: (0, 0),
            stop_until: DateTime::UNIX_EPOCH,
        }
    }

    /// Runs until it has drained.
    pub async fn run(mut self, mut news: mpsc::Receiver<News>, mut inputs: mpsc::UnboundedReceiver<Input>) {
        while let Err(error) = self.shared.parts.store.prepare_shards().await {
            tracing::warn!(%error, "the dispatch shards cannot be prepared; it is tried again");
            tokio::select! {
                () = self.shared.stop.cancelled() => return,
                () = tokio::time::sleep(TICK) => {}
            }
        }
        let stop = self.shared.stop.clone();
        let (mut heard, mut received) = (Vec::with_capacity(GULP), Vec::with_capacity(GULP));
        loop {
            let sleep = self.next_wake();
            // Every arm is cancel-safe: `recv_many` takes nothing unless it completes.
            tokio::select! {
                count = inputs.recv_many(&mut received, GULP) => if count == 0 { break },
                count = news.recv_many(&mut heard, GULP) => if count == 0 { break },
                () = tokio::time::sleep(sleep) => {}
                () = stop.cancelled(), if !self.stopping => self.begin_stop(),
            }
            // What arrived meanwhile on the other side goes with this round.
            while heard.len() < GULP
                && let Ok(item) = news.try_recv()
            {
                heard.push(item);
            }
            while received.len() < GULP
                && let Ok(input) = inputs.try_recv()
            {
                received.push(input);
            }
            let now = self.shared.parts.store.now();
            for item in heard.drain(..) {
                self.hear(&item, now);
            }
            for input in received.drain(..) {
                self.take(input, now);
            }
            self.act(now);
            if self.stopping && self.is_stopped(now) {
                break;
            }
        }
        self.finish().await;
    }

    /// Does what has become due by what was heard and by the time.
    fn act(&mut self, now: DateTime<Utc>) {
        self.look_at_timers(now);
        self.pump(now);
        self.start_attempts(now);
    }

    /// How many attempts may still start.
    fn free(&self) -> usize {
        self.shared.config.in_flight_max.saturating_sub(self.running.saturating_sub(self.apart))
    }

    fn next_wake(&self) -> Duration {
        let Some(Reverse((at, _))) = self.timers.peek() else { return TICK };
        (*at - self.shared.parts.store.now()).to_std().unwrap_or(Duration::ZERO).min(TICK)
    }

    fn touch(&mut self, tenant: TenantId) {
        self.touched.insert(tenant);
    }

    // ------------------------------------------------------------ hearing

    fn hear(&mut self, news: &News, now: DateTime<Utc>) {
        let tenant = match news {
            News::Committed { tenant, .. } => *tenant,
            News::Head(head) => head.tenant,
        };
        let Some(held) = self.tenants.get_mut(&tenant) else {
            self.claim_new(tenant);
            return;
        };
        match news {
            News::Committed { entries, .. } => {
                held.look_at_ordering();
                held.tenant.hear_committed(entries, now, &self.shared.config);
            }
            // Repeated once a second while it is recent: not worth a look where it says nothing new.
            News::Head(head) => {
                if !held.tenant.hear_head(head) {
                    return;
                }
            }
        }
        self.touch(tenant);
    }

    /// A tenant that memory does not hold: a new one, where its shard is ours.
    fn claim_new(&mut self, tenant: TenantId) {
        let Some((shard, owned)) = self.shards.of(tenant) else { return };
        if !owned.is_closed() && self.claiming.insert(tenant) {
            load::claim_tenant(&self.shared, tenant, shard, owned.token);
        }
    }

    fn held(&mut self, life: Life) -> Option<&mut Held> {
        self.tenants.get_mut(&life.tenant).filter(|held| held.tenant.token == life.token)
    }

    fn take(&mut self, input: Input, now: DateTime<Utc>) {
        let shared = self.shared.clone();
        let config = &shared.config;
        let life = match &input {
            Input::Ended { life, .. }
            | Input::Settled { life, .. }
            | Input::Page { life, .. }
            | Input::Due { life, .. }
            | Input::Reviewed { life, .. }
            | Input::Registry { life, .. }
            | Input::Announced { life, .. }
            | Input::Replayed { life, .. }
            | Input::HealthKept { life, .. } => *life,
            _ => return self.take_shards(input, now),
        };
        if matches!(input, Input::Ended { .. }) {
            self.running -= 1;
        }
        // Results for an earlier life of the tenant are dropped: its new owner runs the work again.
        let Some(held) = self.held(life) else { return };
        match input {
            Input::Ended { key, ended, .. } => {
                let apart = held.tenant.apart();
                held.tenant.ended(key, ended, now, clock::jitter());
                let apart = apart - held.tenant.apart();
                let failing = std::mem::take(&mut held.tenant.failing);
                self.apart -= apart;
                for failing in failing {
                    announce::disable_failing(&shared, life.tenant, failing);
                }
            }
            Input::Settled { batch, fenced: Fenced::No, .. } => {
                held.tenant.settled(&batch);
                shared.parts.feed.note_settled();
            }
            Input::Settled { fenced: Fenced::Yes, .. } => {
                tracing::info!(tenant = %life.tenant, "another replica dispatches this tenant now");
                self.forget(life.tenant);
                return;
            }
            Input::Page { result: Ok((page, registry)), .. } => {
                // Without this look, what was committed here would need one for every batch.
                held.registry = held.registry.take().or(registry);
                held.look_at_ordering();
                let reached = held.tenant.page(&page, now, config);
                if !reached {
                    tracing::debug!(tenant = %life.tenant, "the log ends before its head as heard; it is read again");
                    held.not_before = now + LOAD_AGAIN;
                }
            }
            Input::Page { result: Err(error), .. } => {
                held.tenant.page_failed();
                held.put_off(&error, now, "the log could not be read");
            }
            Input::Due { subscription_no, result: Ok(page), .. } => {
                held.tenant.due(subscription_no, &page, config);
            }
            Input::Due { subscription_no, result: Err(error), .. } => {
                // Its own time: what cannot be read of one listener must not hold up the others.
                held.tenant.due_failed(subscription_no, now + LOAD_AGAIN);
                tracing::warn!(tenant = %life.tenant, subscription_no, %error, "deferred invocations could not be read; it is tried again");
            }
            Input::Reviewed { result: Ok(review), .. } => {
                held.reviewing = false;
                held.loads_first = true;
                held.reviewed = review.version;
                held.tenant.revoke(&review.revoked);
                held.tenant.due_summary(&review.due);
                if review.any_rows {
                    held.backlog.count_again();
                } else {
                    held.tenant.rows = 0;
                }
            }
            Input::Reviewed { result: Err(error), .. } => {
                held.reviewing = false;
                held.loads_first = true;
                held.put_off(&error, now, "callers' changes could not be read");
            }
            Input::Registry { result: Ok(registry), .. } => {
                held.refreshing = false;
                if let Some(reload) = held.reload.take() {
                    held.tenant.reloaded(reload);
                }
                // What the head promised but the registry has not reached is asked for again by the next pump.
                held.registry = Some(registry);
            }
            Input::Registry { result: Err(error), .. } => {
                held.refreshing = false;
                held.unsure |= held.reload.take().is_some();
                held.put_off(&error, now, "the registry could not be read");
            }
            Input::Replayed { result, .. } => {
                held.replaying = false;
                match result {
                    Ok(None) => {}
                    Ok(Some(step)) => {
                        if let Some(due) = step.due {
                            held.tenant.due_summary(&[due]);
                            held.tenant.rows += step.deferred;
                        }
                        held.tenant.replay = true;
                        held.replay_at = now + step.pause;
                    }
                    Err(error) => {
                        tracing::warn!(tenant = %life.tenant, %error, "a replay could not go on; it is tried again");
                        held.tenant.replay = true;
                        held.replay_at = now + LOAD_AGAIN;
                        // It may have been written all the same: a review finds what is due by it.
                        held.reviewed = -1;
                    }
                }
                let replay_at = held.replay_at;
                self.timers.push(Reverse((replay_at, life.tenant)));
            }
            Input::HealthKept { mut notes, result, .. } => {
                held.keeping = false;
                if let Err(error) = result {
                    notes.append(&mut held.tenant.notes);
                    held.tenant.notes = notes;
                    held.keep_at = now + LOAD_AGAIN;
                    tracing::warn!(tenant = %life.tenant, %error, "how receivers do could not be written; it is tried again");
                    self.timers.push(Reverse((now + LOAD_AGAIN, life.tenant)));
                }
            }
            Input::Announced { result, .. } => {
                held.announcing = false;
                if let Err(error) = result {
                    held.tenant.announce = true;
                    // Its own time: what operators hear late must not hold up deliveries.
                    held.announce_at = now + LOAD_AGAIN;
                    tracing::warn!(tenant = %life.tenant, %error, "announcing failed; it is tried again");
                    self.timers.push(Reverse((now + LOAD_AGAIN, life.tenant)));
                }
            }
            _ => {}
        }
        self.touch(life.tenant);
    }

    // ------------------------------------------------------------ doing

    fn look_at_timers(&mut self, now: DateTime<Utc>) {
        while let Some(Reverse((at, tenant))) = self.timers.peek().copied() {
            if at > now {
                break;
            }
            self.timers.pop();
            self.touch(tenant);
        }
        if now - self.ticked_at < TimeDelta::from_std(TICK).unwrap_or(TimeDelta::seconds(1)) {
            return;
        }
        self.ticked_at = now;
        let slow_after = TimeDelta::milliseconds(i64::try_from(self.shared.config.slow_after_ms).unwrap_or(i64::MAX));
        for (id, held) in &mut self.tenants {
            let apart = held.tenant.apart();
            let places = self.shared.config.slow_in_flight_max.saturating_sub(self.apart);
            let more = held.tenant.mark_slow(now - slow_after, places);
            self.apart += held.tenant.apart() - apart;
            if held.tenant.offer_held_back() || more {
                self.touched.insert(*id);
            }
            if held.tenant.cursor_moved() {
                held.cursor_too = true;
                self.touched.insert(*id);
            }
        }
        self.look_at_backlogs(now);
        self.hold_open(now);
        self.give_back(now);
        if self.shards.get(0).is_some() && !self.sweeping && self.swept_at.is_none_or(|at| now - at > SWEEP_EVERY) {
            self.swept_at = Some(now);
            self.sweeping = true;
            sweep::spawn(&self.shared);
        }
        self.load.shards.store(self.shards.len(), Ordering::Relaxed);
        self.load.tenants.store(self.tenants.len(), Ordering::Relaxed);
        self.load.running.store(self.running, Ordering::Relaxed);
        self.load.memory_bytes.store(self.shared.memory.bytes(), Ordering::Relaxed);
        self.load.lag.store(self.tenants.values().map(|held| held.tenant.lag()).sum(), Ordering::Relaxed);
    }

    /// Asks for what the touched tenants want, and settles what they have.
    fn pump(&mut self, now: DateTime<Utc>) {
        let touched: Vec<TenantId> = self.touched.drain().collect();
        for id in touched {
            self.pump_tenant(id, now);
        }
    }

    fn pump_tenant(&mut self, id: TenantId, now: DateTime<Utc>) {
        let shared = &self.shared;
        let config = &shared.config;
        let closed = self.is_closed(id);
        let Some(held) = self.tenants.get_mut(&id) else { return };
        let life = Life { tenant: id, token: held.tenant.token };
        let mut wake = None;
        held.keep_health(shared, life, now);
        held.tenant.resume(now);
        if !closed {
            if now < held.not_before {
                wake = Some(held.not_before);
            } else {
                held.load(shared, life, now);
                wake = held.tenant.next_due.filter(|due| *due > now);
            }
            wake = [wake, held.tenant.next_resume()].into_iter().flatten().min();
            if held.tenant.has_ready() && held.is_current() && !held.in_turn {
                held.in_turn = true;
                self.turns.add(id);
            }
        }
        if held.tenant.has_changes() || (held.cursor_too || closed) && held.tenant.cursor_moved() {
            if now < held.settle_at && !closed {
                wake = Some(wake.map_or(held.settle_at, |at| at.min(held.settle_at)));
            } else if let Some(batch) = held.tenant.cut() {
                held.cursor_too = false;
                held.settle_at =
                    now + TimeDelta::milliseconds(i64::try_from(config.settle_gather_ms).unwrap_or(i64::MAX));
                settle::spawn(shared, life, batch);
            }
        }
        if let Some(at) = wake.filter(|at| held.armed.is_none_or(|armed| armed <= now || *at < armed)) {
            held.armed = Some(at);
            self.timers.push(Reverse((at, id)));
        }
    }

    fn start_attempts(&mut self, now: DateTime<Utc>) {
        if !self.shards.is_leased(now) {
            return;
        }
        loop {
            let mut free = self.free();
            let Some((id, budget)) = (free > 0).then(|| self.turns.next(free)).flatten() else { return };
            let (closed, leaving) =
                self.shards.of(id).map_or((true, true), |(_, owned)| (owned.is_closed(), owned.is_leaving()));
            let Some(held) = self.tenants.get_mut(&id) else { continue };
            held.in_turn = false;
            held.tenant.leaving = leaving;
            let Some(registry) = held.registry.clone().filter(|_| held.is_current() && !closed) else { continue };
            let life = Life { tenant: id, token: held.tenant.token };
            let look_up = |no: SubscriptionNo| {
                registry.subscription(no).map(|entry| Listener {
                    state: entry.subscription.state,
                    version: entry.subscription.registry_version,
                    policy: entry.subscription.policy.clone(),
                    call: entry.webhook_call(now),
                })
            };
            // As the last pump has left it.
            let (had_changes, was_due) = (held.tenant.has_changes(), held.tenant.next_due);
            let (mut nothing, mut left) = (false, budget);
            while left > 0 && free > 0 {
                match held.tenant.next(now, free, &self.shared.config, look_up) {
                    Next::Start(start) => {
                        self.running += 1;
                        free -= 1;
                        left -= start.cost;
                        spawn_attempt(&self.shared, life, &held.over, start);
                    }
                    Next::Unsure => {
                        // The next pump reloads, at once or when the last failure allows it; nothing starts before that.
                        held.unsure = true;
                        self.timers.push(Reverse((now.max(held.not_before), id)));
                        nothing = true;
                        break;
                    }
                    Next::Crowded(in_flight) => {
                        self.turns.crowded(id, in_flight);
                        nothing = true;
                        break;
                    }
                    Next::Nothing => {
                        nothing = true;
                        break;
                    }
                }
            }
            if !nothing {
                held.in_turn = true;
                self.turns.again(id, left);
            }
            // What must wait, of a tenant that nothing else wakes up.
            if let Some(at) =
                held.tenant.next_resume().filter(|at| held.armed.is_none_or(|armed| armed <= now || *at < armed))
            {
                held.armed = Some(at);
                self.timers.push(Reverse((at, id)));
            }
            // Cancelled work, a drained queue: there is something new to settle or to load. What is not new waits for an answer, or for a
            // timer that is set.
            let due = held.tenant.next_due.filter(|due| *due <= now);
            if held.tenant.has_changes() && !had_changes || due.is_some() && due != was_due {
                self.timers.push(Reverse((now, id)));
            }
        }
    }
}
