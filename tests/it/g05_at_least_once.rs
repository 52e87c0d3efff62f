//! G1, G2, G5, G7 under crashes: a replica or Postgres is killed in mid-load, and everything acknowledged is counted.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use carillon::proto::internal::PublishResponse;
use carillon::proto::public::watch_request::Start;
use carillon::proto::public::{InvocationState, ListEventsRequest, ListInvocationsRequest, WatchRequest};
use serde_json::json;
use sqlx::Connection as _;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::harness::database::Cluster;
use crate::harness::tenant::publish_request;
use crate::harness::{Receiver, Tenant, World, eventually, within};
use crate::watch::{positions, watch};

/// Publishers that keep going through faults; each retries with the same key until it is answered.
struct Load {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Vec<PublishResponse>>>,
}

impl Load {
    fn start(tenant: &Tenant, callers: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let tasks = (0..callers)
            .map(|caller| {
                let (publishers, stop) = (tenant.publishers.clone(), stop.clone());
                tokio::spawn(async move {
                    let mut acknowledged = Vec::new();
                    let mut turn = caller;
                    for n in 0.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let mut request = publish_request("CUSTOM_LOADED", &json!({"caller": caller, "n": n}));
                        request.idempotency_key = format!("{caller}-{n}");
                        let answer = eventually("a publish is answered in the end", || {
                            turn += 1;
                            let mut publisher = publishers[turn % publishers.len()].clone();
                            let request = request.clone();
                            async move { publisher.publish(request).await.map(tonic::Response::into_inner) }
                        })
                        .await;
                        acknowledged.push(answer);
                    }
                    acknowledged
                })
            })
            .collect();
        Self { stop, tasks }
    }

    async fn end(self) -> Vec<PublishResponse> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for task in self.tasks {
            all.extend(within("a publisher", task).await.expect("no publisher panics"));
        }
        all
    }
}

/// Counts: every acknowledged event is in the log once, positions have no gap, every invocation is recorded and ends
/// SUCCEEDED, and the receiver saw each.
async fn account(tenant: &Tenant, receiver: &Receiver, acknowledged: &[PublishResponse]) {
    let mut log = BTreeMap::new();
    let event_types = vec!["CUSTOM_LOADED".to_owned()];
    let mut request = ListEventsRequest { page_size: 1_000, event_types, ..Default::default() };
    loop {
        let page = tenant.events().list_events(request.clone()).await.expect("a page").into_inner();
        log.extend(page.events.into_iter().map(|event| (event.position, event.id)));
        if page.end_of_log {
            break;
        }
        request.cursor = page.next_cursor;
    }
    // The declaration and the subscription come first.
    let end = i64::try_from(log.len()).expect("a count fits") + 2;
    assert!(log.keys().copied().eq(3..=end), "positions have gaps");
    for answer in acknowledged {
        assert_eq!(log.get(&answer.position), Some(&answer.event_id), "an acknowledged event is lost");
        assert_eq!(answer.invocations.len(), 1);
    }
    let ids: HashSet<_> = log.values().collect();
    assert_eq!(ids.len(), log.len(), "an event is in the log twice");
    assert_eq!(log.len(), acknowledged.len(), "each caller was answered for each event it made");

    let expected: HashSet<_> = acknowledged.iter().map(|answer| answer.invocations[0].invocation_id.clone()).collect();
    eventually("every invocation has arrived", || async {
        let seen: HashSet<_> =
            receiver.received("/hook").iter().map(|one| one.header("webhook-id").to_owned()).collect();
        let missing = expected.difference(&seen).count();
        if missing == 0 { Ok(()) } else { Err(missing) }
    })
    .await;
    assert!(receiver.received("/hook").iter().all(|one| one.verified == Some(true)));
    eventually("every invocation is recorded as SUCCEEDED", || async {
        let mut states = BTreeMap::<i32, usize>::new();
        let mut request = ListInvocationsRequest { page_size: 1_000, ..Default::default() };
        loop {
            let page = tenant.invocations().list_invocations(request.clone()).await.expect("a page").into_inner();
            for invocation in page.invocations {
                *states.entry(invocation.state).or_default() += 1;
            }
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        let done = states.get(&InvocationState::Succeeded.into()) == Some(&expected.len());
        if done && states.len() == 1 { Ok(()) } else { Err(states) }
    })
    .await;
}

async fn loaded(world: &World) -> (Tenant, Receiver) {
    let tenant = world.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_LOADED").await;
    tenant.subscribe("CUSTOM_LOADED", &receiver, "/hook").await;
    (tenant, receiver)
}

/// Who dispatches: each shard's owner, and that of the only tenant there is.
async fn owners(world: &World) -> (HashSet<Uuid>, Option<Uuid>) {
    let mut connection = Cluster::superuser(&world.database_url).await;
    let all: Vec<Uuid> = sqlx::query_scalar("SELECT DISTINCT owner FROM shard_leases WHERE owner IS NOT NULL")
        .fetch_all(&mut connection)
        .await
        .expect("owners");
    let of_tenant = sqlx::query_scalar(
        "SELECT l.owner FROM shard_leases l JOIN dispatch_cursors c ON c.shard = l.shard WHERE l.owner IS NOT NULL",
    )
    .fetch_optional(&mut connection)
    .await
    .expect("an owner");
    connection.close().await.expect("the connection closes");
    (all.into_iter().collect(), of_tenant)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_replica_loses_nothing_that_was_acknowledged() {
    let mut world = World::start(1).await;
    let first = eventually("the first replica has shards", || async {
        let (all, _) = owners(&world).await;
        all.iter().copied().next().ok_or(all)
    })
    .await;
    world.add_replica().await;
    world.shared_out().await;
    let (mut tenant, receiver) = loaded(&world).await;
    let load = Load::start(&tenant, 8);
    receiver.receives("/hook", 50).await;
    // The one that delivers, in the middle of it.
    let (_, owner) = owners(&world).await;
    let victim = usize::from(owner != Some(first));
    let earliest = WatchRequest { start: Some(Start::Earliest(true)), ..Default::default() };
    let mut stream = watch(&tenant, 1 - victim, earliest).await;
    world.replicas[victim].process.kill();
    let so_far = receiver.received("/hook").len();
    receiver.receives("/hook", so_far + 50).await;
    let acknowledged = load.end().await;
    world.replace(victim).await;
    tenant.reconnect(&world);
    account(&tenant, &receiver, &acknowledged).await;
    let expected = every_position(&acknowledged);
    assert_eq!(positions(&mut stream, expected.len()).await.0, expected, "the watch on the other replica has a gap");
}

/// The positions of a log with these events, after the declaration and the subscription.
fn every_position(acknowledged: &[PublishResponse]) -> Vec<i64> {
    (1..=i64::try_from(acknowledged.len()).expect("a count fits") + 2).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_postgres_loses_nothing_that_was_acknowledged() {
    let mut world = World::with_own_postgres(2).await;
    let (tenant, receiver) = loaded(&world).await;
    let earliest = || WatchRequest { start: Some(Start::Earliest(true)), ..Default::default() };
    let mut streams = [watch(&tenant, 0, earliest()).await, watch(&tenant, 1, earliest()).await];
    let load = Load::start(&tenant, 8);
    receiver.receives("/hook", 50).await;
    let postgres = &mut world.own.as_mut().expect("it is its own").postgres;
    postgres.kill().await.expect("Postgres can be killed");
    postgres.restart().await.expect("Postgres starts again");
    let so_far = receiver.received("/hook").len();
    receiver.receives("/hook", so_far + 50).await;
    let acknowledged = load.end().await;
    account(&tenant, &receiver, &acknowledged).await;
    let expected = every_position(&acknowledged);
    for stream in &mut streams {
        assert_eq!(positions(stream, expected.len()).await.0, expected, "a watch over the crash has a gap");
    }
}
