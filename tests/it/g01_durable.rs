//! G1: what was answered is on disk. A Postgres that would forget it is refused before anything is answered; one that crashes
//! is in `g05_at_least_once`.

use serde_json::json;

use crate::harness::database::Cluster;
use crate::harness::process::Process;
use crate::harness::tenant::publish_request;
use crate::harness::{World, eventually, within};

/// Changes a setting for a world's own database.
async fn set(world: &World, setting: &str) {
    let sql = format!("DO $$ BEGIN EXECUTE format('ALTER DATABASE %I {setting}', current_database()); END $$");
    Cluster::run(&world.database_url, sql).await;
}

#[tokio::test]
async fn a_postgres_that_may_forget_is_refused_with_the_setting_that_is_off() {
    let world = World::start(1).await;
    let file = world.path("replica-1.toml");
    let refused = async |setting: &str| {
        let mut command = Process::carillon();
        command.arg("serve").arg("--config").arg(&file);
        let output = tokio::process::Command::from(command).kill_on_drop(true).output();
        let output = within("carillon ends", output).await.expect("carillon runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{setting}: it started");
        assert!(said.contains(&format!("{setting} = off")), "{setting} is not named: {said}");
    };
    set(&world, "SET synchronous_commit = off").await;
    refused("synchronous_commit").await;
    set(&world, "RESET synchronous_commit").await;
    // The other two belong to the whole Postgres, which other tests trust: here this database only says that they are off.
    set(&world, "SET search_path = public, pg_catalog").await;
    for setting in ["fsync", "full_page_writes"] {
        let sql = format!(
            "CREATE OR REPLACE FUNCTION public.current_setting(name text) RETURNS text LANGUAGE sql AS
             $$ SELECT CASE WHEN name = '{setting}' THEN 'off' ELSE pg_catalog.current_setting(name) END $$"
        );
        Cluster::run(&world.database_url, sql).await;
        refused(setting).await;
    }
}

#[tokio::test]
async fn g01_a_postgres_that_is_told_to_forget_later_commits_as_it_was_found() {
    for found in ["on", "remote_apply"] {
        let mut world = World::start(0).await;
        // Notes how each event is committed.
        let noted = "CREATE SCHEMA noted; CREATE TABLE noted.commits (how text);
             CREATE FUNCTION noted.note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
             $$ BEGIN INSERT INTO noted.commits VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$;
             CREATE TRIGGER noted AFTER INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION noted.note()";
        Cluster::run(&world.database_url, noted.to_owned()).await;
        set(&world, &format!("SET synchronous_commit = {found}")).await;
        world.add_replica().await;
        let tenant = world.tenant().await;
        tenant.declare("CUSTOM_KEPT").await;
        set(&world, "SET synchronous_commit = off").await;
        // Each connection is a new one from here on.
        let ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                      WHERE datname = current_database() AND usename = 'carillon_server'";
        Cluster::run(&world.database_url, ended.to_owned()).await;
        let mut request = publish_request("CUSTOM_KEPT", &json!({}));
        request.idempotency_key = "once".to_owned();
        eventually("it is published", || tenant.try_publish(request.clone())).await;
        let mut connection = Cluster::superuser(&world.database_url).await;
        let how = sqlx::query_scalar("SELECT DISTINCT how FROM noted.commits").fetch_all(&mut connection).await;
        let how: Vec<String> = how.expect("readable");
        assert_eq!(how, [found]);
    }
}

#[tokio::test]
async fn a_lossy_postgres_is_allowed_loudly_for_throw_away_use() {
    let mut world = World::start(0).await;
    set(&world, "SET synchronous_commit = off").await;
    world.settings = "[database]\nunsafe_allow_lossy_postgres = true".to_owned();
    let replica = world.add_replica().await;
    let log = world.replicas[replica].process.log();
    assert!(log.contains("UNSAFE") && log.contains("synchronous_commit"), "{log}");
}
