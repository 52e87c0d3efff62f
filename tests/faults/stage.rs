//! The stage of a run: a private Postgres, the proxy before it, replicas, and a tenant; everything in one folder that is
//! gone at the end.
//!
//! Faults act on the parts of a stage, parties on its addresses. It must never leave a process, a mount or a folder behind:
//! each has a watchdog that ends it where this process cannot.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use carillon::dev::account::own_folder;
use carillon::dev::{Ca, CertRequest, Options, PrivatePostgres, Search};
use carillon::proto::internal::admin_service_client::AdminServiceClient;
use carillon::proto::internal::{
    CreateApiKeyRequest, CreateAppRequest, CreatePublisherIdentityRequest, CreateTenantRequest, Role,
};
use chrono::TimeDelta;
use serde::Deserialize;
use sqlx::{Connection as _, Executor as _, PgConnection};

use super::connect::{Identity, mutual};
use super::process::Process;
use super::proxy::Proxy;
use super::until;

/// Leases are as short as they may be, so that a takeover takes seconds.
pub const LEASE: Duration = Duration::from_secs(2);
/// The app that owns the subscriptions.
pub const APP: &str = "shop";
const DATABASE: &str = "faults";
const TENANT: &str = "faults";
const OPERATOR: &str = "spiffe://carillon.test/operator";
const PUBLISHER: &str = "spiffe://carillon.test/publisher";
/// Small disks by name. There is room on them for a long run, and little enough to be filled in a moment.
const TABLES: (&str, &str) = ("tables", "size=768m,mode=0755");
const WAL: (&str, &str) = ("wal", "size=512m,mode=0755");
/// Unmounts the small disks in `$1` and removes it when standard input ends.
const SWEEPER: &str = "read -r _; umount -l \"$1/tables\" \"$1/wal\" 2>/dev/null; sleep 2; rm -rf -- \"$1\"";

/// Where a replica listens, as it announces itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Addresses {
    pub public: String,
    pub internal: String,
}

/// The addresses of the replicas as they are now, for every party.
pub type Directory = Arc<RwLock<Vec<Addresses>>>;

/// What to build.
#[derive(Debug, Clone)]
pub struct Shape {
    /// The `carillon` that serves.
    pub program: PathBuf,
    /// The planted defect it is told to have; empty for none.
    pub planted: String,
    pub replicas: usize,
    /// Whether the tables and the write-ahead log are to lie on small disks of their own, which needs the right to mount.
    pub small_disks: bool,
}

/// Where the small disks are.
pub struct Disks {
    pub tables: PathBuf,
    pub wal: PathBuf,
}

/// Everything that runs.
pub struct Stage {
    pub postgres: PrivatePostgres,
    pub proxy: Proxy,
    pub replicas: Vec<Process>,
    pub directory: Directory,
    /// An API key, role admin.
    pub key: String,
    /// May publish.
    pub publisher: Identity,
    /// None where everything is on one large disk.
    pub disks: Option<Disks>,
    shape: Shape,
    operator: Identity,
    started: usize,
    /// Dropped last.
    folder: Folder,
}

impl Stage {
    /// Builds everything; returns when every replica is ready and the tenant exists.
    pub async fn build(shape: Shape) -> anyhow::Result<Self> {
        let folder = Folder::make(shape.small_disks)?;
        let dir = folder.path.clone();
        let path = std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
        let cache = std::env::var_os("CARILLON_CACHE").map(|cache| PathBuf::from(cache).join("postgres"));
        let mut options = Options::new(dir.join("pg"));
        // What is not on disk when it is acknowledged stays in memory for long: a crash then shows it.
        let mut settings =
            vec![("max_connections", "60"), ("wal_writer_delay", "10000ms"), ("wal_writer_flush_after", "1GB")];
        if shape.small_disks {
            // So that it fits on its disk.
            settings.extend([("min_wal_size", "64MB"), ("max_wal_size", "192MB")]);
        }
        options.settings = settings.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let search = Search::system(path, cache);
        let mut postgres = PrivatePostgres::start(&search, options.clone()).await?;
        let disks = shape.small_disks.then(|| Disks { tables: dir.join(TABLES.0), wal: dir.join(WAL.0) });
        if let Some(disks) = &disks {
            let (from, to) = (postgres.places().data.join("pg_wal"), disks.wal.join("pg_wal"));
            postgres.stop().await?;
            let moved = Command::new("mv").args([&from, &to]).output()?;
            ensure!(moved.status.success(), "the write-ahead log: {}", String::from_utf8_lossy(&moved.stderr));
            std::os::unix::fs::symlink(&to, &from)?;
            postgres = PrivatePostgres::start(&search, options).await?;
        }
        let mut owner = PgConnection::connect(&postgres.owner_url("postgres")).await?;
        let mut place = String::new();
        if let Some(disks) = &disks {
            let tables = disks.tables.join("pg_tables");
            own_folder(&tables, 0o700, postgres.places().account.as_ref())?;
            let statement = format!("CREATE TABLESPACE small OWNER carillon LOCATION '{}'", tables.display());
            owner.execute(sqlx::AssertSqlSafe(statement)).await?;
            " TABLESPACE small".clone_into(&mut place);
        }
        let statement = format!("CREATE DATABASE {DATABASE} OWNER carillon{place}");
        owner.execute(sqlx::AssertSqlSafe(statement)).await?;
        owner.close().await?;
        let proxy = Proxy::start(postgres.places().socket()).await?;
        let ca = certificates(&dir)?;
        let (operator, publisher) = (Identity::issue(&ca, OPERATOR), Identity::issue(&ca, PUBLISHER));
        fs::write(dir.join("carillon.toml"), configuration(&dir, proxy.port()))?;
        let mut stage = Self {
            postgres,
            proxy,
            replicas: Vec::new(),
            directory: Directory::default(),
            key: String::new(),
            publisher,
            disks,
            shape,
            operator,
            started: 0,
            folder,
        };
        let migrated = stage.carillon().arg("migrate").arg("--config").arg(dir.join("carillon.toml")).output()?;
        ensure!(migrated.status.success(), "carillon migrate: {}", String::from_utf8_lossy(&migrated.stderr));
        for index in 0..stage.shape.replicas {
            stage.launch(index).await?;
        }
        stage.key = stage.tenant().await?;
        Ok(stage)
    }

    /// Starts a replica in a place, which is empty or holds one that has ended.
    pub async fn launch(&mut self, index: usize) -> anyhow::Result<()> {
        self.started += 1;
        let name = format!("replica-{}", self.started);
        let ready = self.folder.path.join(format!("{name}.ready"));
        let mut command = self.carillon();
        command.arg("serve").arg("--config").arg(self.folder.path.join("carillon.toml"));
        command.arg("--ready-file").arg(&ready);
        let mut process = Process::spawn(command, &self.folder.path.join(format!("{name}.log")))?;
        let addresses: Addresses = until("a replica is ready", Duration::from_secs(60), || {
            let looked = fs::read_to_string(&ready).ok().and_then(|text| serde_json::from_str(&text).ok());
            let state = looked.ok_or_else(|| format!("running: {}\n{}", process.is_running(), process.log_tail()));
            std::future::ready(state)
        })
        .await?;
        let mut directory = self.directory.write().expect("no reader panics");
        if index < self.replicas.len() {
            self.replicas[index] = process;
            directory[index] = addresses;
        } else {
            self.replicas.push(process);
            directory.push(addresses);
        }
        Ok(())
    }

    /// A connection to the tables' database as the superuser, past the proxy.
    pub async fn owner(&self) -> anyhow::Result<PgConnection> {
        Ok(PgConnection::connect(&self.postgres.owner_url(DATABASE)).await?)
    }

    /// The address that a party without privileges connects to, past the proxy.
    pub fn plain_url(&self) -> String {
        self.postgres.server_url().replacen("/carillon?", &format!("/{DATABASE}?"), 1)
    }

    /// The files that replicas and Postgres write, kept for a person who looks for a cause.
    pub fn keep_logs(&self, into: &Path) -> anyhow::Result<()> {
        for entry in fs::read_dir(&self.folder.path)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                fs::copy(&path, into.join(path.file_name().context("a file has a name")?))?;
            }
        }
        fs::copy(&self.postgres.places().log, into.join("postgres.log"))?;
        Ok(())
    }

    /// Ends everything, in order.
    pub async fn end(mut self) -> anyhow::Result<()> {
        for replica in &mut self.replicas {
            replica.kill();
        }
        drop(self.proxy);
        self.postgres.stop().await?;
        Ok(())
    }

    fn carillon(&self) -> Command {
        let mut command = Command::new(&self.shape.program);
        // Settings of the machine that runs the suite must not reach the program.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CARILLON_")) {
            command.env_remove(name);
        }
        if !self.shape.planted.is_empty() {
            command.env("PLANTED_DEFECT", &self.shape.planted);
        }
        command
    }

    async fn tenant(&self) -> anyhow::Result<String> {
        let address = self.directory.read().expect("no writer panics")[0].internal.clone();
        let mut admin = AdminServiceClient::new(mutual(&address, &self.operator));
        admin.create_tenant(CreateTenantRequest { slug: TENANT.to_owned(), ..Default::default() }).await?;
        let (tenant, app) = (TENANT.to_owned(), APP.to_owned());
        admin.create_app(CreateAppRequest { tenant: tenant.clone(), slug: app, ..Default::default() }).await?;
        let subject = format!("uri:{PUBLISHER}");
        let identity = CreatePublisherIdentityRequest {
            tenant: tenant.clone(),
            subject,
            event_types: Vec::new(),
            ..Default::default()
        };
        admin.create_publisher_identity(identity).await?;
        let key = CreateApiKeyRequest { tenant, role: Role::Admin.into(), ..Default::default() };
        Ok(admin.create_api_key(key).await?.into_inner().secret)
    }
}

fn certificates(dir: &Path) -> anyhow::Result<Ca> {
    let now = carillon::clock::now();
    let ca = Ca::generate("carillon faults CA", now - TimeDelta::hours(1), now + TimeDelta::days(1))?;
    let server = carillon::dev::ca::issue(&ca, &CertRequest::server(now))?;
    fs::write(dir.join("ca.pem"), ca.cert_pem())?;
    fs::write(dir.join("server.pem"), &server.cert_pem)?;
    fs::write(dir.join("server.key"), &server.key_pem)?;
    Ok(ca)
}

fn configuration(dir: &Path, port: u16) -> String {
    let (dir, lease) = (dir.display(), LEASE.as_millis());
    format!(
        r#"[database]
url = "postgres://carillon_server@127.0.0.1:{port}/{DATABASE}?sslmode=disable"
migrate_url = "postgres://carillon@127.0.0.1:{port}/{DATABASE}?sslmode=disable"
connections_max = 8
acquire_timeout_ms = 2000
statement_timeout_ms = 5000

[server]
public_listen = "127.0.0.1:0"
internal_listen = "127.0.0.1:0"
ops_listen = "127.0.0.1:0"

[server.internal_tls]
certificate_file = "{dir}/server.pem"
key_file = "{dir}/server.key"
client_ca_file = "{dir}/ca.pem"

[operators]
subjects = ["uri:{OPERATOR}"]

[secrets]
keys = [{{ id = "faults", key = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=" }}]

[executor]
allow_http = true
allow_private_ranges = ["127.0.0.0/8"]

[dispatch]
lease_ms = {lease}
poll_ms = 200

[pending]
lease_ms = {lease}
"#
    )
}

/// The folder of a stage with the small disks in it.
struct Folder {
    path: PathBuf,
    mounted: Vec<PathBuf>,
    sweeper: Child,
}

impl Folder {
    fn make(small_disks: bool) -> anyhow::Result<Self> {
        let name = uuid::Uuid::new_v4().simple().to_string();
        let path = PathBuf::from(format!("/tmp/carillon-faults-{}", &name[..12]));
        own_folder(&path, 0o711, None)?;
        let sweeper = Command::new("sh")
            .args(["-c", SWEEPER, "sweeper"])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut folder = Self { path, mounted: Vec::new(), sweeper };
        for (name, options) in [TABLES, WAL].into_iter().filter(|_| small_disks) {
            let small = folder.path.join(name);
            own_folder(&small, 0o755, None)?;
            let mount = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&small).output();
            match mount {
                Ok(output) if output.status.success() => folder.mounted.push(small),
                Ok(output) => bail!(
                    "the faults disk_full and wal_full need the right to mount a tmpfs: {}",
                    String::from_utf8_lossy(&output.stderr).trim()
                ),
                Err(error) => bail!("the faults disk_full and wal_full need the program `mount`: {error}"),
            }
        }
        Ok(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        for mounted in &self.mounted {
            // Lazily: where the run ended badly, Postgres may still be closing its files.
            let _status = Command::new("umount").arg("-l").arg(mounted).status();
        }
        let _left_behind = fs::remove_dir_all(&self.path);
        let _gone_already = self.sweeper.kill();
        let _status = self.sweeper.wait();
    }
}
