//! What a read of a few rows reads: no more for all that the tenant has of the same day.

use super::Database;
use crate::domain::ids::{EventId, TenantId};
use crate::store::audit::Principal;
use crate::store::event_pages::PageBound;
use crate::store::events::LogPlace;
use crate::store::invocations::InvocationFilter;
use crate::store::{Store, StoreError, connect};
use sqlx::{AssertSqlSafe, Executor as _};

/// Events of the day.
const EVENTS: i64 = 30_000;
/// One of them: much lies on either side.
const ONE: i64 = 20_000;

/// A day of events, each of which was delivered at the second attempt.
async fn populate(database: &Database, tenant: TenantId) {
    let mut superuser = database.connection().await;
    // Nobody else reads meanwhile.
    superuser.execute("ALTER SYSTEM SET autovacuum = off").await.expect("a setting");
    superuser.execute("SELECT pg_reload_conf()").await.expect("reloaded");
    let sql = format!(
        "INSERT INTO events (tenant_id, day, position, event_id, committed_at, event_type, schema_version, source, event_time, extensions,
                data_kind, data, matched, refused, root_id, depth, lineage)
           SELECT '{0}', (now() AT TIME ZONE 'UTC')::date, p, md5(p::text)::uuid, now(), 'CUSTOM_TESTED', 0, 's', now(), '', 0, '', '{{1}}',
                  '{{}}', '{0}', 0, '{{}}' FROM generate_series(1, {EVENTS}) AS p;
         INSERT INTO outcomes (tenant_id, day, position, subscription_no, state, attempt, outcome_class, status_code, duration_us, started_at)
           SELECT tenant_id, day, position, 1, 3, 2, 1, 200, 1, now() FROM events;
         INSERT INTO attempts (tenant_id, day, position, subscription_no, attempt, outcome_class, status_code, duration_us, started_at)
           SELECT tenant_id, day, position, 1, 1, 3, 500, 1, now() FROM events;
         INSERT INTO subscriptions (tenant_id, subscription_id, subscription_no, app_id, event_type, display_name, filter, target_kind,
                target_key, max_attempts, initial_backoff_ms, max_backoff_ms, timeout_ms, max_in_flight, state, effective_position,
                registry_version, created_at, updated_at)
           VALUES ('{0}', gen_random_uuid(), 1, gen_random_uuid(), 'CUSTOM_TESTED', '', '', 1, sha256(''), 3, 10, 10, 10, 1, 1, 0, 1, now(), now());
         UPDATE tenant_heads SET position = {EVENTS} WHERE tenant_id = '{0}'",
        tenant.0
    );
    superuser.execute(AssertSqlSafe(sql)).await.expect("a day");
    superuser.execute("VACUUM ANALYZE events, outcomes, attempts").await.expect("analyzed");
}

/// Blocks of tables and indexes that the store's connection has read so far.
async fn blocks(store: &Store) -> i64 {
    let mut connection = store.engine().acquire().await.expect("a connection");
    connection.execute("SELECT pg_stat_force_next_flush()").await.expect("counted");
    let sql =
        "SELECT sum(heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit)::bigint FROM pg_statio_user_tables";
    sqlx::query_scalar(sql).fetch_one(&mut *connection).await.expect("a count")
}

/// Fails where a read takes more blocks than it may.
async fn check<T>(store: &Store, what: &str, most: i64, read: impl AsyncFn() -> Result<T, StoreError>) -> T {
    // What planning looks at for the first time does not count.
    read().await.expect("readable");
    let before = blocks(store).await;
    let found = read().await.expect("readable");
    let read = blocks(store).await - before;
    assert!((1..=most).contains(&read), "{what}: {read} blocks");
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_of_a_day_does_not_grow_with_the_day() {
    let database = Database::new().await;
    let tenant = database.tenant("a").await;
    populate(&database, tenant).await;
    let config = connect::Config { connections_max: 1, ..Database::config(&database.postgres.server_url()) };
    let store = connect::open(&config).await.expect("Postgres answers");
    let day = store.now().date_naive();

    let places: Vec<_> = (1..=16).map(|n| (day, n * 1_000)).collect();
    let found =
        check(&store, "events by their places", 100, async || store.events_at(tenant, &places, 1 << 20).await).await;
    assert_eq!(found.iter().map(|entry| (entry.day(), entry.position)).collect::<Vec<_>>(), places);

    let (place, bound) = (LogPlace { after: ONE, day }, PageBound { entries: 1_000, bytes: 1 << 20 });
    let page =
        check(&store, "a page up to a place", 20, async || store.read_log_page(tenant, place, ONE + 2, bound).await)
            .await;
    assert_eq!(page.len(), 2);

    let by = Principal::server(tenant);
    let event: uuid::Uuid = sqlx::query_scalar("SELECT md5($1::bigint::text)::uuid")
        .bind(ONE)
        .fetch_one(&mut database.connection().await)
        .await
        .expect("an id");
    let filter = InvocationFilter { event: Some(EventId(event)), ..InvocationFilter::default() };
    let list = async || Box::pin(store.list_invocations(&by, &filter, None, 10)).await;
    let (listed, _) = check(&store, "invocations of an event", 100, list).await;
    assert_eq!(listed.len(), 1);
    store.close().await;
    database.end().await;
}
