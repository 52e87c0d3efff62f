//! G1: names that lead inside. Beside an address that may be called they have one that may not, or they turn from one to the other
//! between any two look-ups. A listener on the forbidden side counts that nothing came, while what is allowed is delivered.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use carillon::proto::public::{Invocation, InvocationState, OutcomeClass};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::time::interval;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::TYPE;
use crate::harness::{Receiver, Tenant, World, eventually};

/// Where a receiver may be. Of the same length as [`FORBIDDEN`], so that a line never changes its place in the file.
const ALLOWED: &str = "127.0.0.2";
/// Where nothing may go.
const FORBIDDEN: &str = "127.0.0.3";
/// Names that turn.
const NAMES: usize = 48;

/// What the look-up of names finds, and who came to which side.
struct Sides {
    hosts: PathBuf,
    allowed: Receiver,
    forbidden: Arc<AtomicUsize>,
    _stop: DropGuard,
}

impl Sides {
    /// Two receivers on one port, one on each side.
    async fn open(world: &World) -> Self {
        let hosts = world.path("hosts");
        fs::write(&hosts, "127.0.0.1 localhost\n").expect("a file in the temporary folder");
        let (allowed, listener) = eventually("a port is free on both sides", || async {
            let allowed = Receiver::start_at(ALLOWED).await;
            TcpListener::bind((FORBIDDEN, allowed.port())).await.map(|listener| (allowed, listener))
        })
        .await;
        let (forbidden, stop) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
        let counter = Arc::clone(&forbidden);
        let count = async move {
            loop {
                let _connection = listener.accept().await;
                counter.fetch_add(1, Ordering::SeqCst);
            }
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(count));
        Self { hosts, allowed, forbidden, _stop: stop.drop_guard() }
    }

    /// A world whose replica looks names up here and may call the allowed side.
    async fn world() -> (World, Self, Tenant) {
        let allowed = format!("[executor]\nallow_private_ranges = [\"{ALLOWED}/32\"]");
        let mut world = World::start_with(0, &allowed).await;
        let sides = Self::open(&world).await;
        world.hosts = Some(sides.hosts.clone());
        world.add_replica().await;
        let tenant = world.tenant().await;
        tenant.declare(TYPE).await;
        (world, sides, tenant)
    }

    /// Subscribes a name's receiver; the path tells who was called.
    async fn subscribe(&self, tenant: &Tenant, name: &str) -> String {
        let request = tenant.subscribe_request(TYPE, &format!("http://{name}:{}/{name}", self.allowed.port()));
        let made = tenant.events().subscribe(request).await.expect("a name is judged when it is called").into_inner();
        let id = made.subscription.expect("it is set").id;
        tenant.told("SUBSCRIPTION_CREATED", &id).await;
        id
    }

    fn forbidden(&self) -> usize {
        self.forbidden.load(Ordering::SeqCst)
    }
}

/// The records of names of which those with an even number, or the odd ones, lead inside.
fn turned(odd: bool) -> String {
    let mut text = String::new();
    for name in 0..NAMES {
        let address = if (name % 2 == 1) == odd { FORBIDDEN } else { ALLOWED };
        writeln!(text, "{address} name{name}.test").expect("writing to a string cannot fail");
    }
    text
}

/// True where the address was refused, at the first attempt, without a word of which it is.
fn is_blocked(invocation: &Invocation) -> bool {
    let last = invocation.last_attempt.as_ref().expect("it is set");
    invocation.state() == InvocationState::DeadLettered
        && last.outcome() == OutcomeClass::BlockedAddress
        && invocation.attempt_count == 1
        && !last.error.contains("127.")
}

#[tokio::test]
async fn g1_a_name_with_one_record_inside_is_blocked_whatever_the_others_are() {
    let (_world, sides, tenant) = Sides::world().await;
    let records = format!(
        "{ALLOWED} one.test\n{ALLOWED} mixed.test\n{FORBIDDEN} mixed.test\n{FORBIDDEN} inside.test\n\
         ::1 six.test\n{ALLOWED} six.test\n::ffff:{FORBIDDEN} mapped.test\n"
    );
    fs::write(&sides.hosts, records).expect("the file is there");
    let mut subscriptions = Vec::new();
    for name in ["one.test", "mixed.test", "inside.test", "six.test", "mapped.test"] {
        subscriptions.push((name, sides.subscribe(&tenant, name).await));
    }
    let event_id = tenant.publish(TYPE, &json!({})).await.event_id;
    let all = ended(&tenant, &event_id, subscriptions.len()).await;
    for (name, id) in subscriptions {
        let one = all.iter().find(|one| one.subscription_id == id).expect("it fired");
        let allowed = name == "one.test";
        assert_eq!(sides.allowed.received(&format!("/{name}")).len(), usize::from(allowed), "{name}: {one:#?}");
        assert_eq!(is_blocked(one), !allowed, "{name}: {one:#?}");
    }
    assert_eq!(sides.forbidden(), 0, "something reached the forbidden side");
}

#[tokio::test]
async fn g1_names_that_turn_inward_between_two_look_ups_reach_nothing() {
    let (_world, sides, tenant) = Sides::world().await;
    let turns = [turned(false), turned(true)];
    assert_eq!(turns[0].len(), turns[1].len(), "one overwrites the other line by line");
    fs::write(&sides.hosts, &turns[0]).expect("the file is there");
    // In place: the mount shows this very file. Whatever a reader meets, each line says one of the two.
    let file = File::options().write(true).open(&sides.hosts).expect("the file is there");
    let turning = tokio::spawn(async move {
        let mut ticks = interval(Duration::from_millis(1));
        for turn in (0..2).cycle() {
            ticks.tick().await;
            file.write_all_at(turns[turn].as_bytes(), 0).expect("the file can be written");
        }
    });
    for name in 0..NAMES {
        sides.subscribe(&tenant, &format!("name{name}.test")).await;
    }
    let event_id = tenant.publish(TYPE, &json!({})).await.event_id;
    let all = ended(&tenant, &event_id, NAMES).await;
    turning.abort();
    let (blocked, other): (Vec<_>, Vec<_>) = all.iter().partition(|one| is_blocked(one));
    assert!(other.iter().all(|one| one.state() == InvocationState::Succeeded), "{other:#?}");
    let delivered: usize = (0..NAMES).map(|name| sides.allowed.received(&format!("/name{name}.test")).len()).sum();
    assert_eq!(delivered, other.len(), "what succeeded arrived, once, on the allowed side");
    assert!(!blocked.is_empty() && !other.is_empty(), "both were met: {} blocked of {NAMES}", blocked.len());
    assert_eq!(sides.forbidden(), 0, "something reached the forbidden side");
}

/// The invocations of an event once all of them are over.
async fn ended(tenant: &Tenant, event_id: &str, count: usize) -> Vec<Invocation> {
    eventually("every invocation has ended", || async {
        let all = tenant.invocations_of(event_id).await;
        let over = |state| matches!(state, InvocationState::Succeeded | InvocationState::DeadLettered);
        if all.len() == count && all.iter().all(|one| over(one.state())) { Ok(all) } else { Err(all) }
    })
    .await
}
