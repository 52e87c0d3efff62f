//! Publish: one event.

use super::accept::accept;
use super::errors::pending_to_api_error;
use super::{Answers, PublishApi, admit, parse};
use crate::api::status::ApiError;
use crate::api::{auth, deadline};
use crate::proto::internal::{PublishRequest, PublishResponse};
use tonic::{Request, Response, Status};

pub(super) async fn handle(
    api: &PublishApi,
    request: Request<PublishRequest>,
) -> Result<Response<PublishResponse>, Status> {
    let publisher = auth::publisher(&request)?.clone();
    let until = deadline::of(&request);
    let parsed = parse::parse(request.into_inner(), &publisher, "", api.store.now())?;
    let registry = api.writer.registry().tenant(publisher.tenant).await.map_err(ApiError::from)?;
    let answers = Answers { api, registry: &registry, events: 1 };
    let answer = match admit(api, &registry, std::slice::from_ref(&parsed)).await {
        Ok(()) => accept(&answers, parsed, until, None).await,
        Err(error) => Box::pin(answers.first_of(parsed.key.as_ref(), error.into())).await,
    };
    Ok(Response::new(answer.map_err(|error| pending_to_api_error(error, "event"))?))
}
