//! What a publish answers: the event, its place, and what it caused.

use super::PublishApi;
use crate::domain::ids::{EventId, SubscriptionId, SubscriptionNo};
use crate::pending::Answer;
use crate::proto::internal::{InvocationRef, PublishResponse};
use crate::publish::registry::TenantRegistry;
use crate::publish::writer::Published;
use crate::telemetry::measured;
use crate::wire::pre::verdict_to_proto;
use crate::wire::time::timestamp_to_proto;
use chrono::{DateTime, Utc};
use std::collections::HashMap;

/// Makes the answers of one call.
pub(super) struct Answers<'a> {
    pub api: &'a PublishApi,
    pub registry: &'a TenantRegistry,
}

impl Answers<'_> {
    /// The answers for events that are in the log.
    pub async fn published(&self, published: &[Published]) -> Vec<PublishResponse> {
        let shown: Vec<&[SubscriptionNo]> = published.iter().map(|one| &*one.entry.matched).collect();
        let deleted = self.deleted(&shown).await;
        published.iter().zip(shown).map(|(published, shown)| self.one(published, shown, &deleted)).collect()
    }

    /// The answer for an event that was decided by itself.
    pub async fn decided(&self, answer: &Answer) -> PublishResponse {
        match answer {
            Answer::Committed { entry, verdicts, duplicate } => {
                let published = [Published { entry: entry.clone(), duplicate: *duplicate }];
                let answer = self.published(&published).await.pop().unwrap_or_default();
                PublishResponse { pre_verdicts: verdicts.iter().map(verdict_to_proto).collect(), ..answer }
            }
            Answer::Scheduled { event, at, duplicate } => scheduled(*event, *at, *duplicate),
        }
    }

    fn one(
        &self,
        published: &Published,
        shown: &[SubscriptionNo],
        deleted: &HashMap<SubscriptionNo, SubscriptionId>,
    ) -> PublishResponse {
        let entry = &published.entry;
        if published.duplicate {
            measured().publish.duplicates.inc();
        }
        let invocation = |no: &SubscriptionNo| {
            let known = self.registry.subscription(*no).map(|entry| entry.subscription.id);
            let id = known.or_else(|| deleted.get(no).copied());
            InvocationRef {
                invocation_id: entry.invocation(*no).to_string(),
                subscription_id: id.map_or_else(String::new, |id| id.to_string()),
            }
        };
        PublishResponse {
            event_id: entry.event.id.to_string(),
            position: entry.position,
            commit_time: Some(timestamp_to_proto(entry.committed_at)),
            invocations: shown.iter().map(invocation).collect(),
            duplicate: published.duplicate,
            ..PublishResponse::default()
        }
    }

    /// The ids of those that the registry knows no longer, because they were deleted since.
    async fn deleted(&self, shown: &[&[SubscriptionNo]]) -> HashMap<SubscriptionNo, SubscriptionId> {
        let mut unknown: Vec<SubscriptionNo> = Vec::new();
        unknown.extend(shown.iter().copied().flatten().filter(|no| self.registry.subscription(**no).is_none()));
        if unknown.is_empty() {
            return HashMap::new();
        }
        unknown.sort_unstable();
        unknown.dedup();
        let found = self.api.store.subscription_ids(self.registry.tenant(), &unknown).await;
        // The event is on disk, and the call must not say otherwise: the invocation's id leads to the subscription as well.
        found.inspect_err(|error| tracing::debug!(%error, "a publish names a deleted subscription")).unwrap_or_default()
    }
}

/// The answer for an event that waits for its time.
fn scheduled(event: EventId, at: DateTime<Utc>, duplicate: bool) -> PublishResponse {
    PublishResponse {
        event_id: event.to_string(),
        duplicate,
        deliver_time: Some(timestamp_to_proto(at)),
        ..PublishResponse::default()
    }
}
