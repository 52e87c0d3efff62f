//! The registry: what the catalogue, the subscriptions and the quotas of each tenant say, in memory, at a known version.
//!
//! A tenant's registry is loaded once and then follows by deltas. It may be behind the database at any time: publishing is
//! exact all the same, because the commit checks the version under the head row's lock (see `store::publish`).

mod entry;

pub use entry::Entry;

use super::PublishError;
use super::quotas::{Allowance, Standing};
use crate::domain::catalogue::Catalogue;
use crate::domain::event_type::{CompiledSchema, EventType, EventTypeName};
use crate::domain::filter;
use crate::domain::ids::{SubscriptionNo, TenantId};
use crate::domain::quotas::{Limits, Quota};
use crate::domain::schema::Schema;
use crate::domain::subscription::State;
use crate::feed::News;
use crate::long_work;
use crate::store::secrets::Keyring;
use crate::store::{Store, StoreError};
use chrono::{DateTime, Utc};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use tokio::sync::{mpsc, watch};

/// The registries of every tenant in use, bounded by count; the least used are dropped and loaded again when needed. Of each tenant there
/// is one at a time, so that whoever keeps it sees what others load.
#[derive(Clone)]
pub struct Registry {
    store: Store,
    keyring: Arc<Keyring>,
    catalogue: Arc<Catalogue>,
    /// The quotas of a tenant of which nothing else is set.
    limits: Limits,
    tenants: moka::future::Cache<TenantId, Arc<TenantRegistry>>,
    /// Those that anybody keeps, in the cache or not.
    kept: Kept,
    schemas: moka::future::Cache<SchemaKey, CompiledSchema>,
}

type Kept = Arc<Mutex<HashMap<TenantId, Weak<TenantRegistry>>>>;

/// Whose type, its name, when it was declared, and the version of its schema.
type SchemaKey = (TenantId, EventTypeName, Option<DateTime<Utc>>, i32);

/// One tenant's registry.
pub struct TenantRegistry {
    tenant: TenantId,
    state: RwLock<Registered>,
    allowance: RwLock<Arc<Allowance>>,
    loading: tokio::sync::Mutex<()>,
    changed: watch::Sender<()>,
    kept: Kept,
}

impl Drop for TenantRegistry {
    fn drop(&mut self) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // The next one may have taken its place already.
        if kept.get(&self.tenant).is_some_and(|registry| registry.strong_count() == 0) {
            kept.remove(&self.tenant);
        }
    }
}

#[derive(Default)]
struct Registered {
    version: i64,
    /// ACTIVE subscriptions by what they listen to.
    active: HashMap<EventTypeName, Arc<Vec<Arc<Entry>>>>,
    /// Every subscription that is not deleted.
    by_no: HashMap<SubscriptionNo, Arc<Entry>>,
    /// Without those that are retired.
    custom_types: HashMap<EventTypeName, Arc<EventType>>,
    /// The subscriptions that are not deleted and have an ordering key.
    ordered: HashSet<SubscriptionNo>,
}

fn weight(_: &SchemaKey, compiled: &CompiledSchema) -> u32 {
    u32::try_from(compiled.schema.memory_bytes()).unwrap_or(u32::MAX)
}

impl Registry {
    /// Starts empty. Bounds: registries of `tenants_max` tenants, `schemas_bytes_max` bytes of compiled schemas.
    pub fn new(
        store: Store,
        keyring: Arc<Keyring>,
        catalogue: Arc<Catalogue>,
        tenants_max: u64,
        schemas_bytes_max: usize,
    ) -> Self {
        filter::prepare();
        Self {
            store,
            keyring,
            catalogue,
            limits: Limits::new(|quota| *quota.bounds().end()),
            tenants: moka::future::Cache::new(tenants_max),
            kept: Kept::default(),
            schemas: moka::future::Cache::builder().weigher(weight).max_capacity(schemas_bytes_max as u64).build(),
        }
    }

    /// With the quotas of a tenant of which nothing else is set.
    #[must_use]
    pub fn limited(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// The quotas of a tenant of which nothing else is set.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// The system catalogue.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// The tenant's registry as last loaded.
    pub async fn tenant(&self, tenant: TenantId) -> Result<Arc<TenantRegistry>, StoreError> {
        if let Some(registry) = self.tenants.get(&tenant).await {
            return Ok(registry);
        }
        let registry = self.one(tenant);
        self.load(&registry, 0).await?;
        self.tenants.insert(tenant, registry.clone()).await;
        Ok(registry)
    }

    /// The tenant's registry where anybody keeps it.
    fn kept(&self, tenant: TenantId) -> Option<Arc<TenantRegistry>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(&tenant)?.upgrade()
    }

    /// The tenant's registry; an empty one where nobody keeps any.
    fn one(&self, tenant: TenantId) -> Arc<TenantRegistry> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(registry) = kept.get(&tenant).and_then(Weak::upgrade) {
            return registry;
        }
        let registry = Arc::new(TenantRegistry {
            tenant,
            state: RwLock::default(),
            allowance: RwLock::new(Arc::new(Allowance::new(self.limits, Standing::default()))),
            loading: tokio::sync::Mutex::default(),
            kept: self.kept.clone(),
            changed: watch::Sender::default(),
        });
        kept.insert(tenant, Arc::downgrade(&registry));
        registry
    }

    /// The tenant's registry at `at_least` or newer.
    pub async fn refresh(&self, tenant: TenantId, at_least: i64) -> Result<Arc<TenantRegistry>, StoreError> {
        let registry = self.tenant(tenant).await?;
        if registry.version() < at_least {
            self.load(&registry, at_least).await?;
        }
        Ok(registry)
    }

    /// The tenant's registry at the version the database has now.
    pub async fn reload(&self, tenant: TenantId) -> Result<Arc<TenantRegistry>, StoreError> {
        self.refresh(tenant, i64::MAX).await
    }

    /// Keeps what is in memory at the version that heads tell of, so that what is decided before a commit, such as quotas, is not old
    /// for longer than news takes. Ends with the feed.
    pub async fn follow(self, mut news: mpsc::Receiver<News>) {
        while let Some(item) = news.recv().await {
            let News::Head(head) = item else { continue };
            if let Some(known) = self.kept(head.tenant)
                && known.version() < head.registry_version
                && let Err(error) = self.load(&known, head.registry_version).await
            {
                tracing::debug!(tenant = %head.tenant, %error, "a registry could not be loaded; a commit will find out");
            }
        }
    }

    async fn load(&self, registry: &TenantRegistry, at_least: i64) -> Result<(), StoreError> {
        let _turn = registry.loading.lock().await;
        let known = registry.version();
        if known >= at_least && known > 0 {
            return Ok(());
        }
        // The head is read first: every change up to its version is committed by then, so the rows read after it hold them all.
        let Some(head) = self.store.head(registry.tenant).await? else {
            return Ok(());
        };
        if head.registry_version == known {
            return Ok(());
        }
        let records = self.store.subscriptions_changed_since(registry.tenant, known).await?;
        let types = self.store.event_types_changed_since(registry.tenant, known).await?;
        let standing = self.standing(registry.tenant).await?;
        let mut entries = Vec::with_capacity(records.len());
        for record in records {
            let mut secrets = Vec::with_capacity(record.secrets.len());
            for stored in record.secrets {
                // A secret whose key is gone must not stop the tenant's publishing: only its own webhook cannot be called.
                match self.keyring.open_secret(registry.tenant, record.subscription.id, &stored) {
                    Ok(secret) => secrets.push((secret, stored.expires_at)),
                    Err(error) => {
                        tracing::error!(subscription = %record.subscription.id, %error, "a signing secret does not open");
                    }
                }
            }
            entries.push(Arc::new(Entry::new(registry.tenant, record.subscription, secrets)));
        }
        let allowance = registry.allowance().changed(self.limits, standing);
        registry.apply(head.registry_version, entries, types, allowance);
        registry.changed.send_replace(());
        Ok(())
    }

    /// The compiled schema of a version; 0 means the latest. None where the type has no schema.
    ///
    /// Errors: [`PublishError::SchemaVersionNotFound`].
    pub async fn schema(
        &self,
        registry: &TenantRegistry,
        name: &EventTypeName,
        requested: i32,
    ) -> Result<Option<CompiledSchema>, PublishError> {
        let missing = || PublishError::SchemaVersionNotFound { event_type: name.clone(), version: requested };
        if let Some(system) = self.catalogue.get(name.as_str()) {
            return match &system.schema {
                Some((_, compiled)) if requested == 0 || requested == compiled.version => Ok(Some(compiled.clone())),
                None if requested == 0 => Ok(None),
                _ => Err(missing()),
            };
        }
        let known = registry.custom_type(name);
        let latest = known.as_ref().map(|event_type| event_type.latest_schema);
        let version = if requested == 0 { latest.unwrap_or_default() } else { requested };
        if version == 0 {
            return Ok(None);
        }
        // Of a type that was retired meanwhile, the store still has what an event was checked against.
        if version < 0 || latest.is_some_and(|latest| version > latest) {
            return Err(missing());
        }
        let created_at = known.map(|event_type| event_type.created_at);
        Ok(Some(self.compiled(registry.tenant, name, created_at, version).await?.ok_or_else(missing)?))
    }

    /// A compiled version of the schema of a tenant's own type, from the cache where it is there; none where it does not exist.
    /// `created_at` tells a type from a purged one of the same name; none for one that is retired.
    pub async fn compiled(
        &self,
        tenant: TenantId,
        name: &EventTypeName,
        created_at: Option<DateTime<Utc>>,
        version: i32,
    ) -> Result<Option<CompiledSchema>, StoreError> {
        let key = (tenant, name.clone(), created_at, version);
        // One compilation for all that wait for it. Errors within: none where there is no such version.
        let compile = async {
            let stored = self.store.schema(tenant, name, version).await.map_err(Some)?.ok_or(None)?;
            match long_work::run(tenant, move || Schema::stored(&stored.document)).await {
                Some(Ok(schema)) => Ok(CompiledSchema { version, schema: Arc::new(schema) }),
                _ => Err(Some(StoreError::Corrupt { what: "event type schema" })),
            }
        };
        match self.schemas.try_get_with(key, compile).await {
            Ok(compiled) => Ok(Some(compiled)),
            Err(error) => (*error).clone().map_or(Ok(None), Err),
        }
    }
}

impl TenantRegistry {
    /// Whose registry it is.
    pub fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// The version it is at.
    pub fn version(&self) -> i64 {
        self.read().version
    }

    /// Changes with the version. Ends where nobody keeps this copy any more: another one follows the news from then on.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// A subscription that is not deleted, by its number.
    pub fn subscription(&self, no: SubscriptionNo) -> Option<Arc<Entry>> {
        self.read().by_no.get(&no).cloned()
    }

    /// The ACTIVE subscriptions to one event type, with the version they were read at.
    pub fn listeners(&self, name: &EventTypeName) -> (i64, Option<Arc<Vec<Arc<Entry>>>>) {
        let state = self.read();
        (state.version, state.active.get(name).cloned())
    }

    /// True where any subscription has an ordering key.
    pub fn has_ordering(&self) -> bool {
        !self.read().ordered.is_empty()
    }

    /// A type that the tenant declared and has not retired.
    pub fn custom_type(&self, name: &EventTypeName) -> Option<Arc<EventType>> {
        self.read().custom_types.get(name).cloned()
    }

    /// Names of the tenant's own types that can be published.
    pub fn custom_names(&self) -> Vec<EventTypeName> {
        let state = self.read();
        state.custom_types.keys().cloned().collect()
    }

    /// The quotas of the tenant.
    pub fn limits(&self) -> Limits {
        *self.allowance().limits()
    }

    /// The largest event, bytes.
    pub fn event_bytes_max(&self) -> usize {
        usize::try_from(self.limits().get(Quota::EventBytes)).unwrap_or(usize::MAX)
    }

    pub(super) fn allowance(&self) -> Arc<Allowance> {
        Arc::clone(&self.allowance.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Registered> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, version: i64, entries: Vec<Arc<Entry>>, types: Vec<EventType>, allowance: Allowance) {
        *self.allowance.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(allowance);
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        for entry in entries {
            let (no, name) = (entry.subscription.no, entry.subscription.event_type.clone());
            let listeners = Arc::make_mut(state.active.entry(name.clone()).or_default());
            listeners.retain(|other| other.subscription.no != no);
            if entry.subscription.state == State::Active {
                let at = listeners.partition_point(|other| other.subscription.no < no);
                listeners.insert(at, entry.clone());
            }
            if listeners.is_empty() {
                state.active.remove(&name);
            }
            let is_deleted = entry.subscription.state == State::Deleted;
            if entry.subscription.policy.ordering().is_some() && !is_deleted {
                state.ordered.insert(no);
            } else {
                state.ordered.remove(&no);
            }
            // What is deleted costs no memory: whoever unsubscribes as often as he subscribes would fill it.
            if is_deleted {
                state.by_no.remove(&no);
            } else {
                state.by_no.insert(no, entry);
            }
        }
        for event_type in types {
            if event_type.deleted_at.is_some() {
                state.custom_types.remove(&event_type.name);
            } else {
                state.custom_types.insert(event_type.name.clone(), Arc::new(event_type));
            }
        }
        state.version = version;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event_type::Phase;
    use crate::domain::schema::compatibility::Compatibility;
    use crate::store::audit::Principal;
    use crate::store::event_types::{EventTypeQuota, NewEventType};
    use crate::store::request_ids::Repeatable;
    use crate::store::tests::{Database, NAME};

    fn new_type(name: &EventTypeName, schema: Option<&str>) -> NewEventType {
        NewEventType {
            name: name.clone(),
            phase: Phase::Post,
            display_name: String::new(),
            description: String::new(),
            schema: schema.map(str::to_owned),
            compatibility: Compatibility::None,
        }
    }

    const QUOTA: EventTypeQuota = EventTypeQuota { event_types: 10, deleted_event_types: 10, schema_versions: 10 };

    fn registry(database: &Database, tenants_max: u64) -> Registry {
        let keyring = Arc::new(Keyring::new(vec![("k1".to_owned(), [7; 32])]).expect("a keyring"));
        Registry::new(database.store.clone(), keyring, Arc::new(Catalogue::builtin()), tenants_max, 1 << 20)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn g15_compiled_schemas_are_kept_within_their_bytes() {
        let database = Database::new().await;
        let tenant = database.tenant("a").await;
        let registry = registry(&database, 100);
        for n in 0..5 {
            let name = EventTypeName::parse(&format!("CUSTOM_{n}")).expect("a name");
            // About 300 KB each.
            let new = new_type(&name, Some(&format!(r#"{{"description": "{}"}}"#, "x".repeat(9_500))));
            let by = Principal::server(tenant);
            database.store.create_event_type(by, new, QUOTA, Repeatable::default()).await.expect("an event type");
            let compiled = registry.compiled(tenant, &name, None, 1).await.expect("readable");
            assert!(compiled.is_some(), "{n}");
            registry.schemas.run_pending_tasks().await;
            assert!((1..=1 << 20).contains(&registry.schemas.weighted_size()), "{}", registry.schemas.weighted_size());
        }
        database.end().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn whoever_keeps_a_registry_that_the_cache_has_dropped_sees_what_others_load() {
        let database = Database::new().await;
        let (a, b) = (database.tenant("a").await, database.tenant("b").await);
        let registry = registry(&database, 0);
        let kept = registry.tenant(a).await.expect("readable");
        registry.tenants.run_pending_tasks().await;
        assert!(!registry.tenants.contains_key(&a), "the cache has no room for it");

        let name = EventTypeName::parse("CUSTOM_LATER").expect("a name");
        let (by, new) = (Principal::server(a), new_type(&name, None));
        database.store.create_event_type(by, new, QUOTA, Repeatable::default()).await.expect("an event type");
        let reloaded = registry.reload(a).await.expect("readable");
        assert!(kept.custom_type(&name).is_some(), "it is the one that was loaded");
        assert_eq!(kept.version(), reloaded.version());

        drop((kept, reloaded));
        let other = registry.tenant(b).await.expect("readable");
        registry.tenants.run_pending_tasks().await;
        let known = |tenant| registry.kept.lock().expect("not poisoned").contains_key(&tenant);
        assert!(known(b) && !known(a), "what nobody keeps costs no memory");
        let again = registry.tenant(a).await.expect("readable");
        assert!(again.custom_type(&EventTypeName::parse(NAME).expect("a name")).is_some(), "and is loaded again");
        drop(other);
        database.end().await;
    }
}
