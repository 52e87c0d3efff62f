//! A whole service for one machine: private Postgres, certificates, keys, a tenant, and the same server as `carillon serve`.
//!
//! Everything lives in one folder and is used again by the next start. What the service needs to know about itself (tenant,
//! app, publisher, API key) it is told through AdminService, like every other deployment; `client.toml` is then what a
//! command needs to find and use it.

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use toml::{Table, Value};

use crate::app::{Addresses, App};
use crate::cli::client::{ApiKey, ClientFile, Identity, InternalClient, PublicClient, call};
use crate::cli::error::CliError;
use crate::clock;
use crate::config::{Config, Sources};
use crate::dev::ca::{ADMIN_URI, PUBLISHER_URI};
use crate::dev::{DevCertificates, Options, PrivatePostgres, Search};
use crate::domain::webhook::SigningSecret;
use crate::proto::internal::{
    CreateApiKeyRequest, CreateAppRequest, CreatePublisherIdentityRequest, CreateTenantRequest, Role,
};
use crate::proto::public::ListEventTypesRequest;
use crate::store::connect;
use crate::telemetry::{self, Traces};

/// The tenant's slug.
const TENANT: &str = "dev";

/// The app's slug.
const APP: &str = "demo";

/// How long one call of the set-up may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// Where the service lives.
#[derive(Debug, Clone)]
pub enum Place {
    /// In a folder, to be used again.
    Folder(PathBuf),
    /// In a folder of its own that is removed at the end.
    Throwaway,
}

/// The ports on loopback; 0 takes a free one.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// gRPC and gRPC-Web.
    pub public: u16,
    /// gRPC over mutual TLS.
    pub internal: u16,
    /// Plain HTTP.
    pub ops: u16,
}

impl Ports {
    /// Three free ones.
    pub fn free() -> Self {
        Self { public: 0, internal: 0, ops: 0 }
    }
}

/// How to start a service.
#[derive(Debug, Clone)]
pub struct DevOptions {
    /// Where it lives.
    pub place: Place,
    /// Where it listens.
    pub ports: Ports,
    /// Where to look for Postgres.
    pub search: Search,
    /// Settings by dotted key, which win over those that are made here.
    pub settings: Vec<(String, String)>,
}

/// A running service.
pub struct DevServer {
    app: App,
    postgres: PrivatePostgres,
    dir: PathBuf,
    client_file: ClientFile,
    traces: Traces,
}

impl DevServer {
    /// Makes what is missing and serves.
    ///
    /// *Errors*: [`CliError::Dev`] without a usable Postgres; [`CliError::App`] where the server cannot start.
    pub async fn start(options: DevOptions) -> Result<Self, CliError> {
        // Before anything is made: what a server would refuse is refused at once.
        Config::load(&Sources::of_process(None, [stand_ins(), options.settings.clone()].concat()))?;
        let postgres = match &options.place {
            Place::Folder(dir) => PrivatePostgres::start(&options.search, Options::new(dir)).await?,
            Place::Throwaway => PrivatePostgres::throwaway(&options.search).await?,
        };
        let dir = postgres.places().dir.clone();
        let made = Self::start_on(&dir, &postgres, &options).await;
        match made {
            Ok((app, client_file, traces)) => Ok(Self { app, postgres, dir, client_file, traces }),
            Err(error) => {
                // The first failure is the one to tell.
                let _stopped = postgres.stop().await;
                Err(error)
            }
        }
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.app.addresses()
    }

    /// The folder it lives in, absolute.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What a client needs; its paths are absolute.
    pub fn client_file(&self) -> &ClientFile {
        &self.client_file
    }

    /// What a person should know about the private Postgres, one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.postgres.places().notes
    }

    /// The server, for whoever waits until it is ready.
    pub fn app(&self) -> &App {
        &self.app
    }

    /// Waits until Postgres ends by itself, which it should not.
    ///
    /// Cancel-safe: it only waits.
    pub async fn postgres_ended(&mut self) {
        self.postgres.ended().await;
    }

    /// Drains, then ends Postgres.
    pub async fn stop(self) -> Result<(), CliError> {
        self.app.stop().await;
        self.traces.stop().await;
        Ok(self.postgres.stop().await?)
    }

    async fn start_on(
        dir: &Path,
        postgres: &PrivatePostgres,
        options: &DevOptions,
    ) -> Result<(App, ClientFile, Traces), CliError> {
        // The folder holds credentials, and often lies in a checkout.
        write_private(&dir.join(".gitignore"), "*\n")?;
        let certificates = DevCertificates::ensure(&dir.join("certs"), clock::now())?;
        let secret_key = dir.join("secret.key");
        if !secret_key.is_file() {
            write_private(&secret_key, &STANDARD.encode(clock::random_bytes::<32>()))?;
        }
        let webhook_secret = dir.join("webhook-secret");
        if !webhook_secret.is_file() {
            let secret = SigningSecret::from_bytes(clock::random_bytes::<32>().to_vec());
            write_private(&webhook_secret, &secret.map(|secret| secret.reveal()).unwrap_or_default())?;
        }
        let config_file = dir.join("carillon.toml");
        let settings = config_table(options.ports, &certificates, &secret_key, postgres);
        let head = "# Written by `carillon dev` at every start: change settings with its --set, not here.\n\n";
        write_private(&config_file, &format!("{head}{settings}"))?;

        // The private database is the point of `dev`: not even the environment may name another one.
        let mut flags = vec![
            ("database.url".to_owned(), postgres.server_url()),
            ("database.migrate_url".to_owned(), postgres.url()),
        ];
        flags.extend(options.settings.clone());
        let config = Config::load(&Sources::of_process(Some(config_file), flags))?;
        let traces = telemetry::start(&config.log, &config.traces)?;
        connect::migrate(&config.database, &[]).await.map_err(crate::app::AppError::from)?;
        // On the heap: with everything that a server is built from it is a large future.
        let app = Box::pin(App::start(config)).await?;
        match set_up(dir, app.addresses(), &certificates).await {
            Ok(client_file) => Ok((app, client_file, traces)),
            Err(error) => {
                app.stop().await;
                Err(error)
            }
        }
    }
}

/// In place of the settings that every server needs and that are made later; they are checked for being there.
fn stand_ins() -> Vec<(String, String)> {
    let tls = ["certificate_file", "key_file", "client_ca_file"];
    let mut settings = tls.map(|file| (format!("server.internal_tls.{file}"), file.to_owned())).to_vec();
    settings.push(("database.url".to_owned(), "postgres:///".to_owned()));
    settings
}

/// The configuration that `carillon serve --config` would take, too.
fn config_table(ports: Ports, certificates: &DevCertificates, secret_key: &Path, postgres: &PrivatePostgres) -> Table {
    let listen = |port| Value::from(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port).to_string());
    let path = |path: &Path| Value::from(path.display().to_string());
    let texts = |texts: &[&str]| Value::from(texts.iter().map(|text| Value::from(*text)).collect::<Vec<_>>());
    let table = |entries: Vec<(&str, Value)>| -> Value {
        Value::Table(entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    };
    let internal_tls = table(vec![
        ("certificate_file", path(&certificates.server.cert)),
        ("key_file", path(&certificates.server.key)),
        ("client_ca_file", path(&certificates.ca)),
    ]);
    let server = table(vec![
        ("public_listen", listen(ports.public)),
        ("internal_listen", listen(ports.internal)),
        ("ops_listen", listen(ports.ops)),
        ("internal_tls", internal_tls),
    ]);
    let key = table(vec![("id", "dev".into()), ("key_file", path(secret_key))]);
    // Receivers on this machine are what one tries first; everything else stays as guarded as in production.
    let executor =
        table(vec![("allow_http", true.into()), ("allow_private_ranges", texts(&["127.0.0.0/8", "::1/128"]))]);
    let sections = [
        ("server", server),
        ("database", table(vec![("url", postgres.server_url().into()), ("migrate_url", postgres.url().into())])),
        ("secrets", table(vec![("keys", Value::Array(vec![key]))])),
        ("operators", table(vec![("subjects", texts(&[&format!("uri:{ADMIN_URI}")]))])),
        ("executor", executor),
    ];
    sections.into_iter().map(|(name, section)| (name.to_owned(), section)).collect()
}

/// Makes tenant, app, publisher and API key, whichever are missing, and writes `client.toml`.
async fn set_up(dir: &Path, addresses: Addresses, certificates: &DevCertificates) -> Result<ClientFile, CliError> {
    let identity = |files: &crate::dev::ca::CertFiles| Identity { cert: files.cert.clone(), key: files.key.clone() };
    let mut file = ClientFile {
        url: Some(format!("http://{}", addresses.public)),
        internal_url: Some(format!("https://localhost:{}", addresses.internal.port())),
        api_key: ClientFile::load(dir).ok().and_then(|file| file.api_key),
        tenant: Some(TENANT.to_owned()),
        app: Some(APP.to_owned()),
        ca: Some(certificates.ca.clone()),
        publisher: Some(identity(&certificates.publisher)),
        admin: Some(identity(&certificates.admin)),
    };
    let internal_url = file.internal_url.clone().unwrap_or_default();
    let client =
        InternalClient::connect(&internal_url, &identity(&certificates.admin), file.ca.as_deref(), DEADLINE).await?;
    let mut admin = client.admin();

    let request =
        CreateTenantRequest { slug: TENANT.to_owned(), display_name: "Development".to_owned(), ..Default::default() };
    let created = call("CreateTenant", admin.create_tenant(client.request(request))).await;
    unless_it_exists(created, "TENANT_EXISTS")?;
    let request = CreateAppRequest {
        tenant: TENANT.to_owned(),
        slug: APP.to_owned(),
        display_name: "Demo".to_owned(),
        ..Default::default()
    };
    let created = call("CreateApp", admin.create_app(client.request(request))).await;
    unless_it_exists(created, "APP_EXISTS")?;
    let subject = format!("uri:{PUBLISHER_URI}");
    let request = CreatePublisherIdentityRequest {
        tenant: TENANT.to_owned(),
        subject,
        event_types: Vec::new(),
        ..Default::default()
    };
    let created = call("CreatePublisherIdentity", admin.create_publisher_identity(client.request(request))).await;
    unless_it_exists(created, "PUBLISHER_IDENTITY_EXISTS")?;

    if !still_opens(&file).await? {
        let request = CreateApiKeyRequest {
            tenant: TENANT.to_owned(),
            role: Role::Admin.into(),
            display_name: "carillon dev".to_owned(),
            ..CreateApiKeyRequest::default()
        };
        let created = call("CreateApiKey", admin.create_api_key(client.request(request))).await?;
        file.api_key = Some(ApiKey::from(created.secret));
    }
    write_private(&dir.join("api-key"), file.api_key.as_ref().map(ApiKey::reveal).unwrap_or_default())?;
    let unusable =
        |error: toml::ser::Error| CliError::FileContent { path: ClientFile::path(dir), reason: error.to_string() };
    let text = toml::to_string(&file).map_err(unusable)?;
    write_private(&ClientFile::path(dir), &text)?;
    Ok(file)
}

fn unless_it_exists<T>(created: Result<T, CliError>, reason: &str) -> Result<(), CliError> {
    match created {
        Err(error) if error.reason().as_deref() != Some(reason) => Err(error),
        _ => Ok(()),
    }
}

/// True where the key of an earlier start is still good; the database may be another one by now.
async fn still_opens(file: &ClientFile) -> Result<bool, CliError> {
    let Some(api_key) = &file.api_key else { return Ok(false) };
    let url = file.url.as_deref().unwrap_or_default();
    let client = PublicClient::connect(url, Some(api_key), None, DEADLINE).await?;
    let request = client.request(ListEventTypesRequest { page_size: 1, ..ListEventTypesRequest::default() });
    match call("ListEventTypes", client.event_types().list_event_types(request)).await {
        Ok(_) => Ok(true),
        Err(error) if error.reason().as_deref() == Some("CREDENTIAL_INVALID") => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes a file that only its owner can read, whole or not at all.
fn write_private(path: &Path, text: &str) -> Result<(), CliError> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let write = || {
        // One that a killed start left behind may have another mode.
        match fs::remove_file(&partial) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&partial, path)
    };
    write().map_err(CliError::file("write", path))
}
