//! Reads for the engine: claims, log pages, deferred work, callers' changes, registries. Each load reports once.

use super::run::{ClaimedShard, DuePage, Input, Life, Rest, Review, Shared, caught, spawn};
use super::tenant::{InOrder, LogPage, WantedDue};
use crate::domain::event::LogEntry;
use crate::domain::filter::{FilterContext, OrderingKey};
use crate::domain::ids::{Position, TenantId};
use crate::domain::subscription::State;
use crate::planted::{self, Defect};
use crate::publish::registry::TenantRegistry;
use crate::store::dispatch::{OrderedPage, Place};
use crate::store::event_pages::PageBound;
use crate::store::events::LogPlace;
use crate::store::leases::ShardLease;
use crate::store::log_tail::LogTail;
use crate::store::quotas::BacklogStanding;
use crate::store::{Store, StoreError};
use chrono::NaiveDate;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use uuid::Uuid;

/// Bytes of events that one load brings; the last event of it may exceed that.
const PAGE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Events of deferred rows that are read by one statement.
const EVENTS_AT_A_TIME: usize = 64;
/// Deferred rows that are loaded at a time while memory is scarce.
const DUE_WHEN_SCARCE: u32 = 16;

/// Becomes the writer of every tenant of a leased shard.
pub(super) fn claim_shards(shared: &Arc<Shared>, leases: Vec<ShardLease>) {
    let shared = shared.clone();
    tokio::spawn(async move {
        for lease in leases {
            let claim = async {
                let tenants = shared.parts.store.claim_shard(&lease).await?;
                complete(&shared.parts.store, tenants).await
            };
            let result = caught(claim).await;
            shared.tell(Input::Claimed { shard: lease.shard, token: lease.token, tenant: None, result });
        }
    });
}

/// Becomes the writer of one tenant, new in a leased shard.
pub(super) fn claim_tenant(shared: &Arc<Shared>, tenant: TenantId, shard: i32, token: i64) {
    let claim = async move |shared: Arc<Shared>| {
        let _turn = shared.loads.enter(tenant).await;
        let claimed = shared.parts.store.claim_tenant(tenant, shard, token).await?;
        complete(&shared.parts.store, claimed.into_iter().collect()).await
    };
    spawn(shared, claim, move |result| Input::Claimed { shard, token, tenant: Some(tenant), result });
}

async fn complete(
    store: &Store,
    tenants: Vec<crate::store::dispatch::ClaimedTenant>,
) -> Result<ClaimedShard, StoreError> {
    let mut claimed = ClaimedShard { tenants, ..ClaimedShard::default() };
    if claimed.tenants.is_empty() {
        return Ok(claimed);
    }
    let ids: Vec<TenantId> = claimed.tenants.iter().map(|tenant| tenant.head.tenant).collect();
    for due in store.due_subscriptions(&ids).await? {
        if due.has_rows {
            claimed.with_rows.insert(due.tenant);
        }
        claimed.due.entry(due.tenant).or_default().push((due.subscription_no, due.due_at));
    }
    for (tenant, row) in store.health(&ids).await? {
        claimed.health.entry(tenant).or_default().push(row);
    }
    for (tenant, rate) in store.rates(&ids).await? {
        claimed.rates.entry(tenant).or_default().push(rate);
    }
    claimed.replaying = store.replaying_tenants(&ids).await?.into_iter().collect();
    claimed.full = store.full_backlogs(&ids).await?;
    claimed.unannounced = store.unannounced_tenants(&ids).await?.into_iter().collect();
    Ok(claimed)
}

/// Small where memory is scarce: most of it goes aside, but a tenant that waits must not wait for another one's listener.
fn page_bytes(shared: &Shared) -> u64 {
    let most = PAGE_BYTES_MAX.min(shared.config.memory_bytes_max / 16) as u64;
    if shared.memory.is_scarce() { most / 16 } else { most }
}

/// Reads a page of the log with what is settled of it.
pub(super) fn page(shared: &Arc<Shared>, life: Life, place: LogPlace, up_to: Position) {
    let read = async move |shared: Arc<Shared>| {
        let _turn = shared.loads.enter(life.tenant).await;
        let bound = PageBound { entries: shared.config.page_max, bytes: page_bytes(&shared) };
        let store = &shared.parts.store;
        // The head after the entries: events are matched and committed at a version that it shows by then.
        let LogTail { entries, not_pending, head } = store.log_tail(life.tenant, place, up_to, bound).await?;
        if entries.is_empty() {
            return Ok((LogPage { entries, not_pending, keys: HashMap::new(), head }, None));
        }
        let version = head.map_or(0, |head| head.registry_version);
        let registry = shared.parts.registry.refresh(life.tenant, version).await?;
        let keys = ordering_keys(&registry, &entries).await;
        Ok((LogPage { entries, not_pending, keys, head }, Some(registry)))
    };
    spawn(shared, read, move |result| Input::Page { life, result });
}

/// Finds the ordering keys of what was committed here. Off the engine: a key may need its event's whole payload parsed.
pub(super) fn keys(shared: &Arc<Shared>, life: Life, entries: Vec<Arc<LogEntry>>) {
    let find = async move |shared: Arc<Shared>| {
        // What was committed here was matched with this very registry.
        let registry = shared.parts.registry.tenant(life.tenant).await?;
        let keys = ordering_keys(&registry, &entries).await;
        Ok((LogPage { entries, not_pending: HashSet::new(), keys, head: None }, Some(registry)))
    };
    spawn(shared, find, move |result| Input::Page { life, result });
}

/// The ordering keys of entries' invocations. A key that cannot be evaluated is none: the event is in no order.
async fn ordering_keys(registry: &TenantRegistry, entries: &[Arc<LogEntry>]) -> HashMap<Place, InOrder> {
    let mut keys = HashMap::new();
    if !registry.has_ordering() || planted::has(Defect::IgnoreOrder) {
        return keys;
    }
    for entry in entries {
        let context = FilterContext::new(&entry.event);
        for no in entry.matched.iter() {
            let Some(found) = registry.subscription(*no) else { continue };
            let Some(ordering) = found.subscription.policy.ordering() else { continue };
            if let Ok(Some(key)) = ordering.key.ordering_key(&context) {
                let place = Place { position: entry.position, subscription_no: *no };
                keys.insert(place, InOrder { key, version: found.subscription.registry_version });
            }
            // A key that is new is compiled first.
            tokio::task::yield_now().await;
        }
        tokio::task::yield_now().await;
    }
    keys
}

/// Reads deferred rows of one subscription with their events.
pub(super) fn due(shared: &Arc<Shared>, life: Life, wanted: WantedDue, registry_version: i64) {
    let WantedDue { subscription_no, held, up_to, full, after, looked } = wanted;
    let read = async move |shared: Arc<Shared>| {
        let _turn = shared.loads.enter_aside(life.tenant).await;
        let page_max = shared.config.page_max;
        let limit = if shared.memory.is_scarce() { page_max.min(DUE_WHEN_SCARCE) } else { page_max };
        let store = &shared.parts.store;
        let registry = shared.parts.registry.refresh(life.tenant, registry_version).await?;
        let found = registry.subscription(subscription_no);
        let active = found.filter(|entry| entry.subscription.state == State::Active);
        let is_active = active.is_some();
        let at = store.now();
        if let Some(entry) = active.filter(|entry| entry.subscription.policy.ordering().is_some()) {
            let blocks = entry.subscription.policy.blocks_on_dead_letter();
            let full: Vec<Uuid> = full.iter().map(|key| key.0).collect();
            let after = after.map(|key| key.0);
            let page = OrderedPage { at, held: &held, up_to, full: &full, after, looked, blocks, limit };
            let found = store.deferred_in_order(life.tenant, subscription_no, page).await?;
            let due = found.rows.len();
            let page = DuePage { rows: found.rows, events: HashMap::new(), at, more: found.more, rest: None };
            let mut page = with_events(&shared, life.tenant, page, due).await?;
            page.rest = Some(Rest {
                after: found.after.map(OrderingKey),
                looked: found.looked && page.rows.len() == due,
                due_at: found.next_due,
                left: found.left,
                beyond: found.beyond.then_some(up_to),
                replayed: found.replayed,
            });
            return Ok(page);
        }
        let mut rows = store.deferred(life.tenant, subscription_no, &held, limit).await?;
        if !is_active {
            // Loaded whole, whatever it waits for, to be cancelled.
            for row in &mut rows {
                row.due_at = row.due_at.min(at);
            }
        }
        let due = rows.partition_point(|row| row.due_at <= at);
        let more = rows.len() >= limit as usize;
        with_events(&shared, life.tenant, DuePage { rows, events: HashMap::new(), at, more, rest: None }, due).await
    };
    spawn(shared, read, move |result| Input::Due { life, subscription_no, result });
}

/// Reads the events of the first `due` rows, in small batches, and leaves the rest of the rows where those are large.
async fn with_events(shared: &Shared, tenant: TenantId, mut page: DuePage, due: usize) -> Result<DuePage, StoreError> {
    let mut bytes_left = page_bytes(shared);
    let (mut read, mut left) = (0, HashSet::new());
    for batch in page.rows[..due].chunks(EVENTS_AT_A_TIME) {
        let mut wanted: Vec<(NaiveDate, Position)> = batch.iter().map(|row| (row.day, row.position)).collect();
        // The events of a batch come in their order. Where none comes, retention has taken those that are left.
        while !wanted.is_empty() && bytes_left > 0 {
            let entries = shared.parts.store.events_at(tenant, &wanted, bytes_left).await?;
            let last = entries.last().map_or(Position::MAX, |last| last.position);
            wanted.retain(|(_, position)| *position > last);
            for entry in entries {
                bytes_left = bytes_left.saturating_sub(u64::try_from(entry.memory_bytes()).unwrap_or(u64::MAX));
                page.events.insert(entry.position, entry);
            }
        }
        read += batch.len();
        left.extend(wanted.into_iter().map(|(_, position)| position));
        if bytes_left == 0 {
            break;
        }
    }
    if read < due || !left.is_empty() {
        page.rows.truncate(read);
        page.rows.retain(|row| !left.contains(&row.position));
        page.more = true;
    }
    Ok(page)
}

/// Looks at what callers have changed: due times, and cancellations of what is in memory.
pub(super) fn review(shared: &Arc<Shared>, life: Life, held: Vec<Place>, cursor: LogPlace) {
    let read = async move |shared: Arc<Shared>| {
        let _turn = shared.loads.enter(life.tenant).await;
        let store = &shared.parts.store;
        // The version first: every change up to it is committed, so the rows read after it show them all.
        let version = store.head(life.tenant).await?.map_or(0, |head| head.deferred_version);
        let due = store.due_subscriptions(&[life.tenant]).await?;
        let any_rows = due.iter().any(|due| due.has_rows);
        let due = due.into_iter().map(|due| (due.subscription_no, due.due_at)).collect();
        let revoked = store.revoked(life.tenant, &held, cursor).await?;
        Ok(Review { version, due, any_rows, revoked })
    };
    spawn(shared, read, move |result| Input::Reviewed { life, result });
}

/// Counts what a tenant has deferred, up to a bound.
pub(super) fn count(shared: &Arc<Shared>, life: Life, most: i64) {
    let count = async move |shared: Arc<Shared>| {
        let _turn = shared.loads.enter_aside(life.tenant).await;
        shared.parts.store.deferred_count(life.tenant, most).await
    };
    spawn(shared, count, move |result| Input::Counted { life, result });
}

/// Says to every publisher whether the tenant's backlog is full.
pub(super) fn mark(shared: &Arc<Shared>, life: Life, standing: BacklogStanding) {
    let mark = async move |shared: Arc<Shared>| {
        let marked = shared.parts.store.mark_backlog(life.tenant, life.token, standing).await;
        marked.map(|(_, change)| change)
    };
    spawn(shared, mark, move |result| Input::Marked { life, standing, result });
}

/// Brings the tenant's registry to `at_least`, or to the newest version where that is none.
pub(super) fn registry(shared: &Arc<Shared>, life: Life, at_least: Option<i64>) {
    let bring = async move |shared: Arc<Shared>| {
        let _turn = shared.loads.enter(life.tenant).await;
        let registry = &shared.parts.registry;
        match at_least {
            Some(version) => registry.refresh(life.tenant, version).await,
            None => registry.reload(life.tenant).await,
        }
    };
    spawn(shared, bring, move |result| Input::Registry { life, result });
}
