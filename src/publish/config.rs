//! Bounds of publishing.

use serde::{Deserialize, Serialize};

/// Settings of the group commit, the registry and idempotency.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Largest event, attributes and data together, bytes. 1,024 to 4,194,304.
    pub event_bytes_max: usize,
    /// Events in one commit, beyond which no further call is added: one that begins below it is taken whole. 1 to 10,000.
    pub commit_events_max: usize,
    /// Bytes of events in one commit, attributes and data, likewise.
    pub commit_bytes_max: usize,
    /// Commits that may run at the same time. 1 to 16. A tenant's commits wait for each other, so a second one under way only
    /// splits what would have been one commit: more than one pays only where many tenants publish.
    pub commits_in_flight: usize,
    /// Publish calls that may wait for a commit; further ones wait at the door.
    pub queue_calls_max: usize,
    /// Bytes of events that may wait for a commit, those at the door included; further calls are refused with RESOURCE_EXHAUSTED.
    /// 1 MiB to 64 GiB.
    pub queue_bytes_max: usize,
    /// How long a commit waits for a tenant's lock before that tenant is committed by itself, or its PRE or delayed event is tried again,
    /// so that the others go on, milliseconds. 1 to 10,000.
    pub lock_patience_ms: u64,
    /// Whether one commit may hold events of several tenants: on a distributed Postgres it must not.
    pub batch_scope: BatchScope,
    /// Invocations that the events which follow from one event may fire in all; what is beyond is CANCELLED with `CHAIN_BUDGET`. 1 to
    /// 1,000,000.
    pub chain_invocations_max: u32,
    /// How long an idempotency key is kept, hours. At least 24, and no longer than events are.
    pub idempotency_hours: u32,
    /// Tenants whose registry is kept in memory.
    pub registry_tenants_max: u64,
    /// Bytes of compiled schemas kept in memory. 1 MiB to 64 GiB.
    pub schemas_bytes_max: usize,
}

/// What one commit may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BatchScope {
    /// Events of any tenants.
    Any,
    /// Events of one tenant.
    Tenant,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            event_bytes_max: 1024 * 1024,
            commit_events_max: 1000,
            commit_bytes_max: 8 * 1024 * 1024,
            commits_in_flight: 1,
            queue_calls_max: 10_000,
            queue_bytes_max: 256 * 1024 * 1024,
            lock_patience_ms: 100,
            batch_scope: BatchScope::Any,
            chain_invocations_max: 10_000,
            idempotency_hours: 48,
            registry_tenants_max: 10_000,
            schemas_bytes_max: 512 << 20,
        }
    }
}

impl Config {
    /// Checks every bound.
    ///
    /// Errors: the key that does not fit, and its bounds.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let bounds = [
            ("event_bytes_max", (1_024..=4_194_304).contains(&self.event_bytes_max), "must be 1,024 to 4,194,304"),
            ("commit_events_max", (1..=10_000).contains(&self.commit_events_max), "must be 1 to 10,000"),
            ("commit_bytes_max", self.commit_bytes_max >= 1_024, "must be at least 1,024"),
            ("commits_in_flight", (1..=16).contains(&self.commits_in_flight), "must be 1 to 16"),
            ("queue_calls_max", (1..=1_000_000).contains(&self.queue_calls_max), "must be 1 to 1,000,000"),
            (
                "queue_bytes_max",
                (1 << 20..=1 << 36).contains(&self.queue_bytes_max),
                "must be 1,048,576 to 68,719,476,736",
            ),
            ("lock_patience_ms", (1..=10_000).contains(&self.lock_patience_ms), "must be 1 to 10,000"),
            ("chain_invocations_max", (1..=1_000_000).contains(&self.chain_invocations_max), "must be 1 to 1,000,000"),
            ("idempotency_hours", (24..=8_760).contains(&self.idempotency_hours), "must be 24 to 8,760"),
            ("registry_tenants_max", self.registry_tenants_max > 0, "must be at least 1"),
            ("schemas_bytes_max", (1 << 20..=64 << 30).contains(&self.schemas_bytes_max), "must be 1 MiB to 64 GiB"),
        ];
        bounds.into_iter().find(|(_, fits, _)| !fits).map_or(Ok(()), |(key, _, reason)| Err((key, reason)))
    }
}
