//! A service as it is run for real: a database of its own and one or more `carillon serve` processes on it.
//!
//! Most tests share one world with two replicas and make a tenant each, which is also how tenants live. Tests that
//! kill, drain or configure something make a world of their own.

use std::fs;
use std::path::PathBuf;

use carillon::dev::{Ca, CertRequest};
use chrono::TimeDelta;
use serde::Deserialize;
use sqlx::Connection as _;
use tempfile::TempDir;
use tokio::sync::OnceCell;
use tonic::transport::Channel;
use uuid::Uuid;

use super::connect::{Identity, mutual, plain};
use super::database::Cluster;
use super::process::{Confinement, Process};
use super::tenant::Tenant;
use super::wait::eventually;

/// The identity that may administer.
pub const OPERATOR: &str = "spiffe://carillon.test/operator";

/// The origin that browsers may call from.
pub const ORIGIN: &str = "https://console.example.com";

/// Where a replica listens, as it announces itself.
#[derive(Debug, Clone, Deserialize)]
pub struct Addresses {
    /// gRPC and gRPC-Web for clients.
    pub public: String,
    /// gRPC over mutual TLS.
    pub internal: String,
    /// Health and metrics over plain HTTP.
    pub ops: String,
}

/// One `carillon serve`.
#[derive(Debug)]
pub struct Replica {
    /// The process.
    pub process: Process,
    /// Where it listens.
    pub addresses: Addresses,
}

/// A database and its replicas.
pub struct World {
    /// The authority of every certificate of this world.
    pub ca: Ca,
    /// The replicas, in the order of their start.
    pub replicas: Vec<Replica>,
    /// The folder of configuration, certificates and logs.
    pub dir: TempDir,
    /// May administer.
    pub operator: Identity,
    /// A Postgres of its own, for tests that kill it.
    pub own: Option<Cluster>,
    /// The database's URL.
    pub database_url: String,
    /// More settings (TOML) of the replicas that start from now on.
    pub settings: String,
    /// Variables of the environment of the replicas that start from now on.
    pub environment: Vec<(&'static str, String)>,
    /// What the replicas that start from now on are confined to.
    pub confinement: Option<Confinement>,
    started: usize,
}

impl World {
    /// The world that most tests share: two replicas on one database.
    pub async fn shared() -> &'static World {
        static SHARED: OnceCell<World> = OnceCell::const_new();
        SHARED
            .get_or_init(|| async {
                let start = async {
                    let world = World::start(2).await;
                    world.shared_out().await;
                    world
                };
                super::shared_runtime().spawn(start).await.expect("the shared replicas start")
            })
            .await
    }

    /// Waits until every replica has its share of what is dispatched.
    pub async fn shared_out(&self) {
        eventually("the shards are shared out", || async {
            let mut connection = Cluster::superuser(&self.database_url).await;
            let owners: Vec<Option<Uuid>> = sqlx::query_scalar("SELECT DISTINCT owner FROM shard_leases")
                .fetch_all(&mut connection)
                .await
                .expect("owners");
            connection.close().await.expect("the connection closes");
            if owners.len() == self.replicas.len() && !owners.contains(&None) { Ok(()) } else { Err(owners) }
        })
        .await;
    }

    /// A world of one's own on the shared Postgres.
    pub async fn start(replicas: usize) -> World {
        Self::start_with(replicas, "").await
    }

    /// As [`World::start`], with more settings (TOML); `{dir}` stands for the world's folder.
    pub async fn start_with(replicas: usize, settings: &str) -> World {
        let url = Cluster::shared().await.database().await;
        Self::on(url, None, replicas, settings).await
    }

    /// A world on a Postgres of its own.
    pub async fn with_own_postgres(replicas: usize) -> World {
        let cluster = Cluster::start().await;
        let url = cluster.database().await;
        Self::on(url, Some(cluster), replicas, "").await
    }

    async fn on(database_url: String, own: Option<Cluster>, replicas: usize, settings: &str) -> World {
        let dir = tempfile::Builder::new().prefix("carillon-it-").tempdir().expect("a temporary folder");
        let now = carillon::clock::now();
        let ca = Ca::generate("carillon test CA", now - TimeDelta::hours(1), now + TimeDelta::days(1)).expect("a CA");
        let server = carillon::dev::ca::issue(&ca, &CertRequest::server(now)).expect("a certificate");
        for (name, text) in
            [("ca.pem", ca.cert_pem()), ("server.pem", &server.cert_pem), ("server.key", &server.key_pem)]
        {
            fs::write(dir.path().join(name), text).expect("a file in the temporary folder");
        }
        let operator = Identity::issue(&ca, OPERATOR);
        let settings = settings.to_owned();
        let mut world = World {
            ca,
            replicas: Vec::new(),
            dir,
            operator,
            own,
            database_url,
            settings,
            environment: Vec::new(),
            confinement: None,
            started: 0,
        };
        for _ in 0..replicas {
            world.add_replica().await;
        }
        world
    }

    /// Starts one more replica and waits until it is ready.
    pub async fn add_replica(&mut self) -> usize {
        let replica = self.launch().await;
        self.replicas.push(replica);
        self.replicas.len() - 1
    }

    /// Kills a replica as a crash would and starts another in its place.
    pub async fn replace(&mut self, index: usize) {
        self.replicas[index].process.kill();
        self.replicas[index] = self.launch().await;
    }

    /// Starts a replica.
    async fn launch(&mut self) -> Replica {
        self.started += 1;
        let name = format!("replica-{}", self.started);
        let file = self.path(&format!("{name}.toml"));
        let ready = self.path(&format!("{name}.ready"));
        fs::write(&file, self.configuration()).expect("a configuration file");
        let mut command = self.confinement.as_ref().map_or_else(Process::carillon, Process::carillon_in);
        command.arg("serve").arg("--config").arg(&file).arg("--ready-file").arg(&ready);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let mut process = Process::spawn(command, &self.path(&format!("{name}.log"))).expect("carillon starts");
        let addresses = eventually("the replica is ready", || {
            assert!(process.is_running(), "carillon serve ended: {}", process.log_tail());
            let looked = fs::read_to_string(&ready)
                .map_err(|error| format!("{error}\n{}", process.log_tail()))
                .and_then(|text| serde_json::from_str::<Addresses>(&text).map_err(|error| format!("{error}: {text}")));
            async move { looked }
        })
        .await;
        Replica { process, addresses }
    }

    /// Makes the events of every tenant up to a position a number of days older, as if the world had run for that long. No
    /// replica may run, and everything must be delivered.
    pub async fn age_log(&self, up_to: i64, days: i32) {
        let mut connection = Cluster::superuser(&self.database_url).await;
        let old: String =
            sqlx::query_scalar("SELECT to_char(now() AT TIME ZONE 'UTC' - make_interval(days => $1), 'YYYYMMDD')")
                .bind(days)
                .fetch_one(&mut connection)
                .await
                .expect("a date");
        for table in ["events", "outcomes", "attempts"] {
            let sql = format!(
                "SELECT make_partition('{table}', '{old}');
                 UPDATE {table} SET day = '{old}' WHERE position <= {up_to}"
            );
            sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.expect("aged");
        }
        let sql = format!(
            "UPDATE events SET committed_at = committed_at - make_interval(days => {days}) WHERE day = '{old}'"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.expect("aged");
        // What was delivered last may not be behind the cursor yet: it is written once a second.
        let sql = "UPDATE dispatch_cursors c SET position = h.position, day = CURRENT_DATE FROM tenant_heads h
                    WHERE h.tenant_id = c.tenant_id";
        sqlx::raw_sql(sql).execute(&mut connection).await.expect("moved");
        connection.close().await.expect("the connection closes");
    }

    /// A file in the world's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A new tenant with an app, an API key and a publisher.
    pub async fn tenant(&self) -> Tenant {
        Tenant::create(self).await
    }

    /// A channel to a replica's public port.
    pub fn public(&self, replica: usize) -> Channel {
        plain(&self.replicas[replica].addresses.public)
    }

    /// A channel to a replica's internal port.
    pub fn internal(&self, replica: usize, identity: &Identity) -> Channel {
        mutual(&self.replicas[replica].addresses.internal, identity)
    }

    /// The configuration file of a replica: every port free, loopback receivers allowed.
    fn configuration(&self) -> String {
        let dir = self.dir.path().display();
        let url = &self.database_url;
        let text = format!(
            r#"[database]
url = "{url}"

[server]
public_listen = "127.0.0.1:0"
internal_listen = "127.0.0.1:0"
ops_listen = "127.0.0.1:0"
cors_origins = ["{ORIGIN}"]

[server.internal_tls]
certificate_file = "{dir}/server.pem"
key_file = "{dir}/server.key"
client_ca_file = "{dir}/ca.pem"

[operators]
subjects = ["uri:{OPERATOR}"]

[secrets]
keys = [{{ id = "test", key = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=" }}]

[executor]
allow_http = true
allow_private_ranges = ["127.0.0.0/8"]
"#
        );
        let mut settings: toml::Table = text.parse().expect("the base is TOML");
        let more = self.settings.replace("{dir}", &dir.to_string());
        overlay(&mut settings, more.parse().expect("the settings are TOML"));
        settings.to_string()
    }
}

/// Puts settings over others, table by table.
fn overlay(base: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(base)), toml::Value::Table(over)) => overlay(base, over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}
