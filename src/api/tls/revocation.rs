//! Revocation lists: what makes one usable beside the authorities of clients, judged when the files are read.
//!
//! The library looks a certificate up in the first list that bears the name of its issuer, and refuses it where the issuer's key has not
//! signed that list. A list of another authority of that name would so refuse everybody: it must never come into use.

use super::files::instant;
use chrono::{DateTime, Utc};
use rustls_pki_types::{CertificateRevocationListDer, SignatureVerificationAlgorithm};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use x509_parser::prelude::{FromDer as _, X509Certificate, X509Name};
use x509_parser::revocation_list::CertificateRevocationList;

/// Names of authorities: as they are compared, and as they are read.
pub(super) type Names = BTreeMap<Vec<u8>, String>;

/// An entry of such names.
pub(super) fn named(name: &X509Name<'_>) -> (Vec<u8>, String) {
    (name.as_raw().to_vec(), name.to_string())
}

/// Lists that can be used together.
#[derive(Debug, Default)]
pub(super) struct Lists {
    /// So that of several of one authority the newest counts.
    pub newest_first: Vec<CertificateRevocationListDer<'static>>,
    pub issuers: Names,
    /// When the first of them should have been replaced.
    pub end: Option<DateTime<Utc>>,
}

impl Lists {
    /// Judges lists. Errors: what is wrong with one of them.
    pub(super) fn of(
        lists: Vec<CertificateRevocationListDer<'static>>,
        authorities: &[X509Certificate<'_>],
        algorithms: &[&dyn SignatureVerificationAlgorithm],
    ) -> Result<Self, String> {
        let (mut dates, mut issuers, mut ends) = (Vec::new(), Names::new(), Vec::new());
        for der in &lists {
            let (_, list) = CertificateRevocationList::from_der(der)
                .map_err(|_| "holds a revocation list that does not parse".to_owned())?;
            let (issuer, name) = named(list.issuer());
            let bearers = authorities.iter().filter(|authority| authority.subject.as_raw() == issuer);
            let keys: BTreeSet<_> = bearers.map(|bearer| &*bearer.public_key().subject_public_key.data).collect();
            let (signed, signature) = (list.tbs_cert_list.as_ref(), &*list.signature_value.data);
            if keys.len() > 1 {
                return Err(format!("holds a revocation list of {name}, of which name there are two authorities"));
            }
            // No key at all: an authority below these, whose certificate its clients show, and whose key is checked then.
            let signs = |key: &[u8]| algorithms.iter().any(|one| one.verify_signature(key, signed, signature).is_ok());
            if !keys.into_iter().all(signs) {
                return Err(format!("holds a revocation list of {name} that this authority has not signed"));
            }
            ends.extend(list.next_update().map(|end| instant(end.timestamp())));
            dates.push(Reverse(list.last_update().timestamp()));
            issuers.insert(issuer, name);
        }
        let mut dated: Vec<_> = dates.into_iter().zip(lists).collect();
        dated.sort_by_key(|(date, _)| *date);
        let newest_first = dated.into_iter().map(|(_, list)| list).collect();
        Ok(Self { newest_first, issuers, end: ends.into_iter().min() })
    }
}
