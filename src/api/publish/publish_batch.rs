//! PublishBatch: up to 1,000 events, all of them or none; those that wait for listeners or for their time each by itself.

use super::accept::accept;
use super::errors::to_api_error;
use super::parse::Parsed;
use super::{Answers, PublishApi, admit, parse, repeated};
use crate::api::status::{ApiError, FieldViolation};
use crate::api::{auth, deadline};
use crate::proto::internal::{PublishBatchRequest, PublishBatchResponse, PublishResponse};
use crate::publish::PublishError;
use crate::publish::prepare::{Prepared, prepare};
use futures::StreamExt as _;
use std::collections::HashSet;
use tonic::{Request, Response, Status};

/// Events in one call at most.
const REQUESTS_MAX: usize = 1000;
/// Events of one call that wait for their listeners at the same time.
const GATES_AT_ONCE: usize = 64;
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
    admit(api, &registry, &parsed).await.map_err(|error| to_api_error(error, "requests"))?;
    let answers = Answers { api, registry: &registry, events: parsed.len() };
    for _ in 0..ROUNDS_MAX {
        let (together, alone) = match divide(&answers, &parsed).await? {
            Divided::Repeated(responses) => return Ok(Response::new(PublishBatchResponse { responses })),
            Divided::New { together, alone } => (together, alone),
        };
        let mut responses: Vec<(usize, PublishResponse)> = Vec::with_capacity(parsed.len());
        if !together.is_empty() {
            let (indices, prepared): (Vec<usize>, Vec<Prepared>) = together.into_iter().unzip();
            match api.writer.write(publisher.tenant, prepared).await {
                Ok(published) => {
                    responses.extend(indices.into_iter().zip(answers.published(&published).await));
                }
                // One of them has got listeners that must agree.
                Err(PublishError::Gated) => continue,
                Err(PublishError::KeyReused) => return Err(reused(&answers, &parsed).await?.into()),
                Err(error) => return Err(to_api_error(error, "requests").into()),
            }
        }
        let gates = alone.into_iter().map(|index| {
            let (one, answers) = (parsed[index].clone(), &answers);
            async move {
                let path = format!("requests[{index}].event");
                (index, accept(answers, one, until, &path).await)
            }
        });
        let mut gates: Vec<_> = futures::stream::iter(gates).buffer_unordered(GATES_AT_ONCE).collect().await;
        gates.sort_by_key(|(index, _)| *index);
        for (index, outcome) in gates {
            responses.push((index, outcome.map_err(|error| at(index, error))?));
        }
        responses.sort_by_key(|(index, _)| *index);
        let responses = responses.into_iter().map(|(_, response)| response).collect();
        return Ok(Response::new(PublishBatchResponse { responses }));
    }
    Err(to_api_error(PublishError::Contended, "requests").into())
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

/// The refusal of the first key of the batch that was used before with another body.
async fn reused(answers: &Answers<'_>, parsed: &[Parsed]) -> Result<ApiError, ApiError> {
    let tenant = answers.registry.tenant();
    let keys: Vec<_> = parsed.iter().filter_map(|one| Some((tenant, one.key.as_ref()?.key.as_str()))).collect();
    let used = answers.api.store.used_keys(&keys).await?;
    let is_reused = |one: &Parsed| {
        one.key.as_ref().is_some_and(|key| used.iter().any(|u| u.key == key.key && u.request_hash != key.request_hash))
    };
    let index = parsed.iter().position(is_reused);
    let path = index.map_or_else(|| "event".to_owned(), |index| format!("requests[{index}].event"));
    Ok(to_api_error(PublishError::KeyReused, &path))
}

/// A batch, divided.
enum Divided {
    /// Every event was published before.
    Repeated(Vec<PublishResponse>),
    /// By their places in the batch.
    New {
        /// Commit together.
        together: Vec<(usize, Prepared)>,
        /// Wait, each by itself.
        alone: Vec<usize>,
    },
}

async fn divide(answers: &Answers<'_>, parsed: &[Parsed]) -> Result<Divided, ApiError> {
    let Answers { api, registry, .. } = answers;
    let limit = registry.event_bytes_max();
    let (mut together, mut alone, mut refusal) = (Vec::with_capacity(parsed.len()), Vec::new(), None);
    for (index, one) in parsed.iter().enumerate() {
        let prepared =
            prepare(api.writer.registry(), registry, one.event.clone(), one.schema_version, one.key.clone(), limit);
        match prepared.await {
            Ok(prepared) if prepared.is_gated() || one.deliver_at.is_some() => alone.push(index),
            Ok(prepared) => together.push((index, prepared)),
            Err(error) => {
                refusal.get_or_insert_with(|| at(index, to_api_error(error, &format!("requests[{index}].event"))));
            }
        }
    }
    let Some(refusal) = refusal else { return Ok(Divided::New { together, alone }) };
    let keys: Vec<_> = parsed.iter().filter_map(|one| one.key.clone()).collect();
    let keys = if keys.len() == parsed.len() { keys } else { Vec::new() };
    repeated(answers, &keys).await?.map(Divided::Repeated).ok_or(refusal)
}
