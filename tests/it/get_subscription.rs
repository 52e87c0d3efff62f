//! `EventService.GetSubscription`: one subscription, alike on every replica.

use carillon::proto::public::GetSubscriptionRequest;
use tonic::Code;

use crate::harness::tenant::assert_refused;
use crate::harness::{Receiver, World};

#[tokio::test]
async fn what_was_subscribed_is_read_on_every_replica_and_what_is_absent_is_not_found() {
    let tenant = World::shared().await.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_READ").await;
    let subscribed = tenant.subscribe("CUSTOM_READ", &receiver, "/hook").await.subscription.expect("it is set");
    for clients in &tenant.at {
        let request = GetSubscriptionRequest { subscription_id: subscribed.id.clone() };
        let read = clients.events.clone().get_subscription(request).await.expect("it is there").into_inner();
        assert_eq!(read.subscription.as_ref(), Some(&subscribed));
    }
    for (id, code, reason) in [
        ("sub_00000000000000000000000000", Code::NotFound, "SUBSCRIPTION_NOT_FOUND"),
        ("sub_x", Code::InvalidArgument, "FIELD_INVALID"),
    ] {
        let request = GetSubscriptionRequest { subscription_id: id.to_owned() };
        assert_refused(tenant.events().get_subscription(request).await, code, reason);
    }
}
