//! Measuring for `carillon bench`: what raw Postgres does on the same machine, and what a run has cost it.
//!
//! Connects by itself, to a throw-away database, as the role that owns it; writes only to tables of its own, in a schema of its own.
//! Must never run inside a server.

use super::StoreError;
use crate::clock;
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Connections that write rows in bulk.
const WRITERS: usize = 4;
/// Rows of one statement.
const ROWS: i64 = 100;

/// The name by which replicas connect.
const REPLICA: &str = "carillon";

/// A connection to the database of a bench.
#[derive(Debug, Clone)]
pub struct Meter {
    pool: PgPool,
}

/// Rows that were written, and how long it took.
#[derive(Debug, Clone, Copy)]
pub struct Written {
    /// How many.
    pub rows: u64,
    /// How long.
    pub elapsed: Duration,
}

impl Meter {
    /// Connects and makes the tables to write to.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        let pool = PgPoolOptions::new().max_connections(u32::try_from(WRITERS + 1).unwrap_or(8)).connect(url).await?;
        // Event rows have the same columns and the same primary key as the log, without its second index, and outcomes only what tells
        // them apart and how they went: the least that rows can cost.
        let tables = "CREATE SCHEMA IF NOT EXISTS bench;
             CREATE TABLE IF NOT EXISTS bench.bench_rows (LIKE events INCLUDING DEFAULTS, PRIMARY KEY (tenant_id, day, position));
             CREATE TABLE IF NOT EXISTS bench.bench_outcomes (position bigint, subscription_no integer, state smallint NOT NULL,
                 attempt smallint NOT NULL, status_code smallint NOT NULL, duration_us integer NOT NULL,
                 PRIMARY KEY (position, subscription_no));
             CREATE TABLE IF NOT EXISTS bench.bench_cursors (tenant_id uuid PRIMARY KEY, position bigint NOT NULL);
             CREATE TABLE IF NOT EXISTS bench.bench_commits (id uuid PRIMARY KEY, data bytea NOT NULL)";
        pool.execute(tables).await?;
        Ok(Self { pool })
    }

    /// The version of Postgres.
    pub async fn postgres_version(&self) -> Result<String, StoreError> {
        Ok(sqlx::query_scalar("SELECT current_setting('server_version')").fetch_one(&self.pool).await?)
    }

    /// Inserts one row after the other, each in a transaction of its own, on one connection; how long each took.
    pub async fn commit_single_rows(&self, time: Duration, payload: &[u8]) -> Result<Vec<Duration>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        let started = Instant::now();
        let mut latencies = Vec::new();
        while started.elapsed() < time {
            let sent = Instant::now();
            sqlx::query("INSERT INTO bench.bench_commits (id, data) VALUES ($1, $2)")
                .bind(clock::new_uuid())
                .bind(payload)
                .execute(&mut *connection)
                .await?;
            latencies.push(sent.elapsed());
        }
        sqlx::query("TRUNCATE bench.bench_commits").execute(&mut *connection).await?;
        Ok(latencies)
    }

    /// Inserts event rows, a hundred by a statement, on four connections at the same time.
    pub async fn insert_event_rows(&self, time: Duration, payload: &[u8]) -> Result<Written, StoreError> {
        let started = Instant::now();
        let end = started + time;
        let writers = (0..WRITERS).map(|_| self.insert_until(end, payload));
        let rows = futures::future::try_join_all(writers).await?.into_iter().sum();
        let elapsed = started.elapsed();
        sqlx::query("TRUNCATE bench.bench_rows").execute(&self.pool).await?;
        Ok(Written { rows, elapsed })
    }

    /// Inserts so many event rows, a hundred by a statement, one statement after the other. Each row lists so many subscriptions that
    /// it matched; where there are any, the outcomes of each hundred are appended by a COPY, in one transaction with a cursor's move.
    pub async fn append_outcomes(&self, events: u64, listeners: i32, payload: &[u8]) -> Result<(), StoreError> {
        let mut connection = self.pool.acquire().await?;
        let tenant = Uuid::new_v4();
        let matched: Vec<i32> = (1..=listeners).collect();
        sqlx::query("INSERT INTO bench.bench_cursors (tenant_id, position) VALUES ($1, 0)")
            .bind(tenant)
            .execute(&mut *connection)
            .await?;
        let mut position = 0_i64;
        while position.unsigned_abs() < events {
            insert_rows(&mut connection, tenant, position, &matched, payload).await?;
            let mut outcomes = String::new();
            for place in position + 1..=position + ROWS {
                outcomes.extend(matched.iter().map(|number| format!("{place}\t{number}\t3\t1\t204\t1000\n")));
            }
            position += ROWS;
            if outcomes.is_empty() {
                continue;
            }
            let mut transaction = connection.begin().await?;
            sqlx::query("UPDATE bench.bench_cursors SET position = $2 WHERE tenant_id = $1")
                .bind(tenant)
                .bind(position)
                .execute(&mut *transaction)
                .await?;
            let mut copy = transaction.copy_in_raw("COPY bench.bench_outcomes FROM STDIN").await?;
            copy.send(outcomes.as_bytes()).await?;
            copy.finish().await?;
            transaction.commit().await?;
        }
        sqlx::query("TRUNCATE bench.bench_rows, bench.bench_outcomes, bench.bench_cursors")
            .execute(&mut *connection)
            .await?;
        Ok(())
    }

    async fn insert_until(&self, end: Instant, payload: &[u8]) -> Result<u64, StoreError> {
        let mut connection = self.pool.acquire().await?;
        // A log of its own for each writer, as each tenant has one.
        let (tenant, mut position, mut rows) = (Uuid::new_v4(), 0, 0);
        while Instant::now() < end {
            rows += insert_rows(&mut connection, tenant, position, &[], payload).await?;
            position += ROWS;
        }
        Ok(rows)
    }

    /// Bytes of write-ahead log so far.
    pub async fn wal_bytes(&self) -> Result<i64, StoreError> {
        Ok(sqlx::query_scalar("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint")
            .fetch_one(&self.pool)
            .await?)
    }

    /// Rows of every table of the service that are dead and not yet vacuumed.
    pub async fn dead_rows(&self) -> Result<i64, StoreError> {
        let sql =
            "SELECT COALESCE(sum(n_dead_tup), 0)::bigint FROM pg_stat_user_tables WHERE relname NOT LIKE 'bench%'";
        Ok(sqlx::query_scalar(sql).fetch_one(&self.pool).await?)
    }

    /// Removes its tables.
    pub async fn close(self) -> Result<(), StoreError> {
        self.pool.execute(AssertSqlSafe("DROP SCHEMA IF EXISTS bench CASCADE".to_owned())).await?;
        self.pool.close().await;
        Ok(())
    }
}

/// Inserts the event rows that follow a position; answers with how many.
async fn insert_rows(
    connection: &mut PgConnection,
    tenant: Uuid,
    position: i64,
    matched: &[i32],
    payload: &[u8],
) -> Result<u64, StoreError> {
    let ids: Vec<Uuid> = (0..ROWS).map(|_| clock::new_uuid()).collect();
    let positions: Vec<i64> = (position + 1..=position + ROWS).collect();
    let payloads = vec![payload; ids.len()];
    let inserted = sqlx::query(
        "INSERT INTO bench.bench_rows (tenant_id, day, position, event_id, committed_at, event_type, schema_version, source,
                subject, event_time, content_type, extensions, data_kind, data, matched, refused, root_id,
                cause_event_id, cause_subscription_no, depth, lineage)
         SELECT $1, CURRENT_DATE, e.position, e.event_id, $5, 'CUSTOM_bench.raw', 1, 'https://shop.example', 'order',
                $5, 'application/json', ''::bytea, 2::smallint, e.data, $6, '{}'::integer[],
                e.event_id, NULL, NULL, 0, '{}'::integer[]
           FROM unnest($2::bigint[], $3::uuid[], $4::bytea[]) AS e(position, event_id, data)",
    )
    .bind(tenant)
    .bind(positions)
    .bind(ids)
    .bind(payloads)
    .bind(clock::now())
    .bind(matched)
    .execute(connection)
    .await?;
    Ok(inserted.rows_affected())
}

/// What Postgres writes to its log of what it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logged {
    /// Every statement.
    Every,
    /// None.
    None,
}

/// Changes what a Postgres logs, as its superuser, for every connection that there is.
pub async fn log_statements(owner_url: &str, logged: Logged) -> Result<(), StoreError> {
    let mut connection = PgConnection::connect(owner_url).await?;
    let setting = match logged {
        Logged::Every => "SET log_statement = 'all'",
        Logged::None => "RESET log_statement",
    };
    connection.execute(AssertSqlSafe(format!("ALTER SYSTEM {setting}"))).await?;
    connection.execute("SELECT pg_reload_conf()").await?;
    connection.close().await?;
    Ok(())
}

/// The server processes that serve replicas, as the superuser sees them.
pub async fn replica_pids(owner_url: &str) -> Result<Vec<i32>, StoreError> {
    let mut connection = PgConnection::connect(owner_url).await?;
    let pids = sqlx::query_scalar("SELECT pid FROM pg_stat_activity WHERE application_name = $1")
        .bind(REPLICA)
        .fetch_all(&mut connection)
        .await?;
    connection.close().await?;
    Ok(pids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::Database;

    #[tokio::test]
    async fn bare_rows_cost_more_for_every_invocation_and_leave_nothing_behind() {
        let database = Database::new().await;
        let meter = Meter::connect(&database.postgres.url()).await.expect("Postgres answers");
        let cost = async |listeners| {
            let before = meter.wal_bytes().await.expect("a place");
            meter.append_outcomes(250, listeners, b"x").await.expect("rows");
            meter.wal_bytes().await.expect("a place") - before
        };
        let (alone, with) = (cost(0).await, cost(10).await);
        // A row and its entry in one index, of three batches.
        let each = (with - alone) / (300 * 10);
        assert!((60..300).contains(&each), "{each} bytes");
        let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM bench.bench_outcomes")
            .fetch_one(&meter.pool)
            .await
            .expect("a count");
        assert_eq!(rows, 0);
        meter.close().await.expect("it can be dropped");
    }
}
