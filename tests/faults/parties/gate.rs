//! The PRE events of a run: what decides on them, and who publishes them.
//!
//! Their listeners agree, refuse, stumble and die, each by the event's number; a publisher sends each event until it is told that
//! it is in the log or that it never will be. It must not know which of the two is right.

use std::time::Duration;

use carillon::proto::public::{CreateEventTypeRequest, EventPhase, PreFailurePolicy, PrePolicy};
use pbjson_types::Duration as ProtoDuration;

use super::receiver::Receiver;
use super::{Link, answered, publisher, subscriber};
use crate::record::{Log, Record, Share};

/// The type of the PRE events.
pub const GATE: &str = "CUSTOM_PRE_GATE";
/// Refuses some.
pub const STRICT: &str = "/gate-strict";
/// Dies over some, which aborts them, and fails at first over others.
pub const MORTAL: &str = "/gate-mortal";
/// Dies over some, which is not to matter.
pub const FRAIL: &str = "/gate-frail";
/// Between two events.
const PACE: Duration = Duration::from_millis(60);
/// Long enough for another replica to take an event over and to ask on.
const TIME: ProtoDuration = ProtoDuration { seconds: 8, nanos: 0 };

/// Makes the type and the subscriptions that decide. Called before anything can fail.
pub async fn prepare(link: &mut Link, log: &Log, receiver: &Receiver) -> anyhow::Result<()> {
    let phase = EventPhase::Pre.into();
    let request = CreateEventTypeRequest { name: GATE.to_owned(), phase, ..Default::default() };
    answered(link.types().create_event_type(request)).await?;
    for (path, lenient) in [(STRICT, false), (MORTAL, false), (FRAIL, true)] {
        let failure_policy = if lenient { PreFailurePolicy::Ignore } else { PreFailurePolicy::Fail };
        let mut request = subscriber::request(&receiver.url(path), GATE, Share::ALL, 5, path);
        request.pre_policy = Some(PrePolicy { failure_policy: failure_policy.into(), ..Default::default() });
        let made = answered(link.events().subscribe(request)).await?.subscription.unwrap_or_default();
        subscriber::write(log, &made, GATE, Share::ALL);
        log.write(&Record::Gate { subscription: made.id, event_type: GATE.to_owned(), lenient });
    }
    Ok(())
}

/// Publishes until it is told to stop. Now and then it repeats what has its answer already.
pub async fn run(mut link: Link, log: Log) {
    let mut n = 0;
    while !link.scene.stop.is_cancelled() {
        let key = format!("gate-{n}");
        let mut request = publisher::request(GATE, &key, n, 20);
        request.pre_timeout = Some(TIME);
        publisher::until_known(&mut link, &log, GATE, &key, n, &request).await;
        if link.random.one_in(10) {
            publisher::until_known(&mut link, &log, GATE, &key, n, &request).await;
        }
        n += 1;
        link.scene.pause(PACE).await;
    }
}
