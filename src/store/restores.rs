//! Notices that a database is a restored copy, and gives every log a new life then.
//!
//! A copy goes on from where it was taken, so its positions soon stand for other events than those that readers have seen. With a new
//! `log_epoch` their cursors answer CURSOR_FOREIGN, instead of leaving out what the copy has in these places.

use super::{Store, StoreError, tenants};
use sqlx::PgConnection;

/// Name of the setting that says in which database the logs were written.
const DATABASE: &str = "database_identity";

impl Store {
    /// Compares this database with the one in which the logs were written; where it is another one, every log begins a new life.
    /// Of callers that race, one does it. Answers how many tenants' cursors that ended.
    pub async fn notice_restore(&self) -> Result<u64, StoreError> {
        let store = self.clone();
        self.run(async move {
            // A copy within a cluster has another oid, a copy in another cluster another system identifier.
            let here: String = sqlx::query_scalar(
                "SELECT c.system_identifier::text || '/' || d.oid::text
                   FROM pg_catalog.pg_control_system() AS c, pg_catalog.pg_database AS d WHERE d.datname = current_database()",
            )
            .fetch_one(store.engine())
            .await?;
            sqlx::query("INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT DO NOTHING")
                .bind(DATABASE)
                .bind(here.as_bytes())
                .execute(store.engine())
                .await?;
            let mut tx = store.engine().begin("BEGIN".to_owned()).await?;
            let moved = sqlx::query("UPDATE settings SET value = $2 WHERE name = $1 AND value <> $2")
                .bind(DATABASE)
                .bind(here.as_bytes())
                .execute(&mut *tx)
                .await?;
            if moved.rows_affected() == 0 {
                return Ok(0);
            }
            let renewed = renew(&mut tx).await?;
            tx.commit().await?;
            if renewed > 0 {
                tracing::warn!(
                    tenants = renewed,
                    "the database is a copy of the one in which its logs were written: cursors from before it was restored answer \
                     CURSOR_FOREIGN, because what they have read may differ from what this log holds"
                );
            }
            Ok(renewed)
        })
        .await
    }

    /// Gives every log a new life, for a restore that leaves the database its identity. Answers how many tenants' cursors that ended.
    pub async fn renew_logs(&self) -> Result<u64, StoreError> {
        let store = self.clone();
        self.run(async move {
            let mut tx = store.engine().begin("BEGIN".to_owned()).await?;
            let renewed = renew(&mut tx).await?;
            tx.commit().await?;
            Ok(renewed)
        })
        .await
    }
}

/// One random epoch is enough for all: a cursor fits its tenant alone. Heads are locked in the order in which publishes lock them.
async fn renew(connection: &mut PgConnection) -> Result<u64, StoreError> {
    let renewed = sqlx::query(
        "WITH heads AS (SELECT tenant_id FROM tenant_heads ORDER BY tenant_id FOR UPDATE)
         UPDATE tenant_heads h SET log_epoch = $1 FROM heads WHERE h.tenant_id = heads.tenant_id",
    )
    .bind(tenants::new_epoch())
    .execute(connection)
    .await?;
    Ok(renewed.rows_affected())
}
