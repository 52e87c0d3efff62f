//! G2, G5 and G6: every event has exactly the invocations it should have, each of them ends, runs again only where it may,
//! and does not change once it has ended.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::history::{Change, Event, Fault, History, Invocation, Receipt};
use super::{Guarantee, Report};
use crate::record::Micros;

/// After a fault, what it has interrupted is done again for as long as this, on top of a lease.
pub const AFTERMATH: Micros = 2_000_000;

/// G2: an event has an invocation for every subscription that was ACTIVE and matched at its position, and for no other.
pub fn fanned_out(history: &History, report: &mut Report) {
    let mut found: HashMap<&str, BTreeSet<&str>> = HashMap::new();
    for invocation in history.invocations.values() {
        found.entry(&invocation.event_id).or_default().insert(&invocation.subscription);
    }
    let empty = BTreeSet::new();
    for event in &history.log {
        let expected: BTreeSet<&str> = history
            .subscriptions
            .iter()
            .filter(|(_, changes)| matches(changes, event))
            .map(|(subscription, _)| subscription.as_str())
            .collect();
        let found = found.remove(event.id.as_str());
        let found = found.as_ref().unwrap_or(&empty);
        for missing in expected.difference(found) {
            let (id, position) = (&event.id, event.position);
            report.breach(Guarantee::G2, format_args!("{id} at {position} has no invocation of {missing}"));
        }
        for surplus in found.difference(&expected) {
            let (id, position) = (&event.id, event.position);
            report.breach(Guarantee::G2, format_args!("{id} at {position} fired {surplus}, which did not match then"));
        }
    }
    for (event, _) in found {
        report.breach(Guarantee::G2, format_args!("there are invocations of {event}, which is not in the log"));
    }
    // What the publisher was told is what is there.
    let told: BTreeMap<&str, &Vec<[String; 2]>> =
        history.acks.iter().map(|ack| (ack.event_id.as_str(), &ack.invocations)).collect();
    for (event, pairs) in told {
        for [invocation, subscription] in pairs {
            let there = history.invocations.get(invocation);
            if there.is_none_or(|there| there.event_id != event || there.subscription != *subscription) {
                report.breach(Guarantee::G2, format_args!("the answer for {event} named {invocation}: {there:?}"));
            }
        }
    }
}

/// Whether a subscription fires for an event: by the last change that took effect before the event's position.
fn matches(changes: &[Change], event: &Event) -> bool {
    let now = changes.iter().rev().find(|change| change.after < event.position);
    now.is_some_and(|now| now.active && now.event_type == event.type_name && now.share.takes(event.n))
}

/// G5, first half: every invocation has ended, and rightly so.
pub fn ended(history: &History, report: &mut Report) {
    let positions: HashMap<&str, i64> = history.log.iter().map(|event| (event.id.as_str(), event.position)).collect();
    let decides = |invocation: &Invocation| history.gates.contains_key(&invocation.subscription);
    for (id, invocation) in history.invocations.iter().filter(|(_, invocation)| !decides(invocation)) {
        let receipts = history.receipts.get(id).map_or(&[][..], Vec::as_slice);
        let right = match invocation.state.as_str() {
            "SUCCEEDED" => receipts.iter().any(|receipt| receipt.answer.may_succeed()),
            "DEAD_LETTERED" => receipts.iter().any(|receipt| !receipt.answer.may_succeed()),
            "CANCELLED" => {
                let position = positions.get(invocation.event_id.as_str()).copied().unwrap_or_default();
                let changes = history.subscriptions.get(&invocation.subscription).map_or(&[][..], Vec::as_slice);
                // Only because the subscription was switched off after the event.
                matches!(invocation.reason.as_str(), "SUBSCRIPTION_DISABLED" | "SUBSCRIPTION_DELETED")
                    && changes.iter().any(|change| !change.active && change.after >= position)
            }
            _ => false,
        };
        if !right {
            let answers: Vec<_> = receipts.iter().map(|receipt| receipt.answer).collect();
            report
                .breach(Guarantee::G5, format_args!("{id} ended as {invocation:?}; its receiver answered {answers:?}"));
        }
    }
}

/// G5, second half: what arrives is signed and known, and arrives again only after a fault or a failure, under a higher
/// number.
pub fn executed(history: &History, report: &mut Report) {
    for (id, receipts) in &history.receipts {
        let Some(invocation) = history.invocations.get(id) else {
            if receipts.iter().any(|receipt| history.gate_types.contains(&receipt.event_type)) {
                // Of an aborted PRE event nothing is recorded in any list.
                continue;
            }
            report.breach(Guarantee::G2, format_args!("{id} was delivered and is not recorded"));
            continue;
        };
        for receipt in receipts {
            if !receipt.verified || receipt.event_id != invocation.event_id {
                report.breach(Guarantee::G5, format_args!("{id} was delivered as {receipt:?}"));
            }
        }
        report.repeated += receipts.len() - 1;
        report.unexcused += receipts.iter().filter(|receipt| !is_near_a_fault(history, receipt)).count();
        for (before, pair) in receipts.windows(2).enumerate() {
            let [first, second] = pair else { continue };
            if !explained(history, id, before, first, second) {
                report.duplicates_without_fault += 1;
                let apart = (second.at - first.at) / 1_000;
                report.breach(
                    Guarantee::G5,
                    format_args!(
                        "{id} ran again {apart} ms after a success at {} ms, without a fault",
                        first.at / 1_000
                    ),
                );
            }
        }
        let (times, number) = (receipts.len(), invocation.attempts);
        let raised = usize::try_from(number).is_ok_and(|n| n >= times);
        if !raised && matches!(invocation.state.as_str(), "SUCCEEDED" | "DEAD_LETTERED") {
            report.breach(Guarantee::G5, format_args!("{id} ran {times} times, the last attempt has number {number}"));
        }
    }
}

/// Whether there was reason to run an invocation again, as it had been `before` times. What a receiver does is none by itself: it shows in
/// the answers and attempts. A failed attempt is reason for one repetition.
fn explained(history: &History, id: &str, before: usize, first: &Receipt, second: &Receipt) -> bool {
    let failures = |attempts: &Vec<(i32, bool)>| attempts.iter().filter(|(_, succeeded)| !succeeded).count();
    let failed = history.attempts.get(id).is_some_and(|attempts| failures(attempts) > before);
    !first.answer.may_succeed() || failed || touched(history, first.at, second.at)
}

/// Whether a fault would have excused it if this had run again within a lease.
fn is_near_a_fault(history: &History, receipt: &Receipt) -> bool {
    touched(history, receipt.at, receipt.at + history.lease)
}

/// Whether a fault of the service, or what comes of it, lay between the two.
fn touched(history: &History, from: Micros, to: Micros) -> bool {
    let touches = |fault: &Fault| {
        !fault.kind.starts_with("receiver_") && fault.from <= to && fault.to + history.lease + AFTERMATH >= from
    };
    history.faults.iter().any(touches)
}

/// G6: a final state stays as it was first read.
pub fn fenced(history: &History, report: &mut Report) {
    for (id, finals) in &history.finals {
        let first = &finals[0];
        for later in &finals[1..] {
            report.breach(Guarantee::G6, format_args!("{id} had ended as {first:?} and became {later:?}"));
        }
        let last = history.invocations.get(id);
        let same = last.is_some_and(|last| {
            (&last.state, last.attempts, &last.started) == (&first.state, first.attempts, &first.started)
        });
        if !same {
            report.breach(Guarantee::G6, format_args!("{id} had ended as {first:?} and is {last:?} at last"));
        }
    }
}
