//! The engine stepped by hand over a real Postgres and a real receiver: what it hears comes from its own tasks and from publishing.

use super::*;
use crate::dispatch::Config;
use crate::dispatch::run::spawn;
use crate::dispatch::tenant::Ended;
use crate::dispatch::tests::{NAME, World};
use crate::domain::invocation::{Outcome, OutcomeClass};
use crate::store::leases::SHARDS;

struct Stepped {
    engine: Engine,
    inputs: mpsc::UnboundedReceiver<Input>,
    news: mpsc::Receiver<News>,
}

impl Stepped {
    /// An engine that has just taken every shard.
    async fn new(world: &World, config: Config) -> Self {
        let store = &world.store;
        let (shared, inputs) = world.shared(Config { lease_ms: 300_000, ..config });
        store.prepare_shards().await.expect("prepared");
        let result = store.take_shards(shared.replica, SHARDS, shared.lease()).await;
        let news = world.parts.feed.subscribe(GULP);
        let mut engine = Engine::new(shared, Arc::default());
        engine.take(Input::Taken { result }, store.now());
        Self { engine, inputs, news }
    }

    fn now(&self) -> DateTime<Utc> {
        self.engine.shared.parts.store.now()
    }

    /// Steps until the engine is as wanted.
    async fn until(&mut self, what: &str, is_so: impl Fn(&Engine) -> bool) {
        let steps = async {
            loop {
                self.engine.act(self.now());
                if is_so(&self.engine) {
                    return;
                }
                tokio::select! {
                    Some(input) = self.inputs.recv() => self.engine.take(input, self.now()),
                    Some(news) = self.news.recv() => self.engine.hear(&news, self.now()),
                    () = tokio::time::sleep(self.engine.next_wake()) => {}
                }
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(60), steps).await;
        let (running, apart) = (self.engine.running, self.engine.apart);
        assert!(in_time.is_ok(), "{what}: {running} run, {apart} of them apart");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g9_attempts_of_a_tenant_that_is_let_go_leave_their_room_to_others() {
    let world = World::new().await;
    world.subscribe("shop", NAME, "/hang").await;
    let mut stepped = Stepped::new(&world, Config { in_flight_max: 3, ..Config::default() }).await;
    stepped.until("the tenant is claimed", |engine| !engine.tenants.is_empty()).await;
    world.publish(3).await;
    stepped.until("all hang", |engine| engine.running == 3).await;
    let later = stepped.now() + TimeDelta::seconds(5);
    stepped.engine.act(later);
    assert_eq!((stepped.engine.apart, stepped.engine.free()), (3, 3), "they are slow");
    stepped.engine.forget(world.tenant);
    assert_eq!((stepped.engine.apart, stepped.engine.free()), (0, 0), "they run still");
    stepped.until("they are cut off", |engine| engine.running == 0).await;
    assert_eq!(stepped.engine.free(), 3);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g9_a_tenant_that_waits_for_room_starts_when_another_one_leaves_it() {
    let world = World::new().await;
    world.subscribe("shop", NAME, "/hang").await;
    // What hangs stays in the way however slow the machine is.
    let config = Config { in_flight_max: 5, slow_after_ms: 60_000, ..Config::default() };
    let mut stepped = Stepped::new(&world, config).await;
    stepped.until("the tenant is claimed", |engine| !engine.tenants.is_empty()).await;
    world.publish(2).await;
    stepped.until("two hang", |engine| engine.running == 2).await;
    // Others have taken one more: as much is left as the tenant has.
    stepped.engine.running += 1;
    world.publish(1).await;
    stepped
        .until("a third waits", |engine| {
            let held = &engine.tenants[&world.tenant];
            held.tenant.has_ready() && held.is_current() && !held.in_turn
        })
        .await;
    let result =
        Outcome { class: OutcomeClass::Succeeded, status_code: 200, retry_after: None, excerpt: None, error: None };
    let ended = Ended { started_at: stepped.now(), duration: Duration::ZERO, outcome: result };
    let life = Life { tenant: TenantId(clock::new_uuid()), token: 1 };
    let now = stepped.now();
    stepped.engine.take(Input::Ended { life, key: 0, ended }, now);
    stepped.engine.act(now);
    assert_eq!(stepped.engine.running, 3, "the third has started");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_panics_answers_like_one_that_fails() {
    let world = World::new().await;
    let mut stepped = Stepped::new(&world, Config::default()).await;
    stepped.until("the tenant is claimed", |engine| !engine.tenants.is_empty()).await;
    let held = stepped.engine.tenants.get_mut(&world.tenant).expect("claimed");
    held.reviewing = true;
    let life = Life { tenant: world.tenant, token: held.tenant.token };
    let fault = async |_: Arc<Shared>| panic!("a fault");
    spawn(&stepped.engine.shared, fault, move |result| Input::Reviewed { life, result });
    stepped.until("the review has failed", |engine| !engine.tenants[&world.tenant].reviewing).await;
    let not_before = stepped.engine.tenants[&world.tenant].not_before;
    assert!(not_before > DateTime::UNIX_EPOCH, "it is tried again a little later");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_can_neither_start_nor_load_anything_sleeps() {
    let world = World::new().await;
    let (_, no) = world.subscribe("shop", NAME, "/hang").await;
    // What hangs stays in the way however slow the machine is.
    let config = Config { tenant_in_flight_max: 1, slow_after_ms: 60_000, ..Config::default() };
    let mut stepped = Stepped::new(&world, config).await;
    stepped.until("the tenant is claimed", |engine| !engine.tenants.is_empty()).await;
    world.publish(2).await;
    stepped
        .until("one hangs, one waits", |engine| {
            engine.running == 1 && engine.tenants[&world.tenant].tenant.backlog() >= 2
        })
        .await;
    let now = stepped.now();
    let held = stepped.engine.tenants.get_mut(&world.tenant).expect("claimed");
    // Rows are due, and a load that failed puts the next one off.
    held.tenant.due_summary(&[(no, now)]);
    held.not_before = now + TimeDelta::minutes(1);
    stepped.engine.touch(world.tenant);
    let rounds = (1..10).find(|_| {
        stepped.engine.act(now);
        stepped.engine.timers.peek().is_none_or(|Reverse((at, _))| *at > now)
    });
    assert!(rounds.is_some(), "it comes back at once, again and again");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_back_before_the_end_of_a_stop_is_told_with_the_rest() {
    let world = World::new().await;
    world.subscribe("shop", NAME, "/hang").await;
    let mut stepped = Stepped::new(&world, Config::default()).await;
    stepped.until("the tenant is claimed", |engine| !engine.tenants.is_empty()).await;
    world.publish(1).await;
    stepped.until("it hangs", |engine| engine.running == 1).await;
    stepped.engine.begin_stop();
    stepped.until("what is quiet is given back", |engine| engine.shards.leaving().count() == 1).await;
    stepped.engine.finish().await;
    let all = usize::try_from(SHARDS).expect("a count");
    assert_eq!(stepped.engine.given_back, (all - 1, 1));
    world.end().await;
}
