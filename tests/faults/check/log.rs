//! G1, G3 and G7: what was acknowledged is there, once, and in order.

use std::collections::{HashMap, HashSet};

use super::history::{Ack, Event, History};
use super::{Guarantee, Report};
use crate::record::Micros;

/// G1: what was acknowledged is in the log, where and as it was acknowledged.
pub fn durable(history: &History, report: &mut Report) {
    let log: HashMap<&str, &Event> = history.log.iter().map(|event| (event.id.as_str(), event)).collect();
    let sent: HashMap<&str, (&str, i64)> =
        history.sends.iter().map(|send| (send.key.as_str(), (send.event_type.as_str(), send.n))).collect();
    let (mut acknowledged, mut lost) = (HashSet::new(), HashSet::new());
    for ack in &history.acks {
        acknowledged.insert(ack.key.as_str());
        let found = log.get(ack.event_id.as_str());
        let expected = sent.get(ack.key.as_str());
        let as_sent = found.is_some_and(|event| {
            event.position == ack.position
                && event.key == ack.key
                && expected == Some(&(event.type_name.as_str(), event.n))
        });
        if !as_sent {
            lost.insert(ack.key.as_str());
            let Ack { key, event_id, position, .. } = ack;
            let there = found.map_or_else(|| "is not in the log".to_owned(), |event| format!("is there as {event:?}"));
            report
                .breach(Guarantee::G1, format_args!("{key} was acknowledged as {event_id} at {position} and {there}"));
        }
    }
    report.acknowledged = acknowledged.len();
    report.lost = lost.len();

    let refused: HashSet<&str> = history.refused.iter().map(|(key, _)| key.as_str()).collect();
    for (key, error) in &history.refused {
        report.breach(Guarantee::G1, format_args!("{key} is a good event and was refused: {error}"));
    }
    let aborted: HashSet<&str> = history.aborted.iter().map(|(key, _)| key.as_str()).collect();
    let known = |key: &&str| !acknowledged.contains(key) && !refused.contains(key) && !aborted.contains(key);
    report.unknown = sent.keys().filter(|key| known(key)).count();
}

/// G3: a key makes at most one event, every answer names it, and another body is refused.
pub fn idempotent(history: &History, report: &mut Report) {
    let mut events: HashMap<&str, &Event> = HashMap::new();
    let sent: HashSet<&str> = history.sends.iter().map(|send| send.key.as_str()).collect();
    for event in history.log.iter().filter(|event| !event.key.is_empty()) {
        if let Some(first) = events.insert(&event.key, event) {
            let (key, one, two) = (&event.key, first.position, event.position);
            report.breach(Guarantee::G3, format_args!("{key} made two events, at {one} and {two}"));
        }
        if !sent.contains(event.key.as_str()) {
            report.breach(Guarantee::G3, format_args!("{} at {} was never sent", event.key, event.position));
        }
    }
    let mut announced = HashSet::new();
    for event in history.log.iter().filter(|event| !event.cause.is_empty()) {
        if !announced.insert(&event.cause) {
            report.breach(Guarantee::G3, format_args!("the dead letter {} was announced twice", event.cause));
        }
    }
    let mut first: HashMap<&str, &Ack> = HashMap::new();
    for ack in &history.acks {
        let Some(earlier) = first.get(ack.key.as_str()) else {
            first.insert(&ack.key, ack);
            continue;
        };
        let pairs = |ack: &Ack| ack.invocations.iter().cloned().collect::<HashSet<_>>();
        let same = (&ack.event_id, ack.position) == (&earlier.event_id, earlier.position);
        if !same || pairs(ack) != pairs(earlier) || !ack.duplicate {
            report.breach(Guarantee::G3, format_args!("a repetition was answered {ack:?}, the first {earlier:?}"));
        }
    }
    let mut told: HashMap<&str, &str> = HashMap::new();
    for (key, reason) in &history.aborted {
        let first = *told.entry(key).or_insert(reason);
        if first != reason {
            report.breach(Guarantee::G3, format_args!("{key} was aborted with {first}, a repetition with {reason}"));
        }
    }
    for (key, reason) in history.reused.iter().filter(|(_, reason)| reason != "REQUEST_ID_REUSED") {
        report.breach(Guarantee::G3, format_args!("{key} with another body was answered {reason}"));
    }
}

/// G7: positions have no gap, commit times never go back, and what was answered before another was sent stands before it.
pub fn ordered(history: &History, report: &mut Report) {
    let mut before: Option<&Event> = None;
    for (expected, event) in (1..).zip(&history.log) {
        if event.position != expected {
            report.breach(Guarantee::G7, format_args!("position {expected} is missing: {} comes next", event.position));
            break;
        }
        if before.is_some_and(|before| before.commit_time > event.commit_time) {
            report.breach(Guarantee::G7, format_args!("the commit time goes back at position {}", event.position));
        }
        before = Some(event);
    }

    let mut sent: HashMap<&str, Micros> = HashMap::new();
    for send in &history.sends {
        let at = sent.entry(&send.key).or_insert(send.at);
        *at = (*at).min(send.at);
    }
    let mut answered: HashMap<&str, Micros> = HashMap::new();
    for ack in &history.acks {
        let at = answered.entry(&ack.key).or_insert(ack.at);
        *at = (*at).min(ack.at);
    }
    // From the end: nothing further on may have been answered before this one was sent.
    let mut earliest: Option<(Micros, &Event)> = None;
    for event in history.log.iter().rev().filter(|event| !event.key.is_empty()) {
        if let (Some(sent), Some((answered, later))) = (sent.get(event.key.as_str()), earliest)
            && answered < *sent
        {
            let (one, two) = (event.position, later.position);
            report.breach(Guarantee::G7, format_args!("position {two} was answered before what is at {one} was sent"));
        }
        if let Some(at) = answered.get(event.key.as_str())
            && earliest.is_none_or(|(known, _)| *at < known)
        {
            earliest = Some((*at, event));
        }
    }
}
