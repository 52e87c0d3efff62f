//! WaitEvent: until everything an event caused is final, or the time is up.

use super::PublishApi;
use super::errors::pending_to_api_error;
use crate::api::status::ApiError;
use crate::api::{auth, deadline};
use crate::domain::event::LogEntry;
use crate::domain::ids::{EventId, TenantId};
use crate::domain::invocation::{Invocation, State};
use crate::pending::{Answer, PendingError, Stands, Until};
use crate::proto::internal::{WaitEventRequest, WaitEventResponse};
use crate::proto::public::EventView;
use crate::wire::FieldError;
use crate::wire::event::entry_to_proto;
use crate::wire::invocation;
use crate::wire::time::parse_duration;
use prost::Message as _;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Response, Status};

/// Invocations that an answer lists, and bytes that it has with the event: many gRPC clients take no more than 4 MiB.
const INVOCATIONS_MAX: u32 = 1_000;
const ANSWER_BYTES_MAX: usize = 3 * 1024 * 1024;
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
const TIMEOUT_MAX: Duration = Duration::from_mins(5);
/// Shortest and longest pause between two looks. The settle count wakes the wait in between, a look at the longest pause is
/// the truth where another replica settles.
const PAUSE_MIN: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// An answer leaves this long before the call's deadline, so that it arrives.
const BEFORE_DEADLINE: Duration = Duration::from_millis(200);

pub(super) async fn handle(
    api: &PublishApi,
    request: Request<WaitEventRequest>,
) -> Result<Response<WaitEventResponse>, Status> {
    let publisher = auth::publisher(&request)?.clone();
    let until = deadline::of(&request);
    let request = request.into_inner();
    let missing = || ApiError::EventNotFound { event: request.event_id.clone() };
    let id = EventId::parse(&request.event_id);
    let id = id.map_err(|error| ApiError::from(FieldError::new("event_id", error.to_string())))?;
    let timeout = match request.timeout {
        None => TIMEOUT_DEFAULT,
        Some(timeout) => parse_duration("timeout", &timeout).map_err(ApiError::from)?,
    };
    if timeout > TIMEOUT_MAX {
        return Err(ApiError::from(FieldError::new("timeout", "must be 0 to 300 s")).into());
    }
    let end = Instant::now() + timeout;
    let end = until.and_then(|until| until.checked_sub(BEFORE_DEADLINE)).map_or(end, |until| end.min(until));
    if !api.may_touch(&publisher, id).await? {
        return Err(missing().into());
    }
    let found = api.store.event(publisher.tenant, id).await.map_err(ApiError::from)?;
    let entry = match found {
        Some(entry) => entry,
        // Not in the log: it may be delayed, or its listeners may be asked.
        None => match decided(api, publisher.tenant, id, end).await {
            Ok(Some(Answer::Committed { entry, .. })) => entry,
            Ok(_) => return Ok(Response::new(WaitEventResponse::default())),
            Err(PendingError::NotFound) => return Err(missing().into()),
            Err(error) => return Err(pending_to_api_error(error, "event").into()),
        },
    };
    let mut settled = api.feed.settled();
    let mut pause = PAUSE_MIN;
    loop {
        settled.mark_unchanged();
        let records = api.store.event_invocations(publisher.tenant, &entry, INVOCATIONS_MAX + 1).await;
        let records = records.map_err(ApiError::from)?;
        let is_final = |state| matches!(state, State::Succeeded | State::DeadLettered | State::Cancelled);
        let mut done = records.iter().all(|record| is_final(record.state));
        if done && records.len() > INVOCATIONS_MAX as usize {
            done = api.store.is_settled(publisher.tenant, &entry).await.map_err(ApiError::from)?;
        }
        if done || Instant::now() >= end {
            return Ok(Response::new(answer(&entry, &records, done)));
        }
        // At least `pause` between two looks, so that a busy server is not asked for every batch that settles.
        let soonest = (Instant::now() + pause).min(end);
        tokio::time::sleep_until(soonest).await;
        pause = (pause * 2).min(PAUSE_MAX);
        let latest = (Instant::now() + PAUSE_MAX).min(end);
        // Elapsed means: look now all the same.
        let _ = timeout_at(latest, settled.changed()).await;
    }
}

/// What has become of an event; none where that is open at the end. However little time there is, one look is made.
async fn decided(
    api: &PublishApi,
    tenant: TenantId,
    event: EventId,
    end: Instant,
) -> Result<Option<Answer>, PendingError> {
    if let Stands::Final(answer) = api.pending.stands(tenant, event, false).await? {
        return Ok(Some(answer));
    }
    timeout_at(end, api.pending.wait(tenant, event, Until::Final, false)).await.ok().transpose()
}

/// As many invocations as an answer holds.
fn answer(entry: &LogEntry, records: &[Invocation], done: bool) -> WaitEventResponse {
    let event = entry_to_proto(entry, EventView::Full);
    let mut bytes = event.encoded_len();
    let mut invocations = Vec::new();
    for record in &records[..records.len().min(INVOCATIONS_MAX as usize)] {
        let invocation = invocation::to_proto(record);
        bytes += invocation.encoded_len();
        if bytes > ANSWER_BYTES_MAX {
            break;
        }
        invocations.push(invocation);
    }
    let more = invocations.len() < records.len();
    WaitEventResponse { event: Some(event), invocations, done, more }
}
