//! An HTTP server on loopback that plays a webhook receiver: it records every request, verifies its signature with the
//! `standardwebhooks` crate, and answers as the test says, per path.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use standardwebhooks::Webhook;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::wait::eventually;

/// How a request is answered.
#[derive(Clone, Debug)]
pub enum Answer {
    /// A status and nothing else.
    Status(u16),
    /// A status, headers and a body.
    Full(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// 200, once the gate has a permit for it.
    Gated(Arc<Semaphore>),
    /// A status, once the gate has a permit for it.
    GatedStatus(Arc<Semaphore>, u16),
    /// No answer for as long as the receiver lives.
    Hang,
    /// No answer: the connection ends.
    Reset,
}

/// One recorded request.
#[derive(Clone, Debug)]
pub struct Received {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Whether a signature of a trusted secret was on it; none where the path trusts no secret.
    pub verified: Option<bool>,
    /// When it had arrived whole.
    pub at: Instant,
}

impl Received {
    /// A header's text.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }
}

#[derive(Default)]
struct State {
    answers: HashMap<String, VecDeque<Answer>>,
    secrets: HashMap<String, Vec<String>>,
    received: Vec<Received>,
}

/// The server; ends when it is dropped.
pub struct Receiver {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    _stop: DropGuard,
}

impl Receiver {
    /// Starts a receiver that answers 200 to everything.
    pub async fn start() -> Self {
        Self::start_at("127.0.0.1").await
    }

    /// Starts one at an address of this machine.
    pub async fn start_at(host: &str) -> Self {
        let listener = TcpListener::bind((host, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let state = Arc::new(Mutex::new(State::default()));
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(accept(listener, state.clone(), stop.clone())));
        Self { address, state, _stop: stop.drop_guard() }
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The answers of a path, in order; the last one repeats.
    pub fn answers(&self, path: &str, answers: impl IntoIterator<Item = Answer>) {
        self.lock().answers.insert(path.to_owned(), answers.into_iter().collect());
    }

    /// Accepts signatures of a secret at a path, besides those trusted already.
    pub fn trust(&self, path: &str, secret: &str) {
        self.lock().secrets.entry(path.to_owned()).or_default().push(secret.to_owned());
    }

    /// Trusts no secret at a path any longer.
    pub fn distrust(&self, path: &str) {
        self.lock().secrets.remove(path);
    }

    /// What a path has received so far.
    pub fn received(&self, path: &str) -> Vec<Received> {
        self.lock().received.iter().filter(|received| received.path == path).cloned().collect()
    }

    /// Waits until a path has received at least so many requests.
    pub async fn receives(&self, path: &str, count: usize) -> Vec<Received> {
        eventually(&format!("{path} receives {count} requests"), || async {
            let received = self.received(path);
            if received.len() >= count { Ok(received) } else { Err(received.len()) }
        })
        .await
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds the lock")
    }
}

async fn accept(listener: TcpListener, state: Arc<Mutex<State>>, stop: CancellationToken) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        tokio::spawn(stop.clone().run_until_cancelled_owned(serve(stream, state.clone())));
    }
}

async fn serve(stream: TcpStream, state: Arc<Mutex<State>>) {
    let service = service_fn(move |request| answer(request, state.clone()));
    // A client that goes away in the middle is a case under test, not a failure of the receiver.
    let _ended = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// Ends a connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the connection is reset on purpose")]
struct ResetOnPurpose;

async fn answer(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, ResetOnPurpose> {
    let path = request.uri().path().to_owned();
    let headers = request.headers().clone();
    let body = request.into_body().collect().await.map_err(|_| ResetOnPurpose)?.to_bytes();
    let at = Instant::now();
    let answer = {
        let mut state = state.lock().expect("no test panics while it holds the lock");
        let verified = state.secrets.get(&path).map(|secrets| secrets.iter().any(|s| verifies(s, &headers, &body)));
        state.received.push(Received { path: path.clone(), headers, body, verified, at });
        let answers = state.answers.entry(path).or_default();
        if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() }
    };
    match answer.unwrap_or(Answer::Status(200)) {
        Answer::Status(status) => Ok(response(status, Vec::new(), Vec::new())),
        Answer::Full(status, headers, body) => Ok(response(status, headers, body)),
        Answer::Gated(gate) => gated(&gate, 200).await,
        Answer::GatedStatus(gate, status) => gated(&gate, status).await,
        Answer::Hang => std::future::pending().await,
        Answer::Reset => Err(ResetOnPurpose),
    }
}

async fn gated(gate: &Semaphore, status: u16) -> Result<Response<BoxBody<Bytes, Infallible>>, ResetOnPurpose> {
    gate.acquire().await.map_err(|_| ResetOnPurpose)?.forget();
    Ok(response(status, Vec::new(), Vec::new()))
}

fn verifies(secret: &str, headers: &HeaderMap, body: &[u8]) -> bool {
    Webhook::new(secret).is_ok_and(|webhook| webhook.verify(body, headers).is_ok())
}

fn response(status: u16, headers: Vec<(&'static str, String)>, body: Vec<u8>) -> Response<BoxBody<Bytes, Infallible>> {
    let mut response = Response::new(Full::new(Bytes::from(body)).boxed());
    *response.status_mut() = StatusCode::from_u16(status).expect("a status from the test");
    for (name, value) in headers {
        response.headers_mut().insert(name, value.parse().expect("a header from the test"));
    }
    response
}
