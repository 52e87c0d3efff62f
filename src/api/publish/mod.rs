//! PublishService, on the internal port: parse, check the publisher, hand over to the writer, answer.

mod accept;
mod cancel_event;
pub(super) mod errors;
mod parse;
mod publish_batch;
mod publish_one;
mod wait_event;

use super::status::ApiError;
use crate::domain::ids::{EventId, TenantId};
use crate::feed::Feed;
use crate::pending::Pending;
use crate::proto::internal::publish_service_server::PublishService;
use crate::proto::internal::{
    CancelEventRequest, CancelEventResponse, InvocationRef, PublishBatchRequest, PublishBatchResponse, PublishRequest,
    PublishResponse, WaitEventRequest, WaitEventResponse,
};
use crate::publish::PublishError;
use crate::publish::registry::TenantRegistry;
use crate::publish::writer::{Published, Writer};
use crate::store::Store;
use crate::store::publish::NewKey;
use crate::telemetry::measured;
use crate::wire::time::timestamp_to_proto;
use chrono::{DateTime, Utc};
use parse::Parsed;
use tonic::{Request, Response, Status};

/// The service; one RPC per file beside this one.
#[derive(Clone)]
pub struct PublishApi {
    writer: Writer,
    pending: Pending,
    store: Store,
    feed: Feed,
}

impl PublishApi {
    /// Takes the parts it needs.
    pub fn new(writer: Writer, pending: Pending, store: Store, feed: Feed) -> Self {
        Self { writer, pending, store, feed }
    }
}

#[tonic::async_trait]
impl PublishService for PublishApi {
    async fn publish(&self, request: Request<PublishRequest>) -> Result<Response<PublishResponse>, Status> {
        publish_one::handle(self, request).await
    }

    async fn publish_batch(
        &self,
        request: Request<PublishBatchRequest>,
    ) -> Result<Response<PublishBatchResponse>, Status> {
        publish_batch::handle(self, request).await
    }

    async fn wait_event(&self, request: Request<WaitEventRequest>) -> Result<Response<WaitEventResponse>, Status> {
        wait_event::handle(self, request).await
    }

    async fn cancel_event(
        &self,
        request: Request<CancelEventRequest>,
    ) -> Result<Response<CancelEventResponse>, Status> {
        cancel_event::handle(self, request).await
    }
}

/// Asks the tenant's quotas for all events of a call: it is taken whole, or has no effect.
async fn admit(api: &PublishApi, registry: &TenantRegistry, events: &[Parsed]) -> Result<(), PublishError> {
    api.writer.registry().admit(registry, events.iter().map(|one| one.event.bytes())).await
}

/// The answer for one event.
fn answer(registry: &TenantRegistry, published: &Published) -> PublishResponse {
    let entry = &published.entry;
    if published.duplicate {
        measured().publish.duplicates.inc();
    }
    let invocation = |no: &i32| InvocationRef {
        invocation_id: entry.invocation(*no).to_string(),
        subscription_id: registry.subscription(*no).map_or_else(String::new, |e| e.subscription.id.to_string()),
    };
    PublishResponse {
        event_id: entry.event.id.to_string(),
        position: entry.position,
        commit_time: Some(timestamp_to_proto(entry.committed_at)),
        invocations: entry.matched.iter().map(invocation).collect(),
        duplicate: published.duplicate,
        ..PublishResponse::default()
    }
}

/// The answer for an event that waits for its time.
fn scheduled(event: EventId, at: DateTime<Utc>, duplicate: bool) -> PublishResponse {
    PublishResponse {
        event_id: event.to_string(),
        duplicate,
        deliver_time: Some(timestamp_to_proto(at)),
        ..PublishResponse::default()
    }
}

/// The first answers of a call that the catalogue would refuse by now, where all its keys were used before; none otherwise.
async fn repeated(
    api: &PublishApi,
    tenant: TenantId,
    keys: &[NewKey],
    registry: &TenantRegistry,
) -> Result<Option<Vec<PublishResponse>>, ApiError> {
    if keys.is_empty() {
        return Ok(None);
    }
    let first = api.writer.first_answers(tenant, keys).await.map_err(|error| errors::to_api_error(error, "event"))?;
    Ok(first.map(|published| published.iter().map(|published| answer(registry, published)).collect()))
}
