//! Who owns what: shards pass on from replica to replica, and say how they were left.

use super::*;
use crate::store::leases::Renewal;

#[tokio::test(flavor = "multi_thread")]
async fn shards_pass_on_with_rising_tokens_and_the_former_lease_tells_how_it_ended() {
    let world = World::new().await;
    let store = &world.store;
    store.prepare_shards().await.expect("prepared");
    let [one, two] = [(); 2].map(|()| crate::domain::ids::ReplicaId(clock::new_uuid()));
    let lease = Duration::from_secs(60);
    let taken = store.take_shards(one, 40, lease).await.expect("answered");
    assert_eq!(taken.len(), 40);
    assert!(taken.iter().all(|shard| shard.token == 1));
    let pulse =
        store.pulse(one, Some(Renewal::Staying(lease)), store.now() - TimeDelta::seconds(60)).await.expect("answered");
    assert_eq!((pulse.replicas, pulse.renewed.len(), pulse.free), (1, 40, 24));
    assert_eq!(pulse.heads.len(), 1, "the tenant was made just now");
    let pulse =
        store.pulse(two, Some(Renewal::Staying(lease)), store.now() + TimeDelta::seconds(60)).await.expect("answered");
    assert_eq!((pulse.replicas, pulse.renewed.len(), pulse.heads.len()), (2, 0, 0));
    assert_eq!(store.take_shards(two, 64, lease).await.expect("answered").len(), 24, "a live owner keeps its shards");

    let given = |index: usize| [(taken[index].shard, taken[index].token)];
    store.release_shards(one, &given(0), Handover::Clean).await.expect("answered");
    store.release_shards(one, &given(1), Handover::Unclean).await.expect("answered");
    store.release_shards(one, &[(taken[2].shard, 99)], Handover::Clean).await.expect("answered");
    let mut next = store.take_shards(two, 64, lease).await.expect("answered");
    next.sort_by_key(|shard| shard.shard);
    let told: Vec<_> = next.iter().map(|shard| (shard.shard, shard.token)).collect();
    assert_eq!(told, [(taken[0].shard, 2), (taken[1].shard, 2)]);
    let unclean = async |shard: i32| store.unclean_ends(shard).await.expect("readable");
    assert_eq!((unclean(told[0].0).await.len(), unclean(told[1].0).await.len()), (0, 1));
    let first = unclean(told[1].0).await[0];
    // Again not clean, and then clean: what nobody has recorded since the first stays unrecorded.
    store.release_shards(two, &told[1..], Handover::Unclean).await.expect("answered");
    let again = store.take_shards(one, 1, lease).await.expect("answered");
    assert_eq!(again, [ShardLease { shard: told[1].0, token: 3 }]);
    store.release_shards(one, &[(told[1].0, 3)], Handover::Clean).await.expect("answered");
    assert_eq!(store.take_shards(two, 1, lease).await.expect("answered").len(), 1);
    let ends = unclean(told[1].0).await;
    assert!(ends.len() == 2 && ends[0] > ends[1] && ends[1] == first, "{ends:?}");
    store.leave(one).await.expect("answered");
    assert_eq!(store.take_shards(two, 64, lease).await.expect("answered").len(), 38);
    let mut listener = store.listen().await.expect("listening");
    let head = store.head(world.tenant).await.expect("readable").expect("exists").head();
    store.notify(&[head]).await.expect("sent");
    assert_eq!(listener.next().await.expect("heard"), Hint::Head(head));
    drop(listener);
    assert_eq!(store.claim_tenant(TenantId(clock::new_uuid()), 0, 1).await.expect("answered"), None);
    let empty = LogPlace { after: 0, day: NaiveDate::default() };
    assert!(store.revoked(world.tenant, &[], empty).await.expect("readable").is_empty());
    world.end().await;
}
