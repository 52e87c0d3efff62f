//! What a retry is answered: one idempotency key has one answer, whatever has changed since it was given.
//!
//! Asked only where a call would be refused, or repeats a key: what is published for the first time pays nothing for it.

use super::Answers;
use crate::domain::ids::EventId;
use crate::pending::{PendingError, Until};
use crate::proto::internal::PublishResponse;
use crate::publish::PublishError;
use crate::store::StoreError;
use crate::store::publish::NewKey;
use crate::telemetry::measured;
use futures::{StreamExt as _, TryStreamExt as _};
use std::collections::HashMap;

/// First answers that are read at the same time.
const READS_AT_ONCE: usize = 64;

/// Why a call is refused.
#[derive(Debug)]
pub(super) struct Refusal {
    /// The place in the call of the event that it is about; none where it is about all of them.
    pub at: Option<usize>,
    pub error: PendingError,
}

impl Refusal {
    pub fn at(index: usize, error: impl Into<PendingError>) -> Self {
        Self { at: Some(index), error: error.into() }
    }
}

impl<E: Into<PendingError>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self { at: None, error: error.into() }
    }
}

impl Answers<'_> {
    /// What a call that would be refused answers: the first answers, where all its keys were used before for the same events.
    ///
    /// Errors: the refusal, where any is new; what the first of the events was refused with.
    pub async fn first(&self, keys: &[Option<&NewKey>], refusal: Refusal) -> Result<Vec<PublishResponse>, Refusal> {
        if refusal.error.may_be_repetition() && keys.iter().all(Option::is_some) {
            let events = match self.events_of(keys).await {
                // Too much of the tenant's own work to find out: the refusal stands.
                Err(Refusal { error: PendingError::Publish(PublishError::Store(StoreError::Crowded)), .. }) => {
                    return Err(refusal);
                }
                events => events?,
            };
            if events.iter().all(Option::is_some) {
                return Ok(self.read(events).await?.into_iter().flatten().collect());
            }
        }
        if let PendingError::Publish(PublishError::Quota { quota, .. }) = &refusal.error {
            measured().publish.refused(quota.name());
        }
        Err(refusal)
    }

    /// The same for one event.
    pub async fn first_of(&self, key: Option<&NewKey>, error: PendingError) -> Result<PublishResponse, PendingError> {
        let first = self.first(&[key], error.into()).await.map_err(|refusal| refusal.error)?;
        first.into_iter().next().ok_or(PublishError::Draining.into())
    }

    /// The first answers of those events of a call whose keys were used before.
    ///
    /// Errors: what the first of them was refused with.
    pub async fn known(&self, keys: &[Option<&NewKey>]) -> Result<Vec<Option<PublishResponse>>, Refusal> {
        self.read(self.events_of(keys).await?).await
    }

    /// The events that keys stand for; none where one is new.
    async fn events_of(&self, keys: &[Option<&NewKey>]) -> Result<Vec<Option<EventId>>, Refusal> {
        let tenant = self.registry.tenant();
        let wanted: Vec<_> = keys.iter().flatten().map(|key| key.key.as_str()).collect();
        if wanted.is_empty() {
            return Ok(vec![None; keys.len()]);
        }
        let used = self.api.store.used_keys(tenant, &wanted).await?;
        let used: HashMap<_, _> = used.iter().map(|used| (used.key.as_str(), used)).collect();
        let event_of = |(index, key): (usize, Option<&NewKey>)| match key.map(|key| (key, used.get(key.key.as_str()))) {
            Some((key, Some(first))) if first.request_hash != key.request_hash => {
                Err(Refusal::at(index, PublishError::KeyReused))
            }
            Some((_, Some(first))) => Ok(Some(first.event)),
            Some((_, None)) | None => Ok(None),
        };
        keys.iter().copied().enumerate().map(event_of).collect()
    }

    async fn read(&self, events: Vec<Option<EventId>>) -> Result<Vec<Option<PublishResponse>>, Refusal> {
        let read = |(index, event): (usize, Option<EventId>)| async move {
            let Some(event) = event else { return Ok(None) };
            match self.api.pending.wait(self.registry.tenant(), event, Until::Accepted, true).await {
                Ok(answer) => Ok(Some(self.decided(&answer).await)),
                // The key outlived its event: retention was shortened since.
                Err(PendingError::NotFound) => Err(Refusal::at(index, PublishError::KeyReused)),
                Err(error) => Err(Refusal::at(index, error)),
            }
        };
        futures::stream::iter(events.into_iter().enumerate()).map(read).buffered(READS_AT_ONCE).try_collect().await
    }
}
