//! Looks at the certificate files of all ports now and then, and says so where something is wrong with them: in the log, in
//! metrics, and as a notice of the readiness page.
//!
//! Files are polled because a poll of a few inodes costs nothing and sees every way of replacing a file; a notice of the kernel does
//! not reach through swapped links and network mounts.

use super::{Tls, files};
use crate::clock;
use crate::telemetry::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};

/// The certificates of every port that has some. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TlsWatch {
    ports: Arc<[Arc<Tls>]>,
    /// What is wrong at each port now, without the paths.
    faults: Arc<Mutex<BTreeMap<&'static str, String>>>,
    /// The authorities of each port of which the log says already that they vouch for nobody.
    lapsed: Arc<Mutex<BTreeMap<&'static str, Vec<String>>>>,
    reloads: Family<ReloadLabels, Counter>,
    failing: Family<PortLabels, Gauge>,
    expiry: Family<FileLabels, Gauge>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabels {
    port: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PortLabels {
    port: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FileLabels {
    port: &'static str,
    file: &'static str,
}

impl TlsWatch {
    /// Adds the metrics to those that are served.
    pub fn new(ports: Vec<Arc<Tls>>, metrics: &Metrics) -> Self {
        let watch = Self {
            ports: ports.into(),
            faults: Arc::default(),
            lapsed: Arc::default(),
            reloads: Family::default(),
            failing: Family::default(),
            expiry: Family::default(),
        };
        metrics.register(|registry| {
            let reloads = watch.reloads.clone();
            registry.register("certificate_reloads", "Changes of certificate files, by what became of them", reloads);
            let failing = watch.failing.clone();
            registry.register("certificate_reload_failing", "1 while changed files cannot be used", failing);
            let help = "When what is in use expires, seconds since 1970";
            registry.register("certificate_expiry_timestamp_seconds", help, watch.expiry.clone());
        });
        for tls in watch.ports.iter() {
            // Shown from the start, so that a first failure is seen as a change.
            for outcome in ["ok", "failed"] {
                drop(watch.reloads.get_or_create(&ReloadLabels { port: tls.port(), outcome }));
            }
            watch.measure(tls);
            watch.tell_lapsed(tls);
        }
        watch
    }

    /// Looks once at every file.
    pub fn look(&self) {
        for tls in self.ports.iter() {
            let port = tls.port();
            let count = |outcome| self.reloads.get_or_create(&ReloadLabels { port, outcome }).inc();
            match tls.reload(clock::now()) {
                Ok(changed) => {
                    if changed {
                        tracing::info!(port, "certificates reloaded");
                        count("ok");
                    }
                    if self.faults().remove(port).is_some() && !changed {
                        tracing::info!(port, "the certificate files are as they were; nothing to reload");
                    }
                }
                Err(error) => {
                    let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
                    let what = format!("{error}{cause}");
                    // Once for each fault, not once for each look.
                    if self.faults().insert(port, what.clone()).as_ref() != Some(&what) {
                        tracing::error!(port, error = what, "certificates not reloaded; the former ones stay");
                        count("failed");
                    }
                }
            }
            self.measure(tls);
            self.tell_lapsed(tls);
        }
    }

    /// What an operator has to know, a line each.
    pub fn notices(&self) -> Vec<String> {
        let now = clock::now();
        let expired = self.ports.iter().flat_map(|tls| {
            // Of authorities each is named.
            let ended =
                tls.expiries().into_iter().filter(move |expiry| expiry.file != files::CLIENT_CA && expiry.at <= now);
            let ended =
                ended.map(|expiry| format!("{} of the {} port expired at {}", expiry.file, tls.port(), expiry.at));
            let lapsed = tls.lapsed(now).into_iter();
            ended.chain(lapsed.map(|authority| format!("client_ca of the {} port: {authority}", tls.port())))
        });
        let faults = self.faults();
        let failing = faults.keys().map(|port| format!("certificates of the {port} port not reloaded; see the log"));
        failing.chain(expired).collect()
    }

    fn measure(&self, tls: &Tls) {
        let port = tls.port();
        let expiries = tls.expiries();
        for expiry in &expiries {
            self.expiry.get_or_create(&FileLabels { port, file: expiry.file }).set(expiry.at.timestamp());
        }
        // The last list goes together with its authority.
        if !expiries.iter().any(|expiry| expiry.file == files::CLIENT_CRL) {
            self.expiry.remove(&FileLabels { port, file: files::CLIENT_CRL });
        }
        let failing = self.faults().contains_key(port);
        self.failing.get_or_create(&PortLabels { port }).set(failing.into());
    }

    /// Once for each authority, when it lapses or comes into use so.
    fn tell_lapsed(&self, tls: &Tls) {
        let (port, lapsed) = (tls.port(), tls.lapsed(clock::now()));
        let mut told = self.lapsed.lock().unwrap_or_else(PoisonError::into_inner);
        let told = told.entry(port).or_default();
        for authority in lapsed.iter().filter(|authority| !told.contains(authority)) {
            tracing::error!(port, authority, "an authority of clients vouches for nobody; its clients are refused");
        }
        *told = lapsed;
    }

    fn faults(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, String>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
