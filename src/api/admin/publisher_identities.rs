//! CreatePublisherIdentity, ListPublisherIdentities, DeletePublisherIdentity.

use super::{AdminDeps, authorised};
use crate::api::repeat::Repeat;
use crate::api::status::ApiError;
use crate::domain::ids::PublisherIdentityId;
use crate::proto::internal as proto;
use crate::store::publisher_identities::PublisherIdentity;
use crate::wire::admin::{parse_event_types, parse_subject};
use crate::wire::page::{PageScope, cut, page_size};
use crate::wire::time::timestamp_to_proto;
use tonic::Request;

pub(super) async fn create(
    deps: &AdminDeps,
    request: Request<proto::CreatePublisherIdentityRequest>,
) -> Result<proto::CreatePublisherIdentityResponse, ApiError> {
    let (actor, mut request) = authorised(request)?;
    let request_id = std::mem::take(&mut request.request_id);
    let subject = parse_subject("subject", request.subject.clone())?;
    let event_types = parse_event_types("event_types", &request.event_types)?;
    let tenant = deps.tenant(request.tenant.clone()).await?;
    let repeat = Repeat::of(tenant.id, "CreatePublisherIdentity", &request_id, &request)?;
    let answer = move |identity: &PublisherIdentity| proto::CreatePublisherIdentityResponse {
        publisher_identity: Some(to_proto(identity.clone(), &tenant.slug)),
    };
    let kept = repeat.keeping(answer.clone());
    let made = deps.store.create_publisher_identity(actor, tenant.id, subject.clone(), event_types, kept).await?;
    let made = made.ok_or(ApiError::PublisherIdentityExists { subject })?;
    deps.certificates.forget();
    repeat.answer(made, answer)
}

pub(super) async fn list(
    deps: &AdminDeps,
    request: Request<proto::ListPublisherIdentitiesRequest>,
) -> Result<proto::ListPublisherIdentitiesResponse, ApiError> {
    let (_, request) = authorised(request)?;
    let size = page_size("page_size", request.page_size, 50, 1_000)?;
    let tenant = deps.tenant(request.tenant).await?;
    let scope = PageScope::new("ListPublisherIdentities", tenant.id);
    let after = deps.page_tokens.open_text(&scope, &request.page_token)?;
    let mut page = deps.store.publisher_identities(tenant.id, after.as_deref(), size + 1).await?;
    let more = cut(&mut page, size);
    let last = page.last().filter(|_| more);
    let next_page_token = last.map(|last| deps.page_tokens.seal_text(&scope, &last.publisher.subject));
    Ok(proto::ListPublisherIdentitiesResponse {
        next_page_token: next_page_token.unwrap_or_default(),
        publisher_identities: page.into_iter().map(|identity| to_proto(identity, &tenant.slug)).collect(),
    })
}

pub(super) async fn delete(
    deps: &AdminDeps,
    request: Request<proto::DeletePublisherIdentityRequest>,
) -> Result<proto::DeletePublisherIdentityResponse, ApiError> {
    let (actor, mut request) = authorised(request)?;
    let request_id = std::mem::take(&mut request.request_id);
    let id = PublisherIdentityId::parse(&request.publisher_identity_id)
        .map_err(|error| ApiError::field("publisher_identity_id", error.to_string()))?;
    let tenant = deps.tenant(request.tenant.clone()).await?;
    let repeat = Repeat::of(tenant.id, "DeletePublisherIdentity", &request_id, &request)?;
    let answer = |(): &()| proto::DeletePublisherIdentityResponse {};
    let done = deps.store.delete_publisher_identity(actor, tenant.id, id, repeat.keeping(answer)).await?;
    let absent = ApiError::PublisherIdentityNotFound { publisher_identity: request.publisher_identity_id };
    let done = done.ok_or(absent)?;
    deps.certificates.forget();
    repeat.answer(done, answer)
}

fn to_proto(identity: PublisherIdentity, tenant: &str) -> proto::PublisherIdentity {
    let publisher = identity.publisher;
    proto::PublisherIdentity {
        id: publisher.id.to_string(),
        tenant: tenant.to_owned(),
        subject: publisher.subject,
        event_types: publisher.event_types.iter().map(ToString::to_string).collect(),
        create_time: Some(timestamp_to_proto(identity.created_at)),
    }
}
