//! The WebSocket form of Watch at `/v1/watch`: the same messages as proto JSON, the same credential and origins, one reason per end.

use futures::{SinkExt as _, StreamExt as _};
use http::{HeaderValue, Request, StatusCode};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::edges::connect_from;
use crate::harness::tenant::assert_refused;
use crate::harness::world::ORIGIN;
use crate::harness::{Tenant, World, connect, eventually, within};

/// A handshake that may be changed before it is sent.
pub fn handshake(world: &World, replica: usize) -> Request<()> {
    let url = format!("ws://{}/v1/watch", world.replicas[replica].addresses.public);
    url.into_client_request().expect("a URL")
}

pub fn with(mut request: Request<()>, name: &'static str, value: &str) -> Request<()> {
    request.headers_mut().append(name, HeaderValue::from_str(value).expect("visible ASCII"));
    request
}

pub fn bearer(key: &str) -> String {
    format!("Bearer {key}")
}

pub async fn tcp(world: &World, replica: usize) -> TcpStream {
    TcpStream::connect(&world.replicas[replica].addresses.public).await.expect("the public port accepts")
}

pub struct Socket<S>(pub WebSocketStream<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    pub async fn say(&mut self, value: &Value) {
        self.0.send(Message::text(value.to_string())).await.expect("sent");
    }

    /// The next message that is neither a bookmark nor a sign of life; what a close frame said, where it ends.
    pub async fn next(&mut self) -> Result<Value, (u16, String)> {
        loop {
            match within("a message of the WebSocket", self.0.next()).await {
                Some(Ok(Message::Text(text))) => {
                    let value: Value = serde_json::from_str(text.as_str()).expect("JSON");
                    if value.get("bookmark").is_none() {
                        return Ok(value);
                    }
                }
                Some(Ok(Message::Close(Some(frame)))) => {
                    return Err((frame.code.into(), frame.reason.as_str().to_owned()));
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    pub async fn text(&mut self) -> Value {
        self.next().await.expect("it goes on")
    }

    /// The positions and filters of the next events.
    pub async fn events(&mut self) -> Vec<(String, Value)> {
        let message = self.text().await;
        let events = message["events"]["events"].as_array().unwrap_or_else(|| panic!("unexpected {message}"));
        let one = |watched: &Value| {
            let position = watched["event"]["position"].as_str().expect("64 bits are text").to_owned();
            (position, watched.get("filters").cloned().unwrap_or_default())
        };
        events.iter().map(one).collect()
    }
}

async fn open(world: &World, tenant: &Tenant, replica: usize, first: &Value) -> (Socket<TcpStream>, Value) {
    open_over(tcp(world, replica).await, world, replica, &tenant.key, first).await
}

/// A watch over a connection to a replica, and what it has said first.
pub async fn open_over<S>(stream: S, world: &World, replica: usize, key: &str, first: &Value) -> (Socket<S>, Value)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request = with(handshake(world, replica), "authorization", &bearer(key));
    let (stream, _) = tokio_tungstenite::client_async(request, stream).await.expect("a WebSocket");
    let mut socket = Socket(stream);
    socket.say(first).await;
    let created = socket.text().await;
    (socket, created)
}

fn kind(kind: &str) -> Value {
    json!({"name": kind, "filter": format!("data.kind == '{kind}'")})
}

async fn publish(tenant: &Tenant, kind: &str) {
    tenant.publish("CUSTOM_SOCKET", &json!({"kind": kind})).await;
}

#[tokio::test]
async fn a_websocket_watches_changes_its_filters_and_resumes_at_the_other_replica() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    tenant.declare("CUSTOM_SOCKET").await;
    let (mut socket, created) = open(world, &tenant, 0, &json!({"filters": [kind("a")]})).await;
    assert_eq!(created["created"]["filterVersion"], "1");
    let id = created["created"]["watchId"].as_str().expect("an id").to_owned();
    publish(&tenant, "b").await;
    publish(&tenant, "a").await;
    // The declaration of the type is the log's first event.
    assert_eq!(socket.events().await, [("3".to_owned(), json!(["a"]))]);

    socket.say(&json!({"add": [kind("b")], "remove": ["a"], "filterVersion": "1"})).await;
    let changed = socket.text().await;
    assert_eq!(changed["filterChanged"]["filterVersion"], "2");
    // What cannot be is answered, and the stream goes on.
    for (change, reason, words) in [
        (json!({"add": [kind("c")], "filterVersion": "1"}), "ETAG_MISMATCH", "filterVersion is not"),
        (json!({"add": [kind("c")], "filterVersion": "-1"}), "FIELD_INVALID", "filterVersion: must not be negative"),
        (json!({"remove": ["x"]}), "FIELD_INVALID", "remove[0]: "),
        (json!({"add": [{"name": "c", "filter": "data."}]}), "FILTER_INVALID", "add[0].filter: "),
        (json!({"add": [{"name": "c", "eventTypes": ["?"]}]}), "FIELD_INVALID", "add[0].eventTypes[0]: "),
        (json!({"watchId": "wat_00000000000000000000000000", "add": [kind("c")]}), "FIELD_INVALID", "watchId: "),
        (json!({"unknown": 1}), "FIELD_INVALID", "unknown: the message must be one UpdateWatchRequest in proto JSON"),
        (json!({"add": [kind("c"), {"name": 7}]}), "FIELD_INVALID", "add[1].name: the message must be one"),
        (json!([]), "FIELD_INVALID", "must be one UpdateWatchRequest in proto JSON"),
    ] {
        socket.say(&change).await;
        let answer = socket.text().await;
        assert_eq!(answer["error"]["reason"], reason, "{change}: {answer}");
        let said = answer["error"]["message"].as_str().unwrap_or_default();
        assert!(said.contains(words), "{change}: {answer}");
        // The violation names the field as the message does.
        let field = words.split_once(": ").map(|(field, _)| field);
        let named = answer["error"]["fieldViolations"][0]["field"].as_str().filter(|field| !field.is_empty());
        assert_eq!(named, field, "{change}: {answer}");
    }
    publish(&tenant, "a").await;
    publish(&tenant, "b").await;
    assert_eq!(socket.events().await, [("5".to_owned(), json!(["b"]))]);
    drop(socket);

    let resume = json!({"watch": id, "resumeCursor": changed["cursor"]});
    let (mut socket, created) = open(world, &tenant, 1, &resume).await;
    assert_eq!(created["created"]["filterVersion"], "2");
    assert_eq!(socket.events().await, [("5".to_owned(), json!(["b"]))]);
}

#[tokio::test]
async fn handshakes_are_refused_with_a_status_and_a_reason() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    let plain = || handshake(world, 0);
    let authorized = || with(plain(), "authorization", &bearer(&tenant.key));
    let token = format!("carillon.bearer.{}", tenant.key);
    let both = format!("carillon.watch.v1, {token}");
    let mut old = authorized();
    old.headers_mut().insert("sec-websocket-version", HeaderValue::from_static("8"));
    let mut unchanged = authorized();
    unchanged.headers_mut().insert("upgrade", HeaderValue::from_static("h2c"));
    let refused = [
        (plain(), StatusCode::UNAUTHORIZED, "CREDENTIAL_INVALID"),
        (with(plain(), "authorization", "Bearer x"), StatusCode::UNAUTHORIZED, "CREDENTIAL_INVALID"),
        // The key never stands in the address.
        (
            format!("{}?access_token={}", plain().uri(), tenant.key).into_client_request().expect("a URL"),
            StatusCode::UNAUTHORIZED,
            "CREDENTIAL_INVALID",
        ),
        (with(authorized(), "sec-websocket-protocol", &both), StatusCode::UNAUTHORIZED, "CREDENTIAL_INVALID"),
        (with(plain(), "sec-websocket-protocol", &token), StatusCode::BAD_REQUEST, "FIELD_INVALID"),
        (with(authorized(), "origin", "https://evil.example.com"), StatusCode::FORBIDDEN, "FIELD_INVALID"),
        (with(with(authorized(), "origin", ORIGIN), "origin", "null"), StatusCode::FORBIDDEN, "FIELD_INVALID"),
        (old, StatusCode::UPGRADE_REQUIRED, "FIELD_INVALID"),
        (unchanged, StatusCode::UPGRADE_REQUIRED, "FIELD_INVALID"),
    ];
    for (request, status, reason) in refused {
        let what = format!("{request:?}");
        match tokio_tungstenite::client_async(request, tcp(world, 0).await).await {
            Err(Error::Http(response)) => {
                assert_eq!(response.status(), status, "{what}");
                let body: Value =
                    serde_json::from_slice(response.body().as_deref().unwrap_or_default()).unwrap_or_default();
                // A refusal's body may be cut off by the client library; where it is there it says why.
                if let Some(said) = body["error"]["reason"].as_str() {
                    assert_eq!(said, reason, "{what}");
                }
            }
            other => panic!("{what}: {:?}", other.map(|_| ())),
        }
    }
    let host = world.replicas[0].addresses.public.clone();
    let own_page = format!("http://{host}");
    for request in [
        with(plain(), "sec-websocket-protocol", &both),
        with(authorized(), "origin", ORIGIN),
        with(authorized(), "origin", &own_page),
    ] {
        let what = format!("{request:?}");
        let is_protocol = request.headers().contains_key("sec-websocket-protocol");
        let opened = tokio_tungstenite::client_async(request, tcp(world, 0).await).await;
        let (_, response) = opened.unwrap_or_else(|error| panic!("{what}: {error}"));
        let chosen = response.headers().get("sec-websocket-protocol");
        assert_eq!(chosen.is_some_and(|name| name == "carillon.watch.v1"), is_protocol, "never the key: {what}");
    }
}

#[tokio::test]
async fn every_end_has_its_code_and_reason() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    let big = "x".repeat(300 * 1024);
    let cases = [
        (Message::text("not json"), 4003, "FIELD_INVALID"),
        (Message::text("{} {}"), 4003, "FIELD_INVALID"),
        (Message::text(r#"{"cursor": "x"}"#), 4003, "CURSOR_MALFORMED"),
        (Message::text(r#"{"filters": [{"filter": "data."}]}"#), 4003, "FILTER_INVALID"),
        (
            Message::text(r#"{"watch": "wat_00000000000000000000000000", "resumeCursor": "x"}"#),
            4003,
            "CURSOR_MALFORMED",
        ),
        (Message::binary(vec![1, 2, 3]), 1003, ""),
        (Message::text(big), 1009, ""),
    ];
    for (first, code, reason) in cases {
        let request = with(handshake(world, 1), "authorization", &bearer(&tenant.key));
        let (mut stream, _) = tokio_tungstenite::client_async(request, tcp(world, 1).await).await.expect("a WebSocket");
        let mut shown = first.to_string();
        shown.truncate(60);
        stream.send(first).await.expect("sent");
        let mut socket = Socket(stream);
        if !reason.is_empty() {
            assert_eq!(socket.text().await["error"]["reason"], reason, "{shown}");
        }
        let (closed, said) = socket.next().await.expect_err("it is closed");
        assert_eq!(closed, code, "{shown}");
        if !reason.is_empty() {
            assert_eq!(said, reason);
        }
    }
}

#[tokio::test]
async fn a_close_of_the_client_is_answered_before_and_after_its_first_message() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    let (watching, _) = open(world, &tenant, 0, &json!({})).await;
    let request = with(handshake(world, 0), "authorization", &bearer(&tenant.key));
    let (silent, _) = tokio_tungstenite::client_async(request, tcp(world, 0).await).await.expect("a WebSocket");
    for mut socket in [watching, Socket(silent)] {
        let goodbye = CloseFrame { code: 4321.into(), reason: "had enough".into() };
        socket.0.send(Message::Close(Some(goodbye))).await.expect("sent");
        assert_eq!(socket.next().await, Err((4321, "had enough".to_owned())));
        let end = within("the end of the connection", socket.0.next()).await;
        assert!(end.is_none(), "it ends cleanly: {end:?}");
    }
}

#[tokio::test]
async fn a_first_message_that_is_no_watch_request_is_told_which_field_is_wrong_and_why() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    for (first, field, words) in [
        ("not json", "", "must be one WatchRequest in proto JSON"),
        ("[]", "", "must be one WatchRequest in proto JSON"),
        ("{", "", "EOF while parsing an object"),
        ("{now: true}", "", "key must be a string"),
        (r#"{"now": true,}"#, "", "trailing comma"),
        (r#"{"filters": [{"name": "a"}, {name: "b"}]}"#, "filters[1]", "key must be a string"),
        (r#"{"now" true}"#, "", "expected `:`"),
        (r#"{"?": 1}"#, "?", "unknown field `?`"),
        (r#"{"colour": "red"}"#, "colour", "unknown field `colour`"),
        (r#"{"filters": [{}, {"colour": "red"}]}"#, "filters[1].colour", "unknown field `colour`"),
        (r#"{"filters": [{"eventTypes": "A"}]}"#, "filters[0].eventTypes", "invalid type: string"),
        (r#"{"onExpired": "PERHAPS"}"#, "onExpired", "PERHAPS"),
        (r#"{"now": true, "earliest": true}"#, "", "duplicate field `earliest`"),
        (r#"{"bookmarkInterval": "soon"}"#, "bookmarkInterval", "proto JSON"),
    ] {
        let request = with(handshake(world, 0), "authorization", &bearer(&tenant.key));
        let (stream, _) = tokio_tungstenite::client_async(request, tcp(world, 0).await).await.expect("a WebSocket");
        let mut socket = Socket(stream);
        socket.0.send(Message::text(first)).await.expect("sent");
        let answer = socket.text().await;
        assert_eq!(answer["error"]["reason"], "FIELD_INVALID", "{first}: {answer}");
        let violation = &answer["error"]["fieldViolations"][0];
        assert_eq!(violation["field"].as_str().unwrap_or_default(), field, "{first}: {answer}");
        assert!(violation["description"].as_str().is_some_and(|text| text.contains(words)), "{first}: {answer}");
    }
}

#[tokio::test]
async fn it_works_over_tls_answers_pings_and_says_goodbye_when_the_replica_drains() {
    let settings = "[server.tls]\ncertificate_file = \"{dir}/server.pem\"\nkey_file = \"{dir}/server.key\"\n";
    let mut world = World::start_with(1, settings).await;
    // Administration and publishing go by the internal port, which has always had TLS.
    let tenant = world.tenant().await;
    let config = connect::http1(&world.ca);
    let name = rustls_pki_types::ServerName::try_from("localhost").expect("a name");
    let tls = tokio_rustls::TlsConnector::from(config).connect(name, tcp(&world, 0).await).await.expect("TLS");
    let request = with(handshake(&world, 0), "authorization", &bearer(&tenant.key));
    let (stream, _) = tokio_tungstenite::client_async(request, tls).await.expect("a WebSocket");
    let mut socket = Socket(stream);
    socket.say(&json!({})).await;
    assert!(socket.text().await.get("created").is_some());
    socket.0.send(Message::Ping(bytes::Bytes::from_static(b"here?"))).await.expect("sent");
    loop {
        match within("the pong", socket.0.next()).await {
            Some(Ok(Message::Pong(payload))) => {
                assert_eq!(&payload[..], b"here?");
                break;
            }
            Some(Ok(_)) => {}
            other => panic!("unexpected {other:?}"),
        }
    }
    world.replicas[0].process.signal(Signal::TERM);
    let closing = socket.text().await;
    assert_eq!(closing["closing"]["reason"], "SERVER_DRAINING");
    assert_eq!(closing["closing"]["resumeCursor"], closing["cursor"]);
    assert_eq!(socket.text().await["error"]["reason"], "SERVER_DRAINING");
    assert_eq!(socket.next().await, Err((4014, "SERVER_DRAINING".to_owned())));
    let end = within("the end of the connection", socket.0.next()).await;
    assert!(end.is_none(), "TLS ends cleanly too: {end:?}");
    drop(socket);
    let status = world.replicas[0].process.ended("the drained replica ends").await;
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn a_websocket_counts_as_a_connection_of_its_address_and_makes_no_room() {
    let world = World::start_with(1, "[server]\nconnections_per_peer_max = 4\n").await;
    let tenant = world.tenant().await;
    let open = async || {
        let request = with(handshake(&world, 0), "authorization", &bearer(&tenant.key));
        let stream = connect_from("127.0.0.2", &world.replicas[0].addresses.public).await;
        within("the handshake", tokio_tungstenite::client_async(request, stream)).await.map(|(socket, _)| socket)
    };
    let mut sockets = Vec::new();
    for _ in 0..4 {
        sockets.push(open().await.expect("a place is free"));
    }
    assert!(open().await.is_err(), "all places of the address are taken");
    sockets.pop();
    eventually("a place given back can be taken", || async { open().await.map(drop).map_err(|_| "refused") }).await;
}

#[tokio::test]
async fn a_websocket_counts_as_a_call_of_its_credential() {
    let world = World::start_with(1, "[server]\ncalls_per_credential_max = 1\n").await;
    let tenant = world.tenant().await;
    let (socket, _) = open(&world, &tenant, 0, &json!({})).await;
    let request = with(handshake(&world, 0), "authorization", &bearer(&tenant.key));
    match tokio_tungstenite::client_async(request, tcp(&world, 0).await).await {
        Err(Error::Http(response)) => assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS),
        other => panic!("{:?}", other.map(|_| ())),
    }
    let list = || carillon::proto::public::ListEventTypesRequest::default();
    let refused = tenant.types().list_event_types(list()).await;
    let status = assert_refused(refused, tonic::Code::ResourceExhausted, "QUOTA_EXCEEDED");
    assert!(status.message().contains("server.calls_per_credential_max"), "{status:?}");
    drop(socket);
    eventually("the place is free again", || async {
        tenant.types().list_event_types(list()).await.map(drop).map_err(|status| status.code())
    })
    .await;
}
