//! UpdateEventType: other texts for a CUSTOM event type, or another demand on its further schema versions.

use crate::api::registry::{RegistryDeps, authorised, invalid, principal};
use crate::api::repeat::Repeat;
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::proto::public::{UpdateEventTypeRequest, UpdateEventTypeResponse};
use crate::store::event_types::{EventTypeChange, EventTypeRecord};
use crate::wire::event_type::{EventTypePatch, parse_name, parse_patch, to_proto};
use crate::wire::{FieldError, etag};
use tonic::Request;

pub(super) async fn handle(
    deps: &RegistryDeps,
    request: Request<UpdateEventTypeRequest>,
) -> Result<UpdateEventTypeResponse, ApiError> {
    let (caller, mut request) = authorised(request, Role::Developer)?;
    let request_id = std::mem::take(&mut request.request_id);
    let repeat = Repeat::by(&caller, "UpdateEventType", &request_id, &request)?;
    let sent = request.event_type.ok_or_else(|| invalid(FieldError::new("event_type", "is required")))?;
    let name = parse_name("event_type.name", &sent.name).map_err(invalid)?;
    let etag = etag(&sent.etag);
    let EventTypePatch { display_name, description, compatibility } =
        parse_patch(sent, request.update_mask.as_ref()).map_err(invalid)?;
    deps.own_type(&name)?;
    if let Some(answer) = repeat.first(&deps.store).await? {
        return Ok(answer);
    }
    let change = EventTypeChange::Describe { display_name, description, compatibility };
    let changed = deps
        .store
        .change_event_type(
            principal(&caller),
            name.clone(),
            etag,
            change,
            deps.event_type_quota(),
            repeat.keeping(response),
        )
        .await;
    match changed {
        Ok(changed) => {
            deps.announce(caller.tenant).await;
            repeat.answer(changed, response)
        }
        Err(refusal) => Err(deps.event_type_refused(caller.tenant, &name, refusal).await),
    }
}

fn response(changed: &EventTypeRecord) -> UpdateEventTypeResponse {
    UpdateEventTypeResponse { event_type: Some(to_proto(&changed.event_type, Some(changed.registry_version))) }
}
