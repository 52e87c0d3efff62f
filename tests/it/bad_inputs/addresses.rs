//! G1: receivers in forbidden space. Whatever spelling hides it is refused when it is saved; what leads there later is blocked
//! where it is connected to, and a listener on the forbidden side counts that nothing came.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use carillon::proto::public::{
    InvocationState, OutcomeClass, Subscription, Target, UpdateSubscriptionRequest, WebhookMode, WebhookTarget, target,
};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Code;

use super::Expected::{Fine, Refused};
use super::{Row, TYPE, invalid};
use crate::harness::tenant::{reason, webhook};
use crate::harness::{Answer, Receiver, World, eventually};

/// Listens on the forbidden side, on every address that a spelling of loopback may lead to, and counts who comes.
struct Forbidden {
    port: u16,
    connections: Arc<AtomicUsize>,
    _stop: DropGuard,
}

impl Forbidden {
    async fn listen() -> Self {
        // Every address of both families, the IPv4 ones mapped into IPv6.
        let listener = TcpListener::bind("[::]:0").await.expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let (connections, stop) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
        let counter = Arc::clone(&connections);
        let count = async move {
            loop {
                let _connection = listener.accept().await;
                counter.fetch_add(1, Ordering::SeqCst);
            }
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(count));
        let forbidden = Self { port, connections, _stop: stop.drop_guard() };
        // It would count whichever way somebody came.
        for address in ["127.0.0.1", "127.0.0.2", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]"] {
            let before = forbidden.connections();
            TcpStream::connect(format!("{address}:{port}")).await.expect("it listens there");
            eventually(&format!("a connection to {address} is counted"), || {
                let seen = forbidden.connections();
                std::future::ready(if seen > before { Ok(()) } else { Err(seen) })
            })
            .await;
        }
        forbidden.connections.store(0, Ordering::SeqCst);
        forbidden
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Addresses that a packet must not reach, each as a host of a URI; those of the shared world's own allowance apart.
const BLOCKED: &str = "10.0.0.1 10.255.255.255 172.16.0.1 172.31.255.255 192.168.0.1 100.64.0.1 169.254.169.254 169.254.0.1 \
    0.0.0.0 0.1.2.3 192.0.0.1 192.0.2.1 192.88.99.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 \
    255.255.255.255 167772161 0x0a000001 012.0.0.1 0xa.0.0.1 10.1 10.0.1 0xa9fea9fe 0251.0376.0251.0376 2852039166 0x7f.1 \
    127.1 127.0.1 2130706433 017700000001 0x7f000001 127.0.0.1. 127.0.0.01 10.0.0.1. 169.254.169.254. \
    [::] [::1] [0:0:0:0:0:0:0:1] [fe80::1] [fec0::1] [fc00::1] [fd00:ec2::254] [ff02::1] [2001:db8::1] \
    [::ffff:10.0.0.1] [::ffff:a9fe:a9fe] [::10.0.0.1] [::ffff:0:10.0.0.1] [64:ff9b::10.0.0.1] [64:ff9b::a9fe:a9fe] \
    [64:ff9b:1::10.0.0.1] [2002:a00:1::1] [2002:c0a8:101::] [2002:a9fe:a9fe::] [2001:0:808:808::f5ff:fffe] \
    [2001:0:a00:1::f7f7:f7f7] [2606:4700::200:5efe:10.0.0.1]";

/// What is no address of a receiver at all.
const MALFORMED: [&str; 17] = [
    "",
    "example.com",
    "//example.com/",
    "http://",
    "http:///path",
    "https://exa mple.com/",
    "https://example.com:0/",
    "https://example.com:65536/",
    "https://example.com:/",
    "https://user:pass@example.com/",
    "https://example.com@127.0.0.1/",
    "https://@example.com/",
    "https://example.com/#fragment",
    "ftp://example.com/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:25/_HELO",
    "https://ex\u{e4}mple.com/",
];

#[tokio::test]
async fn g1_addresses_inside_are_refused_in_every_spelling_when_they_are_saved() {
    let mut row = Row::open().await;
    let made = row.tenant.events().subscribe(row.tenant.subscribe_request(TYPE, "https://example.com/hook")).await;
    let made = made.expect("a public name").into_inner().subscription.expect("it is set");
    let mut uris: Vec<(String, &str)> = Vec::new();
    for host in BLOCKED.split_whitespace() {
        uris.extend(["http", "https"].map(|scheme| (format!("{scheme}://{host}/hook"), "ADDRESS_BLOCKED")));
        uris.push((format!("https://{host}:8443/hook?a=b"), "ADDRESS_BLOCKED"));
    }
    for port in [22, 25, 53, 110] {
        uris.push((format!("https://example.com:{port}/"), "ADDRESS_BLOCKED"));
    }
    uris.extend(MALFORMED.map(|uri| (uri.to_owned(), "FIELD_INVALID")));
    for host in ["[fe80::1%25eth0]", "[::1%25lo]", "[fe80::1%eth0]", "[v1.fe80]", "[127.0.0.1]", "a..b", "-%31"] {
        // How far these get depends on the parser of URIs, which owes nobody an opinion: either reason will do.
        uris.push((format!("http://{host}/"), ""));
    }
    let mut events = row.tenant.events();
    for (uri, expected) in uris {
        let request = row.tenant.subscribe_request(TYPE, &uri);
        let kind = target::Kind::Webhook(WebhookTarget { uri: uri.clone(), ..Default::default() });
        let subscription =
            Subscription { id: made.id.clone(), target: Some(Target { kind: Some(kind) }), ..Default::default() };
        let update = UpdateSubscriptionRequest {
            subscription: Some(subscription),
            update_mask: Some(pbjson_types::FieldMask { paths: vec!["target.webhook.uri".to_owned()] }),
            ..Default::default()
        };
        let answers = [
            ("target.webhook.uri", events.subscribe(request).await.err()),
            ("subscription.target.webhook.uri", events.update_subscription(update).await.err()),
        ];
        for (field, answer) in answers {
            let either = ["ADDRESS_BLOCKED", "FIELD_INVALID"];
            let told = answer.as_ref().map(reason).and_then(|reason| either.into_iter().find(|known| *known == reason));
            let expected = if expected.is_empty() { told.unwrap_or("ADDRESS_BLOCKED") } else { expected };
            row.check(&uri, answer.map_or(Ok(()), Err), Refused(Code::InvalidArgument, expected, field));
        }
    }
    row.close().await;
}

#[tokio::test]
async fn g1_what_leads_inside_later_is_blocked_once_and_nothing_arrives() {
    let forbidden = Forbidden::listen().await;
    // The addresses are saved while they are allowed: what is judged then is only what they are now.
    let allowed = r#"allow_private_ranges = ["127.0.0.0/8", "0.0.0.0/32", "::1/128", "::/128"]"#;
    let mut world = World::start_with(1, &format!("[executor]\n{allowed}\n[dispatch]\nlease_ms = 1000")).await;
    let proxy = format!("http://127.0.0.1:{}", forbidden.port);
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        world.environment.push((name, proxy.clone()));
    }
    let mut tenant = world.tenant().await;
    tenant.declare(TYPE).await;
    let hosts =
        ["127.0.0.1", "127.0.0.2", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "localhost", "a.localhost"];
    for host in hosts {
        for scheme in ["http", "https"] {
            let uri = format!("{scheme}://{host}:{}/hook", forbidden.port);
            let request = tenant.subscribe_request(TYPE, &uri);
            let made = tenant.events().subscribe(request).await.expect("allowed now").into_inner();
            tenant.told("SUBSCRIPTION_CREATED", &made.subscription.expect("it is set").id).await;
        }
    }
    world.settings = "[executor]\nallow_private_ranges = []\n[dispatch]\nlease_ms = 1000".to_owned();
    world.replace(0).await;
    tenant.reconnect(&world);
    let event_id = tenant.publish(TYPE, &json!({})).await.event_id;
    let dead = tenant.all_invocations_become(&event_id, InvocationState::DeadLettered).await;
    assert_eq!(dead.len(), 2 * hosts.len());
    for invocation in &dead {
        let last = invocation.last_attempt.as_ref().expect("it is set");
        assert_eq!(last.outcome(), OutcomeClass::BlockedAddress, "{invocation:#?}");
        // Not retried. The owner that was killed may have made an attempt, as far as the next one can know.
        assert!(invocation.attempt_count <= 2, "{invocation:#?}");
        assert!(["127.", "0.0.", "::"].iter().all(|part| !last.error.contains(part)), "an address in {}", last.error);
    }
    let request = tenant.subscribe_request(TYPE, &format!("http://localhost:{}/", forbidden.port));
    let status = tenant.events().subscribe(request).await.expect_err("it is not allowed any longer");
    assert_eq!(reason(&status), "ADDRESS_BLOCKED");
    assert_eq!(forbidden.connections(), 0, "something reached the forbidden side");
}

#[tokio::test]
async fn g1_redirects_inside_are_not_followed() {
    let mut row = Row::open().await;
    let forbidden = Forbidden::listen().await;
    let receiver = Receiver::start().await;
    let inside = format!("http://127.0.0.1:{}/", forbidden.port);
    for (path, status) in [("/301", 301), ("/302", 302), ("/303", 303), ("/307", 307), ("/308", 308), ("/300", 300)] {
        receiver.answers(path, [Answer::Full(status, vec![("location", inside.clone())], Vec::new())]);
        row.tenant.subscribe(TYPE, &receiver, path).await;
    }
    receiver.answers("/refresh", [Answer::Full(200, vec![("refresh", format!("0;url={inside}"))], Vec::new())]);
    let mut request = row.tenant.subscribe_request(TYPE, &receiver.url("/refresh"));
    request.target = Some(webhook(&receiver.url("/refresh"), WebhookMode::Binary));
    row.check("a receiver", row.tenant.events().subscribe(request).await, Fine);
    let answer = row.publish("an event", crate::harness::tenant::publish_request(TYPE, &json!({})), Fine).await;
    let event_id = answer.expect("it was accepted").event_id;
    let ended = eventually("every attempt is judged", || async {
        let all = row.tenant.invocations_of(&event_id).await;
        let open = |state| matches!(state, InvocationState::Pending | InvocationState::Waiting);
        if all.len() == 7 && all.iter().all(|one| !open(one.state())) { Ok(all) } else { Err(all) }
    })
    .await;
    let dead = ended.iter().filter(|one| one.state() == InvocationState::DeadLettered).count();
    row.ensure("redirects", dead == 6, &ended);
    row.ensure("redirects", forbidden.connections() == 0, "one was followed");
    row.close().await;
}

#[tokio::test]
async fn g3_headers_that_are_ours_or_carry_line_ends_are_refused() {
    let mut row = Row::open().await;
    let long = "x".repeat(1_025);
    let headers = [
        ("webhook-id", "x"),
        ("Webhook-Signature", "x"),
        ("webhook-anything", "x"),
        ("Content-Type", "x"),
        ("content-length", "0"),
        ("host", "x"),
        ("HOST", "x"),
        ("ce-id", "x"),
        ("transfer-encoding", "chunked"),
        ("connection", "close"),
        ("te", "trailers"),
        ("trailer", "x"),
        ("upgrade", "h2c"),
        ("expect", "100-continue"),
        ("user-agent", "x"),
        ("carillon-test", "true"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("tracestate", "x=1"),
        ("accept-encoding", "gzip"),
        ("proxy-authorization", "x"),
        ("x-ok", "a\r\nb: c"),
        ("x-ok", "a\nb"),
        ("x-ok", "a\rb"),
        ("x-ok", "a\0b"),
        ("x-ok", "\u{e4}"),
        ("x-ok", "a\u{2028}b"),
        ("x-ok", &long),
        ("", "x"),
        ("a b", "x"),
        ("a:b", "x"),
        ("a\r\nb", "x"),
        ("\u{e4}", "x"),
        (&long, "x"),
    ];
    for (name, value) in headers {
        let mut target = webhook("http://127.0.0.1:9/hook", WebhookMode::Structured);
        let Some(target::Kind::Webhook(webhook)) = &mut target.kind else { panic!("it is a webhook") };
        webhook.headers.insert(name.to_owned(), value.to_owned());
        let mut request = row.tenant.subscribe_request(TYPE, "http://127.0.0.1:9/hook");
        request.target = Some(target);
        let member = format!("{name:?}: {value:?}");
        row.check(&member, row.tenant.events().subscribe(request).await, invalid("target.webhook.headers"));
    }
    row.close().await;
}
