//! A rate that replicas share: whoever asks takes tokens of one bucket.

use super::Database;
use crate::domain::retry::RateLimit;
use chrono::TimeDelta;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_gives_its_count_at_once_and_then_tokens_ahead_of_time_to_whoever_can_wait() {
    let database = Database::new().await;
    let (store, tenant) = (&database.store, database.tenant("a").await);
    let limit = RateLimit::new(3, Duration::from_secs(3_000)).expect("within bounds");
    let now = store.now();
    let take = async |version, minutes| {
        let until = now + TimeDelta::minutes(minutes);
        store.take_token(tenant, 1, version, limit, until).await.expect("answered")
    };
    for _ in 0..3 {
        assert!(take(5, 1).await.is_some_and(|at| at <= store.now()), "full at first");
    }
    assert_eq!(take(5, 1).await, None, "a token comes every 1,000 s");
    let ahead = take(5, 60).await.expect("whoever can wait takes the next one");
    assert!((990..=1_010).contains(&(ahead - now).num_seconds()), "{ahead}");
    let next = take(5, 60).await.expect("and the one behind it");
    assert_eq!((next - ahead).num_seconds(), 1_000, "of which each is given once");
    assert!(take(4, 1).await.is_none(), "who knows an older version does not begin anew");
    assert!(take(6, 0).await.is_some(), "a change does");
    let [a, b] = [tenant, database.tenant("b").await];
    for (tenant, no) in [(a, 2), (b, 1)] {
        let taken = store.take_token(tenant, no, 5, limit, now).await.expect("answered");
        assert!(taken.is_some(), "each has its own");
    }
    database.end().await;
}
