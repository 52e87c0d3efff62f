//! EventTypeService: the catalogue. One RPC per file; the service only forwards.

mod add_schema;
mod check_compatibility;
mod create;
mod delete;
mod get;
mod list;
mod list_schemas;
mod undelete;
mod update;
mod validate;

use super::registry::RegistryDeps;
use super::status::ApiError;
use crate::domain::event_type::EventTypeName;
use crate::domain::ids::TenantId;
use crate::domain::schema::Schema;
use crate::domain::schema::compatibility::{Break, Compatibility, compare};
use crate::long_work;
use crate::proto::public as proto;
use crate::proto::public::event_type_service_server::EventTypeService as Service;
use crate::store::StoreError;
use crate::wire::event_type::SCHEMA_BYTES_MAX;
use tonic::{Request, Response, Status};

/// The service.
#[derive(Clone)]
pub struct EventTypeService {
    deps: RegistryDeps,
}

impl EventTypeService {
    /// Takes what its handlers work with.
    pub fn new(deps: RegistryDeps) -> Self {
        Self { deps }
    }
}

#[tonic::async_trait]
impl Service for EventTypeService {
    async fn create_event_type(
        &self,
        request: Request<proto::CreateEventTypeRequest>,
    ) -> Result<Response<proto::CreateEventTypeResponse>, Status> {
        Ok(Response::new(create::handle(&self.deps, request).await?))
    }

    async fn get_event_type(
        &self,
        request: Request<proto::GetEventTypeRequest>,
    ) -> Result<Response<proto::GetEventTypeResponse>, Status> {
        Ok(Response::new(get::handle(&self.deps, request).await?))
    }

    async fn list_event_types(
        &self,
        request: Request<proto::ListEventTypesRequest>,
    ) -> Result<Response<proto::ListEventTypesResponse>, Status> {
        Ok(Response::new(list::handle(&self.deps, request).await?))
    }

    async fn update_event_type(
        &self,
        request: Request<proto::UpdateEventTypeRequest>,
    ) -> Result<Response<proto::UpdateEventTypeResponse>, Status> {
        Ok(Response::new(update::handle(&self.deps, request).await?))
    }

    async fn delete_event_type(
        &self,
        request: Request<proto::DeleteEventTypeRequest>,
    ) -> Result<Response<proto::DeleteEventTypeResponse>, Status> {
        Ok(Response::new(delete::handle(&self.deps, request).await?))
    }

    async fn undelete_event_type(
        &self,
        request: Request<proto::UndeleteEventTypeRequest>,
    ) -> Result<Response<proto::UndeleteEventTypeResponse>, Status> {
        Ok(Response::new(undelete::handle(&self.deps, request).await?))
    }

    async fn add_event_type_schema(
        &self,
        request: Request<proto::AddEventTypeSchemaRequest>,
    ) -> Result<Response<proto::AddEventTypeSchemaResponse>, Status> {
        Ok(Response::new(add_schema::handle(&self.deps, request).await?))
    }

    async fn list_event_type_schemas(
        &self,
        request: Request<proto::ListEventTypeSchemasRequest>,
    ) -> Result<Response<proto::ListEventTypeSchemasResponse>, Status> {
        Ok(Response::new(list_schemas::handle(&self.deps, request).await?))
    }

    async fn check_compatibility(
        &self,
        request: Request<proto::CheckCompatibilityRequest>,
    ) -> Result<Response<proto::CheckCompatibilityResponse>, Status> {
        Ok(Response::new(check_compatibility::handle(&self.deps, request).await?))
    }

    async fn validate_event(
        &self,
        request: Request<proto::ValidateEventRequest>,
    ) -> Result<Response<proto::ValidateEventResponse>, Status> {
        Ok(Response::new(validate::handle(&self.deps, request).await?))
    }
}

/// Compiles a schema document away from the reactor: a large one takes a while. Errors: SCHEMA_INVALID.
async fn check_schema(tenant: TenantId, field: &str, document: &str) -> Result<(), ApiError> {
    let invalid =
        |pointer: String, message: String| ApiError::SchemaInvalid { field: field.to_owned(), pointer, message };
    if document.len() > SCHEMA_BYTES_MAX {
        return Err(invalid(String::new(), "is larger than 256 KiB".to_owned()));
    }
    let document = document.to_owned();
    let compiled = long_work::run(tenant, move || Schema::parse(&document).map(drop)).await;
    match compiled {
        Some(Ok(())) => Ok(()),
        Some(Err(error)) => Err(invalid(error.pointer, error.message)),
        None => Err(ApiError::internal("compile a schema", "it panicked")),
    }
}

/// What a schema breaks of a registered version, away from the reactor. Errors: SCHEMA_VERSION_NOT_FOUND.
async fn compare_schemas(
    deps: &RegistryDeps,
    tenant: TenantId,
    name: &EventTypeName,
    version: i32,
    document: &str,
    mode: Compatibility,
) -> Result<Vec<Break>, ApiError> {
    if mode == Compatibility::None {
        return Ok(Vec::new());
    }
    let missing = || ApiError::SchemaVersionNotFound { event_type: name.as_str().to_owned(), version };
    let previous = match deps.catalogue.get(name.as_str()) {
        Some(system) => system.schema.as_ref().map(|(schema, _)| schema).filter(|one| one.version == version).cloned(),
        None => deps.store.schema(tenant, name, version).await?,
    };
    let previous = previous.ok_or_else(missing)?.document;
    let document = document.to_owned();
    let compared = long_work::run(tenant, move || compare(&previous, &document, mode)).await;
    let compared = compared.ok_or_else(|| ApiError::internal("compare schemas", "it panicked"))?;
    // Both compiled, so what cannot be compared at all is a fault of what is stored.
    Ok(compared.map_err(|_| StoreError::Corrupt { what: "schema" })?)
}
