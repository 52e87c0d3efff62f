//! Bounds of pending events.

use serde::{Deserialize, Serialize};

/// Settings of PRE events and of delayed ones.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// PRE events whose listeners are asked at the same time by this process, and by all for one tenant; one tenant alone gets half of
    /// them here. Half as many delayed ones are asked about beside them, and as many again that are the first of their types, which count
    /// among the tenant's. 1 to 100,000.
    pub phases_max: u32,
    /// Bytes of PRE events whose listeners are asked at the same time by this process, each with what its listeners may answer as
    /// enrichments; one tenant alone gets half of them. 1 MiB to 64 GiB.
    pub phases_bytes_max: usize,
    /// Questions to listeners of PRE events that this process waits for at the same time; one tenant alone gets half of them, and further
    /// ones wait for their turn. 1 to 100,000.
    pub questions_max: usize,
    /// Bytes of delayed events that are due, and of PRE events taken over from other replicas, in memory at the same time in this process,
    /// with what may come as enrichments: half of them for each kind. Of a kind one tenant alone gets half, and one that has none gets an event of any size while some is
    /// left. 1 MiB to 64 GiB.
    pub due_bytes_max: usize,
    /// Time that listeners have where the publisher names none, milliseconds. 10 to 300,000.
    pub pre_timeout_ms: u64,
    /// Longest time that a publisher may name, milliseconds. 10 to 300,000.
    pub pre_timeout_max_ms: u64,
    /// How long listeners are still asked after the last publisher that waited has gone away, milliseconds. 0 to 60,000.
    pub abandon_grace_ms: u64,
    /// How long a replica owns an event after its last sign of life, milliseconds; with the second that it takes to notice, what an event
    /// may be decided after its deadline where its owner dies. 1,000 to 4,000.
    pub lease_ms: u64,
    /// How far ahead an event may be scheduled, hours. 1 to 8,760.
    pub schedule_horizon_hours: u32,
    /// Events of one tenant that may be scheduled. 1 to 1,000,000.
    pub scheduled_max: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            phases_max: 1_000,
            phases_bytes_max: 128 * 1024 * 1024,
            questions_max: 4_096,
            due_bytes_max: 64 * 1024 * 1024,
            pre_timeout_ms: 10_000,
            pre_timeout_max_ms: 30_000,
            abandon_grace_ms: 1_000,
            lease_ms: 3_000,
            schedule_horizon_hours: 720,
            scheduled_max: 10_000,
        }
    }
}

impl Config {
    /// Checks every bound. Errors: the key that does not fit, and its bounds.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let bounds = [
            ("phases_max", (1..=100_000).contains(&self.phases_max), "must be 1 to 100,000"),
            (
                "phases_bytes_max",
                (1 << 20..=1 << 36).contains(&self.phases_bytes_max),
                "must be 1,048,576 to 68,719,476,736",
            ),
            ("questions_max", (1..=100_000).contains(&self.questions_max), "must be 1 to 100,000"),
            ("due_bytes_max", (1 << 20..=1 << 36).contains(&self.due_bytes_max), "must be 1,048,576 to 68,719,476,736"),
            ("pre_timeout_ms", (10..=300_000).contains(&self.pre_timeout_ms), "must be 10 to 300,000"),
            ("pre_timeout_max_ms", (10..=300_000).contains(&self.pre_timeout_max_ms), "must be 10 to 300,000"),
            ("pre_timeout_ms", self.pre_timeout_ms <= self.pre_timeout_max_ms, "must be at most pre_timeout_max_ms"),
            ("abandon_grace_ms", self.abandon_grace_ms <= 60_000, "must be 0 to 60,000"),
            ("lease_ms", (1_000..=4_000).contains(&self.lease_ms), "must be 1,000 to 4,000"),
            ("schedule_horizon_hours", (1..=8_760).contains(&self.schedule_horizon_hours), "must be 1 to 8,760"),
            ("scheduled_max", (1..=1_000_000).contains(&self.scheduled_max), "must be 1 to 1,000,000"),
        ];
        bounds.into_iter().find(|(_, fits, _)| !fits).map_or(Ok(()), |(key, _, reason)| Err((key, reason)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_out_of_bounds_is_named() {
        assert_eq!(Config::default().check(), Ok(()));
        let key = |config: Config| config.check().expect_err("out of bounds").0;
        assert_eq!(key(Config { phases_max: 0, ..Config::default() }), "phases_max");
        assert_eq!(
            key(Config { pre_timeout_ms: 20_000, pre_timeout_max_ms: 10_000, ..Config::default() }),
            "pre_timeout_ms"
        );
        assert_eq!(key(Config { phases_bytes_max: 1_000, ..Config::default() }), "phases_bytes_max");
        assert_eq!(key(Config { questions_max: 0, ..Config::default() }), "questions_max");
        assert_eq!(key(Config { due_bytes_max: 1_000, ..Config::default() }), "due_bytes_max");
        for lease_ms in [999, 4_001] {
            assert_eq!(key(Config { lease_ms, ..Config::default() }), "lease_ms");
        }
        assert_eq!(key(Config { schedule_horizon_hours: 0, ..Config::default() }), "schedule_horizon_hours");
        assert_eq!(key(Config { scheduled_max: 0, ..Config::default() }), "scheduled_max");
        assert_eq!(key(Config { abandon_grace_ms: 60_001, ..Config::default() }), "abandon_grace_ms");
    }
}
