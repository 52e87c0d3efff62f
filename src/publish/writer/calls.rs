//! Calls as a commit sees them: split, grouped, weighed, refused.

use super::Call;
use crate::domain::ids::TenantId;
use crate::publish::PublishError;
use crate::publish::config::BatchScope;
use crate::publish::prepare::Prepared;
use crate::store::publish::{NewEvent, TenantBatch};
use std::collections::{BTreeMap, HashSet};

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

/// Splits off what cannot share a commit with what came before it: a repeated key, (by configuration) another tenant, or
/// anything where each is to commit alone.
pub(super) fn split(mut calls: Vec<Call>, scope: BatchScope, each_alone: bool) -> (Vec<Call>, Vec<Call>) {
    if each_alone {
        let later = calls.split_off(1);
        return (calls, later);
    }
    let tenant = calls[0].tenant;
    let mut keys = HashSet::new();
    let mut now = Vec::with_capacity(calls.len());
    let mut later = Vec::new();
    for call in calls {
        let foreign = scope == BatchScope::Tenant && call.tenant != tenant;
        let own: Vec<(TenantId, String)> =
            call.events.iter().filter_map(|e| e.key.as_ref()).map(|k| (call.tenant, k.key.clone())).collect();
        if foreign || own.iter().any(|key| keys.contains(key)) {
            later.push(call);
        } else {
            keys.extend(own);
            now.push(call);
        }
    }
    (now, later)
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
