//! G10: another tenant's ids answer exactly as absent ones, in every field of every call that takes one.

use carillon::proto::internal::WaitEventRequest;
use carillon::proto::public::{
    CancelInvocationRequest, DisableSubscriptionRequest, EnableSubscriptionRequest, GetEventRequest,
    GetEventTypeRequest, GetInvocationRequest, GetSubscriptionRequest, InvocationState, ListEventTypeSchemasRequest,
    ListInvocationsRequest, RedriveInvocationsRequest, RetryInvocationRequest, RotateSubscriptionSecretRequest,
    Subscription, UndeleteSubscriptionRequest, UnsubscribeRequest, UpdateSubscriptionRequest, ValidateEventRequest,
};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde_json::json;
use tonic::Status;

use crate::harness::{Receiver, Tenant, World};

/// The ids that calls take.
struct Ids {
    subscription: String,
    event: String,
    invocation: String,
    event_type: String,
}

type Call = fn(&Tenant, &Ids) -> BoxFuture<'static, Result<String, Status>>;

/// A call that is given the ids; the answer is turned into text.
macro_rules! call {
    ($client:ident . $method:ident, |$ids:ident| $request:expr) => {
        (
            stringify!($method),
            (|tenant: &Tenant, $ids: &Ids| {
                let (mut client, request) = (tenant.$client(), $request);
                async move { client.$method(request).await.map(|answer| format!("{:?}", answer.into_inner())) }.boxed()
            }) as Call,
        )
    };
}

#[tokio::test]
async fn another_tenants_ids_answer_as_absent_ones() {
    let world = World::shared().await;
    let (victim, attacker) = (world.tenant().await, world.tenant().await);
    let receiver = Receiver::start().await;
    victim.declare("CUSTOM_SECRET").await;
    let subscription = victim.subscribe("CUSTOM_SECRET", &receiver, "/hook").await.subscription.expect("it is set");
    let published = victim.publish("CUSTOM_SECRET", &json!({"secret": 1})).await;
    victim.all_invocations_become(&published.event_id, InvocationState::Succeeded).await;
    let foreign = Ids {
        subscription: subscription.id.clone(),
        event: published.event_id,
        invocation: published.invocations[0].invocation_id.clone(),
        event_type: "CUSTOM_SECRET".to_owned(),
    };
    let absent = Ids {
        subscription: "sub_00000000000000000000000000".to_owned(),
        event: "evt_00000000000000000000000000".to_owned(),
        invocation: "inv_00000000000000000000000000000000".to_owned(),
        event_type: "CUSTOM_ABSENT".to_owned(),
    };
    let calls = [
        call!(events.get_subscription, |ids| GetSubscriptionRequest { subscription_id: ids.subscription.clone() }),
        call!(events.update_subscription, |ids| UpdateSubscriptionRequest {
            subscription: Some(Subscription {
                id: ids.subscription.clone(),
                display_name: "x".to_owned(),
                ..Default::default()
            }),
            update_mask: None,
        }),
        call!(events.enable_subscription, |ids| EnableSubscriptionRequest {
            subscription_id: ids.subscription.clone(),
            ..Default::default()
        }),
        call!(events.disable_subscription, |ids| DisableSubscriptionRequest {
            subscription_id: ids.subscription.clone(),
            ..Default::default()
        }),
        call!(events.undelete_subscription, |ids| UndeleteSubscriptionRequest {
            subscription_id: ids.subscription.clone(),
            ..Default::default()
        }),
        call!(events.unsubscribe, |ids| UnsubscribeRequest {
            subscription_id: ids.subscription.clone(),
            ..Default::default()
        }),
        call!(events.rotate_subscription_secret, |ids| RotateSubscriptionSecretRequest {
            subscription_id: ids.subscription.clone(),
            ..Default::default()
        }),
        call!(events.get_event, |ids| GetEventRequest { event_id: ids.event.clone() }),
        call!(invocations.get_invocation, |ids| GetInvocationRequest { invocation_id: ids.invocation.clone() }),
        call!(invocations.retry_invocation, |ids| RetryInvocationRequest { invocation_id: ids.invocation.clone() }),
        call!(invocations.cancel_invocation, |ids| CancelInvocationRequest { invocation_id: ids.invocation.clone() }),
        call!(invocations.list_invocations, |ids| ListInvocationsRequest {
            event_id: ids.event.clone(),
            ..Default::default()
        }),
        call!(invocations.list_invocations, |ids| ListInvocationsRequest {
            subscription_id: ids.subscription.clone(),
            ..Default::default()
        }),
        call!(invocations.redrive_invocations, |ids| RedriveInvocationsRequest {
            subscription_id: ids.subscription.clone(),
            ..Default::default()
        }),
        call!(types.get_event_type, |ids| GetEventTypeRequest { name: ids.event_type.clone(), ..Default::default() }),
        call!(types.list_event_type_schemas, |ids| ListEventTypeSchemasRequest {
            event_type: ids.event_type.clone(),
            ..Default::default()
        }),
        call!(types.validate_event, |ids| ValidateEventRequest {
            event_type: ids.event_type.clone(),
            data: "{}".into(),
            ..Default::default()
        }),
        call!(publisher.wait_event, |ids| WaitEventRequest { event_id: ids.event.clone(), ..Default::default() }),
    ];
    for (name, call) in calls {
        let text = |result: Result<String, Status>, ids: &Ids| {
            let text = match result {
                Ok(answer) => answer,
                Err(status) => {
                    let details = String::from_utf8_lossy(status.details()).into_owned();
                    format!("{:?} {} {details}", status.code(), status.message())
                }
            };
            // The caller's own words may be repeated to it; nothing else may differ.
            [&ids.subscription, &ids.event, &ids.invocation, &ids.event_type]
                .iter()
                .fold(text, |text, id| text.replace(id.as_str(), "<given>"))
        };
        let of_foreign = text(call(&attacker, &foreign).await, &foreign);
        let of_absent = text(call(&attacker, &absent).await, &absent);
        assert_eq!(of_foreign, of_absent, "{name} tells another tenant's id from an absent one");
    }
    let untouched = GetSubscriptionRequest { subscription_id: subscription.id.clone() };
    let read = victim.events().get_subscription(untouched).await.expect("it is there").into_inner().subscription;
    assert_eq!(read, Some(subscription));
}
