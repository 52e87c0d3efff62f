//! TLS of the ports: what new connections use, replaced while the port serves when its files change, and whether a peer that was
//! let in earlier, under former files perhaps, would still be let in.
//!
//! One provider (aws-lc-rs), given outright. It must never give up a working configuration for files that do not work.

mod files;
mod names;
mod revocation;
mod trusted;
mod watch;

pub use names::peer_identity;
pub use watch::TlsWatch;

use super::config::{InternalTls, PublicTls};
use arc_swap::ArcSwap;
use chrono::{DateTime, Utc};
use files::{Built, Contents, Files, Seen, instant};
use revocation::Names;
use rustls::ServerConfig;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::{CertificateDer, UnixTime};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch as channel;
use x509_parser::prelude::{FromDer as _, X509Certificate};

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
    /// The client authorities or their revocation lists cannot be used.
    #[error("the client authorities of the internal port cannot be used")]
    Authorities(#[source] rustls::server::VerifierBuilderError),
    /// A revocation list was in use and is not there any more.
    #[error(
        "setting server.internal_tls.client_crl_file: holds no revocation list of {authority} any more; that in use stays"
    )]
    ListGone {
        /// Whose list it was.
        authority: String,
    },
    /// A new certificate that no client would accept today.
    #[error("the certificate of the {port} port has expired")]
    Expired {
        /// Which port.
        port: &'static str,
    },
    /// New authorities, all of which are over or yet to come, while one that is in use is valid.
    #[error("setting server.internal_tls.client_ca_file: holds no authority that is valid now; those in use stay")]
    AuthoritiesLapsed,
}

/// A port's TLS, replaceable while it serves: new connections get the new one, open ones stay.
#[derive(Debug)]
pub struct Tls {
    files: Files,
    current: ArcSwap<Built>,
    loaded: Mutex<Loaded>,
    /// Tells open connections that their peer has to be looked at again.
    changes: channel::Sender<()>,
}

/// What was read last.
#[derive(Debug)]
struct Loaded {
    /// What the files looked like from outside; none where they have to be read again.
    seen: Option<Seen>,
    contents: Vec<Contents>,
    /// All that clients have had since the start.
    authorities: Names,
}

/// The instants at which a port's files stop being good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expiry {
    /// Which file: `certificate`, `client_ca` or `client_crl`.
    pub file: &'static str,
    /// The earliest end among what the file holds.
    pub at: DateTime<Utc>,
}

impl Tls {
    /// TLS of the public port: version 1.2 or 1.3.
    pub fn public(files: PublicTls) -> Result<Self, TlsError> {
        Self::load(Files::Public(files))
    }

    /// TLS of the internal port: version 1.3 only, client certificate required.
    pub fn internal(files: InternalTls) -> Result<Self, TlsError> {
        Self::load(Files::Internal(files))
    }

    fn load(files: Files) -> Result<Self, TlsError> {
        let seen = Some(files.look()?);
        let contents = files.read()?;
        let built = files.build(&contents)?;
        let loaded = Mutex::new(Loaded { seen, contents, authorities: built.authorities.clone() });
        Ok(Self { files, current: ArcSwap::from_pointee(built), loaded, changes: channel::Sender::default() })
    }

    /// Name of the port, for logs and metrics.
    pub fn port(&self) -> &'static str {
        self.files.port()
    }

    /// What new connections use.
    pub fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.load().config)
    }

    /// Until when what is in use is good.
    pub fn expiries(&self) -> Vec<Expiry> {
        self.current.load().expiries.clone()
    }

    /// The authorities of clients that vouch for nobody now, and why.
    pub fn lapsed(&self, now: DateTime<Utc>) -> Vec<String> {
        self.current.load().verifier.iter().flat_map(|trusted| trusted.lapsed(now)).collect()
    }

    /// Wakes at each replacement.
    pub fn changes(&self) -> channel::Receiver<()> {
        self.changes.subscribe()
    }

    /// Whether a peer that showed this chain would be let in now.
    pub fn still_accepts(&self, chain: &[CertificateDer<'static>], now: DateTime<Utc>) -> bool {
        let built = self.current.load();
        let (Some(verifier), Some((leaf, rest))) = (&built.verifier, chain.split_first()) else { return true };
        let since_1970 = Duration::from_secs(u64::try_from(now.timestamp()).unwrap_or(0));
        verifier.verify_client_cert(leaf, rest, UnixTime::since_unix_epoch(since_1970)).is_ok()
    }

    /// When a certificate of such a chain, or an authority, is over next: each is good until its last second has passed.
    pub fn next_end(&self, chain: &[CertificateDer<'static>], now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let built = self.current.load();
        let parsed = chain.iter().filter_map(|certificate| X509Certificate::from_der(certificate).ok());
        let ends = parsed.map(|(_, certificate)| instant(certificate.validity().not_after.timestamp() + 1));
        let ends = ends.chain(built.verifier.iter().flat_map(|trusted| trusted.ends()));
        ends.filter(|end| *end > now).min()
    }

    /// Looks at the files, and reads them where they have changed. Answers whether something new is in use; where the files cannot
    /// be used, the former ones stay, and every further look reads them again.
    pub fn reload(&self, now: DateTime<Utc>) -> Result<bool, TlsError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        // Looked at before it is read: a change in between makes the next look differ.
        let seen = self.files.look().inspect_err(|_| loaded.seen = None)?;
        if loaded.seen.as_ref() == Some(&seen) {
            return Ok(false);
        }
        loaded.seen = None;
        let contents = self.files.read()?;
        let changed = loaded.contents != contents;
        if changed {
            let built = self.files.build(&contents)?;
            if built.expiries.iter().any(|expiry| expiry.file == files::CERTIFICATE && expiry.at <= now) {
                return Err(TlsError::Expired { port: self.port() });
            }
            let vouched = |built: &Built| built.verifier.as_ref().is_none_or(|trusted| trusted.any_at(now));
            if vouched(&self.current.load()) && !vouched(&built) {
                return Err(TlsError::AuthoritiesLapsed);
            }
            // Without its list an authority would let in again whom it had revoked. A list may go where its authority goes or has gone.
            let kept = |issuer: &Vec<u8>| {
                let retired = loaded.authorities.contains_key(issuer) && !built.authorities.contains_key(issuer);
                retired || built.listed.contains_key(issuer)
            };
            if let Some((_, authority)) = self.current.load().listed.iter().find(|(issuer, _)| !kept(issuer)) {
                return Err(TlsError::ListGone { authority: authority.clone() });
            }
            loaded.authorities.extend(built.authorities.clone());
            self.current.store(Arc::new(built));
            loaded.contents = contents;
            self.changes.send_replace(());
        }
        loaded.seen = Some(seen);
        Ok(changed)
    }
}

#[cfg(test)]
mod tests;
