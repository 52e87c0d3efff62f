//! PublishBatch: up to 1,000 events, all of them or none; those that wait for listeners or for their time each by itself.

use super::accept::accept;
use super::errors::pending_to_api_error;
use super::first_answers::Refusal;
use super::parse::Parsed;
use super::{Answers, PublishApi, admit, parse};
use crate::api::status::{ApiError, FieldViolation};
use crate::api::{auth, deadline};
use crate::domain::event::Event;
use crate::proto::internal::{PublishBatchRequest, PublishBatchResponse, PublishResponse};
use crate::publish::PublishError;
use crate::publish::prepare::{Prepared, prepare};
use crate::store::publish::NewKey;
use futures::StreamExt as _;
use std::collections::HashSet;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

/// Events in one call at most.
const REQUESTS_MAX: usize = 1000;
/// How often a batch is divided again because the listeners of its events changed meanwhile.
const ROUNDS_MAX: u32 = 100;

pub(super) async fn handle(
    api: &PublishApi,
    request: Request<PublishBatchRequest>,
) -> Result<Response<PublishBatchResponse>, Status> {
    let publisher = auth::publisher(&request)?.clone();
    let until = deadline::of(&request);
    let requests = request.into_inner().requests;
    let invalid = |field: String, description: &str| ApiError::FieldInvalid {
        violations: vec![FieldViolation { field, description: description.to_owned() }],
    };
    if requests.is_empty() || requests.len() > REQUESTS_MAX {
        return Err(invalid("requests".to_owned(), "must hold 1 to 1000 requests").into());
    }
    let registry = api.writer.registry().tenant(publisher.tenant).await.map_err(ApiError::from)?;
    let now = api.store.now();
    let mut keys = HashSet::new();
    let mut parsed = Vec::with_capacity(requests.len());
    for (index, request) in requests.into_iter().enumerate() {
        let one = parse::parse(request, &publisher, &format!("requests[{index}]."), now);
        let one = one.map_err(|error| at(index, error))?;
        if let Some(key) = &one.key
            && !keys.insert(key.key.clone())
        {
            return Err(invalid(format!("requests[{index}].idempotency_key"), "stands in the batch twice").into());
        }
        parsed.push(one);
    }
    let answers = Answers { api, registry: &registry, events: parsed.len() };
    let published = match admit(api, &registry, &parsed).await {
        Ok(()) => publish(&answers, &parsed, until).await,
        Err(error) => Err(error.into()),
    };
    let responses = match published {
        Ok(responses) => responses,
        Err(refusal) => answers.first(&keys_of(&parsed), refusal).await.map_err(to_error)?,
    };
    Ok(Response::new(PublishBatchResponse { responses }))
}

async fn publish(
    answers: &Answers<'_>,
    parsed: &[Parsed],
    until: Option<Instant>,
) -> Result<Vec<PublishResponse>, Refusal> {
    let Answers { api, registry, .. } = answers;
    let mut responses: Vec<Option<PublishResponse>> = vec![None; parsed.len()];
    for _ in 0..ROUNDS_MAX {
        let Divided { mut together, mut alone } = divide(answers, parsed, &responses).await?;
        // Before anything is committed, so that a refusal has no effect: keys that stand for something else, and quotas.
        if !alone.is_empty() {
            responses = answers.known(&keys_of(parsed)).await?;
            together.retain(|(index, _)| responses[*index].is_none());
            alone.retain(|index| responses[*index].is_none());
        }
        let (delayed, gated): (Vec<&Parsed>, Vec<&Parsed>) =
            alone.iter().map(|index| &parsed[*index]).partition(|one| one.deliver_at.is_some());
        let gated: Vec<&Event> = gated.iter().map(|one| &*one.event).collect();
        let admission = api.pending.admit(registry, delayed.len(), &gated).await?;
        if !together.is_empty() {
            let (indices, prepared): (Vec<usize>, Vec<Prepared>) = together.into_iter().unzip();
            match api.writer.write(registry.tenant(), prepared).await {
                Ok(published) => {
                    for (index, response) in indices.into_iter().zip(answers.published(&published).await?) {
                        responses[index] = Some(response);
                    }
                }
                // Of an event that is not in the log: it was refused, or still waits.
                Err(PublishError::KeyReused) => {
                    responses = answers.known(&keys_of(parsed)).await?;
                    continue;
                }
                // The registry moved on: one of them has got listeners that must agree, or does not pass any more. Which, is found by
                // dividing again.
                Err(error) if !error.may_pass() => continue,
                Err(error) => return Err(error.into()),
            }
        }
        let gates = alone.into_iter().map(|index| {
            let accepted = accept(answers, parsed[index].clone(), until, Some(&admission));
            async move { (index, accepted.await) }
        });
        let mut gates: Vec<_> = futures::stream::iter(gates).buffer_unordered(admission.at_once()).collect().await;
        gates.sort_by_key(|(index, _)| *index);
        for (index, outcome) in gates {
            responses[index] = Some(outcome.map_err(|error| Refusal::at(index, error))?);
        }
        return Ok(responses.into_iter().flatten().collect());
    }
    Err(PublishError::Contended.into())
}

fn keys_of(parsed: &[Parsed]) -> Vec<Option<&NewKey>> {
    parsed.iter().map(|one| one.key.as_ref()).collect()
}

fn to_error(refusal: Refusal) -> ApiError {
    match refusal.at {
        Some(index) => at(index, pending_to_api_error(refusal.error, &format!("requests[{index}].event"))),
        None => pending_to_api_error(refusal.error, "requests"),
    }
}

/// Says which event of the batch it is where the error has no path of its own.
fn at(index: usize, error: ApiError) -> ApiError {
    match error {
        ApiError::EventTypeNotFound { .. }
        | ApiError::EventTypeForbidden { .. }
        | ApiError::SchemaVersionNotFound { .. }
        | ApiError::PreRejected { .. }
        | ApiError::PreListenerUnavailable { .. }
        | ApiError::PreDeadline { .. } => {
            ApiError::At { field: format!("requests[{index}].event"), error: Box::new(error) }
        }
        other => other,
    }
}

/// What is to be published of a batch, by its places there.
struct Divided {
    /// Commit together.
    together: Vec<(usize, Prepared)>,
    /// Wait, each by itself.
    alone: Vec<usize>,
}

/// Divides what has no answer yet.
async fn divide(
    answers: &Answers<'_>,
    parsed: &[Parsed],
    responses: &[Option<PublishResponse>],
) -> Result<Divided, Refusal> {
    let Answers { api, registry, .. } = answers;
    let (mut together, mut alone) = (Vec::with_capacity(parsed.len()), Vec::new());
    for (index, one) in parsed.iter().enumerate().filter(|(index, _)| responses[*index].is_none()) {
        let prepared =
            prepare(api.writer.registry(), registry, one.event.clone(), one.schema_version, one.key.clone(), None);
        let prepared = prepared.await.map_err(|error| Refusal::at(index, error))?;
        if let Some(at) = one.deliver_at {
            api.pending.check_time(at).map_err(|error| Refusal::at(index, error))?;
            alone.push(index);
        } else if prepared.is_gated() {
            alone.push(index);
        } else {
            together.push((index, prepared));
        }
    }
    Ok(Divided { together, alone })
}
