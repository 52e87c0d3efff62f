//! Retention on a real Postgres: what it takes, what it leaves, and what it tells.

use super::*;
use crate::store::events::LogPlace;
use crate::store::tests::{Database, eventually, publish};
use chrono::Days;

/// Moves the events up to a position, and what is derived from them, a number of days back.
async fn age(database: &Database, tenant: TenantId, up_to: Position, days: u64) -> NaiveDate {
    let today = database.store.now().date_naive();
    let old = today - Days::new(days);
    database.store.ensure_partitions(old, 0).await.expect("made");
    let mut connection = database.connection().await;
    for sql in [
        "UPDATE events SET day = $3, committed_at = committed_at - make_interval(days => $4)",
        "UPDATE deferred_invocations SET day = $3, due_at = due_at - make_interval(days => $4)",
        "UPDATE dead_letters SET day = $3, dead_at = dead_at - make_interval(days => $4)",
    ] {
        sqlx::query(AssertSqlSafe(format!("{sql} WHERE tenant_id = $1 AND position <= $2")))
            .bind(tenant.0)
            .bind(up_to)
            .bind(old)
            .bind(i32::try_from(days).expect("a few"))
            .execute(&mut connection)
            .await
            .expect("aged");
    }
    old
}

async fn execute(database: &Database, sql: &'static str, tenant: TenantId) {
    let mut connection = database.connection().await;
    sqlx::query(sql).bind(tenant.0).execute(&mut connection).await.expect("a statement of the test");
}

async fn exists(database: &Database, table: &str) -> bool {
    let mut connection = database.connection().await;
    let sql = "SELECT to_regclass($1) IS NOT NULL";
    sqlx::query_scalar(sql).bind(table).fetch_one(&mut connection).await.expect("readable")
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_days_go_whole_and_what_waited_for_them_is_told() {
    let database = Database::new().await;
    let store = &database.store;
    let (a, b) = (database.tenant("a").await, database.tenant("b").await);
    let (writer, _tasks) = database.writer(crate::publish::Config::default());
    for n in 0..4 {
        publish(&writer, a, &format!("{n}")).await.expect("published");
    }
    publish(&writer, b, "young").await.expect("published");
    for sql in [
        "INSERT INTO apps (tenant_id, app_id, slug, display_name, created_at) VALUES ($1, $1, 'shop', '', now())",
        "INSERT INTO subscriptions (tenant_id, subscription_id, subscription_no, app_id, event_type, display_name, filter,
                target_kind, target_key, max_attempts, initial_backoff_ms, max_backoff_ms, timeout_ms, max_in_flight, state,
                effective_position, registry_version, created_at, updated_at)
         VALUES ($1, $1, 1, $1, 'CUSTOM_TESTED', '', '', 1, '', 3, 10, 10, 10, 1, 1, 0, 1, now(), now()),
                ($1, gen_random_uuid(), 2, gen_random_uuid(), 'CUSTOM_TESTED', '', '', 1, '', 3, 10, 10, 10, 1, 1, 0, 1, now(), now())",
        "INSERT INTO deferred_invocations (tenant_id, position, subscription_no, day, shard, attempt, due_at)
         VALUES ($1, 1, 1, CURRENT_DATE, 0, 1, now()), ($1, 4, 1, CURRENT_DATE, 0, 1, now())",
        "INSERT INTO dead_letters (tenant_id, position, subscription_no, day, attempt, dead_at)
         VALUES ($1, 2, 1, CURRENT_DATE, 3, now()), ($1, 3, 1, CURRENT_DATE, 3, now())",
        "INSERT INTO removed_dead_letters (tenant_id, position, subscription_no, day, attempt, dead_at)
         VALUES ($1, 2, 1, CURRENT_DATE, 2, now()), ($1, 2, 1, CURRENT_DATE, 1, now()), ($1, 3, 1, CURRENT_DATE, 2, now())",
        "INSERT INTO replays (tenant_id, subscription_no, position, day, up_to)
         VALUES ($1, 1, 0, 'epoch', 4), ($1, 2, 0, 'epoch', 2)",
    ] {
        execute(&database, sql, a).await;
    }
    let old = age(&database, a, 2, 40).await;
    let older_name = format!("events_{}", old.format("%Y%m%d"));
    let before = store.now().date_naive() - Days::new(30);
    store.forget_announcements_of(a).await;

    // Not dispatched that far: nothing goes.
    execute(&database, "UPDATE dispatch_cursors SET position = 0, day = CURRENT_DATE - 60 WHERE tenant_id = $1", a)
        .await;
    let retained = store.retain(before).await.expect("answered");
    assert_eq!((retained.dropped.len(), retained.held_from), (0, Some(old)));
    let head = store.head(a).await.expect("readable").expect("exists");
    assert_eq!((head.earliest_position, store.removed_until(&head).await.expect("readable")), (1, None));
    let place = LogPlace { after: 0, day: NaiveDate::default() };
    let all = store.read_log(a, place, 4, 10).await.expect("readable");
    assert!(store.announcements(a, 10).await.expect("readable").is_empty());

    let cursor = "INSERT INTO dispatch_cursors (tenant_id, shard, position, day) VALUES ($1, 0, 4, CURRENT_DATE)
                  ON CONFLICT ON CONSTRAINT dispatch_cursors_pk DO UPDATE SET position = 4, day = CURRENT_DATE";
    execute(&database, cursor, a).await;
    let retained = store.retain(before).await.expect("answered");
    assert_eq!((retained.dropped.len(), retained.cut, retained.held_from), (3, 1, None), "{retained:?}");
    assert!(!exists(&database, &older_name).await);
    let head = store.head(a).await.expect("readable").expect("exists");
    assert_eq!((head.earliest_position, head.position), (3, 4));
    let removed = store.removed_until(&head).await.expect("readable");
    assert_eq!(removed, Some(all[1].committed_at), "what came after it is all there");
    assert_eq!(store.head(b).await.expect("readable").expect("exists").earliest_position, 1, "another tenant's log");
    let left = store.read_log(a, place, 4, 10).await.expect("readable");
    assert_eq!(left.iter().map(|entry| entry.position).collect::<Vec<_>>(), [3, 4]);
    let told = store.announcements(a, 10).await.expect("readable");
    assert_eq!(told.len(), 2, "{told:?}");
    let of_no_app = &told[1].announcement;
    assert_eq!(of_no_app.event_type, "INVOCATIONS_EXPIRED");
    assert_eq!((&of_no_app.data["app"], &of_no_app.data["replay"]["to_position"]), (&"".into(), &3.into()));
    let told = &told[0].announcement;
    let counts = (&told.data["waiting"], &told.data["dead_letters"]);
    assert_eq!((told.event_type.as_str(), counts), ("INVOCATIONS_EXPIRED", (&1.into(), &1.into())));
    assert_eq!(told.data["replay"], serde_json::json!({ "from_position": 1, "to_position": 3 }));
    let replay = store.replay(a, &[], 10).await.expect("readable").expect("it goes on with what is left");
    assert_eq!((replay.subscription_no, replay.done.after, replay.up_to), (1, 2, 4), "the other one is over");
    let deferred = store.due_subscriptions(&[a]).await.expect("readable");
    assert_eq!(deferred.len(), 1, "what waits for a younger event stays");
    assert_eq!(store.unannounced_tenants(&[a, b]).await.expect("readable").len(), 2);
    publish(&writer, a, "after").await.expect("the log goes on");
    assert_eq!(store.retain(before).await.expect("answered"), Retained::default(), "nothing is left to do");
    database.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_that_somebody_reads_is_left_to_a_later_try_and_publishing_goes_on() {
    let database = Database::new().await;
    let tenant = database.tenant("a").await;
    let (writer, _tasks) = database.writer(crate::publish::Config::default());
    publish(&writer, tenant, "old").await.expect("published");
    execute(&database, "UPDATE dispatch_cursors SET position = 1, day = CURRENT_DATE WHERE tenant_id = $1", tenant)
        .await;
    let old = age(&database, tenant, 1, 40).await;
    let before = database.store.now().date_naive() - Days::new(30);
    let mut reader = database.connection().await;
    sqlx::raw_sql("BEGIN; LOCK TABLE events IN ACCESS SHARE MODE").execute(&mut reader).await.expect("locked");
    let store = database.store.clone();
    let round = tokio::spawn(async move { store.retain(before).await });
    let mut published = 0;
    while !round.is_finished() {
        publish(&writer, tenant, &format!("{published}")).await.expect("published");
        published += 1;
    }
    let retained = round.await.expect("no panic").expect("answered");
    assert!(published > 0);
    assert_eq!(retained.locked, [format!("events_{}", old.format("%Y%m%d"))]);
    sqlx::raw_sql("COMMIT").execute(&mut reader).await.expect("unlocked");
    let retained = database.store.retain(before).await.expect("answered");
    assert_eq!((retained.dropped.len(), retained.locked.len()), (3, 0), "{retained:?}");
    database.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_replica_has_a_duty_at_a_time() {
    let database = Database::new().await;
    let [one, two] = [(); 2].map(|()| ReplicaId(crate::clock::new_uuid()));
    let store = &database.store;
    let hour = TimeDelta::hours(1);
    assert!(store.take_duty("retention", one, hour).await.expect("answered"));
    assert!(!store.take_duty("retention", two, hour).await.expect("answered"));
    assert!(store.take_duty("other", two, hour).await.expect("answered"));
    store.end_duty("retention", two).await.expect("answered");
    assert!(!store.take_duty("retention", two, hour).await.expect("answered"), "it was not its own to end");
    store.end_duty("retention", one).await.expect("answered");
    assert!(store.take_duty("retention", two, TimeDelta::zero()).await.expect("answered"));
    eventually("a duty of a holder that died is free again", || async {
        store.take_duty("retention", one, hour).await.expect("answered")
    })
    .await;
    database.end().await;
}

impl Store {
    async fn forget_announcements_of(&self, tenant: TenantId) {
        let ids: Vec<_> = self.announcements(tenant, 100).await.expect("readable").iter().map(|told| told.id).collect();
        self.forget_announcements(tenant, &ids).await.expect("deleted");
    }
}
