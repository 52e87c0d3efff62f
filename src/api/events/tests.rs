//! Reading the log against a real Postgres: pages, cursors and their errors, and a watch over real HTTP/2 and gRPC-Web.

use super::*;
use crate::api::status::ApiError;
use crate::clock;
use crate::dev::{PrivatePostgres, Search};
use crate::domain::access::{Caller, Role, Subject};
use crate::domain::event::{Data, Event, Lineage, LogEntry};
use crate::domain::event_type::EventTypeName;
use crate::domain::ids::{ApiKeyId, AppId, EventId, Position, ReplicaId, TenantId};
use crate::feed::{Feed, Head, News};
use crate::proto::public::event_service_client::EventServiceClient;
use crate::proto::public::watch_request::Start;
use crate::proto::public::watch_response::Kind;
use crate::proto::public::{
    EventView, GetEventRequest, ListEventsRequest, ListEventsResponse, OnExpired, WatchFilter, WatchRequest,
};
use crate::store::connect;
use crate::store::publish::{NewEvent, OnLocked, TenantBatch};
use crate::watch::{Config, Standing};
use bytes::Bytes;
use chrono::TimeDelta;
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use http_body_util::BodyExt as _;
use prost::Message as _;
use sqlx::PgPool;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tonic::body::Body;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Status};
use tower::{Layer as _, Service, ServiceExt as _};
use uuid::Uuid;

mod changes;
mod times;

struct World {
    _postgres: PrivatePostgres,
    pool: PgPool,
    store: Store,
    feed: Feed,
    sealer: CursorSealer,
    deps: EventsDeps,
    caller: Caller,
}

impl World {
    async fn start(config: Config) -> Self {
        let path = ["/usr/local/bin", "/usr/bin"].map(PathBuf::from).into();
        let search = Search::system(path, Some(Path::new(env!("CARGO_MANIFEST_DIR")).join(".carillon/postgres")));
        let postgres = PrivatePostgres::throwaway(&search).await.expect("a private Postgres");
        let pool = PgPool::connect(&postgres.owner_url("carillon")).await.expect("connects");
        let database = connect::Config {
            url: Some(postgres.server_url().into()),
            migrate_url: Some(postgres.url().into()),
            unsafe_allow_lossy_postgres: true,
            ..connect::Config::default()
        };
        connect::migrate(&database, &[]).await.expect("migrates");
        let store = connect::open(&database).await.expect("Postgres answers");
        let sealer = CursorSealer::new(&[5; 32]);
        let feed = Feed::default();
        let valid = Arc::new(|_: &Caller| async { Standing::Valid }.boxed());
        let replica = ReplicaId(clock::new_uuid());
        let watches =
            Watches::start(replica, store.clone(), sealer.clone(), &feed, config, valid, watch::ending_reason);
        let deps = EventsDeps::new(store.clone(), sealer.clone(), watches);
        let tenant = TenantId(clock::new_uuid());
        let subject = Subject::ApiKey(ApiKeyId(clock::new_uuid()));
        let caller = Caller { subject, tenant, app: None, role: Role::Viewer, expires_at: None, grounds: None };
        let world = Self { _postgres: postgres, pool, store, feed, sealer, deps, caller };
        world.add_tenant(tenant).await;
        world
    }

    async fn add_tenant(&self, tenant: TenantId) {
        sqlx::query(
            "INSERT INTO tenant_heads (tenant_id, log_epoch, committed_at, changed_at) VALUES ($1, 1, now(), now())",
        )
        .bind(tenant.0)
        .execute(&self.pool)
        .await
        .expect("a head");
    }

    /// Commits events, and tells whoever listens to news.
    async fn publish(&self, types: &[&str], data: &str) -> Vec<Arc<LogEntry>> {
        let entries = self.commit(types, data).await;
        self.feed.send_committed(self.caller.tenant, entries.clone());
        entries
    }

    /// Commits events as another replica does: nobody here is told.
    async fn commit(&self, types: &[&str], data: &str) -> Vec<Arc<LogEntry>> {
        let make = |name: &&str| {
            let id = EventId(clock::new_uuid());
            Arc::new(Event {
                id,
                event_type: EventTypeName::parse(name).expect("a name"),
                schema_version: 0,
                source: "/test".to_owned(),
                subject: None,
                time: clock::now(),
                content_type: None,
                extensions: Vec::new(),
                data: Data::Binary(Bytes::copy_from_slice(data.as_bytes())),
                lineage: Lineage::root(id),
            })
        };
        let events: Vec<_> = types.iter().map(make).collect();
        let new = |event: &Arc<Event>| NewEvent {
            event: Arc::clone(event),
            matched: Arc::from([]),
            refused: Arc::from([]),
            key: None,
        };
        let tenant = self.caller.tenant;
        let batch = TenantBatch { tenant, registry_version: 0, events: events.iter().map(new).collect() };
        let committed = self
            .store
            .commit_connection(Duration::from_secs(5))
            .commit_events(&[batch], clock::now(), 1, OnLocked::Wait)
            .await
            .expect("commits")
            .written;
        (committed[0].first_position..)
            .zip(events)
            .map(|(position, event)| {
                let (matched, refused) = (Arc::from([]), Arc::from([]));
                Arc::new(LogEntry { position, committed_at: committed[0].committed_at, event, matched, refused })
            })
            .collect()
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.extensions_mut().insert(self.caller.clone());
        request
    }

    async fn list(&self, request: ListEventsRequest) -> Result<ListEventsResponse, ApiError> {
        list_events::handle(&self.deps, self.request(request)).await
    }

    /// What the layers and the generated server are to the route.
    fn route(
        &self,
    ) -> impl Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible, Future: Send>
    + tonic::server::NamedService
    + Clone
    + Send
    + Sync
    + 'static {
        Authenticated { inner: WatchRoute::new(Nothing, self.deps.clone()), caller: self.caller.clone() }
    }

    async fn client(&self) -> EventServiceClient<tonic::transport::Channel> {
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().expect("an address")).expect("binds");
        let address = incoming.local_addr().expect("bound");
        let server = tonic::transport::Server::builder().add_service(self.route()).serve_with_incoming(incoming);
        tokio::spawn(server);
        EventServiceClient::connect(format!("http://{address}")).await.expect("connects")
    }
}

#[derive(Clone)]
struct Authenticated<S> {
    inner: S,
    caller: Caller,
}

impl<S: Service<http::Request<Body>>> Service<http::Request<Body>> for Authenticated<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> S::Future {
        request.extensions_mut().insert(self.caller.clone());
        self.inner.call(request)
    }
}

impl<S: tonic::server::NamedService> tonic::server::NamedService for Authenticated<S> {
    const NAME: &'static str = S::NAME;
}

/// Stands where the generated server stands.
#[derive(Clone)]
struct Nothing;

impl tonic::server::NamedService for Nothing {
    const NAME: &'static str = "carillon.v1.EventService";
}

impl Service<http::Request<Body>> for Nothing {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Request<Body>) -> Self::Future {
        async { Ok(Status::unimplemented("not here").into_http()) }.boxed()
    }
}

fn positions(response: &ListEventsResponse) -> Vec<Position> {
    response.events.iter().map(|event| event.position).collect()
}

#[tokio::test]
async fn g15_what_a_key_of_an_app_does_not_see_counts_among_what_one_call_looks_at() {
    let world = World::start(Config { list_scan_max: 1_000, ..Config::default() }).await;
    world.publish(&["SUBSCRIPTION_CREATED"].repeat(1_100), "{\"app\":\"other\"}").await;
    let list = |cursor: String| {
        let mut request = Request::new(ListEventsRequest { cursor, page_size: 1, ..Default::default() });
        request.extensions_mut().insert(Caller { app: Some(AppId(clock::new_uuid())), ..world.caller.clone() });
        list_events::handle(&world.deps, request)
    };
    let first = list(String::new()).await.expect("a page");
    assert!(first.events.is_empty() && !first.end_of_log);
    let second = list(first.next_cursor).await.expect("a page");
    assert!(second.events.is_empty() && second.end_of_log);
}

#[tokio::test]
async fn g7_pages_hand_over_to_pages_and_every_bad_cursor_has_its_reason() {
    let world = World::start(Config { list_scan_max: 1_000, ..Config::default() }).await;
    let empty = world.list(ListEventsRequest::default()).await.expect("an empty log");
    assert!(empty.end_of_log && empty.events.is_empty() && !empty.next_cursor.is_empty());

    let entries = world.publish(&["USER_CREATE", "ROW_READ"].repeat(150), "{\"n\":1}").await;
    let mut cursor = empty.next_cursor;
    let mut seen = Vec::new();
    loop {
        let page = world.list(ListEventsRequest { cursor, page_size: 70, ..Default::default() }).await.expect("a page");
        assert!(page.events.len() <= 70);
        seen.extend(positions(&page));
        cursor = page.next_cursor;
        if page.end_of_log {
            break;
        }
    }
    assert_eq!(seen, (1..=300).collect::<Vec<_>>());

    // A filter, a view, and times.
    let request = ListEventsRequest {
        event_types: vec!["ROW_*".to_owned()],
        filter: "event.type == 'ROW_READ'".to_owned(),
        view: EventView::Metadata.into(),
        page_size: 10_000,
        ..Default::default()
    };
    let rows = world.list(request).await.expect("a page");
    assert_eq!(positions(&rows), (1..=150).map(|n| n * 2).collect::<Vec<_>>());
    assert!(rows.end_of_log && rows.events.iter().all(|event| event.event.as_ref().expect("set").data.is_none()));
    let committed = Some(crate::proto::Timestamp::from(entries[0].committed_at));
    let before = world.list(ListEventsRequest { end_time: committed, ..Default::default() }).await.expect("a page");
    assert!(before.events.is_empty() && before.end_of_log);
    let from = world.list(ListEventsRequest { start_time: committed, ..Default::default() }).await.expect("a page");
    assert_eq!((from.events[0].position, from.events.len()), (1, 100));

    // Bytes bound a page too, and an event that is larger than a page still comes.
    world.publish(&["USER_CREATE"; 5], &"x".repeat(900_000)).await;
    let big = world.list(ListEventsRequest { cursor: cursor.clone(), ..Default::default() }).await.expect("a page");
    assert_eq!((big.events.len(), big.end_of_log), (2, false));

    // A filter that selects nothing looks at a bounded number of events.
    world.publish(&["FILE_FINALIZED"; 900], "{}").await;
    let nothing = ListEventsRequest { event_types: vec!["NOBODY".to_owned()], ..Default::default() };
    let first = world.list(nothing.clone()).await.expect("a page");
    assert!(first.events.is_empty() && !first.end_of_log);
    let second = world.list(ListEventsRequest { cursor: first.next_cursor, ..nothing }).await.expect("a page");
    assert!(second.events.is_empty() && second.end_of_log);

    // One event.
    let id = entries[7].event.id.to_string();
    let get = |event_id: String| get_event::handle(&world.deps, world.request(GetEventRequest { event_id }));
    assert_eq!(get(id).await.expect("found").event.expect("set").position, 8);
    let absent = EventId(clock::new_uuid()).to_string();
    assert_eq!(get(absent).await.expect_err("absent").reason_name(), "EVENT_NOT_FOUND");
    assert_eq!(get("x\0".to_owned()).await.expect_err("malformed").reason_name(), "FIELD_INVALID");

    // Cursors: each fault has its own reason, in ListEvents and in Watch alike.
    let seal = |tenant, epoch, position| {
        let day = clock::now().date_naive();
        world.sealer.seal(&crate::domain::cursor::Cursor { tenant, epoch, position, day })
    };
    let tenant = world.caller.tenant;
    sqlx::query("UPDATE tenant_heads SET earliest_position = 10 WHERE tenant_id = $1")
        .bind(tenant.0)
        .execute(&world.pool)
        .await
        .expect("as retention does");
    for (cursor, reason) in [
        ("x".to_owned(), "CURSOR_MALFORMED"),
        ("A".repeat(100_000), "CURSOR_MALFORMED"),
        (seal(TenantId(Uuid::from_u128(9)), 1, 5), "CURSOR_FOREIGN"),
        (seal(tenant, 2, 20), "CURSOR_FOREIGN"),
        (seal(tenant, 1, 1_000_000), "CURSOR_AHEAD"),
        (seal(tenant, 1, 8), "CURSOR_EXPIRED"),
    ] {
        let listed = world.list(ListEventsRequest { cursor: cursor.clone(), ..Default::default() }).await;
        assert_eq!(listed.expect_err("refused").reason_name(), reason);
        let request = WatchRequest { start: Some(Start::Cursor(cursor)), ..Default::default() };
        let watched = watch::open(&world.deps, world.request(request)).await;
        assert_eq!(watched.err().expect("refused").reason_name(), reason);
    }
    let expired = world.list(ListEventsRequest { cursor: seal(tenant, 1, 8), ..Default::default() }).await;
    let Err(ApiError::CursorExpired { earliest }) = expired else { panic!("expired") };
    assert_eq!(
        world.list(ListEventsRequest { cursor: earliest, ..Default::default() }).await.expect("a page").events[0]
            .position,
        10
    );
    assert!(world.list(ListEventsRequest { cursor: seal(tenant, 1, 9), ..Default::default() }).await.is_ok());

    for request in [
        ListEventsRequest { page_size: -1, ..Default::default() },
        ListEventsRequest { view: 7, ..Default::default() },
        ListEventsRequest { event_types: vec!["*".to_owned(); 65], ..Default::default() },
        ListEventsRequest { event_types: vec!["A*B".to_owned()], ..Default::default() },
        ListEventsRequest {
            start_time: Some(crate::proto::Timestamp { seconds: i64::MAX, nanos: 0 }),
            ..Default::default()
        },
        ListEventsRequest { start_time: Some((clock::now() + TimeDelta::hours(1)).into()), ..Default::default() },
    ] {
        assert_eq!(world.list(request).await.expect_err("refused").reason_name(), "FIELD_INVALID");
    }
    let unfiltered = ListEventsRequest { filter: "event.type ==".to_owned(), ..Default::default() };
    assert_eq!(world.list(unfiltered).await.expect_err("refused").reason_name(), "FILTER_INVALID");
    world.deps.watches.stop().await;
}

/// Reads a watch until `count` events have come; the last cursor and the positions.
async fn read(
    stream: &mut tonic::Streaming<crate::proto::public::WatchResponse>,
    count: usize,
) -> (String, Vec<Position>) {
    let mut seen = Vec::new();
    let mut cursor = String::new();
    while seen.len() < count {
        let message = tokio::time::timeout(Duration::from_secs(20), stream.message()).await;
        let message = message.unwrap_or_else(|_| panic!("only {} of {count} have come", seen.len()));
        let message = message.expect("no error").expect("not the end");
        cursor = message.cursor;
        if let Some(Kind::Events(events)) = message.kind {
            seen.extend(events.events.into_iter().map(|watched| watched.event.expect("set").position));
        }
    }
    (cursor, seen)
}

#[tokio::test]
async fn g8_a_watch_over_http2_catches_up_goes_live_resumes_and_says_goodbye() {
    let config = Config { ring_entries_max: 64, streams_per_tenant_max: 3, ..Config::default() };
    let world = World::start(config).await;
    let mut client = world.client().await;
    world.publish(&["USER_CREATE"; 250], "{}").await;
    let watch = |start| WatchRequest { start: Some(start), ..Default::default() };

    let mut stream = client.watch(watch(Start::Earliest(true))).await.expect("opens").into_inner();
    let first = stream.message().await.expect("no error").expect("not the end");
    assert!(matches!(first.kind, Some(Kind::Created(_))));
    let (_, early) = read(&mut stream, 250).await;
    for _ in 0..40 {
        world.publish(&["ROW_READ"; 7], "{}").await;
    }
    let (cursor, live) = read(&mut stream, 280).await;
    assert_eq!(early.into_iter().chain(live).collect::<Vec<_>>(), (1..=530).collect::<Vec<_>>());

    // Commits of another replica come as no more than a head.
    let mut resumed = client.watch(watch(Start::Cursor(cursor))).await.expect("opens").into_inner();
    world.commit(&["ROW_READ"; 3], "{}").await;
    let head = Head { tenant: world.caller.tenant, position: 533, registry_version: 0, deferred_version: 0 };
    world.feed.send(&News::Head(head));
    assert_eq!(read(&mut resumed, 3).await.1, [531, 532, 533]);

    // A page's cursor goes on live.
    let page = world.list(ListEventsRequest { page_size: 500, ..Default::default() }).await.expect("a page");
    let mut third = client.watch(watch(Start::Cursor(page.next_cursor))).await.expect("opens").into_inner();
    assert_eq!(read(&mut third, 33).await.1, (501..=533).collect::<Vec<_>>());

    // Bounds and bad requests.
    let refused = client.watch(WatchRequest::default()).await.expect_err("a fourth stream");
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    drop(third);
    let filter = |name: &str| WatchFilter { name: name.to_owned(), ..Default::default() };
    for request in [
        watch(Start::Now(false)),
        watch(Start::StartTime(crate::proto::Timestamp { seconds: -62_135_596_801, nanos: 0 })),
        WatchRequest { filters: vec![filter("a"), filter("a")], ..Default::default() },
        WatchRequest { filters: vec![filter("a"), filter("")], ..Default::default() },
        WatchRequest { filters: vec![filter("a b")], ..Default::default() },
        WatchRequest { filters: (0..17).map(|n| filter(&format!("f{n}"))).collect(), ..Default::default() },
        WatchRequest { on_expired: 9, ..Default::default() },
        WatchRequest {
            bookmark_interval: Some(pbjson_types::Duration { seconds: -1, nanos: 0 }),
            ..Default::default()
        },
    ] {
        let refused = client.watch(request).await.expect_err("refused");
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused:?}");
    }

    // Goodbye.
    world.deps.watches.drain();
    let mut goodbye = None;
    let status = loop {
        match resumed.message().await {
            Ok(Some(message)) => goodbye = Some(message),
            Ok(None) => panic!("it ends with a reason"),
            Err(status) => break status,
        }
    };
    assert!(
        matches!(goodbye.expect("a last message").kind, Some(Kind::Closing(closing)) if closing.reason == "SERVER_DRAINING")
    );
    assert_eq!(status.code(), tonic::Code::Unavailable);
    assert!(client.watch(WatchRequest::default()).await.is_err());
    world.deps.watches.stop().await;
    assert!(world.deps.watches.streams() <= 1, "the client may still hold the first");
}

#[tokio::test]
async fn g12_a_start_that_is_gone_is_a_gap_where_asked() {
    let world = World::start(Config::default()).await;
    world.publish(&["USER_CREATE"; 30], "{}").await;
    let cursor =
        world.list(ListEventsRequest { page_size: 5, ..Default::default() }).await.expect("a page").next_cursor;
    for statement in ["UPDATE tenant_heads SET earliest_position = 21", "DELETE FROM events WHERE position < 21"] {
        sqlx::query(statement).execute(&world.pool).await.expect("as retention does");
    }
    let request = WatchRequest {
        start: Some(Start::Cursor(cursor)),
        on_expired: OnExpired::FromEarliest.into(),
        ..Default::default()
    };
    let mut stream = watch::handle(&world.deps, world.request(request)).await.expect("opens");
    let mut seen = Vec::new();
    while seen.len() < 10 {
        match stream.next().await.expect("open").expect("a message").kind.expect("set") {
            Kind::Gap(gap) => assert_eq!((gap.from_position, gap.to_position, seen.len()), (6, 21, 0)),
            Kind::Events(events) => seen.extend(events.events.into_iter().map(|e| e.event.expect("set").position)),
            _ => {}
        }
    }
    assert_eq!(seen, (21..=30).collect::<Vec<_>>());
    world.deps.watches.stop().await;
}

#[tokio::test]
async fn a_watch_travels_as_grpc_web() {
    let world = World::start(Config::default()).await;
    let mut message = vec![0; 5];
    WatchRequest { start: Some(Start::Earliest(true)), ..Default::default() }.encode(&mut message).expect("room");
    let length = u32::try_from(message.len() - 5).expect("small");
    message[1..5].copy_from_slice(&length.to_be_bytes());
    let request = http::Request::post("/carillon.v1.EventService/Watch")
        .version(http::Version::HTTP_11)
        .header("content-type", "application/grpc-web+proto")
        .body(http_body_util::Full::new(Bytes::from(message)).map_err(|never: Infallible| match never {}))
        .expect("a request");
    let response = tonic_web::GrpcWebLayer::new().layer(world.route()).oneshot(request).await.expect("infallible");
    assert_eq!(response.headers()["content-type"], "application/grpc-web+proto");
    let mut body = response.into_body();
    world.publish(&["USER_CREATE"], "{}").await;
    let mut kinds = Vec::new();
    while kinds.len() < 2 {
        let frame = body.frame().await.expect("open").expect("a frame").into_data().expect("data");
        let message = crate::watch::codec::decode(&frame).expect("a message");
        kinds.push(message.kind.expect("set"));
    }
    assert!(matches!(&kinds[..], [Kind::Created(_), Kind::Events(events)] if events.events.len() == 1));
    world.deps.watches.drain();
    let mut last = Bytes::new();
    while let Some(frame) = body.frame().await {
        last = frame.expect("a frame").into_data().expect("gRPC-Web sends trailers as data");
    }
    assert_eq!(last[0], 0x80, "the trailers' flag");
    assert!(String::from_utf8_lossy(&last).contains("grpc-status:14"));
    world.deps.watches.stop().await;
}
