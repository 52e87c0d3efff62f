//! Retention: days of the log that are over are dropped whole, by one replica at a time.
//!
//! A tenant's log is cut first: `earliest_position` moves behind the last expired event and `removed_until` to its time, so that every
//! reader is told of it, whether it starts at a cursor or at a time; and what still waited for one of those events (a retry, a redrive,
//! a replay) is given up with an announcement that counts it, in the same transaction. Only then is the day's partition dropped. A day
//! that holds an event which its tenant's dispatcher has not come to yet stays, with all days after it.
//!
//! Readers need no notice of their own: a watch gets a bookmark within its interval, seconds or minutes, and a day is the least
//! that is kept, so a cursor that has expired is one that nobody read on from.

use super::heads::bump_registry;
use super::leases::shard_of;
use super::{Store, StoreError, announcements, replays};
use crate::domain::announcement::{Announcement, Expired};
use crate::domain::ids::{Position, ReplicaId, SubscriptionId, SubscriptionNo, TenantId};
use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use sqlx::{AssertSqlSafe, PgConnection};
use std::collections::BTreeMap;
use std::time::Duration;
use uuid::Uuid;

/// The tables of a day, in the order in which they go: what is derived from events must never outlive what it is derived with.
const TABLES: [&str; 3] = ["events", "outcomes", "attempts"];
/// Tenants that are listed at a time.
const TENANTS_AT_A_TIME: i64 = 500;
/// Invocations that one transaction gives up at most, of each kind.
const GIVEN_UP_AT_A_TIME: i64 = 1_000;
/// How long a drop waits for its lock: publishing waits behind it.
const LOCK_PATIENCE: Duration = Duration::from_millis(50);
/// How often a drop is tried before it is left to the next round.
const TRIES: u32 = 20;
/// Between two tries, times the number of the try.
const BETWEEN_TRIES: Duration = Duration::from_millis(50);
/// A drop itself.
const DROP_MAX: Duration = Duration::from_secs(60);

/// A day of a table.
struct Partition {
    day: NaiveDate,
    table: &'static str,
    name: String,
}

/// What a round of retention did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retained {
    /// Partitions that are gone.
    pub dropped: Vec<String>,
    /// Tenants whose log was cut.
    pub cut: usize,
    /// The first day that stays only because a tenant is not dispatched that far.
    pub held_from: Option<NaiveDate>,
    /// Partitions that could not be locked in time.
    pub locked: Vec<String>,
}

impl Store {
    /// Takes a duty that one replica at a time does; false where another one has it.
    pub async fn take_duty(&self, name: &str, holder: ReplicaId, lease: TimeDelta) -> Result<bool, StoreError> {
        let now = self.now();
        let taken = sqlx::query(
            "INSERT INTO duties (name, holder, held_until) VALUES ($1, $2, $3)
             ON CONFLICT ON CONSTRAINT duties_pk DO UPDATE SET holder = EXCLUDED.holder, held_until = EXCLUDED.held_until
              WHERE duties.held_until <= $4 OR duties.holder = EXCLUDED.holder",
        )
        .bind(name)
        .bind(holder.0)
        .bind(now + lease)
        .bind(now)
        .execute(self.engine())
        .await?;
        Ok(taken.rows_affected() > 0)
    }

    /// Gives a duty back, done.
    pub async fn end_duty(&self, name: &str, holder: ReplicaId) -> Result<(), StoreError> {
        sqlx::query("UPDATE duties SET held_until = $3, done_at = $3 WHERE name = $1 AND holder = $2")
            .bind(name)
            .bind(holder.0)
            .bind(self.now())
            .execute(self.engine())
            .await?;
        Ok(())
    }

    /// Removes the days before `before`.
    pub async fn retain(&self, before: NaiveDate) -> Result<Retained, StoreError> {
        let mut retained = Retained::default();
        let expired = self.partitions_before(before).await?;
        if expired.is_empty() {
            return Ok(retained);
        }
        let mut after = Uuid::nil();
        loop {
            let sql = "SELECT tenant_id FROM tenant_heads WHERE tenant_id > $1 ORDER BY tenant_id LIMIT $2";
            let tenants: Vec<Uuid> =
                sqlx::query_scalar(sql).bind(after).bind(TENANTS_AT_A_TIME).fetch_all(self.engine()).await?;
            let Some(last) = tenants.last() else { break };
            after = *last;
            for tenant in tenants {
                let (cut, held_from) = self.cut_log(TenantId(tenant), before).await?;
                retained.cut += usize::from(cut);
                retained.held_from = retained.held_from.into_iter().chain(held_from).min();
            }
        }
        let mut locked = None;
        for Partition { day, table, name } in expired {
            // A day's tables go in their order or not at all.
            if retained.held_from.is_some_and(|held| day >= held) || locked == Some(day) {
                continue;
            }
            if self.drop_partition(table, day).await? {
                retained.dropped.push(name);
            } else {
                retained.locked.push(name);
                locked = Some(day);
            }
        }
        Ok(retained)
    }

    /// The partitions of days before this one: whole days in order, and within a day in the order of [`TABLES`].
    async fn partitions_before(&self, before: NaiveDate) -> Result<Vec<Partition>, StoreError> {
        let rows: Vec<(String, String)> = sqlx::query_as(
            "SELECT p.relname::text, c.relname::text FROM pg_catalog.pg_inherits i
               JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid JOIN pg_catalog.pg_class p ON p.oid = i.inhparent
              WHERE p.relname = ANY($1) AND p.relkind = 'p' AND p.relnamespace = current_schema()::regnamespace
              ORDER BY c.relname LIMIT 100000",
        )
        .bind(TABLES.as_slice())
        .fetch_all(self.engine())
        .await?;
        let mut found: Vec<(NaiveDate, usize, String)> = Vec::new();
        for (parent, name) in rows {
            let day = name.strip_prefix(&parent).and_then(|rest| NaiveDate::parse_from_str(rest, "_%Y%m%d").ok());
            let rank = TABLES.iter().position(|table| *table == parent);
            // A partition of another name was made by somebody else, and is theirs to drop.
            if let (Some(day), Some(rank)) = (day, rank)
                && day < before
            {
                found.push((day, rank, name));
            }
        }
        found.sort();
        Ok(found.into_iter().map(|(day, rank, name)| Partition { day, table: TABLES[rank], name }).collect())
    }

    /// Cuts one tenant's log: whether anything was cut, and the day from which it must stay because dispatching is not there yet.
    async fn cut_log(&self, tenant: TenantId, before: NaiveDate) -> Result<(bool, Option<NaiveDate>), StoreError> {
        let owed = self.owed();
        let cursor: Option<(Position, NaiveDate)> =
            sqlx::query_as("SELECT position, day FROM dispatch_cursors WHERE tenant_id = $1")
                .bind(tenant.0)
                .fetch_optional(owed.as_tenant(tenant))
                .await?;
        let (position, day) = cursor.unwrap_or_default();
        let held_from: Option<NaiveDate> = sqlx::query_scalar(
            "SELECT day FROM events WHERE tenant_id = $1 AND day >= $2 AND day < $3 AND position > $4
              ORDER BY day, position LIMIT 1",
        )
        .bind(tenant.0)
        .bind(day)
        .bind(before)
        .bind(position)
        .fetch_optional(owed.as_tenant(tenant))
        .await?;
        let until = held_from.unwrap_or(before);
        let last: Option<(Position, DateTime<Utc>)> = sqlx::query_as(
            "SELECT position, committed_at FROM events WHERE tenant_id = $1 AND day < $2
              ORDER BY day DESC, position DESC LIMIT 1",
        )
        .bind(tenant.0)
        .bind(until)
        .fetch_optional(owed.as_tenant(tenant))
        .await?;
        let Some(last) = last else { return Ok((false, held_from)) };
        loop {
            let store = self.clone();
            let more = self.run(async move { store.cut_chunk(tenant, last, until).await }).await?;
            if !more {
                return Ok((true, held_from));
            }
        }
    }

    /// One transaction of a cut; true where more is to be given up.
    async fn cut_chunk(
        &self,
        tenant: TenantId,
        (last, committed_at): (Position, DateTime<Utc>),
        until: NaiveDate,
    ) -> Result<bool, StoreError> {
        let now = self.now();
        let mut tx = self.begin_owed(tenant).await?;
        // As callers' changes do: the head first, then the cursor, so that no settle runs meanwhile.
        sqlx::query(
            "UPDATE tenant_heads SET earliest_position = GREATEST(earliest_position, $2),
                    removed_until = GREATEST(removed_until, $4), removed_before = GREATEST(removed_before, $2),
                    deferred_version = deferred_version + 1, changed_at = $3
              WHERE tenant_id = $1",
        )
        .bind(tenant.0)
        .bind(last + 1)
        .bind(now)
        .bind(committed_at)
        .execute(&mut *tx)
        .await?;
        sqlx::query("SELECT token FROM dispatch_cursors WHERE tenant_id = $1 AND shard = $2 FOR UPDATE")
            .bind(tenant.0)
            .bind(shard_of(tenant))
            .execute(&mut *tx)
            .await?;
        let waiting = give_up(&mut tx, "deferred_invocations", tenant, last).await?;
        let dead = give_up(&mut tx, "dead_letters", tenant, last).await?;
        // Their invocations ended or wait, and are counted there.
        let removed = give_up(&mut tx, "removed_dead_letters", tenant, last).await?;
        let count = |given_up: &[GivenUp]| given_up.iter().map(|of| of.1).sum::<i64>();
        let passed = replays::pass(&mut tx, tenant, last, GIVEN_UP_AT_A_TIME).await?;
        let full = |count: i64| count >= GIVEN_UP_AT_A_TIME;
        let more = [count(&waiting), count(&dead), count(&removed)].into_iter().any(full)
            || full(i64::try_from(passed.len()).unwrap_or(i64::MAX));
        let mut expired: BTreeMap<SubscriptionNo, Expired> = BTreeMap::new();
        for (given_up, is_dead) in waiting.iter().map(|of| (of, false)).chain(dead.iter().map(|of| (of, true))) {
            let (no, count, first, last) = *given_up;
            let nothing = Expired { waiting: 0, dead_letters: 0, replay: None, first, last };
            let of = expired.entry(no).or_insert(nothing);
            *(if is_dead { &mut of.dead_letters } else { &mut of.waiting }) += count;
            (of.first, of.last) = (of.first.min(first), of.last.max(last));
        }
        for (no, gap) in passed {
            let (first, last) = (gap.from, gap.to - 1);
            let nothing = Expired { waiting: 0, dead_letters: 0, replay: None, first, last };
            let of = expired.entry(no).or_insert(nothing);
            of.replay = Some(gap);
            (of.first, of.last) = (of.first.min(first), of.last.max(last));
        }
        if !expired.is_empty() {
            let version = bump_registry(&mut tx, tenant, now).await?.registry_version;
            let numbers: Vec<SubscriptionNo> = expired.keys().copied().collect();
            let names: Vec<(SubscriptionNo, Uuid, String)> = sqlx::query_as(
                "SELECT s.subscription_no, s.subscription_id, COALESCE(a.slug, '') FROM subscriptions s
                   LEFT JOIN apps a ON a.tenant_id = s.tenant_id AND a.app_id = s.app_id
                  WHERE s.tenant_id = $1 AND s.subscription_no = ANY($2) ORDER BY s.subscription_no LIMIT 10000",
            )
            .bind(tenant.0)
            .bind(numbers)
            .fetch_all(&mut *tx)
            .await?;
            for (no, id, app) in names {
                let Some(of) = expired.get(&no) else { continue };
                let id = SubscriptionId(id).to_string();
                let told = Announcement::invocations_expired((&id, &app), of, until, now);
                announcements::record(&mut tx, tenant, version, &told, now).await?;
            }
        }
        tx.commit().await?;
        Ok(more)
    }

    /// Drops a partition, waiting only briefly for its locks each time; false where it stays locked.
    async fn drop_partition(&self, table: &'static str, day: NaiveDate) -> Result<bool, StoreError> {
        let opening = format!(
            "BEGIN; SET LOCAL lock_timeout = {}; SET LOCAL statement_timeout = {}",
            LOCK_PATIENCE.as_millis(),
            DROP_MAX.as_millis()
        );
        let work = async {
            for attempt in 1..=TRIES {
                let dropped = async {
                    let mut tx = self.engine().begin(opening.clone()).await?;
                    // Only the table's owner may: the function runs as that one.
                    let sql = sqlx::query("SELECT drop_partition($1, $2)").bind(table).bind(day);
                    sql.execute(&mut *tx).await?;
                    Ok(tx.commit().await?)
                };
                match dropped.await {
                    Ok(()) => return Ok(true),
                    Err(StoreError::Locked) => tokio::time::sleep(BETWEEN_TRIES * attempt).await,
                    Err(error) => return Err(error),
                }
            }
            Ok(false)
        };
        let timed_out = || StoreError::from(sqlx::Error::PoolTimedOut);
        tokio::time::timeout(DROP_MAX * 2, work).await.unwrap_or_else(|_| Err(timed_out()))
    }
}

/// Subscription, how many, first and last position.
type GivenUp = (SubscriptionNo, i64, Position, Position);

/// Deletes the oldest rows of a table up to a position, at most a chunk.
async fn give_up(
    connection: &mut PgConnection,
    table: &'static str,
    tenant: TenantId,
    last: Position,
) -> Result<Vec<GivenUp>, StoreError> {
    let sql = format!(
        "WITH picked AS (
             SELECT position, subscription_no FROM {table} WHERE tenant_id = $1 AND position <= $2
              ORDER BY position, subscription_no LIMIT $3),
         gone AS (
             DELETE FROM {table} d USING picked p
              WHERE d.tenant_id = $1 AND d.position = p.position AND d.subscription_no = p.subscription_no
             RETURNING d.position, d.subscription_no)
         SELECT subscription_no, count(*), min(position), max(position) FROM gone GROUP BY subscription_no"
    );
    Ok(sqlx::query_as(AssertSqlSafe(sql))
        .bind(tenant.0)
        .bind(last)
        .bind(GIVEN_UP_AT_A_TIME)
        .fetch_all(connection)
        .await?)
}

#[cfg(test)]
mod tests;
