//! Calls that repeat idempotency keys: they get the first answers, and only what is new is written.

use super::{Answer, Call, Core, Published, fail};
use crate::domain::event::LogEntry;
use crate::domain::ids::TenantId;
use crate::publish::PublishError;
use crate::store::publish::UsedKey;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::oneshot;

impl Core {
    /// Some key of these calls was used before: answers the calls it concerns, returns the others.
    pub(super) async fn answer_used_keys(&self, calls: Vec<Call>) -> Vec<Call> {
        let keys: Vec<(TenantId, &str)> = calls
            .iter()
            .flat_map(|call| call.events.iter().filter_map(|e| e.key.as_ref()).map(|k| (call.tenant, k.key.as_str())))
            .collect();
        let used = match self.store.used_keys(&keys).await {
            Ok(used) => used,
            Err(error) => return fail(calls, &error.into()),
        };
        let used: HashMap<(TenantId, String), UsedKey> =
            used.into_iter().map(|used| ((used.tenant, used.key.clone()), used)).collect();
        let mut left = Vec::new();
        for call in calls {
            let first: Vec<Option<&UsedKey>> = call
                .events
                .iter()
                .map(|e| e.key.as_ref().and_then(|key| used.get(&(call.tenant, key.key.clone()))))
                .collect();
            if first.iter().all(Option::is_none) {
                left.push(call);
            } else if let Some(rest) = self.answer_repetition(call, &used).await {
                left.push(rest);
            }
        }
        left
    }

    /// Answers a call that repeats keys. Where only some of its events are repetitions, publishes the others by themselves.
    async fn answer_repetition(&self, call: Call, used: &HashMap<(TenantId, String), UsedKey>) -> Option<Call> {
        let Call { tenant, events, answer, room, span } = call;
        let mut first: Vec<Option<Arc<LogEntry>>> = Vec::with_capacity(events.len());
        for prepared in &events {
            let earlier =
                prepared.key.as_ref().and_then(|key| used.get(&(tenant, key.key.clone())).map(|used| (key, used)));
            let Some((key, earlier)) = earlier else {
                first.push(None);
                continue;
            };
            if earlier.request_hash != key.request_hash {
                let _ = answer.send(Err(PublishError::KeyReused));
                return None;
            }
            match self.store.event(tenant, earlier.event).await {
                Ok(Some(entry)) => first.push(Some(entry)),
                // The key outlived its event, which only retention removes.
                Ok(None) => {
                    let _ = answer.send(Err(PublishError::KeyReused));
                    return None;
                }
                Err(error) => {
                    let _ = answer.send(Err(error.into()));
                    return None;
                }
            }
        }
        if first.iter().all(Option::is_some) {
            let published = first.into_iter().flatten().map(|entry| Published { entry, duplicate: true }).collect();
            let _ = answer.send(Ok(published));
            return None;
        }
        // A batch that was only partly published cannot have been one call before: its keys come from different calls.
        let fresh =
            events.into_iter().zip(&first).filter(|(_, first)| first.is_none()).map(|(event, _)| event).collect();
        let (inner, answered) = oneshot::channel::<Answer>();
        tokio::spawn(async move {
            let merged = match answered.await.unwrap_or(Err(PublishError::Draining)) {
                Ok(new) => {
                    let mut new = new.into_iter();
                    let merge = |first: Option<Arc<LogEntry>>| match first {
                        Some(entry) => Some(Published { entry, duplicate: true }),
                        None => new.next(),
                    };
                    first.into_iter().map(merge).collect::<Option<Vec<_>>>().ok_or(PublishError::Draining)
                }
                Err(error) => Err(error),
            };
            let _ = answer.send(merged);
        });
        Some(Call { tenant, events: fresh, answer: inner, room, span })
    }
}
