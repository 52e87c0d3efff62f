//! What every call passes on its way in and out: deadline, credential, a fence around panics, and statuses that always carry
//! a reason.
//!
//! Order: the deadline first, because checking a credential takes time; the credential before the handler; nothing of the
//! request is read here.

use super::answers::Streaming;
use super::auth::{Certificates, Credentials};
use super::connections::Slot;
use super::deadline::{self, Deadline};
use super::in_flight::{Counted, Credential, Encoded, InFlight, Place};
use super::server::PeerAddress;
use super::services::Services;
use super::status::{ApiError, not_implemented};
use crate::clock;
use crate::proto::DESCRIPTORS;
use crate::telemetry::{Metrics, traces};
use crate::watch;
use futures::FutureExt as _;
use http::{HeaderMap, Request, Response};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prost::Message as _;
use prost_types::{FieldDescriptorProto, FileDescriptorProto};
use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Code, Status};
use tracing::Instrument as _;

const PUBLIC_API: &str = "/carillon.v1.";
const PUBLISH: &str = "/carillon.internal.v1.PublishService/";
const ADMIN: &str = "/carillon.internal.v1.AdminService/";
/// Streams of the standard services, which nobody needs to end gently.
const STANDARD_STREAMS: [&str; 2] =
    ["/grpc.health.v1.Health/Watch", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"];

/// What its descriptor says of an RPC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Method {
    streams: bool,
    /// Its request has a key by which a retry makes its change once.
    changes: bool,
}

/// Our own RPCs by path.
static METHODS: LazyLock<HashMap<String, Method>> = LazyLock::new(|| {
    let files = prost_types::FileDescriptorSet::decode(DESCRIPTORS).expect("the build wrote the descriptors");
    let streams = Method { streams: true, changes: false };
    let mut methods: HashMap<String, Method> = STANDARD_STREAMS.map(|path| (path.to_owned(), streams)).into();
    methods.insert("/grpc.health.v1.Health/Check".to_owned(), Method::default());
    for file in &files.file {
        let is_key = |field: &FieldDescriptorProto| ["request_id", "idempotency_key"].contains(&field.name());
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                let streams = method.client_streaming() || method.server_streaming();
                // A batch has the keys of its parts.
                let changes = fields_of(file, method.input_type())
                    .iter()
                    .any(|field| is_key(field) || fields_of(file, field.type_name()).iter().any(is_key));
                methods.insert(path, Method { streams, changes });
            }
        }
    }
    methods
});

/// The fields of a message of the same file; none of any other type.
fn fields_of<'a>(file: &'a FileDescriptorProto, message: &str) -> &'a [FieldDescriptorProto] {
    let name = message.rsplit('.').next();
    file.message_type.iter().find(|message| Some(message.name()) == name).map_or(&[], |message| &message.field)
}

/// Which port a call came in by, and so which credentials count.
#[derive(Debug, Clone)]
pub enum Door {
    /// API keys and tokens.
    Public(Box<Credentials>),
    /// Certificates.
    Internal(Certificates),
}

/// The way of every call of a port. Cheap to clone.
#[derive(Clone)]
pub struct Calls {
    inner: Arc<Inner>,
    services: Services,
}

struct Inner {
    door: Door,
    timeout_max: Duration,
    watch: watch::Config,
    message_bytes_max: usize,
    header_count_max: usize,
    in_flight: InFlight,
    draining: CancellationToken,
    streams_end: CancellationToken,
    metrics: CallMetrics,
}

/// Bounds and signals of calls.
#[derive(Debug, Clone)]
pub struct CallLimits {
    /// Longest deadline of a call that is not a stream, and longest time until a stream begins.
    pub timeout_max: Duration,
    /// How old watches become, and so the streams of the standard services.
    pub watch: watch::Config,
    /// Largest request message, for the text of refusals.
    pub message_bytes_max: usize,
    /// Headers of a request.
    pub header_count_max: usize,
    /// Calls of one credential at the same time.
    pub per_credential_max: u32,
    /// Bytes of all requests at the same time.
    pub requests_bytes_max: usize,
    /// Bytes of all answers at the same time.
    pub answers_bytes_max: usize,
    /// Cancelled when the server begins to drain.
    pub draining: CancellationToken,
    /// Cancelled when streams have to end.
    pub streams_end: CancellationToken,
}

/// Counts of calls, shared by the ports.
#[derive(Debug, Clone)]
pub struct CallMetrics {
    total: Family<CallLabels, Counter>,
    seconds: Family<MethodLabels, Histogram>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    method: &'static str,
    code: CodeName,
}

/// A status code by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct CodeName(Code);

impl EncodeLabelValue for CodeName {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        write!(encoder, "{:?}", self.0)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabels {
    method: &'static str,
}

impl CallMetrics {
    /// Adds the metrics to those that are served.
    pub fn new(metrics: &Metrics) -> Self {
        let buckets = || Histogram::new(exponential_buckets(0.000_5, 2.0, 16));
        let own = Self { total: Family::default(), seconds: Family::new_with_constructor(buckets) };
        metrics.register(|registry| {
            registry.register("calls", "Calls by method and status code", own.total.clone());
            registry.register(
                "call_duration_seconds",
                "Time to the answer of calls that are not streams",
                own.seconds.clone(),
            );
        });
        own
    }

    fn record(&self, path: &str, code: Code, unary: Option<Duration>) {
        let method = known_method(path);
        if let Some(elapsed) = unary {
            self.seconds.get_or_create(&MethodLabels { method }).observe(elapsed.as_secs_f64());
        }
        self.total.get_or_create(&CallLabels { method, code: CodeName(code) }).inc();
    }
}

impl Method {
    /// What a call gets that was not answered in time.
    fn overdue(self) -> ApiError {
        if self.changes { ApiError::DeadlineOfChange } else { ApiError::Deadline }
    }
}

/// A path as a label: methods that are not ours go by one name, so that a caller cannot make labels.
fn known_method(path: &str) -> &'static str {
    METHODS.get_key_value(path).map_or("other", |(path, _)| &path[1..])
}

impl Calls {
    /// Puts a port's services behind its door.
    pub fn new(door: Door, limits: CallLimits, metrics: CallMetrics, services: Services) -> Self {
        let CallLimits { timeout_max, watch, message_bytes_max, header_count_max, draining, streams_end, .. } = limits;
        let in_flight = InFlight::new(limits.per_credential_max, limits.requests_bytes_max, limits.answers_bytes_max);
        let inner = Inner {
            door,
            timeout_max,
            watch,
            message_bytes_max,
            header_count_max,
            in_flight,
            draining,
            streams_end,
            metrics,
        };
        Self { inner: Arc::new(inner), services }
    }

    /// The open calls of the port, for what leaves it for another protocol.
    pub fn in_flight(&self) -> InFlight {
        self.inner.in_flight.clone()
    }

    /// Answers one call.
    pub async fn call(self, request: Request<Body>) -> Response<Body> {
        let started = Instant::now();
        let inner = Arc::clone(&self.inner);
        let path = request.uri().path().to_owned();
        let method = METHODS.get(&path).copied().unwrap_or_default();
        let span = traces::call(known_method(&path), request.headers());
        let response = match self.answer(request, &path, method, started).instrument(span.clone()).await {
            Ok(response) => inner.with_reason(&path, response),
            Err(error) => Status::from(error).into_http(),
        };
        let code = status_of(response.headers()).unwrap_or(Code::Ok);
        traces::answered(&span, code as i32, matches!(code, Code::Internal | Code::Unavailable | Code::Unknown));
        inner.metrics.record(&path, code, (!method.streams).then(|| started.elapsed()));
        response
    }

    async fn answer(
        self,
        mut request: Request<Body>,
        path: &str,
        method: Method,
        started: Instant,
    ) -> Result<Response<Body>, ApiError> {
        if request.headers().len() > self.inner.header_count_max {
            let text = format!("a request may have {} of them", self.inner.header_count_max);
            return Err(ApiError::field("headers", text));
        }
        let asked = deadline::parse(request.headers());
        let at_most = |longest| Some(asked.unwrap_or(longest).min(longest));
        let timeout = if STANDARD_STREAMS.contains(&path) {
            at_most(self.inner.watch.stream_age(clock::jitter()))
        } else if method.streams {
            // Watches know their age themselves.
            deadline::of_stream(asked)
        } else {
            at_most(self.inner.timeout_max)
        };
        let until = timeout.map(|timeout| started + timeout);
        // A stream too: its request may never come.
        let begun_by = started + timeout.unwrap_or(Duration::MAX).min(self.inner.timeout_max);
        if let Some(until) = until {
            request.extensions_mut().insert(Deadline(until));
        }
        let inner = Arc::clone(&self.inner);
        // Boxed once, here: each layer around it would otherwise move all of it.
        let work = Box::pin(async move {
            let credential = self.inner.authenticate(path, &mut request).await?;
            // Taken out: nothing that outlives the connection may keep its place.
            let slot = request.extensions_mut().remove::<Arc<Slot>>();
            if let Some(slot) = slot.filter(|_| !matches!(credential, Credential::Anonymous(_))) {
                slot.prove(credential.sharer());
            }
            let place = Arc::new(self.inner.in_flight.admit(credential)?);
            if method.changes {
                place.may_answer()?;
            }
            // For handlers that gather much before they answer.
            request.extensions_mut().insert(Arc::clone(&place));
            let bytes_max = self.inner.message_bytes_max;
            let request = request.map(|body| Body::new(Counted::new(body, place.clone(), bytes_max)));
            let response = self.services.call(request).await;
            if method.streams {
                return Ok((response, place));
            }
            let (mut response, bytes) = Encoded::of(response).await;
            if method.changes {
                place.make_room_for_what_is_owed(bytes);
            } else {
                place.make_room_to_answer(bytes)?;
            }
            // The connection keeps it with the answer.
            response.extensions_mut().insert(Arc::clone(&place));
            Ok((response, place))
        });
        // A handler that panics has answered nobody; its locks and transactions live in tasks and guards of their own.
        let fenced = AssertUnwindSafe(work).catch_unwind();
        if begun_by <= Instant::now() {
            return Err(ApiError::Deadline);
        }
        let done = tokio::time::timeout_at(begun_by, fenced).await.map_err(|_| method.overdue())?;
        let (mut response, place) = done.unwrap_or_else(|_| Err(ApiError::internal("handler", "panicked")))?;
        if !method.streams {
            return Ok(response);
        }
        response.extensions_mut().insert(Streaming);
        Ok(response.map(|body| inner.ending(path, body, until, place)))
    }
}

impl Inner {
    /// Leaves in the request's extensions who calls, and answers whom the call counts for; what needs no credential passes.
    async fn authenticate(&self, path: &str, request: &mut Request<Body>) -> Result<Credential, ApiError> {
        let address = request.extensions().get::<PeerAddress>().map(|address| address.0.ip());
        match &self.door {
            Door::Public(credentials) if path.starts_with(PUBLIC_API) => {
                let caller = credentials.authenticate(request.headers(), address, &self.in_flight).await?;
                let credential = Credential::Subject(caller.subject.clone(), caller.tenant);
                request.extensions_mut().insert(caller);
                Ok(credential)
            }
            Door::Internal(certificates) if path.starts_with(PUBLISH) => {
                let publisher = certificates.publisher(request.extensions()).await?;
                let credential = Credential::Publisher(publisher.id, publisher.tenant);
                request.extensions_mut().insert(publisher);
                Ok(credential)
            }
            Door::Internal(certificates) if path.starts_with(ADMIN) => {
                let operator = certificates.operator(request.extensions())?;
                let credential = Credential::Operator(operator.subject.clone());
                request.extensions_mut().insert(operator);
                Ok(credential)
            }
            // Health, reflection, and what is not served here and so answers UNIMPLEMENTED.
            Door::Public(_) | Door::Internal(_) => Ok(Credential::Anonymous(address)),
        }
    }

    /// Streams end at their deadline, and when the server stops; those of the standard services at once.
    fn ending(&self, path: &str, body: Body, until: Option<Instant>, place: Arc<Place>) -> Body {
        let stop = if STANDARD_STREAMS.contains(&path) { self.draining.clone() } else { self.streams_end.clone() };
        // Streams without a deadline are the many, and hold this for as long as they live: no timer in it.
        let Some(until) = until else {
            return deadline::ending(body, async move {
                let _place = place;
                stop.cancelled_owned().await;
                ApiError::ServerDraining.into()
            });
        };
        deadline::ending(body, async move {
            // Given back with the stream, however it ends.
            let _place = place;
            tokio::select! {
                () = stop.cancelled_owned() => ApiError::ServerDraining.into(),
                () = tokio::time::sleep_until(until) => ApiError::Deadline.into(),
            }
        })
    }

    /// Gives the errors that the gRPC library makes by itself, before any handler runs, a reason like all others.
    fn with_reason(&self, path: &str, response: Response<Body>) -> Response<Body> {
        let headers = response.headers();
        let Some(code) = status_of(headers) else { return response };
        if headers.contains_key("grpc-status-details-bin")
            || !path.starts_with("/carillon.") && code != Code::Unimplemented
        {
            return response;
        }
        let message = headers.get("grpc-message").and_then(|text| text.to_str().ok()).unwrap_or_default();
        let error = match code {
            Code::OutOfRange | Code::ResourceExhausted => self.too_large(path),
            // The library calls a message that does not parse its own fault.
            Code::Internal | Code::Unknown => ApiError::field("", "the request is not a readable gRPC message"),
            Code::Unimplemented if message.contains("compressed") => not_implemented("this grpc-encoding"),
            Code::Unimplemented => ApiError::MethodNotFound { method: path.trim_start_matches('/').to_owned() },
            _ => return response,
        };
        let encodings = headers.get("grpc-accept-encoding").cloned();
        let mut answer: Response<Body> = Status::from(error).into_http();
        if let Some(encodings) = encodings {
            answer.headers_mut().insert("grpc-accept-encoding", encodings);
        }
        answer
    }

    fn too_large(&self, path: &str) -> ApiError {
        let limit_bytes = self.message_bytes_max;
        if path.starts_with(PUBLISH) {
            ApiError::EventTooLarge { field: String::new(), limit_bytes }
        } else {
            ApiError::field("", format!("the request is larger than {limit_bytes} bytes"))
        }
    }
}

/// The status of an answer that is an error from its first header on; none for one that begins well.
fn status_of(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|code| Code::from_bytes(code.as_bytes())).filter(|code| *code != Code::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rpc_of_the_proto_files_is_known_and_only_watch_streams() {
        let method = |path: &str| METHODS.get(path).copied();
        let (reads, changes) = (Some(Method::default()), Some(Method { changes: true, streams: false }));
        assert_eq!(method("/carillon.v1.EventService/Watch"), Some(Method { streams: true, changes: false }));
        for path in ["EventService/ListEvents", "EventService/ExplainMatch", "InvocationService/GetInvocation"] {
            assert_eq!(method(&format!("/carillon.v1.{path}")), reads, "{path}");
        }
        assert_eq!(method("/carillon.internal.v1.PublishService/WaitEvent"), reads);
        for path in ["PublishService/Publish", "PublishService/PublishBatch", "AdminService/CreateTenant"] {
            assert_eq!(method(&format!("/carillon.internal.v1.{path}")), changes, "{path}");
        }
        let of_ours = METHODS.iter().filter(|(path, _)| path.starts_with("/carillon."));
        assert_eq!(of_ours.filter(|(_, method)| method.streams).count(), 1);
    }

    #[test]
    fn only_a_call_that_changes_something_is_told_that_it_may_have_happened() {
        let text = |path: &str| METHODS[path].overdue().to_string();
        assert_eq!(text("/carillon.v1.EventService/ListEvents"), "the call's deadline passed");
        let change = text("/carillon.v1.EventService/Subscribe");
        assert!(change.contains("may have happened") && change.contains("request_id"), "{change}");
    }
}
