//! The row of a subscription: its columns, its codes, and the way back to the domain.

use crate::domain::event_type::EventTypeName;
use crate::domain::filter::Filter;
use crate::domain::ids::{AppId, SubscriptionId, TenantId};
use crate::domain::pre::{EnrichPath, FailurePolicy, PrePolicy};
use crate::domain::retry::{CircuitBreaker, DeliveryPolicy, KeyOrdering, OnDeadLetter, RateLimit};
use crate::domain::subscription::{Circuit, CircuitState, State, Subscription, Target};
use crate::domain::webhook::{WebhookMode, WebhookTarget, WebhookUri};
use crate::store::StoreError;
use crate::store::secrets::{Keyring, KeyringError};
use aws_lc_rs::digest;
use chrono::{DateTime, Utc};
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection};
use std::time::Duration;
use uuid::Uuid;

#[derive(sqlx::FromRow)]
pub(super) struct SubscriptionRow {
    subscription_id: Uuid,
    subscription_no: i32,
    app_id: Uuid,
    app_slug: Option<String>,
    event_type: String,
    display_name: String,
    filter: String,
    schema_version: i32,
    target_kind: i16,
    webhook_uri: Option<String>,
    webhook_mode: Option<i16>,
    webhook_headers: Option<Json<Vec<(String, String)>>>,
    webhook_headers_sealed: Option<Vec<u8>>,
    max_attempts: i32,
    initial_backoff_ms: i64,
    max_backoff_ms: i64,
    timeout_ms: i64,
    max_in_flight: i32,
    rate_count: Option<i32>,
    rate_interval_ms: Option<i64>,
    circuit_failures: Option<i32>,
    circuit_open_ms: Option<i64>,
    auto_disable_ms: Option<i64>,
    health_circuit: Option<i16>,
    health_since: Option<DateTime<Utc>>,
    health_failures: Option<i32>,
    paused_until: Option<DateTime<Utc>>,
    ordering_key: Option<String>,
    ordering_on_dead_letter: Option<i16>,
    pre_failure_policy: Option<i16>,
    pre_priority: Option<i32>,
    pre_enrich_paths: Option<Vec<String>>,
    state: i16,
    state_reason: String,
    effective_position: i64,
    registry_version: i64,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    deleted_at: Option<DateTime<Utc>>,
}

/// The columns of a [`SubscriptionRow`], from `subscriptions s LEFT JOIN apps a`: a deleted subscription may outlive its app.
pub(super) const COLUMNS: &str = "s.subscription_id, s.subscription_no, s.app_id, a.slug AS app_slug, s.event_type, s.display_name, s.filter, s.schema_version, \
     s.target_kind, s.webhook_uri, s.webhook_mode, s.webhook_headers, s.webhook_headers_sealed, s.max_attempts, \
     s.initial_backoff_ms, s.max_backoff_ms, \
     s.timeout_ms, s.max_in_flight, s.rate_count, s.rate_interval_ms, s.circuit_failures, s.circuit_open_ms, s.auto_disable_ms, \
     h.circuit AS health_circuit, h.since AS health_since, h.failures AS health_failures, \
     h.paused_until, s.ordering_key, \
     s.ordering_on_dead_letter, s.pre_failure_policy, s.pre_priority, s.pre_enrich_paths, s.state, s.state_reason, \
     s.effective_position, s.registry_version, s.created_at, \
     s.updated_at, s.deleted_at";
pub(super) const FROM: &str = "subscriptions s LEFT JOIN apps a ON a.tenant_id = s.tenant_id AND a.app_id = s.app_id \
     LEFT JOIN subscription_health h ON h.tenant_id = s.tenant_id AND h.subscription_no = s.subscription_no \
         AND h.registry_version = s.registry_version";

const KIND_WEBHOOK: i16 = 1;
const STATE_ACTIVE: i16 = 1;
const STATE_DISABLED: i16 = 2;
const STATE_DELETED: i16 = 3;

impl SubscriptionRow {
    /// The subscription as it is at `now`, of the database's clock.
    pub(super) fn parse(
        self,
        tenant: TenantId,
        keyring: Option<&Keyring>,
        now: DateTime<Utc>,
    ) -> Result<Subscription, StoreError> {
        self.parse_inner(tenant, keyring, now).ok_or(StoreError::Corrupt { what: "subscription" })
    }

    fn parse_inner(self, tenant: TenantId, keyring: Option<&Keyring>, now: DateTime<Utc>) -> Option<Subscription> {
        if self.target_kind != KIND_WEBHOOK {
            return None;
        }
        let headers = match &self.webhook_headers_sealed {
            Some(sealed) => open_headers(keyring, tenant, SubscriptionId(self.subscription_id), sealed),
            None => Some(self.webhook_headers.map(|Json(headers)| headers).unwrap_or_default()),
        };
        let target = Target::Webhook(WebhookTarget {
            uri: WebhookUri::parse(&self.webhook_uri?).ok()?,
            mode: mode_from_code(self.webhook_mode?)?,
            headers,
        });
        let filter = if self.filter.is_empty() { None } else { Some(Filter::stored(&self.filter)) };
        let milliseconds = |ms: i64| u64::try_from(ms).ok().map(Duration::from_millis);
        let policy = DeliveryPolicy::new(
            self.max_attempts,
            milliseconds(self.initial_backoff_ms)?,
            milliseconds(self.max_backoff_ms)?,
            milliseconds(self.timeout_ms)?,
            self.max_in_flight,
        );
        let rate_limit = match self.rate_count.zip(self.rate_interval_ms) {
            Some((count, interval)) => Some(RateLimit::new(count, milliseconds(interval)?).ok()?),
            None => None,
        };
        let circuit_breaker = match self.circuit_failures.zip(self.circuit_open_ms) {
            Some((failures, open)) => Some(CircuitBreaker::new(failures, milliseconds(open)?).ok()?),
            None => None,
        };
        let circuit = Circuit {
            state: self.health_circuit.map_or(Some(CircuitState::Closed), circuit_from_code)?,
            since: self.health_since,
            failures: self.health_failures.unwrap_or_default(),
        };
        let mut policy = policy.ok()?.with_rate_limit(rate_limit).with_circuit_breaker(circuit_breaker);
        if let Some(after) = self.auto_disable_ms {
            policy = policy.with_auto_disable_after(milliseconds(after)?).ok()?;
        }
        let ordering = match self.ordering_key {
            Some(key) => Some(KeyOrdering {
                key: Filter::stored(&key),
                on_dead_letter: on_dead_letter_from_code(self.ordering_on_dead_letter?)?,
            }),
            None => None,
        };
        let pre_policy = match self.pre_failure_policy {
            None => None,
            Some(code) => Some(PrePolicy {
                failure_policy: failure_policy_from_code(code)?,
                priority: self.pre_priority.unwrap_or_default(),
                enrich_paths: self
                    .pre_enrich_paths
                    .unwrap_or_default()
                    .iter()
                    .map(|path| EnrichPath::parse(path).ok())
                    .collect::<Option<_>>()?,
            }),
        };
        Some(Subscription {
            id: SubscriptionId(self.subscription_id),
            no: self.subscription_no,
            app: AppId(self.app_id),
            app_slug: self.app_slug.unwrap_or_default(),
            event_type: EventTypeName::parse(&self.event_type).ok()?,
            display_name: self.display_name,
            filter,
            schema_version: self.schema_version,
            target,
            policy: policy.with_ordering(ordering),
            pre_policy,
            state: state_from_code(self.state).ok()?,
            state_reason: self.state_reason,
            circuit,
            paused_until: self.paused_until.filter(|until| *until > now),
            effective_position: self.effective_position,
            registry_version: self.registry_version,
            created_at: self.created_at,
            updated_at: self.updated_at,
            deleted_at: self.deleted_at,
        })
    }
}

pub(super) fn state_code(state: State) -> i16 {
    match state {
        State::Active => STATE_ACTIVE,
        State::Disabled => STATE_DISABLED,
        State::Deleted => STATE_DELETED,
    }
}

/// The state of a number.
pub(in crate::store) fn state_from_code(code: i16) -> Result<State, StoreError> {
    Ok(match code {
        STATE_ACTIVE => State::Active,
        STATE_DISABLED => State::Disabled,
        STATE_DELETED => State::Deleted,
        _ => return Err(StoreError::Corrupt { what: "subscription state" }),
    })
}

/// The columns of a veto: failure policy, priority, places.
pub(super) fn pre_columns(policy: Option<&PrePolicy>) -> (Option<i16>, Option<i32>, Option<Vec<String>>) {
    let Some(policy) = policy else { return (None, None, None) };
    let code = match policy.failure_policy {
        FailurePolicy::Fail => 1,
        FailurePolicy::Ignore => 2,
    };
    (Some(code), Some(policy.priority), Some(policy.enrich_paths.iter().map(EnrichPath::to_string).collect()))
}

fn failure_policy_from_code(code: i16) -> Option<FailurePolicy> {
    match code {
        1 => Some(FailurePolicy::Fail),
        2 => Some(FailurePolicy::Ignore),
        _ => None,
    }
}

pub(super) fn mode_code(mode: WebhookMode) -> i16 {
    match mode {
        WebhookMode::Structured => 1,
        WebhookMode::Binary => 2,
        WebhookMode::Raw => 3,
    }
}

pub(super) fn on_dead_letter_code(on_dead_letter: OnDeadLetter) -> i16 {
    match on_dead_letter {
        OnDeadLetter::Skip => 1,
        OnDeadLetter::Block => 2,
    }
}

/// A circuit's state as a number in the store.
pub(in crate::store) fn circuit_code(state: CircuitState) -> i16 {
    match state {
        CircuitState::Closed => 1,
        CircuitState::Open => 2,
        CircuitState::HalfOpen => 3,
    }
}

/// The state of a number.
pub(in crate::store) fn circuit_from_code(code: i16) -> Option<CircuitState> {
    match code {
        1 => Some(CircuitState::Closed),
        2 => Some(CircuitState::Open),
        3 => Some(CircuitState::HalfOpen),
        _ => None,
    }
}

fn on_dead_letter_from_code(code: i16) -> Option<OnDeadLetter> {
    match code {
        1 => Some(OnDeadLetter::Skip),
        2 => Some(OnDeadLetter::Block),
        _ => None,
    }
}

fn mode_from_code(code: i16) -> Option<WebhookMode> {
    match code {
        1 => Some(WebhookMode::Structured),
        2 => Some(WebhookMode::Binary),
        3 => Some(WebhookMode::Raw),
        _ => None,
    }
}

/// What makes a target unique: SHA-256 over a webhook's normalised URI.
pub(super) fn target_key(target: &Target) -> Vec<u8> {
    let Target::Webhook(webhook) = target;
    digest::digest(&digest::SHA256, webhook.uri.to_string().as_bytes()).as_ref().to_vec()
}

pub(super) fn target_kind(target: &Target) -> i16 {
    match target {
        Target::Webhook(_) => KIND_WEBHOOK,
    }
}

/// Milliseconds of a bounded duration, rounded up so that the smallest one stays above zero.
pub(super) fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX)
}

/// Seals a webhook's headers; none where it has none.
pub(super) fn seal_headers(
    keyring: Option<&Keyring>,
    tenant: TenantId,
    id: SubscriptionId,
    headers: &[(String, String)],
) -> Result<Option<Vec<u8>>, StoreError> {
    const FAULT: StoreError = StoreError::Corrupt { what: "webhook header to seal" };
    if headers.is_empty() {
        return Ok(None);
    }
    let plain = serde_json::to_vec(headers).map_err(|_| FAULT)?;
    let sealed = keyring.map(|keyring| keyring.seal_bytes(&plain, &headers_aad(tenant, id)));
    sealed.and_then(Result::ok).map(Some).ok_or(FAULT)
}

/// Opens a webhook's headers. Those whose key is gone must not stop the tenant: only the webhook itself cannot be called.
pub(super) fn open_headers(
    keyring: Option<&Keyring>,
    tenant: TenantId,
    id: SubscriptionId,
    sealed: &[u8],
) -> Option<Vec<(String, String)>> {
    let opened =
        keyring.ok_or(KeyringError::Empty).and_then(|keyring| keyring.open_bytes(sealed, &headers_aad(tenant, id)));
    match opened {
        Ok(plain) => serde_json::from_slice(&plain).ok(),
        Err(error) => {
            tracing::error!(subscription = %id, %error, "the headers of a webhook do not open");
            None
        }
    }
}

fn headers_aad(tenant: TenantId, id: SubscriptionId) -> Vec<u8> {
    [tenant.0.as_bytes().as_slice(), id.0.as_bytes(), b"headers"].concat()
}

/// Reads one subscription in any state, as it is at `now`.
pub(super) async fn read(
    connection: &mut PgConnection,
    keyring: Option<&Keyring>,
    tenant: TenantId,
    id: SubscriptionId,
    now: DateTime<Utc>,
) -> Result<Option<Subscription>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM {FROM} WHERE s.tenant_id = $1 AND s.subscription_id = $2");
    let row: Option<SubscriptionRow> =
        sqlx::query_as(AssertSqlSafe(sql)).bind(tenant.0).bind(id.0).fetch_optional(connection).await?;
    row.map(|row| row.parse(tenant, keyring, now)).transpose()
}
