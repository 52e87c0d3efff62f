//! CreateEventType: declares a CUSTOM event type.

use super::check_schema;
use crate::api::registry::{RegistryDeps, authorised, invalid, principal, request_key, unreadable};
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::proto::public::{CreateEventTypeRequest, CreateEventTypeResponse};
use crate::store::event_types::{EventTypeRecord, NewEventType};
use crate::store::request_ids::Once;
use crate::wire::event_type::{ParsedCreate, create_fingerprint, parse_create, to_proto};
use prost::Message as _;
use tonic::Request;

pub(super) async fn handle(
    deps: &RegistryDeps,
    request: Request<CreateEventTypeRequest>,
) -> Result<CreateEventTypeResponse, ApiError> {
    let (caller, request) = authorised(request, Role::Developer)?;
    let key = request_key(&request.request_id, "CreateEventType", create_fingerprint(&request))?;
    let ParsedCreate { name, phase, display_name, description, schema, compatibility } =
        parse_create(request).map_err(invalid)?;
    if let Some(answer) = deps.first_answer(caller.tenant, key.as_ref()).await? {
        return CreateEventTypeResponse::decode(answer.as_slice()).map_err(unreadable);
    }
    if let Some(document) = &schema {
        check_schema("schema", document).await?;
    }
    let new = NewEventType { name: name.clone(), phase, display_name, description, schema, compatibility };
    let encode = |made: &EventTypeRecord| response(made).encode_to_vec();
    let made = deps.store.create_event_type(principal(&caller), new, deps.event_type_quota(), key, encode).await;
    match made {
        Ok(Once::Made(made)) => {
            deps.announce(caller.tenant).await;
            Ok(response(&made))
        }
        Ok(Once::Before(answer)) => CreateEventTypeResponse::decode(answer.as_slice()).map_err(unreadable),
        Err(refusal) => Err(deps.event_type_refused(caller.tenant, &name, refusal).await),
    }
}

fn response(made: &EventTypeRecord) -> CreateEventTypeResponse {
    CreateEventTypeResponse { event_type: Some(to_proto(&made.event_type, Some(made.registry_version))) }
}
