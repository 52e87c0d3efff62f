//! CreateEventType: declares a CUSTOM event type.

use super::check_schema;
use crate::api::registry::{RegistryDeps, authorised, invalid, principal};
use crate::api::repeat::Repeat;
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::proto::public::{CreateEventTypeRequest, CreateEventTypeResponse};
use crate::store::event_types::{EventTypeRecord, NewEventType};
use crate::wire::event_type::{ParsedCreate, parse_create, to_proto};
use tonic::Request;

pub(super) async fn handle(
    deps: &RegistryDeps,
    request: Request<CreateEventTypeRequest>,
) -> Result<CreateEventTypeResponse, ApiError> {
    let (caller, mut request) = authorised(request, Role::Developer)?;
    let request_id = std::mem::take(&mut request.request_id);
    let repeat = Repeat::by(&caller, "CreateEventType", &request_id, &request)?;
    let ParsedCreate { name, phase, display_name, description, schema, compatibility } =
        parse_create(request).map_err(invalid)?;
    if let Some(answer) = repeat.first(&deps.store).await? {
        return Ok(answer);
    }
    if let Some(document) = &schema {
        check_schema(caller.tenant, "schema", document).await?;
    }
    let new = NewEventType { name: name.clone(), phase, display_name, description, schema, compatibility };
    let kept = repeat.keeping(response);
    let made = deps.store.create_event_type(principal(&caller), new, deps.event_type_quota(), kept).await;
    match made {
        Ok(made) => {
            deps.announce(caller.tenant).await;
            repeat.answer(made, response)
        }
        Err(refusal) => Err(deps.event_type_refused(caller.tenant, &name, refusal).await),
    }
}

fn response(made: &EventTypeRecord) -> CreateEventTypeResponse {
    CreateEventTypeResponse { event_type: Some(to_proto(&made.event_type, Some(made.registry_version))) }
}
