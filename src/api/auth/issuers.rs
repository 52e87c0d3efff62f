//! The issuers of the settings: read at start, looked after by tasks of the server's, and what operators see of them.

use super::config::Config;
use super::issuer::{FetchDocument, Issuer, Look};
use crate::telemetry::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The issuers, with their keys as far as they are known. Cheap to clone.
#[derive(Clone)]
pub struct Issuers {
    all: Arc<[Arc<Issuer>]>,
    looks: Family<OutcomeLabels, Counter>,
}

/// An issuer that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("setting auth.issuers.jwks_file: entry {entry}: {reason}")]
pub struct IssuerError {
    /// 1 for the first.
    pub entry: usize,
    /// What is wrong.
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

impl fmt::Debug for Issuers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuers").field("count", &self.all.len()).finish_non_exhaustive()
    }
}

impl Issuers {
    /// Takes checked settings and reads the keys that are in files; those that have to be fetched are not waited for. Files are looked
    /// at every `file_interval`.
    ///
    /// Errors: a file that cannot be used.
    pub async fn load(config: &Config, file_interval: Duration, fetch: &FetchDocument) -> Result<Self, IssuerError> {
        let mut all = Vec::with_capacity(config.issuers.len());
        for entry in 1..=config.issuers.len() {
            let failed = |reason| IssuerError { entry, reason };
            let issuer = Issuer::new(entry, config, file_interval, Arc::clone(fetch)).map_err(failed)?;
            issuer.read_file().await.map_err(failed)?;
            all.push(Arc::new(issuer));
        }
        Ok(Self { all: all.into(), looks: Family::default() })
    }

    /// Adds the metrics to those that are served.
    pub fn measure(&self, metrics: &Metrics) {
        for outcome in ["ok", "failed"] {
            drop(self.looks.get_or_create(&OutcomeLabels { outcome }));
        }
        metrics.register(|registry| {
            let help = "Looks at the keys of token issuers, by what became of them";
            registry.register("token_key_looks", help, self.looks.clone());
        });
        let this = self.clone();
        let failing = move || this.all.iter().filter(|issuer| issuer.fault().is_some()).count();
        metrics.level("token_issuers_failing", "Token issuers whose keys cannot be read", failing);
    }

    /// A task for each issuer, which keeps its keys as they are published and never ends by itself.
    pub fn tasks(&self) -> impl Iterator<Item = impl Future<Output = ()> + Send + use<>> + use<> {
        let looks = self.looks.clone();
        let all = Arc::clone(&self.all);
        (0..all.len()).map(move |index| {
            let looks = looks.clone();
            Arc::clone(&all[index]).run(move |look| {
                let outcome = if look == Look::Succeeded { "ok" } else { "failed" };
                looks.get_or_create(&OutcomeLabels { outcome }).inc();
            })
        })
    }

    /// What an operator has to know, a line each; without names, since whoever asks for them has shown nothing.
    pub fn notices(&self) -> Vec<String> {
        let failing = self.all.iter().filter(|issuer| issuer.fault().is_some());
        failing.map(|issuer| format!("keys of token issuer {} cannot be read; see the log", issuer.entry)).collect()
    }

    /// The issuer of that name.
    pub(super) fn named(&self, name: &str) -> Option<&Arc<Issuer>> {
        self.all.iter().find(|issuer| &*issuer.name == name)
    }
}
