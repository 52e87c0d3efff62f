//! Every change to subscriptions.
//!
//! A change takes the tenant's head lock first, so it takes effect at one exact position of the log, and stamps its row with the new
//! registry version. What changes read before they write is read under that lock and cannot be outdated.

use super::enrich;
use super::row::{
    COLUMNS, FROM, SubscriptionRow, milliseconds, mode_code, on_dead_letter_code, pre_columns, read, seal_headers,
    state_code, target_key, target_kind,
};
use super::signing::{insert_secret, retire_secrets};
use super::{NewSubscription, Selector, StateChange, StateChanged, SubscriptionQuota, SubscriptionRefusal};
use crate::domain::announcement::Announcement;
use crate::domain::event_type::EventTypeName;
use crate::domain::filter::Filter;
use crate::domain::ids::{AppId, SubscriptionId, TenantId};
use crate::domain::retry::DeliveryPolicy;
use crate::domain::subscription::{State, Subscription, Target};
use crate::store::audit::{self, Principal};
use crate::store::heads::{self, RegistryChange};
use crate::store::request_ids::{Once, Repeatable};
use crate::store::secrets::{Keyring, StoredSecret};
use crate::store::{Store, StoreError, announcements, apps, event_types, replays};
use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

/// Reason of a state that a caller asked for.
const REASON_CALLER: &str = "CALLER";

impl Store {
    /// Adds a subscription, within the tenant's quota.
    pub async fn subscribe(
        &self,
        by: Principal,
        new: NewSubscription,
        quota: SubscriptionQuota,
        request: Repeatable<Subscription>,
    ) -> Result<Once<Subscription>, SubscriptionRefusal> {
        let store = self.clone();
        self.run(async move {
            let now = store.now();
            let work = async {
                let mut tx = store.begin_as(by.tenant).await?;
                let change = heads::bump_registry(&mut tx, by.tenant, now).await?;
                if let Some(answer) = request.begin(&mut tx, by.tenant, now).await? {
                    return Ok(Once::Before(answer));
                }
                let made = insert(&mut tx, store.keyring.as_ref(), &by, new, quota, change, now).await?;
                let told = Announcement::subscribed(&made, &by.name);
                announcements::record(&mut tx, by.tenant, change.registry_version, &told, now).await?;
                request.keep(&mut tx, by.tenant, &made, now).await?;
                tx.commit().await?;
                Ok(Once::Made(made))
            };
            Ok(work.await)
        })
        .await?
    }

    /// Changes a subscription's state. Enabling an active one and disabling a disabled one change nothing.
    ///
    /// Errors: [`SubscriptionRefusal::NotFound`] for an unknown id, [`SubscriptionRefusal::NotSubscribed`] for a deletion of what is
    /// not subscribed, [`SubscriptionRefusal::State`], [`SubscriptionRefusal::AlreadySubscribed`] where an undeleted one's place is
    /// taken, [`SubscriptionRefusal::Etag`].
    pub async fn change_subscription_state(
        &self,
        by: Principal,
        selector: Selector,
        etag: Option<i64>,
        change: StateChange,
        max: i64,
        request: Repeatable<StateChanged>,
    ) -> Result<Once<StateChanged>, SubscriptionRefusal> {
        let store = self.clone();
        self.run(async move {
            let now = store.now();
            let work = async {
                let mut tx = store.begin_as(by.tenant).await?;
                let registry = heads::bump_registry(&mut tx, by.tenant, now).await?;
                if let Some(answer) = request.begin(&mut tx, by.tenant, now).await? {
                    return Ok(Once::Before(answer));
                }
                let before = select(&mut tx, store.keyring.as_ref(), &by, &selector, now).await?;
                if etag.is_some_and(|etag| etag != before.registry_version) {
                    return Err(SubscriptionRefusal::Etag);
                }
                let (state, action) = match (change, before.state) {
                    (StateChange::Enable(_), State::Active) | (StateChange::Disable, State::Disabled) => {
                        // Rolled back, so that the registry version stays as it was; but a retry must not find it changed meanwhile.
                        let same = StateChanged { subscription: before, gap: None };
                        if request.is_kept() {
                            request.keep(&mut tx, by.tenant, &same, now).await?;
                            tx.commit().await?;
                        }
                        return Ok(Once::Made(same));
                    }
                    (StateChange::Enable(_), State::Disabled) => (State::Active, "EnableSubscription"),
                    (StateChange::Disable, State::Active) => (State::Disabled, "DisableSubscription"),
                    (StateChange::Delete, State::Active | State::Disabled) => (State::Deleted, "Unsubscribe"),
                    (StateChange::Delete, State::Deleted) => {
                        return Err(SubscriptionRefusal::NotSubscribed(before.event_type));
                    }
                    (StateChange::Undelete(_), State::Deleted) => (State::Active, "UndeleteSubscription"),
                    (StateChange::Enable(_) | StateChange::Disable, State::Deleted)
                    | (StateChange::Undelete(_), State::Active | State::Disabled) => {
                        return Err(SubscriptionRefusal::State(before.state));
                    }
                };
                if matches!(change, StateChange::Undelete(_)) {
                    let quota = SubscriptionQuota { live: max, deleted: i64::MAX };
                    check_room(&mut tx, by.tenant, quota).await?;
                    check_place(&mut tx, by.tenant, before.app, &before.event_type, &before.target, before.id).await?;
                }
                if state == State::Active {
                    enrich::check(&mut tx, &by, &before.event_type, before.pre_policy.as_ref(), before.id).await?;
                }
                let gap = if change.replays() {
                    replays::begin(&mut tx, by.tenant, before.id, registry.position).await?
                } else {
                    None
                };
                let after = Subscription {
                    state,
                    state_reason: if state == State::Active { String::new() } else { REASON_CALLER.to_owned() },
                    deleted_at: (state == State::Deleted).then_some(now),
                    ..before.clone()
                };
                let after = write(&mut tx, store.keyring.as_ref(), &by, after, registry, now, action).await?;
                let told = Announcement::subscription_changed(&before, &after, &by.name);
                announcements::record(&mut tx, by.tenant, registry.registry_version, &told, now).await?;
                let changed = StateChanged { subscription: after, gap };
                request.keep(&mut tx, by.tenant, &changed, now).await?;
                tx.commit().await?;
                Ok(Once::Made(changed))
            };
            Ok(work.await)
        })
        .await?
    }

    /// Replaces what a caller may change of a subscription: name, filter, pinned schema version, target, policy.
    ///
    /// `change` makes it of what is stored, under the lock, so that of two changes at once neither is lost and none is made in vain.
    ///
    /// Errors: [`SubscriptionRefusal::Etag`], [`SubscriptionRefusal::AlreadySubscribed`], and as for state changes; within, what `change`
    /// refuses.
    pub async fn update_subscription<E: Send + 'static>(
        &self,
        by: Principal,
        id: SubscriptionId,
        etag: Option<i64>,
        change: impl FnOnce(Subscription) -> Result<Subscription, E> + Send + 'static,
        request: Repeatable<Subscription>,
    ) -> Result<Result<Once<Subscription>, E>, SubscriptionRefusal> {
        let store = self.clone();
        self.run(async move {
            let now = store.now();
            let work = async {
                let mut tx = store.begin_as(by.tenant).await?;
                let registry = heads::bump_registry(&mut tx, by.tenant, now).await?;
                if let Some(answer) = request.begin(&mut tx, by.tenant, now).await? {
                    return Ok(Ok(Once::Before(answer)));
                }
                let before = select(&mut tx, store.keyring.as_ref(), &by, &Selector::Id(id), now).await?;
                if etag.is_some_and(|etag| etag != before.registry_version) {
                    return Err(SubscriptionRefusal::Etag);
                }
                if before.state == State::Deleted {
                    return Err(SubscriptionRefusal::State(before.state));
                }
                let changed = match change(before.clone()) {
                    Ok(changed) => changed,
                    Err(refused) => return Ok(Err(refused)),
                };
                check_place(&mut tx, by.tenant, before.app, &before.event_type, &changed.target, before.id).await?;
                let same_matches = before.filter == changed.filter && before.schema_version == changed.schema_version;
                let effective = if same_matches { before.effective_position } else { registry.position };
                let Subscription { display_name, filter, schema_version, target, policy, pre_policy, .. } = changed;
                if before.state == State::Active {
                    enrich::check(&mut tx, &by, &before.event_type, pre_policy.as_ref(), before.id).await?;
                }
                let after =
                    Subscription { display_name, filter, schema_version, target, policy, pre_policy, ..before.clone() };
                let registry = RegistryChange { position: effective, ..registry };
                let after =
                    write(&mut tx, store.keyring.as_ref(), &by, after, registry, now, "UpdateSubscription").await?;
                let told = Announcement::subscription_changed(&before, &after, &by.name);
                announcements::record(&mut tx, by.tenant, registry.registry_version, &told, now).await?;
                request.keep(&mut tx, by.tenant, &after, now).await?;
                tx.commit().await?;
                Ok(Ok(Once::Made(after)))
            };
            Ok(work.await)
        })
        .await?
    }

    /// Adds a signing secret; those before it sign until `previous_expire_at` at the latest.
    ///
    /// Errors: [`SubscriptionRefusal::NotFound`], [`SubscriptionRefusal::State`] for a deleted one,
    /// [`SubscriptionRefusal::TooManySecrets`].
    pub async fn rotate_secret(
        &self,
        by: Principal,
        id: SubscriptionId,
        secret: StoredSecret,
        previous_expire_at: DateTime<Utc>,
        request: Repeatable<()>,
    ) -> Result<Once<()>, SubscriptionRefusal> {
        let store = self.clone();
        self.run(async move {
            let now = store.now();
            let work = async {
                let mut tx = store.begin_as(by.tenant).await?;
                let registry = heads::bump_registry(&mut tx, by.tenant, now).await?;
                if let Some(answer) = request.begin(&mut tx, by.tenant, now).await? {
                    return Ok(Once::Before(answer));
                }
                let before = select(&mut tx, store.keyring.as_ref(), &by, &Selector::Id(id), now).await?;
                if before.state == State::Deleted {
                    return Err(SubscriptionRefusal::State(before.state));
                }
                retire_secrets(&mut tx, by.tenant, id, previous_expire_at, now).await?;
                insert_secret(&mut tx, by.tenant, id, &secret, now).await?;
                // Filter and state stay, so they apply from where they did.
                let registry = RegistryChange { position: before.effective_position, ..registry };
                let after =
                    write(&mut tx, store.keyring.as_ref(), &by, before, registry, now, "RotateSubscriptionSecret")
                        .await?;
                let told = Announcement::secret_rotated(&after, &by.name);
                announcements::record(&mut tx, by.tenant, registry.registry_version, &told, now).await?;
                request.keep(&mut tx, by.tenant, &(), now).await?;
                tx.commit().await?;
                Ok(Once::Made(()))
            };
            Ok(work.await)
        })
        .await?
    }
}

/// Finds the selected subscription as far as the caller sees it.
async fn select(
    tx: &mut PgConnection,
    keyring: Option<&Keyring>,
    by: &Principal,
    selector: &Selector,
    now: DateTime<Utc>,
) -> Result<Subscription, SubscriptionRefusal> {
    let (found, refusal) = match selector {
        Selector::Id(id) => (read(tx, keyring, by.tenant, *id, now).await?, SubscriptionRefusal::NotFound),
        Selector::Target { app, event_type, target } => {
            // The unique index over live targets serves this.
            let sql = format!(
                "SELECT {COLUMNS} FROM {FROM}
                  WHERE s.tenant_id = $1 AND a.slug = $2 AND s.event_type = $3 AND s.target_kind = $4 AND s.target_key = $5
                    AND s.state <> 3"
            );
            let row: Option<SubscriptionRow> = sqlx::query_as(AssertSqlSafe(sql))
                .bind(by.tenant.0)
                .bind(app)
                .bind(event_type.as_str())
                .bind(target_kind(target))
                .bind(target_key(target))
                .fetch_optional(tx)
                .await?;
            (
                row.map(|row| row.parse(by.tenant, keyring, now)).transpose()?,
                SubscriptionRefusal::NotSubscribed(event_type.clone()),
            )
        }
    };
    found.filter(|subscription| by.sees(subscription.app)).ok_or(refusal)
}

/// Refuses a target that another live subscription of the app and event type has, a retired type and a missing app.
async fn check_place(
    tx: &mut PgConnection,
    tenant: TenantId,
    app: AppId,
    event_type: &EventTypeName,
    target: &Target,
    own: SubscriptionId,
) -> Result<String, SubscriptionRefusal> {
    let slug = apps::slug_of(tx, tenant, app).await?.ok_or(SubscriptionRefusal::AppNotFound(app))?;
    if event_type.is_custom() && !event_types::is_active(tx, tenant, event_type).await? {
        return Err(SubscriptionRefusal::EventTypeNotFound(event_type.clone()));
    }
    let taken: Option<Uuid> = sqlx::query_scalar(
        "SELECT subscription_id FROM subscriptions
          WHERE tenant_id = $1 AND app_id = $2 AND event_type = $3 AND target_kind = $4 AND target_key = $5
            AND state <> 3 AND subscription_id <> $6",
    )
    .bind(tenant.0)
    .bind(app.0)
    .bind(event_type.as_str())
    .bind(target_kind(target))
    .bind(target_key(target))
    .bind(own.0)
    .fetch_optional(tx)
    .await?;
    match taken {
        Some(id) => Err(SubscriptionRefusal::AlreadySubscribed(SubscriptionId(id))),
        None => Ok(slug),
    }
}

/// Refuses one more live subscription than the tenant may have, and any where as many are deleted and not purged as may be: whoever
/// subscribes and unsubscribes in turn would fill the store otherwise.
async fn check_room(
    tx: &mut PgConnection,
    tenant: TenantId,
    quota: SubscriptionQuota,
) -> Result<(), SubscriptionRefusal> {
    // Numbers are never reused, so while fewer were given than are allowed nothing needs to be counted under the lock.
    let given: i32 = sqlx::query_scalar("SELECT last_subscription_no FROM tenant_heads WHERE tenant_id = $1")
        .bind(tenant.0)
        .fetch_one(&mut *tx)
        .await?;
    if i64::from(given) < quota.live.min(quota.deleted) {
        return Ok(());
    }
    let (live, deleted): (i64, i64) = sqlx::query_as(
        "SELECT count(*) FILTER (WHERE state <> 3), count(*) FILTER (WHERE state = 3) FROM subscriptions WHERE tenant_id = $1",
    )
    .bind(tenant.0)
    .fetch_one(tx)
    .await?;
    if live >= quota.live {
        return Err(SubscriptionRefusal::TooMany(quota.live));
    }
    if deleted >= quota.deleted { Err(SubscriptionRefusal::TooManyDeleted(quota.deleted)) } else { Ok(()) }
}

async fn insert(
    tx: &mut PgConnection,
    keyring: Option<&Keyring>,
    by: &Principal,
    new: NewSubscription,
    quota: SubscriptionQuota,
    registry: RegistryChange,
    now: DateTime<Utc>,
) -> Result<Subscription, SubscriptionRefusal> {
    check_room(tx, by.tenant, quota).await?;
    let app_slug = check_place(tx, by.tenant, new.app, &new.event_type, &new.target, new.id).await?;
    enrich::check(tx, by, &new.event_type, new.pre_policy.as_ref(), new.id).await?;
    let (failure_policy, priority, enrich_paths) = pre_columns(new.pre_policy.as_ref());
    let no: i32 = sqlx::query_scalar(
        "UPDATE tenant_heads SET last_subscription_no = last_subscription_no + 1 WHERE tenant_id = $1
         RETURNING last_subscription_no",
    )
    .bind(by.tenant.0)
    .fetch_one(&mut *tx)
    .await?;
    let Target::Webhook(webhook) = &new.target;
    let headers = seal_headers(keyring, by.tenant, new.id, webhook.headers())?;
    sqlx::query(
        "INSERT INTO subscriptions (tenant_id, subscription_id, subscription_no, app_id, event_type, display_name, filter,
             target_kind, target_key, webhook_uri, webhook_mode, webhook_headers_sealed, max_attempts, initial_backoff_ms,
             max_backoff_ms, timeout_ms, max_in_flight, state, effective_position, registry_version, created_at, updated_at,
             schema_version, pre_failure_policy, pre_priority, pre_enrich_paths)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, 1, $18, $19, $20, $20, $21, $22,
             $23, $24)",
    )
    .bind(by.tenant.0)
    .bind(new.id.0)
    .bind(no)
    .bind(new.app.0)
    .bind(new.event_type.as_str())
    .bind(&new.display_name)
    .bind(new.filter.as_ref().map_or("", Filter::source))
    .bind(target_kind(&new.target))
    .bind(target_key(&new.target))
    .bind(webhook.uri.to_string())
    .bind(mode_code(webhook.mode))
    .bind(headers)
    .bind(new.policy.max_attempts())
    .bind(milliseconds(new.policy.initial_backoff()))
    .bind(milliseconds(new.policy.max_backoff()))
    .bind(milliseconds(new.policy.timeout()))
    .bind(new.policy.max_in_flight())
    .bind(registry.position)
    .bind(registry.registry_version)
    .bind(now)
    .bind(new.schema_version)
    .bind(failure_policy)
    .bind(priority)
    .bind(enrich_paths)
    .execute(&mut *tx)
    .await?;
    write_options(tx, by.tenant, new.id, &new.policy).await?;
    insert_secret(tx, by.tenant, new.id, &new.secret, now).await?;
    audit::record(tx, by.tenant, now, &by.name, "Subscribe", &new.id.to_string()).await?;
    // As a read gives it back: durations are kept in milliseconds.
    let made = read(tx, keyring, by.tenant, new.id, now).await?.ok_or(StoreError::Corrupt { what: "subscription" })?;
    debug_assert_eq!(made.app_slug, app_slug, "read under the same lock");
    Ok(made)
}

/// Writes everything that may change of a subscription, with the registry's new version.
pub(super) async fn write(
    tx: &mut PgConnection,
    keyring: Option<&Keyring>,
    by: &Principal,
    subscription: Subscription,
    registry: RegistryChange,
    now: DateTime<Utc>,
    action: &str,
) -> Result<Subscription, StoreError> {
    let Target::Webhook(webhook) = &subscription.target;
    let headers = seal_headers(keyring, by.tenant, subscription.id, webhook.headers())?;
    let (failure_policy, priority, enrich_paths) = pre_columns(subscription.pre_policy.as_ref());
    // What a replay has not come to is still missed.
    let replayed = match subscription.state {
        State::Active => None,
        State::Disabled | State::Deleted => replays::end(tx, by.tenant, subscription.no).await?,
    };
    sqlx::query(
        "UPDATE subscriptions SET display_name = $3, filter = $4, target_kind = $5, target_key = $6, webhook_uri = $7,
             webhook_mode = $8, webhook_headers = NULL,
             webhook_headers_sealed = CASE WHEN $25 THEN webhook_headers_sealed ELSE $9 END, max_attempts = $10, initial_backoff_ms = $11, max_backoff_ms = $12,
             timeout_ms = $13, max_in_flight = $14, state = $15, state_reason = $16, effective_position = $17,
             registry_version = $18, updated_at = $19, deleted_at = $20, schema_version = $21, pre_failure_policy = $22,
             pre_priority = $23, pre_enrich_paths = $24,
             -- On the right of a SET stands what was: only a change of state moves it.
             inactive_from = CASE WHEN $15 = 1 THEN NULL WHEN state <> 1 THEN inactive_from ELSE COALESCE($26, $17) END
          WHERE tenant_id = $1 AND subscription_id = $2",
    )
    .bind(by.tenant.0)
    .bind(subscription.id.0)
    .bind(&subscription.display_name)
    .bind(subscription.filter.as_ref().map_or("", Filter::source))
    .bind(target_kind(&subscription.target))
    .bind(target_key(&subscription.target))
    .bind(webhook.uri.to_string())
    .bind(mode_code(webhook.mode))
    .bind(headers)
    .bind(subscription.policy.max_attempts())
    .bind(milliseconds(subscription.policy.initial_backoff()))
    .bind(milliseconds(subscription.policy.max_backoff()))
    .bind(milliseconds(subscription.policy.timeout()))
    .bind(subscription.policy.max_in_flight())
    .bind(state_code(subscription.state))
    .bind(&subscription.state_reason)
    .bind(registry.position)
    .bind(registry.registry_version)
    .bind(now)
    .bind(subscription.deleted_at)
    .bind(subscription.schema_version)
    .bind(failure_policy)
    .bind(priority)
    .bind(enrich_paths)
    // Those that no configured key opens stay as they are.
    .bind(webhook.headers.is_none())
    .bind(replayed)
    .execute(&mut *tx)
    .await?;
    write_options(tx, by.tenant, subscription.id, &subscription.policy).await?;
    audit::record(tx, by.tenant, now, &by.name, action, &subscription.id.to_string()).await?;
    read(tx, keyring, by.tenant, subscription.id, now).await?.ok_or(StoreError::Corrupt { what: "subscription" })
}

/// Writes what a delivery policy says beyond what every subscription has.
async fn write_options(
    tx: &mut PgConnection,
    tenant: TenantId,
    id: SubscriptionId,
    policy: &DeliveryPolicy,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE subscriptions SET ordering_key = $3, ordering_on_dead_letter = $4, rate_count = $5, rate_interval_ms = $6,
             circuit_failures = $7, circuit_open_ms = $8, auto_disable_ms = $9
          WHERE tenant_id = $1 AND subscription_id = $2",
    )
    .bind(tenant.0)
    .bind(id.0)
    .bind(policy.ordering().map(|ordering| ordering.key.source()))
    .bind(policy.ordering().map(|ordering| on_dead_letter_code(ordering.on_dead_letter)))
    .bind(policy.rate_limit().map(|limit| limit.count()))
    .bind(policy.rate_limit().map(|limit| milliseconds(limit.interval())))
    .bind(policy.circuit_breaker().map(|breaker| breaker.failure_threshold()))
    .bind(policy.circuit_breaker().map(|breaker| milliseconds(breaker.open_duration())))
    .bind(milliseconds(policy.auto_disable_after()))
    .execute(tx)
    .await?;
    Ok(())
}
