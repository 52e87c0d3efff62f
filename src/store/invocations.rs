//! Invocations as callers see them: lists, and single records with their attempts. Changes are in `store/invocation_changes.rs`.
//!
//! An invocation has no row of its own. Its event lists the subscription, or it is a replay's. It is pending where its event lists the subscription and nothing else is recorded;
//! otherwise exactly one of `outcomes`, `deferred_invocations` and `dead_letters` says what became of it.

use super::audit::Principal;
use super::dispatch::{Place, parse_class, parse_state, state_number};
use super::events::LogPlace;
use super::subscriptions::state_from_code;
use super::{Store, StoreError};
use crate::domain::event::LogEntry;
use crate::domain::event_type::EventTypeName;
use crate::domain::ids::{EventId, InvocationId, Position, SubscriptionId, SubscriptionNo, TenantId};
use crate::domain::invocation::{Attempt, CancelReason, Invocation, Outcome, OutcomeClass, State};
use crate::domain::subscription;
use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use sqlx::{Postgres, QueryBuilder};
use std::collections::HashMap;
use std::time::Duration;
use uuid::Uuid;

/// A subscription that a caller may see, in any state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VisibleSubscription {
    /// Its id.
    pub id: SubscriptionId,
    /// Its number.
    pub no: SubscriptionNo,
    /// Whether it executes.
    pub state: subscription::State,
}

/// Which invocations to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InvocationFilter {
    /// Only this event.
    pub event: Option<EventId>,
    /// Only this subscription.
    pub subscription: Option<VisibleSubscription>,
    /// Only these states; none means every state.
    pub states: Vec<State>,
    /// Only events committed at or after this time.
    pub from: Option<DateTime<Utc>>,
    /// Only events committed before this time.
    pub to: Option<DateTime<Utc>>,
}

/// Where a list goes on: behind this invocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvocationKey {
    /// The event's day.
    pub day: NaiveDate,
    /// Which.
    pub place: Place,
}

#[derive(sqlx::FromRow)]
pub(in crate::store) struct Row {
    day: NaiveDate,
    position: i64,
    subscription_no: i32,
    pub(in crate::store) state: i16,
    attempt: i32,
    outcome_class: i16,
    status_code: i16,
    duration_us: i32,
    /// Start of the last attempt, time of death, or due time, as the state says.
    at: Option<DateTime<Utc>>,
    excerpt: Option<String>,
    reason: Option<String>,
    event_id: Uuid,
    event_type: String,
    committed_at: DateTime<Utc>,
    subscription_id: Uuid,
    slug: String,
    replay: bool,
}

/// The part of the log that a list looks at: `after < position <= up_to`.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct Range {
    pub(in crate::store) from: LogPlace,
    pub(in crate::store) up_to: Position,
    /// No event of the range is younger than this day.
    last_day: Option<NaiveDate>,
}

impl Store {
    /// Lists invocations, newest event first, behind `key` where given; `limit` at most. The key says where to go on.
    pub async fn list_invocations(
        &self,
        principal: &Principal,
        filter: &InvocationFilter,
        key: Option<InvocationKey>,
        limit: u32,
    ) -> Result<(Vec<Invocation>, Option<InvocationKey>), StoreError> {
        let Some(range) = self.range(principal.tenant, filter).await? else {
            // An event that is not in the log may be one that its listeners did not let pass.
            return match filter.event {
                Some(event) if key.is_none() => Ok((self.pending_invocations(principal, event, filter).await?, None)),
                _ => Ok((Vec::new(), None)),
            };
        };
        let only = filter.subscription.map(|only| only.no);
        // One more than asked for tells whether there is a next page.
        let mut rows = self.rows(principal, range, only, &filter.states, key, limit.saturating_add(1)).await?;
        let size = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = rows.len() > size;
        rows.truncate(size);
        let next = rows.last().filter(|_| more).map(|row| InvocationKey { day: row.day, place: row.place() });
        Ok((self.with_last_attempts(principal.tenant, rows).await?, next))
    }

    /// Reads one invocation with every attempt that ended, oldest first; none for an unknown one or another app's.
    pub async fn invocation(
        &self,
        principal: &Principal,
        id: InvocationId,
    ) -> Result<Option<(Invocation, Vec<Attempt>)>, StoreError> {
        let recorded = match self.event(principal.tenant, id.event).await? {
            Some(entry) => self.row(principal, &entry, id.subscription_no).await?.map(|row| (entry, row)),
            None => None,
        };
        let Some((entry, row)) = recorded else {
            let filter = InvocationFilter::default();
            let found = self.pending_invocations(principal, id.event, &filter).await?;
            let found = found.into_iter().find(|invocation| invocation.id == id);
            return Ok(found.map(|invocation| {
                let attempts = invocation.last_attempt.iter().cloned().collect();
                (invocation, attempts)
            }));
        };
        let mut attempts = self.attempts(principal.tenant, &[(entry.day(), row.place())], Which::Every).await?;
        let mut attempts = attempts.remove(&row.place()).unwrap_or_default();
        attempts.extend(row.own_attempt()?);
        let invocation = row.parse(attempts.last().cloned())?;
        Ok(Some((invocation, attempts)))
    }

    /// The invocations of one event, by subscription number; where there are more than `limit`, those of the highest numbers.
    pub async fn event_invocations(
        &self,
        tenant: TenantId,
        entry: &LogEntry,
        limit: u32,
    ) -> Result<Vec<Invocation>, StoreError> {
        let rows = self.rows(&Principal::server(tenant), Range::of(entry), None, &[], None, limit).await?;
        let mut invocations = self.with_last_attempts(tenant, rows).await?;
        invocations.sort_by_key(|invocation| invocation.id);
        Ok(invocations)
    }

    /// True where every invocation of an event is SUCCEEDED, DEAD_LETTERED or CANCELLED.
    pub async fn is_settled(&self, tenant: TenantId, entry: &LogEntry) -> Result<bool, StoreError> {
        let open = [State::Pending, State::Waiting];
        Ok(self.rows(&Principal::server(tenant), Range::of(entry), None, &open, None, 1).await?.is_empty())
    }

    /// A subscription as far as the caller may see it; none also for another app's.
    pub async fn visible_subscription(
        &self,
        principal: &Principal,
        id: SubscriptionId,
    ) -> Result<Option<VisibleSubscription>, StoreError> {
        let found: Option<(SubscriptionNo, i16)> = sqlx::query_as(
            "SELECT subscription_no, state FROM subscriptions
              WHERE tenant_id = $1 AND subscription_id = $2 AND ($3::uuid IS NULL OR app_id = $3)",
        )
        .bind(principal.tenant.0)
        .bind(id.0)
        .bind(principal.app.map(|app| app.0))
        .fetch_optional(self.as_tenant(principal.tenant))
        .await?;
        let parse = |(no, code)| Ok(VisibleSubscription { id, no, state: state_from_code(code)? });
        found.map(parse).transpose()
    }

    /// Times become positions: along a log the commit time never decreases. None where the range is empty.
    pub(in crate::store) async fn range(
        &self,
        tenant: TenantId,
        filter: &InvocationFilter,
    ) -> Result<Option<Range>, StoreError> {
        let Some(head) = self.head(tenant).await? else { return Ok(None) };
        let end = LogPlace { after: head.position, day: head.committed_at.date_naive() };
        let mut range =
            Range { from: LogPlace { after: 0, day: NaiveDate::default() }, up_to: Position::MAX, last_day: None };
        if let Some(event) = filter.event {
            let Some(entry) = self.event(tenant, event).await? else { return Ok(None) };
            range = Range::of(&entry);
        }
        if let Some(from) = filter.from {
            let place = self.place_at(tenant, from, end).await?;
            if place.after > range.from.after {
                range.from = place;
            }
        }
        if let Some(to) = filter.to {
            let place = self.place_at(tenant, to, end).await?;
            range.up_to = range.up_to.min(place.after);
            range.last_day = Some(range.last_day.map_or(place.day, |day| day.min(place.day)));
        }
        Ok((range.from.after < range.up_to).then_some(range))
    }

    pub(in crate::store) async fn row(
        &self,
        principal: &Principal,
        entry: &LogEntry,
        subscription_no: SubscriptionNo,
    ) -> Result<Option<Row>, StoreError> {
        Ok(self.rows(principal, Range::of(entry), Some(subscription_no), &[], None, 1).await?.pop())
    }

    /// The union of the sources, each sorted and limited on its own so that its index serves the page.
    async fn rows(
        &self,
        principal: &Principal,
        range: Range,
        only: Option<SubscriptionNo>,
        states: &[State],
        key: Option<InvocationKey>,
        limit: u32,
    ) -> Result<Vec<Row>, StoreError> {
        let wants = |state: State| states.is_empty() || states.contains(&state);
        let limit = i64::from(limit);
        let tenant = principal.tenant.0;
        let last_day = match (range.last_day, key) {
            (Some(day), Some(key)) => Some(day.min(key.day)),
            (day, key) => day.or(key.map(|key| key.day)),
        };
        // Days rise with positions: they stand in an order only where they stand in the index that serves it.
        let bounds = |sql: &mut QueryBuilder<Postgres>, row: &str, event: &str, by_day: &str| {
            // One day by equality: behind a range of days an index has no place to end at, and would be read down to the day's first event.
            let from = if last_day == Some(range.from.day) { "=" } else { ">=" };
            sql.push(format!(" AND {event}.day {from} ")).push_bind(range.from.day);
            if let Some(day) = last_day {
                sql.push(format!(" AND {event}.day <= ")).push_bind(day);
            }
            sql.push(format!(" AND {event}.position > ")).push_bind(range.from.after);
            sql.push(format!(" AND {event}.position <= ")).push_bind(range.up_to);
            if let Some(InvocationKey { place, .. }) = key {
                sql.push(format!(" AND {event}.position <= ")).push_bind(place.position);
                sql.push(format!(" AND ({event}.position, {row}.subscription_no) < ("));
                sql.push_bind(place.position).push(", ").push_bind(place.subscription_no).push(")");
            }
            if let Some(no) = only {
                sql.push(format!(" AND {row}.subscription_no = ")).push_bind(no);
            }
            if let Some(app) = principal.app {
                sql.push(format!(
                    " AND {row}.subscription_no IN (SELECT subscription_no FROM subscriptions WHERE tenant_id = "
                ));
                sql.push_bind(tenant).push(" AND app_id = ").push_bind(app.0).push(")");
            }
            sql.push(format!(" ORDER BY {by_day}{event}.position DESC, {row}.subscription_no DESC LIMIT "));
            sql.push_bind(limit).push(")");
        };
        let mut sql = QueryBuilder::<Postgres>::new(
            "SELECT k.day, k.position, k.subscription_no, k.state, k.attempt, k.outcome_class, k.status_code, k.duration_us,
                    k.at, k.excerpt, k.reason, e.event_id, e.event_type, e.committed_at, s.subscription_id,
                    COALESCE(a.slug, '') AS slug,
                    k.subscription_no <> ALL(e.matched || e.refused) AS replay FROM (
             (SELECT NULL::date AS day, 0::bigint AS position, 0 AS subscription_no, 0::smallint AS state, 0 AS attempt,
                     0::smallint AS outcome_class, 0::smallint AS status_code, 0 AS duration_us, NULL::timestamptz AS at,
                     NULL::text AS excerpt, NULL::text AS reason WHERE false)",
        );
        let finals: Vec<State> =
            [State::Succeeded, State::Cancelled].into_iter().filter(|state| wants(*state)).collect();
        if !finals.is_empty() {
            sql.push(
                " UNION ALL (SELECT o.day, o.position, o.subscription_no, o.state, o.attempt, o.outcome_class, o.status_code,
                         o.duration_us, o.started_at, o.excerpt, o.reason FROM outcomes o WHERE o.tenant_id = ",
            );
            sql.push_bind(tenant);
            // Written out, since a plan for any values could not use `outcomes_cancelled`; both are all that there are.
            if let [state] = finals[..] {
                sql.push(format!(" AND o.state = {}", state_number(state)));
            }
            bounds(&mut sql, "o", "o", "o.day DESC, ");
        }
        if wants(State::Waiting) {
            sql.push(
                " UNION ALL (SELECT d.day, d.position, d.subscription_no, 2::smallint, d.attempt, 0::smallint, 0::smallint, 0,
                         d.due_at, NULL, NULL FROM deferred_invocations d WHERE d.tenant_id = ",
            );
            sql.push_bind(tenant);
            bounds(&mut sql, "d", "d", "");
        }
        if wants(State::DeadLettered) {
            sql.push(
                " UNION ALL (SELECT d.day, d.position, d.subscription_no, 4::smallint, d.attempt, 0::smallint, 0::smallint, 0,
                         d.dead_at, NULL, NULL FROM dead_letters d WHERE d.tenant_id = ",
            );
            sql.push_bind(tenant);
            bounds(&mut sql, "d", "d", "");
        }
        // What nothing is recorded of lies beyond the cursor: it never passes an invocation without a record. A refused one is
        // cancelled from birth, even before its owner has recorded it.
        for (state, column) in [(State::Pending, "matched"), (State::Cancelled, "refused")] {
            if !wants(state) {
                continue;
            }
            // As `LogEntry::refusal` says.
            let reason = if state == State::Cancelled {
                "CASE WHEN m.subscription_no = ANY(e.lineage) THEN 'CHAIN_CYCLE' ELSE 'CHAIN_BUDGET' END"
            } else {
                "NULL"
            };
            sql.push(format!(
                " UNION ALL (SELECT e.day, e.position, m.subscription_no, {}::smallint, 0, 0::smallint, 0::smallint, 0,
                         e.committed_at, NULL, {reason} FROM events e
                         CROSS JOIN LATERAL unnest(e.{column}) AS m(subscription_no) WHERE e.tenant_id = ",
                state_number(state)
            ));
            sql.push_bind(tenant);
            sql.push(" AND e.position > COALESCE((SELECT c.position FROM dispatch_cursors c WHERE c.tenant_id = ");
            sql.push_bind(tenant).push("), 0)");
            for table in ["outcomes", "deferred_invocations", "dead_letters"] {
                sql.push(format!(
                    " AND NOT EXISTS (SELECT FROM {table} x WHERE x.tenant_id = e.tenant_id AND x.day = e.day
                              AND x.position = e.position AND x.subscription_no = m.subscription_no)"
                ));
            }
            bounds(&mut sql, "m", "e", "e.day DESC, ");
        }
        // The sources are limited already, so nothing of them may get lost here: a deleted subscription may outlive its app.
        sql.push(
            ") AS k
              JOIN events e ON e.tenant_id = ",
        );
        sql.push_bind(tenant)
            .push(" AND e.day = k.day AND e.position = k.position JOIN subscriptions s ON s.tenant_id = ");
        sql.push_bind(tenant).push(" AND s.subscription_no = k.subscription_no LEFT JOIN apps a ON a.tenant_id = ");
        sql.push_bind(tenant).push(" AND a.app_id = s.app_id ORDER BY k.position DESC, k.subscription_no DESC LIMIT ");
        sql.push_bind(limit);
        Ok(sql.build_query_as().fetch_all(self.as_tenant(principal.tenant)).await?)
    }

    /// Adds the last attempt of each.
    pub(in crate::store) async fn with_last_attempts(
        &self,
        tenant: TenantId,
        rows: Vec<Row>,
    ) -> Result<Vec<Invocation>, StoreError> {
        let tried = rows.iter().filter(|row| row.may_have_attempts());
        let tried: Vec<(NaiveDate, Place)> = tried.map(|row| (row.day, row.place())).collect();
        let mut last =
            if tried.is_empty() { HashMap::new() } else { self.attempts(tenant, &tried, Which::Last).await? };
        rows.into_iter()
            .map(|row| {
                let recorded = last.remove(&row.place()).and_then(|mut attempts| attempts.pop());
                let attempt = row.own_attempt()?.or(recorded);
                row.parse(attempt)
            })
            .collect()
    }

    /// Recorded attempts that failed, oldest first.
    async fn attempts(
        &self,
        tenant: TenantId,
        places: &[(NaiveDate, Place)],
        which: Which,
    ) -> Result<HashMap<Place, Vec<Attempt>>, StoreError> {
        type AttemptRow = (i64, i32, i32, i16, i16, i32, DateTime<Utc>, Option<String>, Option<String>);
        let day: Vec<NaiveDate> = places.iter().map(|(day, _)| *day).collect();
        let (position, subscription_no): (Vec<i64>, Vec<i32>) =
            places.iter().map(|(_, place)| (place.position, place.subscription_no)).unzip();
        // Each by its day too: behind a range of days the primary key finds no position. Attempts of one invocation are few: at most 50 a
        // set, and a set more per redrive.
        let sql = match which {
            Which::Last => {
                "SELECT DISTINCT ON (a.position, a.subscription_no) a.position, a.subscription_no, a.attempt, a.outcome_class,
                        a.status_code, a.duration_us, a.started_at, a.excerpt, a.error
                   FROM attempts a JOIN unnest($2::date[], $3::bigint[], $4::integer[]) AS k(day, position, subscription_no)
                     ON a.day = k.day AND a.position = k.position AND a.subscription_no = k.subscription_no
                  WHERE a.tenant_id = $1
                  ORDER BY a.position, a.subscription_no, a.attempt DESC"
            }
            Which::Every => {
                "SELECT a.position, a.subscription_no, a.attempt, a.outcome_class, a.status_code, a.duration_us, a.started_at,
                        a.excerpt, a.error
                   FROM attempts a JOIN unnest($2::date[], $3::bigint[], $4::integer[]) AS k(day, position, subscription_no)
                     ON a.day = k.day AND a.position = k.position AND a.subscription_no = k.subscription_no
                  WHERE a.tenant_id = $1
                  ORDER BY a.position, a.subscription_no, a.attempt LIMIT 1000"
            }
        };
        let rows: Vec<AttemptRow> = sqlx::query_as(sql)
            .bind(tenant.0)
            .bind(day)
            .bind(position)
            .bind(subscription_no)
            .fetch_all(self.as_tenant(tenant))
            .await?;
        let mut found: HashMap<Place, Vec<Attempt>> = HashMap::new();
        for (position, subscription_no, number, class, status, duration_us, started_at, excerpt, error) in rows {
            let attempt = Attempt {
                number,
                started_at,
                duration: microseconds(duration_us),
                outcome: outcome(parse_class(class)?, status, excerpt, error),
            };
            found.entry(Place { position, subscription_no }).or_default().push(attempt);
        }
        Ok(found)
    }
}

#[derive(Clone, Copy)]
enum Which {
    Last,
    Every,
}

impl Range {
    fn of(entry: &LogEntry) -> Self {
        Self {
            from: LogPlace { after: entry.position - 1, day: entry.day() },
            up_to: entry.position,
            last_day: Some(entry.day()),
        }
    }
}

impl Row {
    fn place(&self) -> Place {
        Place { position: self.position, subscription_no: self.subscription_no }
    }

    /// True where attempts may be recorded beside it. One that ran when its invocation was cancelled is not counted in the row.
    fn may_have_attempts(&self) -> bool {
        self.outcome_class == 0 && (self.attempt > 0 || self.reason.as_deref() == Some(CancelReason::Caller.as_str()))
    }

    /// The attempt that the row itself records: the one that succeeded.
    fn own_attempt(&self) -> Result<Option<Attempt>, StoreError> {
        let Some(started_at) = self.at.filter(|_| self.outcome_class != 0) else { return Ok(None) };
        let outcome = outcome(parse_class(self.outcome_class)?, self.status_code, self.excerpt.clone(), None);
        Ok(Some(Attempt { number: self.attempt, started_at, duration: microseconds(self.duration_us), outcome }))
    }

    fn parse(self, last_attempt: Option<Attempt>) -> Result<Invocation, StoreError> {
        let state = parse_state(self.state)?;
        let ended_at = match state {
            State::Succeeded | State::Cancelled => {
                self.at.map(|at| at + TimeDelta::microseconds(i64::from(self.duration_us)))
            }
            State::DeadLettered => self.at,
            State::Pending | State::Waiting => None,
        };
        let event_type =
            EventTypeName::parse(&self.event_type).map_err(|_| StoreError::Corrupt { what: "event type name" })?;
        Ok(Invocation {
            id: InvocationId { event: EventId(self.event_id), subscription_no: self.subscription_no },
            event_type,
            event_position: self.position,
            subscription: SubscriptionId(self.subscription_id),
            app_slug: self.slug,
            state,
            attempt_count: last_attempt.as_ref().map_or(self.attempt, |last| last.number.max(self.attempt)),
            created_at: self.committed_at,
            ended_at,
            next_attempt_at: self.at.filter(|_| state == State::Waiting),
            last_attempt,
            cancel_reason: self.reason,
            replay: self.replay,
        })
    }
}

fn outcome(class: OutcomeClass, status: i16, excerpt: Option<String>, error: Option<String>) -> Outcome {
    Outcome { class, status_code: u16::try_from(status).unwrap_or_default(), retry_after: None, excerpt, error }
}

fn microseconds(value: i32) -> Duration {
    Duration::from_micros(u64::try_from(value).unwrap_or_default())
}
