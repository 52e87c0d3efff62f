//! What a subscription missed, delivered after all: the pages of the log that a replay goes through.
//!
//! One step of one replay of a tenant at a time, that which is furthest behind. A step reads a page, asks the present filter, and
//! defers what fires, and refuses on the record what the subscription itself has led to; from there on it is work like any other. The
//! engine decides when the next step is due, which bounds the rate. Where a replay before this one was ended early, the range holds events
//! of the time in between: what fired then, or was refused, is left alone.
//!
//! A replay goes on only where little of its subscription waits, so that a receiver that was away is not met by all of it at once: the
//! engine names those of which much is in memory, the store knows what waits for another attempt. What waits behind another one of its
//! ordering key does not count: it holds up no other key.
//!
//! Where the subscription has an ordering key, what is new of it waits in the database, beyond what the replay has reached, until that
//! is everything: an earlier event of its key may be among what is not read yet.

use super::Config;
use super::run::{self, Input, Life, Shared};
use crate::domain::filter::{Filter, FilterContext};
use crate::domain::ids::SubscriptionNo;
use crate::domain::subscription::{State, Subscription};
use crate::publish::prepare::fires;
use crate::store::StoreError;
use crate::store::event_pages::PageBound;
use crate::store::events::LogPlace;
use crate::store::replays::{Missed, Replay};
use crate::store::settle::Fenced;
use chrono::{DateTime, TimeDelta, Utc};
use std::sync::Arc;

/// Steps that the work of a second is spread over.
const STEPS_PER_SECOND: u32 = 4;
/// Bytes of events that one step reads; the last event may exceed that.
const STEP_BYTES: u64 = 1024 * 1024;
/// Before a look whether a replay that is held may go on.
const HELD: TimeDelta = TimeDelta::seconds(1);
/// Of a subscription, as much may wait as a replay brings in so many seconds.
const AHEAD_SECONDS: u32 = 10;

/// What a step did.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    /// The subscription that something is due of, and since when: invocations, or what has waited for the end of the replay.
    pub due: Option<(SubscriptionNo, DateTime<Utc>)>,
    /// Invocations that it deferred.
    pub deferred: i64,
    /// How long the next one waits.
    pub pause: TimeDelta,
}

/// How many invocations of a subscription may wait where a replay of it goes on.
pub(super) fn ahead_max(config: &Config) -> u32 {
    config.replay_per_second.saturating_mul(AHEAD_SECONDS)
}

/// Makes one step of a replay, of none of the subscriptions that are `busy`. Reports by [`Input::Replayed`]; nothing where there is nothing
/// to replay.
pub(super) fn spawn(shared: &Arc<Shared>, life: Life, busy: Vec<SubscriptionNo>) {
    let work = async move |shared: Arc<Shared>| {
        let _turn = shared.loads.enter_aside(life.tenant).await;
        step(&shared, life, busy).await
    };
    run::spawn(shared, work, move |result| Input::Replayed { life, result });
}

async fn step(shared: &Shared, life: Life, mut busy: Vec<SubscriptionNo>) -> Result<Option<Step>, StoreError> {
    let (store, config) = (&shared.parts.store, &shared.config);
    let idle = |pause| Ok(Some(Step { due: None, deferred: 0, pause }));
    let (replay, found) = loop {
        let Some(replay) = store.replay(life.tenant, &busy, ahead_max(config)).await? else {
            let held = !store.replaying_tenants(&[life.tenant]).await?.is_empty();
            return if held { idle(HELD) } else { Ok(None) };
        };
        // After the replay: the change that began it is in a registry of this version.
        let version = store.head(life.tenant).await?.map_or(0, |head| head.registry_version);
        let registry = shared.parts.registry.refresh(life.tenant, version).await?;
        let found = registry.subscription(replay.subscription_no);
        // A change that has made it inactive meanwhile has ended the replay too: the next step finds that.
        let Some(found) = found.filter(|found| found.subscription.state == State::Active) else {
            return idle(TimeDelta::zero());
        };
        if found.subscription.filter.as_ref().is_none_or(Filter::compiles) {
            break (replay, found);
        }
        // It waits for a release that knows its filter, and the others do not wait for it.
        busy.push(replay.subscription_no);
    };
    let (reached, missed) = look(shared, life, replay, &found.subscription).await?;
    let deferred = i64::try_from(missed.iter().filter(|missed| !missed.looped).count()).unwrap_or_default();
    let at = store.now();
    let fenced = store.continue_replay(life.tenant, life.token, replay, reached, &missed).await?;
    // No more than so many a second are deferred over time.
    let pause = TimeDelta::seconds(deferred) / i32::try_from(config.replay_per_second).unwrap_or(1).max(1);
    let due = (deferred > 0 || reached.after >= replay.up_to).then_some((replay.subscription_no, at));
    Ok((fenced == Fenced::No).then_some(Step { due, deferred, pause }))
}

/// How far a page reaches, and what of it fires.
async fn look(
    shared: &Shared,
    life: Life,
    replay: Replay,
    subscription: &Subscription,
) -> Result<(LogPlace, Vec<Missed>), StoreError> {
    let most = (shared.config.replay_per_second / STEPS_PER_SECOND).clamp(1, shared.config.page_max);
    // A few times as many events, since most may be of another type.
    let bound = PageBound { entries: most.saturating_mul(8).min(shared.config.page_max), bytes: STEP_BYTES };
    let entries = shared.parts.store.read_log_page(life.tenant, replay.done, replay.up_to, bound).await?;
    let mut missed = Vec::new();
    let mut reached = LogPlace { after: replay.up_to, day: replay.done.day };
    for entry in &entries {
        reached = LogPlace { after: entry.position, day: entry.day() };
        let decided = |nos: &[SubscriptionNo]| nos.contains(&subscription.no);
        if entry.event.event_type == subscription.event_type && !decided(&entry.matched) && !decided(&entry.refused) {
            let context = FilterContext::new(&entry.event);
            if fires(subscription, &context, entry.event.schema_version)? {
                // Its own consequence: refused on the record, as it would have been when it happened.
                let looped = entry.event.lineage.subscriptions.contains(&subscription.no);
                let ordering = subscription.policy.ordering();
                // A key that cannot be evaluated is none: the event is in no order.
                let key = ordering.and_then(|ordering| ordering.key.ordering_key(&context).ok().flatten());
                missed.push(Missed { position: entry.position, day: entry.day(), key, looped });
            }
        }
        if missed.len() >= most as usize {
            break;
        }
        tokio::task::yield_now().await;
    }
    Ok((reached, missed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::tests::{NAME, World};
    use crate::store::audit::Principal;
    use crate::store::dispatch::{DeferredRow, Place};
    use crate::store::leases::shard_of;
    use crate::store::request_ids::Repeatable;
    use crate::store::settle::{Fate, Settled, Tried};
    use crate::store::subscriptions::{self, Selector, StateChange};
    use std::time::Duration;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_replay_waits_for_its_receiver_and_lets_another_one_pass() {
        let world = World::new().await;
        let (store, by) = (&world.store, Principal::server(world.tenant));
        let subscribed = [world.subscribe("shop", NAME, "/one").await, world.subscribe("shop", NAME, "/two").await];
        let change = async |change: StateChange| {
            for (id, _) in subscribed {
                let (which, request) = (Selector::Id(id), Repeatable::default());
                store.change_subscription_state(by.clone(), which, None, change, 100, request).await.expect("changed");
            }
            world.parts.registry.reload(world.tenant).await.expect("readable");
        };
        change(StateChange::Disable).await;
        world.publish(30).await;
        change(StateChange::Enable(subscriptions::Missed::Replayed)).await;
        let (token, [one, two]) = (1, subscribed.map(|(_, no)| no));
        store.claim_tenant(world.tenant, shard_of(world.tenant), token).await.expect("answered").expect("claimed");
        // One a step, and ten at most that wait for another attempt.
        let (shared, _inputs) = world.shared(Config { replay_per_second: 1, ..Config::default() });
        let life = Life { tenant: world.tenant, token };
        let next = async |busy: &[SubscriptionNo]| step(&shared, life, busy.to_vec()).await.expect("answered");
        let due = async |busy: &[SubscriptionNo]| next(busy).await.and_then(|step| step.due).map(|(no, _)| no);

        assert_eq!((due(&[]).await, due(&[]).await), (Some(one), Some(two)), "the one that is furthest behind");
        assert_eq!((due(&[one]).await, due(&[one]).await), (Some(two), Some(two)));
        let held = next(&[one, two]).await.expect("a replay is under way");
        assert!(held.due.is_none() && held.pause > TimeDelta::zero(), "{held:?}");
        for _ in 0..9 {
            assert_eq!(due(&[two]).await, Some(one));
        }
        // Each of the ten is settled so.
        let settle = async |fate: Fate| {
            let rows = store.deferred(world.tenant, one, &[], 100).await.expect("readable");
            let change = |row: &DeferredRow| Settled {
                place: Place { position: row.position, subscription_no: one },
                day: row.day,
                deferred: true,
                key: None,
                tried: Some(Tried { attempt: 1, started_at: store.now(), duration: Duration::ZERO, outcome: None }),
                fate,
            };
            let (changes, cursor): (Vec<_>, _) =
                (rows.iter().map(change).collect(), LogPlace { after: 0, day: rows[0].day });
            assert_eq!(changes.len(), 10);
            store.settle(world.tenant, token, cursor, &changes).await.expect("answered");
        };
        settle(Fate::Deferred { attempt: 1, base: 0, due_at: store.now() + TimeDelta::hours(1) }).await;
        assert_eq!(due(&[]).await, Some(two), "ten of the other one wait for another attempt");
        assert_eq!(due(&[two]).await, None);
        settle(Fate::Succeeded).await;
        assert_eq!(due(&[two]).await, Some(one));
        let mut left = 0;
        while let Some(step) = next(&[]).await {
            left += step.deferred;
        }
        assert_eq!(left, 60 - 15, "everything else, and nothing twice");
        world.end().await;
    }
}
