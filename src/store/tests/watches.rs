//! Changes of a watch's filters and their request ids: an id belongs to its change for as long as that waits or is in effect.

use super::Database;
use crate::clock;
use crate::domain::ids::{ReplicaId, WatchId};
use crate::store::events::LogPlace;
use crate::store::request_ids::{Once, Repeatable, RequestKey};
use crate::store::watches::FilterVersion;
use chrono::TimeDelta;

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_taken_back_frees_its_request_id_and_one_in_effect_keeps_it() {
    let database = Database::new().await;
    let (store, tenant) = (&database.store, database.tenant("a").await);
    let (watch, holder) = (WatchId(clock::new_uuid()), ReplicaId(clock::new_uuid()));
    let place = LogPlace { after: 1, day: store.now().date_naive() };
    let first = FilterVersion { version: 1, place, filters: b"1".to_vec() };
    let expires_at = store.now() + TimeDelta::hours(1);
    store.create_watch(tenant, watch, holder, expires_at, &[first]).await.expect("a watch");

    let key = RequestKey { id: "retried".to_owned(), method: "UpdateWatch", body_hash: [1; 32] };
    let propose = async || {
        let request = Repeatable::new(key.clone(), |version: &i64| Ok(version.to_be_bytes().to_vec()));
        store.propose_watch_filters(tenant, watch, 1, b"2", request).await.expect("Postgres answers")
    };
    let withdraw = async || store.withdraw_watch_filters(tenant, watch, 2, Some(&key)).await.expect("Postgres answers");
    let kept = Some(Once::Before(2_i64.to_be_bytes().to_vec()));
    for _ in 0..2 {
        assert_eq!(propose().await, Some(Once::Made(2)));
        assert_eq!(propose().await, kept, "a retry finds the change that waits");
        assert!(withdraw().await);
    }
    assert_eq!(propose().await, Some(Once::Made(2)));
    assert!(store.apply_watch_filters(tenant, watch, 2, place).await.expect("Postgres answers"));
    assert!(!withdraw().await, "it is in effect");
    assert_eq!(propose().await, kept);
    database.end().await;
}
