//! The record of changes: every RPC that changes something leaves who, what and on what. The list of RPCs is that of the proto
//! files, so that a new one must either leave a record or be named here.

use std::collections::BTreeSet;

use carillon::proto::internal::{
    CancelEventRequest, CreateAppRequest, DeleteAppRequest, DeletePublisherIdentityRequest, ListApiKeysRequest,
    ListAuditRecordsRequest, ListPublisherIdentitiesRequest, RevokeApiKeyRequest, Role, Tenant as ProtoTenant,
    UpdateTenantRequest,
};
use carillon::proto::public::{
    AddEventTypeSchemaRequest, CancelInvocationRequest, DeleteEventTypeRequest, DisableSubscriptionRequest,
    EnableSubscriptionRequest, EventType, InvocationState, RedriveInvocationsRequest, RetryInvocationRequest,
    RotateSubscriptionSecretRequest, Subscription, UndeleteEventTypeRequest, UndeleteSubscriptionRequest,
    UnsubscribeRequest, UpdateEventTypeRequest, UpdateSubscriptionRequest,
};
use serde_json::json;

use crate::bad_inputs::raw;
use crate::harness::database::Cluster;
use crate::harness::tenant::{admin, create_key, publish_request};
use crate::harness::{Answer, Receiver, World, eventually};

/// How the names of RPCs begin that change nothing.
const READS: [&str; 8] = ["Get", "List", "Watch", "Wait", "Validate", "Check", "Explain", "Test"];

/// Changes that are recorded otherwise, or nowhere, and why.
const ELSEWHERE: [(&str, &str); 3] = [
    ("Publish", "the event itself is the record"),
    ("PublishBatch", "as Publish"),
    ("UpdateWatch", "a stream's filters last as long as the stream"),
];

#[tokio::test]
async fn every_call_that_changes_something_leaves_a_record() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    let receiver = Receiver::start().await;
    let (slug, mut admin) = (|| tenant.slug.clone(), admin(world));
    let (mut events, mut types, mut invocations) = (tenant.events(), tenant.types(), tenant.invocations());
    let name = || "CUSTOM_AUDITED".to_owned();
    tenant.declare(&name()).await;
    let request = AddEventTypeSchemaRequest { event_type: name(), schema: "{}".to_owned(), ..Default::default() };
    types.add_event_type_schema(request).await.expect("valid");
    let event_type = EventType { name: name(), display_name: "x".to_owned(), ..Default::default() };
    let request = UpdateEventTypeRequest { event_type: Some(event_type), update_mask: None, ..Default::default() };
    types.update_event_type(request).await.expect("valid");

    let id = tenant.subscribe(&name(), &receiver, "/hook").await.subscription.expect("it is set").id;
    let subscription_id = || id.clone();
    let subscription = Subscription { id: id.clone(), display_name: "x".to_owned(), ..Default::default() };
    let request =
        UpdateSubscriptionRequest { subscription: Some(subscription), update_mask: None, ..Default::default() };
    events.update_subscription(request).await.expect("valid");
    let request = RotateSubscriptionSecretRequest { subscription_id: subscription_id(), ..Default::default() };
    events.rotate_subscription_secret(request).await.expect("valid");
    let request = DisableSubscriptionRequest { subscription_id: subscription_id(), ..Default::default() };
    events.disable_subscription(request).await.expect("valid");
    let request = EnableSubscriptionRequest { subscription_id: subscription_id(), ..Default::default() };
    events.enable_subscription(request).await.expect("valid");

    receiver.answers("/hook", [Answer::Status(500)]);
    let published = tenant.publish(&name(), &json!({})).await;
    let dead = async || tenant.all_invocations_become(&published.event_id, InvocationState::DeadLettered).await;
    let invocation_id = dead().await[0].id.clone();
    let request = RetryInvocationRequest { invocation_id: invocation_id.clone(), ..Default::default() };
    invocations.retry_invocation(request).await.expect("a dead letter can be retried");
    dead().await;
    let request = RedriveInvocationsRequest { subscription_id: subscription_id(), ..Default::default() };
    invocations.redrive_invocations(request).await.expect("valid");
    dead().await;
    let mut delayed = publish_request(&name(), &json!({}));
    delayed.deliver_at = Some((carillon::clock::now() + chrono::TimeDelta::hours(1)).into());
    let delayed = tenant.try_publish(delayed).await.expect("it waits").event_id;
    let request = CancelEventRequest { event_id: delayed.clone(), ..Default::default() };
    tenant.publishers[0].clone().cancel_event(request).await.expect("it is delayed");
    let request = CancelInvocationRequest { invocation_id, ..Default::default() };
    invocations.cancel_invocation(request).await.expect("a dead letter can be cancelled");

    let request = UnsubscribeRequest { subscription_id: subscription_id(), ..Default::default() };
    events.unsubscribe(request).await.expect("it is subscribed");
    let request = UndeleteSubscriptionRequest { subscription_id: subscription_id(), ..Default::default() };
    events.undelete_subscription(request).await.expect("it was deleted");
    let request = UnsubscribeRequest { subscription_id: subscription_id(), ..Default::default() };
    events.unsubscribe(request).await.expect("it is subscribed");
    let request = DeleteEventTypeRequest { name: name(), ..Default::default() };
    types.delete_event_type(request).await.expect("nothing is subscribed");
    types
        .undelete_event_type(UndeleteEventTypeRequest { name: name(), ..Default::default() })
        .await
        .expect("it was deleted");

    let renamed = ProtoTenant { slug: slug(), display_name: "Renamed".to_owned(), ..Default::default() };
    let request = UpdateTenantRequest { tenant: Some(renamed), ..Default::default() };
    admin.update_tenant(request).await.expect("valid");
    let request = CreateAppRequest { tenant: slug(), slug: "gone".to_owned(), ..Default::default() };
    admin.create_app(request).await.expect("valid");
    let request = DeleteAppRequest { tenant: slug(), app: "gone".to_owned(), ..Default::default() };
    admin.delete_app(request).await.expect("it is empty");
    create_key(world, &tenant.slug, "", Role::Viewer).await;
    let request = ListApiKeysRequest { tenant: slug(), ..Default::default() };
    let keys = admin.list_api_keys(request).await.expect("a page").into_inner().api_keys;
    let viewer = keys.iter().find(|key| key.role() == Role::Viewer).expect("it is listed");
    let request = RevokeApiKeyRequest { tenant: slug(), api_key_id: viewer.id.clone(), ..Default::default() };
    admin.revoke_api_key(request).await.expect("it exists");
    let request = ListPublisherIdentitiesRequest { tenant: slug(), ..Default::default() };
    let publishers = admin.list_publisher_identities(request).await.expect("a page").into_inner();
    let publisher_identity_id = publishers.publisher_identities[0].id.clone();
    let request = DeletePublisherIdentityRequest { tenant: slug(), publisher_identity_id, ..Default::default() };
    admin.delete_publisher_identity(request).await.expect("it exists");

    let request = ListAuditRecordsRequest { tenant: slug(), page_size: 1_000, ..Default::default() };
    let records = admin.list_audit_records(request).await.expect("a page").into_inner().audit_records;
    let changes: BTreeSet<String> = raw::rpcs()
        .iter()
        .filter_map(|rpc| rpc.name.split_once('.').map(|(_, method)| method.to_owned()))
        .filter(|method| !READS.iter().any(|read| method.starts_with(read)))
        .filter(|method| !ELSEWHERE.iter().any(|(elsewhere, _)| method == elsewhere))
        .collect();
    let recorded: BTreeSet<String> = records.iter().map(|record| record.action.clone()).collect();
    let missing: Vec<_> = changes.difference(&recorded).collect();
    assert!(changes.len() >= 20 && missing.is_empty(), "no record of {missing:?}; recorded are {recorded:?}");
    for (action, resource) in [("CancelEvent", &delayed), ("RedriveInvocations", &id)] {
        let found = records.iter().find(|record| record.action == action).expect("it is recorded");
        assert_eq!(&found.resource, resource, "{action}");
    }
    for record in &records {
        assert!(!record.actor.is_empty() && !record.resource.is_empty(), "{record:?}");
    }
}

#[tokio::test]
async fn records_are_forgotten_once_they_have_been_kept_for_their_time() {
    let mut world = World::start_with(1, "[dispatch]\nlease_ms = 1000\naudit_retention_days = 60").await;
    let slug = world.tenant().await.slug;
    let recorded = async |world: &World| {
        let request = ListAuditRecordsRequest { tenant: slug.clone(), page_size: 1_000, ..Default::default() };
        let records = admin(world).list_audit_records(request).await.expect("a page").into_inner().audit_records;
        records.into_iter().map(|record| record.action).collect::<BTreeSet<_>>()
    };
    let before = recorded(&world).await;
    world.replicas[0].process.kill();
    let sql = "UPDATE audit_records SET at = now() - interval '59 days' WHERE action = 'CreateApiKey';
               UPDATE audit_records SET at = now() - interval '61 days' WHERE action = 'CreateApp'";
    Cluster::run(&world.database_url, sql.to_owned()).await;
    world.replace(0).await;
    let after = eventually("a record has gone", || async {
        let after = recorded(&world).await;
        if after == before { Err(after) } else { Ok(after) }
    })
    .await;
    assert_eq!(before.difference(&after).collect::<Vec<_>>(), ["CreateApp"]);
}
