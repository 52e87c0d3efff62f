//! CreateTenant, GetTenant, UpdateTenant, ListTenants.

use super::{AdminDeps, authorised};
use crate::api::repeat::Repeat;
use crate::api::status::ApiError;
use crate::domain::ids::TenantId;
use crate::domain::quotas::{Limits, Overrides};
use crate::feed::News;
use crate::proto::internal as proto;
use crate::store::tenants::{NO_TENANT, Tenant, TenantChange};
use crate::wire;
use crate::wire::admin::{parse_tenant_patch, quotas_to_proto};
use crate::wire::page::{PageScope, cut, page_size};
use crate::wire::time::timestamp_to_proto;
use tonic::Request;
use uuid::Uuid;

pub(super) async fn create(
    deps: &AdminDeps,
    request: Request<proto::CreateTenantRequest>,
) -> Result<proto::CreateTenantResponse, ApiError> {
    let (actor, mut request) = authorised(request)?;
    let request_id = std::mem::take(&mut request.request_id);
    let repeat = Repeat::of(NO_TENANT, "CreateTenant", &request_id, &request)?;
    let slug = wire::slug("slug", request.slug)?;
    let display_name = display_name("display_name", request.display_name, &slug)?;
    let limits = deps.limits;
    let answer = move |made: &Tenant| proto::CreateTenantResponse {
        tenant: Some(to_proto(made.clone(), &Overrides::default(), &limits)),
    };
    let made = deps.store.create_tenant(actor, slug.clone(), display_name, repeat.keeping(answer)).await?;
    repeat.answer(made.ok_or(ApiError::TenantExists { tenant: slug })?, answer)
}

pub(super) async fn update(
    deps: &AdminDeps,
    request: Request<proto::UpdateTenantRequest>,
) -> Result<proto::UpdateTenantResponse, ApiError> {
    let (actor, mut request) = authorised(request)?;
    let request_id = std::mem::take(&mut request.request_id);
    let sent = request.tenant.clone().ok_or_else(|| ApiError::field("tenant", "is required"))?;
    let patch = parse_tenant_patch(&sent, request.update_mask.as_ref())?;
    let slug = wire::slug("tenant.slug", sent.slug)?;
    let found = deps.store.tenant_by_slug(&slug).await?.ok_or(ApiError::TenantNotFound { tenant: slug.clone() })?;
    let repeat = Repeat::of(found.id, "UpdateTenant", &request_id, &request)?;
    let display_name = patch.display_name.map(|name| display_name("tenant.display_name", name, &slug)).transpose()?;
    let change = TenantChange { display_name, quotas: patch.quotas };
    let limits = deps.limits;
    let answer = move |(tenant, overrides): &(Tenant, Overrides)| proto::UpdateTenantResponse {
        tenant: Some(to_proto(tenant.clone(), overrides, &limits)),
    };
    let changed = deps.store.update_tenant(actor, found.id, change, repeat.keeping(answer)).await?;
    // Only a hint: a head that cannot be read now is noticed by the poll.
    if let Ok(Some(head)) = deps.store.head(found.id).await {
        deps.feed.send(&News::Head(head.head()));
    }
    repeat.answer(changed.ok_or(ApiError::TenantNotFound { tenant: slug })?, answer)
}

pub(super) async fn get(
    deps: &AdminDeps,
    request: Request<proto::GetTenantRequest>,
) -> Result<proto::GetTenantResponse, ApiError> {
    let (_, request) = authorised(request)?;
    let tenant = deps.tenant(request.tenant).await?;
    let (overrides, _) = deps.store.quotas(tenant.id).await?;
    Ok(proto::GetTenantResponse { tenant: Some(to_proto(tenant, &overrides, &deps.limits)) })
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
    let next_page_token = last.map(|last| deps.page_tokens.seal_text(&scope, &last.slug)).unwrap_or_default();
    let mut tenants = Vec::with_capacity(page.len());
    let overrides = deps.store.all_quotas(&page.iter().map(|tenant| tenant.id).collect::<Vec<_>>()).await?;
    for tenant in page {
        let own = overrides.get(&tenant.id).copied().unwrap_or_default();
        tenants.push(to_proto(tenant, &own, &deps.limits));
    }
    Ok(proto::ListTenantsResponse { tenants, next_page_token })
}

/// The name for people; the slug where none is given.
pub(super) fn display_name(field: &str, given: String, slug: &str) -> Result<String, ApiError> {
    let given = wire::display_name(field, given)?;
    Ok(if given.is_empty() { slug.to_owned() } else { given })
}

fn to_proto(tenant: Tenant, overrides: &Overrides, limits: &Limits) -> proto::Tenant {
    let effective = limits.with(overrides);
    proto::Tenant {
        id: tenant.id.to_string(),
        slug: tenant.slug,
        display_name: tenant.display_name,
        create_time: Some(timestamp_to_proto(tenant.created_at)),
        quotas: Some(quotas_to_proto(|quota| overrides.get(quota))),
        effective_quotas: Some(quotas_to_proto(|quota| Some(effective.get(quota)))),
    }
}
