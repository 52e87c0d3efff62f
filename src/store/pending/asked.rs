//! What callers ask about a pending event: what became of it, what its listeners answered, and to take it back.

use super::verdicts::{self, Row};
use super::{PendingEvent, Standing, columns, parse, parse_standing, standing_columns};
use crate::domain::ids::{EventId, InvocationId, Position, TenantId};
use crate::domain::invocation::{Attempt, Invocation, State};
use crate::domain::pre::{Verdict, VerdictKind};
use crate::store::audit::{Principal, record};
use crate::store::invocations::InvocationFilter;
use crate::store::request_ids::{Once, Repeatable};
use crate::store::{Store, StoreError};
use chrono::{NaiveDate, TimeDelta};
use sqlx::{FromRow as _, Row as _};
use std::collections::HashMap;

impl Store {
    /// Reads one pending event.
    pub async fn pending_event(&self, tenant: TenantId, event: EventId) -> Result<Option<PendingEvent>, StoreError> {
        let sql = format!("SELECT {} FROM pending_events WHERE tenant_id = $1 AND event_id = $2", columns());
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(tenant.0)
            .bind(event.0)
            .fetch_optional(self.as_tenant(tenant))
            .await?;
        row.as_ref().map(parse).transpose()
    }

    /// Reads how a pending event stands, and nothing of the event.
    pub async fn pending_standing(&self, tenant: TenantId, event: EventId) -> Result<Option<Standing>, StoreError> {
        let sql = format!("SELECT {} FROM pending_events WHERE tenant_id = $1 AND event_id = $2", standing_columns());
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(tenant.0)
            .bind(event.0)
            .fetch_optional(self.as_tenant(tenant))
            .await?;
        row.as_ref().map(parse_standing).transpose()
    }

    /// Takes an event back. None where there is none that could be. That it was is kept as long as its key: from now on, or from the time
    /// on that it was delayed to.
    pub async fn cancel_pending(
        &self,
        by: &Principal,
        event: EventId,
        kept: TimeDelta,
        request: Repeatable<()>,
    ) -> Result<Option<Once<()>>, StoreError> {
        let (store, by) = (self.clone(), by.clone());
        self.run(async move { store.cancel_pending_in(&by, event, kept, request).await }).await
    }

    async fn cancel_pending_in(
        &self,
        by: &Principal,
        event: EventId,
        kept: TimeDelta,
        request: Repeatable<()>,
    ) -> Result<Option<Once<()>>, StoreError> {
        let (tenant, now) = (by.tenant, self.now());
        let mut tx = self.begin_as(tenant).await?;
        if let Some(answer) = request.begin(&mut tx, tenant, now).await? {
            return Ok(Some(Once::Before(answer)));
        }
        let done = sqlx::query(
            "UPDATE pending_events
                SET state = 4, due_at = NULL, expires_at = GREATEST($3, COALESCE(deliver_at, due_at)) + $4, data = '',
                    extensions = '', data_kind = 0
              WHERE tenant_id = $1 AND event_id = $2 AND state IN (1, 2)",
        )
        .bind(tenant.0)
        .bind(event.0)
        .bind(now)
        .bind(kept)
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            return Ok(None);
        }
        record(&mut tx, tenant, now, &by.name, "CancelEvent", &event.to_string()).await?;
        request.keep(&mut tx, tenant, &(), now).await?;
        tx.commit().await?;
        Ok(Some(Once::Made(())))
    }

    /// The invocations of an event that is not in the log: those of its listeners that have answered, or were not waited for.
    pub(in crate::store) async fn pending_invocations(
        &self,
        principal: &Principal,
        event: EventId,
        filter: &InvocationFilter,
    ) -> Result<Vec<Invocation>, StoreError> {
        let Some(pending) = self.pending_event(principal.tenant, event).await? else { return Ok(Vec::new()) };
        let verdicts = self.pending_verdicts(principal.tenant, event).await?;
        let mut invocations = Vec::with_capacity(verdicts.len());
        for verdict in verdicts {
            let subscription = self.subscription(principal.tenant, principal.app, verdict.subscription).await?;
            let Some(subscription) = subscription else { continue };
            let (state, cancel_reason) = match verdict.kind {
                VerdictKind::Succeeded => (State::Succeeded, None),
                kind => (State::Cancelled, Some(format!("PRE_{}", kind.as_str()))),
            };
            let wanted = filter.states.is_empty() || filter.states.contains(&state);
            if !wanted || filter.subscription.is_some_and(|only| only.no != subscription.no) {
                continue;
            }
            let attempt = verdict.outcome.map(|outcome| Attempt {
                number: verdict.attempt,
                started_at: verdict.started_at,
                duration: verdict.duration,
                outcome,
            });
            invocations.push(Invocation {
                id: InvocationId { event, subscription_no: verdict.subscription_no },
                event_type: pending.entry.event.event_type.clone(),
                event_position: 0,
                subscription: subscription.id,
                app_slug: subscription.app_slug,
                state,
                attempt_count: verdict.attempt,
                created_at: pending.entry.committed_at,
                ended_at: Some(verdict.started_at + verdict.duration),
                next_attempt_at: None,
                last_attempt: attempt,
                cancel_reason,
                replay: false,
            });
        }
        Ok(invocations)
    }

    /// What the listeners of a pending event have answered so far, by subscription number.
    pub async fn pending_verdicts(&self, tenant: TenantId, event: EventId) -> Result<Vec<Verdict>, StoreError> {
        // No limit: at most one row per subscription that the event matched.
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT v.subscription_no, s.subscription_id, v.verdict, v.attempt, v.outcome_class, v.status_code, v.duration_us,
                    v.started_at, v.excerpt, v.message, v.patch, v.failed
               FROM pending_verdicts v
               LEFT JOIN subscriptions s ON s.tenant_id = v.tenant_id AND s.subscription_no = v.subscription_no
              WHERE v.tenant_id = $1 AND v.event_id = $2 ORDER BY v.subscription_no",
        )
        .bind(tenant.0)
        .bind(event.0)
        .fetch_all(self.as_tenant(tenant))
        .await?;
        rows.into_iter().map(verdicts::parse).collect()
    }

    /// What the listeners of events of the log answered before these were committed, by subscription number; none of those where none was
    /// asked.
    pub async fn committed_verdicts(
        &self,
        tenant: TenantId,
        events: &[(NaiveDate, Position)],
    ) -> Result<HashMap<Position, Vec<Verdict>>, StoreError> {
        let (days, positions): (Vec<NaiveDate>, Vec<Position>) = events.iter().copied().unzip();
        // No limit: at most one row per subscription that each event matched. Outcomes of other events have no message, not even an
        // empty one. Each event by its whole key: by days and positions apart, all of the tenant's outcomes of the days may be looked at.
        let rows = sqlx::query(
            "SELECT o.subscription_no, s.subscription_id,
                    (CASE WHEN o.state = 3 THEN 1 WHEN o.reason = 'PRE_FAILED' THEN 3 ELSE 5 END)::smallint, o.attempt,
                    o.outcome_class, o.status_code, o.duration_us, o.started_at, o.excerpt, o.message, NULL::text, NULL::text,
                    o.position
               FROM unnest($2::date[], $3::bigint[]) AS k(day, position)
               JOIN outcomes o ON o.tenant_id = $1 AND o.day = k.day AND o.position = k.position AND o.message IS NOT NULL
               LEFT JOIN subscriptions s ON s.tenant_id = $1 AND s.subscription_no = o.subscription_no",
        )
        .bind(tenant.0)
        .bind(days)
        .bind(positions)
        .fetch_all(self.as_tenant(tenant))
        .await?;
        let mut said: HashMap<Position, Vec<Verdict>> = HashMap::new();
        for row in rows {
            said.entry(row.try_get("position")?).or_default().push(verdicts::parse(Row::from_row(&row)?)?);
        }
        // Sorted here: what the index gives for several events would be sorted as a whole.
        for verdicts in said.values_mut() {
            verdicts.sort_by_key(|verdict| verdict.subscription_no);
        }
        Ok(said)
    }
}
