//! Calls as a commit sees them: grouped, weighed, refused.

use super::Call;
use crate::domain::ids::TenantId;
use crate::publish::PublishError;
use crate::publish::prepare::Prepared;
use crate::store::publish::{NewEvent, TenantBatch};
use std::collections::BTreeMap;

/// Groups calls by tenant, in tenant order; within a tenant in the order of the calls.
pub(super) fn batches(calls: &[Call]) -> Vec<TenantBatch> {
    let mut tenants: BTreeMap<TenantId, TenantBatch> = BTreeMap::new();
    for call in calls {
        for prepared in &call.events {
            let batch = tenants.entry(call.tenant).or_insert_with(|| TenantBatch {
                tenant: call.tenant,
                registry_version: prepared.registry_version,
                events: Vec::new(),
            });
            batch.events.push(NewEvent {
                event: prepared.event.clone(),
                matched: prepared.matched.clone(),
                refused: prepared.refused.clone(),
                key: prepared.key.clone(),
            });
        }
    }
    tenants.into_values().collect()
}

/// Events and bytes of a call, as they count towards the bounds of a commit.
pub(super) fn weight(call: &Call) -> (usize, usize) {
    (call.events.len(), bytes_of(&call.events))
}

/// Bytes of events, as they count towards the bounds.
pub(super) fn bytes_of(events: &[Prepared]) -> usize {
    events.iter().map(|one| one.event.memory_bytes() + size_of_val(&*one.matched) + size_of_val(&*one.refused)).sum()
}

/// Answers all of them with one error; what is left is nothing.
pub(super) fn fail(calls: Vec<Call>, error: &PublishError) -> Vec<Call> {
    for call in calls {
        let _ = call.answer.send(Err(error.clone()));
    }
    Vec::new()
}
