//! UndeleteEventType: brings a retired CUSTOM event type back.

use crate::api::registry::{RegistryDeps, authorised, invalid, principal};
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::proto::public::{UndeleteEventTypeRequest, UndeleteEventTypeResponse};
use crate::store::event_types::EventTypeChange;
use crate::wire::event_type::{parse_name, to_proto};
use tonic::Request;

pub(super) async fn handle(
    deps: &RegistryDeps,
    request: Request<UndeleteEventTypeRequest>,
) -> Result<UndeleteEventTypeResponse, ApiError> {
    let (caller, request) = authorised(request, Role::Developer)?;
    let name = parse_name("name", &request.name).map_err(invalid)?;
    deps.own_type(&name)?;
    let by = principal(&caller);
    let quota = deps.event_type_quota();
    match deps.store.change_event_type(by, name.clone(), None, EventTypeChange::Undelete, quota).await {
        Ok(record) => {
            deps.announce(caller.tenant).await;
            let event_type = to_proto(&record.event_type, Some(record.registry_version));
            Ok(UndeleteEventTypeResponse { event_type: Some(event_type) })
        }
        Err(refusal) => Err(deps.event_type_refused(caller.tenant, &name, refusal).await),
    }
}
