//! The certificates as TLS and as files: accepted by the right peer, refused by the wrong one, renewed in time.

use super::*;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use rustls::pki_types::{ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

fn some_time() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

/// The clock both sides of a handshake look at.
#[derive(Debug)]
struct SomeTime;

impl TimeProvider for SomeTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(since_epoch(some_time())))
    }
}

fn ca(name: &str) -> Ca {
    let now = some_time();
    Ca::generate(name, now - BACKDATE, now + CA_VALIDITY).unwrap()
}

fn trusting(ca: &Ca) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.cert_der().clone()).unwrap();
    Arc::new(roots)
}

/// A whole handshake with one message through it, in memory; the error is the side's that noticed first.
async fn handshake(server_ca: &Ca, client_ca: &Ca, client: &Issued, host: &str) -> Result<(), String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = issue(server_ca, &CertRequest::server(some_time())).unwrap();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(trusting(client_ca), Arc::clone(&provider)).build().unwrap();
    let server_config = ServerConfig::builder_with_details(Arc::clone(&provider), Arc::new(SomeTime))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![server.cert_der.clone()], server.key_der().unwrap())
        .unwrap();
    let client_config = ClientConfig::builder_with_details(provider, Arc::new(SomeTime))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(trusting(client_ca))
        .with_client_auth_cert(vec![client.cert_der.clone()], client.key_der().unwrap())
        .unwrap();
    let (near, far) = tokio::io::duplex(16 << 10);
    let accept = async {
        let mut stream =
            TlsAcceptor::from(Arc::new(server_config)).accept(far).await.map_err(|error| error.to_string())?;
        assert_eq!(stream.get_ref().1.peer_certificates().unwrap()[0], client.cert_der);
        stream.write_all(b"ding").await.map_err(|error| error.to_string())
    };
    let connect = async {
        let name = ServerName::try_from(host.to_owned()).unwrap();
        let connector = TlsConnector::from(Arc::new(client_config));
        let mut stream = connector.connect(name, near).await.map_err(|error| error.to_string())?;
        let mut heard = [0; 4];
        stream.read_exact(&mut heard).await.map_err(|error| error.to_string())?;
        assert_eq!(&heard, b"ding");
        Ok(())
    };
    tokio::try_join!(accept, connect).map(|_| ())
}

#[tokio::test]
async fn the_right_certificates_shake_hands_by_name_and_by_address() {
    let ca = ca("one");
    let publisher = issue(&ca, &CertRequest::client("publisher", PUBLISHER_URI, some_time())).unwrap();
    for host in ["localhost", "127.0.0.1", "::1"] {
        handshake(&ca, &ca, &publisher, host).await.unwrap();
    }
}

#[tokio::test]
async fn wrong_certificates_are_refused() {
    let (ours, theirs, now) = (ca("ours"), ca("theirs"), some_time());
    let good = CertRequest::client("publisher", PUBLISHER_URI, now);
    let wrong = [
        ("another authority's", issue(&theirs, &good).unwrap()),
        ("a self-signed", issue_self_signed(&good).unwrap()),
        ("a server's", issue(&ours, &CertRequest::server(now)).unwrap()),
        ("an expired", issue(&ours, &CertRequest { not_after: now - BACKDATE / 2, ..good.clone() }).unwrap()),
        ("a future", issue(&ours, &CertRequest { not_before: now + BACKDATE, ..good.clone() }).unwrap()),
    ];
    for (what, client) in wrong {
        assert!(handshake(&ours, &ours, &client, "localhost").await.is_err(), "{what} certificate was accepted");
    }
    let client = issue(&ours, &good).unwrap();
    assert!(
        handshake(&theirs, &ours, &client, "localhost").await.is_err(),
        "a server of another authority was accepted"
    );
    assert!(handshake(&ours, &ours, &client, "example.org").await.is_err(), "a server of another name was accepted");
}

#[test]
fn certificates_say_what_was_asked() {
    let ca = ca("authority");
    let root = parsed(ca.cert_der(), "CA certificate").unwrap();
    let limits = root.basic_constraints().unwrap().unwrap();
    assert!(limits.critical && limits.value.ca && limits.value.path_len_constraint == Some(0));
    let usage = root.key_usage().unwrap().unwrap().value;
    assert!(usage.key_cert_sign() && usage.crl_sign() && !usage.digital_signature());

    let now = some_time();
    let server = issue(&ca, &CertRequest::server(now)).unwrap();
    let cert = parsed(&server.cert_der, "certificate").unwrap();
    assert_eq!(sans_of(&cert), CertRequest::server(now).sans);
    assert_eq!(cert.issuer(), root.subject());
    assert_eq!(cert.validity().not_after.timestamp(), (now + VALIDITY).timestamp());
    let usage = cert.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && !usage.client_auth && !cert.is_ca());

    let sans =
        vec![San::Uri("spiffe://a/b".to_owned()), San::Uri("spiffe://a/c".to_owned()), San::Dns("x.test".to_owned())];
    let several = CertRequest { sans, usages: vec![Usage::Client, Usage::Server], ..CertRequest::server(now) };
    let issued = issue(&ca, &several).unwrap();
    let cert = parsed(&issued.cert_der, "certificate").unwrap();
    assert_eq!(sans_of(&cert), several.sans);
    let none = CertRequest { sans: Vec::new(), usages: Vec::new(), ..several };
    let issued = issue(&ca, &none).unwrap();
    let cert = parsed(&issued.cert_der, "certificate").unwrap();
    assert!(sans_of(&cert).is_empty() && cert.extended_key_usage().unwrap().is_none());
    let wrong = CertRequest { sans: vec![San::Dns("glöckchen".to_owned())], ..none };
    assert!(matches!(issue(&ca, &wrong), Err(Error::Certificate { .. })));
}

#[test]
fn files_are_kept_while_good_and_made_again_before_they_expire() {
    let dir = tempfile::tempdir().unwrap();
    let now = some_time();
    let first = DevCertificates::ensure(dir.path(), now).unwrap();
    assert_eq!(first.made, ["ca", "server", "publisher", "admin"]);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for files in [&first.server, &first.publisher, &first.admin] {
        assert_eq!((mode(&files.key), mode(&files.cert) & 0o600), (0o600, 0o600));
    }
    assert_eq!(mode(&dir.path().join("ca.key")), 0o600);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 8, "no temporary file stays");

    let ca_before = fs::read(&first.ca).unwrap();
    let server_before = fs::read(&first.server.cert).unwrap();
    let later = now + VALIDITY - RENEW_BEFORE;
    assert!(DevCertificates::ensure(dir.path(), later).unwrap().made.is_empty());
    assert_eq!(fs::read(&first.server.cert).unwrap(), server_before);

    let too_late = later + TimeDelta::seconds(1);
    assert_eq!(DevCertificates::ensure(dir.path(), too_late).unwrap().made, ["server", "publisher", "admin"]);
    assert_eq!(fs::read(&first.ca).unwrap(), ca_before);

    let decade = now + CA_VALIDITY - RENEW_BEFORE;
    assert_eq!(DevCertificates::ensure(dir.path(), decade).unwrap().made.len(), 4);
    assert_ne!(fs::read(&first.ca).unwrap(), ca_before);
}

#[test]
fn damaged_or_mismatched_files_are_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let now = some_time();
    let files = DevCertificates::ensure(dir.path(), now).unwrap();
    let again = || DevCertificates::ensure(dir.path(), now).unwrap().made;

    fs::copy(&files.admin.key, &files.publisher.key).unwrap();
    assert_eq!(again(), ["publisher"]);
    fs::copy(&files.admin.cert, &files.publisher.cert).unwrap();
    fs::copy(&files.admin.key, &files.publisher.key).unwrap();
    assert_eq!(again(), ["publisher"], "another identity is not this one");
    fs::write(&files.server.cert, "-----BEGIN CERTIFICATE-----\n").unwrap();
    assert_eq!(again(), ["server"]);
    fs::remove_file(&files.admin.key).unwrap();
    assert_eq!(again(), ["admin"]);
    fs::write(dir.path().join("ca.key"), "").unwrap();
    assert_eq!(again().len(), 4);
    assert!(again().is_empty());
}
