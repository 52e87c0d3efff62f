//! A caller that goes away drops its read anywhere.

use super::{Database, eventually};
use std::fs;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

/// Polls work so often at most, then drops it; true where it has ended by then.
async fn ends_within(polls: usize, work: impl Future) -> bool {
    let mut work = pin!(work);
    let mut left = polls;
    poll_fn(|context| {
        left -= 1;
        match work.as_mut().poll(context) {
            Poll::Ready(_) => Poll::Ready(true),
            Poll::Pending if left == 0 => Poll::Ready(false),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_is_dropped_anywhere_leaves_no_transaction_open_and_no_warning() {
    let database = Database::new().await;
    let tenant = database.tenant("a").await;
    let store = &database.store;
    // A single statement, and a transaction of several.
    let single = async |polls| ends_within(polls, store.deferred_count(tenant, 1)).await;
    let several = async |polls| ends_within(polls, Box::pin(store.event_type(tenant, super::NAME))).await;
    let mut polls = 1;
    while !(single(polls).await & several(polls).await) {
        polls += 1;
    }
    assert!(polls > 3, "to begin, to read and to commit are waited for: {polls} polls");
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
