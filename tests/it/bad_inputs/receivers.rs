//! G2: receivers that answer in any way but a good one. Each attempt is judged within its deadline, what is read is bounded, and
//! the others are delivered meanwhile.

use std::sync::Arc;
use std::time::Duration;

use carillon::proto::public::{Invocation, InvocationState, OutcomeClass};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Expected::Fine;
use super::{Row, TYPE};
use crate::harness::tenant::{millis, publish_request};
use crate::harness::{Receiver, eventually};

/// What a receiver does once it has read something.
#[derive(Clone)]
enum Behaviour {
    /// Sends this and closes.
    Says(Vec<u8>),
    /// Sends this, and then the second part again and again for as long as somebody reads.
    Floods(&'static str, Vec<u8>),
    /// Sends this at once, and then the second part byte by byte, a few each second, for as long as somebody reads.
    Drips(&'static str, &'static str),
    /// Sends this and then nothing, and keeps the connection.
    Stops(&'static str),
    /// Closes its side before it has read anything, and goes on reading.
    HalfCloses,
    /// Resets the connection.
    Resets,
}

/// Between two bytes of an answer that drips: something comes all the time, and the deadline would pass long before the end.
const DRIP: Duration = Duration::from_millis(100);

async fn behave(mut stream: TcpStream, behaviour: Arc<Behaviour>) {
    let mut request = [0; 8_192];
    if matches!(*behaviour, Behaviour::HalfCloses) {
        let _gone = stream.shutdown().await;
    }
    let _gone = stream.read(&mut request).await;
    match &*behaviour {
        Behaviour::Says(text) => {
            let _gone = stream.write_all(text).await;
        }
        Behaviour::Floods(first, again) => {
            let mut sent = stream.write_all(first.as_bytes()).await;
            while sent.is_ok() {
                sent = stream.write_all(again).await;
            }
        }
        Behaviour::Drips(first, again) => {
            let _delay = stream.set_nodelay(true);
            let mut sent = stream.write_all(first.as_bytes()).await;
            let mut pace = tokio::time::interval(DRIP);
            for byte in again.bytes().cycle() {
                if sent.is_err() {
                    return;
                }
                pace.tick().await;
                sent = stream.write_all(&[byte]).await;
            }
        }
        Behaviour::Stops(text) => {
            let _gone = stream.write_all(text.as_bytes()).await;
            while !matches!(stream.read(&mut request).await, Ok(0) | Err(_)) {}
        }
        Behaviour::HalfCloses => while !matches!(stream.read(&mut request).await, Ok(0) | Err(_)) {},
        Behaviour::Resets => {
            // Unread bytes and no time to linger make the end a reset.
            let _unsupported = stream.set_zero_linger();
        }
    }
}

/// Listens on a free port of loopback until the guard is dropped.
async fn listen(behaviour: Behaviour) -> (u16, DropGuard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    let (behaviour, stop) = (Arc::new(behaviour), CancellationToken::new());
    let ended = stop.clone();
    let accept = async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(ended.clone().run_until_cancelled_owned(behave(stream, Arc::clone(&behaviour))));
        }
    };
    tokio::spawn(stop.clone().run_until_cancelled_owned(accept));
    (port, stop.drop_guard())
}

/// A gzip stream that becomes gibibytes would be this long; nobody unpacks it, so its content does not count.
fn bomb() -> Vec<u8> {
    let mut answer =
        b"HTTP/1.1 500 X\r\ncontent-encoding: gzip\r\ncontent-length: 40000\r\n\r\n\x1f\x8b\x08\0".to_vec();
    answer.resize(answer.len() + 39_996, 0);
    answer
}

#[tokio::test]
async fn g2_every_kind_of_bad_answer_is_judged_within_its_deadline() {
    use OutcomeClass::{Failed, Gone, Succeeded, Throttled, Timeout, Unreachable};
    let mut row = Row::open().await;
    let says = |text: &str| Behaviour::Says(text.as_bytes().to_vec());
    let answer =
        |status: &str, headers: &str| says(&format!("HTTP/1.1 {status}\r\n{headers}content-length: 0\r\n\r\n"));
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let members: Vec<(&str, &str, Behaviour, OutcomeClass, i32)> = vec![
        ("an endless body", "http", Behaviour::Floods("HTTP/1.1 200 OK\r\n\r\n", vec![b'x'; 4_096]), Succeeded, 200),
        (
            "endless chunks",
            "http",
            Behaviour::Floods(chunked, [b"400\r\n".as_slice(), &[b'x'; 1_024], b"\r\n"].concat()),
            Succeeded,
            200,
        ),
        ("a bomb", "http", Behaviour::Says(bomb()), Failed, 500),
        ("a flood of headers", "http", Behaviour::Floods("HTTP/1.1 200 OK\r\n", b"a: b\r\n".repeat(64)), Failed, 0),
        ("one long header", "http", Behaviour::Floods("HTTP/1.1 200 OK\r\na: ", vec![b'x'; 4_096]), Failed, 0),
        ("an endless status line", "http", Behaviour::Floods("HTTP/1.1 200 ", vec![b'x'; 4_096]), Failed, 0),
        (
            "endless early answers",
            "http",
            Behaviour::Floods("", b"HTTP/1.1 100 Continue\r\n\r\n".repeat(16)),
            Timeout,
            0,
        ),
        ("a head that drips", "http", Behaviour::Drips("HTTP/1.1 200 OK\r\n", "a: b\r\n"), Timeout, 0),
        ("a status line that drips", "http", Behaviour::Drips("", "HTTP/1.1 200 OK and no end of it "), Timeout, 0),
        ("early answers that drip", "http", Behaviour::Drips("", "HTTP/1.1 100 Continue\r\n\r\n"), Timeout, 0),
        ("a body that drips", "http", Behaviour::Drips("HTTP/1.1 500 X\r\n\r\n", "x"), Timeout, 500),
        (
            "chunks that drip",
            "http",
            Behaviour::Drips("HTTP/1.1 500 X\r\ntransfer-encoding: chunked\r\n\r\n", "1\r\nx\r\n"),
            Timeout,
            500,
        ),
        (
            "a dripping body of what is accepted",
            "http",
            Behaviour::Drips("HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n", "x"),
            Succeeded,
            200,
        ),
        ("a drip where TLS was asked for", "https", Behaviour::Drips("", "\x16\x03\x03\x40\x00"), Timeout, 0),
        ("half a status line", "http", Behaviour::Stops("HTTP/1."), Timeout, 0),
        ("half a head", "http", Behaviour::Stops("HTTP/1.1 200 OK\r\na: b\r\n"), Timeout, 0),
        ("half a body", "http", Behaviour::Stops("HTTP/1.1 500 X\r\ncontent-length: 9\r\n\r\nhalf"), Timeout, 500),
        (
            "half a body of what is accepted",
            "http",
            Behaviour::Stops("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"),
            Succeeded,
            200,
        ),
        ("silence", "http", Behaviour::Stops(""), Timeout, 0),
        ("a closed connection", "http", says(""), Unreachable, 0),
        ("half a connection", "http", Behaviour::HalfCloses, Unreachable, 0),
        ("a reset", "http", Behaviour::Resets, Unreachable, 0),
        ("a body that is cut", "http", says("HTTP/1.1 500 X\r\ncontent-length: 9\r\n\r\ncut"), Unreachable, 500),
        (
            "a cut body of what is accepted",
            "http",
            says("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\ncut"),
            Succeeded,
            200,
        ),
        ("HTTP/0.9", "http", says("<html>hello</html>"), Failed, 0),
        ("another protocol", "http", says("SSH-2.0-OpenSSH_9\r\n"), Failed, 0),
        ("another version", "http", says("HTTP/3.7 200 OK\r\n\r\n"), Failed, 0),
        ("a status of 99", "http", answer("099 X", ""), Failed, 0),
        ("two lengths", "http", says("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab"), Failed, 0),
        ("a negative length", "http", says("HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n"), Failed, 0),
        (
            "another protocol to switch to",
            "http",
            answer("101 X", "upgrade: x\r\nconnection: upgrade\r\n"),
            Failed,
            101,
        ),
        ("no TLS", "https", says("HTTP/1.1 200 OK\r\n\r\n"), Unreachable, 0),
        ("silence where TLS was asked for", "https", Behaviour::Stops(""), Timeout, 0),
        ("an absurd wait", "http", answer("503 X", "retry-after: 99999999999999999999\r\n"), Throttled, 503),
        (
            "a wait until the year 9999",
            "http",
            answer("429 X", "retry-after: Fri, 31 Dec 9999 23:59:59 GMT\r\n"),
            Throttled,
            429,
        ),
        ("a wait that is none", "http", answer("429 X", "retry-after: soon\r\n"), Throttled, 429),
        ("gone", "http", answer("410 X", ""), Gone, 410),
    ];
    let good = Receiver::start().await;
    row.tenant.subscribe(TYPE, &good, "/good").await;
    let mut guards = Vec::new();
    let mut named = Vec::new();
    for (member, scheme, behaviour, class, status) in members {
        let (port, guard) = listen(behaviour).await;
        guards.push(guard);
        let mut request = row.tenant.subscribe_request(TYPE, &format!("{scheme}://127.0.0.1:{port}/hook"));
        let policy = request.delivery_policy.as_mut().expect("it is set");
        policy.timeout = Some(pbjson_types::Duration { seconds: 3, nanos: 0 });
        policy.max_attempts = 2;
        policy.max_backoff = Some(millis(50));
        let made = row.tenant.events().subscribe(request).await;
        let made = row.check(member, made, Fine).expect("a receiver on loopback is allowed here");
        named.push((made.into_inner().subscription.expect("it is set").id, member, class, status));
    }
    let answer = row.publish("an event", publish_request(TYPE, &json!({})), Fine).await;
    let event_id = answer.expect("it was accepted").event_id;
    good.receives("/good", 1).await;
    // Who asks for a long wait gets one, and no longer one than a day.
    let waits = |one: &Invocation| {
        let next = one.next_attempt_time.map_or(0, |time| time.seconds) - carillon::clock::now().timestamp();
        one.state() == InvocationState::Waiting && (80_000..=86_400).contains(&next)
    };
    let open =
        |one: &Invocation| matches!(one.state(), InvocationState::Pending | InvocationState::Waiting) && !waits(one);
    let all = eventually("every attempt is judged", || async {
        let all = row.tenant.invocations_of(&event_id).await;
        let left = all.iter().filter(|one| open(one)).map(|one| one.subscription_id.clone()).collect::<Vec<_>>();
        if all.len() == named.len() + 1 && left.is_empty() {
            return Ok(all);
        }
        Err(named.iter().filter(|(id, ..)| left.contains(id)).map(|(_, member, ..)| *member).collect::<Vec<_>>())
    })
    .await;
    for (id, member, class, status) in named {
        let one = all.iter().find(|one| one.subscription_id == id).expect("it matched");
        let last = one.last_attempt.clone().unwrap_or_default();
        let got = (last.outcome(), last.status_code);
        row.ensure(member, got == (class, status), format!("{got:?} instead of {class:?} {status}: {}", last.error));
        let ended = match class {
            Succeeded => InvocationState::Succeeded,
            _ if member.starts_with("an absurd") || member.ends_with("9999") => InvocationState::Waiting,
            _ => InvocationState::DeadLettered,
        };
        row.ensure(member, one.state() == ended, one.state());
        row.ensure(member, last.response_excerpt.len() <= 1_024, "an unbounded excerpt");
        row.ensure(member, !last.error.contains("127.0.0.1"), &last.error);
        let took = last.duration.map_or(Duration::MAX, |took| Duration::from_secs(took.seconds.unsigned_abs()));
        // The deadline is 3 s; the rest is for a loaded machine.
        row.ensure(member, took < Duration::from_secs(15), took);
    }
    drop(guards);
    row.close().await;
}
