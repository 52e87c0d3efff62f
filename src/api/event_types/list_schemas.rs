//! ListEventTypeSchemas: the schema versions of one event type, newest first.

use crate::api::registry::{Known, RegistryDeps, authorised, invalid, wrong_page};
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::domain::event_type::Origin;
use crate::proto::public::{ListEventTypeSchemasRequest, ListEventTypeSchemasResponse};
use crate::wire::event_type::{parse_name, schema_to_proto};
use crate::wire::page::{PageScope, cut, page_size};
use tonic::Request;

pub(super) async fn handle(
    deps: &RegistryDeps,
    request: Request<ListEventTypeSchemasRequest>,
) -> Result<ListEventTypeSchemasResponse, ApiError> {
    let (caller, request) = authorised(request, Role::Viewer)?;
    let name = parse_name("event_type", &request.event_type).map_err(invalid)?;
    let size = page_size("page_size", request.page_size, 20, 100).map_err(invalid)?;
    let scope = PageScope::new("ListEventTypeSchemas", caller.tenant).with(name.as_str());
    let before = deps.page_tokens.open_number(&scope, &request.page_token).map_err(wrong_page)?;
    let before = before.map(i32::try_from).transpose().map_err(|_| ApiError::PageTokenInvalid)?;
    if let Known::System(system) = deps.event_type(caller.tenant, &name).await? {
        // A system type has one version, so it is always the whole list.
        let schemas = system.schema.iter().map(|(version, _)| schema_to_proto(version, Origin::System));
        return Ok(ListEventTypeSchemasResponse { schemas: schemas.collect(), next_page_token: String::new() });
    }
    let mut page = deps.store.schemas(caller.tenant, &name, before, size + 1).await?;
    let mut response = ListEventTypeSchemasResponse::default();
    if cut(&mut page, size) {
        let last = page.last().map(|schema| i64::from(schema.version)).unwrap_or_default();
        response.next_page_token = deps.page_tokens.seal_number(&scope, last);
    }
    response.schemas = page.iter().map(|schema| schema_to_proto(schema, Origin::Custom)).collect();
    Ok(response)
}
