//! G15: what is deleted is kept for a time, is bounded while it is, and goes for good after that.

use carillon::proto::public::{
    CreateEventTypeRequest, DeleteEventTypeRequest, InvocationState, SubscribeResponse, UndeleteEventTypeRequest,
    UndeleteSubscriptionRequest, UnsubscribeRequest,
};
use serde_json::json;
use tonic::{Code, Status};

use crate::g15_bounded::at_bound;
use crate::harness::database::Cluster;
use crate::harness::tenant::{assert_refused, publish_request};
use crate::harness::{Receiver, Tenant, World, eventually};

const SETTINGS: &str = "[limits]\ndeleted_subscriptions_max = 2\ndeleted_event_types_max = 2\n";

async fn subscribe(tenant: &Tenant, receiver: &Receiver) -> Result<SubscribeResponse, Status> {
    let request = tenant.subscribe_request("CUSTOM_CHURN", &receiver.url("/hook"));
    tenant.events().subscribe(request).await.map(tonic::Response::into_inner)
}

async fn unsubscribe(tenant: &Tenant, subscribed: &SubscribeResponse) -> String {
    let id = subscribed.subscription.as_ref().expect("it is set").id.clone();
    let request = UnsubscribeRequest { subscription_id: id.clone(), ..Default::default() };
    tenant.events().unsubscribe(request).await.expect("it is subscribed");
    id
}

async fn declare_and_retire(tenant: &Tenant, name: &str) -> Result<(), Status> {
    let request = CreateEventTypeRequest { name: name.to_owned(), schema: "{}".to_owned(), ..Default::default() };
    tenant.types().create_event_type(request).await?;
    let request = DeleteEventTypeRequest { name: name.to_owned(), ..Default::default() };
    tenant.types().delete_event_type(request).await.map(drop)
}

#[tokio::test]
async fn what_is_deleted_is_bounded_can_be_undeleted_and_is_purged_once_the_log_has_forgotten_it() {
    let mut world = World::start_with(1, SETTINGS).await;
    let mut tenant = world.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_CHURN").await;
    let first = unsubscribe_after_an_event(&tenant, &receiver).await;
    let second = unsubscribe(&tenant, &subscribe(&tenant, &receiver).await.expect("within the bound")).await;
    at_bound(subscribe(&tenant, &receiver).await, "limits.deleted_subscriptions_max", "2");
    let undelete = |id: &str| UndeleteSubscriptionRequest { subscription_id: id.to_owned(), ..Default::default() };
    tenant.events().undelete_subscription(undelete(&second)).await.expect("there is time to");
    let request = UnsubscribeRequest { subscription_id: second.clone(), ..Default::default() };
    tenant.events().unsubscribe(request).await.expect("it is there again");
    at_bound(subscribe(&tenant, &receiver).await, "limits.deleted_subscriptions_max", "2");
    for name in ["CUSTOM_ONE", "CUSTOM_TWO"] {
        declare_and_retire(&tenant, name).await.expect("within the bound");
    }
    at_bound(declare_and_retire(&tenant, "CUSTOM_THREE").await, "limits.deleted_event_types_max", "2");
    let request = UndeleteEventTypeRequest { name: "CUSTOM_TWO".to_owned(), ..Default::default() };
    tenant.types().undelete_event_type(request).await.expect("there is time to");
    declare_and_retire(&tenant, "CUSTOM_THREE").await.expect("one less is retired");

    let end = tenant.end_of_log().await;
    world.replicas[0].process.kill();
    let mut connection = Cluster::superuser(&world.database_url).await;
    let older = "UPDATE subscriptions SET deleted_at = deleted_at - interval '40 days';
        UPDATE event_types SET deleted_at = deleted_at - interval '40 days'";
    sqlx::raw_sql(older).execute(&mut connection).await.expect("aged");
    world.age_log(end, 40).await;
    world.replace(0).await;
    tenant.reconnect(&world);
    eventually("there is room again", || async { subscribe(&tenant, &receiver).await.map_err(|status| status.code()) })
        .await;
    for id in [&first, &second] {
        let gone = tenant.events().undelete_subscription(undelete(id)).await;
        assert_refused(gone, Code::NotFound, "SUBSCRIPTION_NOT_FOUND");
    }
    eventually("the names of purged types are free", || async {
        let again = declare_and_retire(&tenant, "CUSTOM_ONE").await;
        again.map_err(|status| status.code())
    })
    .await;
    let request = UndeleteEventTypeRequest { name: "CUSTOM_THREE".to_owned(), ..Default::default() };
    assert_refused(tenant.types().undelete_event_type(request).await, Code::NotFound, "EVENT_TYPE_NOT_FOUND");
    let rest = "SELECT (SELECT count(*) FROM webhook_secrets) + (SELECT count(*) FROM event_type_schemas)";
    let rest: i64 = sqlx::query_scalar(rest).fetch_one(&mut connection).await.expect("readable");
    assert_eq!(rest, 3, "one of the new subscription, those of CUSTOM_ONE and CUSTOM_TWO");
}

/// What a deleted subscription has received stays readable under its id, in records and in the answer to a repetition.
async fn unsubscribe_after_an_event(tenant: &Tenant, receiver: &Receiver) -> String {
    let subscribed = subscribe(tenant, receiver).await.expect("within the bound");
    let mut request = publish_request("CUSTOM_CHURN", &json!({}));
    "once".clone_into(&mut request.idempotency_key);
    let published = tenant.try_publish(request.clone()).await.expect("valid");
    tenant.all_invocations_become(&published.event_id, InvocationState::Succeeded).await;
    let id = unsubscribe(tenant, &subscribed).await;
    let repeated = tenant.try_publish(request).await.expect("a repetition");
    assert_eq!(repeated.invocations, published.invocations);
    assert_eq!(repeated.invocations[0].subscription_id, id);
    assert_eq!(tenant.invocations_of(&published.event_id).await[0].subscription_id, id);
    id
}
