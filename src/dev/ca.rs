//! The certificates of `carillon dev`: a certificate authority of its own, a server certificate, and one for each kind
//! of client.
//!
//! The internal port accepts mutual TLS only, so even a first try on a laptop needs certificates. They are made once,
//! kept as PEM files, and made again before they expire. Tests use [`issue`] to make wrong ones: another authority's,
//! expired, without names.
//!
//! This module must never add the authority to a system's trust store, overwrite a file half, or leave a key readable
//! to others.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use chrono::{DateTime, TimeDelta, Utc};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, date_time_ymd,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::error::Error;

/// The identity in the publisher's certificate.
pub const PUBLISHER_URI: &str = "spiffe://carillon.local/publisher/dev";

/// The identity in the administrator's certificate.
pub const ADMIN_URI: &str = "spiffe://carillon.local/admin/dev";

/// How long the authority is valid.
const CA_VALIDITY: TimeDelta = TimeDelta::days(3650);

/// How long a certificate is valid.
const VALIDITY: TimeDelta = TimeDelta::days(365);

/// A certificate with less than this left is made again.
const RENEW_BEFORE: TimeDelta = TimeDelta::days(7);

/// Certificates start a little in the past, so that a client whose clock is slow accepts them.
const BACKDATE: TimeDelta = TimeDelta::hours(1);

/// A name that a certificate vouches for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum San {
    /// A host name.
    Dns(String),
    /// An address.
    Ip(IpAddr),
    /// An identity, such as a SPIFFE id.
    Uri(String),
}

/// What a certificate may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// To answer as a server.
    Server,
    /// To call as a client.
    Client,
}

/// The contents of a certificate to be made.
#[derive(Debug, Clone)]
pub struct CertRequest {
    /// The common name, for people; nothing is decided by it.
    pub common_name: String,
    /// The names it vouches for: any number, none included.
    pub sans: Vec<San>,
    /// What it may be used for; with none, the extension is left out.
    pub usages: Vec<Usage>,
    /// The first instant at which it is valid, in whole seconds since 1970.
    pub not_before: DateTime<Utc>,
    /// The last instant at which it is valid.
    pub not_after: DateTime<Utc>,
}

impl CertRequest {
    /// The server's certificate: reachable as localhost by name and by both loopback addresses.
    pub fn server(now: DateTime<Utc>) -> Self {
        let sans = vec![
            San::Dns("localhost".to_owned()),
            San::Ip(Ipv4Addr::LOCALHOST.into()),
            San::Ip(Ipv6Addr::LOCALHOST.into()),
        ];
        Self::lasting("carillon dev server", sans, Usage::Server, now)
    }

    /// A client's certificate with one identity.
    pub fn client(common_name: &str, uri: &str, now: DateTime<Utc>) -> Self {
        Self::lasting(common_name, vec![San::Uri(uri.to_owned())], Usage::Client, now)
    }

    fn lasting(common_name: &str, sans: Vec<San>, usage: Usage, now: DateTime<Utc>) -> Self {
        let (not_before, not_after) = (now - BACKDATE, now + VALIDITY);
        Self { common_name: common_name.to_owned(), sans, usages: vec![usage], not_before, not_after }
    }
}

/// A certificate with its key.
pub struct Issued {
    /// The certificate as PEM.
    pub cert_pem: String,
    /// The key as PEM (PKCS #8).
    pub key_pem: String,
    /// The certificate as DER.
    pub cert_der: CertificateDer<'static>,
}

impl Issued {
    /// The key as DER, for a TLS configuration.
    pub fn key_der(&self) -> Result<PrivateKeyDer<'static>, Error> {
        let unreadable =
            |error: rustls_pki_types::pem::Error| Error::Unreadable { what: "key", reason: error.to_string() };
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).map_err(unreadable)
    }
}

/// A certificate authority: its certificate and the key to sign with.
pub struct Ca {
    cert_pem: String,
    cert_der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    /// Makes an authority that may sign certificates, but no further authorities.
    pub fn generate(common_name: &str, not_before: DateTime<Utc>, not_after: DateTime<Utc>) -> Result<Self, Error> {
        let failed = |source| Error::Certificate { name: common_name.to_owned(), source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut params = ca_params(common_name);
        params.not_before = date_time_ymd(1970, 1, 1) + since_epoch(not_before);
        params.not_after = date_time_ymd(1970, 1, 1) + since_epoch(not_after);
        let cert = params.self_signed(&key).map_err(failed)?;
        Ok(Self { cert_pem: cert.pem(), cert_der: cert.der().clone(), issuer: Issuer::new(params, key) })
    }

    /// Reads an authority that [`Ca::generate`] made.
    ///
    /// *Errors*: [`Error::Unreadable`] when a part is not PEM, or the two do not belong together.
    pub fn from_pem(cert_pem: &str, key_pem: &str) -> Result<Self, Error> {
        let unreadable = |what, reason: String| Error::Unreadable { what, reason };
        let cert_der = CertificateDer::from_pem_slice(cert_pem.as_bytes());
        let cert_der = cert_der.map_err(|error| unreadable("CA certificate", error.to_string()))?;
        let key = KeyPair::from_pem(key_pem).map_err(|error| unreadable("CA key", error.to_string()))?;
        let cert = parsed(&cert_der, "CA certificate")?;
        if cert.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(unreadable("CA key", "it does not belong to the CA certificate".to_owned()));
        }
        let name = cert.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let name = name.ok_or_else(|| unreadable("CA certificate", "it has no common name".to_owned()))?;
        // The name and the key are all that a signature takes from the authority; its other parameters are always the
        // same.
        let issuer = Issuer::new(ca_params(name), key);
        Ok(Self { cert_pem: cert_pem.to_owned(), cert_der: cert_der.clone(), issuer })
    }

    /// The authority's certificate as PEM, for clients to trust.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The authority's certificate as DER.
    pub fn cert_der(&self) -> &CertificateDer<'static> {
        &self.cert_der
    }

    /// The last instant at which the authority is valid.
    fn not_after(&self) -> Result<DateTime<Utc>, Error> {
        let cert = parsed(&self.cert_der, "CA certificate")?;
        Ok(DateTime::from_timestamp(cert.validity().not_after.timestamp(), 0).unwrap_or_default())
    }
}

/// Makes a key and a certificate for it, signed by an authority.
pub fn issue(ca: &Ca, request: &CertRequest) -> Result<Issued, Error> {
    make(request, Some(ca))
}

/// Makes a key and a certificate for it that nobody but itself vouches for.
pub fn issue_self_signed(request: &CertRequest) -> Result<Issued, Error> {
    make(request, None)
}

/// The PEM files of a development folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevCertificates {
    /// The authority's certificate, which both sides trust.
    pub ca: PathBuf,
    /// The server's certificate and key.
    pub server: CertFiles,
    /// The publisher's certificate and key, with the identity [`PUBLISHER_URI`].
    pub publisher: CertFiles,
    /// The administrator's certificate and key, with the identity [`ADMIN_URI`].
    pub admin: CertFiles,
    /// The names of those made by this call, in order; empty when all were still good.
    pub made: Vec<&'static str>,
}

/// A certificate's two files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertFiles {
    /// The certificate.
    pub cert: PathBuf,
    /// The key, readable to its owner only.
    pub key: PathBuf,
}

impl DevCertificates {
    /// Makes sure that a folder holds good certificates: keeps those with a week left, makes the others.
    ///
    /// *Shape*: when the authority is missing, damaged or nearly expired, everything is made anew, because nothing it
    /// signed is worth more than itself. A start that is interrupted between two files leaves a pair that does not
    /// match, which the next start makes again.
    /// *Errors*: [`Error::File`] when the folder cannot be written.
    pub fn ensure(dir: &Path, now: DateTime<Utc>) -> Result<Self, Error> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o755).create(dir).map_err(Error::file("create folder", dir))?;
        let files =
            |name: &str| CertFiles { cert: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}.key")) };
        let mut made = Vec::new();
        let ca_files = files("ca");
        let ca = if let Some(ca) = stored_ca(&ca_files, now) {
            ca
        } else {
            // The start makes the name unlike that of an earlier authority, which some client may still hold.
            let name = format!("carillon dev CA {}", now.timestamp());
            let ca = Ca::generate(&name, now - BACKDATE, now + CA_VALIDITY)?;
            store(&ca_files, &ca.cert_pem, &ca.issuer.key().serialize_pem())?;
            made.push("ca");
            ca
        };
        let wanted = [
            ("server", CertRequest::server(now)),
            ("publisher", CertRequest::client("carillon dev publisher", PUBLISHER_URI, now)),
            ("admin", CertRequest::client("carillon dev administrator", ADMIN_URI, now)),
        ];
        for (name, request) in wanted {
            if !is_good(&files(name), &ca, &request, now) {
                let issued = issue(&ca, &request)?;
                store(&files(name), &issued.cert_pem, &issued.key_pem)?;
                made.push(name);
            }
        }
        let [server, publisher, admin] = ["server", "publisher", "admin"].map(files);
        Ok(Self { ca: ca_files.cert, server, publisher, admin, made })
    }
}

/// The parameters that every authority of ours has.
fn ca_params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn make(request: &CertRequest, ca: Option<&Ca>) -> Result<Issued, Error> {
    let failed = |source| Error::Certificate { name: request.common_name.clone(), source };
    let mut params = CertificateParams::default();
    params.distinguished_name = named(&request.common_name);
    params.not_before = date_time_ymd(1970, 1, 1) + since_epoch(request.not_before);
    params.not_after = date_time_ymd(1970, 1, 1) + since_epoch(request.not_after);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = ca.is_some();
    for san in &request.sans {
        params.subject_alt_names.push(match san {
            San::Dns(name) => SanType::DnsName(name.as_str().try_into().map_err(failed)?),
            San::Ip(address) => SanType::IpAddress(*address),
            San::Uri(uri) => SanType::URI(uri.as_str().try_into().map_err(failed)?),
        });
    }
    let usages = request.usages.iter().map(|usage| match usage {
        Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
        Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
    });
    params.extended_key_usages = usages.collect();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let cert = match ca {
        Some(ca) => params.signed_by(&key, &ca.issuer),
        None => params.self_signed(&key),
    };
    let cert = cert.map_err(failed)?;
    Ok(Issued { cert_pem: cert.pem(), key_pem: key.serialize_pem(), cert_der: cert.der().clone() })
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// The generator has a time type of its own; both sides know seconds since 1970. Earlier instants count as 1970.
fn since_epoch(instant: DateTime<Utc>) -> std::time::Duration {
    std::time::Duration::from_secs(u64::try_from(instant.timestamp()).unwrap_or(0))
}

fn parsed<'a>(der: &'a CertificateDer<'_>, what: &'static str) -> Result<X509Certificate<'a>, Error> {
    match X509Certificate::from_der(der) {
        Ok((_, cert)) => Ok(cert),
        Err(error) => Err(Error::Unreadable { what, reason: error.to_string() }),
    }
}

/// The stored authority, if it is whole and has time left.
fn stored_ca(files: &CertFiles, now: DateTime<Utc>) -> Option<Ca> {
    let ca = Ca::from_pem(&fs::read_to_string(&files.cert).ok()?, &fs::read_to_string(&files.key).ok()?).ok()?;
    // It must outlast what it signs today, or the certificates would end before their own dates say.
    let outlasts = ca.not_after().ok()? >= now + VALIDITY + RENEW_BEFORE;
    let signs_itself = is_signed_by(&parsed(ca.cert_der(), "CA certificate").ok()?, &ca);
    (outlasts && signs_itself).then_some(ca)
}

/// Whether a stored certificate is whole, has time left, and says what it should.
fn is_good(files: &CertFiles, ca: &Ca, wanted: &CertRequest, now: DateTime<Utc>) -> bool {
    let read = || {
        let cert = CertificateDer::from_pem_slice(&fs::read(&files.cert).ok()?).ok()?;
        let key = KeyPair::from_pem(&fs::read_to_string(&files.key).ok()?).ok()?;
        Some((cert, key))
    };
    let Some((der, key)) = read() else { return false };
    let Ok(cert) = parsed(&der, "certificate") else { return false };
    let has_time = cert.validity().not_before.timestamp() <= now.timestamp()
        && cert.validity().not_after.timestamp() >= (now + RENEW_BEFORE).timestamp();
    has_time
        && cert.public_key().subject_public_key.data.as_ref() == key.public_key_raw()
        && is_signed_by(&cert, ca)
        && sans_of(&cert) == wanted.sans
}

fn is_signed_by(cert: &X509Certificate<'_>, ca: &Ca) -> bool {
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, ca.issuer.key().public_key_raw());
    key.verify(cert.tbs_certificate.as_ref(), &cert.signature_value.data).is_ok()
}

fn sans_of(cert: &X509Certificate<'_>) -> Vec<San> {
    let names = cert.subject_alternative_name().ok().flatten().map(|extension| &extension.value.general_names);
    let names = names.into_iter().flatten().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(San::Dns((*name).to_owned())),
        GeneralName::URI(uri) => Some(San::Uri((*uri).to_owned())),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| San::Ip(bytes.into())),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| San::Ip(bytes.into())),
        },
        _ => None,
    });
    names.collect()
}

/// Writes both files; the key first, so that a certificate that is there has a key.
fn store(files: &CertFiles, cert_pem: &str, key_pem: &str) -> Result<(), Error> {
    write_whole(&files.key, key_pem, 0o600)?;
    write_whole(&files.cert, cert_pem, 0o644)
}

/// Writes a file under a temporary name and renames it, so that a reader sees the old file or the new one and nothing
/// between.
fn write_whole(path: &Path, text: &str, mode: u32) -> Result<(), Error> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    // One left by an interrupted start may have other permissions; a new file gets its own from the first byte on.
    if partial.symlink_metadata().is_ok() {
        fs::remove_file(&partial).map_err(Error::file("remove", &partial))?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&partial);
    let written = file.as_mut().map_or(Ok(()), |file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
    file.map(drop).and(written).and_then(|()| fs::rename(&partial, path)).map_err(Error::file("write", path))
}

#[cfg(test)]
mod tests;
