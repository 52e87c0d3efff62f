//! G6: who lost the lease changes nothing. A replica is stopped in the middle of its deliveries until another has done them, and
//! then goes on as if nothing had been: its attempt has failed by then, which would be recorded, and tried again.

use std::sync::Arc;

use carillon::proto::public::{GetInvocationRequest, InvocationState};
use rustix::process::Signal;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::harness::database::Cluster;
use crate::harness::{Answer, Receiver, Tenant, World, eventually};

#[tokio::test]
async fn a_replica_that_wakes_after_its_lease_changes_no_invocation() {
    let mut world = World::start_with(1, "[dispatch]\nlease_ms = 1000").await;
    let tenant = world.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_FENCED").await;
    let gate = Arc::new(Semaphore::new(0));
    receiver.answers("/hook", [Answer::GatedStatus(gate.clone(), 500), Answer::Status(201)]);
    tenant.subscribe("CUSTOM_FENCED", &receiver, "/hook").await;
    // The only replica has the tenant, and its attempt is under way.
    let published = tenant.publish("CUSTOM_FENCED", &json!({})).await;
    receiver.receives("/hook", 1).await;
    world.replicas[0].process.signal(Signal::STOP);
    let other = world.add_replica().await;
    let mut late: Tenant = tenant;
    late.reconnect(&world);
    let read = async |replica: usize| {
        let request = GetInvocationRequest { invocation_id: published.invocations[0].invocation_id.clone() };
        late.at[replica].invocations.clone().get_invocation(request).await.map(tonic::Response::into_inner)
    };
    receiver.receives("/hook", 2).await;
    let done = eventually("the other replica has done it", || async {
        let read = read(other).await.expect("it is there");
        let state = read.invocation.as_ref().map(carillon::proto::public::Invocation::state);
        if state == Some(InvocationState::Succeeded) { Ok(read) } else { Err(read) }
    })
    .await;
    // The first one wakes, gets its answer, and would record it.
    world.replicas[0].process.signal(Signal::CONT);
    gate.add_permits(1);
    eventually("the first replica serves again and has lost its lease", || async {
        let mut publisher = late.publishers[0].clone();
        let request = crate::harness::tenant::publish_request("CUSTOM_FENCED", &json!({}));
        let answer = publisher.publish(request).await.map_err(|status| status.to_string())?.into_inner();
        let all = late.invocations_of(&answer.event_id).await;
        if all.iter().all(|one| one.state() == InvocationState::Succeeded) { Ok(()) } else { Err(format!("{all:?}")) }
    })
    .await;
    for replica in [0, other] {
        assert_eq!(
            read(replica).await.expect("it is there"),
            done,
            "a replica without its lease changed an invocation"
        );
    }
    assert_eq!(done.invocation.expect("it is set").last_attempt.map(|last| last.status_code), Some(201));
}

#[tokio::test]
async fn what_comes_of_an_attempt_after_another_has_taken_the_shard_is_not_recorded() {
    // Long enough that the replica does not learn of it by renewing its lease.
    let world = World::start_with(1, "[dispatch]\nlease_ms = 20000").await;
    let tenant = world.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_TAKEN").await;
    let gate = Arc::new(Semaphore::new(0));
    receiver.answers("/hook", [Answer::Gated(gate.clone()), Answer::Status(201)]);
    tenant.subscribe("CUSTOM_TAKEN", &receiver, "/hook").await;
    let published = tenant.publish("CUSTOM_TAKEN", &json!({})).await;
    receiver.receives("/hook", 1).await;
    // As another replica does that takes the shard, and dies at once.
    let taken = "UPDATE shard_leases SET owner = gen_random_uuid(), token = token + 1, expires_at = now()
                  WHERE shard = (SELECT shard FROM dispatch_cursors);
                 UPDATE dispatch_cursors SET token = token + 1";
    Cluster::run(&world.database_url, taken.to_owned()).await;
    gate.add_permits(1);
    // The receiver has said yes, and is asked again all the same: the answer came too late.
    receiver.receives("/hook", 2).await;
    let done = tenant.all_invocations_become(&published.event_id, InvocationState::Succeeded).await;
    let last = done[0].last_attempt.as_ref().expect("it is set");
    assert_eq!(last.status_code, 201, "{done:?}");
    assert!(last.number > 1, "{done:?}");
}
