//! The processes under test: this same program as `dev`, `serve` and `bench-echo`, each a child whose processor time and
//! memory can be told from the client's.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::process;
use crate::cli::attributes::string;
use crate::cli::client::{ApiKey, ClientFile, Identity, InternalClient, PublicClient, call};
use crate::cli::error::CliError;
use crate::cli::subscribe::webhook;
use crate::clock;
use crate::dev;
use crate::dev::ca::{self, Ca, CertRequest};
use crate::proto::cloudevents::CloudEvent;
use crate::proto::cloudevents::cloud_event::Data;
use crate::proto::internal::{
    CreateApiKeyRequest, CreateAppRequest, CreatePublisherIdentityRequest, CreateTenantRequest, PublishRequest, Role,
};
use crate::proto::public::{CreateEventTypeRequest, DeliveryPolicy, EventPhase, SubscribeRequest, WebhookMode};

/// How long a child may take until it is ready; a debug build makes a cluster first.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a child may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How long one call may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// The program of this process.
const PROGRAM: &str = "/proc/self/exe";

/// How a child's memory is backed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// As it is wherever the program runs.
    Usual,
    /// By small pages alone. Where the kernel backs memory by 2 MiB at a time, as much as a thousand watches hold is lost in the rounding.
    Small,
}

/// A throw-away folder, removed at the end.
#[derive(Debug)]
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed stays below the folder for temporary files.
        let _left = fs::remove_dir_all(&self.0);
    }
}

/// A child that says when it is ready.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// Its process id.
    pub pid: u32,
    /// From its start to its ready file.
    pub start: Duration,
}

/// A whole throw-away service.
#[derive(Debug)]
pub struct Service {
    running: Running,
    /// Where it listens and what opens it.
    pub access: ClientFile,
    folder: Folder,
    pages: Pages,
}

/// A second replica on the service's database.
#[derive(Debug)]
pub struct Replica {
    /// The child.
    pub running: Running,
    /// Where it listens and what opens it.
    pub access: ClientFile,
}

/// The bare server.
#[derive(Debug)]
pub struct Echo {
    /// The child.
    pub running: Running,
    /// The port of mutual TLS.
    pub mutual: String,
    /// The plain port.
    pub plain: String,
}

#[derive(Deserialize)]
struct Ready {
    public: SocketAddr,
    internal: SocketAddr,
}

#[derive(Deserialize)]
struct EchoReady {
    mutual: u16,
    plain: u16,
}

impl Service {
    /// Starts `carillon dev` in a folder of its own.
    pub async fn start(postgres: Option<&Path>, pages: Pages) -> Result<Self, CliError> {
        let name = clock::new_uuid().simple().to_string();
        let path = Path::new("/tmp").join(format!("carillon-bench-{}", &name[20..]));
        fs::DirBuilder::new().mode(0o711).create(&path).map_err(CliError::file("make", &path))?;
        let folder = Folder(path.clone());
        let mut command = program(pages);
        command.arg("dev").arg("--dir").arg(&path);
        command.args(["--port", "0", "--internal-port", "0", "--ops-port", "0", "--set", "log.level=warn"]);
        if let Some(postgres) = postgres {
            command.arg("--postgres").arg(postgres);
        }
        let (running, _): (_, Ready) = start(command, &path, "dev").await?;
        Ok(Self { running, access: ClientFile::load(&path)?, folder, pages })
    }

    /// The server's process.
    pub fn pid(&self) -> u32 {
        self.running.pid
    }

    /// Processor time of Postgres so far.
    pub fn postgres_cpu(&self) -> Duration {
        process::postgres_cpu_below(self.running.pid)
    }

    /// The address of its database, as the role that owns it.
    pub fn database_url(&self) -> Result<String, CliError> {
        let path = self.folder.0.join("carillon.toml");
        let text = fs::read_to_string(&path).map_err(CliError::file("read", &path))?;
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| CliError::FileContent {
            path: path.clone(),
            reason: error.message().to_owned(),
        })?;
        let url = table.get("database").and_then(|section| section.get("migrate_url")?.as_str());
        url.map(str::to_owned)
            .ok_or(CliError::FileContent { path, reason: "database.migrate_url is missing".to_owned() })
    }

    /// The same database as the superuser of its cluster.
    pub fn owner_url(&self) -> Result<String, CliError> {
        let url = self.database_url()?;
        let place = url.split_once('@').map_or(url.as_str(), |(_, place)| place);
        Ok(format!("postgres://{}@{place}", dev::OWNER))
    }

    /// The log of its Postgres.
    pub fn postgres_log(&self) -> PathBuf {
        self.folder.0.join("pg").join("log").join("postgres.log")
    }

    /// Starts `carillon serve` on the same database, its public port over TLS where asked for.
    pub async fn replica(&self, public: PublicPort) -> Result<Replica, CliError> {
        let folder = &self.folder.0;
        let mut command = program(self.pages);
        command.arg("serve").arg("--config").arg(folder.join("carillon.toml"));
        let mut set = |setting: String| {
            command.arg("--set").arg(setting);
        };
        for port in ["public", "internal", "ops"] {
            set(format!("server.{port}_listen=127.0.0.1:0"));
        }
        set("log.level=warn".to_owned());
        if public == PublicPort::Tls {
            let files = self.server_certificate();
            set(format!("server.tls.certificate_file={}", files.cert.display()));
            set(format!("server.tls.key_file={}", files.key.display()));
        }
        let (running, ready): (_, Ready) = start(command, folder, "serve").await?;
        let mut access = self.access.clone();
        access.url = Some(match public {
            PublicPort::Plain => format!("http://{}", ready.public),
            PublicPort::Tls => format!("https://localhost:{}", ready.public.port()),
        });
        access.internal_url = Some(format!("https://localhost:{}", ready.internal.port()));
        Ok(Replica { running, access })
    }

    /// Starts the bare server with the same certificates.
    pub async fn echo(&self) -> Result<Echo, CliError> {
        let files = self.server_certificate();
        let ca = self.access.ca.clone().unwrap_or_default();
        let mut command = program(self.pages);
        command.arg("bench-echo").arg("--cert").arg(&files.cert).arg("--key").arg(&files.key).arg("--ca").arg(ca);
        let (running, ready): (_, EchoReady) = start(command, &self.folder.0, "echo").await?;
        Ok(Echo {
            running,
            mutual: format!("https://localhost:{}", ready.mutual),
            plain: format!("http://127.0.0.1:{}", ready.plain),
        })
    }

    fn server_certificate(&self) -> Identity {
        let certificates = self.folder.0.join("certs");
        Identity { cert: certificates.join("server.pem"), key: certificates.join("server.key") }
    }

    /// A tenant of its own, with an app, a key and a publisher.
    pub async fn another_tenant(&self, slug: &str) -> Result<ClientFile, CliError> {
        let folder = self.folder.0.join("certs");
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).map_err(CliError::file("read", &path))
        };
        let unusable = |error: dev::Error| CliError::Result(format!("no certificate can be made: {error}"));
        let ca = Ca::from_pem(&read("ca.pem")?, &read("ca.key")?).map_err(unusable)?;
        let uri = format!("spiffe://carillon.local/publisher/{slug}");
        let issued = ca::issue(&ca, &CertRequest::client(slug, &uri, clock::now())).map_err(unusable)?;
        let identity = Identity { cert: folder.join(format!("{slug}.pem")), key: folder.join(format!("{slug}.key")) };
        for (path, text) in [(&identity.cert, &issued.cert_pem), (&identity.key, &issued.key_pem)] {
            fs::write(path, text).map_err(CliError::file("write", path))?;
        }
        let (Some(url), Some(admin)) = (&self.access.internal_url, &self.access.admin) else {
            return Err(incomplete());
        };
        let client = InternalClient::connect(url, admin, self.access.ca.as_deref(), DEADLINE).await?;
        let (mut admin, tenant) = (client.admin(), slug.to_owned());
        let request = CreateTenantRequest { slug: tenant.clone(), display_name: String::new(), ..Default::default() };
        call("CreateTenant", admin.create_tenant(client.request(request))).await?;
        let app = self.access.app.clone().unwrap_or_default();
        let request =
            CreateAppRequest { tenant: tenant.clone(), slug: app, display_name: String::new(), ..Default::default() };
        call("CreateApp", admin.create_app(client.request(request))).await?;
        let subject = format!("uri:{uri}");
        let request = CreatePublisherIdentityRequest {
            tenant: tenant.clone(),
            subject,
            event_types: Vec::new(),
            ..Default::default()
        };
        call("CreatePublisherIdentity", admin.create_publisher_identity(client.request(request))).await?;
        let request =
            CreateApiKeyRequest { tenant: tenant.clone(), role: Role::Admin.into(), ..CreateApiKeyRequest::default() };
        let key = call("CreateApiKey", admin.create_api_key(client.request(request))).await?;
        let mut access = self.access.clone();
        access.tenant = Some(tenant);
        access.api_key = Some(ApiKey::from(key.secret));
        access.publisher = Some(identity);
        Ok(access)
    }

    /// Ends it and removes its folder.
    pub async fn stop(self) {
        self.running.stop().await;
        drop(self.folder);
    }
}

/// How a replica's public port is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublicPort {
    /// Plain text.
    Plain,
    /// TLS with the dev certificate.
    Tls,
}

impl Running {
    /// Asks it to end, and kills it where it does not.
    pub async fn stop(mut self) {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            // It may have ended by itself.
            let _gone = kill_process(pid, Signal::TERM);
        }
        if timeout(STOP_LIMIT, self.child.wait()).await.is_err() {
            let _gone = self.child.kill().await;
        }
    }
}

/// This same program, as a child.
fn program(pages: Pages) -> Command {
    let mut command = Command::new(PROGRAM);
    if pages == Pages::Small {
        // The allocator asks the kernel for it.
        command.env("MIMALLOC_ALLOW_THP", "0");
    }
    command
}

/// Starts a child and waits for its ready file.
async fn start<T: DeserializeOwned>(mut command: Command, folder: &Path, name: &str) -> Result<(Running, T), CliError> {
    let unique = clock::new_uuid().simple().to_string();
    let ready_file = folder.join(format!("{name}-{unique}.ready"));
    let log = folder.join(format!("{name}-{unique}.log"));
    let log_file = fs::File::create(&log).map_err(CliError::file("create", &log))?;
    command.arg("--ready-file").arg(&ready_file);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log_file).kill_on_drop(true);
    let started = Instant::now();
    let mut child = command.spawn().map_err(CliError::file("start", PROGRAM))?;
    let ended = |what: &str| {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let tail: Vec<&str> = text.lines().rev().take(5).collect();
        CliError::Result(format!(
            "`carillon {name}` {what}: {}",
            tail.into_iter().rev().collect::<Vec<_>>().join(" / ")
        ))
    };
    loop {
        if let Ok(text) = fs::read_to_string(&ready_file) {
            let start = started.elapsed();
            let ready = serde_json::from_str(&text).map_err(|_| ended("wrote an unknown ready file"))?;
            let pid = child.id().ok_or_else(|| ended("has ended"))?;
            return Ok((Running { child, pid, start }, ready));
        }
        if child.try_wait().is_ok_and(|status| status.is_some()) {
            return Err(ended("has ended"));
        }
        if started.elapsed() > START_LIMIT {
            return Err(ended("is not ready in time"));
        }
        sleep(Duration::from_millis(1)).await;
    }
}

/// Connections to the internal port.
pub async fn publishers(access: &ClientFile, count: usize) -> Result<Vec<InternalClient>, CliError> {
    let (Some(url), Some(identity)) = (&access.internal_url, &access.publisher) else { return Err(incomplete()) };
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(InternalClient::connect(url, identity, access.ca.as_deref(), DEADLINE).await?);
    }
    Ok(clients)
}

/// A connection to the public port.
pub async fn reader(access: &ClientFile) -> Result<PublicClient, CliError> {
    let url = access.url.as_deref().ok_or_else(incomplete)?;
    PublicClient::connect(url, access.api_key.as_ref(), access.ca.as_deref(), DEADLINE).await
}

fn incomplete() -> CliError {
    CliError::Result("client.toml is not complete".to_owned())
}

/// The schema of the bench's event types.
const SCHEMA: &str = r#"{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object","required":["seq","order_id","amount","currency"],"properties":{"seq":{"type":"integer","minimum":0},"order_id":{"type":"string","maxLength":64},"amount":{"type":"number","minimum":0},"currency":{"type":"string","pattern":"^[A-Z]{3}$"},"note":{"type":"string"}}}"#;

/// Length of the data of every event, bytes.
pub const PAYLOAD_BYTES: usize = 300;

/// Registers a CUSTOM type with a schema, so that every publish is validated.
pub async fn declare(client: &PublicClient, event_type: &str) -> Result<(), CliError> {
    let request = CreateEventTypeRequest {
        name: event_type.to_owned(),
        display_name: "Bench".to_owned(),
        schema: SCHEMA.to_owned(),
        ..CreateEventTypeRequest::default()
    };
    call("CreateEventType", client.event_types().create_event_type(client.request(request))).await.map(drop)
}

/// Registers a CUSTOM type whose listeners must agree, with the same schema.
pub async fn declare_pre(client: &PublicClient, event_type: &str) -> Result<(), CliError> {
    let request = CreateEventTypeRequest {
        name: event_type.to_owned(),
        phase: EventPhase::Pre.into(),
        schema: SCHEMA.to_owned(),
        ..CreateEventTypeRequest::default()
    };
    call("CreateEventType", client.event_types().create_event_type(client.request(request))).await.map(drop)
}

/// Subscribes a webhook with a filter; answers with the subscription's id.
pub async fn subscribe(
    client: &PublicClient,
    access: &ClientFile,
    event_type: &str,
    url: String,
    filter: &str,
) -> Result<String, CliError> {
    subscribe_with(client, access, event_type, url, filter, policy()).await
}

/// How deliveries are attempted where a figure asks for nothing else.
pub fn policy() -> DeliveryPolicy {
    DeliveryPolicy {
        max_in_flight: 256,
        initial_backoff: Some(Duration::from_millis(100).into()),
        ..DeliveryPolicy::default()
    }
}

/// The same with a delivery policy.
pub async fn subscribe_with(
    client: &PublicClient,
    access: &ClientFile,
    event_type: &str,
    url: String,
    filter: &str,
    delivery_policy: DeliveryPolicy,
) -> Result<String, CliError> {
    let request = SubscribeRequest {
        app: access.app.clone().unwrap_or_default(),
        event_type: event_type.to_owned(),
        target: Some(webhook(url, WebhookMode::Structured, [])),
        filter: filter.to_owned(),
        delivery_policy: Some(delivery_policy),
        ..SubscribeRequest::default()
    };
    let answer = call("Subscribe", client.events().subscribe(client.request(request))).await?;
    let missing = CliError::Answer { rpc: "Subscribe", what: "subscription" };
    answer.subscription.map(|subscription| subscription.id).ok_or(missing)
}

/// An event with 300 bytes of JSON that fits the schema.
pub fn event(event_type: &str, seq: u64) -> PublishRequest {
    let mut data = format!(r#"{{"seq":{seq},"order_id":"o-{seq}","amount":12.5,"currency":"EUR","note":""#);
    let fill = PAYLOAD_BYTES.saturating_sub(data.len() + 2);
    data.extend(std::iter::repeat_n('x', fill));
    data.push_str("\"}");
    let attributes = [("subject", "order"), ("datacontenttype", "application/json")];
    let event = CloudEvent {
        id: String::new(),
        source: "https://shop.example".to_owned(),
        spec_version: "1.0".to_owned(),
        r#type: event_type.to_owned(),
        attributes: attributes.map(|(name, value)| (name.to_owned(), string(value))).into(),
        data: Some(Data::TextData(data)),
    };
    PublishRequest { event: Some(event), ..PublishRequest::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_has_the_same_size_and_is_json() {
        for seq in [0, 123_456_789] {
            let Some(Data::TextData(text)) = event("CUSTOM_x", seq).event.and_then(|event| event.data) else {
                panic!("an event has text");
            };
            assert_eq!(text.len(), PAYLOAD_BYTES);
            let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(value["seq"], seq);
        }
    }
}
