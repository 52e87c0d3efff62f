//! Connections to a server: the public port with an API key, the internal port with a client certificate.
//!
//! What is not given by flag or environment comes from `client.toml` in the folder of `carillon dev`, so that commands
//! beside a running `dev` need no flags at all. Credentials are read here and never printed.

use std::ffi::OsString;
use std::fmt;
use std::future::Future;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use super::error::CliError;
use super::values::parse_duration;
use crate::proto::internal::admin_service_client::AdminServiceClient;
use crate::proto::internal::publish_service_client::PublishServiceClient;
use crate::proto::public::event_service_client::EventServiceClient;
use crate::proto::public::event_type_service_client::EventTypeServiceClient;
use crate::proto::public::invocation_service_client::InvocationServiceClient;

/// Where the public port is, where nothing says otherwise.
const DEFAULT_URL: &str = "http://127.0.0.1:7070";

/// Where the internal port is, where nothing says otherwise.
const DEFAULT_INTERNAL_URL: &str = "https://localhost:7071";

/// How long a connection may take, TLS included.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// How long a server's first word is waited for: one that accepts the certificate waits for the client's, so every command takes so
/// long, and a refusal from further away is told less exactly.
const FIRST_WORD: Duration = Duration::from_millis(100);

/// The largest answer that is read; a page ends at 2 MiB, and one event may be larger than that.
const ANSWER_BYTES_MAX: usize = 32 << 20;

/// What every connection has.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Connection")]
pub struct CommonArgs {
    /// Folder of `carillon dev`; its client.toml holds what the other connection options leave out [default: .carillon]
    #[arg(
        long,
        env = "CARILLON_DIR",
        default_value = "",
        hide_default_value = true,
        global = true,
        value_name = "FOLDER"
    )]
    pub dir: DevFolder,
    /// PEM file of the authorities to trust for TLS instead of the system's
    #[arg(long, env = "CARILLON_CA", global = true, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Longest wait for one call
    #[arg(long, default_value = "30s", value_parser = parse_duration, global = true, value_name = "DURATION")]
    pub deadline: Duration,
}

/// The folder of a `carillon dev`, where one is named. An empty name, as of a variable that is set to nothing, names none.
#[derive(Debug, Clone)]
pub struct DevFolder(Option<PathBuf>);

impl From<OsString> for DevFolder {
    fn from(name: OsString) -> Self {
        Self((!name.is_empty()).then(|| name.into()))
    }
}

impl DevFolder {
    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.as_deref().unwrap_or(Path::new(".carillon"))
    }

    /// Its `client.toml`. Nothing is known where there is none and no folder is named.
    fn client_file(&self) -> Result<ClientFile, CliError> {
        match ClientFile::load(self.path()) {
            Err(CliError::File { source, .. }) if self.0.is_none() && source.kind() == ErrorKind::NotFound => {
                Ok(ClientFile::default())
            }
            loaded => loaded,
        }
    }
}

/// How to reach the public port.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Connection")]
pub struct PublicArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Public port [default: that of client.toml, or http://127.0.0.1:7070]
    #[arg(long, env = "CARILLON_URL", global = true, value_name = "URL")]
    url: Option<String>,
    /// API key, `car_...` [default: that of client.toml]
    #[arg(long, env = "CARILLON_API_KEY", hide_env_values = true, global = true, value_name = "KEY")]
    api_key: Option<ApiKey>,
}

/// How to reach the internal port.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Connection")]
pub struct InternalArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Internal port [default: that of client.toml, or https://localhost:7071]
    #[arg(long, env = "CARILLON_INTERNAL_URL", global = true, value_name = "URL")]
    internal_url: Option<String>,
    /// PEM file of the client certificate [default: that of client.toml]
    #[arg(long, env = "CARILLON_CERT", global = true, value_name = "FILE", requires = "key_file")]
    cert: Option<PathBuf>,
    /// PEM file of the certificate's key [default: that of client.toml]
    #[arg(long, env = "CARILLON_KEY_FILE", global = true, value_name = "FILE", requires = "cert")]
    key_file: Option<PathBuf>,
}

/// An API key; its `Debug` shows nothing.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ApiKey(String);

impl ApiKey {
    /// The key as it goes into the `authorization` header.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for ApiKey {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for ApiKey {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(..)")
    }
}

/// What `carillon dev` leaves for the commands beside it: `client.toml`.
///
/// *Shape*: relative paths count from the file's folder.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientFile {
    /// The public port.
    pub url: Option<String>,
    /// The internal port.
    pub internal_url: Option<String>,
    /// Credential of the public port.
    pub api_key: Option<ApiKey>,
    /// The tenant's slug, for `carillon admin`.
    pub tenant: Option<String>,
    /// The app's slug, for `carillon subscribe`.
    pub app: Option<String>,
    /// PEM file of the authority to trust.
    pub ca: Option<PathBuf>,
    /// Certificate for Publish.
    pub publisher: Option<Identity>,
    /// Certificate for Admin.
    pub admin: Option<Identity>,
}

/// A client certificate's two PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// For what the internal port is called: each has a certificate of its own in `client.toml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// PublishService.
    Publish,
    /// AdminService.
    Admin,
}

impl ClientFile {
    /// The file's place in a folder.
    pub fn path(dir: &Path) -> PathBuf {
        dir.join("client.toml")
    }

    /// Reads a folder's file.
    ///
    /// *Errors*: [`CliError::File`]; [`CliError::FileContent`] names the line that is wrong.
    pub fn load(dir: &Path) -> Result<Self, CliError> {
        let path = Self::path(dir);
        let text = std::fs::read_to_string(&path).map_err(CliError::file("read", &path))?;
        // Only the message: the error's own text quotes the line, which may hold the key.
        let mut file: Self = toml::from_str(&text)
            .map_err(|error: toml::de::Error| CliError::FileContent { path, reason: error.message().to_owned() })?;
        let absolute = |path: &mut PathBuf| *path = dir.join(&*path);
        file.ca.as_mut().map(absolute);
        for identity in [&mut file.publisher, &mut file.admin].into_iter().flatten() {
            absolute(&mut identity.cert);
            absolute(&mut identity.key);
        }
        Ok(file)
    }
}

impl PublicArgs {
    /// The app to use where none is given: that of `client.toml`.
    pub fn app(&self, given: Option<String>) -> Result<String, CliError> {
        let app = match given {
            Some(app) => Some(app),
            None => self.common.dir.client_file()?.app,
        };
        app.ok_or_else(|| CliError::Usage("name the app with --app or CARILLON_APP".to_owned()))
    }

    /// Connects.
    ///
    /// *Errors*: [`CliError::Connect`].
    pub async fn connect(&self) -> Result<PublicClient, CliError> {
        let file = self.common.dir.client_file()?;
        let url = self.url.clone().or(file.url).unwrap_or_else(|| DEFAULT_URL.to_owned());
        let ca = self.common.ca.clone().or(file.ca);
        let api_key = self.api_key.clone().or(file.api_key);
        PublicClient::connect(&url, api_key.as_ref(), ca.as_deref(), self.common.deadline).await
    }
}

impl InternalArgs {
    /// The tenant to use where none is given: that of `client.toml`.
    pub fn tenant(&self, given: Option<String>) -> Result<String, CliError> {
        let tenant = match given {
            Some(tenant) => Some(tenant),
            None => self.common.dir.client_file()?.tenant,
        };
        tenant.ok_or_else(|| CliError::Usage("name the tenant with --tenant or CARILLON_TENANT".to_owned()))
    }

    /// Connects with the certificate given, or with the one that `client.toml` has for the purpose.
    ///
    /// *Errors*: [`CliError::Connect`]; [`CliError::Usage`] without a certificate.
    pub async fn connect(&self, purpose: Purpose) -> Result<InternalClient, CliError> {
        let file = self.common.dir.client_file()?;
        let url = self.internal_url.clone().or(file.internal_url).unwrap_or_else(|| DEFAULT_INTERNAL_URL.to_owned());
        let ca = self.common.ca.clone().or(file.ca);
        let given = self.cert.clone().zip(self.key_file.clone()).map(|(cert, key)| Identity { cert, key });
        let identity = given.or(match purpose {
            Purpose::Publish => file.publisher,
            Purpose::Admin => file.admin,
        });
        let identity = identity.ok_or_else(|| {
            let why = "the internal port needs a client certificate: give --cert and --key-file, or run the command beside \
                       `carillon dev`";
            CliError::Usage(why.to_owned())
        })?;
        InternalClient::connect(&url, &identity, ca.as_deref(), self.common.deadline).await
    }
}

/// A connection to the public port. Cheap to clone.
#[derive(Debug, Clone)]
pub struct PublicClient {
    channel: InterceptedService<Channel, Bearer>,
    deadline: Duration,
}

impl PublicClient {
    /// Connects to a URL; without a key the server will refuse most calls.
    pub async fn connect(
        url: &str,
        api_key: Option<&ApiKey>,
        ca: Option<&Path>,
        deadline: Duration,
    ) -> Result<Self, CliError> {
        let bearer = api_key.map(|key| MetadataValue::try_from(format!("Bearer {}", key.reveal()))).transpose();
        let mut bearer =
            bearer.map_err(|_| CliError::Usage("the API key holds characters that no key has".to_owned()))?;
        if let Some(bearer) = &mut bearer {
            bearer.set_sensitive(true);
        }
        let channel = connect(url, None, ca).await?;
        Ok(Self { channel: InterceptedService::new(channel, Bearer(bearer)), deadline })
    }

    /// The connection itself, with the API key in every call.
    pub fn channel(&self) -> InterceptedService<Channel, Bearer> {
        self.channel.clone()
    }

    /// EventService.
    pub fn events(&self) -> EventServiceClient<InterceptedService<Channel, Bearer>> {
        EventServiceClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// EventTypeService.
    pub fn event_types(&self) -> EventTypeServiceClient<InterceptedService<Channel, Bearer>> {
        EventTypeServiceClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// InvocationService.
    pub fn invocations(&self) -> InvocationServiceClient<InterceptedService<Channel, Bearer>> {
        InvocationServiceClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// A unary request with the connection's deadline.
    pub fn request<T>(&self, message: T) -> Request<T> {
        with_deadline(message, self.deadline)
    }

    /// A unary request whose answer may take `wait` longer than the connection's deadline.
    pub fn patient_request<T>(&self, message: T, wait: Duration) -> Request<T> {
        with_deadline(message, self.deadline + wait)
    }
}

/// A connection to the internal port. Cheap to clone.
#[derive(Debug, Clone)]
pub struct InternalClient {
    channel: Channel,
    deadline: Duration,
}

impl InternalClient {
    /// Connects to a URL with a certificate.
    pub async fn connect(
        url: &str,
        identity: &Identity,
        ca: Option<&Path>,
        deadline: Duration,
    ) -> Result<Self, CliError> {
        Ok(Self { channel: connect(url, Some(identity), ca).await?, deadline })
    }

    /// The bare connection, for callers with a codec of their own.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// PublishService.
    pub fn publish(&self) -> PublishServiceClient<Channel> {
        PublishServiceClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// AdminService.
    pub fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// A unary request with the connection's deadline.
    pub fn request<T>(&self, message: T) -> Request<T> {
        with_deadline(message, self.deadline)
    }

    /// A unary request whose answer may take `wait` longer than the connection's deadline.
    pub fn patient_request<T>(&self, message: T, wait: Duration) -> Request<T> {
        with_deadline(message, self.deadline + wait)
    }
}

/// Awaits a unary call and takes the message out of its answer.
pub async fn call<T>(
    rpc: &'static str,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, CliError> {
    answer.await.map(Response::into_inner).map_err(CliError::call(rpc))
}

fn with_deadline<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

/// Puts the API key into every call.
#[derive(Debug, Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(bearer) = &self.0 {
            request.metadata_mut().insert("authorization", bearer.clone());
        }
        Ok(request)
    }
}

/// A byte stream to the server, with or without TLS.
trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// Opens a channel; TLS is done here, so that the one TLS stack of the project serves clients too.
///
/// *Errors*: [`CliError::Connect`].
pub async fn connect(url: &str, identity: Option<&Identity>, ca: Option<&Path>) -> Result<Channel, CliError> {
    let uri: Uri = url.parse().map_err(|_| CliError::Usage(format!("`{url}` is not a URL")))?;
    let tls = match uri.scheme_str() {
        Some("https") => Some(TlsConnector::from(Arc::new(tls_config(identity, ca)?))),
        Some("http") => None,
        _ => return Err(CliError::Usage(format!("`{url}` must start with http:// or https://"))),
    };
    let endpoint = Endpoint::from(uri)
        .connect_timeout(CONNECT_LIMIT)
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true);
    let shows = identity.is_some();
    let connector = tower::service_fn(move |uri: Uri| open(uri, tls.clone(), shows));
    endpoint.connect_with_connector(connector).await.map_err(|error| CliError::connect(url, identity, &error))
}

async fn open(
    uri: Uri,
    tls: Option<TlsConnector>,
    shows_certificate: bool,
) -> Result<TokioIo<Box<dyn Socket>>, std::io::Error> {
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    let Some(tls) = tls else { return Ok(TokioIo::new(Box::new(stream))) };
    let name = ServerName::try_from(host.to_owned()).map_err(std::io::Error::other)?;
    let mut stream = BufReader::new(tls.connect(name, stream).await?);
    // In TLS 1.3 a server refuses a certificate when the client is through with the handshake: later, the refusal would be lost
    // behind a call that ended. What a server says first is kept in the buffer.
    if shows_certificate && let Ok(first) = tokio::time::timeout(FIRST_WORD, stream.fill_buf()).await {
        first?;
    }
    Ok(TokioIo::new(Box::new(stream)))
}

/// Trusts the file's authorities, or the system's where none is given; shows the certificate where one is given.
fn tls_config(identity: Option<&Identity>, ca: Option<&Path>) -> Result<ClientConfig, CliError> {
    let mut roots = rustls::RootCertStore::empty();
    if let Some(path) = ca {
        roots.add_parsable_certificates(certificates(path)?);
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    let unusable = |path: &Path, reason: String| CliError::FileContent { path: path.to_owned(), reason };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider serves the default versions")
        .with_root_certificates(roots);
    let mut config = match identity {
        Some(Identity { cert, key }) => {
            let pem = std::fs::read(key).map_err(CliError::file("read", key))?;
            let key_der = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| unusable(key, error.to_string()))?;
            let chain = certificates(cert)?;
            builder.with_client_auth_cert(chain, key_der).map_err(|error| unusable(cert, error.to_string()))?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CliError> {
    let pem = std::fs::read(path).map_err(CliError::file("read", path))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let unusable = |reason: String| CliError::FileContent { path: path.to_owned(), reason };
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(unusable("it holds no certificate".to_owned())),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(unusable(error.to_string())),
    }
}
