//! Times become places of a log, however many events share one of them, and what retention has taken is known by its time.

use super::Database;
use crate::domain::ids::{Position, TenantId};
use crate::store::events::LogPlace;
use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use sqlx::{AssertSqlSafe, Executor as _};

/// A position, its day and its time.
type Row = (Position, NaiveDate, DateTime<Utc>);

#[tokio::test(flavor = "multi_thread")]
async fn a_time_is_the_place_before_the_first_event_that_is_not_earlier() {
    let database = Database::new().await;
    let tenant = database.tenant("a").await;
    let mut owner = database.connection().await;
    // Yesterday and today; retention has left what is from position 5 on; seven events share each second.
    owner
        .execute(AssertSqlSafe(format!(
            "INSERT INTO events (tenant_id, day, position, event_id, committed_at, event_type, schema_version, source, event_time,
                    extensions, data_kind, data, matched, refused, root_id, depth, lineage)
             SELECT '{0}', d, p, gen_random_uuid(), d + interval '1 h' + (p / 7) * interval '1 s', 'CUSTOM_TESTED', 0, 's', now(), '', 0,
                    '', '{{}}', '{{}}', '{0}', 0, '{{}}'
               FROM (SELECT p, (now() AT TIME ZONE 'UTC')::date - CASE WHEN p < 200 THEN 1 ELSE 0 END AS d
                       FROM generate_series(5, 500) AS p) AS e",
            tenant.0
        )))
        .await
        .expect("events");
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT position, day, committed_at FROM events WHERE tenant_id = $1 ORDER BY position LIMIT 1000",
    )
    .bind(tenant.0)
    .fetch_all(&mut owner)
    .await
    .expect("events");
    let end = LogPlace { after: 500, day: rows[rows.len() - 1].1 };
    let around = |time: DateTime<Utc>| [-1_000, -1, 0, 1].map(|micros| time + TimeDelta::microseconds(micros));
    let mut times: Vec<DateTime<Utc>> = rows.iter().step_by(5).flat_map(|row| around(row.2)).collect();
    // The ends of days, a day without any event, and what is far away.
    times.extend(rows.iter().map(|row| row.1.and_time(chrono::NaiveTime::MIN).and_utc()).take(1));
    times.extend([-400, -2, -1, 1, 400].map(|days| rows[0].2 + TimeDelta::days(days) + TimeDelta::hours(20)));
    for time in times {
        let first = rows.iter().find(|row| row.2 >= time);
        let expected = first.map_or(end, |row| LogPlace { after: row.0 - 1, day: row.1 });
        assert_eq!(database.store.place_at(tenant, time, end).await.expect("readable"), expected, "{time}");
    }
    database.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_logs_that_were_cut_before_this_was_kept_whole_days_are_gone() {
    let database = Database::new().await;
    let mut owner = database.connection().await;
    let [cut, emptied, whole] = [database.tenant("a").await, database.tenant("b").await, database.tenant("c").await];
    let event = |tenant: TenantId| {
        format!(
            "INSERT INTO events (tenant_id, day, position, event_id, committed_at, event_type, schema_version, source, event_time,
                    extensions, data_kind, data, matched, refused, root_id, depth, lineage)
             VALUES ('{0}', (now() AT TIME ZONE 'UTC')::date, 5, gen_random_uuid(), now(), 'CUSTOM_TESTED', 0, 's', now(), '', 0,
                     '', '{{}}', '{{}}', '{0}', 0, '{{}}');",
            tenant.0
        )
    };
    let before = format!(
        "ALTER TABLE tenant_heads DROP COLUMN removed_until;
         UPDATE tenant_heads SET position = 5, committed_at = now();
         UPDATE tenant_heads SET earliest_position = 5 WHERE tenant_id = '{}';
         UPDATE tenant_heads SET earliest_position = 6 WHERE tenant_id = '{}';
         {}{}",
        cut.0,
        emptied.0,
        event(cut),
        event(whole)
    );
    owner.execute(AssertSqlSafe(before)).await.expect("as an earlier release left it");
    owner.execute(include_str!("../migrations/0040_removed.sql")).await.expect("migrated");
    let head = async |tenant| database.store.head(tenant).await.expect("readable").expect("exists");
    let today = head(cut).await.committed_at.date_naive().and_time(chrono::NaiveTime::MIN).and_utc();
    assert_eq!(head(cut).await.removed_until, Some(today - TimeDelta::microseconds(1)));
    assert_eq!(head(emptied).await.removed_until, Some(head(emptied).await.committed_at));
    assert_eq!(head(whole).await.removed_until, None);
    database.end().await;
}
