//! AdminService: tenants, apps, API keys, publisher identities and the audit record, for operators on the internal port.
//!
//! Handlers live in one file per kind of resource. Every change is recorded with the operator's certificate name.

mod api_keys;
mod apps;
mod audit;
mod publisher_identities;
mod tenants;

use super::auth::{self, ApiKeys, Certificates};
use super::status::ApiError;
use crate::domain::quotas::Limits;
use crate::feed::Feed;
use crate::proto::internal as proto;
use crate::proto::internal::admin_service_server::AdminService as Service;
use crate::store::Store;
use crate::store::secrets::Keyring;
use crate::store::tenants::Tenant;
use crate::wire;
use crate::wire::page::PageTokens;
use tonic::{Request, Response, Status};

/// What handlers work with. Cheap to clone.
#[derive(Clone)]
pub struct AdminDeps {
    /// The store.
    pub store: Store,
    /// Seals page tokens.
    pub page_tokens: PageTokens,
    /// Forgets a revoked key at once.
    pub api_keys: ApiKeys,
    /// Forgets a removed publisher at once.
    pub certificates: Certificates,
    /// Seals answers that show a secret.
    pub keyring: Keyring,
    /// The quotas of a tenant of which nothing else is set.
    pub limits: Limits,
    /// Tells this process of changes.
    pub feed: Feed,
}

/// The service.
#[derive(Clone)]
pub struct AdminService {
    deps: AdminDeps,
}

impl AdminService {
    /// Takes what its handlers work with.
    pub fn new(deps: AdminDeps) -> Self {
        Self { deps }
    }
}

/// The operator's name and the message; permission comes before everything else.
fn authorised<T>(request: Request<T>) -> Result<(String, T), ApiError> {
    let actor = auth::operator(&request)?.subject.clone();
    Ok((actor, request.into_inner()))
}

impl AdminDeps {
    async fn tenant(&self, slug: String) -> Result<Tenant, ApiError> {
        let slug = wire::slug("tenant", slug)?;
        self.store.tenant_by_slug(&slug).await?.ok_or(ApiError::TenantNotFound { tenant: slug })
    }
}

#[tonic::async_trait]
impl Service for AdminService {
    async fn create_tenant(
        &self,
        request: Request<proto::CreateTenantRequest>,
    ) -> Result<Response<proto::CreateTenantResponse>, Status> {
        Ok(Response::new(tenants::create(&self.deps, request).await?))
    }

    async fn get_tenant(
        &self,
        request: Request<proto::GetTenantRequest>,
    ) -> Result<Response<proto::GetTenantResponse>, Status> {
        Ok(Response::new(tenants::get(&self.deps, request).await?))
    }

    async fn update_tenant(
        &self,
        request: Request<proto::UpdateTenantRequest>,
    ) -> Result<Response<proto::UpdateTenantResponse>, Status> {
        Ok(Response::new(tenants::update(&self.deps, request).await?))
    }

    async fn list_tenants(
        &self,
        request: Request<proto::ListTenantsRequest>,
    ) -> Result<Response<proto::ListTenantsResponse>, Status> {
        Ok(Response::new(tenants::list(&self.deps, request).await?))
    }

    async fn create_app(
        &self,
        request: Request<proto::CreateAppRequest>,
    ) -> Result<Response<proto::CreateAppResponse>, Status> {
        Ok(Response::new(apps::create(&self.deps, request).await?))
    }

    async fn list_apps(
        &self,
        request: Request<proto::ListAppsRequest>,
    ) -> Result<Response<proto::ListAppsResponse>, Status> {
        Ok(Response::new(apps::list(&self.deps, request).await?))
    }

    async fn delete_app(
        &self,
        request: Request<proto::DeleteAppRequest>,
    ) -> Result<Response<proto::DeleteAppResponse>, Status> {
        Ok(Response::new(apps::delete(&self.deps, request).await?))
    }

    async fn create_api_key(
        &self,
        request: Request<proto::CreateApiKeyRequest>,
    ) -> Result<Response<proto::CreateApiKeyResponse>, Status> {
        Ok(Response::new(api_keys::create(&self.deps, request).await?))
    }

    async fn list_api_keys(
        &self,
        request: Request<proto::ListApiKeysRequest>,
    ) -> Result<Response<proto::ListApiKeysResponse>, Status> {
        Ok(Response::new(api_keys::list(&self.deps, request).await?))
    }

    async fn revoke_api_key(
        &self,
        request: Request<proto::RevokeApiKeyRequest>,
    ) -> Result<Response<proto::RevokeApiKeyResponse>, Status> {
        Ok(Response::new(api_keys::revoke(&self.deps, request).await?))
    }

    async fn create_publisher_identity(
        &self,
        request: Request<proto::CreatePublisherIdentityRequest>,
    ) -> Result<Response<proto::CreatePublisherIdentityResponse>, Status> {
        Ok(Response::new(publisher_identities::create(&self.deps, request).await?))
    }

    async fn list_publisher_identities(
        &self,
        request: Request<proto::ListPublisherIdentitiesRequest>,
    ) -> Result<Response<proto::ListPublisherIdentitiesResponse>, Status> {
        Ok(Response::new(publisher_identities::list(&self.deps, request).await?))
    }

    async fn delete_publisher_identity(
        &self,
        request: Request<proto::DeletePublisherIdentityRequest>,
    ) -> Result<Response<proto::DeletePublisherIdentityResponse>, Status> {
        Ok(Response::new(publisher_identities::delete(&self.deps, request).await?))
    }

    async fn list_audit_records(
        &self,
        request: Request<proto::ListAuditRecordsRequest>,
    ) -> Result<Response<proto::ListAuditRecordsResponse>, Status> {
        Ok(Response::new(audit::list(&self.deps, request).await?))
    }
}
