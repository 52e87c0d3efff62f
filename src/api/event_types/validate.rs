//! ValidateEvent: checks data against a schema version without publishing anything.

use crate::api::registry::{RegistryDeps, authorised, invalid};
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::domain::event_type::CompiledSchema;
use crate::long_work;
use crate::proto::public::{ValidateEventRequest, ValidateEventResponse};
use crate::wire::FieldError;
use crate::wire::event_type::{parse_name, violation_to_proto};
use tonic::Request;

/// How many violations an answer holds.
const VIOLATIONS_MAX: usize = 32;

pub(super) async fn handle(
    deps: &RegistryDeps,
    request: Request<ValidateEventRequest>,
) -> Result<ValidateEventResponse, ApiError> {
    let (caller, request) = authorised(request, Role::Viewer)?;
    let name = parse_name("event_type", &request.event_type).map_err(invalid)?;
    if request.schema_version < 0 {
        return Err(invalid(FieldError::new("schema_version", "must not be negative")));
    }
    let known = deps.event_type(caller.tenant, &name).await?;
    let latest = known.event_type().latest_schema;
    let version = if request.schema_version == 0 { latest } else { request.schema_version };
    let Some(CompiledSchema { schema, .. }) = deps.schema(caller.tenant, &known, version).await? else {
        // No schema is registered, so any data may be published.
        return Ok(ValidateEventResponse { valid: true, ..Default::default() });
    };
    // Away from the reactor: a large payload takes a while.
    let data = request.data;
    let checked = long_work::run(caller.tenant, move || schema.validate(&data)).await;
    let checked = checked.ok_or_else(|| ApiError::internal("check data against a schema", "it panicked"))?;
    let violations = checked.err().unwrap_or_default();
    Ok(ValidateEventResponse {
        valid: violations.is_empty(),
        violations: violations.into_iter().take(VIOLATIONS_MAX).map(violation_to_proto).collect(),
        schema_version: version,
    })
}
