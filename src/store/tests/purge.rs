//! What was deleted long ago is purged in batches, with what hangs on it; what lives, or what the log still knows, is not. Signing
//! secrets go when they have ended, and audit records when they have had their time.

use super::{Database, NAME, publish};
use crate::domain::event_type::EventTypeName;
use crate::store::audit::Principal;
use crate::store::event_types::{EventTypeChange, EventTypeQuota};
use crate::store::request_ids::Repeatable;
use chrono::TimeDelta;
use sqlx::{AssertSqlSafe, Executor as _};

#[tokio::test(flavor = "multi_thread")]
async fn only_what_was_deleted_long_ago_and_is_forgotten_by_the_log_is_purged() {
    let database = Database::new().await;
    let tenant = database.tenant("a").await;
    let mut owner = database.connection().await;
    // Subscription 1 lives; 2 to 4 were deleted long ago, 4 when the log had events that are there still; 5 was deleted just now. Of the
    // types 1, 2 and 4 were retired long ago, 1 by a release that did not note the log's position, 4 when it had those events.
    owner
        .execute(AssertSqlSafe(format!(
            "UPDATE tenant_heads SET position = 9, earliest_position = 7 WHERE tenant_id = '{0}';
             INSERT INTO subscriptions (tenant_id, subscription_id, subscription_no, app_id, event_type, display_name, filter, target_kind,
                    target_key, max_attempts, initial_backoff_ms, max_backoff_ms, timeout_ms, max_in_flight, state, deleted_at,
                    effective_position, registry_version, created_at, updated_at)
             SELECT '{0}', ('00000000-0000-7000-8000-00000000000' || n)::uuid, n, '{0}', 'CUSTOM_TESTED', '', '', 1, '', 3, 10, 10, 10, 1,
                    CASE n WHEN 1 THEN 1 ELSE 3 END,
                    CASE n WHEN 1 THEN NULL WHEN 5 THEN now() ELSE now() - interval '31 days' END,
                    CASE n WHEN 4 THEN 7 ELSE 6 END, n, now(), now()
               FROM generate_series(1, 5) AS n;
             INSERT INTO webhook_secrets SELECT tenant_id, subscription_id, subscription_id, 'k', '', now() FROM subscriptions;
             INSERT INTO subscription_health SELECT tenant_id, subscription_no, 1, 1, NULL, 0 FROM subscriptions;
             INSERT INTO subscription_rates SELECT tenant_id, subscription_no, 1, now() FROM subscriptions;
             INSERT INTO event_types (tenant_id, name, phase, display_name, description, registry_version, created_at, updated_at, deleted_at,
                    deleted_position)
             SELECT '{0}', 'CUSTOM_' || n, 2, '', '', n, now(), now(), CASE n WHEN 3 THEN now() ELSE now() - interval '31 days' END,
                    CASE n WHEN 1 THEN NULL WHEN 4 THEN 7 ELSE 6 END
               FROM generate_series(1, 4) AS n;
             INSERT INTO event_type_schemas SELECT tenant_id, name, 1, '{{}}', now() FROM event_types",
            tenant.0
        )))
        .await
        .expect("made");
    let store = &database.store;
    let before = store.now() - TimeDelta::days(30);
    let mut purged = Vec::new();
    for _ in 0..3 {
        let subscriptions = store.purge_subscriptions(before, 1).await.expect("purged");
        purged.push((subscriptions, store.purge_event_types(before, 1).await.expect("purged")));
    }
    assert_eq!(purged, [(1, 1), (1, 1), (0, 0)]);
    for table in ["subscriptions", "subscription_health", "subscription_rates"] {
        let left = format!("SELECT array_agg(subscription_no ORDER BY subscription_no) FROM {table}");
        let left: Vec<i32> = sqlx::query_scalar(AssertSqlSafe(left)).fetch_one(&mut owner).await.expect("readable");
        assert_eq!(left, [1, 4, 5], "{table}");
    }
    let secrets: i64 =
        sqlx::query_scalar("SELECT count(*) FROM webhook_secrets").fetch_one(&mut owner).await.expect("readable");
    assert_eq!(secrets, 3);
    for column in ["name FROM event_types", "event_type FROM event_type_schemas"] {
        let sql = AssertSqlSafe(format!("SELECT {column} ORDER BY 1"));
        let left: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut owner).await.expect("readable");
        assert_eq!(left, ["CUSTOM_3", "CUSTOM_4", "CUSTOM_TESTED"], "{column}");
    }
    database.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signing_secret_that_has_ended_is_not_loaded_and_goes_with_the_next_sweep() {
    let database = Database::new().await;
    let tenant = database.tenant("a").await;
    let mut owner = database.connection().await;
    // Two have ended, one will, one has no end.
    let sql = format!(
        "INSERT INTO subscriptions (tenant_id, subscription_id, subscription_no, app_id, event_type, display_name, filter, target_kind,
                target_key, webhook_uri, webhook_mode, max_attempts, initial_backoff_ms, max_backoff_ms, timeout_ms, max_in_flight, state,
                effective_position, registry_version, created_at, updated_at)
         VALUES ('{0}', '{0}', 1, '{0}', 'CUSTOM_TESTED', '', '', 1, '', 'https://hooks.example.com/', 1, 3, 10, 10, 1000, 1, 1, 0, 100,
                now(), now());
         INSERT INTO webhook_secrets (tenant_id, subscription_id, secret_id, key_id, ciphertext, created_at, expires_at)
         SELECT '{0}', '{0}', ('00000000-0000-7000-8000-00000000000' || n)::uuid, 'k', '', now(),
                CASE WHEN n < 4 THEN now() + (n - 2.5) * interval '1 h' END FROM generate_series(1, 4) AS n",
        tenant.0
    );
    owner.execute(AssertSqlSafe(sql)).await.expect("made");
    let store = &database.store;
    let loaded = store.subscriptions_changed_since(tenant, 0).await.expect("readable");
    let signing: Vec<u128> = loaded[0].secrets.iter().map(|secret| secret.id.as_u128() & 0xf).collect();
    assert_eq!(signing, [3, 4], "oldest first");
    for deleted in [1, 1, 0] {
        assert_eq!(store.delete_expired(store.now(), 1).await.expect("swept"), deleted);
    }
    let left: i64 =
        sqlx::query_scalar("SELECT count(*) FROM webhook_secrets").fetch_one(&mut owner).await.expect("readable");
    assert_eq!(left, 2);
    database.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_chain_has_spent_is_forgotten_with_the_last_day_of_its_events() {
    let database = Database::new().await;
    let tenant = database.tenant("a").await;
    let mut owner = database.connection().await;
    let sql = format!(
        "INSERT INTO chain_budgets (tenant_id, root_id, day, spent)
         SELECT '{0}', ('00000000-0000-7000-8000-00000000000' || n)::uuid, date '2026-01-10' - n, n FROM generate_series(1, 4) AS n",
        tenant.0
    );
    owner.execute(AssertSqlSafe(sql)).await.expect("made");
    let before = chrono::NaiveDate::from_ymd_opt(2026, 1, 8).expect("a day");
    for purged in [1, 1, 0] {
        assert_eq!(database.store.purge_budgets(before, 1).await.expect("purged"), purged);
    }
    let left: Vec<i64> = sqlx::query_scalar("SELECT spent FROM chain_budgets ORDER BY spent")
        .fetch_all(&mut owner)
        .await
        .expect("readable");
    assert_eq!(left, [1, 2]);
    database.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retired_type_is_kept_while_retention_is_held_back_before_its_end() {
    let database = Database::new().await;
    let tenant = database.tenant("a").await;
    let (writer, _tasks) = database.writer(crate::publish::Config::default());
    publish(&writer, tenant, "of before").await.expect("published");
    let (store, name) = (&database.store, EventTypeName::parse(NAME).expect("a name"));
    let (by, quota) =
        (Principal::server(tenant), EventTypeQuota { event_types: 10, deleted_event_types: 10, schema_versions: 10 });
    let retired = store.change_event_type(by, name, None, EventTypeChange::Delete, quota, Repeatable::default()).await;
    retired.expect("nobody is subscribed");
    let long_after = store.now() + TimeDelta::days(100);
    assert_eq!(store.purge_event_types(long_after, 10).await.expect("purged"), 0, "the log holds its event");
    let mut owner = database.connection().await;
    owner.execute("UPDATE tenant_heads SET earliest_position = 2").await.expect("cut");
    assert_eq!(store.purge_event_types(long_after, 10).await.expect("purged"), 1);
    database.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_records_go_after_their_time_and_none_of_the_last_thirty_days_whatever_is_asked_for() {
    let database = Database::new().await;
    let mut owner = database.connection().await;
    for slug in ["a", "b"] {
        let sql = format!(
            "INSERT INTO audit_records (tenant_id, audit_id, at, actor, action, resource)
             SELECT '{}', gen_random_uuid(), now() - days * interval '1 day', 'x', 'Old', days::text
               FROM unnest(ARRAY[29, 31, 399, 401]) AS days",
            database.tenant(slug).await.0
        );
        owner.execute(AssertSqlSafe(sql)).await.expect("made");
    }
    let mut left = async || -> Vec<String> {
        let sql = "SELECT resource FROM audit_records WHERE action = 'Old' ORDER BY at DESC, tenant_id";
        sqlx::query_scalar(sql).fetch_all(&mut owner).await.expect("readable")
    };
    let store = &database.store;
    for purged in [1, 1, 0] {
        let before = store.now() - TimeDelta::days(400);
        assert_eq!(store.purge_audit_records(before, 1).await.expect("purged"), purged);
    }
    assert_eq!(left().await, ["29", "29", "31", "31", "399", "399"]);
    assert_eq!(store.purge_audit_records(store.now(), 10).await.expect("purged"), 4);
    assert_eq!(left().await, ["29", "29"]);
    database.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_records_of_a_table_that_is_spread_by_tenant_go_alone() {
    let database = Database::new().await;
    let mut owner = database.connection().await;
    // What lies at a place of one partition is another record than what lies there in the other.
    for sql in [
        "DROP TABLE audit_records",
        "CREATE TABLE audit_records (tenant_id uuid, audit_id uuid, at timestamptz, resource text) PARTITION BY HASH (tenant_id)",
        "GRANT ALL ON audit_records TO PUBLIC",
        "CREATE TABLE audit_records_0 PARTITION OF audit_records FOR VALUES WITH (MODULUS 2, REMAINDER 0)",
        "CREATE TABLE audit_records_1 PARTITION OF audit_records FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
        "INSERT INTO audit_records
         SELECT gen_random_uuid(), gen_random_uuid(), now() - days * interval '1 day', days::text
           FROM generate_series(1, 50) AS n, unnest(ARRAY[29, 31]) AS days ORDER BY n, days",
    ] {
        owner.execute(sql).await.expect("made");
    }
    assert_eq!(database.store.purge_audit_records(database.store.now(), 1_000).await.expect("purged"), 50);
    let left = "SELECT DISTINCT resource FROM audit_records";
    let left: Vec<String> = sqlx::query_scalar(left).fetch_all(&mut owner).await.expect("readable");
    assert_eq!(left, ["29"]);
    database.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_function_of_the_schema_tells_rows_by_where_they_lie() {
    let database = Database::new().await;
    let by_place =
        "SELECT proname FROM pg_proc WHERE pronamespace = current_schema()::regnamespace AND prosrc LIKE '%ctid%'";
    let mut owner = database.connection().await;
    let by_place: Vec<String> = sqlx::query_scalar(by_place).fetch_all(&mut owner).await.expect("readable");
    assert!(by_place.is_empty(), "{by_place:?}");
    database.end().await;
}
