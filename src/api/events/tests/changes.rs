//! UpdateWatch while the tenant's other calls have every connection that they may have.

use super::*;
use crate::proto::public::{UpdateWatchRequest, UpdateWatchResponse};
use crate::store::tests::eventually;

#[tokio::test]
async fn a_change_that_is_made_is_answered_however_busy_the_tenant_is() {
    let world = World::start(Config::default()).await;
    let filter = |name: &str| WatchFilter { name: name.to_owned(), ..Default::default() };
    let request = WatchRequest { filters: vec![filter("a")], ..Default::default() };
    let mut stream = watch::handle(&world.deps, world.request(request)).await.expect("opens");
    let Some(Kind::Created(created)) = stream.next().await.expect("open").expect("a message").kind else {
        panic!("it says first that it stands")
    };
    let request = UpdateWatchRequest {
        watch_id: created.watch_id,
        add: vec![filter("b")],
        request_id: "once".to_owned(),
        ..Default::default()
    };
    let (deps, asked) = (world.deps.clone(), world.request(request.clone()));
    let change = tokio::spawn(async move { update_watch::handle(&deps, asked).await });
    eventually("the change waits for the stream", || async {
        let sql = "SELECT EXISTS (SELECT FROM watches WHERE position IS NULL)";
        sqlx::query_scalar(sql).fetch_one(&world.pool).await.expect("readable")
    })
    .await;

    let crowd = world.store.crowd(world.caller.tenant);
    let changed = stream.next().await.expect("open").expect("a message");
    assert!(matches!(&changed.kind, Some(Kind::FilterChanged(changed)) if changed.filter_version == 2), "{changed:?}");
    let answer = change.await.expect("no panic").expect("what is made is not refused");
    assert_eq!(answer, UpdateWatchResponse { filter_version: 2, cursor: changed.cursor });
    drop(crowd);
    let again = update_watch::handle(&world.deps, world.request(request)).await.expect("the first answer");
    assert_eq!(again, answer);
    world.deps.watches.stop().await;
}
