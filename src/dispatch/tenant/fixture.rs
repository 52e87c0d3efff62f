//! What tests step the state machine with: no store, no clock, no listener.

use super::*;
use crate::dispatch::run::DuePage;
use crate::domain::event::{Data, Event, Lineage, LogEntry};
use crate::domain::event_type::EventTypeName;
use crate::domain::ids::EventId;
use crate::store::dispatch::DeferredRow;
use uuid::Uuid;

/// Attempts that may still start.
pub const FREE: usize = 1_000;

pub fn at(millis: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(1_800_000_000_000 + millis).expect("a time")
}

pub fn config() -> Config {
    Config { queue_max: 8, window_max: 16, page_max: 100, ..Config::default() }
}

pub fn tenant() -> Tenant {
    tenant_after(&[])
}

pub fn tenant_after(unclean_ends: &[DateTime<Utc>]) -> Tenant {
    let head = Head { tenant: TenantId(Uuid::from_u128(1)), position: 0, registry_version: 1, deferred_version: 0 };
    let cursor = LogPlace { after: 0, day: NaiveDate::default() };
    let mut tenant = Tenant::new(
        &ClaimedTenant { head, cursor, token: 7, unclean_ends: unclean_ends.into() },
        Memory::new(usize::MAX),
    );
    // As where the registry knows of no ordering key.
    tenant.ordered = false;
    tenant
}

pub fn entry(position: Position, matched: &[SubscriptionNo]) -> Arc<LogEntry> {
    let id = EventId(Uuid::from_u128(u128::try_from(position).expect("positive")));
    let event = Event {
        id,
        event_type: EventTypeName::parse("CUSTOM_T").expect("a name"),
        schema_version: 0,
        source: "/test".to_owned(),
        subject: None,
        time: at(0),
        content_type: None,
        extensions: Vec::new(),
        data: Data::None,
        lineage: Lineage::root(id),
    };
    Arc::new(LogEntry {
        position,
        committed_at: at(position),
        event: Arc::new(event),
        matched: matched.into(),
        refused: Arc::from([]),
    })
}

pub fn listener(max_attempts: i32, max_in_flight: i32) -> Listener {
    let second = Duration::from_secs(1);
    let policy = DeliveryPolicy::new(max_attempts, second, second, second, max_in_flight).expect("within bounds");
    Listener { state: State::Active, version: 1, policy, call: None }
}

#[expect(clippy::unnecessary_wraps, reason = "stands for the registry, which may not know a number")]
pub fn active(_: SubscriptionNo) -> Option<Listener> {
    Some(listener(3, 2))
}

pub fn hear(tenant: &mut Tenant, entries: &[Arc<LogEntry>]) {
    tenant.hear_committed(entries, at(1_000), &config());
}

pub fn start(tenant: &mut Tenant) -> Option<Start> {
    start_with(tenant, active)
}

pub fn start_with(tenant: &mut Tenant, look_up: impl Fn(SubscriptionNo) -> Option<Listener>) -> Option<Start> {
    match tenant.next(at(1_000), FREE, &config(), look_up) {
        Next::Start(start) => Some(start),
        Next::Unsure | Next::Crowded(_) | Next::Nothing => None,
    }
}

pub fn end(tenant: &mut Tenant, start: &Start, class: OutcomeClass) {
    let outcome = Outcome { class, status_code: 0, retry_after: None, excerpt: None, error: None };
    let ended = Ended { started_at: at(1_000), duration: Duration::from_millis(1), outcome };
    tenant.ended(start.key, ended, at(1_001), 0.5);
}

pub fn place(start: &Start) -> (Position, SubscriptionNo) {
    (start.delivery.event.entry().position, start.delivery.invocation.subscription_no)
}

pub fn reload(tenant: &mut Tenant) {
    let number = tenant.begin_reload();
    tenant.reloaded(number);
}

/// Writes what there is, as a settle that succeeds.
pub fn settle(tenant: &mut Tenant) -> Vec<Settled> {
    let Some(batch) = tenant.cut() else { return Vec::new() };
    tenant.settled(&batch);
    batch.changes
}

pub fn row(position: Position, due_at: DateTime<Utc>) -> DeferredRow {
    DeferredRow { position, day: at(position).date_naive(), attempt: 0, attempt_base: 0, due_at, ordering_key: None }
}

pub fn events(positions: impl IntoIterator<Item = Position>) -> HashMap<Position, Arc<LogEntry>> {
    positions.into_iter().map(|position| (position, entry(position, &[1]))).collect()
}

pub fn take_rows(
    tenant: &mut Tenant,
    no: SubscriptionNo,
    rows: &[DeferredRow],
    events: HashMap<Position, Arc<LogEntry>>,
    at: DateTime<Utc>,
) {
    let more = rows.len() >= config().page_max as usize;
    tenant.due(no, &DuePage { rows: rows.to_vec(), events, at, more, rest: None }, &config());
}

/// An invocation of subscription 1 that waits.
pub fn job(position: Position) -> Job {
    let entry = entry(position, &[1]);
    Job {
        place: Place { position, subscription_no: 1 },
        day: entry.day(),
        event: Arc::new(crate::executor::EncodedEvent::new(entry)),
        in_window: true,
        attempt: 0,
        base: 0,
        kept: Memory::new(usize::MAX).keep(0),
        key: None,
    }
}

/// Deferred rows of a subscription, where these positions are in memory and the log is known as far as the tenant knows it.
pub fn wants(tenant: &Tenant, subscription_no: SubscriptionNo, held: &[Position]) -> WantedDue {
    let (up_to, looked) = (tenant.next_position() - 1, tenant.queues[&subscription_no].looked);
    WantedDue { subscription_no, held: held.to_vec(), up_to, full: Vec::new(), after: None, looked }
}
