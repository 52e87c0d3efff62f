//! G15: what watches leave to be remembered is bounded, however soon each of them ends.

use carillon::proto::internal::Role;
use carillon::proto::public::{UpdateWatchRequest, WatchFilter, WatchRequest};
use tonic_types::StatusExt as _;

use crate::g15_bounded::at_bound;
use crate::harness::tenant::{Clients, create_key};
use crate::harness::{World, eventually};
use crate::update_watch::{Open, update};

/// Filters of some 50 KB.
fn large() -> Vec<WatchFilter> {
    let filter = |n| WatchFilter {
        name: format!("f{n}"),
        filter: format!("data.x == '{}'", "x".repeat(3_000)),
        ..Default::default()
    };
    (0..16).map(filter).collect()
}

#[tokio::test]
async fn g15_filters_that_watches_leave_to_be_remembered_are_bounded_and_room_comes_back() {
    let settings = "[watch]\nremembered_bytes_max = 1048576\nstream_age_min_ms = 20000\nstream_age_max_ms = 20000\nresume_ms = 0\n";
    let world = World::start_with(1, settings).await;
    let tenant = world.tenant().await;
    let running = Open::at(&tenant, 0, WatchRequest::default()).await;
    let request = WatchRequest { filters: large(), ..Default::default() };
    let mut opened = 0;
    let refused = loop {
        match Open::try_at(&tenant, 0, request.clone()).await {
            Ok(ended_at_once) => drop(ended_at_once),
            Err(status) => break status,
        }
        opened += 1;
        assert!(opened < 100, "every one is remembered");
    };
    assert!(opened >= 10, "{opened} of them fit");
    let retry = refused.get_details_retry_info().and_then(|info| info.retry_delay).expect("it says when");
    assert!(retry.as_secs() < 3, "{retry:?}");
    // Half of it is one credential's.
    at_bound(Err::<(), _>(refused), "watch.remembered_bytes_max", "524288");
    let mut changed = 0;
    let refused = loop {
        let change = UpdateWatchRequest { watch_id: running.id.clone(), add: large(), ..Default::default() };
        match update(&tenant, 0, change).await {
            Ok(_) => changed += 1,
            Err(status) => break status,
        }
        assert!(changed < 100, "every change is remembered");
    };
    at_bound(Err::<(), _>(refused), "watch.remembered_bytes_max", "524288");
    let other = create_key(&world, &tenant.slug, "", Role::Viewer).await;
    Clients::new(&world, 0, &other).events.watch(request.clone()).await.expect("another credential has its own");
    eventually("there is room again", || async {
        Open::try_at(&tenant, 0, request.clone()).await.map(drop).map_err(|status| status.code())
    })
    .await;
}
