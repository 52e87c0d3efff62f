//! Watch as a WebSocket, for clients that can speak neither gRPC nor gRPC-Web: `GET /v1/watch` on the public port.
//!
//! The first message of the client is a WatchRequest, each later one an UpdateWatchRequest for this stream; what it gets are
//! WatchResponses. All are text messages in proto JSON. A failure is `{"error": {...}}`; one that ends the stream is followed by a
//! close frame with the code 4000 + the gRPC status code and the reason's name. `docs/watch.md` has the table.
//!
//! The rules are those of the calls: the same credential, the same origins, the same stream underneath, which is asked for a message
//! only when the one before has left. Nothing here may buffer more than one message, so nothing is read either before the answer to what
//! was read has left.

mod frames;

use super::update_watch::update_error;
use super::watch::{self, ending_error};
use super::{EventsDeps, parse};
use crate::api::auth::Credentials;
use crate::api::in_flight::{Credential, InFlight};
use crate::api::server::{PeerAddress, Upgrades};
use crate::api::status::{ApiError, to_json};
use crate::domain::access::Caller;
use crate::proto::public::{UpdateWatchRequest, WatchRequest};
use crate::watch::{UpdateError, Updated, WatchStream, codec};
use bytes::Bytes;
use futures::future::OptionFuture;
use futures::stream::FusedStream as _;
use futures::{FutureExt as _, SinkExt as _, StreamExt as _};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};
use tonic::body::Body;
use tonic::{Code, Status};

/// Where it is served.
pub const PATH: &str = "/v1/watch";
/// The subprotocol; required where the client offers any.
const PROTOCOL: &str = "carillon.watch.v1";
/// A subprotocol that carries the API key or token, for browsers, which cannot set headers here.
const TOKEN_PROTOCOL: &str = "carillon.bearer.";
/// Bytes of a client's message at most: 16 filters at their bounds fit.
const MESSAGE_BYTES_MAX: usize = 256 * 1024;
/// Bytes that are read at once: each of many thousand sockets holds as many.
const READ_BYTES: usize = 4 * 1024;
/// How long the first message may take.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);
/// How long a peer may take to answer a close.
const GOODBYE: Duration = Duration::from_secs(2);
/// Added to a gRPC status code in a close frame: 4000 to 4999 is for applications.
const CLOSE_BASE: u16 = 4_000;

type Socket = WebSocketStream<frames::Metered<TokioIo<Upgraded>>>;

/// Answers the WebSocket form of Watch. Cheap to clone.
#[derive(Clone)]
pub struct WatchSocket {
    deps: EventsDeps,
    credentials: Credentials,
    origins: Arc<[String]>,
    keepalive: Duration,
    /// Frames that end no message, at once.
    control_frames_burst: u32,
    /// A WebSocket counts as a call of its credential, like any other stream.
    in_flight: InFlight,
}

/// Why there is no WebSocket: the status and what is said about it.
struct Refusal(StatusCode, ApiError);

impl WatchSocket {
    /// Takes the parts; the origins are those of CORS.
    pub fn new(
        deps: EventsDeps,
        credentials: Credentials,
        origins: &[String],
        keepalive: Duration,
        control_frames_burst: u32,
        in_flight: InFlight,
    ) -> Self {
        Self { deps, credentials, origins: origins.into(), keepalive, control_frames_burst, in_flight }
    }

    /// Answers the handshake; the stream goes on in a task of the server's.
    pub async fn answer(&self, mut request: Request<Body>) -> Response<Body> {
        match self.handshake(&mut request).await {
            Ok(response) => response,
            Err(Refusal(code, error)) => {
                let body = serde_json::json!({ "error": to_json(&error.into()) }).to_string();
                let mut response = Response::new(Body::new(http_body_util::Full::from(body)));
                *response.status_mut() = code;
                let headers = response.headers_mut();
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                if code == StatusCode::UPGRADE_REQUIRED {
                    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
                    headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
                }
                response
            }
        }
    }

    async fn handshake(&self, request: &mut Request<Body>) -> Result<Response<Body>, Refusal> {
        let headers = request.headers();
        let key = handshake_key(request.method(), headers)?;
        if !self.allows_origin(headers) {
            let error = ApiError::field("origin", "is not among the origins that may call");
            return Err(Refusal(StatusCode::FORBIDDEN, error));
        }
        let offered = offered_protocols(headers);
        if !offered.is_empty() && !offered.contains(&PROTOCOL) {
            let error = ApiError::field("sec-websocket-protocol", format!("must offer {PROTOCOL}"));
            return Err(Refusal(StatusCode::BAD_REQUEST, error));
        }
        let credential = credential(headers, &offered);
        let is_protocol = !offered.is_empty();
        let address = request.extensions().get::<PeerAddress>().map(|address| address.0.ip());
        let caller = match credential {
            Some(headers) => self.credentials.authenticate(&headers, address, &self.in_flight).await,
            None => Err(ApiError::CredentialInvalid),
        };
        let caller = caller.map_err(|error| match error {
            ApiError::CredentialInvalid => Refusal(StatusCode::UNAUTHORIZED, error),
            ApiError::QuotaExceeded { .. } => Refusal(StatusCode::TOO_MANY_REQUESTS, error),
            _ => Refusal(StatusCode::SERVICE_UNAVAILABLE, error),
        })?;
        let counted = Credential::Subject(caller.subject.clone(), caller.tenant);
        let holder = counted.sharer();
        let place = self.in_flight.admit(counted);
        let place = place.map_err(|error| Refusal(StatusCode::TOO_MANY_REQUESTS, error))?;
        let upgrades = request.extensions().get::<Upgrades>().cloned();
        let upgrades = upgrades.ok_or_else(|| upgrade_required("this connection cannot become a WebSocket"))?;
        let upgraded = hyper::upgrade::on(request);
        let session = self.clone();
        upgrades.spawn(holder, async move {
            // A peer that goes away before the switch is its own matter.
            if let Ok(upgraded) = upgraded.await {
                session.serve(upgraded, caller).await;
            }
            drop(place);
        });
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        let accept = HeaderValue::from_str(&key);
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept.expect("base64 is visible ASCII"));
        if is_protocol {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
        }
        Ok(response)
    }

    /// Browsers do not ask before they open a WebSocket, so the rule is kept here: the origins of CORS, and the page's own host.
    fn allows_origin(&self, headers: &HeaderMap) -> bool {
        let mut origins = headers.get_all(header::ORIGIN).iter();
        let Some(origin) = origins.next() else { return true };
        let Some(origin) = origin.to_str().ok().filter(|_| origins.next().is_none()) else { return false };
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let is_own = origin.split_once("://").is_some_and(|(_, authority)| Some(authority) == host);
        is_own || self.origins.iter().any(|allowed| allowed == "*" || allowed == origin)
    }

    async fn serve(self, upgraded: Upgraded, caller: Caller) {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BYTES)
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let stream = frames::Metered::new(TokioIo::new(upgraded), self.control_frames_burst);
        let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
        let end = match self.open(&mut socket, &caller).await {
            Ok(stream) => self.follow(&mut socket, stream, &caller).await,
            Err(end) => end,
        };
        end.say(&mut socket).await;
        // TLS says goodbye as well.
        let _ = timeout(GOODBYE, socket.get_mut().shutdown()).await;
    }

    /// Opens the watch that the first message asks for.
    async fn open(&self, socket: &mut Socket, caller: &Caller) -> Result<WatchStream, End> {
        let first = async {
            loop {
                match heard(socket.next().await) {
                    Heard::Text(text) => return Ok(text),
                    // What the library has answered to a ping.
                    Heard::Alive => socket.flush().await.map_err(|_| End::Gone)?,
                    Heard::End(end) => return Err(end),
                }
            }
        };
        let first = timeout(FIRST_MESSAGE, first).await;
        let text = first.unwrap_or(Err(End::Failed(ApiError::Deadline)))?;
        let message: WatchRequest = parse_json("WatchRequest", &text).map_err(End::Failed)?;
        let mut request = tonic::Request::new(message);
        request.extensions_mut().insert(caller.clone());
        let opened = timeout(self.deps.watches.config().update_timeout(), watch::open(&self.deps, request)).await;
        opened.unwrap_or(Err(ApiError::Deadline)).map_err(End::Failed)
    }

    /// Sends what the stream has and takes changes, until one side ends it.
    async fn follow(&self, socket: &mut Socket, mut stream: WatchStream, caller: &Caller) -> End {
        let stall = Duration::from_millis(self.deps.watches.config().stall_timeout_ms);
        let mut pings = interval(self.keepalive);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let room = socket.get_ref().room();
        // Since when a ping has had no answer, nor anything else that says that the peer is there.
        let mut unanswered = None;
        // At most one change at a time; until it is answered nothing more is read.
        let mut change = None;
        let mut resume_cursor = String::new();
        loop {
            let mut said = None;
            let mut message = tokio::select! {
                item = stream.next() => match item {
                    Some(Ok(frame)) => match text_of(&frame) {
                        Ok((text, cursor)) => {
                            resume_cursor = cursor;
                            Some(Message::text(text))
                        }
                        Err(error) => return End::Failed(error),
                    },
                    Some(Err(ending)) => return End::Failed(ending_error(&ending)),
                    None => return End::Closed(CloseCode::Normal, ""),
                },
                Some(done) = OptionFuture::from(change.as_mut()) => {
                    let done: Result<Updated, ApiError> = done;
                    change = None;
                    // That it was made, the stream says at its place.
                    done.err().map(|error| Message::text(error_text(error)))
                }
                item = socket.next(), if change.is_none() => {
                    said = Some(heard(item));
                    None
                }
                _ = pings.tick() => {
                    // What has come by now is heard before the peer is judged; what is being changed keeps it from being read.
                    if change.is_none() {
                        said = socket.next().now_or_never().map(heard);
                        if said.is_none() && unanswered.is_some_and(|since: Instant| since.elapsed() >= stall) {
                            return End::Stalled(ApiError::SlowConsumer { resume_cursor }, stall);
                        }
                    }
                    unanswered.get_or_insert_with(Instant::now);
                    Some(Message::Ping(Bytes::new()))
                }
            };
            if said.is_some() {
                unanswered = None;
            }
            match said {
                None | Some(Heard::Alive) => {}
                Some(Heard::End(end)) => return end,
                Some(Heard::Text(text)) => match parse_change(&text, &stream) {
                    Ok(request) => {
                        let (watches, watch, caller) = (self.deps.watches.clone(), stream.id(), caller.clone());
                        let patience = self.deps.watches.config().update_timeout();
                        let work = async move {
                            // Unlike a call it has no deadline, and what follows has one of its own.
                            let parsed = timeout(patience, parse::change(&caller, watch, request)).await;
                            let update = parsed.unwrap_or(Err(ApiError::Deadline))?;
                            watches.update(update).await.map_err(|error: UpdateError| update_error(error, watch))
                        };
                        change = Some(work.boxed());
                        continue;
                    }
                    Err(error) => message = Some(Message::text(error_text(error))),
                },
            }
            let leaving = async {
                if let Some(message) = message {
                    socket.feed(message).await?;
                }
                // With it, or without one, goes what the library has answered to a ping.
                socket.flush().await
            };
            let taken = || {
                unanswered = None;
                stream.note_taken();
            };
            match while_taken(leaving, &room, stall, taken).await {
                Some(Ok(())) => {}
                Some(Err(_)) => return End::Gone,
                // What is on its way comes before the reason, so the reason's cursor is the one behind it.
                None => return End::Stalled(ApiError::SlowConsumer { resume_cursor }, stall),
            }
        }
    }
}

/// Does what waits for the peer for as long as the peer makes room now and then; none where it has made none for so long. However slow
/// a peer is, it is not stalled while it takes something.
async fn while_taken<T>(
    work: impl Future<Output = T>,
    room: &Notify,
    patience: Duration,
    mut taken: impl FnMut(),
) -> Option<T> {
    let mut work = pin!(work);
    loop {
        tokio::select! {
            // Before the work, which may use up what a task may do at a time, and the time with it.
            biased;
            () = sleep(patience) => return None,
            done = &mut work => return Some(done),
            () = room.notified() => taken(),
        }
    }
}

fn parse_change(text: &str, stream: &WatchStream) -> Result<UpdateWatchRequest, ApiError> {
    let message: UpdateWatchRequest = parse_json("UpdateWatchRequest", text)?;
    if !message.watch_id.is_empty() && message.watch_id != stream.id().to_string() {
        return Err(ApiError::field("watch_id", "must be this stream's, or empty"));
    }
    Ok(message)
}

/// What a client has sent.
enum Heard {
    Text(String),
    /// A ping or pong.
    Alive,
    /// Its last word, or something that cannot be used.
    End(End),
}

fn heard(item: Option<Result<Message, SocketError>>) -> Heard {
    Heard::End(match item {
        Some(Ok(Message::Text(text))) => return Heard::Text(text.as_str().to_owned()),
        Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => return Heard::Alive,
        Some(Ok(Message::Binary(_))) => End::Closed(CloseCode::Unsupported, "messages are text"),
        Some(Ok(Message::Close(_))) => End::Left,
        Some(Err(SocketError::Capacity(_))) => End::Closed(CloseCode::Size, "the message is too large"),
        Some(Err(SocketError::Utf8(_))) => End::Closed(CloseCode::Invalid, "text must be UTF-8"),
        Some(Err(SocketError::Io(error))) if error.kind() == frames::FLOODED => {
            End::Closed(CloseCode::Policy, "too many frames that end no message")
        }
        Some(Err(SocketError::Protocol(_))) => End::Closed(CloseCode::Protocol, "not a WebSocket frame"),
        Some(Err(_)) | None => End::Gone,
    })
}

/// How a WebSocket ends.
enum End {
    /// There is nobody to say anything to.
    Gone,
    /// The peer has said goodbye itself.
    Left,
    /// It broke a rule of the WebSocket.
    Closed(CloseCode, &'static str),
    /// With a reason.
    Failed(ApiError),
    /// With a reason that a peer which takes nothing is told if it goes on within so long.
    Stalled(ApiError, Duration),
}

impl End {
    /// Says the reason where there is one, and waits a moment for the peer to take it.
    async fn say(self, socket: &mut Socket) {
        let room = socket.get_ref().room();
        let patience = if let Self::Stalled(_, stall) = &self { GOODBYE.max(*stall) } else { GOODBYE };
        let (text, code, reason) = match self {
            Self::Gone => return,
            Self::Left => {
                // The answer is the library's, and only has to leave. Source: RFC 6455, section 5.5.1.
                let _ = timeout(GOODBYE, socket.flush()).await;
                return;
            }
            Self::Closed(code, reason) => (None, code, reason),
            Self::Failed(error) | Self::Stalled(error, _) => {
                let reason = error.reason_name();
                // What the stream itself is asked has no other deadline.
                let (text, code) = told(error, "no WatchRequest has come in time, or it took too long");
                let code = CLOSE_BASE + u16::try_from(i32::from(code)).unwrap_or_default();
                (Some(text), CloseCode::from(code), reason)
            }
        };
        let goodbye = async {
            if let Some(text) = text {
                socket.feed(Message::text(text)).await?;
            }
            socket.close(Some(CloseFrame { code, reason: reason.into() })).await?;
            // Until the peer has closed as well, whatever it still sends: unread bytes would turn into a reset, and that would
            // take what is on its way to it with it.
            let mut is_broken = socket.is_terminated();
            while let Some(item) = socket.next().await {
                is_broken |= item.is_err();
            }
            if is_broken {
                let mut scratch = [0; 4_096];
                while socket.get_mut().read(&mut scratch).await.is_ok_and(|read| read > 0) {}
            }
            Ok::<_, SocketError>(())
        };
        // A peer that is gone hears nothing.
        let _ = while_taken(goodbye, &room, patience, || {}).await;
    }
}

fn upgrade_required(message: &str) -> Refusal {
    Refusal(StatusCode::UPGRADE_REQUIRED, ApiError::field("upgrade", message))
}

/// Checks the handshake and returns the value that accepts it. Source: RFC 6455, section 4.2.1.
fn handshake_key(method: &Method, headers: &HeaderMap) -> Result<String, Refusal> {
    let has = |name, token: &str| {
        let values = headers.get_all(name).iter().filter_map(|value: &HeaderValue| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(token))
    };
    if method != Method::GET {
        return Err(Refusal(StatusCode::METHOD_NOT_ALLOWED, ApiError::field("method", "must be GET")));
    }
    if !has(header::CONNECTION, "upgrade") || !has(header::UPGRADE, "websocket") {
        return Err(upgrade_required("must be websocket, over HTTP/1.1"));
    }
    if !has(header::SEC_WEBSOCKET_VERSION, "13") {
        return Err(upgrade_required("only version 13 is spoken"));
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|key| key.len() == 24);
    let key = key.ok_or_else(|| upgrade_required("sec-websocket-key is missing or malformed"))?;
    Ok(derive_accept_key(key.as_bytes()))
}

fn offered_protocols(headers: &HeaderMap) -> Vec<&str> {
    let values = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|name| !name.is_empty()).collect()
}

/// The credential, as the header of a call would carry it; none where it is given twice.
fn credential(headers: &HeaderMap, offered: &[&str]) -> Option<HeaderMap> {
    let mut found: Vec<HeaderValue> = headers.get_all(header::AUTHORIZATION).iter().cloned().collect();
    for token in offered.iter().filter_map(|name| name.strip_prefix(TOKEN_PROTOCOL)) {
        found.push(HeaderValue::from_str(&format!("Bearer {token}")).ok()?);
    }
    let [only] = found.try_into().ok()?;
    let only: HeaderValue = only;
    Some(HeaderMap::from_iter([(header::AUTHORIZATION, only)]))
}

/// Reads a client's message.
///
/// Errors: FIELD_INVALID with the path to what does not fit, such as `filters[0].eventTypes`; empty where the whole does not.
fn parse_json<T: DeserializeOwned>(name: &str, text: &str) -> Result<T, ApiError> {
    let mut json = serde_json::Deserializer::from_str(text);
    let parsed = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        // A name that cannot be read is none: what holds it is where the message is broken.
        let field = match error.path().iter().next_back() {
            None | Some(serde_path_to_error::Segment::Unknown) => path.trim_end_matches('?').trim_end_matches('.'),
            Some(_) => &path,
        };
        (field.to_owned(), error.into_inner())
    });
    let parsed = parsed.and_then(|message| json.end().map(|()| message).map_err(|error| (String::new(), error)));
    parsed.map_err(|(field, error)| {
        ApiError::field(field, format!("the message must be one {name} in proto JSON, and is not: {error}"))
    })
}

/// A frame as text, and its cursor.
fn text_of(frame: &Bytes) -> Result<(String, String), ApiError> {
    let message = codec::decode(frame).map_err(|error| ApiError::internal("read back a watch frame", error))?;
    let text = serde_json::to_string(&message);
    let text = text.map_err(|error| ApiError::internal("write a watch message as JSON", error))?;
    Ok((text, message.cursor))
}

/// A failed change as text.
fn error_text(error: ApiError) -> String {
    told(error, "nothing of the stream was taken in time: its filters are as they were").0
}

/// A failure as text, and its code: fields by the names that the client has written, and words about what it has sent. `late` says what a
/// deadline means.
fn told(error: ApiError, late: &str) -> (String, Code) {
    let words = match &error {
        ApiError::Deadline => Some(late),
        ApiError::EtagMismatch { .. } => {
            Some("filterVersion is not that of the present filters: they have changed, or are just being changed")
        }
        _ => None,
    };
    let status = Status::from(error.in_json_names());
    let mut object = to_json(&status);
    if let Some(words) = words {
        object["message"] = words.into();
    }
    (serde_json::json!({ "error": object }).to_string(), status.code())
}
