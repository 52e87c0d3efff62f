//! TLS of the ports: reading certificates, reloading them without a restart, and the names in a peer's certificate.
//!
//! One provider (aws-lc-rs), given outright. Peers are known by their subject alternative names alone, never by a common name.

use super::config::{InternalTls, PublicTls};
use crate::domain::access::PeerIdentity;
use arc_swap::ArcSwap;
use rustls::crypto::aws_lc_rs;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// A certificate with more names than this is nobody's.
const SUBJECTS_MAX: usize = 16;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or holds nothing usable.
    #[error("setting server.{key}: {}: {reason}", path.display())]
    File {
        /// The setting that names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The setting is missing.
    #[error("setting server.{0}: is required")]
    Missing(&'static str),
    /// Certificate and key do not go together, or are of a kind that is not supported.
    #[error("the certificate of the {port} port cannot be used")]
    Certificate {
        /// Which port.
        port: &'static str,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The client authorities cannot be used.
    #[error("the client authorities of the internal port cannot be used")]
    Authorities(#[source] rustls::server::VerifierBuilderError),
}

/// The files of a port.
#[derive(Debug, Clone)]
enum Files {
    Public(PublicTls),
    Internal(InternalTls),
}

/// A port's TLS, replaceable while it serves: new connections get the new one.
#[derive(Debug)]
pub struct Tls {
    files: Files,
    current: ArcSwap<ServerConfig>,
    /// Contents of the files as last loaded.
    loaded: Mutex<Vec<Vec<u8>>>,
}

impl Tls {
    /// TLS of the public port.
    pub fn public(files: PublicTls) -> Result<Self, TlsError> {
        Self::load(Files::Public(files))
    }

    /// TLS of the internal port: version 1.3 only, client certificate required.
    pub fn internal(files: InternalTls) -> Result<Self, TlsError> {
        Self::load(Files::Internal(files))
    }

    fn load(files: Files) -> Result<Self, TlsError> {
        let contents = files.read()?;
        let current = ArcSwap::from_pointee(files.build(&contents)?);
        Ok(Self { files, current, loaded: Mutex::new(contents) })
    }

    /// What new connections use.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    /// Reads the files again. Answers whether they had changed; where they cannot be used, the former ones stay.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let contents = self.files.read()?;
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if *loaded == contents {
            return Ok(false);
        }
        self.current.store(Arc::new(self.files.build(&contents)?));
        *loaded = contents;
        Ok(true)
    }
}

impl Files {
    /// (setting, file) of each file that is needed.
    fn list(&self) -> Vec<(&'static str, Option<&PathBuf>)> {
        match self {
            Self::Public(files) => vec![
                ("tls.certificate_file", files.certificate_file.as_ref()),
                ("tls.key_file", files.key_file.as_ref()),
            ],
            Self::Internal(files) => vec![
                ("internal_tls.certificate_file", files.certificate_file.as_ref()),
                ("internal_tls.key_file", files.key_file.as_ref()),
                ("internal_tls.client_ca_file", files.client_ca_file.as_ref()),
            ],
        }
    }

    fn read(&self) -> Result<Vec<Vec<u8>>, TlsError> {
        let read = |(key, path): (&'static str, Option<&PathBuf>)| {
            let path = path.ok_or(TlsError::Missing(key))?;
            fs::read(path).map_err(|error| broken(key, path, error.kind().to_string()))
        };
        self.list().into_iter().map(read).collect()
    }

    fn build(&self, contents: &[Vec<u8>]) -> Result<ServerConfig, TlsError> {
        let list = self.list();
        let place = |index: usize| {
            let (key, path) = list[index];
            (key, path.map_or(Path::new(""), PathBuf::as_path))
        };
        let chain = certificates(place(0), &contents[0])?;
        let (key, path) = place(1);
        let private = PrivateKeyDer::from_pem_slice(&contents[1])
            .map_err(|_| broken(key, path, "holds no private key in PEM".to_owned()))?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let (port, mut config) = match self {
            Self::Public(_) => {
                let builder = ServerConfig::builder_with_provider(provider)
                    .with_safe_default_protocol_versions()
                    .map_err(|source| TlsError::Certificate { port: "public", source })?
                    .with_no_client_auth();
                ("public", builder.with_single_cert(chain, private))
            }
            Self::Internal(_) => {
                let mut roots = RootCertStore::empty();
                let (key, path) = place(2);
                for authority in certificates((key, path), &contents[2])? {
                    roots.add(authority).map_err(|error| broken(key, path, error.to_string()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                    .build()
                    .map_err(TlsError::Authorities)?;
                let builder = ServerConfig::builder_with_provider(provider)
                    .with_protocol_versions(&[&rustls::version::TLS13])
                    .map_err(|source| TlsError::Certificate { port: "internal", source })?
                    .with_client_cert_verifier(verifier);
                ("internal", builder.with_single_cert(chain, private))
            }
        };
        let config = config.as_mut().map_err(|error| TlsError::Certificate { port, source: error.clone() })?;
        config.alpn_protocols = match self {
            // Browsers may come by HTTP/1.1; publishers and operators never do.
            Self::Public(_) => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            Self::Internal(_) => vec![b"h2".to_vec()],
        };
        Ok(config.clone())
    }
}

fn certificates((key, path): (&'static str, &Path), pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err(broken(key, path, "holds no certificate in PEM".to_owned())),
    }
}

fn broken(key: &'static str, path: &Path, reason: String) -> TlsError {
    TlsError::File { key, path: path.to_owned(), reason }
}

/// The names in the certificate that the peer has proven; none without a certificate.
pub fn peer_identity(connection: &ServerConnection) -> Option<PeerIdentity> {
    let certificate = connection.peer_certificates()?.first()?;
    Some(PeerIdentity { subjects: subjects(certificate).into() })
}

/// Every URI and DNS name of a certificate; none where it does not parse or has too many.
fn subjects(certificate: &[u8]) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let subjects = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(format!("uri:{uri}")),
        GeneralName::DNSName(dns) => Some(format!("dns:{dns}")),
        _ => None,
    });
    let mut subjects: Vec<String> = subjects.take(SUBJECTS_MAX + 1).collect();
    if subjects.len() > SUBJECTS_MAX {
        subjects.clear();
    }
    subjects
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, SanType};

    fn certificate(names: Vec<SanType>) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        (params.self_signed(&key).unwrap(), key)
    }

    #[test]
    fn names_are_uris_and_dns_names_only() {
        let names = vec![
            SanType::URI("spiffe://a.example/orders".try_into().unwrap()),
            SanType::DnsName("orders.example".try_into().unwrap()),
            SanType::IpAddress("127.0.0.1".parse().unwrap()),
            SanType::Rfc822Name("a@b.example".try_into().unwrap()),
        ];
        let (with_names, _) = certificate(names);
        assert_eq!(subjects(with_names.der()), ["uri:spiffe://a.example/orders", "dns:orders.example"]);
        assert!(subjects(certificate(Vec::new()).0.der()).is_empty());
        let many = (0..17).map(|i| SanType::DnsName(format!("n{i}.example").try_into().unwrap())).collect();
        assert!(subjects(certificate(many).0.der()).is_empty());
        assert!(subjects(b"not a certificate").is_empty());
    }

    #[test]
    fn files_reload_when_they_change_and_stay_when_they_break() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| Some(folder.path().join(name));
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        let (first, key) = certificate(vec![SanType::DnsName("localhost".try_into().unwrap())]);
        write("c.pem", &first.pem());
        write("k.pem", &key.serialize_pem());
        let files =
            InternalTls { certificate_file: path("c.pem"), key_file: path("k.pem"), client_ca_file: path("c.pem") };
        let tls = Tls::internal(files.clone()).unwrap();
        let before = tls.current();
        assert!(!tls.reload().unwrap());
        let (second, key) = certificate(vec![SanType::DnsName("localhost".try_into().unwrap())]);
        write("c.pem", &second.pem());
        assert!(tls.reload().is_err(), "the key is still the former one");
        assert!(Arc::ptr_eq(&before, &tls.current()));
        write("k.pem", &key.serialize_pem());
        assert!(tls.reload().unwrap());
        assert!(!Arc::ptr_eq(&before, &tls.current()));
        let missing = InternalTls { key_file: path("missing.pem"), ..files };
        assert!(Tls::internal(missing).unwrap_err().to_string().contains("internal_tls.key_file"));
    }
}
