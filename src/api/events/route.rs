//! The route of Watch in front of the generated server: the same path, the same layers, but bodies of ready-made frames.
//!
//! The generated server would encode each message for each stream again; here a thousand streams share the bytes.

use super::EventsDeps;
use super::watch::{self, WatchBody};
use crate::api::status::ApiError;
use crate::proto::public::{WatchRequest, WatchResponse};
use futures::FutureExt as _;
use futures::future::{BoxFuture, Either};
use http::{HeaderValue, Request, Response, header};
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
    let decoder = ProstCodec::<WatchResponse, WatchRequest>::default().decoder();
    let mut messages = Streaming::new_request(decoder, body, encoding, Some(REQUEST_BYTES_MAX));
    let message = messages.message().await.map_err(|status| match status.code() {
        // What does not decode is the caller's fault.
        Code::Internal => ApiError::field("request", "is not a well-formed message").into(),
        _ => status,
    })?;
    let message = message.ok_or_else(|| Status::from(ApiError::field("request", "is missing")))?;
    Ok(tonic::Request::from_parts(tonic::metadata::MetadataMap::from_headers(parts.headers), parts.extensions, message))
}
