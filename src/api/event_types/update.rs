//! UpdateEventType: other texts for a CUSTOM event type, or another demand on its further schema versions.

use crate::api::registry::{RegistryDeps, authorised, invalid, principal};
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::proto::public::{UpdateEventTypeRequest, UpdateEventTypeResponse};
use crate::store::event_types::EventTypeChange;
use crate::wire::event_type::{EventTypePatch, parse_name, parse_patch, to_proto};
use crate::wire::{FieldError, etag};
use tonic::Request;

pub(super) async fn handle(
    deps: &RegistryDeps,
    request: Request<UpdateEventTypeRequest>,
) -> Result<UpdateEventTypeResponse, ApiError> {
    let (caller, request) = authorised(request, Role::Developer)?;
    let sent = request.event_type.ok_or_else(|| invalid(FieldError::new("event_type", "is required")))?;
    let name = parse_name("event_type.name", &sent.name).map_err(invalid)?;
    let etag = etag(&sent.etag);
    let EventTypePatch { display_name, description, compatibility } =
        parse_patch(sent, request.update_mask.as_ref()).map_err(invalid)?;
    deps.own_type(&name)?;
    let change = EventTypeChange::Describe { display_name, description, compatibility };
    let changed =
        deps.store.change_event_type(principal(&caller), name.clone(), etag, change, deps.event_type_quota()).await;
    match changed {
        Ok(record) => {
            deps.announce(caller.tenant).await;
            let event_type = to_proto(&record.event_type, Some(record.registry_version));
            Ok(UpdateEventTypeResponse { event_type: Some(event_type) })
        }
        Err(refusal) => Err(deps.event_type_refused(caller.tenant, &name, refusal).await),
    }
}
