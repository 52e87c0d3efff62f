//! `EventService.Subscribe`: what can be subscribed, once, and from when on it fires.

use carillon::proto::internal::publish_service_client::PublishServiceClient;
use carillon::proto::public::{
    CreateEventTypeRequest, DeliveryPolicy, EventPhase, OrderingPolicy, SubscribeRequest, Subscription,
    SubscriptionState, UpdateSubscriptionRequest,
};
use serde_json::json;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::database::Cluster;
use crate::harness::tenant::{assert_refused, publish_request};
use crate::harness::{Receiver, World};

#[tokio::test]
async fn a_subscription_fires_on_every_replica_from_the_moment_it_is_answered() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_SUBSCRIBED").await;
    let before = tenant.publish("CUSTOM_SUBSCRIBED", &json!({})).await;
    assert!(before.invocations.is_empty());
    let subscribed = tenant.subscribe("CUSTOM_SUBSCRIBED", &receiver, "/hook").await.subscription.expect("it is set");
    assert_eq!(subscribed.state(), SubscriptionState::Active);
    assert_eq!(subscribed.effective_position, before.position);
    for publisher in &tenant.publishers {
        let request = crate::harness::tenant::publish_request("CUSTOM_SUBSCRIBED", &json!({}));
        let answer = publisher.clone().publish(request).await.expect("published").into_inner();
        assert_eq!(answer.invocations.len(), 1, "a replica did not know the subscription");
        assert_eq!(answer.invocations[0].subscription_id, subscribed.id);
    }
    receiver.receives("/hook", 2).await;
}

#[tokio::test]
async fn the_same_target_cannot_be_subscribed_twice() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_TWICE").await;
    let request = tenant.subscribe_request("CUSTOM_TWICE", "http://127.0.0.1:9/hook");
    let first = tenant.events().subscribe(request.clone()).await.expect("the first one").into_inner();
    let status =
        assert_refused(tenant.at[1].events.clone().subscribe(request).await, Code::AlreadyExists, "ALREADY_SUBSCRIBED");
    let resource = status.get_details_resource_info().expect("it is set");
    assert_eq!(resource.resource_name, first.subscription.expect("it is set").id);
    let other = tenant.subscribe_request("CUSTOM_TWICE", "http://127.0.0.1:9/other");
    tenant.events().subscribe(other).await.expect("another target");
}

#[tokio::test]
async fn a_request_id_makes_a_retry_safe() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_RETRIED").await;
    let mut request = tenant.subscribe_request("CUSTOM_RETRIED", "http://127.0.0.1:9/hook");
    request.request_id = "once".to_owned();
    let first = tenant.events().subscribe(request.clone()).await.expect("the first one").into_inner();
    let again = tenant.at[1].events.clone().subscribe(request.clone()).await.expect("the retry").into_inner();
    assert_eq!(first, again);
    request.display_name = "another body".to_owned();
    assert_refused(tenant.events().subscribe(request).await, Code::FailedPrecondition, "REQUEST_ID_REUSED");
}

#[tokio::test]
async fn what_does_not_exist_cannot_be_subscribed() {
    let tenant = World::shared().await.tenant().await;
    tenant.declare("CUSTOM_EXISTS").await;
    let request = tenant.subscribe_request("CUSTOM_EXIST", "http://127.0.0.1:9/hook");
    let status = assert_refused(tenant.events().subscribe(request).await, Code::NotFound, "EVENT_TYPE_NOT_FOUND");
    assert!(status.get_details_error_info().expect("it is set").metadata["near"].contains("CUSTOM_EXISTS"));
    let mut request = tenant.subscribe_request("CUSTOM_EXISTS", "http://127.0.0.1:9/hook");
    request.app = "absent".to_owned();
    assert_refused(tenant.events().subscribe(request).await, Code::NotFound, "APP_NOT_FOUND");
}

#[tokio::test]
async fn only_events_that_pass_the_filter_fire() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_FILTERED").await;
    let request = SubscribeRequest {
        filter: "data.amount > 100 && event.source.startsWith('/test')".to_owned(),
        ..tenant.subscribe_request("CUSTOM_FILTERED", &receiver.url("/hook"))
    };
    tenant.events().subscribe(request).await.expect("a valid filter");
    assert!(tenant.publish("CUSTOM_FILTERED", &json!({"amount": 100})).await.invocations.is_empty());
    // A filter that fails at run time does not match, and harms nobody.
    assert!(tenant.publish("CUSTOM_FILTERED", &json!({"other": 1})).await.invocations.is_empty());
    assert_eq!(tenant.publish("CUSTOM_FILTERED", &json!({"amount": 101})).await.invocations.len(), 1);
    let received = receiver.receives("/hook", 1).await;
    assert_eq!(received[0].json()["data"]["amount"], 101);
}

#[tokio::test]
async fn an_ordering_key_is_refused_where_listeners_are_asked_before_there_is_an_order() {
    let tenant = World::shared().await.tenant().await;
    let name = "CUSTOM_PRE_UNORDERED";
    let pre = CreateEventTypeRequest { name: name.to_owned(), phase: EventPhase::Pre.into(), ..Default::default() };
    tenant.types().create_event_type(pre).await.expect("a PRE type can be declared");
    let ordering = Some(OrderingPolicy { key: "data.user".to_owned(), ..Default::default() });
    let delivery_policy = Some(DeliveryPolicy { ordering, ..Default::default() });
    let request = tenant.subscribe_request(name, "http://127.0.0.1:9/hook");
    let field = |status: Status| status.get_details_bad_request().expect("it is set").field_violations.remove(0).field;

    let ordered = SubscribeRequest { delivery_policy: delivery_policy.clone(), ..request.clone() };
    let refused = assert_refused(tenant.events().subscribe(ordered).await, Code::InvalidArgument, "FIELD_INVALID");
    assert_eq!(field(refused), "delivery_policy.ordering");
    let made = tenant.events().subscribe(request).await.expect("without one it is accepted").into_inner().subscription;
    let subscription = Some(Subscription { delivery_policy, ..made.expect("it is set") });
    let update = UpdateSubscriptionRequest { subscription, ..Default::default() };
    let refused =
        assert_refused(tenant.events().update_subscription(update).await, Code::InvalidArgument, "FIELD_INVALID");
    assert_eq!(field(refused), "subscription.delivery_policy.ordering");
}

#[tokio::test]
async fn g12_what_a_filter_that_this_release_does_not_know_would_match_is_refused_and_not_lost() {
    let mut world = World::start(1).await;
    let tenant = world.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_LATER").await;
    let mut request = tenant.subscribe_request("CUSTOM_LATER", &receiver.url("/later"));
    request.filter = "data.a == 1".to_owned();
    tenant.events().subscribe(request).await.expect("a receiver can be subscribed");
    // As a later release would have stored it. The first replica has it in memory as it was.
    let mut connection = Cluster::superuser(&world.database_url).await;
    let sql = "UPDATE subscriptions SET filter = 'data.a == 1 && later(data)'";
    sqlx::query(sql).execute(&mut connection).await.expect("it is changed");
    let replica = world.add_replica().await;
    let mut publisher = PublishServiceClient::new(world.internal(replica, &tenant.identity));
    let refused = publisher.publish(publish_request("CUSTOM_LATER", &json!({"a": 1}))).await;
    assert_eq!(refused.expect_err("nobody can tell whether it fires").code(), Code::Internal);
    // It is published once a release that knows the filter is asked.
    let published = tenant.publish("CUSTOM_LATER", &json!({"a": 1})).await;
    assert_eq!(published.invocations.len(), 1);
}
