//! CheckCompatibility: what a schema would break, without registering it.

use super::{check_schema, compare_schemas};
use crate::api::registry::{RegistryDeps, authorised, invalid};
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::domain::schema::compatibility::Compatibility;
use crate::proto::public::{CheckCompatibilityRequest, CheckCompatibilityResponse};
use crate::wire::FieldError;
use crate::wire::event_type::{break_to_proto, compatibility_to_proto, parse_compatibility, parse_name};
use tonic::Request;

pub(super) async fn handle(
    deps: &RegistryDeps,
    request: Request<CheckCompatibilityRequest>,
) -> Result<CheckCompatibilityResponse, ApiError> {
    let (caller, request) = authorised(request, Role::Viewer)?;
    let name = parse_name("event_type", &request.event_type).map_err(invalid)?;
    if request.schema.is_empty() {
        return Err(invalid(FieldError::new("schema", "is required")));
    }
    let asked = parse_compatibility("mode", request.mode).map_err(invalid)?;
    if request.schema_version < 0 {
        return Err(invalid(FieldError::new("schema_version", "must not be negative")));
    }
    let known = deps.event_type(caller.tenant, &name).await?;
    let own = match known.event_type().compatibility {
        Compatibility::None => Compatibility::Full,
        own => own,
    };
    let mode = asked.unwrap_or(own);
    let latest = known.event_type().latest_schema;
    let version = if request.schema_version == 0 { latest } else { request.schema_version };
    check_schema(caller.tenant, "schema", &request.schema).await?;
    if version > latest {
        return Err(ApiError::SchemaVersionNotFound { event_type: name.as_str().to_owned(), version });
    }
    let found = match version {
        0 => Vec::new(),
        _ => compare_schemas(deps, caller.tenant, &name, version, &request.schema, mode).await?,
    };
    let breaks = found.iter().map(|one| one.message.clone()).collect();
    Ok(CheckCompatibilityResponse {
        compatible: found.is_empty(),
        breaks,
        violations: found.into_iter().map(break_to_proto).collect(),
        mode: compatibility_to_proto(mode).into(),
        schema_version: version,
    })
}
