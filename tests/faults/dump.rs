//! The end of a run as the public API tells it: every event of the log, every invocation, and the attempts of those that
//! came again after a success.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use carillon::proto::cloudevents::cloud_event::Data;
use carillon::proto::public::{
    Event, GetInvocationRequest, Invocation, InvocationState, ListEventsRequest, ListInvocationsRequest, OutcomeClass,
};
use serde_json::Value;
use tonic::{Code, Response, Status};

use super::parties::auditor::{started, state};
use super::parties::{Link, answered, rest};
use super::record::{Log, Record};
use super::until;

/// Operator events that announce dead letters.
pub const DEAD_LETTERED: &str = "INVOCATION_DEAD_LETTERED";
const PAGE: i32 = 1_000;
/// A page of a database that has just recovered may take its time.
const TRIES: usize = 20;
const AGAIN: Duration = Duration::from_millis(250);

/// Waits until no invocation is pending or waiting. False where nothing has moved for `patience`: what is left then is for
/// the checker to judge.
pub async fn settle(link: &mut Link, patience: Duration) -> bool {
    let mut open = usize::MAX;
    while open > 0 {
        let fewer = until("fewer invocations are open", patience, || {
            link.turn();
            let mut invocations = link.invocations();
            let states = vec![InvocationState::Pending.into(), InvocationState::Waiting.into()];
            let request = ListInvocationsRequest { page_size: PAGE, states, ..Default::default() };
            async move {
                let page = answered(invocations.list_invocations(request)).await.map_err(|error| error.to_string())?;
                let left = page.invocations.len();
                if left == 0 || left < open { Ok(left) } else { Err(format!("{left} are open")) }
            }
        });
        match fewer.await {
            Ok(left) => open = left,
            Err(error) => {
                eprintln!("faults: {error:#}");
                return false;
            }
        }
    }
    true
}

/// Writes down everything; returns the last position of the log. `again` are the invocations whose attempts are wanted.
pub async fn write(link: &mut Link, log: &Log, again: &[String], patience: Duration) -> anyhow::Result<i64> {
    let mut dead = 0;
    let mut page_token = String::new();
    loop {
        let request = ListInvocationsRequest { page_size: PAGE, page_token: page_token.clone(), ..Default::default() };
        let page = patiently(link, |link| {
            let (mut invocations, request) = (link.invocations(), request.clone());
            async move { invocations.list_invocations(request).await }
        })
        .await?;
        for invocation in page.invocations {
            dead += usize::from(invocation.state() == InvocationState::DeadLettered);
            log.write(&record(invocation));
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    for id in again {
        let request = GetInvocationRequest { invocation_id: id.clone() };
        // One that was delivered and is not there is the checker's to find.
        let found = patiently(link, |link| {
            let (mut invocations, request) = (link.invocations(), request.clone());
            async move { invocations.get_invocation(request).await }
        });
        let Ok(found) = found.await else { continue };
        let succeeded = |class: OutcomeClass| class == OutcomeClass::Succeeded;
        let attempts = found.attempts.iter().map(|one| (one.number, succeeded(one.outcome()))).collect();
        log.write(&Record::Attempts { invocation: id.clone(), attempts });
    }
    let announced = until("every dead letter is announced", patience, || {
        let mut events = link.events();
        link.turn();
        async move {
            let event_types = vec![DEAD_LETTERED.to_owned()];
            let mut request = ListEventsRequest { page_size: PAGE, event_types, ..Default::default() };
            let mut count = 0;
            loop {
                let page = answered(events.list_events(request.clone())).await.map_err(|error| error.to_string())?;
                count += page.events.len();
                request.cursor = page.next_cursor;
                if page.end_of_log {
                    break;
                }
            }
            if count >= dead { Ok(()) } else { Err(format!("{count} of {dead}")) }
        }
    })
    .await;
    if let Err(error) = announced {
        eprintln!("faults: {error:#}");
    }
    let mut last = 0;
    let mut cursor = String::new();
    loop {
        let request = ListEventsRequest { page_size: PAGE, cursor: cursor.clone(), ..Default::default() };
        let page = patiently(link, |link| {
            let (mut events, request) = (link.events(), request.clone());
            async move { events.list_events(request).await }
        })
        .await?;
        for event in page.events {
            last = event.position;
            log.write(&fact(&event).with_context(|| format!("event {}", event.id))?);
        }
        cursor = page.next_cursor;
        if page.end_of_log {
            return Ok(last);
        }
    }
}

/// Calls until there is an answer, on one replica after the other.
async fn patiently<T, R>(link: &mut Link, mut call: impl FnMut(&mut Link) -> R) -> Result<T, Status>
where
    R: Future<Output = Result<Response<T>, Status>>,
{
    let mut tries = 0;
    loop {
        let status = match answered(call(link)).await {
            Ok(answer) => return Ok(answer),
            Err(status) => status,
        };
        tries += 1;
        if tries == TRIES || status.code() == Code::NotFound {
            return Err(status);
        }
        link.turn();
        rest(AGAIN).await;
    }
}

fn record(invocation: Invocation) -> Record {
    Record::Invocation {
        state: state(&invocation),
        started: started(&invocation),
        invocation: invocation.id,
        event_id: invocation.event_id,
        subscription: invocation.subscription_id,
        attempts: invocation.attempt_count,
        reason: invocation.cancel_reason,
    }
}

fn fact(event: &Event) -> anyhow::Result<Record> {
    let cloud = event.event.as_ref().context("it has a body")?;
    let data: BTreeMap<String, Value> = match &cloud.data {
        Some(Data::TextData(text)) => serde_json::from_str(text)?,
        Some(Data::BinaryData(bytes)) => serde_json::from_slice(bytes)?,
        _ => BTreeMap::new(),
    };
    let text = |name: &str| data.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let time = event.commit_time.as_ref().context("it has a commit time")?;
    Ok(Record::Event {
        position: event.position,
        event_id: event.id.clone(),
        event_type: cloud.r#type.clone(),
        key: text("key"),
        n: data.get("n").and_then(Value::as_i64).unwrap_or(-1),
        commit_time: format!("{:012}.{:09}", time.seconds, time.nanos),
        cause: text("invocation"),
    })
}
