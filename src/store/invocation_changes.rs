//! What callers change of invocations: retry, cancel, redrive.
//!
//! Changes lock the tenant's head row first and its dispatch cursor second, so they never interleave with a settle; the owner
//! of the tenant hears of them by the head's deferred_version. Each writes its audit record in its own transaction.

use super::audit::{Principal, record};
use super::dispatch::{Place, parse_state};
use super::invocations::{InvocationFilter, Range};
use super::leases::shard_of;
use super::request_ids::{Once, Repeatable};
use super::subscriptions::state_from_code;
use super::{Store, StoreError};
use crate::domain::ids::{InvocationId, SubscriptionId, SubscriptionNo, TenantId};
use crate::domain::invocation::{CancelReason, Invocation, State};
use crate::domain::subscription;
use crate::feed::Head;
use chrono::{DateTime, NaiveDate, Utc};
use sqlx::{AssertSqlSafe, PgConnection, Postgres, QueryBuilder};
use uuid::Uuid;

/// What a caller's change did.
#[derive(Debug, Clone)]
pub enum InvocationChange {
    /// It was made.
    Done {
        /// The invocation now.
        invocation: Box<Invocation>,
        /// The tenant's head now: news for the dispatcher.
        head: Head,
    },
    /// It was made before, by a call with the same request id: what is kept of its answer.
    Before(Vec<u8>),
    /// No such invocation, or not one the caller may see.
    NotFound,
    /// Its state does not allow the change.
    WrongState(State),
    /// Its subscription does not execute: a retry would only cancel it.
    Inactive(SubscriptionId, subscription::State),
}

/// What a redrive did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Redriven {
    /// How many dead letters got a fresh set of attempts.
    pub count: u32,
    /// True where some that match are left.
    pub more: bool,
    /// The tenant's head now; none where nothing was changed.
    pub head: Option<Head>,
}

/// The answer of a redrive that a call with the same request id has begun.
struct Before(Vec<u8>);

/// Dead letters that one transaction redrives at most.
const REDRIVEN_AT_A_TIME: u32 = 500;

/// Keeps what tells of the dead letters in `gone` that are not announced.
const KEEP_UNTOLD: &str =
    "INSERT INTO removed_dead_letters (tenant_id, position, subscription_no, attempt, day, dead_at, registry_version)
             SELECT tenant_id, position, subscription_no, attempt, day, dead_at, registry_version FROM gone WHERE announced_at IS NULL
             ON CONFLICT DO NOTHING";

/// What a part of a redrive did: how many, the last one that it looked at, and the head.
struct Part {
    count: u32,
    last: Place,
    head: Head,
}

impl Store {
    /// Makes a waiting invocation due now, or gives a dead letter a fresh set of attempts.
    pub async fn retry_invocation(
        &self,
        principal: &Principal,
        id: InvocationId,
        request: Repeatable<()>,
    ) -> Result<InvocationChange, StoreError> {
        self.change_invocation(principal, id, Change::Retry, request).await
    }

    /// Ends a pending or waiting invocation, or a dead letter, as cancelled by the caller.
    pub async fn cancel_invocation(
        &self,
        principal: &Principal,
        id: InvocationId,
        request: Repeatable<()>,
    ) -> Result<InvocationChange, StoreError> {
        self.change_invocation(principal, id, Change::Cancel, request).await
    }

    /// Gives up to `limit` dead letters that match a fresh set of attempts, oldest first. The filter's states are not asked.
    pub async fn redrive_invocations(
        &self,
        principal: &Principal,
        filter: &InvocationFilter,
        limit: u32,
        request: Repeatable<()>,
    ) -> Result<Once<Redriven>, StoreError> {
        match self.redrive_once(principal, filter, limit, request).await? {
            Ok(redriven) => Ok(Once::Made(redriven)),
            Err(Before(answer)) => Ok(Once::Before(answer)),
        }
    }

    async fn redrive_once(
        &self,
        principal: &Principal,
        filter: &InvocationFilter,
        limit: u32,
        request: Repeatable<()>,
    ) -> Result<Result<Redriven, Before>, StoreError> {
        let nothing = Redriven { count: 0, more: false, head: None };
        let Some(range) = self.range(principal.tenant, filter).await? else { return Ok(Ok(nothing)) };
        let only = filter.subscription.map(|only| only.no);
        let mut done = nothing;
        let mut request = request;
        let mut after = Place { position: range.from.after, subscription_no: SubscriptionNo::MAX };
        // In parts, each a short transaction, and what it changes found before: publishing waits for the head's lock meanwhile.
        while done.count < limit {
            let most = REDRIVEN_AT_A_TIME.min(limit - done.count);
            let recorded = (done.count == 0).then(|| filter_resource(filter));
            // The first one takes the request id.
            let request = std::mem::take(&mut request);
            let part = async {
                let found = self.dead_letters(principal, range, only, after, most).await?;
                let (store, by) = (self.clone(), principal.clone());
                self.run(async move { store.redrive_part(&by, &found, recorded, request).await }).await
            };
            let part = match part.await {
                Ok(Ok(part)) => part,
                Ok(Err(before)) => return Ok(Err(before)),
                Err(error) if done.count == 0 => return Err(error),
                // What was redriven stays so, and the caller is told that there may be more.
                Err(error) => {
                    tracing::warn!(%error, "a redrive ended early");
                    return Ok(Ok(Redriven { more: true, ..done }));
                }
            };
            let Some(Part { count, last, head }) = part else { return Ok(Ok(done)) };
            done = Redriven { count: done.count + count, more: false, head: Some(head) };
            after = last;
        }
        let mut sql = QueryBuilder::<Postgres>::new("SELECT EXISTS (SELECT 1");
        push_dead(&mut sql, principal, range, only, after);
        sql.push(")");
        // What was redriven is to be told, so this waits for no turn.
        done.more = sql.build_query_scalar().fetch_one(self.owed().as_tenant(principal.tenant)).await?;
        Ok(Ok(done))
    }

    /// The next dead letters that match, oldest first.
    async fn dead_letters(
        &self,
        principal: &Principal,
        range: Range,
        only: Option<SubscriptionNo>,
        after: Place,
        limit: u32,
    ) -> Result<Vec<Place>, StoreError> {
        let mut sql = QueryBuilder::<Postgres>::new("SELECT d.position, d.subscription_no");
        push_dead(&mut sql, principal, range, only, after);
        sql.push(" ORDER BY d.position, d.subscription_no LIMIT ").push_bind(i64::from(limit));
        let found: Vec<(i64, i32)> = sql.build_query_as().fetch_all(self.as_tenant(principal.tenant)).await?;
        Ok(found.into_iter().map(|(position, subscription_no)| Place { position, subscription_no }).collect())
    }

    /// Redrives those of `found` that are still dead, in one transaction; none where nothing is left to look at.
    async fn redrive_part(
        &self,
        principal: &Principal,
        found: &[Place],
        recorded: Option<String>,
        request: Repeatable<()>,
    ) -> Result<Result<Option<Part>, Before>, StoreError> {
        let (tenant, now) = (principal.tenant, self.now());
        let mut transaction = self.begin_as(tenant).await?;
        let Some(last) = found.last().copied() else {
            // A call with the same id may have just redriven what there was.
            let earlier = request.begin(&mut transaction, tenant, now).await?;
            transaction.rollback().await?;
            return Ok(earlier.map_or(Ok(None), |answer| Err(Before(answer))));
        };
        let head = lock(&mut transaction, tenant, now).await?;
        if let Some(answer) = request.begin(&mut transaction, tenant, now).await? {
            transaction.rollback().await?;
            return Ok(Err(Before(answer)));
        }
        let count = redrive(&mut transaction, tenant, found, now).await?;
        if let Some(resource) = recorded.filter(|_| count > 0) {
            record(&mut transaction, tenant, now, &principal.name, "RedriveInvocations", &resource).await?;
        }
        request.keep(&mut transaction, tenant, &(), now).await?;
        transaction.commit().await?;
        Ok(Ok(Some(Part { count, last, head })))
    }

    async fn change_invocation(
        &self,
        principal: &Principal,
        id: InvocationId,
        change: Change,
        request: Repeatable<()>,
    ) -> Result<InvocationChange, StoreError> {
        let Some(entry) = self.event(principal.tenant, id.event).await? else { return Ok(InvocationChange::NotFound) };
        if self.row(principal, &entry, id.subscription_no).await?.is_none() {
            return Ok(InvocationChange::NotFound);
        }
        let (store, actor) = (self.clone(), principal.clone());
        let (day, place) = (entry.day(), Place { position: entry.position, subscription_no: id.subscription_no });
        let is_refused = entry.refused.contains(&id.subscription_no);
        let done = self
            .run(async move {
                let now = store.now();
                let mut transaction = store.begin_as(actor.tenant).await?;
                let head = lock(&mut transaction, actor.tenant, now).await?;
                if let Some(answer) = request.begin(&mut transaction, actor.tenant, now).await? {
                    transaction.rollback().await?;
                    return Ok(Err(InvocationChange::Before(answer)));
                }
                if matches!(change, Change::Retry)
                    && let Some((id, state)) = inactive(&mut transaction, actor.tenant, place.subscription_no).await?
                {
                    transaction.rollback().await?;
                    return Ok(Err(InvocationChange::Inactive(id, state)));
                }
                let made = match change {
                    Change::Retry => retry(&mut transaction, actor.tenant, place, now).await?,
                    // Cancelled from birth, even before its owner has recorded it.
                    Change::Cancel if is_refused => false,
                    Change::Cancel => cancel(&mut transaction, actor.tenant, day, place, now).await?,
                };
                if !made {
                    transaction.rollback().await?;
                    return Ok(Ok(None));
                }
                record(&mut transaction, actor.tenant, now, &actor.name, change.action(), &id.to_string()).await?;
                request.keep(&mut transaction, actor.tenant, &(), now).await?;
                transaction.commit().await?;
                Ok(Ok(Some(head)))
            })
            .await?;
        let head = match done {
            Ok(head) => head,
            Err(refused) => return Ok(refused),
        };
        // What was changed is to be told, so this waits for no turn.
        let owed = self.owed();
        let Some(row) = owed.row(principal, &entry, id.subscription_no).await? else {
            return Ok(InvocationChange::NotFound);
        };
        let Some(head) = head else { return Ok(InvocationChange::WrongState(parse_state(row.state)?)) };
        let invocation = owed.with_last_attempts(principal.tenant, vec![row]).await?.pop();
        let invocation = Box::new(invocation.ok_or(StoreError::Corrupt { what: "invocation" })?);
        Ok(InvocationChange::Done { invocation, head })
    }
}

#[derive(Clone, Copy)]
enum Change {
    Retry,
    Cancel,
}

impl Change {
    fn action(self) -> &'static str {
        match self {
            Self::Retry => "RetryInvocation",
            Self::Cancel => "CancelInvocation",
        }
    }
}

/// Takes the head's lock and raises its deferred_version, then takes the cursor's lock: no settle runs until the commit.
async fn lock(connection: &mut PgConnection, tenant: TenantId, now: DateTime<Utc>) -> Result<Head, StoreError> {
    let (position, registry_version, deferred_version): (i64, i64, i64) = sqlx::query_as(
        "UPDATE tenant_heads SET deferred_version = deferred_version + 1, changed_at = $2
          WHERE tenant_id = $1 RETURNING position, registry_version, deferred_version",
    )
    .bind(tenant.0)
    .bind(now)
    .fetch_one(&mut *connection)
    .await?;
    sqlx::query("SELECT token FROM dispatch_cursors WHERE tenant_id = $1 FOR UPDATE")
        .bind(tenant.0)
        .execute(connection)
        .await?;
    Ok(Head { tenant, position, registry_version, deferred_version })
}

/// A subscription that does not execute, and why. The head's lock, which its changes take too, is held: it stays so.
async fn inactive(
    connection: &mut PgConnection,
    tenant: TenantId,
    subscription_no: SubscriptionNo,
) -> Result<Option<(SubscriptionId, subscription::State)>, StoreError> {
    let found: Option<(Uuid, i16)> = sqlx::query_as(
        "SELECT subscription_id, state FROM subscriptions WHERE tenant_id = $1 AND subscription_no = $2 AND state <> 1",
    )
    .bind(tenant.0)
    .bind(subscription_no)
    .fetch_optional(connection)
    .await?;
    found.map(|(id, code)| Ok((SubscriptionId(id), state_from_code(code)?))).transpose()
}

/// True where it was waiting or dead.
async fn retry(
    connection: &mut PgConnection,
    tenant: TenantId,
    place: Place,
    now: DateTime<Utc>,
) -> Result<bool, StoreError> {
    // One that is due already may be running: the settle of that attempt heeds the wish.
    let hastened = sqlx::query(
        "UPDATE deferred_invocations SET due_at = LEAST(due_at, $4), hastened_at = CASE WHEN due_at <= $4 THEN $4 END
          WHERE tenant_id = $1 AND position = $2 AND subscription_no = $3",
    )
    .bind(tenant.0)
    .bind(place.position)
    .bind(place.subscription_no)
    .bind(now)
    .execute(&mut *connection)
    .await?;
    if hastened.rows_affected() > 0 {
        return Ok(true);
    }
    Ok(redrive(connection, tenant, &[place], now).await? > 0)
}

/// Gives those of the places that are dead a fresh set of attempts, due now. Returns how many.
async fn redrive(
    connection: &mut PgConnection,
    tenant: TenantId,
    places: &[Place],
    now: DateTime<Utc>,
) -> Result<u32, StoreError> {
    let (position, subscription_no): (Vec<i64>, Vec<i32>) =
        places.iter().map(|place| (place.position, place.subscription_no)).unzip();
    // Both may have changed since they were found: whether it is dead, and whether its subscription executes.
    let redriven = sqlx::query(AssertSqlSafe(format!(
        "WITH gone AS (
             DELETE FROM dead_letters d USING unnest($2::bigint[], $3::integer[]) AS f(position, subscription_no)
              WHERE d.tenant_id = $1 AND d.position = f.position AND d.subscription_no = f.subscription_no
                AND EXISTS (SELECT FROM subscriptions s
                             WHERE s.tenant_id = $1 AND s.subscription_no = f.subscription_no AND s.state = 1)
             RETURNING d.tenant_id, d.position, d.subscription_no, d.day, d.attempt, d.ordering_key, d.dead_at, d.announced_at,
                       d.registry_version),
         untold AS ({KEEP_UNTOLD})
         INSERT INTO deferred_invocations (tenant_id, position, subscription_no, day, ordering_key, shard, attempt, attempt_base,
                due_at)
         SELECT tenant_id, position, subscription_no, day, ordering_key, $4, attempt, attempt, $5 FROM gone"
    )))
    .bind(tenant.0)
    .bind(position)
    .bind(subscription_no)
    .bind(shard_of(tenant))
    .bind(now)
    .execute(connection)
    .await?;
    Ok(u32::try_from(redriven.rows_affected()).unwrap_or(u32::MAX))
}

/// True where it had no final outcome.
async fn cancel(
    connection: &mut PgConnection,
    tenant: TenantId,
    day: NaiveDate,
    place: Place,
    now: DateTime<Utc>,
) -> Result<bool, StoreError> {
    // A success that is being written at this moment holds the key: the insert waits for it, and yields to it.
    let cancelled = sqlx::query(AssertSqlSafe(format!(
        "WITH waiting AS (
             DELETE FROM deferred_invocations WHERE tenant_id = $1 AND position = $3 AND subscription_no = $4 RETURNING attempt),
         gone AS (
             DELETE FROM dead_letters WHERE tenant_id = $1 AND position = $3 AND subscription_no = $4
             RETURNING tenant_id, position, subscription_no, day, attempt, dead_at, announced_at, registry_version),
         untold AS ({KEEP_UNTOLD})
         INSERT INTO outcomes (tenant_id, day, position, subscription_no, state, attempt, outcome_class, status_code,
                duration_us, started_at, reason)
         SELECT $1, $2, $3, $4, 5, COALESCE((SELECT attempt FROM waiting), (SELECT attempt FROM gone), 0), $7, 0, 0, $5, $6
         ON CONFLICT DO NOTHING"
    )))
    .bind(tenant.0)
    .bind(day)
    .bind(place.position)
    .bind(place.subscription_no)
    .bind(now)
    .bind(CancelReason::Caller.as_str())
    .bind(0_i16)
    .execute(connection)
    .await?;
    Ok(cancelled.rows_affected() > 0)
}

/// `FROM dead_letters d WHERE ...` of a redrive.
///
/// Only those behind `after`: what was redriven and died again meanwhile is not redriven twice.
fn push_dead(
    sql: &mut QueryBuilder<Postgres>,
    principal: &Principal,
    range: Range,
    only: Option<SubscriptionNo>,
    after: Place,
) {
    sql.push(" FROM dead_letters d WHERE d.tenant_id = ").push_bind(principal.tenant.0);
    sql.push(" AND (d.position, d.subscription_no) > (").push_bind(after.position);
    sql.push(", ").push_bind(after.subscription_no).push(")");
    sql.push(" AND d.position <= ").push_bind(range.up_to);
    if let Some(no) = only {
        sql.push(" AND d.subscription_no = ").push_bind(no);
    }
    // A subscription that does not execute keeps its dead letters: redriving them would only cancel them.
    sql.push(" AND d.subscription_no IN (SELECT subscription_no FROM subscriptions WHERE state = 1 AND tenant_id = ");
    sql.push_bind(principal.tenant.0);
    if let Some(app) = principal.app {
        sql.push(" AND app_id = ").push_bind(app.0);
    }
    sql.push(")");
}

/// What a redrive is recorded as done to.
fn filter_resource(filter: &InvocationFilter) -> String {
    filter.subscription.map_or_else(|| "invocations".to_owned(), |only| only.id.to_string())
}
