//! Watch: parse, open, and the body that carries ready-made frames.

use super::{EventsDeps, parse};
use crate::api::auth::{app_of, caller};
use crate::api::status::ApiError;
use crate::domain::access::Role;
use crate::domain::ids::WatchId;
use crate::proto::public as proto;
use crate::proto::public::watch_request::Start as ProtoStart;
use crate::watch::{Ending, Full, OnExpired, OpenError, Start, WatchRequest, WatchStream, codec};
use crate::wire::time::{parse_duration, parse_timestamp};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream as _, StreamExt as _};
use http::HeaderMap;
use http_body::Frame;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tonic::{Request, Status};

/// Bytes of a message that the transport is handed at once, so that a reader of a long one is seen to take it. A multiple of three:
/// gRPC-Web as text encodes each by itself, and none but a message's last may need padding.
const PIECE_BYTES_MAX: usize = 48 * 1024;
const BOOKMARK_INTERVAL: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_mins(1);
/// When it makes sense to try again where too many watches are open.
const QUOTA_RETRY: Duration = Duration::from_secs(5);

/// Answers Watch with decoded messages, for callers inside this process.
pub async fn handle(
    deps: &EventsDeps,
    request: Request<proto::WatchRequest>,
) -> Result<BoxStream<'static, Result<proto::WatchResponse, Status>>, ApiError> {
    let stream = open(deps, request).await?;
    let decode = |item: Result<Bytes, Ending>| match item {
        Ok(frame) => codec::decode(&frame).map_err(|error| ApiError::internal("read back a watch frame", error).into()),
        Err(ending) => Err(ending_error(&ending).into()),
    };
    Ok(stream.map(decode).boxed())
}

/// Parses the request and opens the watch.
pub(super) async fn open(deps: &EventsDeps, request: Request<proto::WatchRequest>) -> Result<WatchStream, ApiError> {
    let caller = caller(&request)?.require(Role::Viewer)?.clone();
    let request = request.into_inner();
    let field = |error: crate::wire::FieldError| ApiError::field(error.field, error.description);
    let start = match request.start {
        None | Some(ProtoStart::Now(true)) => Start::Now,
        Some(ProtoStart::Earliest(true)) => Start::Earliest,
        Some(ProtoStart::Now(false)) => return Err(ApiError::field("now", "must be true")),
        Some(ProtoStart::Earliest(false)) => return Err(ApiError::field("earliest", "must be true")),
        Some(ProtoStart::Cursor(text)) => Start::Cursor(text),
        Some(ProtoStart::Watch(_)) if request.resume_cursor.is_empty() => {
            return Err(ApiError::field("resume_cursor", "is required with watch"));
        }
        Some(ProtoStart::Watch(watch)) => Start::Watch {
            watch: WatchId::parse(&watch).map_err(|error| ApiError::field("watch", error.to_string()))?,
            cursor: request.resume_cursor.clone(),
        },
        Some(ProtoStart::StartTime(time)) => {
            let time = parse_timestamp("start_time", &time).map_err(field)?;
            Start::Time(parse::start_time(time, deps.store.now())?)
        }
    };
    let on_expired = match proto::OnExpired::try_from(request.on_expired) {
        Ok(proto::OnExpired::Unspecified | proto::OnExpired::Fail) => OnExpired::Fail,
        Ok(proto::OnExpired::FromEarliest) => OnExpired::FromEarliest,
        Err(_) => return Err(ApiError::field("on_expired", "is not a known value")),
    };
    let bookmark_interval = match request.bookmark_interval {
        None => None,
        Some(interval) => {
            let interval = parse_duration("bookmark_interval", &interval).map_err(field)?;
            if !BOOKMARK_INTERVAL.contains(&interval) {
                return Err(ApiError::field("bookmark_interval", "must be 100 ms to 60 s"));
            }
            Some(interval)
        }
    };
    let view = parse::view(request.view)?;
    if !matches!(start, Start::Watch { .. }) && !request.resume_cursor.is_empty() {
        return Err(ApiError::field(
            "resume_cursor",
            "goes with watch only; without it the place to start at is cursor",
        ));
    }
    if matches!(start, Start::Watch { .. }) && !request.filters.is_empty() {
        return Err(ApiError::field("filters", "must be empty with watch: those of the earlier watch apply"));
    }
    let filters = parse::filters(caller.tenant, "filters", request.filters).await?;
    let app = app_of(&deps.store, &caller).await?.map(Arc::from);
    let cursor_field = if matches!(start, Start::Watch { .. }) { "resume_cursor" } else { "cursor" };
    let request = WatchRequest { caller, app, filters, start, on_expired, bookmark_interval, view };
    deps.watches.open(request).await.map_err(|error| open_error(error, cursor_field))
}

fn open_error(error: OpenError, cursor_field: &str) -> ApiError {
    match error {
        OpenError::Draining => ApiError::ServerDraining,
        OpenError::TooMany { setting, limit } => {
            ApiError::QuotaExceeded { quota: setting.to_owned(), limit: limit as u64, retry_delay: Some(QUOTA_RETRY) }
        }
        OpenError::Full(full) => remembered_error(full),
        OpenError::WatchNotFound(watch) => ApiError::WatchNotFound { watch: watch.to_string() },
        OpenError::Place(error) => parse::place_error(error, cursor_field, |_| String::new()),
        OpenError::Expired { earliest_cursor } => ApiError::CursorExpired { earliest: earliest_cursor },
        OpenError::Store(error) => error.into(),
    }
}

/// That no more filters can be remembered, as an error.
pub(super) fn remembered_error(Full { limit, retry }: Full) -> ApiError {
    ApiError::QuotaExceeded { quota: "watch.remembered_bytes_max".to_owned(), limit, retry_delay: Some(retry) }
}

/// Why a stream has ended, for the status that it ends with.
pub(super) fn ending_error(ending: &Ending) -> ApiError {
    match ending {
        Ending::Draining => ApiError::ServerDraining,
        Ending::Age { resume_cursor } => ApiError::StreamAge { resume_cursor: resume_cursor.clone() },
        Ending::SlowConsumer { resume_cursor } => ApiError::SlowConsumer { resume_cursor: resume_cursor.clone() },
        Ending::CredentialInvalid => ApiError::CredentialInvalid,
        Ending::Expired { earliest_cursor } => ApiError::CursorExpired { earliest: earliest_cursor.clone() },
        // The stream's own cursor: whoever resumes sends it as that.
        Ending::Foreign => ApiError::CursorForeign("cursor".to_owned()),
        Ending::Store(error) => error.clone().into(),
    }
}

/// The same by its name, for the last message.
pub fn ending_reason(ending: &Ending) -> &'static str {
    ending_error(ending).reason_name()
}

/// The response body of a watch: frames as they are, a piece at a time, then the reason of the end as trailers.
pub(super) struct WatchBody {
    stream: WatchStream,
    /// What is left of a frame.
    rest: Bytes,
    ended: bool,
}

impl WatchBody {
    pub(super) fn new(stream: WatchStream) -> Self {
        Self { stream, rest: Bytes::new(), ended: false }
    }

    fn piece(&mut self) -> Frame<Bytes> {
        let bytes = self.rest.len().min(PIECE_BYTES_MAX);
        Frame::data(self.rest.split_to(bytes))
    }
}

impl http_body::Body for WatchBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        if !this.rest.is_empty() {
            this.stream.note_taken();
            return Poll::Ready(Some(Ok(this.piece())));
        }
        let status = match Pin::new(&mut this.stream).poll_next(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Ok(frame))) => {
                this.rest = frame;
                return Poll::Ready(Some(Ok(this.piece())));
            }
            Poll::Ready(Some(Err(ending))) => Status::from(ending_error(&ending)),
            Poll::Ready(None) => Status::ok(""),
        };
        this.ended = true;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}
