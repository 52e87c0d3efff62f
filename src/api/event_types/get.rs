//! GetEventType: one event type with a page of its subscribers.

use crate::api::registry::{RegistryDeps, authorised, invalid, wrong_page};
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::domain::subscription::State;
use crate::proto::public::{GetEventTypeRequest, GetEventTypeResponse};
use crate::store::subscriptions::SubscriptionQuery;
use crate::wire::event_type::{parse_name, subscriber_to_proto, to_proto};
use crate::wire::page::{PageScope, cut, page_size};
use crate::wire::slug;
use tonic::Request;

pub(super) async fn handle(
    deps: &RegistryDeps,
    request: Request<GetEventTypeRequest>,
) -> Result<GetEventTypeResponse, ApiError> {
    let (caller, request) = authorised(request, Role::Viewer)?;
    let name = parse_name("name", &request.name).map_err(invalid)?;
    let size = page_size("page_size", request.page_size, 50, 1_000).map_err(invalid)?;
    let scope = PageScope::new("GetEventType", caller.tenant).with(name.as_str()).with(&request.app);
    let after = deps.page_tokens.open_number(&scope, &request.page_token).map_err(wrong_page)?;
    let after = i32::try_from(after.unwrap_or_default()).map_err(|_| ApiError::PageTokenInvalid)?;
    let known = deps.event_type(caller.tenant, &name).await?;
    let mut response = GetEventTypeResponse {
        event_type: Some(to_proto(known.event_type(), known.registry_version())),
        ..Default::default()
    };
    let mut query = SubscriptionQuery { app: caller.app, event_type: Some(name), states: vec![State::Active] };
    if !request.app.is_empty() {
        let app = slug("app", request.app).map_err(invalid)?;
        let found = deps.visible_app(&caller, &app).await?;
        query.app = Some(found.ok_or(ApiError::AppNotFound { app })?.id);
    }
    let mut page = deps.store.subscriptions(caller.tenant, &query, after, size + 1).await?;
    if cut(&mut page, size) {
        let last = page.last().map(|subscription| i64::from(subscription.no)).unwrap_or_default();
        response.next_page_token = deps.page_tokens.seal_number(&scope, last);
    }
    let total = deps.store.count_subscriptions(caller.tenant, &query).await?;
    response.total_subscribers = i32::try_from(total).unwrap_or(i32::MAX);
    response.subscribers = page.iter().map(subscriber_to_proto).collect();
    Ok(response)
}
