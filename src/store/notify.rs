//! Hints between replicas: LISTEN and NOTIFY. A hint may be lost; the pulse of `store/leases.rs` is the truth.
//!
//! Nothing here is ever part of another transaction: a NOTIFY in the publish transaction would serialise every commit.

use super::{Store, StoreError};
use crate::domain::ids::TenantId;
use crate::feed::Head;
use sqlx::postgres::{PgListener, PgPoolOptions};
use uuid::Uuid;

const CHANNEL: &str = "carillon_heads";

/// A connection that hears what other replicas have committed.
#[derive(Debug)]
pub struct HeadListener {
    listener: PgListener,
}

impl HeadListener {
    /// The next head that a replica (perhaps this one) tells about. Cancel-safe.
    ///
    /// Errors: the connection broke; hints were lost. Make a new listener.
    pub async fn next(&mut self) -> Result<Head, StoreError> {
        loop {
            let notification = self.listener.try_recv().await?;
            let Some(notification) = notification else {
                return Err(sqlx::Error::WorkerCrashed.into());
            };
            // A payload of another release's shape is no hint for this one.
            if let Some(head) = parse(notification.payload()) {
                return Ok(head);
            }
        }
    }
}

impl Store {
    /// Starts to listen, on a connection of its own.
    pub async fn listen(&self) -> Result<HeadListener, StoreError> {
        // A pool of its own, so that a connection whose other end has vanished never takes a place in the other one.
        let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with((*self.pool().options()).clone());
        let listen = async {
            let mut listener = PgListener::connect_with(&pool).await?;
            listener.listen(CHANNEL).await?;
            Ok::<_, StoreError>(listener)
        };
        Ok(HeadListener { listener: self.pool().within(listen).await? })
    }

    /// Tells other replicas about heads, in one statement of its own.
    pub async fn notify(&self, heads: &[Head]) -> Result<(), StoreError> {
        let payloads: Vec<String> = heads.iter().map(payload).collect();
        sqlx::query("SELECT count(pg_notify($1, p.payload)) FROM unnest($2::text[]) AS p(payload)")
            .bind(CHANNEL)
            .bind(payloads)
            .execute(self.pool())
            .await?;
        Ok(())
    }
}

fn payload(head: &Head) -> String {
    format!("{}:{}:{}:{}", head.tenant.0, head.position, head.registry_version, head.deferred_version)
}

fn parse(payload: &str) -> Option<Head> {
    let mut parts = payload.split(':');
    let tenant = TenantId(Uuid::parse_str(parts.next()?).ok()?);
    let mut number = || parts.next()?.parse().ok();
    Some(Head { tenant, position: number()?, registry_version: number()?, deferred_version: number()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_survives_its_payload_and_nonsense_is_no_head() {
        let head = Head { tenant: TenantId(Uuid::from_u128(5)), position: 7, registry_version: 3, deferred_version: 0 };
        assert_eq!(parse(&payload(&head)), Some(head));
        for text in ["", ":::", "x:1:2:3", "00000000-0000-0000-0000-000000000005:1:2"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
