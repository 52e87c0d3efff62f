//! G4: a PRE event is in the log only where every listener agreed, and of an aborted one nothing is ever seen.

use std::collections::{HashMap, HashSet};

use super::history::{Event, History};
use super::{Guarantee, Report};
use crate::record::{Answer, Record};

/// Checks every PRE event.
pub fn gated(history: &History, report: &mut Report) {
    let log: HashMap<&str, &Event> = history.log.iter().map(|event| (event.id.as_str(), event)).collect();
    let aborted: HashSet<&str> = history.aborted.iter().map(|(key, _)| key.as_str()).collect();
    for event in history.log.iter().filter(|event| aborted.contains(event.key.as_str())) {
        let (key, position) = (&event.key, event.position);
        report.breach(Guarantee::G4, format_args!("{key} was answered as aborted and is in the log at {position}"));
    }
    for ack in history.acks.iter().filter(|ack| aborted.contains(ack.key.as_str())) {
        let (key, position) = (&ack.key, ack.position);
        report.breach(Guarantee::G4, format_args!("{key} was answered as aborted and as committed at {position}"));
    }
    let mut asked = HashSet::new();
    for receipt in history.receipts.values().flatten() {
        if history.gate_types.contains(&receipt.event_type) {
            asked.insert(receipt.event_id.as_str());
            if let Some(event) = log.get(receipt.event_id.as_str()).filter(|_| receipt.answer == Answer::Reject) {
                let (id, position) = (&event.id, event.position);
                report.breach(Guarantee::G4, format_args!("{id} was refused by a listener and is at {position}"));
            }
        }
    }
    for (id, invocation) in &history.invocations {
        let Some(lenient) = history.gates.get(&invocation.subscription) else { continue };
        let receipts = history.receipts.get(id).map_or(&[][..], Vec::as_slice);
        let agreed = receipts.iter().any(|receipt| receipt.answer == Answer::Ok);
        let right = match invocation.state.as_str() {
            "SUCCEEDED" => agreed,
            // Left out, as its policy says.
            "CANCELLED" => *lenient && invocation.reason == "PRE_FAILED",
            _ => false,
        };
        if !right {
            let answers: Vec<_> = receipts.iter().map(|receipt| receipt.answer).collect();
            report.breach(
                Guarantee::G4,
                format_args!("{id} of a committed event ended as {invocation:?}; its receiver answered {answers:?}"),
            );
        }
    }
    for reader in &history.readers {
        for record in &reader.records {
            if let Record::Seen { event_id, position, .. } = record
                && asked.contains(event_id.as_str())
                && !log.contains_key(event_id.as_str())
            {
                let party = &reader.party;
                report.breach(
                    Guarantee::G4,
                    format_args!("{party} was given {event_id} at {position}, which was never committed"),
                );
            }
        }
    }
}
