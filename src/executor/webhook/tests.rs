//! The executor against real receivers on loopback, the hostile ones included.

mod kept;
mod lookups;
mod tls;

use crate::clock;
use crate::domain::event::{Data, Event, Lineage, LogEntry};
use crate::domain::event_type::EventTypeName;
use crate::domain::ids::{EventId, SubscriptionId, TenantId};
use crate::domain::invocation::{Outcome, OutcomeClass};
use crate::domain::pre::Answer;
use crate::domain::webhook::{SigningSecret, WebhookCall, WebhookMode, WebhookTarget, WebhookUri};
use crate::executor::{Config, Delivery, EncodedEvent, Executor};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

/// Far beyond what a test takes.
const LONG: Duration = Duration::from_secs(20);
/// A deadline that a test waits for.
const SHORT: Duration = Duration::from_millis(300);

/// A listener that treats each connection as told, and counts them.
struct Receiver {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Receiver {
    async fn start<F, Fut>(behave: F) -> Self
    where
        F: Fn(TcpStream) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(behave(stream));
            }
        });
        Self { address, connections, task }
    }

    /// Reads one request of each connection, then sends these bytes and closes.
    async fn answering(answer: impl Into<Vec<u8>>) -> Self {
        let answer = Arc::new(answer.into());
        Self::start(move |mut stream| {
            let answer = Arc::clone(&answer);
            async move {
                read_request(&mut stream).await;
                // The client may have left already.
                let _ = stream.write_all(&answer).await;
            }
        })
        .await
    }

    fn uri(&self) -> String {
        format!("http://{}/hook?a=b", self.address)
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads a request whose body has a content-length, whole.
async fn read_request(stream: &mut TcpStream) -> Vec<u8> {
    let mut request = Vec::new();
    let mut length = usize::MAX;
    while request.len() < length {
        let mut chunk = [0_u8; 4096];
        match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => break,
            Ok(read) => request.extend_from_slice(&chunk[..read]),
        }
        let text = String::from_utf8_lossy(&request);
        if let Some((head, _)) = text.split_once("\r\n\r\n") {
            let body = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a content-length");
            length = head.len() + 4 + body.parse::<usize>().expect("a length");
        }
    }
    request
}

async fn until_closed(stream: &mut (impl AsyncRead + Unpin)) {
    let mut sink = [0_u8; 4096];
    while !matches!(stream.read(&mut sink).await, Ok(0) | Err(_)) {}
}

fn loopback() -> Config {
    let ranges = ["127.0.0.0/8", "::1/128"].map(|range| range.parse().expect("a range")).to_vec();
    Config { allow_http: true, allow_private_ranges: ranges, ..Config::default() }
}

fn executor(config: &Config) -> Executor {
    Executor::new(config).expect("valid settings")
}

fn secret(byte: u8) -> SigningSecret {
    SigningSecret::from_bytes(vec![byte; 32]).expect("32 bytes are a secret")
}

fn call(uri: &str) -> WebhookCall {
    WebhookCall {
        tenant: TenantId(uuid::Uuid::from_u128(2)),
        subscription: SubscriptionId(uuid::Uuid::from_u128(1)),
        target: WebhookTarget {
            uri: WebhookUri::parse(uri).expect("a URI"),
            mode: WebhookMode::Structured,
            headers: Some(vec![("authorization".to_owned(), "Bearer receivers-own".to_owned())]),
        },
        secrets: [secret(1), secret(2)].into(),
    }
}

fn delivery() -> Delivery {
    let id = EventId(uuid::Uuid::from_u128(7));
    let event = Event {
        id,
        event_type: EventTypeName::parse("CUSTOM_ORDER").expect("a name"),
        schema_version: 0,
        source: "/orders".to_owned(),
        subject: None,
        time: clock::now(),
        content_type: Some("application/json".to_owned()),
        extensions: Vec::new(),
        data: Data::Text(Bytes::from_static(b"{\"total\":9007199254740993}")),
        lineage: Lineage::root(id),
    };
    let entry = LogEntry {
        position: 1,
        committed_at: event.time,
        event: Arc::new(event),
        matched: Arc::new([3]),
        refused: Arc::new([]),
    };
    Delivery {
        invocation: entry.invocation(3),
        attempt: 1,
        replay: false,
        event: Arc::new(EncodedEvent::new(Arc::new(entry))),
    }
}

/// One attempt. Whatever it ends with, it must not name an address, and it must end soon after its deadline.
async fn attempt_by(executor: &Executor, uri: &str, time: Duration) -> Outcome {
    let (call, delivery) = (call(uri), delivery());
    let attempt = executor.execute(&call, &delivery, Instant::now() + time);
    let outcome = timeout(time + Duration::from_secs(5), attempt).await.expect("an attempt ends at its deadline");
    if let Some(error) = &outcome.error {
        let address = ["127.", "::1", "http:", "https:", "/hook"].iter().any(|part| error.contains(part));
        assert!(!address && error.ends_with('.') && !error.contains('\n'), "{error}");
    }
    assert_eq!(outcome.error.is_none(), outcome.class == OutcomeClass::Succeeded, "{outcome:?}");
    outcome
}

async fn attempt(uri: &str) -> Outcome {
    attempt_by(&executor(&loopback()), uri, LONG).await
}

#[tokio::test]
async fn a_receiver_gets_a_signed_cloudevent_that_the_reference_library_accepts() {
    let (sender, mut requests) = mpsc::unbounded_channel();
    let receiver = Receiver::start(move |mut stream| {
        let sender = sender.clone();
        async move {
            let request = read_request(&mut stream).await;
            sender.send(request).expect("the test listens");
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.expect("written");
        }
    })
    .await;
    let outcome = attempt(&receiver.uri()).await;
    assert_eq!((outcome.class, outcome.status_code), (OutcomeClass::Succeeded, 200));
    assert_eq!((outcome.excerpt.as_deref(), outcome.error), (Some("ok"), None));

    let request = requests.recv().await.expect("a request");
    let request = String::from_utf8(request).expect("UTF-8");
    let (head, body) = request.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.starts_with("POST /hook?a=b HTTP/1.1\r\n"), "{head}");
    let mut headers: Vec<(&str, &str)> = head.lines().skip(1).filter_map(|line| line.split_once(": ")).collect();
    headers.sort_unstable();
    let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
    let expected = [
        "authorization",
        "content-length",
        "content-type",
        "host",
        "user-agent",
        "webhook-id",
        "webhook-signature",
        "webhook-timestamp",
    ];
    assert_eq!(names, expected);
    assert_eq!(headers[2].1, "application/cloudevents+json; charset=utf-8");
    assert_eq!(headers[3].1, receiver.address.to_string());
    assert_eq!(headers[5].1, delivery().invocation.to_string());
    assert!(body.contains(r#""data":{"total":9007199254740993}"#), "{body}");
    let parsed = |(name, value): &(&str, &str)| {
        (name.parse::<http::HeaderName>().expect("a name"), value.parse::<http::HeaderValue>().expect("a value"))
    };
    let map: http::HeaderMap = headers.iter().map(parsed).collect();
    for byte in [1, 2] {
        let oracle = standardwebhooks::Webhook::new(&secret(byte).reveal()).expect("a secret");
        oracle.verify(body.as_bytes(), &map).expect("a valid signature");
    }
}

#[tokio::test]
async fn statuses_are_judged_and_retry_after_is_heard() {
    use OutcomeClass::{Failed, Gone, Throttled};
    let cases = [
        ("500 Internal Server Error", "", 500, Failed, None),
        ("404 Not Found", "retry-after: 7\r\n", 404, Failed, Some(7)),
        ("410 Gone", "retry-after: 7\r\n", 410, Gone, None),
        ("429 Too Many Requests", "retry-after: 120\r\n", 429, Throttled, Some(120)),
        (
            "503 Service Unavailable",
            "retry-after: 99999999999999999999999\r\n",
            503,
            Throttled,
            Some(u64::from(u32::MAX)),
        ),
        ("502 Bad Gateway", "retry-after: whenever\r\n", 502, Throttled, None),
    ];
    for (status, header, code, class, seconds) in cases {
        let answer = format!("HTTP/1.1 {status}\r\n{header}content-length: 5\r\n\r\nsorry");
        let receiver = Receiver::answering(answer).await;
        let outcome = attempt(&receiver.uri()).await;
        assert_eq!((outcome.class, outcome.status_code), (class, code), "{outcome:?}");
        assert_eq!(outcome.retry_after, seconds.map(Duration::from_secs), "{status}");
        assert_eq!(outcome.excerpt.as_deref(), Some("sorry"));
    }
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let forbidden = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    for status in ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let location = forbidden.uri();
        let answer = format!("HTTP/1.1 {status}\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
        let receiver = Receiver::answering(answer).await;
        let outcome = attempt(&receiver.uri()).await;
        assert_eq!(outcome.class, OutcomeClass::Failed);
        assert!(outcome.error.is_some_and(|error| error.contains("redirects are not followed")));
    }
    assert_eq!(forbidden.connections(), 0);
}

#[tokio::test]
async fn an_endless_body_is_read_up_to_the_limit_and_the_connection_is_dropped() {
    let (sender, mut written) = mpsc::unbounded_channel();
    let receiver = Receiver::start(move |mut stream| {
        let sender = sender.clone();
        async move {
            read_request(&mut stream).await;
            let mut sent = 0_usize;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
            while stream.write_all(&[b'x'; 16 * 1024]).await.is_ok() {
                sent += 16 * 1024;
            }
            sender.send(sent).expect("the test listens");
        }
    })
    .await;
    let outcome = attempt(&receiver.uri()).await;
    assert_eq!((outcome.class, outcome.status_code), (OutcomeClass::Succeeded, 200));
    assert_eq!(outcome.excerpt.map(|text| text.len()), Some(1024));
    let sent = timeout(LONG, written.recv()).await.expect("the connection is dropped").expect("a number");
    assert!(sent < 32 * 1024 * 1024, "{sent} bytes went into socket buffers");
}

#[tokio::test]
async fn receivers_that_keep_silent_or_drip_are_out_of_time() {
    let cases: [(&'static [u8], &'static [u8], u16); 4] = [
        (b"", b"", 0),
        (b"HTTP/1.1 200 OK\r\nx-a: ", b"a", 0),
        (b"HTTP/1.1 500 X\r\ncontent-length: 100000\r\n\r\n", b"a", 500),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0),
    ];
    for (head, drip, status) in cases {
        let (sender, mut closed) = mpsc::unbounded_channel();
        let receiver = Receiver::start(move |mut stream| {
            let sender = sender.clone();
            async move {
                read_request(&mut stream).await;
                let _ = stream.write_all(head).await;
                let mut pace = tokio::time::interval(Duration::from_millis(20));
                if drip.is_empty() {
                    until_closed(&mut stream).await;
                } else {
                    while stream.write_all(drip).await.is_ok() {
                        pace.tick().await;
                    }
                }
                sender.send(()).expect("the test listens");
            }
        })
        .await;
        let executor = executor(&loopback());
        let outcome = attempt_by(&executor, &receiver.uri(), SHORT).await;
        assert_eq!((outcome.class, outcome.status_code), (OutcomeClass::Timeout, status), "{outcome:?}");
        timeout(LONG, closed.recv()).await.expect("the connection is dropped").expect("a note");
    }
}

#[tokio::test]
async fn what_a_receiver_has_accepted_is_a_success_whatever_becomes_of_the_body() {
    let cut = Receiver::answering("HTTP/1.1 202 X\r\ncontent-length: 100\r\n\r\nabc").await;
    let outcome = attempt(&cut.uri()).await;
    assert_eq!((outcome.class, outcome.status_code), (OutcomeClass::Succeeded, 202));
    assert_eq!(outcome.excerpt.as_deref(), Some("abc"));
    let drips = Receiver::start(|mut stream| async move {
        read_request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc").await;
        until_closed(&mut stream).await;
    })
    .await;
    let outcome = attempt_by(&executor(&loopback()), &drips.uri(), SHORT).await;
    assert_eq!((outcome.class, outcome.status_code, outcome.error), (OutcomeClass::Succeeded, 200, None));
}

#[tokio::test]
async fn floods_of_interim_answers_end_at_the_deadline() {
    let receiver = Receiver::start(|mut stream| async move {
        read_request(&mut stream).await;
        let flood = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n".repeat(400);
        while stream.write_all(&flood).await.is_ok() {}
    })
    .await;
    let outcome = attempt_by(&executor(&loopback()), &receiver.uri(), SHORT).await;
    assert_eq!((outcome.class, outcome.status_code), (OutcomeClass::Timeout, 0));
}

#[tokio::test]
async fn answers_that_are_not_http_or_too_large_fail_within_bounds() {
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(5_000));
    let large = format!("HTTP/1.1 200 OK\r\na: {}\r\n\r\n", "b".repeat(1_000_000));
    let answers = [
        b"hello, this is the content of the file you asked for\r\n\r\n".to_vec(),
        vec![0x16, 0x03, 0x01, 0x00, 0x05, 0xff, 0xff, 0xff, 0xff, 0xff, b'\r', b'\n'],
        b"HTTP/1.1 99999 OK\r\n\r\n".to_vec(),
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab".to_vec(),
        many.into_bytes(),
        large.into_bytes(),
    ];
    for answer in answers {
        let start = String::from_utf8_lossy(&answer[..10]).into_owned();
        let receiver = Receiver::answering(answer).await;
        let outcome = attempt(&receiver.uri()).await;
        assert_eq!((outcome.class, outcome.status_code), (OutcomeClass::Failed, 0), "{start:?} {outcome:?}");
    }
}

#[tokio::test]
async fn connections_that_break_or_are_not_made_are_unreachable() {
    let cut = Receiver::answering("HTTP/1.1 500 X\r\ncontent-length: 100\r\n\r\nabc").await;
    let outcome = attempt(&cut.uri()).await;
    assert_eq!((outcome.class, outcome.status_code), (OutcomeClass::Unreachable, 500));

    let half_closed = Receiver::start(|mut stream| async move {
        read_request(&mut stream).await;
        let _ = stream.shutdown().await;
        until_closed(&mut stream).await;
    })
    .await;
    let reset = Receiver::start(|mut stream| async move {
        read_request(&mut stream).await;
        stream.set_zero_linger().expect("an option");
    })
    .await;
    let at_once = Receiver::start(|stream| async move { drop(stream) }).await;
    for receiver in [half_closed, reset, at_once] {
        let outcome = attempt(&receiver.uri()).await;
        assert_eq!((outcome.class, outcome.status_code), (OutcomeClass::Unreachable, 0), "{outcome:?}");
    }

    let gone = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = gone.local_addr().expect("an address");
    drop(gone);
    let outcome = attempt(&format!("http://{address}/hook")).await;
    assert_eq!(outcome.class, OutcomeClass::Unreachable);
}

#[tokio::test]
async fn a_refusal_whose_body_is_too_long_or_never_whole_is_a_refusal_all_the_same() {
    let long = format!("HTTP/1.1 409 Conflict\r\ncontent-length: 100000\r\n\r\n{}", "x".repeat(100_000));
    let cut = "HTTP/1.1 422 No\r\ncontent-length: 100\r\n\r\nabc";
    let stalled = Receiver::start(|mut stream| async move {
        read_request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 409 Conflict\r\ncontent-length: 100\r\n\r\nabc").await;
        until_closed(&mut stream).await;
    })
    .await;
    let receivers = [
        (Receiver::answering(long).await, LONG, "x".repeat(256)),
        (Receiver::answering(cut).await, LONG, "no reason given".to_owned()),
        (stalled, SHORT, "no reason given".to_owned()),
    ];
    for (receiver, patience, reason) in receivers {
        let deadline = Instant::now() + patience;
        let (outcome, answer) = executor(&loopback()).ask(&call(&receiver.uri()), &delivery(), deadline).await;
        assert_eq!(answer, Answer::Rejected(reason));
        assert_eq!(outcome.class, OutcomeClass::Rejected, "{outcome:?}");
    }
}

#[tokio::test]
async fn a_connection_that_breaks_is_told_apart_from_one_that_cannot_be_made() {
    let reset = Receiver::start(|mut stream| async move {
        read_request(&mut stream).await;
        stream.set_zero_linger().expect("an option");
    })
    .await;
    let greeted = Receiver::start(|stream| async move { drop(stream) }).await;
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("a free port").local_addr().expect("an address");
    let https = format!("https://{}/hook", greeted.address);
    let no_tls = Receiver::start(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        until_closed(&mut stream).await;
    })
    .await;
    let cases = [
        (reset.uri(), Answer::Failed),
        (https, Answer::Failed),
        (format!("https://{}/hook", no_tls.address), Answer::Unreached),
        (format!("http://{gone}/hook"), Answer::Unreached),
    ];
    for (uri, expected) in cases {
        let (outcome, answer) = executor(&loopback()).ask(&call(&uri), &delivery(), Instant::now() + LONG).await;
        assert_eq!((outcome.class, answer), (OutcomeClass::Unreachable, expected), "{uri} {outcome:?}");
    }
}

#[tokio::test]
async fn a_blocked_receiver_sees_no_packet() {
    let receiver = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let port = receiver.address.port();
    let strict = executor(&Config { allow_http: true, ..Config::default() });
    let https_only = executor(&Config { allow_http: false, ..loopback() });
    for host in
        ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "0", "a.localhost", "127.0.0.1."]
    {
        let outcome = attempt_by(&strict, &format!("http://{host}:{port}/hook"), LONG).await;
        assert_eq!((outcome.class, outcome.status_code), (OutcomeClass::BlockedAddress, 0), "{host} {outcome:?}");
        assert!(!outcome.class.is_retryable());
    }
    let outcome = attempt_by(&https_only, &receiver.uri(), LONG).await;
    assert_eq!(outcome.class, OutcomeClass::BlockedAddress);
    assert_eq!(receiver.connections(), 0);
}

#[tokio::test]
async fn an_attempt_whose_time_is_over_ends_at_once() {
    let receiver = Receiver::start(|mut stream| async move { until_closed(&mut stream).await }).await;
    let outcome = attempt_by(&executor(&loopback()), &receiver.uri(), Duration::ZERO).await;
    assert_eq!((outcome.class, outcome.status_code), (OutcomeClass::Timeout, 0));
}
