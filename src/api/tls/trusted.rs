//! The authorities of clients, each for as long as it is valid itself.
//!
//! To the library an authority is a name and a key, which never end. So it is given only those that are valid when a certificate is
//! judged, and others once one of them begins or ends.

use super::files::instant;
use chrono::{DateTime, Utc};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor, UnixTime};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use x509_parser::prelude::X509Certificate;

/// Judges the certificates of clients.
#[derive(Debug)]
pub(super) struct Trusted {
    authorities: Vec<Authority>,
    lists: Vec<CertificateRevocationListDer<'static>>,
    provider: Arc<CryptoProvider>,
    /// Knows every authority, and says what does not depend on time.
    all: Arc<dyn ClientCertVerifier>,
    /// Of the time of the last question.
    present: Mutex<Present>,
}

#[derive(Debug)]
struct Authority {
    name: String,
    anchor: TrustAnchor<'static>,
    /// Seconds since 1970: its last one is still good.
    valid: Range<i64>,
}

/// A time in which no authority begins or ends.
#[derive(Debug)]
struct Present {
    seconds: Range<i64>,
    /// None where no authority is valid.
    verifier: Option<Arc<dyn ClientCertVerifier>>,
}

impl Trusted {
    /// Takes authorities, as certificates and as anchors, and revocation lists that can be used beside all of them.
    pub(super) fn new(
        known: &[X509Certificate<'_>],
        roots: RootCertStore,
        lists: Vec<CertificateRevocationListDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, VerifierBuilderError> {
        let authority = |(certificate, anchor): (&X509Certificate<'_>, &TrustAnchor<'static>)| {
            let validity = certificate.validity();
            let valid = validity.not_before.timestamp()..validity.not_after.timestamp() + 1;
            Authority { name: certificate.subject.to_string(), anchor: anchor.clone(), valid }
        };
        let authorities = known.iter().zip(&roots.roots).map(authority).collect();
        let all = verifier(roots, lists.clone(), Arc::clone(&provider))?;
        let present = Mutex::new(Present { seconds: 0..0, verifier: None });
        Ok(Self { authorities, lists, provider, all, present })
    }

    /// Whether any authority is valid.
    pub(super) fn any_at(&self, now: DateTime<Utc>) -> bool {
        self.authorities.iter().any(|authority| authority.valid.contains(&now.timestamp()))
    }

    /// The authorities that are none now, and why.
    pub(super) fn lapsed(&self, now: DateTime<Utc>) -> impl Iterator<Item = String> {
        let lapsed = self.authorities.iter().filter(move |authority| !authority.valid.contains(&now.timestamp()));
        lapsed.map(move |Authority { name, valid, .. }| {
            if now.timestamp() < valid.start {
                format!("{name}, which is not valid before {}", instant(valid.start))
            } else {
                format!("{name}, which expired at {}", instant(valid.end - 1))
            }
        })
    }

    /// When each of them is over.
    pub(super) fn ends(&self) -> impl Iterator<Item = DateTime<Utc>> {
        self.authorities.iter().map(|authority| instant(authority.valid.end))
    }

    /// Knows the authorities that are valid; none where there are none.
    fn at(&self, now: i64) -> Option<Arc<dyn ClientCertVerifier>> {
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        if !present.seconds.contains(&now) {
            let turns = || self.authorities.iter().flat_map(|authority| [authority.valid.start, authority.valid.end]);
            let since = turns().filter(|turn| *turn <= now).max().unwrap_or(i64::MIN);
            let until = turns().filter(|turn| *turn > now).min().unwrap_or(i64::MAX);
            *present = Present { seconds: since..until, verifier: self.verifier_at(now) };
        }
        present.verifier.clone()
    }

    fn verifier_at(&self, now: i64) -> Option<Arc<dyn ClientCertVerifier>> {
        let valid = self.authorities.iter().filter(|authority| authority.valid.contains(&now));
        let roots = RootCertStore { roots: valid.map(|authority| authority.anchor.clone()).collect() };
        match roots.len() {
            0 => None,
            count if count == self.authorities.len() => Some(Arc::clone(&self.all)),
            _ => {
                let verifier = verifier(roots, self.lists.clone(), Arc::clone(&self.provider));
                Some(verifier.expect("the same lists are in use with all authorities, and some of these are here"))
            }
        }
    }
}

/// An authority without a list revokes nothing; a list past its date still revokes what it names, because refusing everybody would be
/// the worse fault. The alarm is the expiry metric.
fn verifier(
    roots: RootCertStore,
    lists: Vec<CertificateRevocationListDer<'static>>,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, VerifierBuilderError> {
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .with_crls(lists)
        .allow_unknown_revocation_status()
        .build()
}

impl ClientCertVerifier for Trusted {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.all.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.at(i64::try_from(now.as_secs()).unwrap_or(i64::MAX)) {
            Some(verifier) => verifier.verify_client_cert(end_entity, intermediates, now),
            None => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.all.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.all.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.all.supported_verify_schemes()
    }
}
