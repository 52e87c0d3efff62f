//! CancelEvent: takes back an event that is delayed, or whose listeners are still asked.

use super::PublishApi;
use crate::api::auth;
use crate::api::repeat::Repeat;
use crate::api::status::ApiError;
use crate::domain::ids::EventId;
use crate::pending::CancelRefusal;
use crate::proto::internal::{CancelEventRequest, CancelEventResponse};
use crate::store::audit::Principal;
use crate::wire::FieldError;
use tonic::{Request, Response, Status};

pub(super) async fn handle(
    api: &PublishApi,
    request: Request<CancelEventRequest>,
) -> Result<Response<CancelEventResponse>, Status> {
    let publisher = auth::publisher(&request)?.clone();
    let CancelEventRequest { event_id, request_id } = request.into_inner();
    let body = CancelEventRequest { event_id: event_id.clone(), ..CancelEventRequest::default() };
    let repeat = Repeat::of(publisher.tenant, "CancelEvent", &request_id, &body)?;
    let id = EventId::parse(&event_id);
    let id = id.map_err(|error| ApiError::from(FieldError::new("event_id", error.to_string())))?;
    if !api.may_touch(&publisher, id).await? {
        return Err(ApiError::EventNotFound { event: event_id }.into());
    }
    let by = Principal { tenant: publisher.tenant, app: None, name: publisher.subject };
    match api.pending.cancel(&by, id, repeat.keeping(|(): &()| CancelEventResponse {})).await {
        Ok(_) => Ok(Response::new(CancelEventResponse {})),
        Err(CancelRefusal::NotFound) => Err(ApiError::EventNotFound { event: event_id }.into()),
        Err(CancelRefusal::TooLate(state)) => {
            let message = format!("it is too late to cancel: the event is {state}");
            Err(ApiError::ResourceState { kind: "carillon.dev/Event", name: event_id, message }.into())
        }
        Err(CancelRefusal::Store(error)) => Err(ApiError::Store(error).into()),
    }
}
