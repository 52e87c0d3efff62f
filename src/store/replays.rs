//! Replays: what a subscription missed while it was not active, and how far its delivery is.
//!
//! A replay begins in the transaction that makes its subscription active, and ends early in one that takes that back: what it had not
//! come to is missed from then on, and the next replay begins with it. In between the owner of the tenant defers what was missed, page
//! by page: each page moves the replay on in the transaction that defers its invocations, so that a crash neither repeats nor leaves out
//! any.

use super::events::LogPlace;
use super::leases::shard_of;
use super::settle::Fenced;
use super::{Store, StoreError};
use crate::domain::filter::OrderingKey;
use crate::domain::ids::{Position, SubscriptionId, SubscriptionNo, TenantId};
use crate::domain::invocation::CancelReason;
use crate::domain::subscription::ReplayGap;
use chrono::NaiveDate;
use sqlx::PgConnection;
use uuid::Uuid;

/// A replay under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replay {
    /// Whose.
    pub subscription_no: SubscriptionNo,
    /// Everything up to here is deferred.
    pub done: LogPlace,
    /// The last position that was missed.
    pub up_to: Position,
}

/// An invocation of a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missed {
    /// The event's position.
    pub position: Position,
    /// The event's day.
    pub day: NaiveDate,
    /// What it is in order with.
    pub key: Option<OrderingKey>,
    /// True where the subscription is in the event's lineage: it does not fire again.
    pub looped: bool,
}

impl Store {
    /// The tenant's replay that is furthest behind, of none of the subscriptions that are `busy`, and of none of which `later_max`
    /// invocations wait for another attempt.
    pub async fn replay(
        &self,
        tenant: TenantId,
        busy: &[SubscriptionNo],
        later_max: u32,
    ) -> Result<Option<Replay>, StoreError> {
        // What waits behind another one of its key is due, so that it is not among these.
        let row: Option<(SubscriptionNo, Position, NaiveDate, Position)> = sqlx::query_as(
            "SELECT r.subscription_no, r.position, r.day, r.up_to FROM replays r
              WHERE r.tenant_id = $1 AND r.subscription_no <> ALL($2)
                AND (SELECT count(*) FROM (SELECT FROM deferred_invocations d
                                            WHERE d.tenant_id = $1 AND d.subscription_no = r.subscription_no AND d.due_at > $3
                                            ORDER BY d.due_at LIMIT $4) AS later) < $4
              ORDER BY r.position, r.subscription_no LIMIT 1",
        )
        .bind(tenant.0)
        .bind(busy)
        .bind(self.now())
        .bind(i64::from(later_max))
        .fetch_optional(self.as_tenant(tenant))
        .await?;
        let parse =
            |(subscription_no, after, day, up_to)| Replay { subscription_no, done: LogPlace { after, day }, up_to };
        Ok(row.map(parse))
    }

    /// Which of these tenants have a replay under way.
    pub async fn replaying_tenants(&self, tenants: &[TenantId]) -> Result<Vec<TenantId>, StoreError> {
        let ids: Vec<Uuid> = tenants.iter().map(|tenant| tenant.0).collect();
        let rows: Vec<Uuid> = sqlx::query_scalar("SELECT DISTINCT tenant_id FROM replays WHERE tenant_id = ANY($1)")
            .bind(ids)
            .fetch_all(self.engine())
            .await?;
        Ok(rows.into_iter().map(TenantId).collect())
    }

    /// Defers invocations, cancels those that would go round, and moves the replay on to `reached`, all or nothing, where `token` is
    /// still the owner's. Nothing is written of a replay that has ended, or moved on, meanwhile.
    pub async fn continue_replay(
        &self,
        tenant: TenantId,
        token: i64,
        replay: Replay,
        reached: LogPlace,
        missed: &[Missed],
    ) -> Result<Fenced, StoreError> {
        self.within(self.defer_missed(tenant, token, replay, reached, missed)).await
    }

    async fn defer_missed(
        &self,
        tenant: TenantId,
        token: i64,
        replay: Replay,
        reached: LogPlace,
        missed: &[Missed],
    ) -> Result<Fenced, StoreError> {
        let (looped, fires): (Vec<&Missed>, Vec<&Missed>) = missed.iter().partition(|missed| missed.looped);
        let mut transaction = self.begin_owed(tenant).await?;
        // Another owner's claim waits for the commit, or is found here.
        let fence: Option<i64> =
            sqlx::query_scalar("SELECT token FROM dispatch_cursors WHERE tenant_id = $1 AND token = $2 FOR UPDATE")
                .bind(tenant.0)
                .bind(token)
                .fetch_optional(&mut *transaction)
                .await?;
        if fence.is_none() {
            transaction.rollback().await?;
            return Ok(Fenced::Yes);
        }
        // Its own row is the lock against a change that ends it.
        let moved = sqlx::query(
            "UPDATE replays SET position = $5, day = $6
              WHERE tenant_id = $1 AND subscription_no = $2 AND position = $3 AND up_to = $4",
        )
        .bind(tenant.0)
        .bind(replay.subscription_no)
        .bind(replay.done.after)
        .bind(replay.up_to)
        .bind(reached.after)
        .bind(reached.day)
        .execute(&mut *transaction)
        .await?;
        if moved.rows_affected() == 0 {
            transaction.rollback().await?;
            return Ok(Fenced::No);
        }
        sqlx::query(
            "INSERT INTO deferred_invocations (tenant_id, position, subscription_no, day, shard, attempt, due_at, ordering_key)
             SELECT $1, m.position, $2, m.day, $3, 0, $4, m.ordering_key
               FROM unnest($5::bigint[], $6::date[], $7::uuid[]) AS m(position, day, ordering_key)
             ON CONFLICT DO NOTHING",
        )
        .bind(tenant.0)
        .bind(replay.subscription_no)
        .bind(shard_of(tenant))
        .bind(self.now())
        .bind(fires.iter().map(|missed| missed.position).collect::<Vec<_>>())
        .bind(fires.iter().map(|missed| missed.day).collect::<Vec<_>>())
        .bind(fires.iter().map(|missed| missed.key.map(|key| key.0)).collect::<Vec<_>>())
        .execute(&mut *transaction)
        .await?;
        if !looped.is_empty() {
            sqlx::query(
                "INSERT INTO outcomes (tenant_id, day, position, subscription_no, state, attempt, outcome_class, status_code,
                        duration_us, started_at, reason)
                 SELECT $1, m.day, m.position, $2, 5, 0, 0, 0, 0, $3, $4
                   FROM unnest($5::bigint[], $6::date[]) AS m(position, day)
                 ON CONFLICT DO NOTHING",
            )
            .bind(tenant.0)
            .bind(replay.subscription_no)
            .bind(self.now())
            .bind(CancelReason::ChainCycle.as_str())
            .bind(looped.iter().map(|missed| missed.position).collect::<Vec<_>>())
            .bind(looped.iter().map(|missed| missed.day).collect::<Vec<_>>())
            .execute(&mut *transaction)
            .await?;
        }
        if reached.after >= replay.up_to {
            end(&mut transaction, tenant, replay.subscription_no).await?;
        }
        transaction.commit().await?;
        Ok(Fenced::No)
    }
}

/// Begins the replay of what a subscription misses up to a position; nothing where it misses nothing. Answers what of it retention has
/// removed. In the transaction that makes it active, before it is.
pub(in crate::store) async fn begin(
    connection: &mut PgConnection,
    tenant: TenantId,
    id: SubscriptionId,
    up_to: Position,
) -> Result<Option<ReplayGap>, StoreError> {
    // Listeners of PRE events are asked before an event exists: there is nothing that they could be told afterwards.
    let gap: Option<(Position, Position)> = sqlx::query_as(
        "WITH missed AS (
             SELECT s.tenant_id, s.subscription_no, s.inactive_from AS after, LEAST(h.earliest_position - 1, $3) AS gone
               FROM subscriptions s JOIN tenant_heads h ON h.tenant_id = s.tenant_id
              WHERE s.tenant_id = $1 AND s.subscription_id = $2 AND s.inactive_from < $3 AND s.pre_failure_policy IS NULL),
         begun AS (
             INSERT INTO replays (tenant_id, subscription_no, position, day, up_to)
             SELECT tenant_id, subscription_no, GREATEST(after, gone), 'epoch', $3 FROM missed WHERE gone < $3)
         SELECT after + 1, gone + 1 FROM missed WHERE gone > after",
    )
    .bind(tenant.0)
    .bind(id.0)
    .bind(up_to)
    .fetch_optional(connection)
    .await?;
    Ok(gap.map(|(from, to)| ReplayGap { from, to }))
}

/// Moves a tenant's replays past what retention removes, up to a position; `limit` of them at most. Answers what each loses by that. In
/// the transaction that cuts the log, so that a step which has read of it what goes now is not written.
pub(in crate::store) async fn pass(
    connection: &mut PgConnection,
    tenant: TenantId,
    last: Position,
    limit: i64,
) -> Result<Vec<(SubscriptionNo, ReplayGap)>, StoreError> {
    let passed: Vec<(SubscriptionNo, Position, Position)> = sqlx::query_as(
        "WITH passed AS (
             SELECT subscription_no AS no, position AS after, up_to AS ends FROM replays
              WHERE tenant_id = $1 AND position < $2 ORDER BY subscription_no LIMIT $3 FOR UPDATE),
         ended AS (
             DELETE FROM replays r USING passed p WHERE r.tenant_id = $1 AND r.subscription_no = p.no AND p.ends <= $2),
         moved AS (
             UPDATE replays r SET position = $2 FROM passed p
              WHERE r.tenant_id = $1 AND r.subscription_no = p.no AND p.ends > $2)
         SELECT no, after + 1, LEAST(ends, $2) + 1 FROM passed",
    )
    .bind(tenant.0)
    .bind(last)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    Ok(passed.into_iter().map(|(no, from, to)| (no, ReplayGap { from, to })).collect())
}

/// Ends a subscription's replay, where there is one, and answers the last position that it has come to: what is behind that is missed
/// again. In the transaction that makes it inactive.
pub(in crate::store) async fn end(
    connection: &mut PgConnection,
    tenant: TenantId,
    no: SubscriptionNo,
) -> Result<Option<Position>, StoreError> {
    // A step under way is waited for, and what it has come to is answered: a read beside this, even in the same statement, would not
    // know of it.
    let sql = "DELETE FROM replays WHERE tenant_id = $1 AND subscription_no = $2 RETURNING position";
    Ok(sqlx::query_scalar(sql).bind(tenant.0).bind(no).fetch_optional(connection).await?)
}
