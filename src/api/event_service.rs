//! EventService: forwards each RPC to its handler.

use super::events::{self, EventsDeps};
use super::registry::RegistryDeps;
use super::subscriptions;
use crate::proto::public as proto;
use crate::proto::public::event_service_server::EventService as Service;
use futures::stream::BoxStream;
use tonic::{Request, Response, Status};

/// The service.
#[derive(Clone)]
pub struct EventService {
    registry: RegistryDeps,
    events: EventsDeps,
}

impl EventService {
    /// Takes what its handlers work with.
    pub fn new(registry: RegistryDeps, events: EventsDeps) -> Self {
        Self { registry, events }
    }
}

#[tonic::async_trait]
impl Service for EventService {
    type WatchStream = BoxStream<'static, Result<proto::WatchResponse, Status>>;

    async fn subscribe(
        &self,
        request: Request<proto::SubscribeRequest>,
    ) -> Result<Response<proto::SubscribeResponse>, Status> {
        Ok(Response::new(Box::pin(subscriptions::subscribe::handle(&self.registry, request)).await?))
    }

    async fn unsubscribe(
        &self,
        request: Request<proto::UnsubscribeRequest>,
    ) -> Result<Response<proto::UnsubscribeResponse>, Status> {
        Ok(Response::new(subscriptions::unsubscribe::handle(&self.registry, request).await?))
    }

    async fn get_subscription(
        &self,
        request: Request<proto::GetSubscriptionRequest>,
    ) -> Result<Response<proto::GetSubscriptionResponse>, Status> {
        Ok(Response::new(subscriptions::get::handle(&self.registry, request).await?))
    }

    async fn list_subscriptions(
        &self,
        request: Request<proto::ListSubscriptionsRequest>,
    ) -> Result<Response<proto::ListSubscriptionsResponse>, Status> {
        Ok(Response::new(subscriptions::list::handle(&self.registry, request).await?))
    }

    async fn update_subscription(
        &self,
        request: Request<proto::UpdateSubscriptionRequest>,
    ) -> Result<Response<proto::UpdateSubscriptionResponse>, Status> {
        Ok(Response::new(Box::pin(subscriptions::update::handle(&self.registry, request)).await?))
    }

    async fn enable_subscription(
        &self,
        request: Request<proto::EnableSubscriptionRequest>,
    ) -> Result<Response<proto::EnableSubscriptionResponse>, Status> {
        Ok(Response::new(subscriptions::enable::handle(&self.registry, request).await?))
    }

    async fn disable_subscription(
        &self,
        request: Request<proto::DisableSubscriptionRequest>,
    ) -> Result<Response<proto::DisableSubscriptionResponse>, Status> {
        Ok(Response::new(subscriptions::disable::handle(&self.registry, request).await?))
    }

    async fn undelete_subscription(
        &self,
        request: Request<proto::UndeleteSubscriptionRequest>,
    ) -> Result<Response<proto::UndeleteSubscriptionResponse>, Status> {
        Ok(Response::new(subscriptions::undelete::handle(&self.registry, request).await?))
    }

    async fn rotate_subscription_secret(
        &self,
        request: Request<proto::RotateSubscriptionSecretRequest>,
    ) -> Result<Response<proto::RotateSubscriptionSecretResponse>, Status> {
        Ok(Response::new(subscriptions::rotate_secret::handle(&self.registry, request).await?))
    }

    async fn test_subscription(
        &self,
        request: Request<proto::TestSubscriptionRequest>,
    ) -> Result<Response<proto::TestSubscriptionResponse>, Status> {
        Ok(Response::new(subscriptions::trial::handle(&self.registry, request).await?))
    }

    async fn explain_match(
        &self,
        request: Request<proto::ExplainMatchRequest>,
    ) -> Result<Response<proto::ExplainMatchResponse>, Status> {
        Ok(Response::new(subscriptions::explain::handle(&self.registry, request).await?))
    }

    async fn get_event(
        &self,
        request: Request<proto::GetEventRequest>,
    ) -> Result<Response<proto::GetEventResponse>, Status> {
        Ok(Response::new(events::get_event::handle(&self.events, request).await?))
    }

    async fn list_events(
        &self,
        request: Request<proto::ListEventsRequest>,
    ) -> Result<Response<proto::ListEventsResponse>, Status> {
        Ok(Response::new(events::list_events::handle(&self.events, request).await?))
    }

    async fn watch(&self, request: Request<proto::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(events::watch::handle(&self.events, request).await?))
    }

    async fn update_watch(
        &self,
        request: Request<proto::UpdateWatchRequest>,
    ) -> Result<Response<proto::UpdateWatchResponse>, Status> {
        Ok(Response::new(events::update_watch::handle(&self.events, request).await?))
    }
}
