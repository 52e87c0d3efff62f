//! What a watch wants of a run of entries, and how its filters are shared with others that have the same.
//!
//! Pure: no I/O and no waiting.

use super::codec::{self, Delivery};
use super::config::Config;
use super::filter::{Filters, Verdict};
use super::ring::RingEntry;
use crate::domain::ids::Position;
use crate::long_work::TURN;
use crate::proto::public::EventView;
use crate::store::events::LogPlace;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Events that one turn may look at with filters, and how long after the first one, before others get theirs.
const EVENTS_PER_TURN: usize = 256;
/// Filters that take more than this for an event are costly.
const COSTLY: Duration = Duration::from_micros(500);

/// The filters of all watches of a tenant that have the same ones: what one has evaluated and encoded, the others send as well.
#[derive(Debug)]
pub(super) struct Group {
    /// Tells groups of a tenant apart.
    pub(super) id: u32,
    pub(super) filters: Filters,
    /// How long their last turn took where they are costly, microseconds; otherwise 0.
    took_us: AtomicU64,
}

impl Group {
    pub(super) fn new(id: u32, filters: Filters) -> Self {
        Self { id, filters, took_us: AtomicU64::new(0) }
    }

    /// How long its last turn took, where its filters are costly: its streams take turns with what else is costly of their tenant.
    pub(super) fn costs(&self) -> Option<Duration> {
        Some(Duration::from_micros(self.took_us.load(Ordering::Relaxed))).filter(|took| !took.is_zero())
    }

    /// Notes how long a turn took for so many events.
    pub(super) fn note(&self, took: Duration, looked_at: usize) {
        let costly = took > COSTLY * u32::try_from(looked_at).unwrap_or(u32::MAX);
        let took = if costly { took } else { Duration::ZERO };
        self.took_us.store(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// What was found among entries.
#[derive(Debug)]
pub(super) struct Selected<'a> {
    /// In order.
    pub(super) wanted: Vec<Delivery<'a>>,
    /// How many entries were looked at, from the first on.
    pub(super) looked_at: usize,
    /// How many of them are not wanted.
    pub(super) skipped: u32,
    /// The place after the last one looked at; none where none was.
    pub(super) to: Option<LogPlace>,
    /// What the filters took.
    pub(super) took: Duration,
}

/// Looks at entries in order, up to the bounds of a message and of a turn, and not beyond `up_to`.
pub(super) fn select<'a>(
    filters: &'a Filters,
    entries: &'a [Arc<RingEntry>],
    view: EventView,
    config: &Config,
    up_to: Position,
) -> Selected<'a> {
    let most = if filters.is_plain() { config.message_events_max } else { EVENTS_PER_TURN };
    let mut found = Selected { wanted: Vec::new(), looked_at: 0, skipped: 0, to: None, took: Duration::ZERO };
    let mut bytes = 0;
    let began = (!filters.is_plain()).then(Instant::now);
    for entry in entries.iter().take(most).take_while(|entry| entry.position() <= up_to) {
        if let Verdict::Deliver(matched) = filters.verdict(&entry.entry().event) {
            bytes += codec::entry_size(entry, view);
            if !found.wanted.is_empty() && bytes > config.message_bytes_max {
                break;
            }
            found.wanted.push(Delivery { entry, names: filters.names(matched).collect() });
        } else {
            found.skipped += 1;
        }
        found.to = Some(LogPlace { after: entry.position(), day: entry.entry().day() });
        found.looked_at += 1;
        if began.is_some_and(|began| began.elapsed() > TURN) {
            break;
        }
    }
    found.took = began.map_or(Duration::ZERO, |began| began.elapsed());
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::filter::Filter;
    use crate::watch::filter::{NamedSelection, Selection};
    use crate::watch::tests::entry;

    fn named(name: &str, source: &str) -> NamedSelection {
        let selection = Selection { filter: Some(Filter::parse(source).expect("a filter")), ..Selection::default() };
        NamedSelection { name: name.to_owned(), selection }
    }

    fn filters(source: &str) -> Filters {
        Filters::new(vec![named("one", source)])
    }

    #[test]
    fn a_turn_of_costly_filters_ends_early_and_goes_on_where_it_was() {
        let numbers = vec!["0"; 400].join(",");
        let all: Vec<String> = (1..=4).map(|n| format!("[{numbers}].exists(x, x == {n})")).collect();
        let costly = Filters::new(all.iter().enumerate().map(|(n, source)| named(&n.to_string(), source)).collect());
        let cheap = filters("event.type == \"B\"");
        let entries: Vec<_> = (1..=200).map(|position| Arc::new(RingEntry::new(entry(position, "A")))).collect();
        let config = Config::default();
        let look = |filters, from: usize| {
            let found = select(filters, &entries[from..], EventView::Full, &config, Position::MAX);
            (found.looked_at, found.took)
        };
        let (cheaply, _) = look(&cheap, 0);
        let mut turns = 0;
        let mut at = 0;
        while at < entries.len() {
            let (looked_at, took) = look(&costly, at);
            assert!(looked_at > 0 && (at + looked_at == entries.len() || took >= TURN), "{looked_at} in {took:?}");
            (at, turns) = (at + looked_at, turns + 1);
        }
        assert!(turns > 1, "200 costly ones in one turn; of cheap ones it has {cheaply}");
    }

    #[test]
    fn filters_are_costly_by_what_they_take_for_an_event() {
        let group = Group::new(1, filters("event.type == \"B\""));
        assert_eq!(group.costs(), None);
        group.note(Duration::from_millis(2), 256);
        assert_eq!(group.costs(), None, "many events take long, too");
        group.note(Duration::from_millis(2), 2);
        assert_eq!(group.costs(), Some(Duration::from_millis(2)));
        group.note(Duration::from_millis(2), 200);
        assert_eq!(group.costs(), None);
    }
}
