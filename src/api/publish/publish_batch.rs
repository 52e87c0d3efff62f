//! PublishBatch: up to 1,000 events, all of them or none.

use super::errors::to_api_error;
use super::{PublishApi, answer, parse, repeated};
use crate::api::auth;
use crate::api::status::{ApiError, FieldViolation};
use crate::proto::internal::{PublishBatchRequest, PublishBatchResponse};
use crate::publish::prepare::prepare;
use std::collections::HashSet;
use tonic::{Request, Response, Status};

/// Events in one call at most.
const REQUESTS_MAX: usize = 1000;

pub(super) async fn handle(
    api: &PublishApi,
    request: Request<PublishBatchRequest>,
) -> Result<Response<PublishBatchResponse>, Status> {
    let publisher = auth::publisher(&request)?.clone();
    let requests = request.into_inner().requests;
    let invalid = |field: String, description: &str| ApiError::FieldInvalid {
        violations: vec![FieldViolation { field, description: description.to_owned() }],
    };
    if requests.is_empty() || requests.len() > REQUESTS_MAX {
        return Err(invalid("requests".to_owned(), "must hold 1 to 1000 requests").into());
    }
    let registry = api.writer.registry().tenant(publisher.tenant).await.map_err(ApiError::from)?;
    let limit = api.writer.config().event_bytes_max;
    let count = requests.len();
    let (mut keys, mut given_keys, mut refusal) = (HashSet::new(), Vec::new(), None);
    let mut prepared = Vec::with_capacity(requests.len());
    for (index, request) in requests.into_iter().enumerate() {
        let parsed = parse::parse(request, &publisher, &format!("requests[{index}]."))?;
        if let Some(key) = &parsed.key
            && !keys.insert(key.key.clone())
        {
            return Err(invalid(format!("requests[{index}].idempotency_key"), "stands in the batch twice").into());
        }
        given_keys.extend(parsed.key.clone());
        let one = prepare(api.writer.registry(), &registry, parsed.event, parsed.schema_version, parsed.key, limit);
        match one.await {
            Ok(one) => prepared.push(one),
            Err(error) => {
                refusal.get_or_insert_with(|| to_api_error(error, &format!("requests[{index}].event")));
            }
        }
    }
    if let Some(refusal) = refusal {
        let keys = if given_keys.len() == count { given_keys } else { Vec::new() };
        return match repeated(api, publisher.tenant, &keys, &registry).await? {
            Some(responses) => Ok(Response::new(PublishBatchResponse { responses })),
            None => Err(refusal.into()),
        };
    }
    let published = api.writer.write(publisher.tenant, prepared).await;
    let published = published.map_err(|error| to_api_error(error, "requests"))?;
    let responses = published.iter().map(|published| answer(&registry, published)).collect();
    Ok(Response::new(PublishBatchResponse { responses }))
}
