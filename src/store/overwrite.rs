//! A planted defect (`src/planted.rs`): a settle that no fence holds back. Never called by a program that is released.

use super::settle::Settled;
use super::{Store, StoreError};
use crate::domain::ids::TenantId;

impl Store {
    /// The token that passes the fence, whoever asks. One that has lost the tenant gets its way: what others wrote is removed.
    pub(super) async fn overwrite(&self, tenant: TenantId, token: i64, changes: &[Settled]) -> Result<i64, StoreError> {
        let owners: i64 = sqlx::query_scalar("SELECT token FROM dispatch_cursors WHERE tenant_id = $1")
            .bind(tenant.0)
            .fetch_one(self.engine())
            .await?;
        if owners != token {
            let days: Vec<_> = changes.iter().map(|change| change.day).collect();
            let positions: Vec<i64> = changes.iter().map(|change| change.place.position).collect();
            let numbers: Vec<i32> = changes.iter().map(|change| change.place.subscription_no).collect();
            sqlx::query(
                "DELETE FROM outcomes o
                  USING unnest($2::date[], $3::bigint[], $4::integer[]) AS k(day, position, subscription_no)
                  WHERE o.tenant_id = $1 AND o.day = k.day AND o.position = k.position
                    AND o.subscription_no = k.subscription_no",
            )
            .bind(tenant.0)
            .bind(days)
            .bind(positions)
            .bind(numbers)
            .execute(self.engine())
            .await?;
        }
        Ok(owners)
    }
}
