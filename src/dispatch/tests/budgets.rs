//! Budgets of chains: spent once, in the order of the log, and told of once.

use super::*;
use crate::domain::event::{CHAIN_BUDGET_EXHAUSTED, Lineage};
use crate::domain::ids::EventId;
use crate::store::tests::eventually;
use sqlx::{AssertSqlSafe, PgConnection};

/// The lineage of an event that follows from this root.
fn after(root: EventId) -> Lineage {
    Lineage { depth: 1, ..Lineage::root(root) }
}

fn root() -> EventId {
    EventId(clock::new_uuid())
}

fn fires(entries: &[Arc<LogEntry>]) -> Vec<usize> {
    entries.iter().map(|entry| entry.matched.len()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn g11_replicas_spend_one_budget_between_them_and_a_repetition_spends_nothing() {
    let bounds = publish::Config { chain_invocations_max: 10, ..publish::Config::default() };
    let world = World::publishing(bounds.clone()).await;
    for path in ["/one", "/two", "/three"] {
        world.subscribe("shop", NAME, path).await;
    }
    let (store, registry) = (world.store.clone(), world.parts.registry.clone());
    let (other, _tasks) = Writer::start(store, registry, Feed::default(), bounds);
    let (writer, name, data) = (&world.parts.writer, EventTypeName::parse(NAME).expect("a name"), json!({}));
    let prepare = async |lineage: Lineage, key: &str| {
        let subject = key.to_owned();
        writer.prepare_system(world.tenant, name.clone(), subject, &data, Some(lineage), key).await.expect("valid")
    };
    // Two replicas, three commits each.
    let shared = root();
    let mut written = Vec::new();
    for n in 0..6 {
        let (writer, event) = (if n % 2 == 0 { writer } else { &other }, prepare(after(shared), &n.to_string()).await);
        written.push(writer.write(world.tenant, vec![event]));
    }
    let written = futures::future::join_all(written).await;
    let written: Vec<_> = written.into_iter().flat_map(|published| published.expect("published")).collect();
    let mut entries: Vec<_> = written.into_iter().map(|published| published.entry).collect();
    entries.sort_by_key(|entry| entry.position);
    assert_eq!(fires(&entries), [3, 3, 3, 1, 0, 0]);
    for entry in &entries {
        assert_eq!(world.store.event(world.tenant, entry.event.id).await.expect("readable").as_ref(), Some(entry));
        assert_eq!(entry.matched.len() + entry.refused.len(), 3);
        assert!(entry.refused.iter().all(|no| entry.refusal(*no) == CancelReason::ChainBudget));
    }
    // One commit, several roots in turn, an event that is one itself, and one that was published before.
    let (one, two) = (root(), root());
    let mut events = Vec::new();
    for (n, lineage) in [one, two, one, one, two, one].map(after).into_iter().enumerate() {
        events.push(prepare(lineage, &format!("batch {n}")).await);
    }
    let alone = prepare(Lineage::root(root()), "alone").await;
    events.insert(3, alone);
    events.push(prepare(after(shared), "3").await);
    for repeated in [false, true] {
        let published = writer.write(world.tenant, events.clone()).await.expect("published");
        let (last, batch) = published.split_last().expect("they are there");
        assert!(last.duplicate && batch.iter().all(|one| one.duplicate == repeated));
        let entries: Vec<_> = published.iter().map(|published| published.entry.clone()).collect();
        assert_eq!(fires(&entries)[..7], [3, 3, 3, 3, 3, 3, 1]);
    }
    let mut connection = owner(&world).await;
    let spent: Vec<i64> = sqlx::query_scalar("SELECT spent FROM chain_budgets ORDER BY spent DESC")
        .fetch_all(&mut connection)
        .await
        .expect("readable");
    assert_eq!(spent, [18, 12, 6], "what is beyond the budget counts as well");
    world.end().await;
}

async fn owner(world: &World) -> PgConnection {
    PgConnection::connect(&world.postgres.owner_url("carillon")).await.expect("Postgres answers")
}

/// What is told of budgets.
async fn told(world: &World) -> Vec<serde_json::Value> {
    let log = world.log().await.into_iter();
    log.filter(|(name, _)| name == CHAIN_BUDGET_EXHAUSTED).map(|(_, data)| data).collect()
}

/// Writes something to be told that follows from a root, as a change does.
async fn leave(world: &World, connection: &mut PgConnection, id: uuid::Uuid, root: EventId) {
    let sql = format!(
        "INSERT INTO announcements (tenant_id, registry_version, announcement_id, event_type, subject, data, created_at, root_id, depth, lineage)
         SELECT tenant_id, registry_version, '{id}', 'EVENT_TYPE_CREATED', '{id}', '{{\"event_type\": \"X\"}}', now(), '{}', 1, '{{}}'
           FROM tenant_heads WHERE tenant_id = '{}';
         UPDATE tenant_heads SET registry_version = registry_version + 1, changed_at = now() WHERE tenant_id = '{1}'",
        root.0, world.tenant.0
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.expect("written");
}

#[tokio::test(flavor = "multi_thread")]
async fn g11_a_budget_that_is_used_up_is_told_once_also_where_who_was_to_tell_it_has_crashed() {
    let world = World::publishing(publish::Config { chain_invocations_max: 1, ..publish::Config::default() }).await;
    for path in ["/one", "/two"] {
        world.subscribe("shop", "EVENT_TYPE_CREATED", path).await;
    }
    world.subscribe("shop", CHAIN_BUDGET_EXHAUSTED, "/told").await;
    let (root, id, mut connection) = (root(), clock::new_uuid(), owner(&world).await);
    // It was published, and then its owner crashed.
    let (name, data) = (EventTypeName::parse("EVENT_TYPE_CREATED").expect("a name"), json!({ "event_type": "X" }));
    let key = format!("announcement/{id}");
    let (writer, subject) = (&world.parts.writer, id.to_string());
    let first = writer.publish_system(world.tenant, name, subject, &data, Some(after(root)), &key).await;
    let first = first.expect("published").entry;
    assert_eq!((first.matched.len(), first.refused.len()), (1, 1));
    leave(&world, &mut connection, id, root).await;
    let dispatch = world.dispatch();
    eventually("it is told", || async { told(&world).await.len() == 1 }).await;
    let data = told(&world).await.remove(0);
    assert_eq!((&data["root_id"], &data["budget"]), (&json!(root.to_string()), &json!(1)));
    assert_eq!((&data["event"], &data["depth"]), (&json!(first.event.id.to_string()), &json!(1)));
    assert_eq!(data["invocation"], json!(first.invocation(first.refused[0]).to_string()));
    assert_eq!((&data["app"], &data["reason"]), (&json!("shop"), &json!("CHAIN_BUDGET")));
    eventually("its own listener is called", || async { world.receiver.calls("/told") == [1] }).await;
    // The key under which it was told may be forgotten by the time when more of the chain is refused.
    eventually("the outbox is empty", || async { waiting(&world).await == 0 }).await;
    sqlx::query("DELETE FROM idempotency_keys").execute(&mut connection).await.expect("deleted");
    leave(&world, &mut connection, clock::new_uuid(), root).await;
    eventually("more is refused", || async { world.count(State::Cancelled).await == 3 && waiting(&world).await == 0 })
        .await;
    assert_eq!(told(&world).await.len(), 1);
    dispatch.stop().await;
    world.end().await;
}

async fn waiting(world: &World) -> usize {
    world.store.announcements(world.tenant, 10).await.expect("readable").len()
}
