//! ListSubscriptions: a page of subscriptions, oldest first.

use crate::api::registry::{RegistryDeps, authorised, invalid, wrong_page};
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::proto::public::{ListSubscriptionsRequest, ListSubscriptionsResponse};
use crate::store::subscriptions::SubscriptionQuery;
use crate::wire::event_type::parse_name;
use crate::wire::page::{PageScope, cut, page_size};
use crate::wire::slug;
use crate::wire::subscription::{parse_states, state_name, to_proto_for};
use tonic::Request;

pub(crate) async fn handle(
    deps: &RegistryDeps,
    request: Request<ListSubscriptionsRequest>,
) -> Result<ListSubscriptionsResponse, ApiError> {
    let (caller, request) = authorised(request, Role::Viewer)?;
    let size = page_size("page_size", request.page_size, 50, 1_000).map_err(invalid)?;
    let states = parse_states("states", &request.states).map_err(invalid)?;
    let event_type = match request.event_type.as_str() {
        "" => None,
        name => Some(parse_name("event_type", name).map_err(invalid)?),
    };
    let mut names: Vec<&str> = states.iter().map(|state| state_name(*state)).collect();
    names.sort_unstable();
    let scope = PageScope::new("ListSubscriptions", caller.tenant)
        .with(&request.app)
        .with(&request.event_type)
        .with(names.join(","));
    let after = deps.page_tokens.open_number(&scope, &request.page_token).map_err(wrong_page)?;
    let after = i32::try_from(after.unwrap_or_default()).map_err(|_| ApiError::PageTokenInvalid)?;
    let mut query = SubscriptionQuery { app: caller.app, event_type, states };
    if !request.app.is_empty() {
        let app = slug("app", request.app).map_err(invalid)?;
        let found = deps.visible_app(&caller, &app).await?;
        query.app = Some(found.ok_or(ApiError::AppNotFound { app })?.id);
    }
    let mut page = deps.store.subscriptions(caller.tenant, &query, after, size + 1).await?;
    let mut response = ListSubscriptionsResponse::default();
    if cut(&mut page, size) {
        let last = page.last().map(|subscription| i64::from(subscription.no)).unwrap_or_default();
        response.next_page_token = deps.page_tokens.seal_number(&scope, last);
    }
    response.subscriptions = page.iter().map(|found| to_proto_for(caller.role, found)).collect();
    Ok(response)
}
