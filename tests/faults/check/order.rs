//! G7, second half: a subscription with an ordering key gets the first successes of a key in the order of the log.

use std::collections::{BTreeMap, HashMap};

use super::history::History;
use super::{Guarantee, Report};
use crate::record::Micros;

/// Position in the log, time of the first success, and invocation.
type Success<'a> = (i64, Micros, &'a str);

/// Compares, per subscription and key, when each event first succeeded with where it stands in the log.
pub fn in_order(history: &History, report: &mut Report) {
    let events: HashMap<&str, (i64, i64)> =
        history.log.iter().map(|event| (event.id.as_str(), (event.position, event.n))).collect();
    let mut successes: BTreeMap<(&str, i64), Vec<Success<'_>>> = BTreeMap::new();
    for (id, invocation) in &history.invocations {
        let Some(keys) = history.ordered.get(&invocation.subscription) else { continue };
        let Some((position, n)) = events.get(invocation.event_id.as_str()) else { continue };
        let receipts = history.receipts.get(id).map_or(&[][..], Vec::as_slice);
        // What never succeeded is skipped: its dead letter holds nobody up.
        let Some(first) = receipts.iter().find(|receipt| receipt.answer.may_succeed()) else { continue };
        successes.entry((&invocation.subscription, n % keys)).or_default().push((*position, first.at, id));
    }
    for ((subscription, key), mut of_key) in successes {
        of_key.sort_unstable();
        for pair in of_key.windows(2) {
            let [(before, at, _), (after, sooner, id)] = pair else { continue };
            if sooner < at {
                report.breach(
                    Guarantee::G7,
                    format_args!(
                        "{id} of {subscription} at {after} succeeded {} ms before {before}, which has key {key} too",
                        (at - sooner) / 1_000
                    ),
                );
            }
        }
    }
}
