//! A publisher: events with idempotency keys over mutual TLS, each sent again with the same key until it is answered.
//!
//! Now and then it repeats what has its answer already, as it was and with another body.

use std::sync::atomic::Ordering;
use std::time::Duration;

use carillon::proto::cloudevents::CloudEvent;
use carillon::proto::cloudevents::cloud_event::Data;
use carillon::proto::internal::{PublishRequest, PublishResponse};
use serde_json::json;
use tonic::Code;

use super::{Link, TYPES, answered, reason, rest};
use crate::record::{Log, Record};

/// Between two events of one publisher.
const PACE: Duration = Duration::from_millis(30);
/// Between two tries of one event.
const AGAIN: Duration = Duration::from_millis(100);
/// After this many tries it gives up, and the outcome stays unknown, which fails the run.
const TRIES_MAX: usize = 600;

/// Publishes until it is told to stop; `index` of `publishers` keeps the numbers of events apart.
pub async fn run(mut link: Link, log: Log, index: i64, publishers: usize) {
    let step = i64::try_from(publishers).expect("a count fits");
    let mut n = index;
    while !link.scene.stop.is_cancelled() {
        let event_type = TYPES[link.random.below(TYPES.len())];
        let key = format!("key-{n}");
        let padding = link.random.below(900);
        let request = request(event_type, &key, n, padding);
        if until_known(&mut link, &log, event_type, &key, n, &request).await {
            if link.random.one_in(20) {
                until_known(&mut link, &log, event_type, &key, n, &request).await;
            }
            if link.random.one_in(40) {
                reuse(&mut link, &log, &key, &self::request(event_type, &key, n, padding + 1)).await;
            }
        }
        n += step;
        link.scene.pause(PACE).await;
    }
}

/// Sends until the answer says what became of it. False where it was aborted or refused, or the patience is at its end.
pub(super) async fn until_known(
    link: &mut Link,
    log: &Log,
    event_type: &str,
    key: &str,
    n: i64,
    request: &PublishRequest,
) -> bool {
    let counts = link.scene.counts.clone();
    for _ in 0..TRIES_MAX {
        let (key, event_type) = (key.to_owned(), event_type.to_owned());
        log.write(&Record::Send { at: log.now(), key: key.clone(), event_type, n });
        counts.sent.fetch_add(1, Ordering::SeqCst);
        match answered(link.publisher().publish(request.clone())).await {
            Ok(answer) => {
                let PublishResponse { event_id, position, invocations, duplicate, .. } = answer;
                let invocations = invocations.into_iter().map(|one| [one.invocation_id, one.subscription_id]).collect();
                log.write(&Record::Acknowledged { at: log.now(), key, event_id, position, duplicate, invocations });
                counts.acknowledged.fetch_add(1, Ordering::SeqCst);
                counts.position.fetch_max(position, Ordering::SeqCst);
                counts.acknowledged_n.fetch_max(n, Ordering::SeqCst);
                if link.random.one_in(12) {
                    link.turn();
                }
                return true;
            }
            Err(status) if reason(&status).starts_with("PRE_") => {
                log.write(&Record::Aborted { at: log.now(), key, reason: reason(&status) });
                return false;
            }
            Err(status) if is_final(status.code()) => {
                let error = format!("{}: {}", reason(&status), status.message());
                log.write(&Record::Refused { at: log.now(), key, error });
                return false;
            }
            Err(status) => {
                log.write(&Record::Unknown { at: log.now(), key, error: reason(&status) });
                counts.unknown.fetch_add(1, Ordering::SeqCst);
                link.turn();
                rest(AGAIN).await;
            }
        }
    }
    false
}

/// Sends a used key with another body until it is answered; it must be refused.
async fn reuse(link: &mut Link, log: &Log, key: &str, request: &PublishRequest) {
    for _ in 0..TRIES_MAX {
        let said = match answered(link.publisher().publish(request.clone())).await {
            Ok(_) => "OK".to_owned(),
            Err(status) if is_final(status.code()) => reason(&status),
            Err(_) => {
                link.turn();
                rest(AGAIN).await;
                continue;
            }
        };
        log.write(&Record::Reused { at: log.now(), key: key.to_owned(), reason: said });
        return;
    }
}

/// Codes that say that nothing was published and that trying again does not help.
fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::NotFound
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented
            | Code::AlreadyExists
    )
}

/// A publish call of one event.
pub(super) fn request(event_type: &str, key: &str, n: i64, padding: usize) -> PublishRequest {
    let data = json!({"n": n, "key": key, "padding": "x".repeat(padding)});
    let event = CloudEvent {
        source: "/faults".to_owned(),
        spec_version: "1.0".to_owned(),
        r#type: event_type.to_owned(),
        data: Some(Data::TextData(data.to_string())),
        ..Default::default()
    };
    PublishRequest { event: Some(event), idempotency_key: key.to_owned(), ..Default::default() }
}
