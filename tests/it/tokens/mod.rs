//! OIDC tokens as credentials of the public port: what a good one may, what a bad one is told, and what ends with it. Its issuer's keys
//! are in `keys`, all that is refused in `refused`.

mod keys;
mod refused;

use carillon::proto::internal::{CreateAppRequest, ListAuditRecordsRequest};
use carillon::proto::public::event_service_client::EventServiceClient;
use carillon::proto::public::event_type_service_client::EventTypeServiceClient;
use carillon::proto::public::watch_response::Kind;
use carillon::proto::public::{
    CreateEventTypeRequest, GetSubscriptionRequest, ListEventTypesRequest, ListSubscriptionsRequest, WatchRequest,
    WatchResponse,
};
use futures::{SinkExt as _, StreamExt as _};
use http::HeaderValue;
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};
use tonic::{Code, Status, Streaming};

use crate::harness::issuer::{Issuer, Signer};
use crate::harness::tenant::{Clients, admin, assert_refused, reason};
use crate::harness::{Receiver, Tenant, World, within};

/// A world that accepts the tokens of an issuer.
struct Stage {
    world: World,
    issuer: Issuer,
    rsa: Signer,
    p256: Signer,
    p384: Signer,
    ed: Signer,
}

impl Stage {
    /// The one that most of these tests share.
    async fn shared() -> &'static Self {
        static SHARED: OnceCell<Stage> = OnceCell::const_new();
        SHARED
            .get_or_init(|| async { crate::harness::shared_runtime().spawn(Self::start("")).await.expect("it starts") })
            .await
    }

    /// One of one's own, with more settings of its server.
    async fn start(more: &str) -> Self {
        let rsa = Signer::new("rsa", Algorithm::RS256);
        let (p256, p384) = (Signer::new("p256", Algorithm::ES256), Signer::new("p384", Algorithm::ES384));
        let ed = Signer::new("ed", Algorithm::EdDSA);
        let issuer = Issuer::start(&[&rsa, &p256, &p384, &ed]).await;
        let accepted = r#"algorithms = ["RS256", "PS256", "PS384", "ES256", "ES384", "EdDSA"]"#;
        // A second issuer, whose keys nobody has: its name is no way around the first one's.
        let other =
            "[[auth.issuers]]\nissuer = \"other\"\naudience = \"carillon\"\njwks_uri = \"https://localhost:9/keys\"\n";
        let settings = format!("{}{}{more}\n{}", issuer.reachable(), issuer.entry(accepted), other);
        let world = World::start_with(1, &settings).await;
        Self { world, issuer, rsa, p256, p384, ed }
    }

    fn claims(&self, tenant: &Tenant, changes: &Value) -> Value {
        changed(self.issuer.claims(&tenant.slug), changes)
    }

    /// A token that differs from a good one in these claims; null takes one away.
    fn token(&self, tenant: &Tenant, changes: &Value) -> String {
        self.ed.sign(&self.claims(tenant, changes))
    }

    fn clients(&self, token: &str) -> Clients {
        Clients::new(&self.world, 0, token)
    }

    async fn lists(&self, token: &str) -> Result<(), Status> {
        lists(&self.world, token).await
    }
}

fn changed(mut claims: Value, changes: &Value) -> Value {
    for (name, value) in changes.as_object().expect("an object") {
        claims[name] = value.clone();
    }
    claims.as_object_mut().expect("an object").retain(|_, value| !value.is_null());
    claims
}

fn seconds_from_now(seconds: i64) -> i64 {
    carillon::clock::now().timestamp() + seconds
}

/// What a call with a credential is answered.
async fn lists(world: &World, credential: &str) -> Result<(), Status> {
    let mut types = Clients::new(world, 0, credential).types;
    types.list_event_types(ListEventTypesRequest::default()).await.map(drop)
}

/// A WebSocket with a credential; what the handshake is refused with.
async fn socket(world: &World, credential: &str) -> Result<WebSocketStream<TcpStream>, u16> {
    let address = &world.replicas[0].addresses.public;
    let mut request = format!("ws://{address}/v1/watch").into_client_request().expect("a URL");
    let protocols = format!("carillon.watch.v1, carillon.bearer.{credential}");
    request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_str(&protocols).expect("visible ASCII"));
    let tcp = TcpStream::connect(address).await.expect("the public port accepts");
    match tokio_tungstenite::client_async(request, tcp).await {
        Ok((socket, _)) => Ok(socket),
        Err(SocketError::Http(response)) => Err(response.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

async fn watch(clients: &Clients) -> Streaming<WatchResponse> {
    clients.events.clone().watch(WatchRequest::default()).await.expect("a watch").into_inner()
}

/// Reads a stream to its end; why it ended.
async fn end_of(stream: &mut Streaming<WatchResponse>) -> (Option<String>, Status) {
    let mut said = None;
    loop {
        match within("the end of a watch", stream.message()).await {
            Ok(Some(message)) => {
                if let Some(Kind::Closing(closing)) = message.kind {
                    said = Some(closing.reason);
                }
            }
            Ok(None) => panic!("it ends without a reason"),
            Err(status) => return (said, status),
        }
    }
}

#[tokio::test]
async fn a_token_of_each_algorithm_is_accepted_at_every_door() {
    let stage = Stage::shared().await;
    let tenant = stage.world.tenant().await;
    let claims = stage.claims(&tenant, &json!({}));
    let signers = [
        &stage.rsa,
        &stage.rsa.with(Algorithm::PS256),
        &stage.rsa.with(Algorithm::PS384),
        &stage.p256,
        &stage.p384,
        &stage.ed,
    ];
    for signer in signers {
        stage.lists(&signer.sign(&claims)).await.unwrap_or_else(|status| panic!("{}: {status:?}", signer.id));
    }
    let token = stage.ed.sign(&claims);
    let mut stream = watch(&stage.clients(&token)).await;
    assert!(matches!(stream.message().await.expect("it lives").expect("a message").kind, Some(Kind::Created(_))));
    let mut socket = socket(&stage.world, &token).await.expect("a WebSocket");
    socket.send(Message::text("{}")).await.expect("sent");
    let first = loop {
        let message = within("the first message", socket.next()).await.expect("a message").expect("it lives");
        // A ping may come before it.
        if message.is_text() {
            break message;
        }
    };
    assert!(first.to_text().expect("text").contains("created"), "{first}");
    // An audience may also stand alone, and times may have fractions.
    let alone = json!({"aud": "carillon", "exp": 4_000_000_000.5, "nbf": seconds_from_now(-5)});
    stage.lists(&stage.token(&tenant, &alone)).await.expect("it is good");
}

#[tokio::test]
async fn each_role_stops_where_the_next_begins_and_the_record_names_the_subject() {
    let stage = Stage::shared().await;
    let tenant = stage.world.tenant().await;
    tenant.declare("CUSTOM_ROLES").await;
    let cases = [
        (json!("viewer"), false, false),
        (json!("subscriber"), true, false),
        (json!("developer"), true, true),
        (json!("admin"), true, true),
        (json!(["offline_access", "viewer", "subscriber"]), true, false),
    ];
    for (index, (role, subscribes, declares)) in cases.into_iter().enumerate() {
        let clients = stage.clients(&stage.token(&tenant, &json!({"carillon_role": role})));
        clients.types.clone().list_event_types(ListEventTypesRequest::default()).await.expect("everyone reads");
        let request = tenant.subscribe_request("CUSTOM_ROLES", &format!("http://127.0.0.1:9/{index}"));
        let subscribed = clients.events.clone().subscribe(request).await.err();
        let request = CreateEventTypeRequest { name: format!("CUSTOM_BY_{index}"), ..Default::default() };
        let declared = clients.types.clone().create_event_type(request).await.err();
        for (may, refusal) in [(subscribes, subscribed), (declares, declared)] {
            let refused = refusal.map(|status| (status.code(), reason(&status)));
            let expected = (Code::PermissionDenied, "ROLE_INSUFFICIENT".to_owned());
            assert_eq!(refused, (!may).then_some(expected), "{role}");
        }
    }
    let request = ListAuditRecordsRequest { tenant: tenant.slug.clone(), page_size: 1_000, ..Default::default() };
    let records = admin(&stage.world).list_audit_records(request).await.expect("a page").into_inner().audit_records;
    let actor = format!("oidc:{}#alice", stage.issuer.url);
    let by_alice = records.iter().filter(|record| record.actor == actor).count();
    assert_eq!(by_alice, 6, "{records:?}");
}

#[tokio::test]
async fn a_token_of_an_app_sees_only_that_apps_subscriptions() {
    let stage = Stage::shared().await;
    let tenant = stage.world.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_APPS").await;
    let foreign = tenant.subscribe("CUSTOM_APPS", &receiver, "/hook").await.subscription.expect("it is set");
    let request = CreateAppRequest { tenant: tenant.slug.clone(), slug: "limited".to_owned(), ..Default::default() };
    admin(&stage.world).create_app(request).await.expect("an app can be made");
    let clients = stage.clients(&stage.token(&tenant, &json!({"carillon_app": "limited"})));
    let listed = clients.events.clone().list_subscriptions(ListSubscriptionsRequest::default()).await;
    assert!(listed.expect("a page").into_inner().subscriptions.is_empty());
    let request = GetSubscriptionRequest { subscription_id: foreign.id };
    assert_refused(clients.events.clone().get_subscription(request).await, Code::NotFound, "SUBSCRIPTION_NOT_FOUND");
    let request = tenant.subscribe_request("CUSTOM_APPS", &receiver.url("/other"));
    assert_refused(clients.events.clone().subscribe(request).await, Code::NotFound, "APP_NOT_FOUND");
}

#[tokio::test]
async fn a_tenant_is_only_what_the_token_says() {
    let stage = Stage::shared().await;
    let (tenant, other) = (stage.world.tenant().await, stage.world.tenant().await);
    other.declare("CUSTOM_SECRET").await;
    let mut request = tonic::Request::new(ListEventTypesRequest { page_size: 1_000, ..Default::default() });
    for name in ["tenant", "carillon_tenant", "carillon-tenant", "x-tenant"] {
        request.metadata_mut().insert(name, other.slug.parse().expect("a slug is ASCII"));
    }
    let mut types = stage.clients(&stage.token(&tenant, &json!({}))).types;
    let types = types.list_event_types(request).await.expect("a page").into_inner().event_types;
    assert!(types.iter().all(|event_type| event_type.name != "CUSTOM_SECRET"));
}

#[tokio::test]
async fn a_watch_ends_in_the_moment_its_token_does() {
    let stage = Stage::shared().await;
    let tenant = stage.world.tenant().await;
    let exp = seconds_from_now(4);
    let token = stage.token(&tenant, &json!({"exp": exp}));
    let mut stream = watch(&stage.clients(&token)).await;
    let mut socket = socket(&stage.world, &token).await.expect("a WebSocket");
    socket.send(Message::text("{}")).await.expect("sent");
    let (said, status) = end_of(&mut stream).await;
    // The credential itself is asked for only every 30 s.
    let late = carillon::clock::now().timestamp_millis() - exp * 1_000;
    // Two clocks that are compared now and then are never quite the same.
    assert!((-250..10_000).contains(&late), "{late} ms after exp");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unauthenticated, "CREDENTIAL_INVALID"));
    assert_eq!(said.as_deref(), Some("CREDENTIAL_INVALID"), "it was said with a cursor");
    let closed = loop {
        let message = within("the WebSocket's end", socket.next()).await.expect("a close frame").expect("it lives");
        if let Message::Close(frame) = message {
            break frame.expect("a reason");
        }
    };
    assert_eq!((u16::from(closed.code), closed.reason.as_str()), (4016, "CREDENTIAL_INVALID"));
    assert_refused(stage.lists(&token).await, Code::Unauthenticated, "CREDENTIAL_INVALID");
}

#[tokio::test]
async fn tokens_of_one_subject_count_together_and_share_their_request_ids() {
    let stage = Stage::start("[watch]\nstreams_per_credential_max = 1\n[server]\ncalls_per_credential_max = 2\n").await;
    let tenant = stage.world.tenant().await;
    let channel = || stage.world.public(0);
    let bearer = |changes: &Value| crate::harness::connect::Bearer::new(&stage.token(&tenant, changes));
    let events = |changes: &Value| EventServiceClient::with_interceptor(channel(), bearer(changes));
    let mut first = events(&json!({"jti": "1"})).watch(WatchRequest::default()).await.expect("a watch").into_inner();
    first.message().await.expect("it lives").expect("a message");
    let again = events(&json!({"jti": "2"})).watch(WatchRequest::default()).await;
    let status = assert_refused(again, Code::ResourceExhausted, "QUOTA_EXCEEDED");
    assert!(status.message().contains("watch.streams_per_credential_max"), "{status:?}");
    let bobs = events(&json!({"sub": "bob"})).watch(WatchRequest::default()).await;
    bobs.expect("bob has watched nothing yet").into_inner().message().await.expect("it lives").expect("a message");

    // Alice's watch is one of her two calls, and a WebSocket that says nothing is the other.
    let silent = socket(&stage.world, &stage.token(&tenant, &json!({"jti": "3"}))).await.expect("a WebSocket");
    let full = stage.lists(&stage.token(&tenant, &json!({"jti": "4"}))).await;
    let status = assert_refused(full, Code::ResourceExhausted, "QUOTA_EXCEEDED");
    assert!(status.message().contains("server.calls_per_credential_max"), "{status:?}");
    stage.lists(&stage.token(&tenant, &json!({"sub": "bob"}))).await.expect("bob has called nothing yet");
    drop((first, silent));

    let request = CreateEventTypeRequest {
        name: "CUSTOM_ONCE".to_owned(),
        request_id: "the same".to_owned(),
        ..Default::default()
    };
    let mut made = Vec::new();
    for id in ["5", "6"] {
        let declare = || {
            let mut types = EventTypeServiceClient::with_interceptor(channel(), bearer(&json!({"jti": id})));
            let request = request.clone();
            async move { types.create_event_type(request).await }
        };
        let answer = crate::harness::eventually("there is a place again", || async {
            match declare().await {
                Err(status) if status.code() == Code::ResourceExhausted => Err(status),
                other => Ok(other),
            }
        });
        made.push(answer.await.expect("made, or made before").into_inner());
    }
    assert_eq!(made[0], made[1]);
}
