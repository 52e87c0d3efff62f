//! The writer against a real Postgres: what one tenant's trouble does to the others, and what happens at the bounds.

use super::*;
use crate::domain::quotas::Quota;
use crate::publish::config::BatchScope;
use crate::store::publish::{NewEvent, TenantBatch};
use crate::store::request_ids::Repeatable;
use crate::store::tenants::TenantChange;
use crate::store::tests::{Database, eventually, publish};
use sqlx::Connection as _;
use std::collections::HashMap;
use uuid::Uuid;

async fn lock_head(connection: &mut sqlx::PgConnection, tenant: TenantId) -> sqlx::Transaction<'_, sqlx::Postgres> {
    let mut transaction = connection.begin().await.expect("a transaction");
    let sql = "UPDATE tenant_heads SET changed_at = changed_at WHERE tenant_id = $1";
    sqlx::query(sql).bind(tenant.0).execute(&mut *transaction).await.expect("locked");
    transaction
}

#[tokio::test(flavor = "multi_thread")]
async fn g09_a_locked_tenant_holds_up_nobody_else_and_its_events_follow() {
    let database = Database::new().await;
    let (a, b) = (database.tenant("a").await, database.tenant("b").await);
    // Long enough that what is published together below shares a commit.
    let (writer, tasks) = database.writer(Config { lock_patience_ms: 50, ..Config::default() });
    for tenant in [a, b] {
        publish(&writer, tenant, "first").await.expect("published");
    }
    let mut connection = database.connection().await;
    let lock = lock_head(&mut connection, a).await;
    let held: Vec<_> = (0..3)
        .map(|n| {
            let writer = writer.clone();
            tokio::spawn(async move { publish(&writer, a, &format!("held {n}")).await })
        })
        .collect();
    for n in 0..20 {
        // Alone, and in one commit with the locked tenant.
        let (one, two) = (format!("one {n}"), format!("two {n}"));
        let both = tokio::join!(publish(&writer, b, &one), publish(&writer, b, &two));
        both.0.expect("the other tenant is published");
        both.1.expect("the other tenant is published");
    }
    assert!(held.iter().all(|call| !call.is_finished()), "the locked tenant waits for its lock");
    lock.rollback().await.expect("unlocked");
    for call in held {
        call.await.expect("no panic").expect("published after the lock");
    }
    eventually("the tenant goes with the others again", || async { writer.core.aside.tasks().is_empty() }).await;
    publish(&writer, a, "after").await.expect("published");
    assert_eq!(database.store.head(a).await.expect("readable").expect("exists").position, 5, "no gap");
    drop(writer);
    tasks.join().await;
    database.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_postgres_refuses_fails_only_the_call_it_is_about() {
    let database = Database::new().await;
    let (a, b) = (database.tenant("a").await, database.tenant("b").await);
    let mut connection = database.connection().await;
    let sql = "ALTER TABLE events ADD CONSTRAINT no_poison CHECK (subject <> 'poison')";
    sqlx::raw_sql(sql).execute(&mut connection).await.expect("altered");
    let (writer, _tasks) = database.writer(Config::default());
    let name = EventTypeName::parse(crate::store::tests::NAME).expect("a name");
    let data = serde_json::json!({});
    let mut head = connection;
    // While the head is locked everything gathers, so that the refused one shares its commit.
    let lock = lock_head(&mut head, a).await;
    let first = publish(&writer, a, "first");
    let poison = writer.publish_system(a, name, "poison".to_owned(), &data, None, "poison");
    let (same, other) = (publish(&writer, a, "same"), publish(&writer, b, "other"));
    let unlock = async {
        eventually("the calls wait", || async { writer.core.aside.tasks().len() == 1 }).await;
        lock.rollback().await.expect("unlocked");
    };
    let (first, poison, same, other, ()) = tokio::join!(first, poison, same, other, unlock);
    first.expect("published");
    same.expect("published");
    other.expect("published");
    assert!(
        matches!(poison, Err(PublishError::Store(StoreError::Conflict { .. } | StoreError::Statement(_)))),
        "{poison:?}"
    );
    assert_eq!(database.store.head(a).await.expect("readable").expect("exists").position, 2);
    drop(head);
    database.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_matched_again_is_measured_by_the_tenants_present_quota_but_for_carillons_own() {
    let database = Database::new().await;
    let tenant = database.tenant("a").await;
    let (writer, _tasks) = database.writer(Config::default());
    let name = EventTypeName::parse(crate::store::tests::NAME).expect("a name");
    let data = serde_json::json!("x".repeat(2_000));
    let own = writer.prepare_system(tenant, name, "large".to_owned(), &data, None, "large").await.expect("valid");
    let old = writer.registry().tenant(tenant).await.expect("readable");
    let theirs = prepare(writer.registry(), &old, own.event.clone(), 0, None, None).await.expect("small enough yet");
    let change = TenantChange { display_name: None, quotas: vec![(Quota::EventBytes, Some(1_024))] };
    database.store.update_tenant("test".into(), tenant, change, Repeatable::default()).await.expect("changed");
    let before = own.registry_version;
    let refused = writer.write(tenant, vec![theirs]).await.map(drop);
    assert!(matches!(refused, Err(PublishError::TooLarge { limit: 1_024 })), "{refused:?}");
    writer.write(tenant, vec![own]).await.expect("the tenant's quota is none of Carillon's own events");
    let registry = writer.registry().tenant(tenant).await.expect("readable");
    assert!(registry.version() > before && registry.event_bytes_max() == 1_024, "it was matched again");
    database.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g15_the_queue_is_bounded_by_bytes() {
    let database = Database::new().await;
    let tenant = database.tenant("a").await;
    let (writer, _tasks) = database.writer(Config { queue_bytes_max: 1 << 20, ..Config::default() });
    let mut connection = database.connection().await;
    let lock = lock_head(&mut connection, tenant).await;
    let large = serde_json::json!({ "text": "x".repeat(600_000) });
    let name = EventTypeName::parse(crate::store::tests::NAME).expect("a name");
    let send = |key: &'static str| {
        let (writer, name, large) = (writer.clone(), name.clone(), large.clone());
        async move { writer.publish_system(tenant, name, String::new(), &large, None, key).await }
    };
    let waiting = tokio::spawn(send("one"));
    eventually("the first one waits", || async { writer.room.available_permits() < 1024 }).await;
    let refused = send("two").await;
    assert!(matches!(refused, Err(PublishError::QueueFull { limit_bytes }) if limit_bytes == 1 << 20), "{refused:?}");
    lock.rollback().await.expect("unlocked");
    waiting.await.expect("no panic").expect("published");
    send("two").await.expect("there is room again");
    assert_eq!(writer.room.available_permits(), 1024, "all of it is given back");
    database.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_of_one_tenant_each_serve_more_tenants_than_a_call_is_tried() {
    let database = Database::new().await;
    let mut tenants = Vec::new();
    for n in 0..ROUNDS_MAX + 20 {
        tenants.push(database.tenant(&format!("t{n}")).await);
    }
    let config = Config { batch_scope: BatchScope::Tenant, ..Config::default() };
    let (writer, _tasks) = database.writer(config);
    let published = futures::future::join_all(tenants.iter().map(|tenant| publish(&writer, *tenant, "key"))).await;
    for (tenant, result) in tenants.iter().zip(published) {
        assert_eq!(result.expect("published").entry.position, 1, "{tenant}");
    }
    let mut connection = database.connection().await;
    let transactions: i64 = sqlx::query_scalar("SELECT count(DISTINCT xmin::text) FROM events")
        .fetch_one(&mut connection)
        .await
        .expect("readable");
    assert_eq!(usize::try_from(transactions).expect("a count"), tenants.len(), "one transaction each");
    database.end().await;
}

/// Commits events of one tenant with these keys.
async fn commit(
    database: &Database,
    tenant: TenantId,
    keys: &[&str],
    locks: OnLocked,
) -> Result<Committed, StoreError> {
    let event = |key: &&str| {
        let key = (*key).to_owned();
        let id = EventId(clock::new_uuid());
        NewEvent {
            event: Arc::new(Event {
                id,
                event_type: EventTypeName::parse(crate::store::tests::NAME).expect("a name"),
                schema_version: 0,
                source: "s".to_owned(),
                subject: Some(key.clone()),
                time: clock::now(),
                content_type: None,
                extensions: Vec::new(),
                data: Data::None,
                lineage: Lineage::root(id),
            }),
            matched: [].into(),
            refused: [].into(),
            key: Some(NewKey { key, request_hash: [0; 32] }),
        }
    };
    let events = keys.iter().map(event).collect();
    let registry_version = database.store.head(tenant).await.expect("readable").expect("exists").registry_version;
    let batch = TenantBatch { tenant, registry_version, events };
    let mut connection = database.store.commit_connection(Duration::from_secs(10));
    connection.commit_events(&[batch], clock::now() + TimeDelta::days(1), 1, locks).await
}

#[tokio::test(flavor = "multi_thread")]
async fn g03_a_commit_that_repeats_keys_writes_nothing_and_tells_what_they_were_used_for() {
    let database = Database::new().await;
    let tenant = database.tenant("a").await;
    let first = commit(&database, tenant, &["a", "b"], OnLocked::Wait).await.expect("committed");
    assert_eq!((first.written[0].first_position, first.used), (1, Vec::new()));
    let again = commit(&database, tenant, &["c", "a", "d", "b"], OnLocked::Wait).await.expect("answered");
    assert_eq!(again.written, []);
    let used: HashMap<_, _> = again.used.into_iter().map(|used| (used.key, used.event.0)).collect();
    let mut connection = database.connection().await;
    let written: Vec<(String, Uuid)> = sqlx::query_as("SELECT subject, event_id FROM events ORDER BY position")
        .fetch_all(&mut connection)
        .await
        .expect("readable");
    assert_eq!(used, written.into_iter().collect());
    assert_eq!(database.store.head(tenant).await.expect("readable").expect("exists").position, 2);
    database.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g03_what_shares_a_commit_with_repeated_keys_is_published_in_the_order_of_the_calls() {
    let database = Database::new().await;
    let (one, two) = (database.tenant("a").await, database.tenant("b").await);
    let (writer, tasks) = database.writer(Config::default());
    publish(&writer, one, "used").await.expect("published");
    // While its head is locked the calls gather: one commit then has them all.
    let mut connection = database.connection().await;
    let lock = lock_head(&mut connection, one).await;
    let room = writer.room.available_permits();
    let calls = [(one, "used"), (one, "b"), (two, "c"), (one, "used"), (one, "d"), (two, "e")];
    let answers = calls.map(|(tenant, key)| {
        let writer = writer.clone();
        async move { publish(&writer, tenant, key).await }
    });
    let release = async {
        eventually("one of them waits", || async { writer.room.available_permits() < room }).await;
        lock.rollback().await.expect("unlocked");
    };
    let (answers, ()) = tokio::join!(futures::future::join_all(answers), release);
    let answers: Vec<_> = answers
        .into_iter()
        .map(|answer| answer.expect("answered"))
        .map(|published| (published.entry.position, published.duplicate))
        .collect();
    let expected = [(1, true), (2, false), (1, false), (1, true), (3, false), (2, false)];
    assert_eq!(answers, expected);
    drop(writer);
    tasks.join().await;
    database.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g03_who_takes_the_lock_first_sees_a_key_that_was_taken_while_it_waited() {
    let database = Database::new().await;
    let tenant = database.tenant("a").await;
    for (locks, key) in [(OnLocked::Wait, "one"), (OnLocked::WaitFirst, "two")] {
        let mut connection = database.connection().await;
        let mut lock = lock_head(&mut connection, tenant).await;
        let sql = "INSERT INTO idempotency_keys VALUES ($1, $2, '\\x00', $1, now() + interval '1 day')";
        sqlx::query(sql).bind(tenant.0).bind(key).execute(&mut *lock).await.expect("taken");
        let release = async {
            let waiting = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
            let mut connection = database.connection().await;
            loop {
                let waits: bool = sqlx::query_scalar(waiting).fetch_one(&mut connection).await.expect("readable");
                if waits {
                    break;
                }
                tokio::task::yield_now().await;
            }
            lock.commit().await.expect("unlocked");
        };
        let keys = [key, "new"];
        let (committed, ()) = tokio::join!(commit(&database, tenant, &keys, locks), release);
        match locks {
            OnLocked::WaitFirst => {
                let committed = committed.expect("it sees the key");
                assert_eq!((committed.written.len(), committed.used.len()), (0, 1));
            }
            _ => assert!(matches!(committed, Err(StoreError::Conflict { .. })), "{committed:?}"),
        }
    }
    database.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g03_a_storm_of_repetitions_is_answered_and_what_comes_with_it_is_published() {
    let database = Database::new().await;
    let tenant = database.tenant("a").await;
    let (writer, tasks) = database.writer(Config::default());
    let first = publish(&writer, tenant, "key").await.expect("published");
    let news: Vec<String> = (0..50).map(|n| format!("new {n}")).collect();
    let calls = news.iter().flat_map(|new| [new.as_str(), "key", "key"]);
    let answers = futures::future::join_all(calls.map(|key| publish(&writer, tenant, key))).await;
    let (mut positions, mut repeated) = (Vec::new(), 0);
    for answer in answers {
        let answer = answer.expect("answered");
        if answer.duplicate {
            assert_eq!(answer.entry.event.id, first.entry.event.id);
            repeated += 1;
        } else {
            positions.push(answer.entry.position);
        }
    }
    positions.sort_unstable();
    assert_eq!((repeated, positions), (100, (2..=51).collect()));
    drop(writer);
    tasks.join().await;
    database.end().await;
}
