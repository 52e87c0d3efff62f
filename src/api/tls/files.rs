//! The files of a port: which they are, how they look from outside, and what is built from their contents.
//!
//! A setting names a file, or for authorities and revocation lists also a folder, whose files count in the order of their names;
//! names that start with a dot do not, so that the mounts of Kubernetes secrets work as they are. Links are followed. A file that holds
//! nothing of its kind is a fault, also beside others: it must never pass for one that has nothing to say.

use super::revocation::{Lists, Names, named};
use super::trusted::Trusted;
use super::{Expiry, TlsError};
use crate::api::config::{InternalTls, PublicTls};
use chrono::{DateTime, Utc};
use rustls::crypto::aws_lc_rs;
use rustls::server::NoServerSessionStorage;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use x509_parser::prelude::{FromDer as _, X509Certificate};

pub(super) const CERTIFICATE: &str = "certificate";
pub(super) const CLIENT_CA: &str = "client_ca";
pub(super) const CLIENT_CRL: &str = "client_crl";

/// More files in a folder than this are a folder that was not meant.
const FOLDER_FILES_MAX: usize = 1_000;

/// The files of a port.
#[derive(Debug, Clone)]
pub(super) enum Files {
    Public(PublicTls),
    Internal(InternalTls),
}

/// How files look without being read: name, device, inode, size, and the times of the last change of contents and of inode.
pub(super) type Seen = Vec<(PathBuf, [i64; 7])>;

/// A setting and what it names.
pub(super) type Place<'a> = (&'static str, &'a Path);

/// The files of a place, with what each holds.
pub(super) type Contents = Vec<(PathBuf, Vec<u8>)>;

/// What a port serves with.
#[derive(Debug)]
pub(super) struct Built {
    pub config: Arc<ServerConfig>,
    /// Judges clients; none where no certificate is asked for.
    pub verifier: Option<Arc<Trusted>>,
    pub expiries: Vec<Expiry>,
    /// The authorities of clients.
    pub authorities: Names,
    /// Those that revocation lists are of, which may stand below the others.
    pub listed: Names,
}

impl Files {
    pub(super) fn port(&self) -> &'static str {
        match self {
            Self::Public(_) => "public",
            Self::Internal(_) => "internal",
        }
    }

    /// (setting, file) of each file: certificate, key, and on the internal port authorities and revocation lists. The last may be
    /// absent.
    fn list(&self) -> Result<Vec<Place<'_>>, TlsError> {
        match self {
            Self::Public(files) => Ok(vec![
                required("tls.certificate_file", files.certificate_file.as_ref())?,
                required("tls.key_file", files.key_file.as_ref())?,
            ]),
            Self::Internal(files) => {
                let mut list = vec![
                    required("internal_tls.certificate_file", files.certificate_file.as_ref())?,
                    required("internal_tls.key_file", files.key_file.as_ref())?,
                    required("internal_tls.client_ca_file", files.client_ca_file.as_ref())?,
                ];
                list.extend(files.client_crl_file.iter().map(|path| ("internal_tls.client_crl_file", path.as_path())));
                Ok(list)
            }
        }
    }

    /// How the files look now.
    pub(super) fn look(&self) -> Result<Seen, TlsError> {
        let mut seen = Vec::new();
        for (key, path) in self.list()? {
            let files = files_of(path).map_err(|error| broken(key, path, error.to_string()))?;
            for file in files {
                // Follows links: a swapped link is another inode.
                let meta = fs::metadata(&file).map_err(|error| broken(key, &file, error.to_string()))?;
                let [device, inode, size] = [meta.dev(), meta.ino(), meta.size()].map(u64::cast_signed);
                let looks = [device, inode, size, meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()];
                seen.push((file, looks));
            }
        }
        Ok(seen)
    }

    /// The contents for each entry of the list.
    pub(super) fn read(&self) -> Result<Vec<Contents>, TlsError> {
        let read = |(key, path): Place<'_>| {
            let files = files_of(path).map_err(|error| broken(key, path, error.to_string()))?;
            let read = |file: PathBuf| match fs::read(&file) {
                Ok(bytes) => Ok((file, bytes)),
                Err(error) => Err(broken(key, &file, error.to_string())),
            };
            files.into_iter().map(read).collect()
        };
        self.list()?.into_iter().map(read).collect()
    }

    pub(super) fn build(&self, contents: &[Contents]) -> Result<Built, TlsError> {
        let list = self.list()?;
        let port = self.port();
        let chain = certificates(list[0], &contents[0])?;
        let mut expiries = vec![Expiry { file: CERTIFICATE, at: end_of(&parsed(list[0], &chain)?) }];
        let (mut authorities, mut listed) = (Names::default(), Names::default());
        let private = contents[1].iter().find_map(|(_, pem)| PrivateKeyDer::from_pem_slice(pem).ok());
        let private = private.ok_or_else(|| broken(list[1].0, list[1].1, "holds no private key in PEM".to_owned()))?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let unusable = |source| match source {
            rustls::Error::InconsistentKeys(_) => {
                broken(list[1].0, list[1].1, format!("is not the key of the certificate in server.{}", list[0].0))
            }
            source => TlsError::Certificate { port, source },
        };
        let (mut config, verifier) = match self {
            Self::Public(_) => {
                let builder = builder.with_safe_default_protocol_versions().map_err(unusable)?;
                (builder.with_no_client_auth().with_single_cert(chain, private).map_err(unusable)?, None)
            }
            Self::Internal(_) => {
                let trusted = certificates(list[2], &contents[2])?;
                let known = parsed(list[2], &trusted)?;
                expiries.push(Expiry { file: CLIENT_CA, at: end_of(&known) });
                authorities = known.iter().map(|authority| named(&authority.subject)).collect();
                let lists = match list.get(3) {
                    Some(place) => {
                        let lists = items(*place, &contents[3], "revocation list")?;
                        Lists::of(lists, &known, provider.signature_verification_algorithms.all)
                            .map_err(|reason| broken(place.0, place.1, reason))?
                    }
                    None => Lists::default(),
                };
                expiries.extend(lists.end.map(|at| Expiry { file: CLIENT_CRL, at }));
                listed = lists.issuers;
                let mut roots = RootCertStore::empty();
                for authority in &trusted {
                    let added = roots.add(authority.clone());
                    added.map_err(|error| broken(list[2].0, list[2].1, error.to_string()))?;
                }
                let verifier = Trusted::new(&known, roots, lists.newest_first, provider);
                let verifier = Arc::new(verifier.map_err(TlsError::Authorities)?);
                let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).map_err(unusable)?;
                let builder = builder.with_client_cert_verifier(verifier.clone());
                (builder.with_single_cert(chain, private).map_err(unusable)?, Some(verifier))
            }
        };
        match self {
            // Browsers may come by HTTP/1.1.
            Self::Public(_) => config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            Self::Internal(_) => {
                config.alpn_protocols = vec![b"h2".to_vec()];
                // A resumed session would not have its certificate checked again: each connection shows it anew.
                config.session_storage = Arc::new(NoServerSessionStorage {});
                config.send_tls13_tickets = 0;
            }
        }
        Ok(Built { config: Arc::new(config), verifier, expiries, authorities, listed })
    }
}

/// The file itself, or the files of a folder.
fn files_of(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if !hidden && fs::metadata(entry.path())?.is_file() {
            files.push(entry.path());
        }
        if files.len() > FOLDER_FILES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
    }
    files.sort();
    Ok(files)
}

fn certificates(place: Place<'_>, contents: &Contents) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain: Vec<_> = items(place, contents, "certificate")?;
    if chain.is_empty() { Err(broken(place.0, place.1, "holds no certificate".to_owned())) } else { Ok(chain) }
}

/// What the files hold of a kind, of which each must hold some.
fn items<T: PemObject>((key, _): Place<'_>, contents: &Contents, kind: &str) -> Result<Vec<T>, TlsError> {
    let mut all = Vec::new();
    for (file, pem) in contents {
        let items: Result<Vec<T>, _> = T::pem_slice_iter(pem).collect();
        let items = items.ok().filter(|items| !items.is_empty());
        all.extend(items.ok_or_else(|| broken(key, file, format!("holds no {kind} in PEM, or half of one")))?);
    }
    Ok(all)
}

fn parsed<'a>((key, path): Place<'_>, chain: &'a [CertificateDer<'_>]) -> Result<Vec<X509Certificate<'a>>, TlsError> {
    let parse = |certificate: &'a CertificateDer<'_>| match X509Certificate::from_der(certificate) {
        Ok((_, certificate)) => Ok(certificate),
        Err(_) => Err(broken(key, path, "holds a certificate that does not parse".to_owned())),
    };
    chain.iter().map(parse).collect()
}

/// When the first of them ends.
fn end_of(chain: &[X509Certificate<'_>]) -> DateTime<Utc> {
    let ends = chain.iter().map(|certificate| instant(certificate.validity().not_after.timestamp()));
    ends.min().unwrap_or(DateTime::<Utc>::MAX_UTC)
}

fn required<'a>(key: &'static str, path: Option<&'a PathBuf>) -> Result<Place<'a>, TlsError> {
    path.map(|path| (key, path.as_path())).ok_or(TlsError::Missing(key))
}

pub(super) fn instant(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(seconds, 0).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

fn broken(key: &'static str, path: &Path, reason: String) -> TlsError {
    TlsError::File { key, path: path.to_owned(), reason }
}
