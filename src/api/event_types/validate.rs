//! ValidateEvent: checks data as Publish does, against a schema version, without publishing anything.

use crate::api::registry::{RegistryDeps, authorised, invalid};
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::domain::event_type::CompiledSchema;
use crate::domain::json::check_json;
use crate::domain::schema::Violation;
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
    // As Publish answers, where the attributes count besides.
    let limit_bytes = deps.registry.tenant(caller.tenant).await?.event_bytes_max();
    if request.data.len() > limit_bytes {
        return Err(ApiError::EventTooLarge { field: "data".to_owned(), limit_bytes });
    }
    let known = deps.event_type(caller.tenant, &name).await?;
    let latest = known.event_type().latest_schema;
    let version = if request.schema_version == 0 { latest } else { request.schema_version };
    let compiled = deps.schema(caller.tenant, &known, version).await?;
    // Away from the reactor: a large payload takes a while.
    let data = request.data;
    let checked = long_work::run(caller.tenant, move || check(compiled.as_ref(), &data)).await;
    let checked = checked.ok_or_else(|| ApiError::internal("check data against a schema", "it panicked"))?;
    let violations = checked.err().unwrap_or_default();
    Ok(ValidateEventResponse {
        valid: violations.is_empty(),
        violations: violations.into_iter().take(VIOLATIONS_MAX).map(violation_to_proto).collect(),
        schema_version: version,
    })
}

/// Without a schema any JSON may be published, and no data at all.
fn check(compiled: Option<&CompiledSchema>, data: &[u8]) -> Result<(), Vec<Violation>> {
    match compiled {
        Some(compiled) => compiled.schema.validate(data),
        None if data.is_empty() => Ok(()),
        None => check_json(data).map_err(|error| {
            let message = error.told();
            vec![Violation { data_pointer: String::new(), schema_pointer: String::new(), message }]
        }),
    }
}
