//! The whole dispatcher against a real Postgres and a real receiver: publish, run, settle, and what callers read and change.

mod budgets;
mod changes;
mod shards;

use super::{Config, Dispatch, Parts, run};
use crate::dev::{PrivatePostgres, Search};
use crate::domain::catalogue::Catalogue;
use crate::domain::event::LogEntry;
use crate::domain::event_type::{EventTypeName, Phase};
use crate::domain::ids::{InvocationId, ReplicaId, SubscriptionId, SubscriptionNo, TenantId};
use crate::domain::invocation::{CancelReason, Invocation, Outcome, OutcomeClass, State};
use crate::domain::memory::Memory;
use crate::domain::retry::DeliveryPolicy;
use crate::domain::subscription::Target;
use crate::domain::webhook::{SigningSecret, WebhookMode, WebhookTarget, WebhookUri};
use crate::executor::Executor;
use crate::feed::{Feed, News};
use crate::publish::registry::Registry;
use crate::publish::writer::{Writer, WriterTasks};
use crate::store::audit::Principal;
use crate::store::dispatch::Place;
use crate::store::event_types::{EventTypeQuota, NewEventType};
use crate::store::events::LogPlace;
use crate::store::invocation_changes::InvocationChange;
use crate::store::invocations::InvocationFilter;
use crate::store::leases::{Handover, ShardLease, shard_of};
use crate::store::notify::Hint;
use crate::store::request_ids::{Once, Repeatable};
use crate::store::secrets::Keyring;
use crate::store::settle::{Fate, Fenced, Settled, Tried};
use crate::store::subscriptions::{NewSubscription, SubscriptionQuota};
use crate::store::{Store, connect};
use crate::{clock, executor, publish};
use axum::extract::State as Shared;
use axum::http::{HeaderMap, StatusCode};
use chrono::{NaiveDate, TimeDelta};
use serde_json::json;
use sqlx::Connection as _;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

pub(super) const NAME: &str = "CUSTOM_DISPATCHED";

/// What the receiver has seen and how it answers, by path.
#[derive(Default)]
struct Receiver {
    calls: Mutex<HashMap<(String, String), u32>>,
    arrived: Notify,
    healed: AtomicBool,
    hang: Notify,
}

impl Receiver {
    fn calls(&self, path: &str) -> Vec<u32> {
        let calls = self.calls.lock().expect("not poisoned");
        calls.iter().filter(|((at, _), _)| at == path).map(|(_, count)| *count).collect()
    }
}

async fn answer(Shared(receiver): Shared<Arc<Receiver>>, uri: axum::http::Uri, headers: HeaderMap) -> StatusCode {
    let id = headers["webhook-id"].to_str().expect("ASCII").to_owned();
    let path = uri.path().to_owned();
    let count = {
        let mut calls = receiver.calls.lock().expect("not poisoned");
        let count = calls.entry((path.clone(), id)).or_default();
        *count += 1;
        *count
    };
    receiver.arrived.notify_waiters();
    match path.as_str() {
        "/flaky" | "/third" if count == 1 => StatusCode::INTERNAL_SERVER_ERROR,
        "/broken" if !receiver.healed.load(Ordering::Relaxed) => StatusCode::BAD_REQUEST,
        "/gone" => StatusCode::GONE,
        "/third" if count == 2 => {
            receiver.hang.notified().await;
            StatusCode::INTERNAL_SERVER_ERROR
        }
        "/hang" if !receiver.healed.load(Ordering::Relaxed) => {
            receiver.hang.notified().await;
            StatusCode::OK
        }
        _ => StatusCode::OK,
    }
}

pub(super) struct World {
    postgres: PrivatePostgres,
    pub store: Store,
    pub tenant: TenantId,
    pub parts: Parts,
    _writer: WriterTasks,
    keyring: Arc<Keyring>,
    receiver: Arc<Receiver>,
    port: u16,
}

impl World {
    pub async fn new() -> Self {
        Self::publishing(publish::Config::default()).await
    }

    /// With these bounds of publishing.
    async fn publishing(bounds: publish::Config) -> Self {
        let path = std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
        let postgres = PrivatePostgres::throwaway(&Search::system(path, None)).await.expect("a private Postgres");
        let database = crate::store::tests::Database::config(&postgres.server_url());
        let database = connect::Config { migrate_url: Some(postgres.url().into()), ..database };
        connect::migrate(&database, &[]).await.expect("migrations apply");
        let store = connect::open(&database).await.expect("Postgres answers");
        super::sweep::run_once(&store, &Config::default()).await.expect("housekeeping");
        let tenant = store.create_tenant("test".into(), "acme".into(), "Acme".into(), Repeatable::default()).await;
        let tenant = tenant.expect("a tenant").and_then(Once::made).expect("a new slug").id;
        let by = Principal::server(tenant);
        store.create_app(by.clone(), "shop".into(), "Shop".into(), Repeatable::default()).await.expect("an app");
        store.create_app(by.clone(), "other".into(), "Other".into(), Repeatable::default()).await.expect("an app");
        let new = NewEventType {
            name: EventTypeName::parse(NAME).expect("a name"),
            phase: Phase::Post,
            display_name: String::new(),
            description: String::new(),
            schema: None,
            compatibility: crate::domain::schema::compatibility::Compatibility::None,
        };
        let quota = EventTypeQuota { event_types: 10, deleted_event_types: 10, schema_versions: 10 };
        store.create_event_type(by, new, quota, Repeatable::default()).await.expect("an event type");

        let keyring = Arc::new(Keyring::new(vec![("k1".to_owned(), [7; 32])]).expect("a keyring"));
        let feed = Feed::default();
        let registry = Registry::new(store.clone(), keyring.clone(), Arc::new(Catalogue::builtin()), 100, 1 << 20);
        let (writer, tasks) = Writer::start(store.clone(), registry.clone(), feed.clone(), bounds);
        let settings = executor::Config {
            allow_http: true,
            allow_private_ranges: vec!["127.0.0.0/8".parse().expect("a range")],
            ..executor::Config::default()
        };
        let executor = Executor::new(&settings).expect("an executor");
        let receiver = Arc::<Receiver>::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let routes = axum::Router::new().fallback(answer).with_state(receiver.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        let parts = Parts { store: store.clone(), registry, writer, executor, feed };
        Self { postgres, store, tenant, parts, _writer: tasks, keyring, receiver, port }
    }

    /// What tasks of a dispatcher share, and what they tell its engine.
    pub fn shared(&self, config: Config) -> (Arc<run::Shared>, mpsc::UnboundedReceiver<run::Input>) {
        let (inputs, received) = mpsc::unbounded_channel();
        let (parts, replica) = (self.parts.clone(), ReplicaId(clock::new_uuid()));
        let (loads, memory) = (run::Loads::new(config.loads_max), Memory::new(config.memory_bytes_max));
        let stop = CancellationToken::new();
        (Arc::new(run::Shared { parts, config, replica, inputs, stop, memory, loads }), received)
    }

    fn dispatch(&self) -> Dispatch {
        let config = Config { poll_ms: 50, lease_ms: 1_000, drain_ms: 300, ..Config::default() };
        Dispatch::start(self.parts.clone(), config)
    }

    pub async fn subscribe(&self, app: &str, event_type: &str, path: &str) -> (SubscriptionId, SubscriptionNo) {
        let app = self.store.app_by_slug(self.tenant, app).await.expect("readable").expect("exists").id;
        let (id, secret_id) = (SubscriptionId(clock::new_uuid()), clock::new_uuid());
        let secret = SigningSecret::from_bytes(vec![1; 32]).expect("long enough");
        let uri = format!("http://127.0.0.1:{}{path}", self.port);
        let millisecond = Duration::from_millis(1);
        let new = NewSubscription {
            id,
            app,
            event_type: EventTypeName::parse(event_type).expect("a name"),
            display_name: String::new(),
            filter: None,
            schema_version: 0,
            target: Target::Webhook(WebhookTarget {
                uri: WebhookUri::parse(&uri).expect("a URI"),
                mode: WebhookMode::Structured,
                headers: Some(Vec::new()),
            }),
            pre_policy: None,
            policy: DeliveryPolicy::new(3, millisecond, millisecond * 2, Duration::from_secs(20), 4).expect("a policy"),
            secret: self.keyring.seal_secret(self.tenant, id, secret_id, &secret).expect("sealed"),
        };
        let by = Principal::server(self.tenant);
        let made = self
            .store
            .subscribe(by, new, SubscriptionQuota { live: 100, deleted: 100 }, Repeatable::default())
            .await
            .expect("subscribed");
        let Once::Made(made) = made else { panic!("made now") };
        self.parts.registry.reload(self.tenant).await.expect("readable");
        (id, made.no)
    }

    pub async fn publish(&self, count: usize) -> Vec<Arc<LogEntry>> {
        let name = EventTypeName::parse(NAME).expect("a name");
        let publish = |n: usize| {
            let (name, data, key) = (name.clone(), json!({ "n": n }), clock::new_uuid().to_string());
            async move {
                let published =
                    self.parts.writer.publish_system(self.tenant, name, n.to_string(), &data, None, &key).await;
                published.expect("published").entry
            }
        };
        futures::future::join_all((0..count).map(publish)).await
    }

    async fn count(&self, state: State) -> usize {
        let filter = InvocationFilter { states: vec![state], ..InvocationFilter::default() };
        let listed = self.store.list_invocations(&Principal::server(self.tenant), &filter, None, 10_000).await;
        listed.expect("readable").0.len()
    }

    /// Waits until as many invocations are in the state.
    async fn until(&self, state: State, count: usize) {
        let mut seen = 0;
        let wait = async {
            loop {
                seen = self.count(state).await;
                if seen == count {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(20), wait).await;
        assert!(in_time.is_ok(), "{seen} of {count} are {state:?}");
    }

    async fn read(&self, id: InvocationId) -> Invocation {
        let found = self.store.invocation(&Principal::server(self.tenant), id).await.expect("readable");
        found.expect("exists").0
    }

    pub async fn end(self) {
        self.store.close().await;
        self.postgres.stop().await.expect("Postgres stops");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_matching_subscription_gets_every_event_and_every_run_is_recorded() {
    let world = World::new().await;
    let (fine, fine_no) = world.subscribe("shop", NAME, "/fine").await;
    let (_, flaky_no) = world.subscribe("other", NAME, "/flaky").await;
    let dispatch = world.dispatch();
    let entries = world.publish(200).await;
    world.until(State::Succeeded, 400).await;
    assert_eq!(world.receiver.calls("/fine"), vec![1; 200], "no delivery twice");
    assert_eq!(world.receiver.calls("/flaky"), vec![2; 200], "one retry each");

    let by = Principal::server(world.tenant);
    let id = entries[0].invocation(flaky_no);
    let (invocation, attempts) = world.store.invocation(&by, id).await.expect("readable").expect("exists");
    assert_eq!((invocation.state, invocation.attempt_count), (State::Succeeded, 2));
    let classes: Vec<_> = attempts.iter().map(|attempt| (attempt.number, attempt.outcome.status_code)).collect();
    assert_eq!(classes, [(1, 500), (2, 200)]);
    let of_event = world.store.event_invocations(world.tenant, &entries[0], 100).await.expect("readable");
    assert_eq!(
        of_event.iter().map(|invocation| invocation.id.subscription_no).collect::<Vec<_>>(),
        [fine_no, flaky_no]
    );

    // Pages of one subscription: complete, each once, newest first.
    let subscription = world.store.visible_subscription(&by, fine).await.expect("readable");
    let filter = InvocationFilter { subscription, ..InvocationFilter::default() };
    let (mut positions, mut key) = (Vec::new(), None);
    loop {
        let (page, next) = world.store.list_invocations(&by, &filter, key, 64).await.expect("readable");
        positions.extend(page.iter().map(|invocation| invocation.event_position));
        key = next;
        if key.is_none() {
            break;
        }
    }
    let mut newest_first: Vec<_> = entries.iter().map(|entry| entry.position).collect();
    newest_first.sort_unstable_by_key(|position| std::cmp::Reverse(*position));
    assert_eq!(positions, newest_first);

    // A caller that is limited to an app sees nothing of another's.
    let app = world.store.app_by_slug(world.tenant, "shop").await.expect("readable").expect("exists").id;
    let limited = Principal { app: Some(app), ..by.clone() };
    let all = InvocationFilter::default();
    assert_eq!(world.store.list_invocations(&limited, &all, None, 1_000).await.expect("readable").0.len(), 200);
    assert!(world.store.invocation(&limited, id).await.expect("readable").is_none());
    let retried = world.store.retry_invocation(&limited, id, Repeatable::default()).await.expect("answered");
    assert!(matches!(retried, InvocationChange::NotFound));
    let retried = world.store.retry_invocation(&by, id, Repeatable::default()).await.expect("answered");
    assert!(matches!(retried, InvocationChange::WrongState(State::Succeeded)));
    dispatch.stop().await;
    assert!(world.store.due_subscriptions(&[world.tenant]).await.expect("readable").is_empty(), "no row is left over");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_announced_redriven_and_cancelled_and_a_gone_receiver_is_disabled() {
    let world = World::new().await;
    let (broken, broken_no) = world.subscribe("shop", NAME, "/broken").await;
    let (_, gone_no) = world.subscribe("shop", NAME, "/gone").await;
    world.subscribe("shop", "INVOCATION_DEAD_LETTERED", "/dead").await;
    world.subscribe("shop", "SUBSCRIPTION_DISABLED", "/disabled").await;
    let dispatch = world.dispatch();
    let entries = world.publish(3).await;
    let by = Principal::server(world.tenant);
    // Three of the broken one; of the other, what ran before it was disabled is dead, the rest is cancelled.
    let settled = async {
        loop {
            let rest = world.count(State::DeadLettered).await + world.count(State::Cancelled).await;
            if rest == 6 && world.count(State::Pending).await == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), settled).await.expect("everything ends");
    let dead = world.count(State::DeadLettered).await;
    world.until(State::Succeeded, dead + 1).await;
    assert_eq!(world.receiver.calls("/dead"), vec![1; dead], "one operator event each");
    assert_eq!(world.receiver.calls("/disabled"), [1]);
    let registry = world.parts.registry.reload(world.tenant).await.expect("readable");
    let subscription = registry.subscription(gone_no).expect("exists");
    assert_eq!(subscription.subscription.state_reason, "GONE");

    let id = entries[0].invocation(broken_no);
    let cancelled = world.store.cancel_invocation(&by, id, Repeatable::default()).await.expect("answered");
    let InvocationChange::Done { invocation, .. } = cancelled else { panic!("{cancelled:?}") };
    assert_eq!(invocation.cancel_reason.as_deref(), Some("CALLER"));
    world.receiver.healed.store(true, Ordering::Relaxed);
    let subscription = world.store.visible_subscription(&by, broken).await.expect("readable");
    let filter = InvocationFilter { subscription, ..InvocationFilter::default() };
    let redriven = world.store.redrive_invocations(&by, &filter, 1, Repeatable::default()).await;
    let redriven = redriven.expect("answered").made().expect("now");
    assert_eq!((redriven.count, redriven.more), (1, true));
    let retried = world
        .store
        .retry_invocation(&by, entries[2].invocation(broken_no), Repeatable::default())
        .await
        .expect("answered");
    let InvocationChange::Done { head, invocation } = retried else { panic!("{retried:?}") };
    // The dispatcher may have heard of it by the pulse, and have run it, before the answer was read.
    assert!(matches!(invocation.state, State::Waiting | State::Succeeded), "{invocation:?}");
    world.parts.feed.send(&News::Head(head));
    world.until(State::Succeeded, dead + 3).await;
    let again = world.read(entries[2].invocation(broken_no)).await;
    assert_eq!((again.state, again.attempt_count), (State::Succeeded, 4), "three of the first set, one of the second");
    dispatch.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_hangs_delays_nobody_and_its_work_survives_the_owner() {
    let world = World::new().await;
    let (_, hang_no) = world.subscribe("shop", NAME, "/hang").await;
    world.subscribe("shop", NAME, "/fine").await;
    let first = world.dispatch();
    let entries = world.publish(50).await;
    world.until(State::Succeeded, 50).await;
    let by = Principal::server(world.tenant);
    let waiting = entries[49].invocation(hang_no);
    let cancelled = world.store.cancel_invocation(&by, waiting, Repeatable::default()).await.expect("answered");
    assert!(matches!(cancelled, InvocationChange::Done { .. }), "{cancelled:?}");
    // Four attempts hang: the drain gives up on them, and their shard goes on as after a crash.
    first.stop().await;
    world.receiver.healed.store(true, Ordering::Relaxed);
    world.receiver.hang.notify_waiters();
    let second = world.dispatch();
    world.until(State::Succeeded, 99).await;
    assert_eq!(world.receiver.calls("/fine"), vec![1; 50]);
    let started_before =
        world.read(entries.iter().min_by_key(|entry| entry.position).expect("50").invocation(hang_no)).await;
    assert_eq!(started_before.attempt_count, 2, "an attempt was lost with its owner");
    assert_eq!(world.read(waiting).await.state, State::Cancelled);
    second.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g6_an_owner_that_was_replaced_writes_nothing() {
    let world = World::new().await;
    let (_, no) = world.subscribe("shop", NAME, "/fine").await;
    let entries = world.publish(3).await;
    let shard = shard_of(world.tenant);
    let (old, new) = (1, 2);
    let store = &world.store;
    store.claim_tenant(world.tenant, shard, old).await.expect("answered").expect("claimed");
    let cursor = LogPlace { after: 1, day: entries[0].day() };
    let done = |position| Settled {
        place: Place { position, subscription_no: no },
        day: entries[0].day(),
        deferred: false,
        key: None,
        tried: Some(Tried {
            attempt: 1,
            started_at: store.now(),
            duration: Duration::from_millis(1),
            outcome: Some(Outcome {
                class: OutcomeClass::Succeeded,
                status_code: 200,
                retry_after: None,
                excerpt: None,
                error: None,
            }),
        }),
        fate: Fate::Succeeded,
    };
    assert_eq!(store.settle(world.tenant, old, cursor, &[done(1)]).await.expect("answered"), Fenced::No);
    let lease = ShardLease { shard, token: new };
    let claimed = store.claim_shard(&lease).await.expect("answered");
    assert_eq!((claimed.len(), claimed[0].cursor.after, claimed[0].head.position), (1, 1, 3));

    let later = LogPlace { after: 3, ..cursor };
    let dead = Settled { fate: Fate::Dead { at: store.now(), version: 1 }, ..done(3) };
    for changes in [vec![done(2)], vec![done(2), dead.clone()]] {
        assert_eq!(store.settle(world.tenant, old, later, &changes).await.expect("answered"), Fenced::Yes);
    }
    assert_eq!(world.count(State::Succeeded).await, 1, "the stale owner's outcome is not there");
    assert_eq!(world.count(State::Pending).await, 2);

    // A caller's cancellation that came first wins over a result and over a retry.
    let by = Principal::server(world.tenant);
    let id = entries.iter().find(|entry| entry.position == 2).expect("the second").invocation(no);
    let cancelled = store.cancel_invocation(&by, id, Repeatable::default()).await.expect("answered");
    assert!(matches!(cancelled, InvocationChange::Done { .. }), "{cancelled:?}");
    let again = Fate::Deferred { attempt: 1, base: 0, due_at: store.now() };
    for changes in [vec![done(2)], vec![Settled { fate: again, ..done(2) }]] {
        assert_eq!(store.settle(world.tenant, new, cursor, &changes).await.expect("answered"), Fenced::No);
    }
    assert_eq!(world.read(id).await.state, State::Cancelled);
    assert_eq!(world.count(State::Waiting).await, 0, "a cancelled invocation does not come back");

    // A refused subscription needs no attempt.
    let cycle = Settled { fate: Fate::Cancelled(CancelReason::ChainCycle), ..done(3) };
    store.settle(world.tenant, new, later, &[cycle]).await.expect("answered");
    assert_eq!(world.count(State::Cancelled).await, 2);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settle_that_is_repeated_after_a_redrive_leaves_the_redriven_row() {
    let world = World::new().await;
    let (_, no) = world.subscribe("shop", NAME, "/fine").await;
    let entries = world.publish(2).await;
    let (store, by, token) = (&world.store, Principal::server(world.tenant), 1);
    store.claim_tenant(world.tenant, shard_of(world.tenant), token).await.expect("answered").expect("claimed");
    let cursor = LogPlace { after: 0, day: entries[0].day() };
    let failed = |position, attempt, deferred, fate| Settled {
        place: Place { position, subscription_no: no },
        day: entries[0].day(),
        deferred,
        key: None,
        tried: Some(Tried { attempt, started_at: store.now(), duration: Duration::from_millis(1), outcome: None }),
        fate,
    };
    let (later, dead) = (store.now() + chrono::TimeDelta::hours(1), Fate::Dead { at: store.now(), version: 1 });
    let again = |attempt| Fate::Deferred { attempt, base: 0, due_at: later };
    // One dies at once, one after a first retry; both are redriven, and then both settles are written once more.
    let first = [failed(1, 1, false, dead), failed(2, 1, false, again(1))];
    let second = [failed(2, 2, true, dead)];
    for changes in [&first[..], &second[..]] {
        assert_eq!(store.settle(world.tenant, token, cursor, changes).await.expect("answered"), Fenced::No);
    }
    assert_eq!(world.count(State::DeadLettered).await, 2);
    for entry in &entries {
        let done = store.retry_invocation(&by, entry.invocation(no), Repeatable::default()).await.expect("answered");
        assert!(matches!(done, InvocationChange::Done { .. }), "{done:?}");
    }
    for changes in [&first[..], &second[..], &[failed(2, 2, true, again(2))]] {
        assert_eq!(store.settle(world.tenant, token, cursor, changes).await.expect("answered"), Fenced::No);
    }
    assert_eq!(world.count(State::DeadLettered).await, 0, "the dead letters do not come back");
    let rows = store.deferred(world.tenant, no, &[], 10).await.expect("answered");
    let mut left: Vec<_> =
        rows.iter().map(|row| (row.position, row.attempt, row.attempt_base, row.due_at < later)).collect();
    left.sort_unstable();
    assert_eq!(left, [(1, 1, 1, true), (2, 2, 2, true)]);
    world.end().await;
}
