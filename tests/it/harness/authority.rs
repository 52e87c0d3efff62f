//! Certificates of every kind, wrong ones included, made when a test needs them.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevocationReason, RevokedCertParams,
    SanType, SerialNumber, date_time_ymd,
};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// What signs certificates: an authority, or a certificate that should not.
pub struct Authority {
    /// Its own certificate.
    pub cert: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A root.
    pub fn root(name: &str, key: KeyPair) -> Self {
        Self::of(ca_params(name, BasicConstraints::Unconstrained), key)
    }

    /// A root that says this of itself.
    pub fn of(params: CertificateParams, key: KeyPair) -> Self {
        let cert = params.self_signed(&key).expect("a certificate");
        Self { cert, issuer: Issuer::new(params, key) }
    }

    /// Another certificate of its own, as PEM.
    pub fn renewed(&self, params: &CertificateParams) -> String {
        params.self_signed(self.issuer.key()).expect("a certificate").pem()
    }

    /// Something below this authority that signs, whether or not it may.
    pub fn below(&self, params: CertificateParams) -> Self {
        let key = new_key();
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate");
        Self { cert, issuer: Issuer::new(params, key) }
    }

    /// Signs a client's certificate; `above` are the certificates between it and the root.
    pub fn issue(&self, params: &CertificateParams, above: &[&Authority]) -> Shown {
        let key = new_key();
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate");
        let mut chain = vec![cert.der().clone()];
        chain.extend(above.iter().map(|authority| authority.cert.der().clone()));
        Shown { chain, key }
    }

    /// A revocation list, as PEM.
    pub fn revoke(&self, serials: &[u64]) -> String {
        self.revoke_since(serials, -1)
    }

    /// One that was made so many hours from now.
    pub fn revoke_since(&self, serials: &[u64], made: i64) -> String {
        let at = |hours: i64| date_time_ymd(1970, 1, 1) + since_1970(hours);
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: at(-1),
            reason_code: Some(RevocationReason::KeyCompromise),
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: at(made),
            next_update: at(24),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).expect("a list").pem().expect("it can be written")
    }
}

/// What a client shows, and the key it proves it with.
pub struct Shown {
    /// Its certificate first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key, which need not belong to the certificate.
    pub key: KeyPair,
}

impl Shown {
    /// A certificate that only itself vouches for.
    pub fn self_signed(params: &CertificateParams) -> Self {
        let key = new_key();
        Self { chain: vec![params.self_signed(&key).expect("a certificate").der().clone()], key }
    }
}

/// A key of the usual kind.
pub fn new_key() -> KeyPair {
    KeyPair::generate().expect("a key")
}

/// What an authority's certificate says.
pub fn ca_params(name: &str, constraints: BasicConstraints) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(name);
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    valid(params, -1, 24)
}

/// What a client's certificate says.
pub fn client_params(names: Vec<SanType>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("client");
    params.subject_alt_names = names;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    valid(params, -1, 24)
}

/// Changes when a certificate is good, in hours from now.
pub fn valid(mut params: CertificateParams, from: i64, to: i64) -> CertificateParams {
    params.not_before = date_time_ymd(1970, 1, 1) + since_1970(from);
    params.not_after = date_time_ymd(1970, 1, 1) + since_1970(to);
    params
}

/// Lets a certificate end so many seconds from now.
pub fn ends_in(mut params: CertificateParams, seconds: u64) -> CertificateParams {
    params.not_after = date_time_ymd(1970, 1, 1) + since_1970(0) + Duration::from_secs(seconds);
    params
}

/// A name that is nothing but text.
pub fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// An identity.
pub fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("ASCII"))
}

/// A host name.
pub fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().expect("ASCII"))
}

fn since_1970(hours_from_now: i64) -> Duration {
    let seconds = carillon::clock::now().timestamp() + hours_from_now * 3_600;
    Duration::from_secs(seconds.try_into().expect("it is later than 1970"))
}

/// How a client speaks TLS.
pub struct Speaks {
    /// Versions of TLS.
    pub versions: &'static [&'static SupportedProtocolVersion],
    /// Protocols inside it.
    pub protocols: &'static [&'static [u8]],
}

impl Default for Speaks {
    fn default() -> Self {
        Self { versions: rustls::DEFAULT_VERSIONS, protocols: &[b"h2"] }
    }
}

/// A client that trusts a server's authority and shows what it is given, even what does not fit together.
pub fn client(server: &CertificateDer<'static>, shown: Option<&Shown>, speaks: &Speaks) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(server.clone()).expect("the authority's certificate is usable");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(speaks.versions)
        .expect("the versions exist")
        .with_root_certificates(roots);
    let mut config = match shown {
        None => builder.with_no_client_auth(),
        Some(shown) => {
            let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(shown.key.serialize_der()));
            let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).expect("a usable key");
            let both = CertifiedKey::new(shown.chain.clone(), key);
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(both)))
        }
    };
    config.alpn_protocols = speaks.protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}
