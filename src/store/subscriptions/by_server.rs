//! The one change that the server makes of its own accord: a subscription is disabled because of how its receiver does.
//!
//! Like every change it takes the tenant's head lock first. One that a caller made in between wins.

use super::change::write;
use super::row::{COLUMNS, FROM, SubscriptionRow};
use crate::domain::announcement::Announcement;
use crate::domain::ids::{SubscriptionNo, TenantId};
use crate::domain::subscription::{State, Subscription};
use crate::store::audit::Principal;
use crate::store::heads::{self, RegistryChange};
use crate::store::{Store, StoreError, announcements};
use sqlx::AssertSqlSafe;

/// Why the server disables a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerReason {
    /// Its receiver answered 410 Gone.
    Gone {
        /// The registry version of the subscription that it was called for.
        version: i64,
    },
    /// Its attempts only failed for as long as its policy allows.
    Failing {
        /// The registry version of the subscription that they were made for.
        version: i64,
        /// How the last one ended.
        class: &'static str,
    },
}

impl ServerReason {
    /// False where the subscription was changed since: it may have a receiver that is well.
    fn still_holds(self, subscription: &Subscription) -> bool {
        let (Self::Gone { version } | Self::Failing { version, .. }) = self;
        subscription.registry_version == version
    }

    /// The reason of the state; class and message of the error that led to it.
    fn words(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Gone { .. } => ("GONE", "GONE", "the receiver answered 410 Gone"),
            Self::Failing { class, .. } => {
                ("FAILING", class, "no attempt has succeeded for the time that the policy allows")
            }
        }
    }
}

impl Store {
    /// Disables a subscription for a reason of the server's; nothing happens where it is not active, or was changed since.
    ///
    /// Returns the change of the registry, none where nothing was changed.
    pub async fn disable_by_server(
        &self,
        tenant: TenantId,
        subscription_no: SubscriptionNo,
        reason: ServerReason,
    ) -> Result<Option<RegistryChange>, StoreError> {
        let store = self.clone();
        self.run(async move {
            let now = store.now();
            let by = Principal::server(tenant);
            let mut tx = store.begin_owed(tenant).await?;
            let registry = heads::bump_registry(&mut tx, tenant, now).await?;
            let sql = format!("SELECT {COLUMNS} FROM {FROM} WHERE s.tenant_id = $1 AND s.subscription_no = $2");
            let row: Option<SubscriptionRow> = sqlx::query_as(AssertSqlSafe(sql))
                .bind(tenant.0)
                .bind(subscription_no)
                .fetch_optional(&mut *tx)
                .await?;
            let before = row.map(|row| row.parse(tenant, store.keyring.as_ref(), now)).transpose()?;
            let Some(before) = before.filter(|found| found.state == State::Active && reason.still_holds(found)) else {
                return Ok(None);
            };
            let (state_reason, class, message) = reason.words();
            let after =
                Subscription { state: State::Disabled, state_reason: state_reason.to_owned(), ..before.clone() };
            let after =
                write(&mut tx, store.keyring.as_ref(), &by, after, registry, now, "DisableSubscription").await?;
            let told = Announcement::subscription_changed(&before, &after, &by.name).because_of(class, message);
            announcements::record(&mut tx, tenant, registry.registry_version, &told, now).await?;
            tx.commit().await?;
            Ok(Some(registry))
        })
        .await
    }
}
