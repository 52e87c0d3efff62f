//! Bounds of watching and of reading the log.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Settings of watches. Times are milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Events that a watched tenant's ring keeps in memory at most. 16 to 1,000,000.
    pub ring_entries_max: usize,
    /// Bytes that a watched tenant's ring keeps in memory at most (always at least one event).
    pub ring_bytes_max: usize,
    /// Bytes that the rings of all watched tenants keep in memory at most, together (always at least one event of each).
    pub rings_bytes_max: usize,
    /// Bytes of ready-made messages that a watched tenant shares between its streams at most.
    pub shared_bytes_max: usize,
    /// Events in one message at most. 1 to 10,000.
    pub message_events_max: usize,
    /// Bytes of events in one message at most (always at least one event).
    pub message_bytes_max: usize,
    /// Open watches of one tenant at most.
    pub streams_per_tenant_max: usize,
    /// Open watches of one credential at most.
    pub streams_per_credential_max: usize,
    /// Open watches of this process at most.
    pub streams_max: usize,
    /// Reads of the store at the same time, for all watches that are behind their ring.
    pub catch_up_reads_max: usize,
    /// News items that may wait to be looked at; beyond it the heads are read from the store.
    pub news_max: usize,
    /// How long a reader may take nothing while there is something for it. Default 60 s.
    pub stall_timeout_ms: u64,
    /// Longest silence before a bookmark where the caller does not choose. Default 15 s.
    pub bookmark_interval_ms: u64,
    /// Events that are filtered out before a bookmark says how far the watch is.
    pub bookmark_events: u32,
    /// Least age at which a stream is ended so that clients spread over the replicas; those of health and reflection too. Default 30 min.
    pub stream_age_min_ms: u64,
    /// Greatest such age; each stream draws its own. Default 60 min.
    pub stream_age_max_ms: u64,
    /// How often each stream asks whether its credential still holds. Default 30 s, at most 60 s.
    pub credential_check_ms: u64,
    /// How often the heads of all watched tenants are read from the store, in one statement, should news be lost. Default 15 s.
    pub head_check_ms: u64,
    /// How long a tenant's ring is kept after its last watch has ended. Default 30 s.
    pub linger_ms: u64,
    /// How long to wait for an event that news has skipped before it is read from the store. Default 5 ms.
    pub reorder_wait_ms: u64,
    /// How long an UpdateWatch waits for the stream to take its change. Default 20 s.
    pub update_timeout_ms: u64,
    /// Changes of filters of one stream at most. 1 to 10,000.
    pub filter_changes_max: u32,
    /// How long after its end a watch can be resumed with its filters. Default 10 min.
    pub resume_ms: u64,
    /// Bytes of filters that one tenant's watches may leave to be remembered, and 1 KiB for each watch and each change; one credential
    /// half of it. Default 256 MiB, at least 1 MiB.
    pub remembered_bytes_max: u64,
    /// Events that one filtered ListEvents call looks at, at most.
    pub list_scan_max: u32,
    /// Bytes of one ListEvents page at most.
    pub list_bytes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ring_entries_max: 16_384,
            ring_bytes_max: 32 * 1024 * 1024,
            rings_bytes_max: 512 * 1024 * 1024,
            shared_bytes_max: 8 * 1024 * 1024,
            message_events_max: 1_000,
            message_bytes_max: 256 * 1024,
            streams_per_tenant_max: 10_000,
            streams_per_credential_max: 10_000,
            streams_max: 20_000,
            catch_up_reads_max: 4,
            news_max: 16_384,
            stall_timeout_ms: 60_000,
            bookmark_interval_ms: 15_000,
            bookmark_events: 1_000,
            stream_age_min_ms: 30 * 60_000,
            stream_age_max_ms: 60 * 60_000,
            credential_check_ms: 30_000,
            head_check_ms: 15_000,
            linger_ms: 30_000,
            reorder_wait_ms: 5,
            update_timeout_ms: 20_000,
            filter_changes_max: 256,
            resume_ms: 10 * 60_000,
            remembered_bytes_max: 256 * 1024 * 1024,
            list_scan_max: 10_000,
            list_bytes_max: 2 * 1024 * 1024,
        }
    }
}

impl Config {
    /// Says which setting is out of its range, by its name within the section.
    ///
    /// Errors: the name and the rule.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let rules = [
            (self.ring_entries_max >= 16, "ring_entries_max", "must be at least 16"),
            (self.message_events_max >= 1, "message_events_max", "must be at least 1"),
            (self.message_events_max <= 10_000, "message_events_max", "must be at most 10000"),
            (self.message_bytes_max >= 1_024, "message_bytes_max", "must be at least 1024"),
            (self.streams_per_tenant_max >= 1, "streams_per_tenant_max", "must be at least 1"),
            (self.streams_per_credential_max >= 1, "streams_per_credential_max", "must be at least 1"),
            (self.streams_max >= 1, "streams_max", "must be at least 1"),
            (self.catch_up_reads_max >= 1, "catch_up_reads_max", "must be at least 1"),
            (self.news_max >= 16, "news_max", "must be at least 16"),
            (self.stall_timeout_ms >= 100, "stall_timeout_ms", "must be at least 100"),
            (self.bookmark_interval_ms >= 100, "bookmark_interval_ms", "must be at least 100"),
            (self.bookmark_events >= 1, "bookmark_events", "must be at least 1"),
            (self.stream_age_min_ms >= 1_000, "stream_age_min_ms", "must be at least 1000"),
            (
                self.stream_age_max_ms >= self.stream_age_min_ms,
                "stream_age_max_ms",
                "must not be less than stream_age_min_ms",
            ),
            ((100..=60_000).contains(&self.credential_check_ms), "credential_check_ms", "must be 100 to 60000"),
            (self.head_check_ms >= 100, "head_check_ms", "must be at least 100"),
            ((100..=60_000).contains(&self.update_timeout_ms), "update_timeout_ms", "must be 100 to 60000"),
            ((1..=10_000).contains(&self.filter_changes_max), "filter_changes_max", "must be 1 to 10000"),
            (self.resume_ms <= 24 * 3_600_000, "resume_ms", "must be at most 86400000"),
            (self.remembered_bytes_max >= 1_048_576, "remembered_bytes_max", "must be at least 1048576"),
            (self.list_scan_max >= 1_000, "list_scan_max", "must be at least 1000"),
            (self.list_bytes_max >= 1_024, "list_bytes_max", "must be at least 1024"),
        ];
        rules.into_iter().find(|(holds, ..)| !holds).map_or(Ok(()), |(_, name, rule)| Err((name, rule)))
    }

    pub(super) fn stall_timeout(&self) -> Duration {
        Duration::from_millis(self.stall_timeout_ms)
    }

    /// How long a change of filters may take.
    pub fn update_timeout(&self) -> Duration {
        Duration::from_millis(self.update_timeout_ms)
    }

    /// What one watch is to expect where its caller chose nothing.
    pub fn bookmark_interval(&self) -> Duration {
        Duration::from_millis(self.bookmark_interval_ms)
    }

    /// An age between the two bounds, `share` (0..1) of the way.
    pub fn stream_age(&self, share: f64) -> Duration {
        let (least, most) =
            (Duration::from_millis(self.stream_age_min_ms), Duration::from_millis(self.stream_age_max_ms));
        least + most.saturating_sub(least).mul_f64(share.clamp(0.0, 1.0))
    }
}
