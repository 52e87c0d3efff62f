//! A webhook receiver that only counts, so that it costs as little as a receiver can.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::cli::error::CliError;

/// How long nothing may arrive before the rest counts as lost.
const SILENCE: Duration = Duration::from_secs(10);

/// A listening receiver; dropping it closes every connection.
#[derive(Debug)]
pub struct Sink {
    /// Where it listens.
    pub address: SocketAddr,
    state: Arc<State>,
    _tasks: JoinSet<()>,
}

#[derive(Debug, Default)]
struct State {
    received: AtomicU64,
    /// Every so many requests are answered with 503; 0 for none.
    fails_every: AtomicU64,
    failed: AtomicU64,
    /// True where no request is answered.
    hangs: AtomicBool,
    hung: AtomicU64,
    /// When each event arrived, by its number, while that is wanted.
    receipts: Mutex<Option<Vec<(u64, Instant)>>>,
    first: OnceLock<(HeaderMap, Bytes)>,
}

impl Sink {
    /// Listens on loopback.
    pub async fn start() -> Result<Self, CliError> {
        let failed = |source| CliError::Listen { address: "loopback".to_owned(), source };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let state = Arc::<State>::default();
        let mut tasks = JoinSet::new();
        let shared = Arc::clone(&state);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&shared)));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, state, _tasks: tasks })
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Requests so far that were answered well.
    pub fn received(&self) -> u64 {
        self.state.received.load(Ordering::Relaxed)
    }

    /// Requests so far that were answered with 503.
    pub fn failed(&self) -> u64 {
        self.state.failed.load(Ordering::Relaxed)
    }

    /// Requests so far that are never answered.
    pub fn hung(&self) -> u64 {
        self.state.hung.load(Ordering::Relaxed)
    }

    /// Answers every so many requests with 503; 0 for none.
    pub fn fail_every(&self, requests: u64) {
        self.state.fails_every.store(requests, Ordering::Relaxed);
    }

    /// From now on answers nothing.
    pub fn hang(&self) {
        self.state.hangs.store(true, Ordering::Relaxed);
    }

    /// The first request that came.
    pub fn sample(&self) -> Option<(HeaderMap, Bytes)> {
        self.state.first.get().cloned()
    }

    /// From now on keeps when each event arrives.
    pub fn keep_receipts(&self) {
        *self.state.receipts.lock().unwrap_or_else(PoisonError::into_inner) = Some(Vec::new());
    }

    /// What was kept, and no more is.
    pub fn take_receipts(&self) -> Vec<(u64, Instant)> {
        self.state.receipts.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default()
    }

    /// Waits until so many have been received in all.
    ///
    /// *Errors*: [`CliError::Result`] where nothing more arrives.
    pub async fn wait_for(&self, wanted: u64) -> Result<(), CliError> {
        let (mut last, mut since) = (self.received(), Instant::now());
        loop {
            let received = self.received();
            if received >= wanted {
                return Ok(());
            }
            if received != last {
                (last, since) = (received, Instant::now());
            } else if since.elapsed() > SILENCE {
                return Err(CliError::Result(format!("{received} of {wanted} deliveries arrived, and no more")));
            }
            sleep(Duration::from_millis(2)).await;
        }
    }
}

async fn serve(stream: TcpStream, state: Arc<State>) {
    let _without = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let state = Arc::clone(&state);
        async move { Ok::<_, Infallible>(receive(&state, request).await) }
    });
    // A connection that breaks shows as a delivery that comes again.
    let _broken = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn receive(state: &State, request: Request<Incoming>) -> Response<Empty<Bytes>> {
    let (head, body) = request.into_parts();
    let mut response = Response::new(Empty::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let Ok(body) = body.collect().await else { return response };
    if state.hangs.load(Ordering::Relaxed) {
        state.hung.fetch_add(1, Ordering::Relaxed);
        return std::future::pending().await;
    }
    let body = body.to_bytes();
    let now = Instant::now();
    let every = state.fails_every.load(Ordering::Relaxed);
    let number = state.received.load(Ordering::Relaxed) + state.failed.load(Ordering::Relaxed);
    if every > 0 && number % every == every - 1 {
        state.failed.fetch_add(1, Ordering::Relaxed);
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        return response;
    }
    if let Some(receipts) = &mut *state.receipts.lock().unwrap_or_else(PoisonError::into_inner) {
        receipts.extend(seq(&body).map(|seq| (seq, now)));
    }
    if state.first.get().is_none() {
        let _another = state.first.set((head.headers, body));
    }
    state.received.fetch_add(1, Ordering::Relaxed);
    response
}

/// The number that the bench put into an event's data.
fn seq(body: &[u8]) -> Option<u64> {
    const NAME: &[u8] = b"\"seq\":";
    let at = body.windows(NAME.len()).position(|window| window == NAME)? + NAME.len();
    let digits: &[u8] = body[at..].split(|byte| !byte.is_ascii_digit()).next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_found_in_the_body() {
        assert_eq!(seq(br#"{"id":"e","data":{"seq":42,"x":1}}"#), Some(42));
        assert_eq!(seq(b"{}"), None);
    }
}
