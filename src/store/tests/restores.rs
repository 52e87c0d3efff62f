//! A copy of a database is noticed, and the cursors from before it are ended.

use super::{Database, connect};
use crate::domain::cursor::{Cursor, CursorError, CursorSealer};
use sqlx::{Connection as _, Executor as _};

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_the_database_gives_every_log_a_new_life_once_and_a_restart_none() {
    let database = Database::new().await;
    let tenants = [database.tenant("a").await, database.tenant("b").await];
    let epochs = async |store: &crate::store::Store| {
        let mut epochs = Vec::new();
        for tenant in tenants {
            epochs.push(store.head(tenant).await.expect("readable").expect("it exists").log_epoch);
        }
        epochs
    };
    let before = epochs(&database.store).await;
    let url = database.postgres.server_url();
    let again = connect::open(&Database::config(&url)).await.expect("Postgres answers");
    assert_eq!(epochs(&again).await, before, "a restart ends no cursor");
    again.close().await;
    database.store.close().await;

    // Its connection is to the maintenance database: a template must not be in use.
    let mut superuser =
        sqlx::PgConnection::connect(&database.postgres.owner_url("postgres")).await.expect("Postgres answers");
    superuser.execute("CREATE DATABASE restored TEMPLATE carillon OWNER carillon").await.expect("a copy");
    let copy = url.replacen("/carillon?", "/restored?", 1);
    assert_ne!(copy, url);
    let config = Database::config(&copy);
    let (one, two) = tokio::join!(connect::open(&config), connect::open(&config));
    let (one, two) = (one.expect("Postgres answers"), two.expect("Postgres answers"));
    let after = epochs(&one).await;
    assert_eq!(epochs(&two).await, after, "of two replicas one does it");
    let sealer = CursorSealer::new(&[7; 32]);
    for ((tenant, old), new) in tenants.into_iter().zip(&before).zip(&after) {
        let cursor = sealer.seal(&Cursor { tenant, epoch: *old, position: 0, day: one.now().date_naive() });
        assert!(sealer.open(&cursor, tenant, *old).is_ok());
        assert_eq!(sealer.open(&cursor, tenant, *new), Err(CursorError::Foreign));
    }
    assert_eq!(one.notice_restore().await.expect("answered"), 0);
    let third = connect::open(&config).await.expect("Postgres answers");
    assert_eq!(epochs(&third).await, after, "it is done once");

    // The original is none of its copies.
    let original = connect::open(&Database::config(&url)).await.expect("Postgres answers");
    assert_eq!(epochs(&original).await, before);
    let owner = Database::config(&database.postgres.url());
    assert_eq!(connect::renew_logs(&owner).await.expect("renewed"), 2);
    let renewed = epochs(&original).await;
    assert!(renewed.iter().zip(&before).all(|(new, old)| new != old), "{renewed:?} {before:?}");
    for store in [one, two, third, original] {
        store.close().await;
    }
    database.end().await;
}
