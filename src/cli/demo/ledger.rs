//! The demo's own book of what was published, delivered and watched, and its verdict.
//!
//! What should have arrived is computed here by the demo's simple rules, never read from the server: the server must not
//! vouch for itself.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::cli::receiver::Delivery;

/// What happened so far; shared between the publisher, the receiver and the watch.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: Mutex<Entries>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Entries {
    /// By event id.
    published: HashMap<String, Published>,
    /// By (path, event id): the first delivery with a good signature.
    deliveries: HashMap<(String, String), Arrived>,
    repeated: usize,
    bad_signatures: usize,
    unreadable: usize,
    /// Event id and position, in the order of arrival.
    watched: Vec<(String, i64)>,
    /// By reason: how many, and of which event types.
    refused: BTreeMap<String, (usize, BTreeSet<String>)>,
}

/// A published payload.
#[derive(Debug)]
pub struct Published {
    /// The paths that must be called.
    pub paths: Vec<String>,
    /// What must arrive.
    pub value: Value,
    /// Whether it breaks the real schema of its kind, and was published with the version that its kind shares.
    pub outside_schema: bool,
    /// Just before the call.
    pub started: Instant,
}

#[derive(Debug)]
struct Arrived {
    value: Value,
    received: Instant,
}

/// What the demo found.
#[derive(Debug, Default)]
pub struct Verdict {
    /// The figures.
    pub figures: Figures,
    /// Deliveries beyond the first of the same invocation.
    pub repeated: usize,
    /// What is wrong, one sentence each; empty where all is well.
    pub faults: Vec<String>,
    /// Refused publishes, a sentence for each reason.
    pub refused: Vec<String>,
}

/// The figures that other programs read; the names are stable.
#[derive(Debug, Default, Serialize)]
pub struct Figures {
    /// Events that were acknowledged.
    pub published: usize,
    /// Events that were refused.
    pub refused: usize,
    /// Acknowledged events that break the real schema of their kind, and were published with a version made for them.
    pub outside_schema: usize,
    /// Deliveries that the demo's own rules ask for.
    pub deliveries_expected: usize,
    /// Those of them that arrived with a good signature and the published data.
    pub deliveries_verified: usize,
    /// Published events that the watch showed.
    pub watched: usize,
    /// Expected deliveries and published events that were not seen.
    pub lost: usize,
    /// From just before the call to the delivery's last byte.
    pub publish_to_receipt_ms: Percentiles,
}

/// Milliseconds.
#[derive(Debug, Default, Serialize)]
pub struct Percentiles {
    /// Half of them took at most this.
    pub p50: f64,
    /// 99 of 100 took at most this.
    pub p99: f64,
}

impl Ledger {
    /// Books an acknowledged event.
    pub fn published(&self, event_id: String, published: Published) {
        self.entries().published.insert(event_id, published);
        self.changed.notify_one();
    }

    /// Books a refused one.
    pub fn refused(&self, reason: String, event_type: &str) {
        let mut entries = self.entries();
        let (count, event_types) = entries.refused.entry(reason).or_default();
        *count += 1;
        event_types.insert(event_type.to_owned());
    }

    /// Books a request that the receiver got.
    pub fn delivered(&self, delivery: &Delivery) {
        let mut guard = self.entries();
        let entries = &mut *guard;
        match (delivery.signature, delivery.event()) {
            (Some(Ok(())), Some((event_id, _type, value))) => {
                let arrived = Arrived { value, received: delivery.received };
                match entries.deliveries.entry((delivery.path.clone(), event_id)) {
                    Entry::Occupied(_) => entries.repeated += 1,
                    Entry::Vacant(place) => {
                        place.insert(arrived);
                    }
                }
            }
            (Some(Ok(())), None) => entries.unreadable += 1,
            _ => entries.bad_signatures += 1,
        }
        drop(guard);
        self.changed.notify_one();
    }

    /// Books an event that the watch showed.
    pub fn watched(&self, event_id: String, position: i64) {
        self.entries().watched.push((event_id, position));
        self.changed.notify_one();
    }

    /// How many expected deliveries have arrived.
    pub fn arrived(&self) -> usize {
        self.entries().deliveries.len()
    }

    /// Waits until everything published was delivered and watched; false where the limit passed first.
    ///
    /// *Shape*: `looked` is told how many deliveries have arrived whenever something changed.
    pub async fn complete(&self, limit: Duration, looked: impl Fn(usize)) -> bool {
        let all = async {
            while !self.entries().is_complete() {
                self.changed.notified().await;
                looked(self.arrived());
            }
        };
        timeout(limit, all).await.is_ok()
    }

    /// Compares what arrived with what should have.
    pub fn verdict(&self) -> Verdict {
        let entries = self.entries();
        let mut verdict = Verdict { repeated: entries.repeated, refused: entries.refusals(), ..Verdict::default() };
        let mut expected = HashSet::new();
        let mut latencies = Vec::new();
        let mut changed = 0;
        for (event_id, published) in &entries.published {
            for path in &published.paths {
                let key = (path.clone(), event_id.clone());
                match entries.deliveries.get(&key) {
                    Some(arrived) if arrived.value == published.value => {
                        latencies.push(arrived.received.saturating_duration_since(published.started));
                    }
                    Some(_) => changed += 1,
                    None => {}
                }
                expected.insert(key);
            }
        }
        let unexpected = entries.deliveries.keys().filter(|key| !expected.contains(*key)).count();
        let shown: HashSet<&str> = entries.watched.iter().map(|(event_id, _)| event_id.as_str()).collect();
        let watched = entries.published.keys().filter(|event_id| shown.contains(event_id.as_str())).count();
        let disordered = entries.watched.windows(2).filter(|pair| pair[0].1 >= pair[1].1).count();

        let missing = expected.len() - latencies.len() - changed;
        let unwatched = entries.published.len() - watched;
        verdict.figures = Figures {
            published: entries.published.len(),
            refused: entries.refused.values().map(|(count, _)| count).sum(),
            outside_schema: entries.published.values().filter(|published| published.outside_schema).count(),
            deliveries_expected: expected.len(),
            deliveries_verified: latencies.len(),
            watched,
            lost: missing + changed + unwatched,
            publish_to_receipt_ms: percentiles(&mut latencies),
        };
        let faults = [
            (missing, "expected deliveries did not arrive"),
            (changed, "deliveries arrived with other data than was published"),
            (unexpected, "deliveries arrived that no rule asks for"),
            (entries.bad_signatures, "deliveries had no good signature"),
            (entries.unreadable, "deliveries were not CloudEvents"),
            (unwatched, "published events were not shown by the watch"),
            (disordered, "events were watched twice or out of order"),
        ];
        verdict.faults =
            faults.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        verdict
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        // Nothing that holds the lock can leave an entry half made.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    fn refusals(&self) -> Vec<String> {
        let sentence = |(reason, (count, event_types)): (&String, &(usize, BTreeSet<String>))| {
            let some: Vec<_> = event_types.iter().take(3).map(String::as_str).collect();
            let more = if event_types.len() > some.len() { ", ..." } else { "" };
            format!("{count} with {reason} ({}{more})", some.join(", "))
        };
        self.refused.iter().map(sentence).collect()
    }

    fn is_complete(&self) -> bool {
        let shown: HashSet<&str> = self.watched.iter().map(|(event_id, _)| event_id.as_str()).collect();
        self.published.iter().all(|(event_id, published)| {
            shown.contains(event_id.as_str())
                && published.paths.iter().all(|path| self.deliveries.contains_key(&(path.clone(), event_id.clone())))
        })
    }
}

/// Nearest-rank percentiles, rounded to microseconds; zero where there is nothing.
fn percentiles(latencies: &mut [Duration]) -> Percentiles {
    latencies.sort_unstable();
    let rank = |percent: usize| {
        let index = (latencies.len() * percent).div_ceil(100).saturating_sub(1);
        let latency = latencies.get(index).copied().unwrap_or_default();
        f64::from(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX)) / 1000.0
    };
    Percentiles { p50: rank(50), p99: rank(99) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::receiver::SignatureError;
    use http::HeaderMap;

    fn delivery(path: &str, id: &str, data: &str, signature: Result<(), SignatureError>) -> Delivery {
        let mut headers = HeaderMap::new();
        headers.insert("ce-id", id.parse().unwrap());
        headers.insert("ce-type", "T".parse().unwrap());
        let (path, body) = (path.to_owned(), data.to_owned().into());
        Delivery { path, headers, body, signature: Some(signature), received: Instant::now() }
    }

    fn published(paths: &[&str]) -> Published {
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        Published { paths, value: serde_json::json!({"a": 1}), outside_schema: false, started: Instant::now() }
    }

    #[tokio::test]
    async fn all_is_well_when_everything_arrived() {
        let ledger = Ledger::default();
        ledger.delivered(&delivery("/a", "1", r#"{"a":1}"#, Ok(())));
        ledger.published("1".to_owned(), published(&["/a", "/b"]));
        assert!(!ledger.complete(Duration::from_millis(1), |_| ()).await);
        ledger.delivered(&delivery("/b", "1", r#"{"a":1}"#, Ok(())));
        ledger.delivered(&delivery("/b", "1", r#"{"a":1}"#, Ok(())));
        ledger.watched("1".to_owned(), 1);
        assert!(ledger.complete(Duration::from_millis(1), |_| ()).await);
        let verdict = ledger.verdict();
        assert_eq!(verdict.faults, Vec::<String>::new());
        assert_eq!(verdict.repeated, 1);
        let figures = verdict.figures;
        assert_eq!((figures.published, figures.deliveries_expected, figures.deliveries_verified), (1, 2, 2));
        assert_eq!((figures.watched, figures.lost), (1, 0));
    }

    #[test]
    fn every_fault_is_counted() {
        let ledger = Ledger::default();
        ledger.published("1".to_owned(), published(&["/a", "/b"]));
        ledger.published("2".to_owned(), published(&[]));
        ledger.delivered(&delivery("/a", "1", r#"{"a":2}"#, Ok(())));
        ledger.delivered(&delivery("/b", "1", r#"{"a":1}"#, Err(SignatureError::Mismatch)));
        ledger.delivered(&delivery("/a", "2", r#"{"a":1}"#, Ok(())));
        ledger.watched("1".to_owned(), 2);
        ledger.watched("1".to_owned(), 2);
        ledger.refused("SCHEMA_VIOLATION".to_owned(), "T");
        let verdict = ledger.verdict();
        assert_eq!(verdict.faults.len(), 6, "{:?}", verdict.faults);
        assert_eq!(verdict.refused, ["1 with SCHEMA_VIOLATION (T)"]);
        let figures = verdict.figures;
        assert_eq!((figures.refused, figures.deliveries_verified, figures.lost), (1, 0, 3));
    }

    #[test]
    fn percentiles_are_nearest_rank() {
        let mut latencies: Vec<_> = (1..=200).rev().map(Duration::from_millis).collect();
        let found = percentiles(&mut latencies);
        assert_eq!(format!("{} {}", found.p50, found.p99), "100 198");
        assert_eq!(format!("{}", percentiles(&mut []).p99), "0");
    }
}
