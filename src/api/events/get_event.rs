//! GetEvent: one event by its id.

use super::EventsDeps;
use crate::api::auth::{app_of, caller};
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::domain::announcement::tells_of_another_app;
use crate::domain::event::LogEntry;
use crate::domain::ids::EventId;
use crate::proto::public::{EventView, GetEventRequest, GetEventResponse};
use crate::wire::event::entry_to_proto;
use tonic::Request;

/// Answers GetEvent.
pub async fn handle(deps: &EventsDeps, request: Request<GetEventRequest>) -> Result<GetEventResponse, ApiError> {
    let caller = caller(&request)?.require(Role::Viewer)?.clone();
    let app = app_of(&deps.store, &caller).await?;
    let text = request.into_inner().event_id;
    let id = EventId::parse(&text).map_err(|error| ApiError::field("event_id", error.to_string()))?;
    let entry = deps.store.event(caller.tenant, id).await?;
    let hidden = |entry: &LogEntry| app.as_deref().is_some_and(|app| tells_of_another_app(&entry.event, app));
    let entry = entry.filter(|entry| !hidden(entry)).ok_or(ApiError::EventNotInLog { event: text })?;
    Ok(GetEventResponse { event: Some(entry_to_proto(&entry, EventView::Full)) })
}
