//! AddEventTypeSchema: registers the next version of a CUSTOM event type's schema.

use super::check_schema;
use crate::api::registry::{RegistryDeps, authorised, invalid, principal, request_key, unreadable};
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::domain::event_type::{Origin, SchemaVersion};
use crate::proto::public::{AddEventTypeSchemaRequest, AddEventTypeSchemaResponse};
use crate::store::request_ids::Once;
use crate::wire::FieldError;
use crate::wire::event_type::{add_schema_fingerprint, parse_name, schema_to_proto};
use prost::Message as _;
use tonic::Request;

pub(super) async fn handle(
    deps: &RegistryDeps,
    request: Request<AddEventTypeSchemaRequest>,
) -> Result<AddEventTypeSchemaResponse, ApiError> {
    let (caller, request) = authorised(request, Role::Developer)?;
    let key = request_key(&request.request_id, "AddEventTypeSchema", add_schema_fingerprint(&request))?;
    let name = parse_name("event_type", &request.event_type).map_err(invalid)?;
    if request.schema.is_empty() {
        return Err(invalid(FieldError::new("schema", "is required")));
    }
    deps.own_type(&name)?;
    if let Some(answer) = deps.first_answer(caller.tenant, key.as_ref()).await? {
        return AddEventTypeSchemaResponse::decode(answer.as_slice()).map_err(unreadable);
    }
    check_schema("schema", &request.schema).await?;
    let quota = deps.event_type_quota();
    let encode = |made: &SchemaVersion| response(made).encode_to_vec();
    let made = deps.store.add_schema(principal(&caller), name.clone(), request.schema, quota, key, encode).await;
    match made {
        Ok(Once::Made(made)) => {
            deps.announce(caller.tenant).await;
            Ok(response(&made))
        }
        Ok(Once::Before(answer)) => AddEventTypeSchemaResponse::decode(answer.as_slice()).map_err(unreadable),
        Err(refusal) => Err(deps.event_type_refused(caller.tenant, &name, refusal).await),
    }
}

fn response(made: &SchemaVersion) -> AddEventTypeSchemaResponse {
    AddEventTypeSchemaResponse { schema: Some(schema_to_proto(made, Origin::Custom)) }
}
