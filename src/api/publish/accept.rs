//! One parsed event on its way: to the writer, to its listeners first, or to wait for its time.

use super::Answers;
use super::parse::Parsed;
use crate::pending::{Admission, PendingError};
use crate::proto::internal::PublishResponse;
use crate::publish::PublishError;
use crate::publish::prepare::prepare;
use tokio::time::Instant;

/// How often an event is prepared again because its listeners changed meanwhile.
const ROUNDS_MAX: u32 = 100;

/// Publishes one event that is not part of a commit of several. `until` is when the caller stops waiting, `admission` the room of the
/// batch that it is of.
pub(super) async fn accept(
    answers: &Answers<'_>,
    parsed: Parsed,
    until: Option<Instant>,
    admission: Option<&Admission>,
) -> Result<PublishResponse, PendingError> {
    let key = parsed.key.clone();
    match publish(answers, parsed, until, admission).await {
        Ok(answer) => Ok(answer),
        Err(error) => Box::pin(answers.first_of(key.as_ref(), error)).await,
    }
}

async fn publish(
    answers: &Answers<'_>,
    parsed: Parsed,
    until: Option<Instant>,
    admission: Option<&Admission>,
) -> Result<PublishResponse, PendingError> {
    let Answers { api, registry, .. } = answers;
    let tenant = registry.tenant();
    let Parsed { mut event, schema_version, key, deliver_at, pre_timeout } = parsed;
    for _ in 0..ROUNDS_MAX {
        let prepared = prepare(api.writer.registry(), registry, event, schema_version, key.clone(), None).await?;
        // For the next round, should there be one.
        event = prepared.event.clone();
        // Boxed, so that the many calls that neither wait nor are gated do not carry the room for it.
        let outcome = if let Some(at) = deliver_at {
            Box::pin(api.pending.schedule(tenant, prepared, at, pre_timeout, admission)).await
        } else if prepared.is_gated() {
            Box::pin(api.pending.publish(tenant, prepared, pre_timeout, until, admission)).await
        } else {
            match api.writer.write(tenant, vec![prepared]).await {
                Ok(published) => {
                    let mut first = answers.published(&published).await?;
                    return first.pop().ok_or(PublishError::Draining.into());
                }
                Err(error) => Err(error.into()),
            }
        };
        match outcome {
            Ok(answer) => return Ok(answers.decided(&answer).await),
            // It has got its first listener, or lost its last, or the match is old.
            Err(PendingError::Publish(PublishError::Gated | PublishError::Contended)) => {}
            Err(error) => return Err(error),
        }
    }
    Err(PublishError::Contended.into())
}
