//! Channels to a replica: plain text to the public port, mutual TLS to the internal one.

use std::sync::Arc;
use std::time::Duration;

use carillon::dev::{Ca, CertRequest, Issued};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tower::service_fn;

/// A client certificate and the authority that the server must show.
#[derive(Clone)]
pub struct Identity {
    /// PEM of the certificate.
    pub cert_pem: String,
    /// PEM of its key.
    pub key_pem: String,
    config: Arc<ClientConfig>,
}

impl Identity {
    /// Issues a client certificate with one URI identity.
    pub fn issue(ca: &Ca, uri: &str) -> Self {
        let request = CertRequest::client("test client", uri, carillon::clock::now());
        Self::from_issued(ca, &carillon::dev::ca::issue(ca, &request).expect("a certificate"))
    }

    /// Uses a certificate that was issued elsewhere, a wrong one for instance.
    pub fn from_issued(ca: &Ca, issued: &Issued) -> Self {
        let config = trusting(ca)
            .with_client_auth_cert(vec![issued.cert_der.clone()], issued.key_der().expect("a key"))
            .expect("key and certificate match");
        Self { cert_pem: issued.cert_pem.clone(), key_pem: issued.key_pem.clone(), config: with_h2(config) }
    }
}

/// A client without a certificate.
pub fn anonymous(ca: &Ca) -> Arc<ClientConfig> {
    with_h2(trusting(ca).with_no_client_auth())
}

/// A client of HTTP/1.1 without a certificate.
pub fn http1(ca: &Ca) -> Arc<ClientConfig> {
    let mut config = trusting(ca).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

fn trusting(ca: &Ca) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.cert_der().clone()).expect("the authority's certificate is usable");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the default versions exist")
        .with_root_certificates(roots)
}

fn with_h2(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// A channel to the public port. It connects on first use and again after a break.
pub fn plain(address: &str) -> Channel {
    Endpoint::from_shared(format!("http://{address}"))
        .expect("an address")
        .connect_timeout(Duration::from_secs(10))
        .connect_lazy()
}

/// A channel to the internal port with a client certificate.
pub fn mutual(address: &str, identity: &Identity) -> Channel {
    tls(address, identity.config.clone())
}

/// A channel over TLS. It connects on first use and again after a break.
pub fn tls(address: &str, config: Arc<ClientConfig>) -> Channel {
    let address = address.to_owned();
    let connector = TlsConnector::from(config);
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(service_fn(move |_uri| {
        let (address, connector) = (address.clone(), connector.clone());
        async move {
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            let name = ServerName::try_from("localhost").expect("a name");
            Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, tcp).await?))
        }
    }))
}

/// Puts an API key on every call.
#[derive(Clone)]
pub struct Bearer(AsciiMetadataValue);

impl Bearer {
    /// The header for a key's secret.
    pub fn new(secret: &str) -> Self {
        Self(format!("Bearer {secret}").parse().expect("a key is visible ASCII"))
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}
