//! AddEventTypeSchema: registers the next version of a CUSTOM event type's schema.
//!
//! The comparison with the latest version can take a while, so it is made before the head lock is taken; where the type's schemas
//! changed meanwhile it is made again.

use super::{check_schema, compare_schemas};
use crate::api::registry::{RegistryDeps, authorised, invalid, principal};
use crate::api::repeat::Repeat;
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::domain::event_type::{Origin, SchemaVersion};
use crate::proto::public::{AddEventTypeSchemaRequest, AddEventTypeSchemaResponse};
use crate::store::event_types::EventTypeRefusal;
use crate::wire::FieldError;
use crate::wire::event_type::{parse_name, schema_to_proto};
use tonic::Request;

pub(super) async fn handle(
    deps: &RegistryDeps,
    request: Request<AddEventTypeSchemaRequest>,
) -> Result<AddEventTypeSchemaResponse, ApiError> {
    let (caller, mut request) = authorised(request, Role::Developer)?;
    let request_id = std::mem::take(&mut request.request_id);
    let repeat = Repeat::by(&caller, "AddEventTypeSchema", &request_id, &request)?;
    let name = parse_name("event_type", &request.event_type).map_err(invalid)?;
    if request.schema.is_empty() {
        return Err(invalid(FieldError::new("schema", "is required")));
    }
    deps.own_type(&name)?;
    if let Some(answer) = repeat.first(&deps.store).await? {
        return Ok(answer);
    }
    check_schema(caller.tenant, "schema", &request.schema).await?;
    let quota = deps.event_type_quota();
    // Whoever is overtaken compares again, for as long as the call has time: each time somebody else has added one of the versions that the
    // type may have.
    let made = loop {
        let compared = deps.event_type(caller.tenant, &name).await?.event_type().clone();
        // A retired type is refused by the store, in its order of checks.
        if compared.latest_schema > 0 && compared.deleted_at.is_none() {
            let (version, mode) = (compared.latest_schema, compared.compatibility);
            let breaks = compare_schemas(deps, caller.tenant, &name, version, &request.schema, mode).await?;
            if !breaks.is_empty() {
                return Err(ApiError::SchemaIncompatible { event_type: name.as_str().to_owned(), version, breaks });
            }
        }
        let (by, document) = (principal(&caller), request.schema.clone());
        match deps.store.add_schema(by, compared, document, quota, repeat.keeping(response)).await {
            Err(EventTypeRefusal::SchemasChanged) => {}
            made => break made,
        }
    };
    match made {
        Ok(made) => {
            deps.announce(caller.tenant).await;
            repeat.answer(made, response)
        }
        Err(refusal) => Err(deps.event_type_refused(caller.tenant, &name, refusal).await),
    }
}

fn response(made: &SchemaVersion) -> AddEventTypeSchemaResponse {
    AddEventTypeSchemaResponse { schema: Some(schema_to_proto(made, Origin::Custom)) }
}
