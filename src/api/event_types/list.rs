//! ListEventTypes: system types first, then the tenant's own, each by name.

use crate::api::registry::{RegistryDeps, authorised, invalid, wrong_page};
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::domain::event_type::Origin;
use crate::proto::public::{EventType, ListEventTypesRequest, ListEventTypesResponse};
use crate::store::event_types::Deleted;
use crate::wire::event_type::{parse_origin, to_proto};
use crate::wire::page::{PageScope, cut, page_size};
use tonic::Request;

/// What a page token's place starts with where it names the last system type, and where the last of the tenant's own.
const AFTER_SYSTEM: char = 's';
const AFTER_CUSTOM: char = 'c';

pub(super) async fn handle(
    deps: &RegistryDeps,
    request: Request<ListEventTypesRequest>,
) -> Result<ListEventTypesResponse, ApiError> {
    let (caller, request) = authorised(request, Role::Viewer)?;
    let size = page_size("page_size", request.page_size, 100, 1_000).map_err(invalid)?;
    let origin = parse_origin("origin", request.origin).map_err(invalid)?;
    let scope = PageScope::new("ListEventTypes", caller.tenant)
        .with(request.origin.to_be_bytes())
        .with([u8::from(request.show_deleted)]);
    let place = deps.page_tokens.open_text(&scope, &request.page_token).map_err(wrong_page)?.unwrap_or_default();
    let after_custom = place.strip_prefix(AFTER_CUSTOM);
    let after_system = place.strip_prefix(AFTER_SYSTEM).unwrap_or_default();

    // One more than the page holds says whether another follows.
    let wanted = size as usize + 1;
    let mut page: Vec<EventType> = Vec::new();
    if origin != Some(Origin::Custom) && after_custom.is_none() {
        let system = deps.catalogue.iter().map(|system| &system.event_type);
        let system = system.filter(|event_type| event_type.name.as_str() > after_system);
        page.extend(system.take(wanted).map(|event_type| to_proto(event_type, None)));
    }
    if origin != Some(Origin::System) && page.len() < wanted {
        let room = u32::try_from(wanted - page.len()).unwrap_or(size);
        let deleted = if request.show_deleted { Deleted::Show } else { Deleted::Hide };
        let own = deps.store.event_types(caller.tenant, after_custom, deleted, room).await?;
        page.extend(own.iter().map(|record| to_proto(&record.event_type, Some(record.registry_version))));
    }
    let mut response = ListEventTypesResponse::default();
    if cut(&mut page, size)
        && let Some(last) = page.last()
    {
        let system = deps.catalogue.get(&last.name).is_some();
        let kind = if system { AFTER_SYSTEM } else { AFTER_CUSTOM };
        response.next_page_token = deps.page_tokens.seal_text(&scope, &format!("{kind}{}", last.name));
    }
    response.event_types = page;
    Ok(response)
}
