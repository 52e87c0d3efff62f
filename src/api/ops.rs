//! The ops port: `/livez`, `/readyz` and `/metrics` over plain HTTP, for probes and scrapers.

use super::auth::Issuers;
use super::server::Routes;
use super::tls::TlsWatch;
use crate::clock;
use crate::store::Store;
use crate::telemetry::Metrics;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use chrono::{DateTime, TimeDelta, Utc};
use http::Request;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::util::BoxCloneSyncService;
use tower::{ServiceExt as _, service_fn};

/// However often it is asked, readiness looks at the database no more often than this.
const PING_INTERVAL: TimeDelta = TimeDelta::seconds(5);
/// A database that takes longer to answer is not reachable.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// When the database was asked, and whether it answered.
type Ping = (DateTime<Utc>, bool);

#[derive(Clone)]
struct Ops {
    store: Store,
    metrics: Metrics,
    tls: TlsWatch,
    issuers: Issuers,
    draining: CancellationToken,
    /// The last time; none before the first.
    last_ping: Arc<Mutex<Option<Ping>>>,
}

/// The ops port's answers.
pub fn routes(store: Store, metrics: Metrics, tls: TlsWatch, issuers: Issuers, draining: CancellationToken) -> Routes {
    let ops = Ops { store, metrics, tls, issuers, draining, last_ping: Arc::default() };
    let router = Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_text))
        .with_state(ops);
    BoxCloneSyncService::new(service_fn(move |request: Request<Body>| {
        let router = router.clone();
        async move { Ok::<_, Infallible>(router.oneshot(request).await?.map(Body::new)) }
    }))
}

async fn readyz(State(ops): State<Ops>) -> (StatusCode, String) {
    if ops.draining.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned());
    }
    // The lock is held across the question on purpose: probes that come meanwhile wait for its answer instead of asking too.
    let mut last = ops.last_ping.lock().await;
    let now = clock::now();
    let reachable = match *last {
        Some((at, answer)) if now - at < PING_INTERVAL && at <= now => answer,
        _ => {
            let answer = ops.store.is_reachable(PING_TIMEOUT).await;
            *last = Some((now, answer));
            answer
        }
    };
    if reachable {
        // Notices are for people: former certificates and keys still serve.
        let notices = ops.tls.notices().into_iter().chain(ops.issuers.notices());
        let lines = std::iter::once("ok".to_owned()).chain(notices);
        (StatusCode::OK, lines.map(|line| line + "\n").collect())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "database unreachable\n".to_owned())
    }
}

async fn metrics_text(State(ops): State<Ops>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], ops.metrics.text())
}
