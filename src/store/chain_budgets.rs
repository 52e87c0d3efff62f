//! Budgets of causal chains: how many invocations the events that followed from one event, their root, have fired.
//!
//! Charged by the statement that commits such events (`publish`), in the order of the log and under the lock of the tenant's head: no two
//! replicas spend the same, and what repeats an idempotency key spends nothing. What is beyond the budget is counted too, and goes from what
//! the event fires to what it refuses. An event that follows from none has no part in it.

use super::publish::{NewEvent, TenantBatch};
use super::{Store, StoreError};
use crate::domain::ids::{EventId, TenantId};
use chrono::NaiveDate;
use std::collections::BTreeMap;
use uuid::Uuid;

/// What the statement of a commit says of budgets.
pub(in crate::store) struct Clauses {
    pub charged: &'static str,
    pub parameter: &'static str,
    pub column: &'static str,
    pub joined: &'static str,
    pub matched: &'static str,
    pub refused: &'static str,
    pub returning: &'static str,
    pub no_lists: &'static str,
    pub lists: &'static str,
}

/// Where no event spends anything.
pub(in crate::store) const NONE: Clauses = Clauses {
    charged: "",
    parameter: "",
    column: "",
    joined: "",
    matched: "e.matched::integer[]",
    refused: "e.refused::integer[]",
    returning: "",
    no_lists: "",
    lists: "",
};

/// Where some do. `room` is what is left of the budget after all that its chain fires in this commit, below zero where it falls short; `rest`
/// is how much of that this event and those after it fire. So their sum is how many of its listeners are within the budget. The few chains
/// that fall short are put aside first: every event is compared with each.
pub(in crate::store) const SOME: Clauses = Clauses {
    charged: "
    charged AS (
        INSERT INTO chain_budgets AS b (tenant_id, root_id, day, spent)
        SELECT h.tenant_id, c.root_id, (h.committed_at AT TIME ZONE 'UTC')::date, c.fires
          FROM unnest($30::uuid[], $31::uuid[], $32::bigint[]) AS c(tenant_id, root_id, fires) JOIN head h ON h.tenant_id = c.tenant_id
        ON CONFLICT (tenant_id, root_id) DO UPDATE SET day = EXCLUDED.day, spent = b.spent + EXCLUDED.spent
        RETURNING b.tenant_id, b.root_id, $33::bigint - b.spent AS room),
    short AS MATERIALIZED (SELECT tenant_id, root_id, room FROM charged WHERE room < 0),",
    parameter: ", $29::bigint[]",
    column: ", rest",
    joined: "
          LEFT JOIN short s ON s.tenant_id = e.tenant_id AND s.root_id = e.root_id AND e.rest IS NOT NULL",
    matched: "CASE WHEN s.room IS NULL THEN e.matched::integer[]
                    ELSE (e.matched::integer[])[:GREATEST(s.room + e.rest, 0)::integer] END",
    refused: "CASE WHEN s.room IS NULL THEN e.refused::integer[]
                    ELSE e.refused::integer[] || (e.matched::integer[])[GREATEST(s.room + e.rest, 0)::integer + 1:] END",
    returning: "
        RETURNING tenant_id, event_id, depth, matched, refused",
    no_lists: ", NULL::integer[] AS matched, NULL::integer[] AS refused",
    lists: "
     UNION ALL
    SELECT tenant_id, NULL, NULL, NULL, NULL, event_id, matched, refused FROM written WHERE depth > 0",
};

/// What the events of a commit spend.
pub(in crate::store) struct Charges {
    /// Of each event what it and those after it fire of its chain; none where it spends nothing.
    pub rest: Vec<Option<i64>>,
    /// What of each root's chain is fired in all.
    pub tenant_id: Vec<Uuid>,
    pub root_id: Vec<Uuid>,
    pub fires: Vec<i64>,
}

impl Charges {
    /// None where no event spends anything, as in almost every commit.
    pub fn of(batches: &[TenantBatch]) -> Option<Self> {
        let spends = |new: &NewEvent| new.event.spends_budget() && !new.matched.is_empty();
        if !batches.iter().flat_map(|batch| &batch.events).any(spends) {
            return None;
        }
        let mut roots: BTreeMap<(Uuid, Uuid), i64> = BTreeMap::new();
        let mut rest = Vec::new();
        for batch in batches.iter().rev() {
            for new in batch.events.iter().rev() {
                rest.push(spends(new).then(|| {
                    let fires = roots.entry((batch.tenant.0, new.event.lineage.root.0)).or_default();
                    *fires += i64::try_from(new.matched.len()).unwrap_or(i64::MAX);
                    *fires
                }));
            }
        }
        rest.reverse();
        let ((tenant_id, root_id), fires) = roots.into_iter().unzip();
        Some(Self { rest, tenant_id, root_id, fires })
    }
}

impl Store {
    /// Which of these roots' chains nobody was told of.
    pub async fn untold_budgets(&self, tenant: TenantId, roots: &[EventId]) -> Result<Vec<EventId>, StoreError> {
        let ids: Vec<Uuid> = roots.iter().map(|root| root.0).collect();
        let sql = "SELECT root_id FROM chain_budgets WHERE tenant_id = $1 AND root_id = ANY($2) AND NOT told";
        let untold: Vec<Uuid> = sqlx::query_scalar(sql).bind(tenant.0).bind(ids).fetch_all(self.engine()).await?;
        Ok(untold.into_iter().map(EventId).collect())
    }

    /// Notes that it was told that the budgets of these roots' chains are used up.
    pub async fn mark_budgets_told(&self, tenant: TenantId, roots: &[EventId]) -> Result<(), StoreError> {
        let ids: Vec<Uuid> = roots.iter().map(|root| root.0).collect();
        sqlx::query("UPDATE chain_budgets SET told = true WHERE tenant_id = $1 AND root_id = ANY($2)")
            .bind(tenant.0)
            .bind(ids)
            .execute(self.engine())
            .await?;
        Ok(())
    }

    /// Forgets chains of which nothing has fired since before a day: `limit` at most. Returns how many.
    pub async fn purge_budgets(&self, before: NaiveDate, limit: u32) -> Result<u64, StoreError> {
        let purged = sqlx::query(
            "DELETE FROM chain_budgets b USING (
                 SELECT tenant_id, root_id FROM chain_budgets WHERE day < $1 ORDER BY day LIMIT $2) AS old
              WHERE b.tenant_id = old.tenant_id AND b.root_id = old.root_id AND b.day < $1",
        )
        .bind(before)
        .bind(i64::from(limit))
        .execute(self.engine())
        .await?;
        Ok(purged.rows_affected())
    }
}
