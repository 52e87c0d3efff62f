//! What a subscription missed, delivered after all: the pages of the log that a replay goes through.
//!
//! One step of one replay of a tenant at a time, that which is furthest behind. A step reads a page, asks the present filter, and
//! defers what fires, and refuses on the record what the subscription itself has led to; from there on it is work like any other. The
//! engine decides when the next step is due, which bounds the rate. Where a replay before this one was ended early, the range holds events
//! of the time in between: what fired then, or was refused, is left alone.
//!
//! Where the subscription has an ordering key, what is new of it waits in the database, beyond what the replay has reached, until that
//! is everything: an earlier event of its key may be among what is not read yet.

use super::run::{self, Input, Life, Shared};
use crate::domain::filter::FilterContext;
use crate::domain::ids::SubscriptionNo;
use crate::domain::subscription::{State, Subscription};
use crate::publish::prepare::fires;
use crate::store::StoreError;
use crate::store::event_pages::PageBound;
use crate::store::events::LogPlace;
use crate::store::replays::{Missed, Replay};
use crate::store::settle::Fenced;
use chrono::TimeDelta;
use std::sync::Arc;

/// Steps that the work of a second is spread over.
const STEPS_PER_SECOND: u32 = 4;
/// Bytes of events that one step reads; the last event may exceed that.
const STEP_BYTES: u64 = 1024 * 1024;

/// What a step did.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub subscription_no: SubscriptionNo,
    /// Invocations that it deferred.
    pub deferred: usize,
    /// True where it was the last one: what waited for the replay may go on.
    pub ended: bool,
}

impl Step {
    /// How long the next one waits, so that no more than `per_second` are deferred over time.
    pub fn pause(&self, per_second: u32) -> TimeDelta {
        let millis = self.deferred.saturating_mul(1_000) / usize::try_from(per_second.max(1)).unwrap_or(1);
        TimeDelta::milliseconds(i64::try_from(millis).unwrap_or(1_000))
    }
}

/// Makes one step. Reports by [`Input::Replayed`]; nothing where there is nothing to replay.
pub(super) fn spawn(shared: &Arc<Shared>, life: Life) {
    let work = async move |shared: Arc<Shared>| {
        let _turn = shared.loads.acquire().await;
        step(&shared, life).await
    };
    run::spawn(shared, work, move |result| Input::Replayed { life, result });
}

async fn step(shared: &Shared, life: Life) -> Result<Option<Step>, StoreError> {
    let store = &shared.parts.store;
    let Some(replay) = store.replay(life.tenant).await? else { return Ok(None) };
    // After the replay: the change that began it is in a registry of this version.
    let version = store.head_now(life.tenant).await?.map_or(0, |head| head.registry_version);
    let registry = shared.parts.registry.refresh(life.tenant, version).await?;
    let found = registry.subscription(replay.subscription_no);
    let idle = Step { subscription_no: replay.subscription_no, deferred: 0, ended: false };
    // A change that has made it inactive meanwhile has ended the replay too: the next step finds that.
    let Some(found) = found.filter(|found| found.subscription.state == State::Active) else { return Ok(Some(idle)) };
    let (reached, missed) = look(shared, life, replay, &found.subscription).await?;
    let deferred = missed.iter().filter(|missed| !missed.looped).count();
    let fenced = store.continue_replay(life.tenant, life.token, replay, reached, &missed).await?;
    Ok((fenced == Fenced::No).then_some(Step { deferred, ended: reached.after >= replay.up_to, ..idle }))
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
    let entries = shared.parts.store.next_entries(life.tenant, replay.done, replay.up_to, bound).await?;
    let mut missed = Vec::new();
    let mut reached = LogPlace { after: replay.up_to, day: replay.done.day };
    for entry in &entries {
        reached = LogPlace { after: entry.position, day: entry.day() };
        let decided = |nos: &[SubscriptionNo]| nos.contains(&subscription.no);
        if entry.event.event_type == subscription.event_type && !decided(&entry.matched) && !decided(&entry.refused) {
            let context = FilterContext::new(&entry.event);
            if fires(subscription, &context, entry.event.schema_version) {
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
