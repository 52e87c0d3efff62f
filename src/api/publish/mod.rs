//! PublishService, on the internal port: parse, check the publisher, hand over to the writer, answer.

mod accept;
mod answers;
mod cancel_event;
pub(super) mod errors;
mod first_answers;
mod parse;
mod publish_batch;
mod publish_one;
mod wait_event;

use super::status::ApiError;
use crate::domain::access::Publisher;
use crate::domain::ids::EventId;
use crate::feed::Feed;
use crate::pending::Pending;
use crate::proto::internal::publish_service_server::PublishService;
use crate::proto::internal::{
    CancelEventRequest, CancelEventResponse, PublishBatchRequest, PublishBatchResponse, PublishRequest,
    PublishResponse, WaitEventRequest, WaitEventResponse,
};
use crate::publish::PublishError;
use crate::publish::registry::TenantRegistry;
use crate::publish::writer::Writer;
use crate::store::Store;
use answers::Answers;
use parse::Parsed;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// The service; one RPC per file beside this one.
#[derive(Clone)]
pub struct PublishApi {
    writer: Writer,
    pending: Pending,
    store: Store,
    feed: Feed,
    draining: CancellationToken,
}

impl PublishApi {
    /// Takes the parts it needs. Those that only wait are sent elsewhere once `draining` is cancelled.
    pub fn new(writer: Writer, pending: Pending, store: Store, feed: Feed, draining: CancellationToken) -> Self {
        Self { writer, pending, store, feed, draining }
    }

    /// Whether a publisher may take an event back or wait for it: one of a type that it may not publish is to it as if there were none.
    async fn may_touch(&self, publisher: &Publisher, event: EventId) -> Result<bool, ApiError> {
        if publisher.event_types.is_empty() {
            return Ok(true);
        }
        let event_type = self.pending.event_type(publisher.tenant, event).await?;
        Ok(event_type.is_none_or(|name| publisher.may_publish(&name)))
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
        tokio::select! {
            answer = wait_event::handle(self, request) => answer,
            () = self.draining.cancelled() => Err(ApiError::ServerDraining.into()),
        }
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
