//! Calls that repeat idempotency keys: they get the first answers, and only what is new is written.

use super::{Answer, Call, Core, Published};
use crate::domain::event::LogEntry;
use crate::domain::ids::{EventId, TenantId};
use crate::publish::PublishError;
use crate::publish::prepare::Prepared;
use crate::store::publish::UsedKey;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Events that were read for answers: of the many repetitions of one call each gets the same.
type Read = HashMap<EventId, Option<Arc<LogEntry>>>;

impl Core {
    /// Some of these calls repeat keys that were used before: answers them, and returns what is left to write.
    ///
    /// What only repeats is answered beside the commits, which wait for nothing that is read for it.
    pub(super) async fn answer_repeated(self: &Arc<Self>, calls: Vec<Call>, used: Vec<UsedKey>) -> Vec<Call> {
        let used: HashMap<(TenantId, String), UsedKey> =
            used.into_iter().map(|used| ((used.tenant, used.key.clone()), used)).collect();
        let (mut left, mut whole) = (Vec::new(), Vec::new());
        for call in calls {
            let is_used =
                |e: &&Prepared| e.key.as_ref().is_some_and(|key| used.contains_key(&(call.tenant, key.key.clone())));
            match call.events.iter().filter(is_used).count() {
                0 => left.push(call),
                repeated if repeated == call.events.len() => whole.push(call),
                _ => left.extend(self.answer_repetition(call, &used, &mut Read::new()).await),
            }
        }
        if !whole.is_empty() {
            let core = Arc::clone(self);
            self.aside.tasks().spawn(async move {
                let mut read = Read::new();
                for call in whole {
                    core.answer_repetition(call, &used, &mut read).await;
                }
            });
        }
        left
    }

    /// Answers a call that repeats keys. Where only some of its events are repetitions, publishes the others by themselves.
    async fn answer_repetition(
        &self,
        call: Call,
        used: &HashMap<(TenantId, String), UsedKey>,
        read: &mut Read,
    ) -> Option<Call> {
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
            let known = match read.get(&earlier.event) {
                Some(known) => Ok(known.clone()),
                None => self.store.event(tenant, earlier.event).await,
            };
            match known {
                Ok(entry) => {
                    read.insert(earlier.event, entry.clone());
                    if entry.is_none() {
                        // The key outlived its event: retention was shortened since.
                        let _ = answer.send(Err(PublishError::KeyReused));
                        return None;
                    }
                    first.push(entry);
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
