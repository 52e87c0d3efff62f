//! Places that listeners of one PRE event type may enrich are apart from each other: checked under the head lock, at every change that
//! could make two active subscriptions share one.

use super::SubscriptionRefusal;
use crate::domain::event_type::EventTypeName;
use crate::domain::ids::{AppId, SubscriptionId};
use crate::domain::pre::{EnrichPath, PrePolicy};
use crate::store::StoreError;
use crate::store::audit::Principal;
use sqlx::PgConnection;
use uuid::Uuid;

/// Refuses a policy whose places another active subscription of the event type may enrich already.
pub(super) async fn check(
    tx: &mut PgConnection,
    by: &Principal,
    event_type: &EventTypeName,
    policy: Option<&PrePolicy>,
    own: SubscriptionId,
) -> Result<(), SubscriptionRefusal> {
    let Some(policy) = policy.filter(|policy| !policy.enrich_paths.is_empty()) else { return Ok(()) };
    // Served by the index on the event type. No limit: every active enricher counts, and their places are apart, so they are few.
    let others: Vec<(Uuid, Uuid, Vec<String>)> = sqlx::query_as(
        "SELECT subscription_id, app_id, pre_enrich_paths FROM subscriptions
          WHERE tenant_id = $1 AND event_type = $2 AND state = 1 AND cardinality(pre_enrich_paths) > 0 AND subscription_id <> $3
          ORDER BY subscription_no",
    )
    .bind(by.tenant.0)
    .bind(event_type.as_str())
    .bind(own.0)
    .fetch_all(tx)
    .await?;
    for (other, app, paths) in others {
        let parsed = paths.iter().map(|path| EnrichPath::parse(path)).collect::<Result<Vec<_>, _>>();
        let enrich_paths = parsed.map_err(|_| StoreError::Corrupt { what: "enrich path" })?;
        if let Some(path) = policy.shared_path(&PrePolicy { enrich_paths, ..PrePolicy::default() }) {
            let other = by.sees(AppId(app)).then_some(SubscriptionId(other));
            return Err(SubscriptionRefusal::EnrichPathTaken { path: path.clone(), other });
        }
    }
    Ok(())
}
