//! What waits is read in pages of one tenant, and tenants take turns.

use super::Database;
use crate::domain::ids::TenantId;
use crate::store::dispatch::{DueSubscription, WAITING_PAGE};
use sqlx::{AssertSqlSafe, Executor as _};
use std::collections::BTreeSet;

/// Two rows that wait of each of so many subscriptions, and a dead letter.
async fn defer(database: &Database, tenant: TenantId, subscriptions: usize) {
    let sql = format!(
        "INSERT INTO deferred_invocations (tenant_id, position, subscription_no, day, shard, attempt, due_at)
         SELECT '{0}', p, s, current_date, 0, 1, now() + p * interval '1 h'
           FROM generate_series(1, {subscriptions}) AS s CROSS JOIN generate_series(1, 2) AS p;
         INSERT INTO dead_letters (tenant_id, position, subscription_no, day, attempt, dead_at)
         SELECT '{0}', 3, s, current_date, 1, now() FROM generate_series(1, {subscriptions}) AS s",
        tenant.0
    );
    database.connection().await.execute(AssertSqlSafe(sql)).await.expect("rows");
}

#[tokio::test(flavor = "multi_thread")]
async fn g15_however_many_subscriptions_wait_each_is_found_once_by_pages_and_no_tenant_waits_for_all_of_anothers() {
    let database = Database::new().await;
    let (much, little, nothing) =
        (database.tenant("much").await, database.tenant("little").await, database.tenant("nothing").await);
    let subscriptions = 2 * WAITING_PAGE + 1;
    defer(&database, much, subscriptions).await;
    defer(&database, little, 1).await;
    let store = &database.store;
    let page = store.due_page(much, 0).await.expect("readable");
    assert_eq!(page.len(), WAITING_PAGE);

    let all = store.due_subscriptions(&[nothing, much, little]).await.expect("readable");
    let of_much: Vec<&DueSubscription> = all.iter().filter(|due| due.tenant == much).collect();
    let numbers: BTreeSet<i32> = of_much.iter().map(|due| due.subscription_no).collect();
    assert_eq!((of_much.len(), numbers.len()), (subscriptions, subscriptions));
    assert!(of_much.iter().all(|due| due.has_rows && due.due_at == page[0].due_at), "the first of two rows each");
    let turn = all.iter().position(|due| due.tenant == little).expect("it waits");
    assert!(turn <= WAITING_PAGE, "after {turn} of another tenant");
    assert_eq!(all.len(), subscriptions + 1, "one that has nothing has nothing to wait for");

    sqlx::raw_sql("UPDATE dead_letters SET announced_at = NULL")
        .execute(&mut database.connection().await)
        .await
        .expect("set");
    sqlx::raw_sql("DELETE FROM announcements").execute(&mut database.connection().await).await.expect("deleted");
    let unannounced: BTreeSet<_> =
        store.unannounced_tenants(&[nothing, much, little]).await.expect("readable").into_iter().collect();
    assert_eq!(unannounced, [much, little].into());
    database.end().await;
}
