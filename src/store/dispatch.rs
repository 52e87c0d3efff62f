//! What the dispatcher reads: claims of tenants, what is pending, deferred work, dead letters. It writes by `store/settle.rs`.

mod ordered;
mod waiting;

pub use ordered::{OrderedPage, OrderedRows};
pub use waiting::DueSubscription;
#[cfg(test)]
pub(in crate::store) use waiting::PAGE as WAITING_PAGE;

use super::{Store, StoreError};
use crate::domain::ids::{EventId, InvocationId, Position, SubscriptionId, SubscriptionNo, TenantId};
use crate::domain::invocation::{OutcomeClass, State};
use crate::feed::Head;
use crate::store::events::LogPlace;
use crate::store::leases::ShardLease;
use chrono::{DateTime, NaiveDate, Utc};
use sqlx::PgConnection;
use std::collections::HashSet;
use std::sync::Arc;
use uuid::Uuid;

/// An invocation within its tenant, by the event's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The event's position.
    pub position: Position,
    /// The subscription.
    pub subscription_no: SubscriptionNo,
}

/// A tenant as its new owner finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimedTenant {
    /// The tenant's head.
    pub head: Head,
    /// Everything up to here is finished or deferred.
    pub cursor: LogPlace,
    /// The token that fences writes from now on.
    pub token: i64,
    /// Until when former owners may have started attempts that nothing is recorded of.
    pub unclean_ends: Arc<[DateTime<Utc>]>,
}

/// A deferred invocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub struct DeferredRow {
    /// The event's position.
    pub position: Position,
    /// The event's day.
    pub day: NaiveDate,
    /// Number of the last attempt; 0 for none.
    pub attempt: i32,
    /// Number of the last attempt that does not count towards the limit.
    pub attempt_base: i32,
    /// When it runs.
    pub due_at: DateTime<Utc>,
    /// What it is in order with.
    pub ordering_key: Option<Uuid>,
}

/// A dead letter whose operator event has not been published.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// Which.
    pub place: Place,
    /// Its event.
    pub event: EventId,
    /// Number of its last attempt.
    pub attempt: i32,
    /// When it died.
    pub dead_at: DateTime<Utc>,
    /// The subscription.
    pub subscription: SubscriptionId,
    /// The registry version of it that the last attempt was made for; none where that was not recorded.
    pub version: Option<i64>,
    /// The app that owns the subscription; empty where it is deleted.
    pub app_slug: String,
    /// How the last attempt ended.
    pub class: OutcomeClass,
    /// What went wrong in it.
    pub error: String,
    /// When its first attempt started.
    pub first_attempt_at: DateTime<Utc>,
}

impl DeadLetter {
    /// The invocation's id.
    pub fn invocation(&self) -> InvocationId {
        InvocationId { event: self.event, subscription_no: self.place.subscription_no }
    }
}

#[derive(sqlx::FromRow)]
struct DeadLetterRow {
    position: i64,
    subscription_no: i32,
    attempt: i32,
    dead_at: DateTime<Utc>,
    event_id: Uuid,
    subscription_id: Uuid,
    registry_version: Option<i64>,
    app_slug: String,
    first_attempt_at: Option<DateTime<Utc>>,
    outcome_class: Option<i16>,
    error: Option<String>,
}

impl DeadLetterRow {
    fn parse(self) -> Result<DeadLetter, StoreError> {
        Ok(DeadLetter {
            place: Place { position: self.position, subscription_no: self.subscription_no },
            event: EventId(self.event_id),
            attempt: self.attempt,
            dead_at: self.dead_at,
            subscription: SubscriptionId(self.subscription_id),
            version: self.registry_version,
            app_slug: self.app_slug,
            class: self.outcome_class.map_or(Ok(OutcomeClass::Failed), parse_class)?,
            error: self.error.unwrap_or_default(),
            first_attempt_at: self.first_attempt_at.unwrap_or(self.dead_at),
        })
    }
}

impl Store {
    /// Makes this replica the writer of every tenant of a shard it has leased, and fences the former one.
    pub async fn claim_shard(&self, lease: &ShardLease) -> Result<Vec<ClaimedTenant>, StoreError> {
        self.claim(lease.shard, lease.token, None).await
    }

    /// Makes this replica the writer of one tenant of a shard it has leased; makes the cursor of a new tenant.
    ///
    /// None for a tenant that does not exist, or that a newer owner holds.
    pub async fn claim_tenant(
        &self,
        tenant: TenantId,
        shard: i32,
        token: i64,
    ) -> Result<Option<ClaimedTenant>, StoreError> {
        sqlx::query(
            "INSERT INTO dispatch_cursors (tenant_id, shard, day)
             SELECT h.tenant_id, $2, 'epoch' FROM tenant_heads h WHERE h.tenant_id = $1 ON CONFLICT DO NOTHING",
        )
        .bind(tenant.0)
        .bind(shard)
        .execute(self.engine())
        .await?;
        Ok(self.claim(shard, token, Some(tenant)).await?.pop())
    }

    async fn claim(&self, shard: i32, token: i64, tenant: Option<TenantId>) -> Result<Vec<ClaimedTenant>, StoreError> {
        // The update waits for a settle of the former owner that is under way, and every later one finds the new token.
        let rows: Vec<(Uuid, i64, NaiveDate)> = sqlx::query_as(
            "UPDATE dispatch_cursors SET token = $2
              WHERE shard = $1 AND token <= $2 AND ($3::uuid IS NULL OR tenant_id = $3)
             RETURNING tenant_id, position, day",
        )
        .bind(shard)
        .bind(token)
        .bind(tenant.map(|tenant| tenant.0))
        .fetch_all(self.engine())
        .await?;
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let unclean_ends: Arc<[DateTime<Utc>]> = self.unclean_ends(shard).await?.into();
        let ids: Vec<Uuid> = rows.iter().map(|row| row.0).collect();
        // Read after the claim, so that no change by a caller falls between the two.
        let heads: Vec<(Uuid, i64, i64, i64)> = sqlx::query_as(
            "SELECT tenant_id, position, registry_version, deferred_version FROM tenant_heads
              WHERE tenant_id = ANY($1) ORDER BY tenant_id LIMIT $2",
        )
        .bind(&ids)
        .bind(i64::try_from(ids.len()).unwrap_or(i64::MAX))
        .fetch_all(self.engine())
        .await?;
        let mut heads: std::collections::HashMap<Uuid, Head> = heads
            .into_iter()
            .map(|(id, position, registry_version, deferred_version)| {
                (id, Head { tenant: TenantId(id), position, registry_version, deferred_version })
            })
            .collect();
        let parse = |(id, position, day): (Uuid, i64, NaiveDate)| {
            let head = heads.remove(&id)?;
            let cursor = LogPlace { after: position, day };
            Some(ClaimedTenant { head, cursor, token, unclean_ends: unclean_ends.clone() })
        };
        Ok(rows.into_iter().filter_map(parse).collect())
    }

    /// The next deferred invocations of a subscription by due time, due or not, without those at the `held` positions.
    pub async fn deferred(
        &self,
        tenant: TenantId,
        subscription_no: SubscriptionNo,
        held: &[Position],
        limit: u32,
    ) -> Result<Vec<DeferredRow>, StoreError> {
        Ok(sqlx::query_as(
            "SELECT position, day, attempt, attempt_base, due_at, ordering_key FROM deferred_invocations
              WHERE tenant_id = $1 AND subscription_no = $2 AND position <> ALL($3)
              ORDER BY due_at, position LIMIT $4",
        )
        .bind(tenant.0)
        .bind(subscription_no)
        .bind(held)
        .bind(i64::from(limit))
        .fetch_all(self.as_tenant(tenant))
        .await?)
    }

    /// Which of the invocations in memory a caller has cancelled: of `held` those without a deferred row any more, and every
    /// cancelled one after the cursor.
    pub async fn revoked(
        &self,
        tenant: TenantId,
        held: &[Place],
        cursor: LogPlace,
    ) -> Result<HashSet<Place>, StoreError> {
        let (position, subscription_no): (Vec<i64>, Vec<i32>) =
            held.iter().map(|place| (place.position, place.subscription_no)).unzip();
        let rows: Vec<(i64, i32)> = sqlx::query_as(
            "SELECT h.position, h.subscription_no FROM unnest($2::bigint[], $3::integer[]) AS h(position, subscription_no)
              WHERE NOT EXISTS (SELECT FROM deferred_invocations d
                                 WHERE d.tenant_id = $1 AND d.position = h.position AND d.subscription_no = h.subscription_no)
             UNION ALL
             SELECT position, subscription_no FROM outcomes
              WHERE tenant_id = $1 AND day >= $4 AND position > $5 AND state = 5",
        )
        .bind(tenant.0)
        .bind(position)
        .bind(subscription_no)
        .bind(cursor.day)
        .bind(cursor.after)
        .fetch_all(self.as_tenant(tenant))
        .await?;
        Ok(rows.into_iter().map(|(position, subscription_no)| Place { position, subscription_no }).collect())
    }

    /// Dead letters of a tenant whose operator event has not been published, oldest first: also those that a caller has removed.
    pub async fn unannounced(&self, tenant: TenantId, limit: u32) -> Result<Vec<DeadLetter>, StoreError> {
        // A deleted subscription may outlive its app. Of the attempts, those do not count that a redrive has made since.
        let rows: Vec<DeadLetterRow> = sqlx::query_as(
            "SELECT d.position, d.subscription_no, d.attempt, d.dead_at, e.event_id, s.subscription_id, d.registry_version,
                    COALESCE(a.slug, '') AS app_slug, first.started_at AS first_attempt_at, last.outcome_class, last.error
               FROM ((SELECT position, subscription_no, day, attempt, dead_at, registry_version FROM dead_letters
                       WHERE tenant_id = $1 AND announced_at IS NULL ORDER BY position, subscription_no LIMIT $2)
                     UNION ALL
                     (SELECT position, subscription_no, day, attempt, dead_at, registry_version FROM removed_dead_letters
                       WHERE tenant_id = $1 ORDER BY position, subscription_no, attempt LIMIT $2)) AS d
               JOIN events e ON e.tenant_id = $1 AND e.day = d.day AND e.position = d.position
               JOIN subscriptions s ON s.tenant_id = $1 AND s.subscription_no = d.subscription_no
               LEFT JOIN apps a ON a.tenant_id = s.tenant_id AND a.app_id = s.app_id
               LEFT JOIN LATERAL (
                    SELECT t.started_at FROM attempts t
                     WHERE t.tenant_id = $1 AND t.day = d.day AND t.position = d.position
                       AND t.subscription_no = d.subscription_no AND t.attempt <= d.attempt
                     ORDER BY t.attempt LIMIT 1) AS first ON true
               LEFT JOIN LATERAL (
                    SELECT t.outcome_class, t.error FROM attempts t
                     WHERE t.tenant_id = $1 AND t.day = d.day AND t.position = d.position
                       AND t.subscription_no = d.subscription_no AND t.attempt <= d.attempt
                     ORDER BY t.attempt DESC LIMIT 1) AS last ON true
              ORDER BY d.position, d.subscription_no, d.attempt LIMIT $2",
        )
        .bind(tenant.0)
        .bind(i64::from(limit))
        .fetch_all(self.as_tenant(tenant))
        .await?;
        rows.into_iter().map(DeadLetterRow::parse).collect()
    }

    /// Records that dead letters have been announced, each given with its last attempt.
    pub async fn mark_announced(&self, tenant: TenantId, letters: &[(Place, i32)]) -> Result<(), StoreError> {
        let position: Vec<i64> = letters.iter().map(|(place, _)| place.position).collect();
        let subscription_no: Vec<i32> = letters.iter().map(|(place, _)| place.subscription_no).collect();
        let attempt: Vec<i32> = letters.iter().map(|(_, attempt)| *attempt).collect();
        // In two statements: the first one waits for a caller who is removing a dead letter, the second one finds what he has left.
        sqlx::query(
            "UPDATE dead_letters d SET announced_at = $5
               FROM unnest($2::bigint[], $3::integer[], $4::integer[]) AS k(position, subscription_no, attempt)
              WHERE d.tenant_id = $1 AND d.position = k.position AND d.subscription_no = k.subscription_no AND d.attempt = k.attempt",
        )
        .bind(tenant.0)
        .bind(&position)
        .bind(&subscription_no)
        .bind(&attempt)
        .bind(self.now())
        .execute(self.as_tenant(tenant))
        .await?;
        sqlx::query(
            "DELETE FROM removed_dead_letters d
              USING unnest($2::bigint[], $3::integer[], $4::integer[]) AS k(position, subscription_no, attempt)
              WHERE d.tenant_id = $1 AND d.position = k.position AND d.subscription_no = k.subscription_no AND d.attempt = k.attempt",
        )
        .bind(tenant.0)
        .bind(&position)
        .bind(&subscription_no)
        .bind(&attempt)
        .execute(self.as_tenant(tenant))
        .await?;
        Ok(())
    }
}

/// Which invocations of `after < position <= up_to` are finished, deferred or dead: what is left of the matches is pending.
pub(in crate::store) async fn not_pending(
    connection: &mut PgConnection,
    tenant: TenantId,
    place: LogPlace,
    up_to: Position,
) -> Result<HashSet<Place>, StoreError> {
    // No limit: the range is a page of the log, and each of its events has at most as many rows as it matched.
    let rows: Vec<(i64, i32)> = sqlx::query_as(
        "SELECT position, subscription_no FROM outcomes
          WHERE tenant_id = $1 AND day >= $2 AND position > $3 AND position <= $4
         UNION ALL
         SELECT position, subscription_no FROM deferred_invocations WHERE tenant_id = $1 AND position > $3 AND position <= $4
         UNION ALL
         SELECT position, subscription_no FROM dead_letters WHERE tenant_id = $1 AND position > $3 AND position <= $4",
    )
    .bind(tenant.0)
    .bind(place.day)
    .bind(place.after)
    .bind(up_to)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|(position, subscription_no)| Place { position, subscription_no }).collect())
}

/// States as numbers in the store and in the API.
pub(in crate::store) fn state_number(state: State) -> i16 {
    match state {
        State::Pending => 1,
        State::Waiting => 2,
        State::Succeeded => 3,
        State::DeadLettered => 4,
        State::Cancelled => 5,
    }
}

/// The state of a number.
pub(in crate::store) fn parse_state(number: i16) -> Result<State, StoreError> {
    Ok(match number {
        1 => State::Pending,
        2 => State::Waiting,
        3 => State::Succeeded,
        4 => State::DeadLettered,
        5 => State::Cancelled,
        _ => return Err(StoreError::Corrupt { what: "invocation state" }),
    })
}

/// Outcome classes as numbers in the store and in the API; 0 stands for "no attempt".
pub(in crate::store) fn class_number(class: OutcomeClass) -> i16 {
    match class {
        OutcomeClass::Succeeded => 1,
        OutcomeClass::Rejected => 2,
        OutcomeClass::Failed => 3,
        OutcomeClass::Throttled => 4,
        OutcomeClass::Timeout => 5,
        OutcomeClass::Unreachable => 6,
        OutcomeClass::BlockedAddress => 7,
        OutcomeClass::Gone => 8,
    }
}

/// The class of a number.
pub(in crate::store) fn parse_class(number: i16) -> Result<OutcomeClass, StoreError> {
    Ok(match number {
        1 => OutcomeClass::Succeeded,
        2 => OutcomeClass::Rejected,
        3 => OutcomeClass::Failed,
        4 => OutcomeClass::Throttled,
        5 => OutcomeClass::Timeout,
        6 => OutcomeClass::Unreachable,
        7 => OutcomeClass::BlockedAddress,
        8 => OutcomeClass::Gone,
        _ => return Err(StoreError::Corrupt { what: "outcome class" }),
    })
}
