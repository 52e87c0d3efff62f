//! Browsers on the public port: gRPC-Web and cross-origin rules around the same calls, and the WebSocket beside them.

use super::call::Calls;
use super::events::websocket::{self, WatchSocket};
use super::server::Routes;
use futures::FutureExt as _;
use futures::future::Either;
use http::{HeaderName, HeaderValue, Method, Request, header};
use std::convert::Infallible;
use std::time::Duration;
use tonic::body::Body;
use tonic_web::GrpcWebLayer;
use tower::util::BoxCloneSyncService;
use tower::{Layer as _, Service as _, service_fn};
use tower_http::cors::{AllowOrigin, CorsLayer};

/// How long a browser may remember the answer to its preflight.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_hours(1);

/// The public port: gRPC, gRPC-Web, the WebSocket form of Watch, and CORS.
pub fn public(calls: Calls, socket: WatchSocket, origins: &[String]) -> Routes {
    let service = service_fn(move |request| {
        let calls = calls.clone();
        async move { Ok::<_, Infallible>(calls.call(request).await) }
    });
    let mut grpc = GrpcWebLayer::new().layer(service);
    // Beside gRPC-Web, which refuses what is neither its own nor HTTP/2.
    let routed = service_fn(move |request: Request<Body>| {
        if request.uri().path() == websocket::PATH {
            let socket = socket.clone();
            Either::Left(async move { Ok::<_, Infallible>(socket.answer(request).await) }.boxed())
        } else {
            Either::Right(grpc.call(request))
        }
    });
    BoxCloneSyncService::new(cors(origins).layer(routed))
}

/// The internal port: gRPC alone.
pub fn internal(calls: Calls) -> Routes {
    BoxCloneSyncService::new(service_fn(move |request| {
        let calls = calls.clone();
        async move { Ok::<_, Infallible>(calls.call(request).await) }
    }))
}

fn cors(origins: &[String]) -> CorsLayer {
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    let name = HeaderName::from_static;
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::POST])
        .allow_headers([
            header::CONTENT_TYPE,
            header::AUTHORIZATION,
            name("x-grpc-web"),
            name("x-user-agent"),
            name("grpc-timeout"),
        ])
        .expose_headers([name("grpc-status"), name("grpc-message"), name("grpc-status-details-bin")])
        .max_age(PREFLIGHT_MAX_AGE)
}
