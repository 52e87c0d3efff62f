//! DeleteEventType: retires a CUSTOM event type.

use crate::api::registry::{RegistryDeps, authorised, invalid, principal};
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::proto::public::{DeleteEventTypeRequest, DeleteEventTypeResponse};
use crate::store::event_types::{EventTypeChange, EventTypeRefusal};
use crate::wire::etag;
use crate::wire::event_type::{parse_name, to_proto};
use tonic::Request;

pub(super) async fn handle(
    deps: &RegistryDeps,
    request: Request<DeleteEventTypeRequest>,
) -> Result<DeleteEventTypeResponse, ApiError> {
    let (caller, request) = authorised(request, Role::Developer)?;
    let name = parse_name("name", &request.name).map_err(invalid)?;
    deps.own_type(&name)?;
    let by = principal(&caller);
    let etag = etag(&request.etag);
    let quota = deps.event_type_quota();
    match deps.store.change_event_type(by, name.clone(), etag, EventTypeChange::Delete, quota).await {
        Ok(record) => {
            deps.announce(caller.tenant).await;
            let event_type = to_proto(&record.event_type, Some(record.registry_version));
            Ok(DeleteEventTypeResponse { event_type: Some(event_type) })
        }
        Err(EventTypeRefusal::NotFound | EventTypeRefusal::Deleted) if request.allow_missing => {
            Ok(DeleteEventTypeResponse::default())
        }
        Err(EventTypeRefusal::Deleted) => {
            let message = "the event type is retired already".to_owned();
            Err(ApiError::EventTypeState { name: name.as_str().to_owned(), message })
        }
        Err(refusal) => Err(deps.event_type_refused(caller.tenant, &name, refusal).await),
    }
}
