//! G8: every reader gets what matches, in order, once, and all of it, over however many streams and replicas; a change of its filter
//! splits what it gets at one place.

use std::collections::{BTreeMap, HashMap};

use super::history::{Event, History, Reader};
use super::{Guarantee, Report};
use crate::record::{Record, Share};

/// Checks every reader.
pub fn read(history: &History, report: &mut Report) {
    let log: HashMap<i64, &Event> = history.log.iter().map(|event| (event.position, event)).collect();
    for reader in &history.readers {
        follow(history, &log, reader, report);
    }
}

fn follow(history: &History, log: &HashMap<i64, &Event>, reader: &Reader, report: &mut Report) {
    let party = &reader.party;
    let mut taste = (String::new(), Share::ALL);
    let mut finished = false;
    let mut seen: Vec<i64> = Vec::new();
    let mut in_stream = 0;
    for record in &reader.records {
        match record {
            Record::Opened { share, event_type, .. } => {
                taste = (event_type.clone(), *share);
                in_stream = 0;
            }
            Record::Seen { stream, position, event_id } => {
                if *position <= in_stream {
                    let before = in_stream;
                    report
                        .breach(Guarantee::G8, format_args!("{party}: stream {stream} gave {position} after {before}"));
                }
                in_stream = *position;
                if log.get(position).is_none_or(|event| event.id != *event_id) {
                    report.breach(
                        Guarantee::G8,
                        format_args!(
                            "{party}: stream {stream} gave {event_id} at {position}, which the log does not have"
                        ),
                    );
                }
                seen.push(*position);
            }
            Record::Closed { reason, stream, .. } if reason.starts_with("GAP") || reason.starts_with("CURSOR") => {
                report.breach(Guarantee::G8, format_args!("{party}: stream {stream} ended with {reason}"));
            }
            Record::Finished { .. } => finished = true,
            _ => {}
        }
    }
    if !finished {
        report.stand_still(Guarantee::G8, format_args!("{party} never came to the end of the log"));
        return;
    }
    let splits = splits(reader, report);
    let wanted = |event: &Event| {
        let now = splits.iter().rev().find(|(after, _)| *after < event.position);
        now.map_or_else(|| wants(&taste, event), |(_, share)| wants(&(String::new(), *share), event))
    };
    let expected = history.log.iter().filter(|event| wanted(event)).map(|event| event.position);
    let mut got = seen.iter().copied();
    for position in expected {
        match got.next() {
            Some(found) if found == position => {}
            found => {
                let found = found.map_or_else(|| "the end".to_owned(), |found| found.to_string());
                report.breach(Guarantee::G8, format_args!("{party}: {position} should come next, and {found} came"));
                return;
            }
        }
    }
    if let Some(surplus) = got.next() {
        report.breach(Guarantee::G8, format_args!("{party} was given {surplus} beyond the end"));
    }
}

/// Where the filter of a reader changes, in order: the position after which each applies, and what it takes. A change has one place, the
/// same for whoever made it as in the stream, however often the stream passes it.
fn splits(reader: &Reader, report: &mut Report) -> Vec<(i64, Share)> {
    let party = &reader.party;
    let (mut shares, mut places, mut in_stream) = (BTreeMap::new(), BTreeMap::new(), 0);
    for record in &reader.records {
        match record {
            Record::Chosen { version, share } => {
                shares.insert(*version, *share);
            }
            Record::Split { version, after, told } => {
                in_stream += usize::from(!told);
                let known = *places.entry(*version).or_insert(*after);
                if known != *after {
                    let what = format_args!("{party}: filter {version} applies after {known} and after {after}");
                    report.breach(Guarantee::G8, what);
                }
            }
            _ => {}
        }
    }
    report.splits += in_stream;
    // A watch begins with its first filter.
    places.extend(shares.contains_key(&1).then_some((1, 0)));
    for (version, after) in &places {
        if !shares.contains_key(version) {
            let what = format_args!("{party}: filter {version}, after {after}, is one that nobody has chosen");
            report.breach(Guarantee::G8, what);
        }
    }
    places.iter().filter_map(|(version, after)| Some((*after, *shares.get(version)?))).collect()
}

fn wants((event_type, share): &(String, Share), event: &Event) -> bool {
    let typed = match event_type.strip_suffix('*') {
        Some(prefix) => event.type_name.starts_with(prefix),
        None => event_type.is_empty() || event.type_name == *event_type,
    };
    typed && (*share == Share::ALL || event.n >= 0 && share.takes(event.n))
}
