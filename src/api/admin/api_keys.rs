//! CreateApiKey, ListApiKeys, RevokeApiKey. A secret is shown once, when it is made.

use super::{AdminDeps, authorised};
use crate::api::auth::new_secret;
use crate::api::repeat::Repeat;
use crate::api::status::ApiError;
use crate::domain::ids::{ApiKeyId, AppId};
use crate::proto::internal as proto;
use crate::store::api_keys::{ApiKey, NewApiKey};
use crate::store::request_ids::Once;
use crate::wire;
use crate::wire::admin::{parse_role, role_to_proto};
use crate::wire::page::{PageScope, PageTokenError, cut, page_size};
use crate::wire::time::{parse_timestamp, timestamp_to_proto};
use secrecy::ExposeSecret as _;
use std::collections::HashMap;
use std::sync::Arc;
use tonic::Request;
use uuid::Uuid;

pub(super) async fn create(
    deps: &AdminDeps,
    request: Request<proto::CreateApiKeyRequest>,
) -> Result<proto::CreateApiKeyResponse, ApiError> {
    let (actor, mut request) = authorised(request)?;
    let request_id = std::mem::take(&mut request.request_id);
    let role = parse_role("role", request.role)?;
    let display_name = wire::display_name("display_name", request.display_name.clone())?;
    let expires_at = request.expire_time.map(|time| parse_timestamp("expire_time", &time)).transpose()?;
    let app_slug = if request.app.is_empty() { None } else { Some(wire::slug("app", request.app.clone())?) };
    let tenant = deps.tenant(request.tenant.clone()).await?;
    // The answer shows the secret.
    let repeat = Repeat::of(tenant.id, "CreateApiKey", &request_id, &request)?.sealed(&deps.keyring);
    if let Some(answer) = repeat.first(&deps.store).await? {
        return Ok(answer);
    }
    if expires_at.is_some_and(|at| at <= deps.store.now()) {
        return Err(ApiError::field("expire_time", "must be in the future"));
    }
    let app = match &app_slug {
        None => None,
        Some(slug) => {
            let app = deps.store.app_by_slug(tenant.id, slug).await?;
            Some(app.ok_or_else(|| ApiError::AppNotFound { app: slug.clone() })?.id)
        }
    };
    let (secret, secret_hash) = new_secret();
    let new = NewApiKey { tenant: tenant.id, app, role, display_name, expires_at, secret_hash };
    let secret = Arc::new(secret);
    let answer = move |key: &ApiKey| proto::CreateApiKeyResponse {
        secret: secret.token(key.id).expose_secret().to_owned(),
        api_key: Some(to_proto(key.clone(), &tenant.slug, app_slug.unwrap_or_default())),
    };
    let made = deps.store.create_api_key(actor, new, repeat.keeping(answer.clone())).await?;
    if let Once::Made(key) = &made {
        // Somebody may have asked for this id before it existed.
        deps.api_keys.forget(key.id).await;
    }
    repeat.answer(made, answer)
}

pub(super) async fn list(
    deps: &AdminDeps,
    request: Request<proto::ListApiKeysRequest>,
) -> Result<proto::ListApiKeysResponse, ApiError> {
    let (_, request) = authorised(request)?;
    let size = page_size("page_size", request.page_size, 50, 1_000)?;
    let tenant = deps.tenant(request.tenant).await?;
    let scope = PageScope::new("ListApiKeys", tenant.id);
    let place = deps.page_tokens.open(&scope, &request.page_token)?;
    let before = place.map(|bytes| Uuid::from_slice(&bytes).map_err(|_| PageTokenError)).transpose()?;
    let mut page = deps.store.api_keys(tenant.id, before, size + 1).await?;
    let more = cut(&mut page, size);
    let last = page.last().filter(|_| more);
    let next_page_token = last.map(|last| deps.page_tokens.seal(&scope, last.id.0.as_bytes())).unwrap_or_default();
    let mut slugs = HashMap::new();
    let mut api_keys = Vec::with_capacity(page.len());
    for key in page {
        let app = app_slug(deps, &key, &mut slugs).await?;
        api_keys.push(to_proto(key, &tenant.slug, app));
    }
    Ok(proto::ListApiKeysResponse { api_keys, next_page_token })
}

pub(super) async fn revoke(
    deps: &AdminDeps,
    request: Request<proto::RevokeApiKeyRequest>,
) -> Result<proto::RevokeApiKeyResponse, ApiError> {
    let (actor, mut request) = authorised(request)?;
    let request_id = std::mem::take(&mut request.request_id);
    let id = ApiKeyId::parse(&request.api_key_id).map_err(|error| ApiError::field("api_key_id", error.to_string()))?;
    let tenant = deps.tenant(request.tenant.clone()).await?;
    let repeat = Repeat::of(tenant.id, "RevokeApiKey", &request_id, &request)?;
    // Of which app it is is asked before: a key never changes that, and the answer is kept with the change.
    let app = match deps.store.api_key_and_hash(id).await? {
        Some((key, _)) if key.tenant == tenant.id => app_slug(deps, &key, &mut HashMap::new()).await?,
        _ => String::new(),
    };
    let answer =
        move |key: &ApiKey| proto::RevokeApiKeyResponse { api_key: Some(to_proto(key.clone(), &tenant.slug, app)) };
    let revoked = deps.store.revoke_api_key(actor, tenant.id, id, repeat.keeping(answer.clone())).await?;
    let revoked = revoked.ok_or(ApiError::ApiKeyNotFound { api_key: request.api_key_id })?;
    deps.api_keys.forget(id).await;
    repeat.answer(revoked, answer)
}

/// Slug of the app that a key is limited to; empty for none, and for an app that was deleted, with which the key can do nothing.
async fn app_slug(deps: &AdminDeps, key: &ApiKey, known: &mut HashMap<AppId, String>) -> Result<String, ApiError> {
    let Some(id) = key.app else { return Ok(String::new()) };
    if let Some(slug) = known.get(&id) {
        return Ok(slug.clone());
    }
    let slug = deps.store.app(key.tenant, id).await?.map(|app| app.slug).unwrap_or_default();
    known.insert(id, slug.clone());
    Ok(slug)
}

fn to_proto(key: ApiKey, tenant: &str, app: String) -> proto::ApiKey {
    proto::ApiKey {
        id: key.id.to_string(),
        tenant: tenant.to_owned(),
        app,
        role: role_to_proto(key.role).into(),
        display_name: key.display_name,
        create_time: Some(timestamp_to_proto(key.created_at)),
        expire_time: key.expires_at.map(timestamp_to_proto),
        revoke_time: key.revoked_at.map(timestamp_to_proto),
    }
}
