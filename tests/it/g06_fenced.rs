//! G6: who lost the lease changes nothing. A replica is stopped in the middle of its deliveries until another has done them, and
//! then goes on as if nothing had been: its attempt has failed by then, which would be recorded, and tried again.

use std::sync::Arc;

use carillon::proto::public::{GetInvocationRequest, InvocationState};
use rustix::process::Signal;
use serde_json::json;
use tokio::sync::Semaphore;

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
