//! CreateApp, ListApps, DeleteApp.

use super::tenants::display_name;
use super::{AdminDeps, authorised};
use crate::api::repeat::Repeat;
use crate::api::status::ApiError;
use crate::proto::internal as proto;
use crate::store::apps::{App, AppRefusal};
use crate::store::audit::Principal;
use crate::wire;
use crate::wire::page::{PageScope, cut, page_size};
use crate::wire::time::timestamp_to_proto;
use tonic::Request;

pub(super) async fn create(
    deps: &AdminDeps,
    request: Request<proto::CreateAppRequest>,
) -> Result<proto::CreateAppResponse, ApiError> {
    let (actor, mut request) = authorised(request)?;
    let request_id = std::mem::take(&mut request.request_id);
    let slug = wire::slug("slug", request.slug.clone())?;
    let display_name = display_name("display_name", request.display_name.clone(), &slug)?;
    let tenant = deps.tenant(request.tenant.clone()).await?;
    let repeat = Repeat::of(tenant.id, "CreateApp", &request_id, &request)?;
    let by = Principal { tenant: tenant.id, app: None, name: actor };
    let answer = move |app: &App| proto::CreateAppResponse { app: Some(to_proto(app.clone(), &tenant.slug)) };
    let made = deps.store.create_app(by, slug.clone(), display_name, repeat.keeping(answer.clone())).await;
    repeat.answer(made.map_err(|refusal| error(refusal, slug))?, answer)
}

pub(super) async fn list(
    deps: &AdminDeps,
    request: Request<proto::ListAppsRequest>,
) -> Result<proto::ListAppsResponse, ApiError> {
    let (_, request) = authorised(request)?;
    let size = page_size("page_size", request.page_size, 50, 1_000)?;
    let tenant = deps.tenant(request.tenant).await?;
    let scope = PageScope::new("ListApps", tenant.id);
    let after = deps.page_tokens.open_text(&scope, &request.page_token)?;
    let mut page = deps.store.apps(tenant.id, after.as_deref(), size + 1).await?;
    let more = cut(&mut page, size);
    let last = page.last().filter(|_| more);
    Ok(proto::ListAppsResponse {
        next_page_token: last.map(|last| deps.page_tokens.seal_text(&scope, &last.slug)).unwrap_or_default(),
        apps: page.into_iter().map(|app| to_proto(app, &tenant.slug)).collect(),
    })
}

pub(super) async fn delete(
    deps: &AdminDeps,
    request: Request<proto::DeleteAppRequest>,
) -> Result<proto::DeleteAppResponse, ApiError> {
    let (actor, mut request) = authorised(request)?;
    let request_id = std::mem::take(&mut request.request_id);
    let slug = wire::slug("app", request.app.clone())?;
    let tenant = deps.tenant(request.tenant.clone()).await?;
    let repeat = Repeat::of(tenant.id, "DeleteApp", &request_id, &request)?;
    let by = Principal { tenant: tenant.id, app: None, name: actor };
    let answer = |(): &()| proto::DeleteAppResponse {};
    let done = deps.store.delete_app(by, slug.clone(), repeat.keeping(answer)).await;
    repeat.answer(done.map_err(|refusal| error(refusal, slug))?, answer)
}

fn error(refusal: AppRefusal, slug: String) -> ApiError {
    match refusal {
        AppRefusal::Exists => ApiError::AppExists { app: slug },
        AppRefusal::NotFound => ApiError::AppNotFound { app: slug },
        AppRefusal::NotEmpty => ApiError::ResourceState {
            kind: "carillon.dev/App",
            name: slug,
            message: "the app still owns subscriptions; unsubscribe them first".to_owned(),
        },
        AppRefusal::Store(error) => error.into(),
    }
}

fn to_proto(app: App, tenant: &str) -> proto::App {
    proto::App {
        id: app.id.to_string(),
        tenant: tenant.to_owned(),
        slug: app.slug,
        display_name: app.display_name,
        create_time: Some(timestamp_to_proto(app.created_at)),
    }
}
