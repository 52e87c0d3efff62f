//! What a publish answers: the event, its place, and what it caused.
//!
//! However much that is, the answer stays below 4 MiB, which is the most that many gRPC clients take: it is made when the events are on
//! disk already, and one that does not arrive would be retried for ever.

use super::PublishApi;
use crate::domain::event_type::Phase;
use crate::domain::ids::{EventId, SubscriptionId, SubscriptionNo};
use crate::domain::pre::Verdict;
use crate::pending::{Answer, PendingError};
use crate::proto::internal::{InvocationRef, PreVerdict, PublishResponse};
use crate::publish::prepare::phase_of;
use crate::publish::registry::TenantRegistry;
use crate::publish::writer::Published;
use crate::telemetry::measured;
use crate::wire::pre::verdict_to_proto;
use crate::wire::time::timestamp_to_proto;
use chrono::{DateTime, Utc};
use prost::Message as _;
use std::collections::HashMap;

/// Invocations that the answer of one call lists, of all its events; each has the same share. About 80 bytes each.
const INVOCATIONS_MAX: usize = 20_000;
/// Bytes of verdicts that it lists likewise.
const VERDICT_BYTES_MAX: usize = 1024 * 1024;
/// Verdicts that are read at once, but for those of one event: those of all events of a call may be more than its answer shows.
const READ_AT_ONCE: usize = 1_000;

/// Makes the answers of one call.
pub(super) struct Answers<'a> {
    pub api: &'a PublishApi,
    pub registry: &'a TenantRegistry,
    /// Events of the call, 1 to 1,000.
    pub events: usize,
}

impl Answers<'_> {
    /// The answers for events that are in the log.
    ///
    /// A repeated key's event may have been a PRE event when it was published, also where its type has no listeners any more: its retry
    /// hears what they said.
    ///
    /// Errors: what they said cannot be read, and the call has published nothing new.
    pub async fn published(&self, published: &[Published]) -> Result<Vec<PublishResponse>, PendingError> {
        let mut answers = self.places(published).await;
        let may_have_asked = |one: &Published| {
            let phase = phase_of(self.api.writer.registry(), self.registry, &one.entry.event.event_type);
            one.duplicate && !matches!(phase, Ok(Phase::Post))
        };
        let mut repeated: Vec<_> = answers.iter_mut().zip(published).filter(|(_, one)| may_have_asked(one)).collect();
        // What else the call has published is on disk, so this waits for no turn among the tenant's calls.
        let store = self.api.store.owed();
        let mut left = &mut repeated[..];
        while !left.is_empty() {
            let mut verdicts = 0;
            let fits = |(_, one): &&(&mut PublishResponse, &Published)| {
                verdicts += one.entry.matched.len().max(1);
                verdicts <= READ_AT_ONCE
            };
            let count = left.iter().take_while(fits).count().max(1);
            let (some, others) = left.split_at_mut(count);
            left = others;
            let places: Vec<_> = some.iter().map(|(_, one)| (one.entry.day(), one.entry.position)).collect();
            match store.committed_verdicts(self.registry.tenant(), &places).await {
                Ok(said) => {
                    for (answer, one) in some {
                        self.add_verdicts(answer, said.get(&one.entry.position).map_or(&[], Vec::as_slice));
                    }
                }
                Err(error) if published.iter().all(|one| one.duplicate) => return Err(error.into()),
                Err(error) => tracing::debug!(%error, "retries are answered without the verdicts"),
            }
        }
        Ok(answers)
    }

    /// The answer for an event that was decided by itself.
    pub async fn decided(&self, answer: &Answer) -> PublishResponse {
        match answer {
            Answer::Committed { entry, verdicts, duplicate } => {
                let published = [Published { entry: entry.clone(), duplicate: *duplicate }];
                let mut answer = self.places(&published).await.pop().unwrap_or_default();
                self.add_verdicts(&mut answer, verdicts);
                answer
            }
            Answer::Scheduled { event, at, duplicate } => scheduled(*event, *at, *duplicate),
        }
    }

    /// Where events are, and what they fire.
    async fn places(&self, published: &[Published]) -> Vec<PublishResponse> {
        let most = INVOCATIONS_MAX / self.events.max(1);
        let shown = published.iter().map(|one| &one.entry.matched[..one.entry.matched.len().min(most)]);
        let shown: Vec<&[SubscriptionNo]> = shown.collect();
        let deleted = self.deleted(&shown).await;
        published.iter().zip(shown).map(|(published, shown)| self.one(published, shown, &deleted)).collect()
    }

    fn add_verdicts(&self, answer: &mut PublishResponse, verdicts: &[Verdict]) {
        let mut bytes_left = VERDICT_BYTES_MAX / self.events.max(1);
        let fits = |verdict: &PreVerdict| match bytes_left.checked_sub(verdict.encoded_len()) {
            Some(left) => {
                bytes_left = left;
                true
            }
            None => false,
        };
        answer.pre_verdicts = verdicts.iter().map(verdict_to_proto).take_while(fits).collect();
        answer.total_pre_verdicts = count(verdicts.len());
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
            total_invocations: count(entry.matched.len()),
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

fn count(many: usize) -> i32 {
    i32::try_from(many).unwrap_or(i32::MAX)
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
