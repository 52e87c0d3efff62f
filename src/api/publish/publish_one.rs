//! Publish: one event.

use super::errors::to_api_error;
use super::{PublishApi, answer, parse, repeated};
use crate::api::auth;
use crate::api::status::ApiError;
use crate::proto::internal::{PublishRequest, PublishResponse};
use crate::publish::prepare::prepare;
use tonic::{Request, Response, Status};

pub(super) async fn handle(
    api: &PublishApi,
    request: Request<PublishRequest>,
) -> Result<Response<PublishResponse>, Status> {
    let publisher = auth::publisher(&request)?.clone();
    let parsed = parse::parse(request.into_inner(), &publisher, "")?;
    let registry = api.writer.registry().tenant(publisher.tenant).await.map_err(ApiError::from)?;
    let limit = api.writer.config().event_bytes_max;
    let key = parsed.key.clone();
    let prepared =
        prepare(api.writer.registry(), &registry, parsed.event, parsed.schema_version, parsed.key, limit).await;
    let prepared = match prepared {
        Ok(prepared) => prepared,
        Err(refusal) => {
            let keys: Vec<_> = key.into_iter().collect();
            return match repeated(api, publisher.tenant, &keys, &registry).await? {
                Some(mut answers) => Ok(Response::new(answers.pop().ok_or(ApiError::ServerDraining)?)),
                None => Err(to_api_error(refusal, "event").into()),
            };
        }
    };
    let published = api.writer.write(publisher.tenant, vec![prepared]).await;
    let published = published.map_err(|error| to_api_error(error, "event"))?;
    let first = published.first().ok_or(ApiError::ServerDraining)?;
    Ok(Response::new(answer(&registry, first)))
}
