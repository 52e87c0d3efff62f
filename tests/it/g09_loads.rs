//! G9 at the database: however much one tenant has waiting there, and however long it takes to read, the others have their turn, and so
//! has what is new of its own.

use chrono::TimeDelta;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::sync::Mutex;

use crate::delayed::{TYPE, later};
use crate::harness::database::Cluster;
use crate::harness::{Answer, Receiver, Tenant, World, eventually};

/// Nothing that is held up is given up while the test runs.
const SETTINGS: &str = "[dispatch]\nloads_max = 8\n[database]\nconnections_max = 32\nstatement_timeout_ms = 300000\nanswer_timeout_ms = 400000\n";
/// Of the reads that there may be, those of what waits of one tenant.
const READS_MAX: i64 = 4;
/// Subscriptions that have something waiting.
const WAITING: usize = 20;

/// Holds up whoever reads what waits of the tenant, until the connection is closed.
async fn hold_up(world: &World, tenant: &Tenant) -> PgConnection {
    let mut holder = Cluster::superuser(&world.database_url).await;
    let sql = format!(
        "SELECT pg_advisory_lock(1);
         CREATE FUNCTION held_up() RETURNS boolean LANGUAGE plpgsql
             AS 'BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN true; END';
         DO $$ BEGIN
             EXECUTE format('CREATE POLICY held_up ON deferred_invocations AS RESTRICTIVE FOR SELECT USING (tenant_id <> %L OR held_up())',
                            (SELECT tenant_id FROM tenants WHERE slug = '{}'));
         END $$",
        tenant.slug
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut holder).await.expect("they are held up");
    holder
}

/// How many reads are held up.
async fn held_up(watcher: &mut PgConnection) -> i64 {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'";
    sqlx::query_scalar(sql).fetch_one(watcher).await.expect("a count")
}

#[tokio::test]
async fn g9_what_waits_of_one_tenant_leaves_turns_to_others_and_to_what_is_new_of_its_own() {
    let world = World::start_with(1, SETTINGS).await;
    let (busy, quiet) = (world.tenant().await, world.tenant().await);
    let receiver = Receiver::start().await;
    let paths: Vec<String> = (0..WAITING).map(|n| format!("/waiting/{n}")).collect();
    busy.declare("CUSTOM_BUSY").await;
    for path in &paths {
        receiver.answers(path, [Answer::Status(500), Answer::Status(200)]);
        busy.subscribe("CUSTOM_BUSY", &receiver, path).await;
    }
    receiver.answers("/quiet", [Answer::Status(500), Answer::Status(200)]);
    for (tenant, path) in [(&busy, "/busy"), (&quiet, "/quiet")] {
        tenant.declare(TYPE).await;
        tenant.subscribe(TYPE, &receiver, path).await;
    }
    let holder = hold_up(&world, &busy).await;
    let watcher = Cluster::superuser(&world.database_url).await;
    // Each is to be tried again, for which it is read.
    busy.publish("CUSTOM_BUSY", &json!({})).await;
    let watcher = Mutex::new(watcher);
    let held_up = async || held_up(&mut *watcher.lock().await).await;
    eventually("as many are read as may be", || async {
        let held = held_up().await;
        if held == READS_MAX { Ok(()) } else { Err(held) }
    })
    .await;

    // A delayed event is read from the log wherever it is committed, and the quiet tenant's retry is read too.
    for tenant in [&busy, &quiet] {
        tenant.try_publish(later(TimeDelta::seconds(1))).await.expect("it is accepted");
    }
    receiver.receives("/quiet", 2).await;
    receiver.receives("/busy", 1).await;
    assert_eq!(held_up().await, READS_MAX, "and no more of what is held up has begun");

    holder.close().await.expect("the connection closes");
    for path in &paths {
        receiver.receives(path, 2).await;
    }
}
