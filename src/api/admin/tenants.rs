//! CreateTenant, GetTenant, ListTenants.

use super::{AdminDeps, authorised};
use crate::api::status::ApiError;
use crate::domain::ids::TenantId;
use crate::proto::internal as proto;
use crate::store::tenants::Tenant;
use crate::wire;
use crate::wire::page::{PageScope, cut, page_size};
use crate::wire::time::timestamp_to_proto;
use tonic::Request;
use uuid::Uuid;

pub(super) async fn create(
    deps: &AdminDeps,
    request: Request<proto::CreateTenantRequest>,
) -> Result<proto::CreateTenantResponse, ApiError> {
    let (actor, request) = authorised(request)?;
    let slug = wire::slug("slug", request.slug)?;
    let display_name = display_name(request.display_name, &slug)?;
    let tenant = deps.store.create_tenant(actor, slug.clone(), display_name).await?;
    let tenant = tenant.ok_or(ApiError::TenantExists { tenant: slug })?;
    Ok(proto::CreateTenantResponse { tenant: Some(to_proto(tenant)) })
}

pub(super) async fn get(
    deps: &AdminDeps,
    request: Request<proto::GetTenantRequest>,
) -> Result<proto::GetTenantResponse, ApiError> {
    let (_, request) = authorised(request)?;
    let tenant = deps.tenant(request.tenant).await?;
    Ok(proto::GetTenantResponse { tenant: Some(to_proto(tenant)) })
}

pub(super) async fn list(
    deps: &AdminDeps,
    request: Request<proto::ListTenantsRequest>,
) -> Result<proto::ListTenantsResponse, ApiError> {
    let (_, request) = authorised(request)?;
    let size = page_size("page_size", request.page_size, 50, 1_000)?;
    // This list belongs to no tenant.
    let scope = PageScope::new("ListTenants", TenantId(Uuid::nil()));
    let after = deps.page_tokens.open_text(&scope, &request.page_token)?;
    let mut page = deps.store.tenants(after.as_deref(), size + 1).await?;
    let more = cut(&mut page, size);
    let last = page.last().filter(|_| more);
    Ok(proto::ListTenantsResponse {
        next_page_token: last.map(|last| deps.page_tokens.seal_text(&scope, &last.slug)).unwrap_or_default(),
        tenants: page.into_iter().map(to_proto).collect(),
    })
}

/// The name for people; the slug where none is given.
pub(super) fn display_name(given: String, slug: &str) -> Result<String, ApiError> {
    let given = wire::text("display_name", given, 128)?;
    Ok(if given.is_empty() { slug.to_owned() } else { given })
}

fn to_proto(tenant: Tenant) -> proto::Tenant {
    proto::Tenant {
        id: tenant.id.to_string(),
        slug: tenant.slug,
        display_name: tenant.display_name,
        create_time: Some(timestamp_to_proto(tenant.created_at)),
    }
}
