//! Times become places of a log, however many events share one of them, and what retention has taken is known by its time.

use super::Database;
use crate::domain::ids::{Position, TenantId};
use crate::store::events::LogPlace;
use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use sqlx::{AssertSqlSafe, Executor as _};

/// A position, its day and its time.
type Row = (Position, NaiveDate, DateTime<Utc>);

/// Puts events into a log. Shape: `rows` gives their positions `p`, days `d` and times `t`.
fn events(tenant: TenantId, rows: &str) -> String {
    format!(
        "INSERT INTO events (tenant_id, day, position, event_id, committed_at, event_type, schema_version, source, event_time,
                extensions, data_kind, data, matched, refused, root_id, depth, lineage)
         SELECT '{0}', d, p, gen_random_uuid(), t, 'CUSTOM_TESTED', 0, 's', now(), '', 0, '', '{{}}', '{{}}', '{0}', 0, '{{}}'
           FROM ({rows}) AS e",
        tenant.0
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_is_the_place_before_the_first_event_that_is_not_earlier() {
    let database = Database::new().await;
    let tenant = database.tenant("a").await;
    let mut owner = database.connection().await;
    // Yesterday and today; retention has left what is from position 5 on; seven events share each second.
    let rows = "SELECT p, d, d + interval '1 h' + (p / 7) * interval '1 s' AS t
                  FROM (SELECT p, (now() AT TIME ZONE 'UTC')::date - CASE WHEN p < 200 THEN 1 ELSE 0 END AS d
                          FROM generate_series(5, 500) AS p) AS days";
    owner.execute(AssertSqlSafe(events(tenant, rows))).await.expect("events");
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
async fn of_logs_that_another_release_has_cut_whole_days_are_gone() {
    let database = Database::new().await;
    let mut owner = database.connection().await;
    let [cut, emptied, whole] = [database.tenant("a").await, database.tenant("b").await, database.tenant("c").await];
    let mut run = async |sql: String| {
        owner.execute(AssertSqlSafe(sql)).await.expect("done");
    };
    for tenant in [cut, whole] {
        run(events(tenant, "SELECT 5 AS p, (now() AT TIME ZONE 'UTC')::date AS d, now() AS t")).await;
    }
    run("UPDATE tenant_heads SET position = 5, committed_at = now()".to_owned()).await;
    let set = |tenant: TenantId, what: &str| format!("UPDATE tenant_heads SET {what} WHERE tenant_id = '{}'", tenant.0);
    run(set(cut, "earliest_position = 5")).await;
    run(set(emptied, "earliest_position = 6")).await;
    let head = async |tenant| database.store.head(tenant).await.expect("readable").expect("exists");
    let removed = async |tenant| database.store.removed_until(&head(tenant).await).await.expect("readable");
    let yesterday = head(cut).await.committed_at.date_naive().and_time(chrono::NaiveTime::MIN).and_utc()
        - TimeDelta::microseconds(1);
    assert_eq!(removed(cut).await, Some(yesterday));
    assert_eq!(removed(emptied).await, Some(head(emptied).await.committed_at));
    assert_eq!(removed(whole).await, None);

    // What is known of a cut is true of that one, and not of one that came after it.
    let long_ago = yesterday - TimeDelta::days(40);
    run(set(cut, &format!("removed_until = '{long_ago}', removed_before = 5"))).await;
    assert_eq!(removed(cut).await, Some(long_ago));
    run(set(cut, "removed_before = 4")).await;
    assert_eq!(removed(cut).await, Some(yesterday));
    database.end().await;
}
