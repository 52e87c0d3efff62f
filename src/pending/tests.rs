//! What tests of pending events share: a database, and what takes care of them, which does nothing by itself.

use super::{Config, Core, Parts};
use crate::domain::catalogue::Catalogue;
use crate::domain::event_type::{EventTypeName, Phase};
use crate::domain::filter::Filter;
use crate::domain::ids::{SubscriptionId, TenantId};
use crate::domain::pre::PrePolicy;
use crate::domain::retry::DeliveryPolicy;
use crate::domain::schema::compatibility::Compatibility;
use crate::domain::subscription::Target;
use crate::domain::webhook::{SigningSecret, WebhookMode, WebhookTarget, WebhookUri};
use crate::executor::Executor;
use crate::feed::Feed;
use crate::publish::registry::{Entry, Registry};
use crate::store::audit::Principal;
use crate::store::event_types::{EventTypeQuota, NewEventType};
use crate::store::pending::PendingState;
use crate::store::request_ids::{Once, Repeatable};
use crate::store::secrets::Keyring;
use crate::store::subscriptions::{NewSubscription, SubscriptionQuota};
use crate::store::tests::{Database, NAME};
use crate::{clock, executor, publish};
use sqlx::{AssertSqlSafe, Executor as _};
use std::sync::Arc;
use std::time::Duration;

pub(super) struct World {
    pub database: Database,
    pub core: Arc<Core>,
    keyring: Arc<Keyring>,
}

impl World {
    pub async fn new() -> Self {
        Self::with(Config::default()).await
    }

    pub async fn with(config: Config) -> Self {
        let database = Database::new().await;
        let keyring = Arc::new(Keyring::new(vec![("k1".to_owned(), [7; 32])]).expect("a keyring"));
        let registry =
            Registry::new(database.store.clone(), keyring.clone(), Arc::new(Catalogue::builtin()), 100, 1 << 20);
        let executor = Executor::new(&executor::Config::default()).expect("an executor");
        let parts = Parts { store: database.store.clone(), registry, executor, feed: Feed::default() };
        let core = Arc::new(Core::new(parts, config, &publish::Config::default()));
        Self { database, core, keyring }
    }

    /// Events of the tenant without listeners that have been due for an hour.
    pub async fn wait(&self, tenant: TenantId, state: PendingState, many: u32) {
        let (state, deadline_at) = match state {
            PendingState::Gated => (2, "now() - interval '1 h'"),
            _ => (1, "NULL"),
        };
        let sql = format!(
            "INSERT INTO pending_events (tenant_id, event_id, state, token, due_at, deadline_at, pre_timeout_ms, created_at, event_type,
                    schema_version, source, event_time, extensions, data_kind, data, matched, refused, root_id, depth, lineage)
             SELECT '{}', gen_random_uuid(), {state}, 1, now() - interval '1 h', {deadline_at}, 1, now(), '{NAME}', 0, 's', now(), '', 0,
                    '', '{{}}', '{{}}', gen_random_uuid(), 0, '{{}}'
               FROM generate_series(1, {many})",
            tenant.0
        );
        self.database.connection().await.execute(AssertSqlSafe(sql)).await.expect("they wait");
    }

    /// The tenant's type is PRE, and has a listener that takes so many questions at a time, and that no event matches.
    pub async fn asks_at_once(&self, tenant: TenantId, many: i32) -> Arc<Entry> {
        let pre = "UPDATE event_types SET phase = 1";
        self.database.connection().await.execute(pre).await.expect("types that ask");
        self.listens_at_once(tenant, NAME, many).await
    }

    /// As [`Self::asks_at_once`], of another type, which is made.
    pub async fn another_asks_at_once(&self, tenant: TenantId, name: &str, many: i32) -> Arc<Entry> {
        let new = NewEventType {
            name: EventTypeName::parse(name).expect("a name"),
            phase: Phase::Pre,
            display_name: String::new(),
            description: String::new(),
            schema: None,
            compatibility: Compatibility::None,
        };
        let quota = EventTypeQuota { event_types: 100, deleted_event_types: 100, schema_versions: 10 };
        let made = self.database.store.create_event_type(Principal::server(tenant), new, quota, Repeatable::default());
        made.await.expect("an event type");
        self.listens_at_once(tenant, name, many).await
    }

    async fn listens_at_once(&self, tenant: TenantId, name: &str, many: i32) -> Arc<Entry> {
        let policy =
            DeliveryPolicy::new(1, Duration::from_secs(1), Duration::from_secs(1), Duration::from_secs(1), many);
        self.subscribe(tenant, |new| {
            new.event_type = EventTypeName::parse(name).expect("a name");
            new.filter = Some(Filter::parse("false").expect("a filter"));
            new.pre_policy = Some(PrePolicy::default());
            new.policy = policy.expect("within bounds");
        })
        .await
    }

    /// A subscription of the tenant whose receiver may not be called.
    pub async fn listener(&self, tenant: TenantId) -> Arc<Entry> {
        self.subscribe(tenant, |_| {}).await
    }

    async fn subscribe(&self, tenant: TenantId, change: impl FnOnce(&mut NewSubscription)) -> Arc<Entry> {
        let (store, by) = (&self.database.store, Principal::server(tenant));
        let (id, secret_id) = (SubscriptionId(clock::new_uuid()), clock::new_uuid());
        let slug = format!("shop-{}", id.0);
        let app = store.create_app(by.clone(), slug, "Shop".into(), Repeatable::default()).await;
        let Once::Made(app) = app.expect("an app") else { panic!("made now") };
        let secret = SigningSecret::from_bytes(vec![1; 32]).expect("long enough");
        let mut new = NewSubscription {
            id,
            app: app.id,
            event_type: EventTypeName::parse(NAME).expect("a name"),
            display_name: String::new(),
            filter: None,
            schema_version: 0,
            target: Target::Webhook(WebhookTarget {
                uri: WebhookUri::parse("http://127.0.0.1:9/").expect("a URI"),
                mode: WebhookMode::Structured,
                headers: Some(Vec::new()),
            }),
            pre_policy: None,
            policy: DeliveryPolicy::default(),
            secret: self.keyring.seal_secret(tenant, id, secret_id, &secret).expect("sealed"),
        };
        change(&mut new);
        let quota = SubscriptionQuota { live: 100, deleted: 100 };
        let made = store.subscribe(by, new, quota, Repeatable::default()).await.expect("subscribed");
        let Once::Made(made) = made else { panic!("made now") };
        let registry = self.core.registry.reload(tenant).await.expect("readable");
        registry.subscription(made.no).expect("it is there")
    }

    pub async fn end(self) {
        self.core.stop.cancel();
        self.core.tasks.close();
        self.core.tasks.wait().await;
        self.database.end().await;
    }
}
