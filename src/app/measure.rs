//! The levels that scrapers see: how much waits, runs and is kept. Read at each scrape; nothing here counts or decides.

use super::Engine;
use crate::dispatch::Load;
use crate::store::Store;
use crate::telemetry::Metrics;
use crate::watch::Watches;
use std::sync::Arc;

impl Engine {
    /// Adds the levels to what is served.
    pub(super) fn measure(&self, metrics: &Metrics, store: &Store) {
        let open = store.clone();
        let size = move || usize::try_from(open.connections().0).unwrap_or(usize::MAX);
        metrics.level("store_connections", "Open connections to the database", size);
        let idle = store.clone();
        metrics.level("store_idle_connections", "Of these, how many nobody uses", move || idle.connections().1);
        metrics.level("publish_queue_calls", "Publish calls that wait for a commit", self.writer.depth());
        let pending = self.pending.clone();
        metrics.level("pending_phases", "PRE events whose listeners are asked", move || pending.phases());
        let load = |read: fn(&Load) -> usize| {
            let load = Arc::clone(self.dispatch.load());
            move || read(&load)
        };
        metrics.level("dispatch_in_flight", "Attempts under way", load(Load::running));
        metrics.level("dispatch_shards", "Shards that this replica owns", load(Load::shards));
        metrics.level("dispatch_tenants", "Tenants that this replica dispatches", load(Load::tenants));
        metrics.level("dispatch_memory_bytes", "Bytes of events that wait or run", load(Load::memory_bytes));
        metrics.level("dispatch_backlog", "Invocations of these tenants that are not finished", load(Load::backlog));
        metrics.level(
            "dispatch_lag_events",
            "Events between the cursors of these tenants and their heads",
            load(Load::lag),
        );
        let watches = |read: fn(&Watches) -> usize| {
            let watches = self.watches.clone();
            move || read(&watches)
        };
        metrics.level("watch_streams", "Open watches", watches(Watches::streams));
        metrics.level("watch_ring_entries", "Events that rings keep in memory", watches(|all| all.rings().0));
        metrics.level("watch_ring_bytes", "Bytes that rings keep in memory", watches(|all| all.rings().1));
    }
}
