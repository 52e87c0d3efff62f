//! The route of Watch in front of the generated server: the same path, the same layers, but bodies of ready-made frames.
//!
//! The generated server would encode each message for each stream again; here a thousand streams share the bytes.

use super::EventsDeps;
use super::watch::{self, WatchBody};
use crate::api::status::ApiError;
use crate::proto::public::{WatchRequest, WatchResponse};
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Either};
use http::{HeaderValue, Request, Response, header};
use http_body_util::BodyExt as _;
use prost::Message as _;
use std::convert::Infallible;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::codec::{Codec as _, CompressionEncoding, Streaming};
use tonic::server::NamedService;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;
use tower::Service;

/// The path of the call.
const PATH: &str = "/carillon.v1.EventService/Watch";
/// Bytes of a WatchRequest at most: 16 filters at their bounds are far smaller.
const REQUEST_BYTES_MAX: usize = 1024 * 1024;

/// Answers Watch itself and passes everything else on.
#[derive(Clone)]
pub struct WatchRoute<S> {
    inner: S,
    deps: EventsDeps,
}

impl<S> WatchRoute<S> {
    /// Stands in front of the generated server.
    pub fn new(inner: S, deps: EventsDeps) -> Self {
        Self { inner, deps }
    }
}

impl<S: NamedService> NamedService for WatchRoute<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for WatchRoute<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<BoxFuture<'static, Result<Response<Body>, Infallible>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if request.uri().path() != PATH {
            return Either::Right(self.inner.call(request));
        }
        let deps = self.deps.clone();
        Either::Left(
            async move {
                let response = answer(&deps, request).await;
                Ok(response.unwrap_or_else(Status::into_http))
            }
            .boxed(),
        )
    }
}

async fn answer(deps: &EventsDeps, request: Request<Body>) -> Result<Response<Body>, Status> {
    let stream = watch::open(deps, read(request).await?).await?;
    let mut response = Response::new(Body::new(WatchBody::new(stream)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    Ok(response)
}

/// Reads the one message of the call, with the metadata and extensions that the layers left.
async fn read(request: Request<Body>) -> Result<tonic::Request<WatchRequest>, Status> {
    let (parts, body) = request.into_parts();
    let encoding = match parts.headers.get("grpc-encoding").map(HeaderValue::as_bytes) {
        None | Some(b"identity") => None,
        Some(b"gzip") => Some(CompressionEncoding::Gzip),
        Some(_) => {
            let mut status = Status::unimplemented("the message's compression is not supported");
            status
                .metadata_mut()
                .insert("grpc-accept-encoding", tonic::metadata::MetadataValue::from_static("identity,gzip"));
            return Err(status);
        }
    };
    let message = match encoding {
        None => read_plain(body).await?,
        Some(_) => read_compressed(body, encoding).await?,
    };
    let message = message.ok_or_else(|| Status::from(ApiError::field("request", "is missing")))?;
    Ok(tonic::Request::from_parts(tonic::metadata::MetadataMap::from_headers(parts.headers), parts.extensions, message))
}

fn malformed() -> Status {
    ApiError::field("request", "is not a well-formed message").into()
}

/// Reads an uncompressed message from the body itself: the general decoder takes a buffer of 8 KiB for each call, which ten thousand
/// streams that are opened together leave behind as holes between them.
async fn read_plain(mut body: Body) -> Result<Option<WatchRequest>, Status> {
    let mut bytes = Bytes::new();
    loop {
        if let Some((&[flag, a, b, c, d], rest)) = bytes.split_first_chunk() {
            let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
            if flag != 0 {
                return Err(malformed());
            }
            if length > REQUEST_BYTES_MAX {
                return Err(Status::out_of_range("the message is too large"));
            }
            if let Some(message) = rest.get(..length) {
                return WatchRequest::decode(message).map(Some).map_err(|_| malformed());
            }
        }
        let Some(frame) = body.frame().await else {
            return if bytes.is_empty() { Ok(None) } else { Err(malformed()) };
        };
        let Ok(data) = frame?.into_data() else { continue };
        // Nearly always the message comes whole.
        bytes = if bytes.is_empty() { data } else { [bytes, data].concat().into() };
    }
}

async fn read_compressed(body: Body, encoding: Option<CompressionEncoding>) -> Result<Option<WatchRequest>, Status> {
    let decoder = ProstCodec::<WatchResponse, WatchRequest>::default().decoder();
    let mut messages = Streaming::new_request(decoder, body, encoding, Some(REQUEST_BYTES_MAX));
    messages.message().await.map_err(|status| match status.code() {
        // What does not decode is the caller's fault.
        Code::Internal => malformed(),
        _ => status,
    })
}
