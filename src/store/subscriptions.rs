//! Subscriptions: what they are made of in the store, and reading them.
//!
//! `change` makes every change to them that callers ask for, `by_server` the server's own, `row` is the table's row, `signing` the
//! secrets beside it.

mod by_server;
mod change;
mod enrich;
mod reseal;
mod row;
mod signing;

pub use by_server::ServerReason;
pub use reseal::ResealError;
pub use signing::SIGNING_SECRETS_MAX;

use super::secrets::StoredSecret;
use super::{Store, StoreError};
use crate::domain::event_type::EventTypeName;
use crate::domain::filter::Filter;
use crate::domain::ids::{AppId, SubscriptionId, SubscriptionNo, TenantId};
use crate::domain::pre::{EnrichPath, PrePolicy};
use crate::domain::retry::DeliveryPolicy;
use crate::domain::subscription::{ReplayGap, State, Subscription, Target};
use row::{COLUMNS, FROM, SubscriptionRow, read, state_code};
pub(in crate::store) use row::{circuit_code, circuit_from_code, state_from_code};
use sqlx::{AssertSqlSafe, Postgres, QueryBuilder};
use std::collections::HashMap;
use uuid::Uuid;

/// A subscription with its signing secrets, as the registry loads it.
#[derive(Debug, Clone)]
pub struct SubscriptionRecord {
    /// The subscription, in any state.
    pub subscription: Subscription,
    /// Its secrets, oldest first, without those whose time is over.
    pub secrets: Vec<StoredSecret>,
}

/// What a new subscription is made of; everything is checked but what only the head lock can tell.
#[derive(Debug, Clone)]
pub struct NewSubscription {
    /// Its id, made by the caller so that the secret is sealed for it.
    pub id: SubscriptionId,
    /// The app that will own it.
    pub app: AppId,
    /// What it listens to; a system type is known to exist.
    pub event_type: EventTypeName,
    /// Name for people.
    pub display_name: String,
    /// When it fires.
    pub filter: Option<Filter>,
    /// The schema version it is pinned to; 0 for none.
    pub schema_version: i32,
    /// What it runs.
    pub target: Target,
    /// How it is attempted.
    pub policy: DeliveryPolicy,
    /// What its answer counts for; only where the event type is PRE.
    pub pre_policy: Option<PrePolicy>,
    /// Its signing secret.
    pub secret: StoredSecret,
}

/// How many subscriptions a tenant may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubscriptionQuota {
    /// Of those that are not deleted.
    pub live: i64,
    /// Of those that are deleted and not purged.
    pub deleted: i64,
}

/// Names one subscription.
#[derive(Debug, Clone, PartialEq)]
pub enum Selector {
    /// By its id.
    Id(SubscriptionId),
    /// By what makes it unique among those that are not deleted.
    Target {
        /// Slug of its app.
        app: String,
        /// What it listens to.
        event_type: EventTypeName,
        /// What it runs.
        target: Target,
    },
}

/// A change of state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateChange {
    /// Fire again.
    Enable(Missed),
    /// Stop firing.
    Disable,
    /// Unsubscribe.
    Delete,
    /// Restore as active.
    Undelete(Missed),
}

/// A subscription whose state was to be changed.
#[derive(Debug, Clone)]
pub struct StateChanged {
    /// As it is now.
    pub subscription: Subscription,
    /// What of a replay that begins retention has removed.
    pub gap: Option<ReplayGap>,
}

/// What becomes of the events that a subscription missed while it was not active.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missed {
    /// Nothing.
    Left,
    /// They are delivered as a replay.
    Replayed,
}

impl StateChange {
    fn replays(self) -> bool {
        matches!(self, Self::Enable(Missed::Replayed) | Self::Undelete(Missed::Replayed))
    }
}

/// Which subscriptions a list shows.
#[derive(Debug, Clone, Default)]
pub struct SubscriptionQuery {
    /// Only this app's.
    pub app: Option<AppId>,
    /// Only those of this event type.
    pub event_type: Option<EventTypeName>,
    /// Only these states.
    pub states: Vec<State>,
}

impl SubscriptionQuery {
    /// `WHERE ...`, with what is asked for and nothing else: a plan for any values serves no condition by an index that may be none.
    fn push(&self, sql: &mut QueryBuilder<Postgres>, tenant: TenantId) {
        let states: Vec<i16> = self.states.iter().map(|state| state_code(*state)).collect();
        sql.push(" WHERE s.tenant_id = ").push_bind(tenant.0).push(" AND s.state = ANY(").push_bind(states).push(")");
        if let Some(app) = self.app {
            sql.push(" AND s.app_id = ").push_bind(app.0);
        }
        if let Some(event_type) = &self.event_type {
            sql.push(" AND s.event_type = ").push_bind(event_type.as_str().to_owned());
        }
    }
}

/// Why a change of a subscription is refused.
#[derive(Debug, thiserror::Error)]
pub enum SubscriptionRefusal {
    /// No such subscription, or one the caller does not see.
    #[error("no such subscription")]
    NotFound,
    /// Not subscribed, or not any more.
    #[error("not subscribed to {0}")]
    NotSubscribed(EventTypeName),
    /// The same app, event type and target are subscribed already.
    #[error("already subscribed as {0}")]
    AlreadySubscribed(SubscriptionId),
    /// Another active subscription may enrich the same place.
    #[error("{path} may be enriched by another subscription already")]
    EnrichPathTaken {
        /// The place.
        path: EnrichPath,
        /// The other subscription; none where the caller does not see it.
        other: Option<SubscriptionId>,
    },
    /// The event type does not exist or is retired.
    #[error("no such event type")]
    EventTypeNotFound(EventTypeName),
    /// The app that owns it does not exist any more.
    #[error("no such app as {0}")]
    AppNotFound(AppId),
    /// Its state does not allow the change.
    #[error("the subscription's state does not allow it")]
    State(State),
    /// Somebody else changed it.
    #[error("the etag does not match")]
    Etag,
    /// The tenant has as many subscriptions as it may.
    #[error("the tenant has {0} subscriptions")]
    TooMany(i64),
    /// As many of the tenant's subscriptions are deleted and not purged as may be.
    #[error("{0} deleted subscriptions are not purged yet")]
    TooManyDeleted(i64),
    /// As many secrets sign as may.
    #[error("{0} secrets sign at once")]
    TooManySecrets(usize),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for SubscriptionRefusal {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// Rows per statement where all changes are read.
const CHANGES_PER_PAGE: i64 = 2_000;

impl Store {
    /// Every subscription changed after a registry version, in the order of their changes, and in all states; without those that are
    /// deleted where everything is asked for (version 0).
    ///
    /// Reads in pages: one that changes meanwhile may come twice, the later state later.
    pub async fn subscriptions_changed_since(
        &self,
        tenant: TenantId,
        version: i64,
    ) -> Result<Vec<SubscriptionRecord>, StoreError> {
        // Every change has a registry version of its own, so pages that go by it lose nothing.
        let sql = format!(
            "SELECT {COLUMNS} FROM {FROM} WHERE s.tenant_id = $1 AND s.registry_version > $2 AND ($4 OR s.state <> 3)
              ORDER BY s.registry_version LIMIT $3"
        );
        let (mut changed, mut after, now) = (Vec::new(), version, self.now());
        loop {
            let rows: Vec<SubscriptionRow> = sqlx::query_as(AssertSqlSafe(sql.clone()))
                .bind(tenant.0)
                .bind(after)
                .bind(CHANGES_PER_PAGE)
                .bind(version > 0)
                .fetch_all(self.as_tenant(tenant))
                .await?;
            let full = i64::try_from(rows.len()).is_ok_and(|rows| rows == CHANGES_PER_PAGE);
            let page: Vec<Subscription> =
                rows.into_iter().map(|row| row.parse(tenant, self.keyring.as_ref(), now)).collect::<Result<_, _>>()?;
            after = page.last().map_or(after, |last| last.registry_version);
            let ids: Vec<Uuid> = page.iter().map(|subscription| subscription.id.0).collect();
            let mut secrets = self.secrets_of(tenant, &ids).await?;
            for subscription in page {
                let secrets = secrets.remove(&subscription.id.0).unwrap_or_default();
                changed.push(SubscriptionRecord { subscription, secrets });
            }
            if !full {
                return Ok(changed);
            }
        }
    }

    /// The ids of subscriptions in any state, by number; unknown ones are left out.
    pub async fn subscription_ids(
        &self,
        tenant: TenantId,
        numbers: &[SubscriptionNo],
    ) -> Result<HashMap<SubscriptionNo, SubscriptionId>, StoreError> {
        let rows: Vec<(SubscriptionNo, Uuid)> = sqlx::query_as(
            "SELECT subscription_no, subscription_id FROM subscriptions WHERE tenant_id = $1 AND subscription_no = ANY($2)
              ORDER BY subscription_no LIMIT $3",
        )
        .bind(tenant.0)
        .bind(numbers)
        .bind(i64::try_from(numbers.len()).unwrap_or(i64::MAX))
        .fetch_all(self.as_tenant(tenant))
        .await?;
        Ok(rows.into_iter().map(|(no, id)| (no, SubscriptionId(id))).collect())
    }

    /// Reads a subscription in any state; none also where the caller does not see it.
    pub async fn subscription(
        &self,
        tenant: TenantId,
        app: Option<AppId>,
        id: SubscriptionId,
    ) -> Result<Option<Subscription>, StoreError> {
        let read = async {
            let mut tx = self.begin_as(tenant).await?;
            let found = read(&mut tx, self.keyring.as_ref(), tenant, id, self.now()).await?;
            tx.commit().await?;
            Ok::<_, StoreError>(found)
        };
        let found = self.within(read).await?;
        Ok(found.filter(|subscription| app.is_none_or(|app| app == subscription.app)))
    }

    /// Lists subscriptions by number, oldest first, those after `after`.
    pub async fn subscriptions(
        &self,
        tenant: TenantId,
        query: &SubscriptionQuery,
        after: SubscriptionNo,
        limit: u32,
    ) -> Result<Vec<Subscription>, StoreError> {
        // The unique key (tenant, number) serves the order, or the index by event type where one is asked for.
        let mut sql = QueryBuilder::<Postgres>::new(format!("SELECT {COLUMNS} FROM {FROM}"));
        query.push(&mut sql, tenant);
        sql.push(" AND s.subscription_no > ").push_bind(after);
        sql.push(" ORDER BY s.subscription_no LIMIT ").push_bind(i64::from(limit));
        let rows: Vec<SubscriptionRow> = sql.build_query_as().fetch_all(self.as_tenant(tenant)).await?;
        let now = self.now();
        rows.into_iter().map(|row| row.parse(tenant, self.keyring.as_ref(), now)).collect()
    }

    /// How many subscriptions a list over all pages shows.
    pub async fn count_subscriptions(&self, tenant: TenantId, query: &SubscriptionQuery) -> Result<i64, StoreError> {
        let mut sql = QueryBuilder::<Postgres>::new("SELECT count(*) FROM subscriptions s");
        query.push(&mut sql, tenant);
        Ok(sql.build_query_scalar().fetch_one(self.as_tenant(tenant)).await?)
    }
}
