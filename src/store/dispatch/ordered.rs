//! Deferred invocations in the order of their keys.
//!
//! However many wait, a read costs what it brings, what of that is in memory already, and the keys that it meets: it goes from key to key
//! by the index that has them in order, looks at the first invocation of each, and follows only those of which something may run. Each
//! step asks for the next entry in the order of exactly that index, in a transaction without other ways to have it, so that no statistics
//! lead to another plan; EXISTS would not do, as it forgets its order.

use super::{DeferredRow, Store, StoreError};
use crate::domain::ids::{Position, SubscriptionNo, TenantId};
use crate::store::pool::Tx;
use chrono::{DateTime, Utc};
use uuid::Uuid;

/// Keys that one read meets at most.
const KEYS_MAX: usize = 2_000;

/// Which deferred invocations to read in the order of their keys.
#[derive(Debug, Clone, Copy)]
pub struct OrderedPage<'a> {
    /// The time now.
    pub at: DateTime<Utc>,
    /// Without these positions.
    pub held: &'a [Position],
    /// Up to this position: what the log holds before it is known.
    pub up_to: Position,
    /// Without these keys.
    pub full: &'a [Uuid],
    /// Of the keys behind this one; of all for none.
    pub after: Option<Uuid>,
    /// Of those without a key, what is due from then on: what was due before is held.
    pub looked: DateTime<Utc>,
    /// True where a dead letter holds up those of its key behind it.
    pub blocks: bool,
    /// At most so many, and as many without a key.
    pub limit: u32,
}

/// Deferred invocations in the order of their keys.
#[derive(Debug, Clone)]
pub struct OrderedRows {
    /// Those that may run now, by position: of every key the first ones, without a gap.
    pub rows: Vec<DeferredRow>,
    /// True where more of these may be left: of the keys that were met, or without a key.
    pub more: bool,
    /// The last key that was met, where there may be further ones.
    pub after: Option<Uuid>,
    /// True where all of those without a key that are due are among the rows or held.
    pub looked: bool,
    /// When the first is due that is not due yet.
    pub next_due: Option<DateTime<Utc>>,
    /// True where there are others that are not held, or where new ones may be held up by a dead letter or a replay.
    pub left: bool,
    /// True where some are beyond the position up to which the log is known.
    pub beyond: bool,
    /// How far a replay under way has come: what is in order beyond it waits.
    pub replayed: Option<Position>,
}

/// Whether an invocation may run once those before it in its key have: it is due, what is before it is known, and no dead letter blocks it.
const FREE: &str = "d.due_at <= $3 AND d.position <= $4 AND NOT ($5 AND COALESCE(
                        (SELECT l.ordering_key = d.ordering_key AND l.position < d.position FROM dead_letters l
                          WHERE l.tenant_id = $1 AND l.subscription_no = $2 AND l.ordering_key >= d.ordering_key
                          ORDER BY l.ordering_key, l.position LIMIT 1), false))";

impl Store {
    /// The deferred invocations of a subscription that nothing of their key holds up: no earlier one that is not due yet, no
    /// earlier dead letter where those block, no replay that may still bring an earlier one, and nothing before it in the log that is
    /// not known yet: an owner that takes over finds rows whose predecessors were only in the memory of the one before.
    ///
    /// Where there are more than the limit, every key that is met gets one before any gets a second.
    pub async fn deferred_in_order(
        &self,
        tenant: TenantId,
        subscription_no: SubscriptionNo,
        page: OrderedPage<'_>,
    ) -> Result<OrderedRows, StoreError> {
        // What is left is counted before the page is read: a row that goes in between may only make it look like more.
        // So is how far a replay has come: up to there everything that it brings is found by the page. What comes after the known log is
        // little of the tenant's, and of one subscription may be everything: the sum keeps that from being read by subscription.
        type Around = (Option<DateTime<Utc>>, i64, bool, Option<Position>, bool);
        let (next_due, others, held_up, replayed, beyond): Around = sqlx::query_as(
            "SELECT (SELECT min(due_at) FROM deferred_invocations WHERE tenant_id = $1 AND subscription_no = $2 AND due_at > $3),
                    (SELECT count(*) FROM (SELECT FROM deferred_invocations
                                            WHERE tenant_id = $1 AND subscription_no = $2 AND position <> ALL($4)
                                            ORDER BY due_at, position LIMIT $5) AS others),
                    $6 AND COALESCE((SELECT true FROM dead_letters
                                      WHERE tenant_id = $1 AND subscription_no = $2 AND ordering_key IS NOT NULL
                                      ORDER BY ordering_key, position LIMIT 1), false),
                    (SELECT position FROM replays WHERE tenant_id = $1 AND subscription_no = $2),
                    COALESCE((SELECT true FROM deferred_invocations
                               WHERE tenant_id = $1 AND subscription_no + 0 = $2 AND position > $7
                               ORDER BY position LIMIT 1), false)",
        )
        .bind(tenant.0)
        .bind(subscription_no)
        .bind(page.at)
        .bind(page.held)
        .bind(2 * i64::from(page.limit) + 1)
        .bind(page.blocks)
        .bind(page.up_to)
        .fetch_one(self.as_tenant(tenant))
        .await?;
        let up_to = replayed.map_or(page.up_to, |replayed| replayed.min(page.up_to));
        let walk = async {
            let mut tx = self.begin_owed_walking(tenant).await?;
            let (keys, after) = free_keys(&mut tx, (tenant, subscription_no), page, up_to).await?;
            let rows = first_of(&mut tx, (tenant, subscription_no), page, up_to, &keys).await?;
            tx.commit().await?;
            Ok::<_, StoreError>((rows, after))
        };
        let (mut rows, after) = self.within(walk).await?;
        let unordered = self.due_without_key(tenant, subscription_no, page).await?;
        let is_full = |rows: &[DeferredRow]| rows.len() >= page.limit as usize;
        let (more, looked) = (is_full(&rows) || is_full(&unordered), !is_full(&unordered));
        rows.extend(unordered);
        rows.sort_unstable_by_key(|row| row.position);
        let left = held_up || replayed.is_some() || usize::try_from(others).is_ok_and(|others| others > rows.len());
        Ok(OrderedRows { rows, more, after, looked, next_due, left, beyond, replayed })
    }

    /// Those that are in no order. No index tells them from those that wait in order, so that only what has become due since the last
    /// look is looked at.
    async fn due_without_key(
        &self,
        tenant: TenantId,
        subscription_no: SubscriptionNo,
        page: OrderedPage<'_>,
    ) -> Result<Vec<DeferredRow>, StoreError> {
        Ok(sqlx::query_as(
            "SELECT position, day, attempt, attempt_base, due_at, ordering_key FROM deferred_invocations
              WHERE tenant_id = $1 AND subscription_no = $2 AND due_at BETWEEN $3 AND $4 AND ordering_key IS NULL
                AND position <> ALL($5)
              ORDER BY due_at, position LIMIT $6",
        )
        .bind(tenant.0)
        .bind(subscription_no)
        .bind(page.looked)
        .bind(page.at)
        .bind(page.held)
        .bind(i64::from(page.limit))
        .fetch_all(self.as_tenant(tenant))
        .await?)
    }
}

/// The keys of which the first invocation may run or is held, in their order, and the last one that was met where there may be more.
async fn free_keys(
    tx: &mut Tx,
    (tenant, subscription_no): (TenantId, SubscriptionNo),
    page: OrderedPage<'_>,
    up_to: Position,
) -> Result<(Vec<Uuid>, Option<Uuid>), StoreError> {
    // The first row is where it begins. The others come as they are found, in the order of their keys.
    let sql = format!(
        "WITH RECURSIVE met AS (
             SELECT $6::uuid AS ordering_key, false AS is_free, 0::bigint AS free
             UNION ALL
             SELECT n.ordering_key, n.is_free, m.free + n.is_free::integer
               FROM met m CROSS JOIN LATERAL (
                    SELECT d.ordering_key, d.ordering_key <> ALL($7) AND {FREE} AS is_free FROM deferred_invocations d
                     WHERE d.tenant_id = $1 AND d.subscription_no = $2 AND d.ordering_key > m.ordering_key
                     ORDER BY d.ordering_key, d.position LIMIT 1) AS n
              WHERE m.free < $8)
         SELECT ordering_key, is_free FROM met OFFSET 1 LIMIT $9"
    );
    let met: Vec<(Uuid, bool)> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(tenant.0)
        .bind(subscription_no)
        .bind(page.at)
        .bind(up_to)
        .bind(page.blocks)
        .bind(page.after.unwrap_or(Uuid::nil()))
        .bind(page.full)
        .bind(i64::from(page.limit))
        .bind(i64::try_from(KEYS_MAX).unwrap_or(i64::MAX))
        .fetch_all(&mut **tx)
        .await?;
    let keys: Vec<Uuid> = met.iter().filter(|(_, is_free)| *is_free).map(|(key, _)| *key).collect();
    let is_cut = keys.len() >= page.limit as usize || met.len() >= KEYS_MAX;
    let last = met.last().filter(|_| is_cut).map(|(key, _)| *key);
    Ok((keys, last))
}

/// The first invocations of keys, each up to the first one that may not run.
async fn first_of(
    tx: &mut Tx,
    (tenant, subscription_no): (TenantId, SubscriptionNo),
    page: OrderedPage<'_>,
    up_to: Position,
    keys: &[Uuid],
) -> Result<Vec<DeferredRow>, StoreError> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    // They come as they are found: the first one of every key, then the second ones. Where a key ends, the next entry is another's.
    let sql = format!(
        "WITH RECURSIVE found AS (
             SELECT k AS ordering_key, 0::bigint AS position, NULL::date AS day, NULL::integer AS attempt,
                    NULL::integer AS attempt_base, NULL::timestamptz AS due_at FROM unnest($6::uuid[]) AS k
             UNION ALL
             SELECT n.ordering_key, n.position, n.day, n.attempt, n.attempt_base, n.due_at
               FROM found f CROSS JOIN LATERAL (
                    SELECT d.ordering_key, d.position, d.day, d.attempt, d.attempt_base, d.due_at, {FREE} AS is_free
                      FROM deferred_invocations d
                     WHERE d.tenant_id = $1 AND d.subscription_no = $2 AND d.ordering_key IS NOT NULL
                       AND (d.ordering_key, d.position) > (f.ordering_key, f.position)
                     ORDER BY d.ordering_key, d.position LIMIT 1) AS n
              WHERE n.ordering_key = f.ordering_key AND n.is_free)
         SELECT position, day, attempt, attempt_base, due_at, ordering_key FROM found
          WHERE day IS NOT NULL AND position <> ALL($7) LIMIT $8"
    );
    Ok(sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(tenant.0)
        .bind(subscription_no)
        .bind(page.at)
        .bind(up_to)
        .bind(page.blocks)
        .bind(keys)
        .bind(page.held)
        .bind(i64::from(page.limit))
        .fetch_all(&mut **tx)
        .await?)
}
