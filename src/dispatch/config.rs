//! Bounds of dispatching.

use serde::{Deserialize, Serialize};

/// Settings of leases, queues, attempts in flight and settling.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How long a replica owns its shards after its last sign of life, milliseconds. 1,000 to 300,000. After a crash, another
    /// replica goes on with its work after this time.
    pub lease_ms: u64,
    /// How often heads and leases are looked at, milliseconds. 50 to 1,000.
    pub poll_ms: u64,
    /// Hints to other replicas are gathered for this long, milliseconds. 1 to 1,000.
    pub notify_gather_ms: u64,
    /// Attempts that may run at the same time, those of slow listeners apart. 1 to 100,000.
    pub in_flight_max: usize,
    /// Of these, how many may be one tenant's. 1 to 100,000.
    pub tenant_in_flight_max: usize,
    /// An attempt that has run for this long counts as slow, milliseconds. 100 to 60,000.
    pub slow_after_ms: u64,
    /// Slow attempts that run beside those in flight, of a tenant no more than are left for others; further ones count as in flight.
    /// 1 to 100,000.
    pub slow_in_flight_max: usize,
    /// Invocations of one subscription that wait in memory; further ones wait in the database. 4 to 1,000,000.
    pub queue_max: usize,
    /// Bytes of events that wait for a listener or are with one in memory, all tenants together. From three quarters of it on, a
    /// subscription that has work waiting gets further work from the database; at the bound, one that has anything running too. So no
    /// more than one event of each other subscription goes beyond it. At least 1 MiB.
    pub memory_bytes_max: usize,
    /// Events between a tenant's cursor and the newest one in memory; at the bound the older half of what is unfinished is
    /// noted in the database one by one, so that the cursor moves on. 16 to 10,000,000.
    pub window_max: usize,
    /// Events read from the log, or deferred invocations, at a time. 1 to 10,000.
    pub page_max: u32,
    /// Reads for tenants that may run at the same time: pages, what is due, registries. Tenants take turns; one alone has three quarters
    /// of them at most, and half for what it has aside. Lowered to a quarter of the database's connections, or to 4. 4 to 1,000.
    pub loads_max: usize,
    /// Changes that a settle may hold before no further events are taken. 1 to 100,000.
    pub settle_rows_max: usize,
    /// Least time between two settles of a tenant, milliseconds: results gather meanwhile. 0 to 1,000.
    pub settle_gather_ms: u64,
    /// Missed invocations of a tenant that replays take up a second at most. 1 to 100,000.
    pub replay_per_second: u32,
    /// How long a stop, or giving a shard away, waits for attempts that run, milliseconds. 0 to 600,000.
    pub drain_ms: u64,
    /// How far ahead day partitions are made. 1 to 30.
    pub partitions_ahead_days: u64,
    /// How long events are kept, with what is recorded of their invocations, days. 1 to 3,650.
    pub retention_days: u32,
    /// How long deleted subscriptions and retired event types can be undeleted, days. 1 to 3,650. They are purged after that, and not
    /// before the log has forgotten them.
    pub undelete_days: u32,
    /// How long audit records are kept, days. 30 to 3,650: the database lets none go before.
    pub audit_retention_days: u32,
    /// Rows that one cleaning statement deletes at most. 1 to 100,000.
    pub sweep_rows_max: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            lease_ms: 15_000,
            poll_ms: 1_000,
            notify_gather_ms: 5,
            in_flight_max: 4_096,
            tenant_in_flight_max: 2_048,
            slow_after_ms: 1_000,
            slow_in_flight_max: 8_192,
            queue_max: 4_096,
            memory_bytes_max: 256 * 1024 * 1024,
            window_max: 65_536,
            page_max: 1_000,
            loads_max: 4,
            settle_rows_max: 10_000,
            settle_gather_ms: 3,
            replay_per_second: 100,
            drain_ms: 10_000,
            partitions_ahead_days: 3,
            retention_days: 30,
            undelete_days: 30,
            audit_retention_days: 400,
            sweep_rows_max: 5_000,
        }
    }
}

/// A setting outside its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("dispatch.{key} must be {bounds}")]
pub struct ConfigError {
    /// The setting's name.
    pub key: &'static str,
    /// Its bounds.
    pub bounds: &'static str,
}

impl Config {
    /// Checks every bound.
    pub fn check(&self) -> Result<(), ConfigError> {
        let checks = [
            ((1_000..=300_000).contains(&self.lease_ms), "lease_ms", "1,000 to 300,000"),
            ((50..=1_000).contains(&self.poll_ms), "poll_ms", "50 to 1,000"),
            ((1..=1_000).contains(&self.notify_gather_ms), "notify_gather_ms", "1 to 1,000"),
            ((1..=100_000).contains(&self.in_flight_max), "in_flight_max", "1 to 100,000"),
            ((1..=100_000).contains(&self.tenant_in_flight_max), "tenant_in_flight_max", "1 to 100,000"),
            ((100..=60_000).contains(&self.slow_after_ms), "slow_after_ms", "100 to 60,000"),
            ((1..=100_000).contains(&self.slow_in_flight_max), "slow_in_flight_max", "1 to 100,000"),
            ((4..=1_000_000).contains(&self.queue_max), "queue_max", "4 to 1,000,000"),
            (self.memory_bytes_max >= 1024 * 1024, "memory_bytes_max", "at least 1 MiB"),
            ((16..=10_000_000).contains(&self.window_max), "window_max", "16 to 10,000,000"),
            ((1..=10_000).contains(&self.page_max), "page_max", "1 to 10,000"),
            ((4..=1_000).contains(&self.loads_max), "loads_max", "4 to 1,000"),
            ((1..=100_000).contains(&self.settle_rows_max), "settle_rows_max", "1 to 100,000"),
            (self.settle_gather_ms <= 1_000, "settle_gather_ms", "0 to 1,000"),
            ((1..=100_000).contains(&self.replay_per_second), "replay_per_second", "1 to 100,000"),
            (self.drain_ms <= 600_000, "drain_ms", "0 to 600,000"),
            ((1..=30).contains(&self.partitions_ahead_days), "partitions_ahead_days", "1 to 30"),
            ((1..=3_650).contains(&self.retention_days), "retention_days", "1 to 3,650"),
            ((1..=3_650).contains(&self.undelete_days), "undelete_days", "1 to 3,650"),
            ((30..=3_650).contains(&self.audit_retention_days), "audit_retention_days", "30 to 3,650"),
            ((1..=100_000).contains(&self.sweep_rows_max), "sweep_rows_max", "1 to 100,000"),
        ];
        let broken = checks.into_iter().find(|(holds, _, _)| !holds);
        broken.map_or(Ok(()), |(_, key, bounds)| Err(ConfigError { key, bounds }))
    }
}
