//! G1: names that lead inside. Beside an address that may be called they have one that may not, or they turn from one to the other
//! between any two look-ups. A listener on the forbidden side counts that nothing came, while what is allowed is delivered.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use carillon::proto::public::{Invocation, InvocationState, OutcomeClass};
use hickory_resolver::proto::op::Message;
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use serde_json::json;
use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::TYPE;
use crate::harness::process::Confinement;
use crate::harness::{Answer, Receiver, Tenant, World, eventually};

/// Where a receiver may be.
const ALLOWED: &str = "127.0.0.2";
/// Where nothing may go.
const FORBIDDEN: &str = "127.0.0.3";
/// Names that turn.
const NAMES: usize = 48;

/// Who came to which side.
struct Sides {
    allowed: Receiver,
    forbidden: Arc<AtomicUsize>,
    _stop: DropGuard,
}

impl Sides {
    /// Two receivers on one port, one on each side.
    async fn open() -> Self {
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
        Self { allowed, forbidden, _stop: stop.drop_guard() }
    }

    /// A replica that may call the allowed side, with a further setting and, where there is one, a hosts file of its own.
    async fn world(setting: &str, hosts: Option<&str>) -> (World, Tenant) {
        let config = format!("[executor]\nallow_private_ranges = [\"{ALLOWED}/32\"]\n{setting}");
        let mut world = World::start_with(0, &config).await;
        if let Some(records) = hosts {
            let file = world.path("hosts");
            fs::write(&file, records).expect("a file in the temporary folder");
            world.confinement = Some(Confinement::Hosts(file));
        }
        world.add_replica().await;
        let tenant = world.tenant().await;
        tenant.declare(TYPE).await;
        (world, tenant)
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

/// A name server whose names turn: the first answer is one side, the next one the other, and so on; those with an odd number begin
/// inside. Answers may be kept for no time at all.
async fn turning_names(stop: &CancellationToken) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    let address = socket.local_addr().expect("it is bound");
    let serve = async move {
        let (mut packet, mut asked) = ([0; 4_096], HashMap::<String, usize>::new());
        loop {
            let (length, from) = socket.recv_from(&mut packet).await.expect("a datagram");
            let question = Message::from_vec(&packet[..length]).expect("a question");
            let query = question.queries[0].clone();
            let mut answer = Message::response(question.id, question.op_code);
            answer.add_query(query.clone());
            if query.query_type() == RecordType::A {
                let name = query.name().to_string();
                let number: usize =
                    name.trim_start_matches("name").trim_end_matches(".test.").parse().expect("a number");
                let times = asked.entry(name).or_default();
                let side = if (number + *times).is_multiple_of(2) { ALLOWED } else { FORBIDDEN };
                *times += 1;
                let address: IpAddr = side.parse().expect("an address");
                answer.add_answer(Record::from_rdata(query.name().clone(), 0, RData::from(address)));
            }
            socket.send_to(&answer.to_vec().expect("an answer"), from).await.expect("it is sent");
        }
    };
    tokio::spawn(stop.clone().run_until_cancelled_owned(serve));
    address
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
    let sides = Sides::open().await;
    let records = format!(
        "{ALLOWED} one.test\n{ALLOWED} mixed.test\n{FORBIDDEN} mixed.test\n{FORBIDDEN} inside.test\n\
         ::1 six.test\n{ALLOWED} six.test\n::ffff:{FORBIDDEN} mapped.test\n"
    );
    let (_world, tenant) = Sides::world("", Some(&records)).await;
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
    let (sides, stop) = (Sides::open().await, CancellationToken::new());
    let _stop = stop.clone().drop_guard();
    let nameservers = format!("nameservers = [\"{}\"]", turning_names(&stop).await);
    let (_world, tenant) = Sides::world(&nameservers, None).await;
    for name in 0..NAMES {
        sides.subscribe(&tenant, &format!("name{name}.test")).await;
    }
    let event_id = tenant.publish(TYPE, &json!({})).await.event_id;
    let all = ended(&tenant, &event_id, NAMES).await;
    let (blocked, other): (Vec<_>, Vec<_>) = all.iter().partition(|one| is_blocked(one));
    assert!(other.iter().all(|one| one.state() == InvocationState::Succeeded), "{other:#?}");
    let delivered: usize = (0..NAMES).map(|name| sides.allowed.received(&format!("/name{name}.test")).len()).sum();
    assert_eq!(delivered, other.len(), "what succeeded arrived, once, on the allowed side");
    // Whatever was looked up once was judged and called by that one answer; a second look-up would have turned it.
    assert_eq!((blocked.len(), other.len()), (NAMES / 2, NAMES / 2));
    assert_eq!(sides.forbidden(), 0, "something reached the forbidden side");
}

#[tokio::test]
async fn g1_a_name_that_moves_inside_is_blocked_from_then_on() {
    let sides = Sides::open().await;
    let (world, tenant) = Sides::world("", Some(&format!("{ALLOWED} moved.test\n"))).await;
    // Without this, calls would go on over the connection that was judged when it was opened.
    sides.allowed.answers("/moved.test", [Answer::Full(200, vec![("connection", "close".to_owned())], Vec::new())]);
    sides.subscribe(&tenant, "moved.test").await;
    tenant.publish(TYPE, &json!({})).await;
    sides.allowed.receives("/moved.test", 1).await;
    // In place: what is mounted is this very file.
    fs::write(world.path("hosts"), format!("{FORBIDDEN} moved.test\n")).expect("the file can be written");
    eventually("the change is seen", || async {
        let event_id = tenant.publish(TYPE, &json!({})).await.event_id;
        let all = ended(&tenant, &event_id, 1).await;
        if is_blocked(&all[0]) { Ok(()) } else { Err(all) }
    })
    .await;
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
