//! PRE events where several tenants, or several replicas, share something.

use std::sync::Arc;

use carillon::proto::internal::PublishResponse;
use carillon::proto::public::{CreateEventTypeRequest, DeliveryPolicy, EventPhase};
use serde_json::json;
use tokio::sync::Semaphore;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::tenant::{assert_refused, publish_request, quick_policy};
use crate::harness::{Answer, Receiver, Tenant, World};

const TYPE: &str = "CUSTOM_PRE_SHARED";

/// A tenant with a PRE type and one listener to it; its subscription's id.
async fn listened(world: &World, receiver: &Receiver, path: &str, policy: DeliveryPolicy) -> (Tenant, String) {
    let tenant = world.tenant().await;
    let request = CreateEventTypeRequest { name: TYPE.to_owned(), phase: EventPhase::Pre.into(), ..Default::default() };
    tenant.types().create_event_type(request).await.expect("a PRE type can be declared");
    let mut request = tenant.subscribe_request(TYPE, &receiver.url(path));
    request.delivery_policy = Some(policy);
    let answer = tenant.events().subscribe(request).await.expect("a listener can be subscribed").into_inner();
    receiver.trust(path, &answer.signing_secret);
    (tenant, answer.subscription.expect("it is set").id)
}

/// Publishes at a replica.
async fn publish(tenant: &Tenant, replica: usize) -> Result<PublishResponse, Status> {
    let mut publisher = tenant.publishers[replica].clone();
    publisher.publish(publish_request(TYPE, &json!({}))).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn listeners_that_hang_leave_other_tenants_room_to_publish() {
    let world = World::start_with(1, "[pending]\nphases_max = 4\n").await;
    let receiver = Receiver::start().await;
    let (busy, _) = listened(&world, &receiver, "/hangs", quick_policy()).await;
    let (other, _) = listened(&world, &receiver, "/well", quick_policy()).await;
    let gate = Arc::new(Semaphore::new(0));
    receiver.answers("/hangs", [Answer::Gated(gate.clone())]);
    // Twice as many as there are places: some are refused, and it does not matter which.
    let mut publishing = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut publisher = busy.publisher();
        publishing.spawn(async move { publisher.publish(publish_request(TYPE, &json!({}))).await });
    }
    for _ in 0..6 {
        let refused = publishing.join_next().await.expect("one of eight").expect("no panic");
        let status = assert_refused(refused, Code::ResourceExhausted, "QUOTA_EXCEEDED");
        assert_eq!(status.get_details_error_info().expect("it is set").metadata["quota"], "pending.phases_max");
        assert!(status.get_details_retry_info().is_some_and(|retry| retry.retry_delay.is_some()), "phases end");
    }
    receiver.receives("/hangs", 2).await;
    for _ in 0..3 {
        publish(&other, 0).await.expect("another tenant has places of its own");
    }
    gate.add_permits(3);
    while let Some(published) = publishing.join_next().await {
        published.expect("no panic").expect("its listener agreed");
    }
    publish(&busy, 0).await.expect("there is room again");
}
