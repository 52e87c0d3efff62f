//! The names in a peer's certificate, by which alone it is known: never by a common name.

use crate::domain::access::PeerIdentity;
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// A certificate with more names than this is nobody's.
const SUBJECTS_MAX: usize = 16;

/// The names in the first certificate of the chain that the peer has proven; none without a certificate.
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Option<PeerIdentity> {
    Some(PeerIdentity { subjects: subjects(chain.first()?).into() })
}

/// Every URI and DNS name of a certificate; none where it does not parse, has too many, has two URIs, or one with a control character,
/// which readers of names may take for their end.
///
/// Source: SPIFFE X.509-SVID section 2: a certificate names exactly one identity; one with several URIs is refused.
fn subjects(certificate: &[u8]) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let subjects = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(format!("uri:{uri}")),
        GeneralName::DNSName(dns) => Some(format!("dns:{dns}")),
        _ => None,
    });
    let mut subjects: Vec<String> = subjects.take(SUBJECTS_MAX + 1).collect();
    let uris = subjects.iter().filter(|subject| subject.starts_with("uri:")).count();
    let garbled = subjects.iter().any(|subject| subject.contains(char::is_control));
    if subjects.len() > SUBJECTS_MAX || uris > 1 || garbled {
        subjects.clear();
    }
    subjects
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, SanType};

    fn subjects_of(names: Vec<SanType>) -> Vec<String> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        subjects(params.self_signed(&key).unwrap().der())
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    #[test]
    fn names_are_one_uri_and_dns_names_only() {
        let names = vec![
            uri("spiffe://a.example/orders"),
            SanType::DnsName("orders.example".try_into().unwrap()),
            SanType::IpAddress("127.0.0.1".parse().unwrap()),
            SanType::Rfc822Name("a@b.example".try_into().unwrap()),
        ];
        assert_eq!(subjects_of(names), ["uri:spiffe://a.example/orders", "dns:orders.example"]);
        assert!(subjects_of(Vec::new()).is_empty());
        assert!(subjects_of(vec![uri("spiffe://a.example/orders"), uri("spiffe://a.example/other")]).is_empty());
        let good = || uri("spiffe://a.example/orders");
        for garbled in ["spiffe://a.example/orders\0evil", "spiffe://a.example/orders\n", "\u{7f}"] {
            let dns = SanType::DnsName(garbled.try_into().unwrap());
            assert!(subjects_of(vec![uri(garbled)]).is_empty() && subjects_of(vec![good(), dns]).is_empty());
        }
        let many = (0..17).map(|i| SanType::DnsName(format!("n{i}.example").try_into().unwrap())).collect();
        assert!(subjects_of(many).is_empty());
        assert!(subjects(b"not a certificate").is_empty());
        assert!(peer_identity(&[]).is_none());
    }
}
