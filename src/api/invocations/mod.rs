//! InvocationService: the runs of subscriptions. One RPC per file; the service only forwards.
//!
//! What another app owns is absent to a caller that is limited to one.

mod cancel;
mod get;
mod list;
mod redrive;
mod retry;

use super::repeat::Repeat;
use super::status::ApiError;
use crate::domain::ids::{InvocationId, SubscriptionId};
use crate::domain::subscription::State;
use crate::feed::{Feed, News};
use crate::proto::public as proto;
use crate::proto::public::invocation_service_server::InvocationService as Service;
use crate::store::audit::Principal;
use crate::store::invocation_changes::InvocationChange;
use crate::store::invocations::VisibleSubscription;
use crate::store::{Store, StoreError};
use crate::wire::invocation::{state_to_proto, to_proto};
use crate::wire::page::PageTokens;
use crate::wire::subscription::state_name;
use prost::Message;
use tonic::{Request, Response, Status};

/// What the handlers work with. Cheap to clone.
#[derive(Clone)]
pub struct InvocationDeps {
    /// The store.
    pub store: Store,
    /// Tells this process's dispatcher of changes.
    pub feed: Feed,
    /// Seals page tokens.
    pub page_tokens: PageTokens,
}

/// The service.
#[derive(Clone)]
pub struct InvocationService {
    deps: InvocationDeps,
}

impl InvocationService {
    /// Takes what its handlers work with.
    pub fn new(deps: InvocationDeps) -> Self {
        Self { deps }
    }
}

#[tonic::async_trait]
impl Service for InvocationService {
    async fn list_invocations(
        &self,
        request: Request<proto::ListInvocationsRequest>,
    ) -> Result<Response<proto::ListInvocationsResponse>, Status> {
        Ok(Response::new(list::handle(&self.deps, request).await?))
    }

    async fn get_invocation(
        &self,
        request: Request<proto::GetInvocationRequest>,
    ) -> Result<Response<proto::GetInvocationResponse>, Status> {
        Ok(Response::new(get::handle(&self.deps, request).await?))
    }

    async fn retry_invocation(
        &self,
        request: Request<proto::RetryInvocationRequest>,
    ) -> Result<Response<proto::RetryInvocationResponse>, Status> {
        Ok(Response::new(retry::handle(&self.deps, request).await?))
    }

    async fn cancel_invocation(
        &self,
        request: Request<proto::CancelInvocationRequest>,
    ) -> Result<Response<proto::CancelInvocationResponse>, Status> {
        Ok(Response::new(cancel::handle(&self.deps, request).await?))
    }

    async fn redrive_invocations(
        &self,
        request: Request<proto::RedriveInvocationsRequest>,
    ) -> Result<Response<proto::RedriveInvocationsResponse>, Status> {
        Ok(Response::new(redrive::handle(&self.deps, request).await?))
    }
}

/// Nothing is run again of a subscription that does not execute.
fn inactive(subscription: SubscriptionId, state: State) -> ApiError {
    let message = format!("the subscription is {}; what is retried would only be cancelled", state_name(state));
    ApiError::SubscriptionState { subscription: subscription.to_string(), message }
}

impl InvocationDeps {
    /// The subscription that a filter names, where it names one.
    ///
    /// Errors: SUBSCRIPTION_NOT_FOUND, also for one that the caller may not see.
    async fn named(&self, by: &Principal, id: Option<SubscriptionId>) -> Result<Option<VisibleSubscription>, ApiError> {
        let Some(id) = id else { return Ok(None) };
        let found = self.store.visible_subscription(by, id).await?;
        found.map(Some).ok_or_else(|| ApiError::SubscriptionNotFound { subscription: id.to_string() })
    }

    /// What a retry of a change is answered: the first answer, or where that was not kept before its server died, the invocation as
    /// it is now.
    async fn repeated<R: Message + Default>(
        &self,
        repeat: &Repeat,
        by: &Principal,
        id: InvocationId,
        kept: &[u8],
        answer: impl FnOnce(proto::Invocation) -> R,
    ) -> Result<R, ApiError> {
        if !kept.is_empty() {
            return repeat.open(kept);
        }
        let found = self.store.invocation(by, id).await?;
        let (invocation, _) = found.ok_or_else(|| ApiError::InvocationNotFound { invocation: id.to_string() })?;
        Ok(answer(to_proto(&invocation)))
    }

    /// Tells the dispatcher of a change, and answers with the invocation as it is now.
    fn changed(&self, id: InvocationId, change: InvocationChange) -> Result<proto::Invocation, ApiError> {
        match change {
            InvocationChange::Done { invocation, head } => {
                self.feed.send(&News::Head(head));
                Ok(to_proto(&invocation))
            }
            InvocationChange::Inactive(subscription, state) => Err(inactive(subscription, state)),
            // Asked for before this.
            InvocationChange::Before(_) => Err(ApiError::Store(StoreError::Interrupted)),
            InvocationChange::NotFound => Err(ApiError::InvocationNotFound { invocation: id.to_string() }),
            InvocationChange::WrongState(state) => Err(ApiError::InvocationState {
                invocation: id.to_string(),
                state: state_to_proto(state).as_str_name().trim_start_matches("INVOCATION_STATE_").to_owned(),
            }),
        }
    }

    /// Keeps the answer to a change for a retry. What was changed is to be told, so this waits for no turn among the tenant's calls.
    async fn answer<R: Message>(&self, repeat: &Repeat, answer: R) -> Result<R, ApiError> {
        repeat.keep(&self.store.owed(), &answer).await?;
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::connect;
    use crate::store::tests::Database;
    use proto::{RedriveInvocationsRequest, RedriveInvocationsResponse};

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_changed_is_answered_and_kept_though_the_tenants_other_calls_take_every_turn() {
        let database = Database::new().await;
        let tenant = database.tenant("a").await;
        let url = database.postgres.server_url();
        let config = connect::Config { connections_max: 8, acquire_timeout_ms: 100, ..Database::config(&url) };
        let store = connect::open(&config).await.expect("Postgres answers");
        let page_tokens = PageTokens::new(&[7; 32]);
        let deps = InvocationDeps { store: store.clone(), feed: Feed::default(), page_tokens };
        let request = RedriveInvocationsRequest::default();
        let repeat = Repeat::of(tenant, "RedriveInvocations", "once", &request).expect("a request id");

        let turns = store.crowd(tenant);
        let crowded = repeat.first_bytes(&store).await;
        assert!(matches!(crowded, Err(ApiError::Store(StoreError::Crowded))), "{crowded:?}");
        let answer = RedriveInvocationsResponse { redriven_count: 500, more: false };
        let answered = deps.answer(&repeat, answer).await.expect("kept");
        drop(turns);
        let first: Option<RedriveInvocationsResponse> = repeat.first(&database.store).await.expect("readable");
        assert_eq!(first, Some(answered));
        store.close().await;
        database.end().await;
    }
}
