//! The one private Postgres of a test run, and a database per world, copied from a migrated template.
//!
//! Only the harness speaks SQL; tests speak gRPC and HTTP.

use std::path::PathBuf;
use std::process::Stdio;

use carillon::dev::{PrivatePostgres, Search};
use sqlx::{Connection as _, Executor as _, PgConnection};
use tokio::sync::{Mutex, OnceCell};

use super::process::Process;
use super::shared_runtime;
use super::wait::eventually;

/// The database that others are copied from.
const TEMPLATE: &str = "carillon_template";

/// Where the tests look for Postgres: as `carillon dev` does.
pub fn search() -> Search {
    let path = std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    let cache = std::env::var_os("CARILLON_CACHE")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/carillon")));
    Search::system(path, cache.map(|cache| cache.join("postgres")))
}

/// A Postgres with a migrated template.
#[derive(Debug)]
pub struct Cluster {
    /// The server; tests of crashes kill one of their own.
    pub postgres: PrivatePostgres,
}

impl Cluster {
    /// The cluster that all tests share.
    pub async fn shared() -> &'static Cluster {
        static SHARED: OnceCell<Cluster> = OnceCell::const_new();
        SHARED
            .get_or_init(|| async {
                // The server's child handle belongs to a runtime that lives as long as the process.
                shared_runtime().spawn(Cluster::start()).await.expect("the shared Postgres starts")
            })
            .await
    }

    /// A cluster of one's own.
    pub async fn start() -> Cluster {
        let postgres = PrivatePostgres::throwaway(&search()).await.expect("a private Postgres starts");
        let cluster = Cluster { postgres };
        cluster.create(TEMPLATE, None).await;
        let status = tokio::process::Command::from(migrate(&cluster.owner_url(TEMPLATE)))
            .stdin(Stdio::null())
            .output()
            .await
            .expect("carillon migrate runs");
        assert!(status.status.success(), "carillon migrate: {}", String::from_utf8_lossy(&status.stderr));
        cluster
    }

    /// The URL of a database, as the role that a server uses it as.
    pub fn url(&self, database: &str) -> String {
        self.postgres.server_url().replacen("/carillon?", &format!("/{database}?"), 1)
    }

    /// The URL of a database, as the role that owns its tables.
    pub fn owner_url(&self, database: &str) -> String {
        self.postgres.url().replacen("/carillon?", &format!("/{database}?"), 1)
    }

    /// Makes a database with the schema and nothing in it, and returns its URL.
    pub async fn database(&self) -> String {
        let name = format!("t_{}", uuid::Uuid::new_v4().simple());
        self.create(&name, Some(TEMPLATE)).await;
        self.url(&name)
    }

    /// Makes a copy of the database of a server's URL, as restoring a backup does, and returns its URL. Nobody may be connected to it.
    pub async fn copy(&self, server_url: &str) -> String {
        let source = server_url.split('?').next().and_then(|url| url.rsplit('/').next()).expect("a database");
        let name = format!("t_{}", uuid::Uuid::new_v4().simple());
        self.create(&name, Some(source)).await;
        self.url(&name)
    }

    /// A connection to the database of a server's URL that nothing holds back.
    pub async fn superuser(server_url: &str) -> PgConnection {
        PgConnection::connect(&superuser_url(server_url)).await.expect("Postgres answers")
    }

    /// Runs statements that no client of the service could: settings of Postgres, what somebody at the database may do.
    pub async fn run(server_url: &str, sql: String) {
        let mut connection = Self::superuser(server_url).await;
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.expect("the statements run");
        connection.close().await.expect("the connection closes");
    }

    /// Waits until a statement that begins like this waits for a lock of the database of a server's URL.
    pub async fn is_held_up(server_url: &str, beginning: &str) {
        let watcher = Mutex::new(Self::superuser(server_url).await);
        let sql = "SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND wait_event_type = 'Lock' AND starts_with(query, $1)";
        eventually(&format!("{beginning} waits for a lock"), || async {
            let found = sqlx::query_scalar(sql).bind(beginning).fetch_one(&mut *watcher.lock().await).await;
            if found.is_ok_and(|found: i64| found > 0) { Ok(()) } else { Err("not yet") }
        })
        .await;
    }

    async fn create(&self, name: &str, template: Option<&str>) {
        let mut connection = PgConnection::connect(&self.postgres.url()).await.expect("the private Postgres answers");
        let template = template.map(|template| format!(" TEMPLATE {template}")).unwrap_or_default();
        // Both names are made of letters, digits and underscores by this file.
        let statement = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}{template}"));
        connection.execute(statement).await.expect("a database can be made");
        connection.close().await.expect("the connection closes");
    }
}

/// The same database as the superuser of the cluster.
pub fn superuser_url(server_url: &str) -> String {
    server_url.replacen("//carillon_server@", "//carillon_owner@", 1)
}

/// The same database as the role that owns its tables.
pub fn owner_url(server_url: &str) -> String {
    server_url.replacen("//carillon_server@", "//carillon@", 1)
}

/// `carillon migrate` for a database.
fn migrate(owner_url: &str) -> std::process::Command {
    let mut command = Process::carillon();
    command.args(["migrate", "--grant-to", "carillon_server"]).env("CARILLON_DATABASE__URL", owner_url);
    command
}
