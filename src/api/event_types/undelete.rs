//! UndeleteEventType: brings a retired CUSTOM event type back.

use crate::api::registry::{RegistryDeps, authorised, invalid, principal};
use crate::api::repeat::Repeat;
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::proto::public::{UndeleteEventTypeRequest, UndeleteEventTypeResponse};
use crate::store::event_types::{EventTypeChange, EventTypeRecord};
use crate::wire::event_type::{parse_name, to_proto};
use tonic::Request;

pub(super) async fn handle(
    deps: &RegistryDeps,
    request: Request<UndeleteEventTypeRequest>,
) -> Result<UndeleteEventTypeResponse, ApiError> {
    let (caller, mut request) = authorised(request, Role::Developer)?;
    let request_id = std::mem::take(&mut request.request_id);
    let repeat = Repeat::by(&caller, "UndeleteEventType", &request_id, &request)?;
    let name = parse_name("name", &request.name).map_err(invalid)?;
    deps.own_type(&name)?;
    if let Some(answer) = repeat.first(&deps.store).await? {
        return Ok(answer);
    }
    let by = principal(&caller);
    let quota = deps.event_type_quota();
    match deps
        .store
        .change_event_type(by, name.clone(), None, EventTypeChange::Undelete, quota, repeat.keeping(response))
        .await
    {
        Ok(changed) => {
            deps.announce(caller.tenant).await;
            repeat.answer(changed, response)
        }
        Err(refusal) => Err(deps.event_type_refused(caller.tenant, &name, refusal).await),
    }
}

fn response(changed: &EventTypeRecord) -> UndeleteEventTypeResponse {
    UndeleteEventTypeResponse { event_type: Some(to_proto(&changed.event_type, Some(changed.registry_version))) }
}
