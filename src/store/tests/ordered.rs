//! What waits in the order of its keys: a read costs what it brings and the keys that it meets, however much waits.

use super::{Database, connect};
use crate::domain::ids::{Position, SubscriptionNo, TenantId};
use crate::store::Store;
use crate::store::dispatch::{OrderedPage, OrderedRows};
use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, Executor as _};
use std::collections::BTreeSet;
use uuid::Uuid;

const LIMIT: u32 = 100;
/// Entries of tables and indexes that one read may look at.
const READ_MAX: i64 = 12 * LIMIT as i64;

/// The read of a subscription of which everything is due, and how many rows of tables and entries of indexes it looked at.
async fn read(
    database: &Database,
    store: &Store,
    tenant: TenantId,
    no: SubscriptionNo,
    page: OrderedPage<'_>,
) -> (OrderedRows, i64) {
    let looked_at = async || {
        // What the store's only connection has counted is shown.
        let mut connection = store.engine().acquire().await.expect("a connection");
        sqlx::query("SELECT pg_stat_force_next_flush()").execute(&mut *connection).await.expect("flushed");
        let sql = "SELECT ((SELECT sum(seq_tup_read) FROM pg_stat_user_tables WHERE relname = ANY($1))
                         + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = ANY($1)))::bigint";
        let tables = ["deferred_invocations", "dead_letters"];
        let mut superuser = database.connection().await;
        sqlx::query_scalar::<_, i64>(sql).bind(&tables[..]).fetch_one(&mut superuser).await.expect("statistics")
    };
    let before = looked_at().await;
    let found = store.deferred_in_order(tenant, no, page).await.expect("readable");
    (found, looked_at().await - before)
}

fn page(at: DateTime<Utc>) -> OrderedPage<'static> {
    let up_to = Position::MAX;
    OrderedPage { at, held: &[], up_to, full: &[], after: None, looked: at, blocks: false, limit: LIMIT }
}

fn positions(found: &OrderedRows) -> Vec<Position> {
    found.rows.iter().map(|row| row.position).collect()
}

/// A database with this in its tables, and a store of one connection.
async fn filled(sql: &str) -> (Database, Store, TenantId) {
    let database = Database::new().await;
    let tenant = database.tenant("ordered").await;
    let sql = sql.replace("$tenant", &format!("'{}'::uuid", tenant.0));
    let mut superuser = database.connection().await;
    superuser.execute(AssertSqlSafe(sql)).await.expect("rows");
    superuser.execute("VACUUM ANALYZE deferred_invocations, dead_letters").await.expect("analyzed");
    let config = connect::Config { connections_max: 1, ..Database::config(&database.postgres.server_url()) };
    let store = connect::open(&config).await.expect("Postgres answers");
    (database, store, tenant)
}

async fn end(database: Database, store: Store) {
    store.close().await;
    database.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g15_fifty_thousand_that_wait_behind_one_of_their_key_cost_a_read_of_the_others_nothing() {
    // Of three subscriptions, and of one that has little: many of one key, one of another key, and one without a key. The first of many is
    // due later in the second subscription; in the third, a dead letter is before them, and as many of other keys.
    let (database, store, tenant) = filled(
        "INSERT INTO deferred_invocations (tenant_id, position, subscription_no, day, shard, attempt, due_at, ordering_key)
         SELECT $tenant, p, s, current_date, 0, 0, now() - interval '1 h' + p * interval '1 ms' + CASE WHEN s = 2 AND p = 2 THEN interval '2 h' ELSE '0' END,
                md5('hot')::uuid
           FROM generate_series(1, 3) AS s CROSS JOIN generate_series(2, 50000) AS p;
         INSERT INTO deferred_invocations (tenant_id, position, subscription_no, day, shard, attempt, due_at, ordering_key)
         SELECT $tenant, p, s, current_date, 0, 0, now(), CASE p WHEN 60000 THEN md5('other')::uuid END
           FROM generate_series(1, 4) AS s CROSS JOIN generate_series(60000, 60001) AS p;
         INSERT INTO dead_letters (tenant_id, position, subscription_no, day, attempt, dead_at, announced_at, ordering_key)
         SELECT $tenant, 1, 3, current_date, 1, now(), now(), md5('hot')::uuid
         UNION ALL
         SELECT $tenant, p, 3, current_date, 1, now(), now(), md5(p::text)::uuid FROM generate_series(70000, 100000) AS p;",
    )
    .await;
    let now = store.now();
    let due: DateTime<Utc> =
        sqlx::query_scalar("SELECT due_at FROM deferred_invocations WHERE position = 60001 LIMIT 1")
            .fetch_one(&mut database.connection().await)
            .await
            .expect("readable");
    let page = OrderedPage { looked: due, ..page(now) };

    let (healthy, cost) = read(&database, &store, tenant, 1, page).await;
    assert_eq!(positions(&healthy), (2..=LIMIT.into()).chain([60_000, 60_001]).collect::<Vec<_>>());
    assert!(healthy.more && healthy.left && healthy.looked && healthy.after.is_none(), "{healthy:?}");
    assert!(cost < READ_MAX, "healthy: {cost}");
    // Those are in memory.
    let held = positions(&healthy);
    let next = OrderedPage { held: &held, ..page };
    let (healthy, cost) = read(&database, &store, tenant, 1, next).await;
    assert_eq!(positions(&healthy), (101..=200).collect::<Vec<_>>());
    assert!(cost < READ_MAX, "healthy, further on: {cost}");
    let hot: Uuid = healthy.rows[0].ordering_key.expect("it has one");
    let (full, cost) = read(&database, &store, tenant, 1, OrderedPage { full: &[hot], ..page }).await;
    assert_eq!((positions(&full), full.more), (vec![60_000, 60_001], false));
    assert!(cost < READ_MAX, "full: {cost}");
    let (known, cost) = read(&database, &store, tenant, 1, OrderedPage { up_to: 10, ..page }).await;
    assert_eq!((positions(&known), known.beyond), ((2..=10).chain([60_001]).collect(), true));
    assert!(cost < READ_MAX, "what is known of the log: {cost}");

    for (no, blocks) in [(2, false), (3, true), (4, false)] {
        let (found, cost) = read(&database, &store, tenant, no, OrderedPage { blocks, ..page }).await;
        assert_eq!((positions(&found), found.more), (vec![60_000, 60_001], false), "{no}");
        assert_eq!((found.left, found.next_due.is_some()), (no != 4, no == 2), "{no}");
        assert!(cost < READ_MAX, "{no}: {cost}");
    }
    let (skipping, _) = read(&database, &store, tenant, 3, page).await;
    assert_eq!(positions(&skipping)[0], 2, "where a dead letter is skipped");
    end(database, store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g15_however_many_keys_wait_a_read_meets_some_and_the_next_one_goes_on() {
    // Two of each key; of every third key the first one is due later.
    let (database, store, tenant) = filled(
        "INSERT INTO deferred_invocations (tenant_id, position, subscription_no, day, shard, attempt, due_at, ordering_key)
         SELECT $tenant, p, 1, current_date, 0, 0, now() + CASE WHEN p % 3 = 0 AND p <= 6000 THEN interval '1 h' ELSE '0' END,
                md5((p % 6000)::text)::uuid
           FROM generate_series(1, 12000) AS p",
    )
    .await;
    let (mut found, mut reads, mut after) = (BTreeSet::new(), 0, None);
    loop {
        let (rows, cost) = read(&database, &store, tenant, 1, OrderedPage { after, ..page(store.now()) }).await;
        assert!(cost < READ_MAX, "{cost}");
        let keys: BTreeSet<_> = rows.rows.iter().map(|row| row.ordering_key).collect();
        assert!(rows.after.is_none() || keys.len() == LIMIT as usize, "each key gets one before any gets a second");
        found.extend(positions(&rows).into_iter().map(|position| position % 6_000));
        reads += 1;
        after = rows.after;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(found, (1..6_000).filter(|key| key % 3 > 0).collect());
    assert!(reads <= 41, "{reads}");
    // Where hardly any may run, it meets more of them, and not all.
    sqlx::query("UPDATE deferred_invocations SET due_at = now() + interval '1 h'")
        .execute(&mut database.connection().await)
        .await
        .expect("set");
    let (none, _) = read(&database, &store, tenant, 1, page(store.now())).await;
    assert!(none.rows.is_empty() && none.after.is_some(), "{none:?}");
    end(database, store).await;
}
