//! Hints between replicas: LISTEN and NOTIFY, about heads and about watches whose filters change. A hint may be lost; the pulse of
//! `store/leases.rs` is the truth.
//!
//! Nothing here is ever part of another transaction: a NOTIFY in the publish transaction would serialise every commit.

use super::{Store, StoreError};
use crate::domain::ids::{TenantId, WatchId};
use crate::feed::{Head, WatchNews};
use sqlx::postgres::{PgListener, PgPoolOptions};
use uuid::Uuid;

const CHANNEL: &str = "carillon_heads";
const WATCHES: &str = "carillon_watches";

/// What a replica tells the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// A head has moved.
    Head(Head),
    /// The filters of a watch change.
    Watch(WatchNews),
}

/// A connection that hears what other replicas have committed.
#[derive(Debug)]
pub struct HeadListener {
    /// None where this replica does not listen.
    listener: Option<PgListener>,
}

impl HeadListener {
    /// The next hint that a replica (perhaps this one) gives. Cancel-safe.
    ///
    /// Errors: the connection broke; hints were lost. Make a new listener.
    pub async fn next(&mut self) -> Result<Hint, StoreError> {
        let Some(listener) = &mut self.listener else { return std::future::pending().await };
        loop {
            let notification = listener.try_recv().await?;
            let Some(notification) = notification else {
                return Err(sqlx::Error::WorkerCrashed.into());
            };
            // A payload of another release's shape is no hint for this one.
            let hint = match notification.channel() {
                WATCHES => parse_watch(notification.payload()).map(Hint::Watch),
                _ => parse(notification.payload()).map(Hint::Head),
            };
            if let Some(hint) = hint {
                return Ok(hint);
            }
        }
    }
}

impl Store {
    /// Starts to listen, on a connection of its own; one that hears nothing where `database.listen` says so.
    pub async fn listen(&self) -> Result<HeadListener, StoreError> {
        if !self.listens {
            return Ok(HeadListener { listener: None });
        }
        // A pool of its own, so that a connection whose other end has vanished never takes a place in the other one.
        let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with((*self.engine().options()).clone());
        let listen = async {
            let mut listener = PgListener::connect_with(&pool).await?;
            listener.listen_all([CHANNEL, WATCHES]).await?;
            Ok::<_, StoreError>(listener)
        };
        Ok(HeadListener { listener: Some(self.within(listen).await?) })
    }

    /// Tells other replicas about heads, in one statement of its own.
    pub async fn notify(&self, heads: &[Head]) -> Result<(), StoreError> {
        let payloads: Vec<String> = heads.iter().map(payload).collect();
        sqlx::query("SELECT count(pg_notify($1, p.payload)) FROM unnest($2::text[]) AS p(payload)")
            .bind(CHANNEL)
            .bind(payloads)
            .execute(self.engine())
            .await?;
        Ok(())
    }

    /// Tells other replicas about a watch.
    pub async fn notify_watch(&self, news: WatchNews) -> Result<(), StoreError> {
        sqlx::query("SELECT pg_notify($1, $2)").bind(WATCHES).bind(watch_payload(news)).execute(self.engine()).await?;
        Ok(())
    }
}

fn watch_payload(news: WatchNews) -> String {
    match news {
        WatchNews::Asked(watch) | WatchNews::Due(watch) => format!("asked:{}", watch.0),
        WatchNews::Changed(watch) => format!("changed:{}", watch.0),
    }
}

fn parse_watch(payload: &str) -> Option<WatchNews> {
    let (kind, id) = payload.split_once(':')?;
    let watch = WatchId(Uuid::parse_str(id).ok()?);
    match kind {
        "asked" => Some(WatchNews::Asked(watch)),
        "changed" => Some(WatchNews::Changed(watch)),
        _ => None,
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
        for news in [WatchNews::Asked(WatchId(Uuid::from_u128(5))), WatchNews::Changed(WatchId(Uuid::from_u128(5)))] {
            assert_eq!(parse_watch(&watch_payload(news)), Some(news));
        }
        for text in ["", "asked:", "other:00000000-0000-0000-0000-000000000005"] {
            assert_eq!(parse_watch(text), None, "{text}");
        }
    }
}
