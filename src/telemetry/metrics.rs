//! The metrics that the ops port serves: the registry of a server, and the process-wide instruments that the parts count with.
//!
//! Counters and histograms belong to the process and are reached by [`measured`], so that counting costs one atomic addition and no
//! parameter; levels (queues, pools, streams) are read when somebody scrapes and cost nothing otherwise. No label carries a tenant,
//! a URL or anything else that a caller can make up. `docs/metrics.md` lists them all, and a test compares.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use std::fmt;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

/// What the parts of this process count with.
#[derive(Debug)]
pub struct Measured {
    /// Group commits.
    pub publish: Publish,
    /// Attempts and what becomes of them.
    pub dispatch: Dispatch,
    /// Streams.
    pub watch: Watch,
    /// Filters that could not be evaluated over an event, by where they stand.
    filter_errors: Family<PlaceLabels, Counter>,
}

/// Group commits.
#[derive(Debug)]
pub struct Publish {
    /// Events that were committed.
    pub events: Counter,
    /// Events answered from an earlier call with the same key.
    pub duplicates: Counter,
    /// Calls that were matched again because the registry in memory was behind the database's.
    pub registry_misses: Counter,
    refused: Family<QuotaLabels, Counter>,
    batch_events: Histogram,
    commit_seconds: Histogram,
}

/// Attempts and what becomes of them.
#[derive(Debug)]
pub struct Dispatch {
    attempts: Family<OutcomeLabels, Counter>,
    attempt_seconds: Histogram,
    /// Attempts that failed and will be repeated.
    pub deferred: Counter,
    /// Invocations that used up their attempts.
    pub dead_letters: Counter,
    /// Operator events that were left out because they are refused for good.
    pub announcements_refused: Counter,
}

/// Streams.
#[derive(Debug)]
pub struct Watch {
    /// Messages handed to transports.
    pub messages: Counter,
    /// Bytes of these.
    pub sent_bytes: Counter,
    /// Pages read from the store by streams that have fallen out of their ring.
    pub fallen_out: Counter,
}

/// The quotas that may refuse a publish: their series exist from the start.
const PUBLISH_QUOTAS: [&str; 5] = [
    "publish_events_per_second",
    "publish_events_burst",
    "publish_bytes_per_second",
    "publish_bytes_burst",
    "backlog_max",
];

/// Where a filter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilterPlace {
    /// In a subscription.
    Subscription,
    /// In a watch or a list.
    Watch,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QuotaLabels {
    quota: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PlaceLabels {
    place: &'static str,
}

impl FilterPlace {
    fn name(self) -> &'static str {
        match self {
            Self::Subscription => "subscription",
            Self::Watch => "watch",
        }
    }
}

/// The instruments of this process.
pub fn measured() -> &'static Measured {
    static MEASURED: LazyLock<Measured> = LazyLock::new(|| Measured {
        publish: Publish {
            events: Counter::default(),
            duplicates: Counter::default(),
            registry_misses: Counter::default(),
            refused: Family::default(),
            batch_events: Histogram::new(exponential_buckets(1.0, 2.0, 11)),
            commit_seconds: Histogram::new(exponential_buckets(0.000_25, 2.0, 16)),
        },
        dispatch: Dispatch {
            attempts: Family::default(),
            attempt_seconds: Histogram::new(exponential_buckets(0.000_5, 2.0, 20)),
            deferred: Counter::default(),
            dead_letters: Counter::default(),
            announcements_refused: Counter::default(),
        },
        watch: Watch { messages: Counter::default(), sent_bytes: Counter::default(), fallen_out: Counter::default() },
        filter_errors: Family::default(),
    });
    &MEASURED
}

impl Measured {
    /// A filter could not be evaluated; its event does not match. Written to stand in an `unwrap_or_else`.
    pub fn filter_failed(&self, place: FilterPlace) -> bool {
        self.filter_errors.get_or_create(&PlaceLabels { place: place.name() }).inc();
        false
    }

    fn register(&self, registry: &mut Registry) {
        let Publish { events, duplicates, registry_misses, refused, batch_events, commit_seconds } = &self.publish;
        registry.register("publish_events", "Events committed", events.clone());
        registry.register(
            "publish_duplicates",
            "Events answered from an earlier call with the same key",
            duplicates.clone(),
        );
        registry.register(
            "publish_registry_misses",
            "Publish calls matched again because the registry in memory was behind",
            registry_misses.clone(),
        );
        for quota in PUBLISH_QUOTAS {
            let _ = refused.get_or_create(&QuotaLabels { quota });
        }
        registry.register("publish_refused", "Publish calls refused by a quota of their tenant", refused.clone());
        registry.register("publish_batch_events", "Events in one group commit", batch_events.clone());
        registry.register("publish_commit_duration_seconds", "Time of one group commit", commit_seconds.clone());
        let Dispatch { attempts, attempt_seconds, deferred, dead_letters, announcements_refused } = &self.dispatch;
        registry.register("dispatch_attempts", "Attempts by outcome", attempts.clone());
        registry.register("dispatch_attempt_duration_seconds", "Time of one attempt", attempt_seconds.clone());
        registry.register("dispatch_deferred", "Failed attempts that will be repeated", deferred.clone());
        registry.register(
            "dispatch_dead_letters",
            "Invocations that used up their attempts or were refused for good",
            dead_letters.clone(),
        );
        registry.register(
            "dispatch_announcements_refused",
            "Carillon's own events that were left out because they are refused for good",
            announcements_refused.clone(),
        );
        let Watch { messages, sent_bytes, fallen_out } = &self.watch;
        registry.register("watch_messages", "Messages handed to the transports of watches", messages.clone());
        registry.register("watch_sent_bytes", "Bytes of these messages", sent_bytes.clone());
        registry.register(
            "watch_fallen_out",
            "Pages read from the database by streams that are behind their ring",
            fallen_out.clone(),
        );
        // Both series exist from the start: a counter that appears with its first error hides that error from a rate.
        for place in [FilterPlace::Subscription, FilterPlace::Watch] {
            let _ = self.filter_errors.get_or_create(&PlaceLabels { place: place.name() });
        }
        registry.register(
            "filter_errors",
            "Filters that could not be evaluated over an event, and so did not match",
            self.filter_errors.clone(),
        );
    }
}

impl Publish {
    /// A quota of a tenant has refused a call. `quota` is one of a fixed set of names.
    pub fn refused(&self, quota: &'static str) {
        self.refused.get_or_create(&QuotaLabels { quota }).inc();
    }

    /// One group commit was written.
    pub fn committed(&self, events: usize, took: Duration) {
        self.events.inc_by(events as u64);
        self.batch_events.observe(f64::from(u32::try_from(events).unwrap_or(u32::MAX)));
        self.commit_seconds.observe(took.as_secs_f64());
    }
}

impl Dispatch {
    /// One attempt has ended. `outcome` is one of a fixed set of names.
    pub fn attempted(&self, outcome: &'static str, took: Duration) {
        self.attempts.get_or_create(&OutcomeLabels { outcome }).inc();
        self.attempt_seconds.observe(took.as_secs_f64());
    }
}

/// The metrics of one server. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl Metrics {
    /// Lets a module add its own metrics, once, at start.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Adds a level that is read at each scrape. `read` must not block, and must hold nothing alive that has to end.
    pub fn level(&self, name: &'static str, help: &'static str, read: impl Fn() -> usize + Send + Sync + 'static) {
        let level = Level { name, help, read: Box::new(read) };
        self.register(|registry| registry.register_collector(Box::new(level)));
    }

    /// Everything, as OpenMetrics text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry.lock().unwrap_or_else(PoisonError::into_inner));
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("carillon");
        registry.register("build", "The release that runs", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        measured().register(&mut registry);
        Self { registry: Arc::new(Mutex::new(registry)) }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics(..)")
    }
}

/// A level, read at each scrape.
struct Level {
    name: &'static str,
    help: &'static str,
    read: Box<dyn Fn() -> usize + Send + Sync>,
}

impl Collector for Level {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let gauge = ConstGauge::new(i64::try_from((self.read)()).unwrap_or(i64::MAX));
        let metric = encoder.encode_descriptor(self.name, self.help, None, gauge.metric_type())?;
        gauge.encode(metric)
    }
}

impl fmt::Debug for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Level").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_read_at_each_scrape() {
        let metrics = Metrics::default();
        let value = Arc::new(std::sync::atomic::AtomicUsize::new(3));
        let read = value.clone();
        metrics.level("test_level", "A level", move || read.load(std::sync::atomic::Ordering::Relaxed));
        assert!(metrics.text().contains("\ncarillon_test_level 3\n"), "{}", metrics.text());
        value.store(4, std::sync::atomic::Ordering::Relaxed);
        assert!(metrics.text().contains("\ncarillon_test_level 4\n"), "{}", metrics.text());
    }

    #[test]
    fn counters_that_have_counted_nothing_are_there_as_zero() {
        let text = Metrics::default().text();
        assert!(text.contains("carillon_filter_errors_total{place=\"watch\"}"), "{text}");
        assert!(text.contains("carillon_build_info{version="), "{text}");
    }
}
