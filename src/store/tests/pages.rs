//! Pages of the log are bounded by all that an event brings into memory, not by its data alone.

use super::Database;
use crate::domain::event::LogEntry;
use crate::store::event_pages::PageBound;
use crate::store::events::LogPlace;
use sqlx::{AssertSqlSafe, Executor as _};
use std::sync::Arc;

/// What one event may carry beside its data.
const ATTRIBUTE: &str = "(SELECT convert_to('[' || string_agg(format('[\"a%s\",{\"s\":\"%s\"}]', n, repeat('x', 4096)), ',') || ']', 'UTF8')
    FROM generate_series(1, 31) AS n)";

#[tokio::test(flavor = "multi_thread")]
async fn g15_a_page_counts_attributes_and_matches_like_data() {
    let database = Database::new().await;
    let tenant = database.tenant("a").await;
    let data = "convert_to(repeat('x', 131072), 'UTF8')";
    let matched = "ARRAY(SELECT generate_series(p, p + 31999))";
    for (first, extensions, data, matched) in
        [(1, ATTRIBUTE, "''", "'{1}'"), (101, "''", data, "'{1}'"), (201, "''", "''", matched)]
    {
        let sql = format!(
            "INSERT INTO events (tenant_id, day, position, event_id, committed_at, event_type, schema_version, source, event_time,
                    extensions, data_kind, data, matched, refused, root_id, depth, lineage)
             SELECT '{0}', (now() AT TIME ZONE 'UTC')::date, p, gen_random_uuid(), now(), 'CUSTOM_TESTED', 0, 's', now(), {extensions},
                    2, {data}, {matched}, '{{}}', '{0}', 0, '{{}}' FROM generate_series({first}, {first} + 99) AS p",
            tenant.0
        );
        database.connection().await.execute(AssertSqlSafe(sql)).await.expect("events");
    }
    let day = database.store.now().date_naive();
    let bound = PageBound { entries: 1_000, bytes: 1 << 20 };
    let bytes = |page: &[Arc<LogEntry>]| page.iter().map(|entry| entry.memory_bytes()).sum::<usize>();
    for after in [0, 100, 200] {
        let place = LogPlace { after, day };
        let places: Vec<_> = (after + 1..=after + 100).map(|position| (day, position)).collect();
        let store = &database.store;
        let last = store.read_log_before(tenant, day, after + 101, bound).await.expect("readable");
        let pages = [
            store.read_log_page(tenant, place, 300, bound).await.expect("readable"),
            store.events_at(tenant, &places, bound.bytes).await.expect("readable"),
            last.into_iter().map(Arc::new).collect(),
        ];
        for page in pages {
            // The last one may exceed it. Numbers of subscriptions may be stored in less than they take.
            assert!(page.len() >= 8 && bytes(&page) <= 3 << 19, "{} events of {} bytes", page.len(), bytes(&page));
        }
        let one = PageBound { bytes: 1, ..bound };
        assert_eq!(store.read_log_page(tenant, place, 300, one).await.expect("readable").len(), 1);
        assert_eq!(store.events_at(tenant, &places, 1).await.expect("readable").len(), 1);
    }
    database.end().await;
}
