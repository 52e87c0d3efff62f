//! A migrated database of one's own for tests that need a real Postgres, and the tests of the store itself.

use super::event_types::{EventTypeQuota, NewEventType};
use super::{Store, connect};
use crate::dev::{PrivatePostgres, Search};
use crate::domain::catalogue::Catalogue;
use crate::domain::event_type::{EventTypeName, Phase};
use crate::domain::ids::TenantId;
use crate::feed::Feed;
use crate::publish::registry::Registry;
use crate::publish::writer::{Writer, WriterTasks};
use crate::store::audit::Principal;
use crate::store::secrets::Keyring;
use crate::{clock, publish};
use sqlx::{Connection as _, PgConnection};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// The event type that every tenant of a [`Database`] has.
pub(crate) const NAME: &str = "CUSTOM_TESTED";

/// A private Postgres with the schema.
pub(crate) struct Database {
    pub postgres: PrivatePostgres,
    pub store: Store,
}

impl Database {
    pub async fn new() -> Self {
        let path = std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
        let postgres = PrivatePostgres::throwaway(&Search::system(path, None)).await.expect("a private Postgres");
        let config = Self::config(&postgres.url());
        connect::migrate(&config).await.expect("migrations apply");
        let store = connect::open(&config).await.expect("Postgres answers");
        Self { postgres, store }
    }

    pub fn config(url: &str) -> connect::Config {
        connect::Config { url: Some(url.into()), unsafe_allow_lossy_postgres: true, ..connect::Config::default() }
    }

    /// A tenant with an event type named [`NAME`].
    pub async fn tenant(&self, slug: &str) -> TenantId {
        let tenant = self.store.create_tenant("test".into(), slug.into(), slug.into()).await.expect("a tenant");
        let tenant = tenant.expect("a new slug").id;
        let new = NewEventType {
            name: EventTypeName::parse(NAME).expect("a name"),
            phase: Phase::Post,
            display_name: String::new(),
            description: String::new(),
            schema: None,
        };
        let quota = EventTypeQuota { event_types: 10, schema_versions: 10 };
        let by = Principal::server(tenant);
        self.store.create_event_type(by, new, quota, None, |_| Vec::new()).await.expect("an event type");
        tenant
    }

    /// A connection beside the store's.
    pub async fn connection(&self) -> PgConnection {
        PgConnection::connect(&self.postgres.url()).await.expect("Postgres answers")
    }

    /// A writer with these settings.
    pub fn writer(&self, config: publish::Config) -> (Writer, WriterTasks) {
        let keyring = Arc::new(Keyring::new(vec![("k1".to_owned(), [7; 32])]).expect("a keyring"));
        let registry = Registry::new(self.store.clone(), keyring, Arc::new(Catalogue::builtin()), 100, 100);
        Writer::start(self.store.clone(), registry, Feed::default(), config)
    }

    pub async fn end(self) {
        self.store.close().await;
        self.postgres.stop().await.expect("Postgres stops");
    }
}

/// Publishes one event.
pub(crate) async fn publish(
    writer: &Writer,
    tenant: TenantId,
    key: &str,
) -> Result<publish::writer::Published, publish::PublishError> {
    let name = EventTypeName::parse(NAME).expect("a name");
    writer.publish_system(tenant, name, "test".to_owned(), &serde_json::json!({}), None, key).await
}

/// Looks until the predicate holds, for 20 seconds at most.
pub(crate) async fn eventually<F, R>(what: &str, mut look: F)
where
    F: FnMut() -> R,
    R: Future<Output = bool>,
{
    let until = clock::now() + Duration::from_secs(20);
    while !look().await {
        assert!(clock::now() < until, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
