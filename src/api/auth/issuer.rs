//! One issuer of tokens and its keys: from a file, from an address, or from wherever its discovery document says.
//!
//! The keys are looked at now and then by a task of the server's, and once more when a token names one that is not known. However many
//! ask, looks are `auth.keys_interval_min_ms` apart. A look that fails changes nothing: the former keys stay. A key that is no longer
//! published is gone with the next look that succeeds.

use super::config::{Config, IssuerConfig};
use super::key_set::{IssuerKey, KeySet};
use crate::clock;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::Uri;
use jsonwebtoken::{Algorithm, Validation};
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};

/// Fetches a document by https, within bounds of time and size. Errors: why there is none, for the log.
pub type FetchDocument = Arc<dyn Fn(Uri) -> BoxFuture<'static, Result<Bytes, String>> + Send + Sync>;

/// How long a call waits for a look at its issuer's keys.
const WAIT: Duration = Duration::from_secs(15);
/// Calls that wait for one issuer; more are refused at once.
const WAITING_MAX: usize = 1_000;

/// An issuer whose tokens are accepted.
pub(super) struct Issuer {
    /// 1 for the first of the settings; for what must not show their values.
    pub(super) entry: usize,
    pub(super) name: Arc<str>,
    pub(super) settings: IssuerConfig,
    accepted: Vec<(Algorithm, Validation)>,
    source: Source,
    fetch: FetchDocument,
    interval: Duration,
    interval_min: Duration,
    known: watch::Sender<Known>,
    asked: Notify,
    waiting: Semaphore,
}

/// Where the keys are.
enum Source {
    File(PathBuf),
    Address(Uri),
    /// Of the document that names the address.
    Discovery(Uri),
}

/// What is known of the keys.
struct Known {
    keys: Arc<KeySet>,
    /// When the last look ended; none before the first.
    looked_at: Option<Instant>,
    /// What went wrong with it.
    fault: Option<String>,
}

/// What became of a look at the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    Succeeded,
    Failed,
}

/// The parts of a discovery document that count. Source: OpenID Connect Discovery 1.0, section 3.
#[derive(Deserialize)]
struct Discovered {
    issuer: String,
    jwks_uri: String,
}

impl Issuer {
    /// An issuer of checked settings; without keys until the first look.
    pub(super) fn new(
        entry: usize,
        config: &Config,
        file_interval: Duration,
        fetch: FetchDocument,
    ) -> Result<Self, String> {
        let settings = config.issuers[entry - 1].clone();
        let address = |text: &str| text.parse::<Uri>().map_err(|_| "is not an address".to_owned());
        let source = match (&settings.jwks_file, &settings.jwks_uri) {
            (Some(path), _) => Source::File(path.clone()),
            (None, Some(uri)) => Source::Address(address(uri)?),
            (None, None) => {
                let base = settings.issuer.trim_end_matches('/');
                Source::Discovery(address(&format!("{base}/.well-known/openid-configuration"))?)
            }
        };
        let is_file = matches!(source, Source::File(_));
        let interval = if is_file { file_interval } else { Duration::from_millis(config.keys_interval_ms) };
        let accepted = settings.algorithms().into_iter().map(|algorithm| (algorithm, validation(&settings, algorithm)));
        Ok(Self {
            entry,
            name: settings.issuer.as_str().into(),
            accepted: accepted.collect(),
            settings,
            source,
            fetch,
            interval,
            interval_min: Duration::from_millis(config.keys_interval_min_ms).min(interval),
            known: watch::Sender::new(Known { keys: Arc::default(), looked_at: None, fault: None }),
            asked: Notify::new(),
            waiting: Semaphore::new(WAITING_MAX),
        })
    }

    /// How a token of an algorithm is checked; none where the algorithm is not accepted.
    pub(super) fn validation(&self, algorithm: Algorithm) -> Option<&Validation> {
        self.accepted.iter().find(|(accepted, _)| *accepted == algorithm).map(|(_, validation)| validation)
    }

    /// The key for a token's header. One that is not known is looked for at the issuer first, where the last look is long enough ago.
    pub(super) async fn key_for(&self, id: Option<&str>, algorithm: Algorithm) -> Option<Arc<IssuerKey>> {
        let find = |known: &Known| known.keys.find(id, algorithm).cloned();
        if let Some(key) = find(&self.known.borrow()) {
            return Some(key);
        }
        let mut changes = self.known.subscribe();
        {
            let known = changes.borrow_and_update();
            let is_recent = known.looked_at.is_some_and(|at| at.elapsed() < self.interval_min);
            if let key @ Some(_) = find(&known) {
                return key;
            }
            if is_recent {
                return None;
            }
        }
        let _place = self.waiting.try_acquire().ok()?;
        self.asked.notify_one();
        timeout(WAIT, changes.changed()).await.ok()?.ok()?;
        find(&changes.borrow())
    }

    /// True where a key is still published, as far as is known.
    pub(super) fn holds(&self, thumbprint: &str) -> bool {
        self.known.borrow().keys.holds(thumbprint)
    }

    /// Reads keys that are in a file; does nothing for those that have to be fetched.
    ///
    /// Errors: why the file cannot be used.
    pub(super) async fn read_file(&self) -> Result<(), String> {
        if let Source::File(_) = self.source {
            let keys = Arc::new(self.read().await?);
            self.known.send_replace(Known { keys, looked_at: Some(Instant::now()), fault: None });
        }
        Ok(())
    }

    /// What went wrong with the last look; none where it succeeded.
    pub(super) fn fault(&self) -> Option<String> {
        self.known.borrow().fault.clone()
    }

    /// Looks at the keys now and then, and when somebody asks. Never ends by itself.
    pub(super) async fn run(self: Arc<Self>, told: impl Fn(Look)) {
        loop {
            let look = self.look().await;
            told(look);
            // Whoever asks meanwhile is not heard before: this is what bounds the rate.
            sleep(self.interval_min).await;
            if look == Look::Failed {
                continue;
            }
            // Replicas that were started together do not ask together.
            let rest = self.interval.saturating_sub(self.interval_min).mul_f64(1.0 - clock::jitter() / 10.0);
            tokio::select! {
                () = sleep(rest) => {}
                () = self.asked.notified() => {}
            }
        }
    }

    /// Looks once at the keys.
    pub(super) async fn look(&self) -> Look {
        let read = self.read().await;
        let looked_at = Some(Instant::now());
        let (before, fault_before) = (Arc::clone(&self.known.borrow().keys), self.fault());
        match read {
            Ok(keys) => {
                if !keys.is_same(&before) {
                    tracing::info!(issuer = %self.name, keys = keys.len(), "the keys of an issuer have changed");
                } else if fault_before.is_some() {
                    tracing::info!(issuer = %self.name, "the keys of an issuer can be read again");
                }
                self.known.send_replace(Known { keys: Arc::new(keys), looked_at, fault: None });
                Look::Succeeded
            }
            Err(fault) => {
                // Once for each fault, not once for each look.
                if fault_before.as_ref() != Some(&fault) {
                    tracing::warn!(issuer = %self.name, error = fault, "the keys of an issuer cannot be read; the former ones stay");
                }
                self.known.send_replace(Known { keys: before, looked_at, fault: Some(fault) });
                Look::Failed
            }
        }
    }

    async fn read(&self) -> Result<KeySet, String> {
        let address = match &self.source {
            Source::File(path) => {
                let text = tokio::fs::read(path).await.map_err(|error| format!("the file cannot be read: {error}"))?;
                let keys = parse(&text)?;
                // An issuer may withdraw its last key; a file without any is one that was written wrong.
                return if keys.len() == 0 {
                    Err("the file holds no key that verifies signatures".to_owned())
                } else {
                    Ok(keys)
                };
            }
            Source::Address(address) => address.clone(),
            Source::Discovery(document) => self.discover(document).await?,
        };
        parse(&(self.fetch)(address).await.map_err(|error| format!("the JWK set: {error}"))?)
    }

    /// The address of the keys, by the issuer's own document.
    async fn discover(&self, document: &Uri) -> Result<Uri, String> {
        let failed = |error: &str| format!("the discovery document: {error}");
        let text = (self.fetch)(document.clone()).await.map_err(|error| failed(&error))?;
        let found: Discovered = serde_json::from_slice(&text).map_err(|_| failed("has no issuer and jwks_uri"))?;
        // One who could answer for another issuer could sign for it.
        if *found.issuer != *self.name {
            return Err(failed("is another issuer's"));
        }
        found.jwks_uri.parse().map_err(|_| failed("its jwks_uri is not an address"))
    }
}

fn parse(text: &[u8]) -> Result<KeySet, String> {
    KeySet::parse(text).map_err(|error| format!("what was read {error}"))
}

/// What the token library checks: the signature, `iss` and `aud`, of which both must be there. Times are not its business here.
fn validation(settings: &IssuerConfig, algorithm: Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.set_issuer(&[&settings.issuer]);
    validation.set_audience(&[&settings.audience]);
    validation.set_required_spec_claims(&["iss", "aud"]);
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation
}
