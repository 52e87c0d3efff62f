//! What a caller has taken back is known for as long as its key, which a retry with that key is answered by.

use super::{Database, NAME};
use crate::clock;
use crate::domain::event::{Data, Event, Lineage};
use crate::domain::event_type::EventTypeName;
use crate::domain::ids::EventId;
use crate::store::audit::Principal;
use crate::store::pending::{Accepted, NewPending, PendingState, WaitsFor};
use crate::store::publish::NewKey;
use crate::store::request_ids::Repeatable;
use chrono::TimeDelta;
use std::sync::Arc;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_event_that_was_cancelled_long_before_its_time_is_known_as_long_as_its_key() {
    let database = Database::new().await;
    let tenant = database.tenant("a").await;
    let store = &database.store;
    let (now, kept, event) = (store.now(), TimeDelta::days(2), EventId(clock::new_uuid()));
    let at = now + TimeDelta::days(7);
    let key = NewKey { key: "later".to_owned(), request_hash: [0; 32] };
    let new = NewPending {
        tenant,
        event: Arc::new(Event {
            id: event,
            event_type: EventTypeName::parse(NAME).expect("a name"),
            schema_version: 0,
            source: "/tests".to_owned(),
            subject: None,
            time: now,
            content_type: None,
            extensions: Vec::new(),
            data: Data::None,
            lineage: Lineage::root(event),
        }),
        matched: [].into(),
        refused: [].into(),
        registry_version: store.head(tenant).await.expect("readable").expect("exists").registry_version,
        key: Some((key, at + kept)),
        waits_for: WaitsFor::Time(at),
        pre_timeout: Duration::from_secs(1),
        max: 100,
    };
    let accepted = store.accept_pending(&new).await.expect("answered");
    assert!(matches!(accepted, Accepted::Yes { .. }), "{accepted:?}");
    let by = Principal::server(tenant);
    let cancelled = store.cancel_pending(&by, event, kept, Repeatable::default()).await.expect("answered");
    assert!(cancelled.is_some());
    for (later, deleted) in [(now + TimeDelta::days(3), 0), (at + TimeDelta::days(1), 0), (at + TimeDelta::days(3), 2)]
    {
        assert_eq!(store.delete_expired(later, 100).await.expect("swept"), deleted, "the key and the event together");
        let standing = store.pending_standing(tenant, event).await.expect("readable");
        let key = store.used_keys(tenant, &["later"]).await.expect("readable").pop();
        let state = standing.map(|standing| standing.state);
        assert_eq!((state, key.is_some()), ((deleted == 0).then_some(PendingState::Cancelled), deleted == 0));
    }
    database.end().await;
}
