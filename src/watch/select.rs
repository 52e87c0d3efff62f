//! What a watch wants of a run of entries, and how its filters are shared with others that have the same.
//!
//! Pure: no I/O and no waiting.

use super::codec::{self, Delivery};
use super::config::Config;
use super::filter::{Filters, Verdict};
use super::ring::RingEntry;
use crate::domain::ids::Position;
use crate::proto::public::EventView;
use crate::store::events::LogPlace;
use std::sync::Arc;

/// Events that one turn may look at with filters, before others get theirs.
const EVENTS_PER_TURN: usize = 256;

/// The filters of all watches of a tenant that have the same ones: what one has evaluated and encoded, the others send as well.
#[derive(Debug)]
pub(super) struct Group {
    /// Tells groups of a tenant apart.
    pub(super) id: u32,
    pub(super) filters: Filters,
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
    let mut found = Selected { wanted: Vec::new(), looked_at: 0, skipped: 0, to: None };
    let mut bytes = 0;
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
    }
    found
}
