//! The auditor: reads invocation records while the run goes on, and writes down each final state the first time it sees it
//! so. What is final must stay as it is, whoever wakes up late.

use std::collections::HashMap;
use std::time::Duration;

use carillon::proto::public::{Invocation, InvocationState, ListInvocationsRequest};

use super::{Link, answered};
use crate::record::{Log, Record};

const PACE: Duration = Duration::from_millis(250);
/// Newest invocations looked at each time.
const PAGE: i32 = 1_000;

/// Reads until the run is complete.
pub async fn run(mut link: Link, log: Log) {
    let mut seen: HashMap<String, (String, i32, String)> = HashMap::new();
    while !link.scene.stop.is_cancelled() {
        link.turn();
        let request = ListInvocationsRequest { page_size: PAGE, ..Default::default() };
        if let Ok(page) = answered(link.invocations().list_invocations(request)).await {
            for invocation in page.invocations.into_iter().filter(is_final) {
                let (state, started) = (state(&invocation), started(&invocation));
                let now = (state.clone(), invocation.attempt_count, started.clone());
                if seen.get(&invocation.id) == Some(&now) {
                    continue;
                }
                seen.insert(invocation.id.clone(), now);
                log.write(&Record::Final {
                    at: log.now(),
                    invocation: invocation.id,
                    state,
                    attempts: invocation.attempt_count,
                    started,
                });
            }
        }
        link.scene.pause(PACE).await;
    }
}

/// A state's name in the records.
pub fn state(invocation: &Invocation) -> String {
    invocation.state().as_str_name().trim_start_matches("INVOCATION_STATE_").to_owned()
}

/// When the last attempt started, as text.
pub fn started(invocation: &Invocation) -> String {
    let attempt = invocation.last_attempt.as_ref().and_then(|attempt| attempt.start_time);
    attempt.map_or_else(String::new, |time| format!("{}.{:09}", time.seconds, time.nanos))
}

/// Whether nothing more will happen to it.
pub fn is_final(invocation: &Invocation) -> bool {
    use InvocationState::{Cancelled, DeadLettered, Succeeded};
    matches!(invocation.state(), Succeeded | DeadLettered | Cancelled)
}
