//! Opens connections to receivers: guard, TCP, TLS, in this order and to a checked address only.
//!
//! The HTTP client calls it when no pooled connection is idle. It must never connect to an address that the guard did not
//! return, and never hand out a connection whose certificate was not verified.

use super::egress::{Blocked, EgressGuard, ResolveError};
use crate::domain::ids::TenantId;
use crate::executor::{Config, ExecutorError};
use futures::stream::{FuturesUnordered, StreamExt as _};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{CertificateError, ClientConfig, RootCertStore};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long one address may take before the next is tried beside it. Source: RFC 8305, "Connection Attempt Delay".
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);

tokio::task_local! {
    /// Whom the request is sent for that a connection is opened for: the client hands over nothing but the URI.
    static TENANT: TenantId;
}

/// Sends a request for a tenant, by a client whose connections a [`Connector`] opens.
pub(super) async fn sent_for<T>(tenant: TenantId, request: impl Future<Output = T>) -> T {
    TENANT.scope(tenant, request).await
}

/// The setting that names the file of further roots.
const EXTRA_CA: &str = "extra_ca_file";

/// Opens connections for the pooled client. Cheap to clone.
#[derive(Clone)]
pub struct Connector {
    guard: Arc<EgressGuard>,
    tls: TlsConnector,
    connect_timeout: Duration,
    tls_timeout: Duration,
    open: OpenConnections,
}

/// Why there is no connection. No text names an address.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The guard refuses the target.
    #[error(transparent)]
    Blocked(Blocked),
    /// The name does not resolve.
    #[error("the host name cannot be resolved")]
    NotFound,
    /// The name servers cannot answer.
    #[error("the name servers failed to answer: {0}")]
    Unanswered(&'static str),
    /// The name's servers, the receiver, or its TLS took too long.
    #[error("{0} took too long")]
    Timeout(&'static str),
    /// No address accepts connections.
    #[error("no connection could be made")]
    Refused(#[source] io::Error),
    /// TLS broke or was not trusted.
    #[error("the TLS handshake failed: {0}")]
    Tls(&'static str, #[source] io::Error),
}

impl ConnectError {
    /// True where another try a moment later would find the same: a connection that breaks may not break again.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Blocked(_) | Self::NotFound | Self::Refused(_) => true,
            Self::Tls(_, error) => rustls_fault(error).is_some(),
            Self::Unanswered(_) | Self::Timeout(_) => false,
        }
    }
}

impl Connector {
    /// Loads the trusted roots: the system's, and those of the settings.
    pub fn new(config: &Config, guard: Arc<EgressGuard>) -> Result<Self, ExecutorError> {
        let mut roots = RootCertStore::empty();
        let system = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(system.certs);
        if let Some(path) = &config.extra_ca_file {
            add_roots(&mut roots, path)?;
        }
        if roots.is_empty() {
            tracing::warn!("no trusted root certificates were found: every https webhook will fail");
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().map_err(ExecutorError::Tls)?;
        let mut tls = builder.with_root_certificates(roots).with_no_client_auth();
        // HTTP/2 would share one connection among all who call a receiver, and a receiver that hangs on some calls, up to the number of
        // streams that it allows, would hold up all others.
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            guard,
            tls: TlsConnector::from(Arc::new(tls)),
            connect_timeout: Duration::from_millis(config.connect_timeout_ms),
            tls_timeout: Duration::from_millis(config.tls_timeout_ms),
            open: OpenConnections::default(),
        })
    }

    /// The connections that are open, for whoever counts them.
    pub(super) fn open(&self) -> OpenConnections {
        self.open.clone()
    }

    async fn connect(self, tenant: Option<TenantId>, uri: http::Uri) -> Result<TokioIo<ReceiverStream>, ConnectError> {
        self.guard.check(&uri).map_err(ConnectError::Blocked)?;
        let host = uri.host().unwrap_or_default();
        let https = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        let addresses = self.guard.resolve(tenant, host, port).await.map_err(|error| match error {
            ResolveError::Blocked(blocked) => ConnectError::Blocked(blocked),
            ResolveError::NotFound => ConnectError::NotFound,
            ResolveError::Unanswered(why) => ConnectError::Unanswered(why),
            ResolveError::Timeout => ConnectError::Timeout("resolving the host name"),
        })?;
        let open = self.open.one();
        let tcp = match timeout(self.connect_timeout, connect_first(&addresses)).await {
            Ok(connected) => connected.map_err(ConnectError::Refused)?,
            Err(_) => return Err(ConnectError::Timeout("connecting")),
        };
        // Requests are written in one piece; waiting for more would only delay them.
        tcp.set_nodelay(true).map_err(ConnectError::Refused)?;
        if !https {
            return Ok(TokioIo::new(ReceiverStream { transport: Transport::Plain(tcp), _open: open }));
        }
        let bare = host.trim_start_matches('[').trim_end_matches([']', '.']);
        let name = ServerName::try_from(bare.to_owned()).map_err(|_| ConnectError::Blocked(Blocked::Host))?;
        match timeout(self.tls_timeout, self.tls.connect(name, tcp)).await {
            Ok(Ok(tls)) => Ok(TokioIo::new(ReceiverStream { transport: Transport::Tls(Box::new(tls)), _open: open })),
            Ok(Err(error)) => Err(ConnectError::Tls(tls_fault(&error), error)),
            Err(_) => Err(ConnectError::Timeout("the TLS handshake")),
        }
    }
}

fn add_roots(roots: &mut RootCertStore, path: &Path) -> Result<(), ExecutorError> {
    let pem = std::fs::read(path).map_err(|error| ExecutorError::ReadExtraCa(EXTRA_CA, error))?;
    let before = roots.len();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|_| ExecutorError::ParseExtraCa(EXTRA_CA))?;
        roots.add(certificate).map_err(|_| ExecutorError::ParseExtraCa(EXTRA_CA))?;
    }
    if roots.len() == before { Err(ExecutorError::ParseExtraCa(EXTRA_CA)) } else { Ok(()) }
}

/// Connects to the addresses in their order, each a little after the one before, at once where that one failed.
async fn connect_first(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut waiting = addresses.iter();
    let mut running = FuturesUnordered::new();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        match waiting.next() {
            Some(address) => running.push(TcpStream::connect(*address)),
            None if running.is_empty() => return Err(last),
            None => {}
        }
        // With nothing left to start, an elapsed delay only polls the same attempts again.
        match timeout(NEXT_ADDRESS_AFTER, running.next()).await {
            Ok(Some(Ok(stream))) => return Ok(stream),
            Ok(Some(Err(error))) => last = error,
            Ok(None) | Err(_) => {}
        }
    }
}

/// What TLS itself found wrong; none where the connection broke under it.
fn rustls_fault(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}

/// What went wrong in the words of one who runs a receiver.
fn tls_fault(error: &io::Error) -> &'static str {
    use CertificateError as Fault;
    match rustls_fault(error) {
        Some(rustls::Error::InvalidCertificate(fault)) => match fault {
            Fault::UnknownIssuer => "the receiver's certificate is not signed by a trusted authority",
            Fault::Expired | Fault::ExpiredContext { .. } => "the receiver's certificate has expired",
            Fault::NotValidForName | Fault::NotValidForNameContext { .. } => {
                "the receiver's certificate is for another host name"
            }
            _ => "the receiver's certificate is not valid",
        },
        Some(rustls::Error::AlertReceived(_)) => "the receiver refused it",
        Some(rustls::Error::InvalidMessage(_)) => "the receiver does not speak TLS",
        Some(_) => "the receiver broke the protocol",
        None => "the connection broke",
    }
}

impl tower::Service<http::Uri> for Connector {
    type Response = TokioIo<ReceiverStream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: http::Uri) -> Self::Future {
        // Called within the request, also where what follows goes on without it.
        let tenant = TENANT.try_with(|tenant| *tenant).ok();
        Box::pin(self.clone().connect(tenant, uri))
    }
}

/// Counts the connections of a [`Connector`] and of its clones, those included that are being made.
///
/// The client holds a clone of its connector for each request that runs, so clones must not count.
#[derive(Debug, Clone, Default)]
pub(super) struct OpenConnections(Arc<AtomicUsize>);

impl OpenConnections {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// One more, until this is dropped.
    fn one(&self) -> Counted {
        self.0.fetch_add(1, Ordering::Relaxed);
        Counted(self.clone())
    }
}

/// One connection that counts.
struct Counted(OpenConnections);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An open connection to a receiver.
pub struct ReceiverStream {
    transport: Transport,
    _open: Counted,
}

enum Transport {
    /// Plain TCP.
    Plain(TcpStream),
    /// TLS with a verified certificate.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection for ReceiverStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for ReceiverStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Transport::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for ReceiverStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().transport {
            Transport::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Transport::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().transport {
            Transport::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Transport::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.transport {
            Transport::Plain(tcp) => tcp.is_write_vectored(),
            Transport::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Transport::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Transport::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
