//! One parsed event on its way: to the writer, to its listeners first, or to wait for its time.

use super::errors::{pending_to_api_error, to_api_error};
use super::parse::Parsed;
use super::{Answers, PublishApi};
use crate::api::status::ApiError;
use crate::domain::ids::TenantId;
use crate::pending::{Answer, PendingError};
use crate::proto::internal::PublishResponse;
use crate::publish::PublishError;
use crate::publish::prepare::prepare;
use crate::store::publish::NewKey;
use tokio::time::Instant;

/// How often an event is prepared again because its listeners changed meanwhile.
const ROUNDS_MAX: u32 = 100;

/// Publishes one event that is not part of a commit of several. `until` is when the caller stops waiting, `path` leads to the event.
pub(super) async fn accept(
    answers: &Answers<'_>,
    parsed: Parsed,
    until: Option<Instant>,
    path: &str,
) -> Result<PublishResponse, ApiError> {
    let Answers { api, registry, .. } = answers;
    let tenant = registry.tenant();
    let Parsed { mut event, schema_version, key, deliver_at, pre_timeout } = parsed;
    let limit = registry.event_bytes_max();
    for _ in 0..ROUNDS_MAX {
        let prepared = prepare(api.writer.registry(), registry, event, schema_version, key.clone(), limit).await;
        let prepared = match prepared {
            Ok(prepared) => prepared,
            Err(refusal) => {
                // The catalogue may have changed since the first call, whose answer stands.
                return match first_answer(api, tenant, key.as_ref(), path).await? {
                    Some(answer) => Ok(answers.decided(&answer).await),
                    None => Err(to_api_error(refusal, path)),
                };
            }
        };
        // For the next round, should there be one.
        event = prepared.event.clone();
        // Boxed, so that the many calls that neither wait nor are gated do not carry the room for it.
        let outcome = if let Some(at) = deliver_at {
            Box::pin(api.pending.schedule(tenant, prepared, at, pre_timeout)).await
        } else if prepared.is_gated() {
            Box::pin(api.pending.publish(tenant, prepared, pre_timeout, until)).await
        } else {
            match api.writer.write(tenant, vec![prepared]).await {
                Ok(published) => {
                    let mut first = answers.published(&published).await;
                    return first.pop().ok_or(ApiError::ServerDraining);
                }
                // The first event of the key may be one that never came to be, or not yet.
                Err(PublishError::KeyReused) => {
                    return match first_answer(api, tenant, key.as_ref(), path).await? {
                        Some(answer) => Ok(answers.decided(&answer).await),
                        None => Err(to_api_error(PublishError::KeyReused, path)),
                    };
                }
                Err(error) => Err(error.into()),
            }
        };
        match outcome {
            Ok(answer) => return Ok(answers.decided(&answer).await),
            // It has got its first listener, or lost its last, or the match is old.
            Err(PendingError::Publish(PublishError::Gated | PublishError::Contended)) => {}
            Err(error) => return Err(pending_to_api_error(error, path)),
        }
    }
    Err(to_api_error(PublishError::Contended, path))
}

/// The first answer of a key, whatever became of its event; none where the key is new.
pub(super) async fn first_answer(
    api: &PublishApi,
    tenant: TenantId,
    key: Option<&NewKey>,
    path: &str,
) -> Result<Option<Answer>, ApiError> {
    let Some(key) = key else { return Ok(None) };
    api.pending.first_answer(tenant, key).await.map_err(|error| pending_to_api_error(error, path))
}
