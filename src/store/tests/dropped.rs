//! A caller that goes away drops its read anywhere.

use super::{Database, eventually};
use std::fs;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

/// Polls work so often at most, then drops it.
async fn dropped_after(polls: usize, work: impl Future) {
    let mut work = pin!(work);
    let mut left = polls;
    poll_fn(|context| {
        left -= 1;
        match work.as_mut().poll(context) {
            Poll::Pending if left > 0 => Poll::Pending,
            _ => Poll::Ready(()),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_is_dropped_anywhere_leaves_no_transaction_open_and_no_warning() {
    let database = Database::new().await;
    let tenant = database.tenant("a").await;
    let store = &database.store;
    // To begin, to read and to commit are waited for: some polls each, and the last ones come to the end.
    for polls in 1..=16 {
        // A single statement, and a transaction of several.
        dropped_after(polls, store.deferred_count(tenant, 1)).await;
        dropped_after(polls, Box::pin(store.event_type(tenant, super::NAME))).await;
    }
    let read = store.begin_as(tenant).await.expect("a transaction");
    dropped_after(1, read.commit()).await;
    eventually("every connection is given back", || async {
        let (open, idle) = store.connections();
        usize::try_from(open).is_ok_and(|open| open == idle)
    })
    .await;
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'";
    let open: i64 = sqlx::query_scalar(sql).fetch_one(&mut database.connection().await).await.expect("readable");
    assert_eq!(open, 0);
    let log = fs::read_to_string(&database.postgres.places().log).expect("a log");
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("WARNING")).collect();
    assert!(warnings.is_empty(), "{warnings:?}");
    database.end().await;
}
