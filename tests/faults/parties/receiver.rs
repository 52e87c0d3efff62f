//! The receiver of every webhook of a run: verifies signatures, writes down what arrives, and answers as its path says.
//!
//! `/turn` answers as the present fault wants it; every other path has its own manner for the whole run. What those that decide
//! on a PRE event answer depends on the event's number alone, so that whoever asks again gets the same answer.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use standardwebhooks::Webhook;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Scene, gate, rest};
use crate::record::{Answer, Log, Record};

/// The secret of every subscription.
pub const SECRET: &str = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";
/// How long `/slow` takes: attempts are always under way there when something is killed.
const SLOW: Duration = Duration::from_millis(400);
const DRIP_EVERY: Duration = Duration::from_millis(200);

struct State {
    scene: Scene,
    log: Log,
    turn: Mutex<Answer>,
    failed_once: Mutex<HashSet<String>>,
    arrived: Mutex<HashMap<String, u64>>,
    /// Invocations whose sender may take them for done, and whether they came again.
    accepted: Mutex<HashMap<String, bool>>,
}

/// The server; ends when it is dropped.
pub struct Receiver {
    address: SocketAddr,
    state: Arc<State>,
    _stop: DropGuard,
}

impl Receiver {
    /// Starts it.
    pub async fn start(scene: &Scene, log: Log) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            scene: scene.clone(),
            log,
            turn: Mutex::new(Answer::Ok),
            failed_once: Mutex::default(),
            arrived: Mutex::default(),
            accepted: Mutex::default(),
        });
        let stop = CancellationToken::new();
        let (shared, until) = (state.clone(), stop.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                tokio::spawn(until.clone().run_until_cancelled_owned(serve(stream, shared.clone())));
            }
        }));
        Ok(Self { address, state, _stop: stop.drop_guard() })
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// How `/turn` answers from now on.
    pub fn turn(&self, answer: Answer) {
        *self.state.turn.lock().expect("nobody panics") = answer;
    }

    /// How many deliveries a path has got so far.
    pub fn arrived(&self, path: &str) -> u64 {
        self.state.arrived.lock().expect("nobody panics").get(path).copied().unwrap_or_default()
    }

    /// The invocations that came again although their sender may have taken an earlier answer for a success.
    pub fn repeated(&self) -> Vec<String> {
        let accepted = self.state.accepted.lock().expect("nobody panics");
        accepted.iter().filter(|(_, again)| **again).map(|(invocation, _)| invocation.clone()).collect()
    }
}

async fn serve(stream: TcpStream, state: Arc<State>) {
    let service = service_fn(move |request| answer(request, state.clone()));
    // A sender that is killed in the middle is what a run is about.
    let _ended = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// Ends a connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the connection is reset on purpose")]
struct ResetOnPurpose;

type Body = BoxBody<Bytes, Infallible>;

async fn answer(request: Request<Incoming>, state: Arc<State>) -> Result<Response<Body>, ResetOnPurpose> {
    let path = request.uri().path().to_owned();
    let headers = request.headers().clone();
    let body = request.into_body().collect().await.map_err(|_| ResetOnPurpose)?.to_bytes();
    let invocation = headers.get("webhook-id").and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    let event: Value = serde_json::from_slice(&body).unwrap_or_default();
    let n = event["data"]["n"].as_i64().unwrap_or_default();
    let answer = state.manner(&path, &invocation, n);
    state.log.write(&Record::Received {
        at: state.log.now(),
        path: path.clone(),
        invocation: invocation.clone(),
        event_id: event["id"].as_str().unwrap_or_default().to_owned(),
        event_type: event["type"].as_str().unwrap_or_default().to_owned(),
        verified: verifies(&headers, &body),
        answer,
    });
    state.note(&invocation, answer);
    *state.arrived.lock().expect("nobody panics").entry(path.clone()).or_default() += 1;
    if path == "/slow" {
        rest(SLOW).await;
    }
    if answer == Answer::Ok {
        state.scene.counts.delivered.fetch_add(1, Ordering::SeqCst);
        if path == "/plain" {
            state.scene.counts.delivered_n.fetch_max(n, Ordering::SeqCst);
        }
    }
    match answer {
        Answer::Ok => Ok(response(StatusCode::OK, Empty::new().boxed())),
        Answer::Reject => Ok(response(StatusCode::CONFLICT, Empty::new().boxed())),
        Answer::Error => Ok(response(StatusCode::INTERNAL_SERVER_ERROR, Empty::new().boxed())),
        Answer::Hang => std::future::pending().await,
        Answer::Reset => Err(ResetOnPurpose),
        Answer::Drip => {
            let drops = futures::stream::unfold(tokio::time::interval(DRIP_EVERY), |mut ticks| async {
                ticks.tick().await;
                Some((Ok(Frame::data(Bytes::from_static(b"."))), ticks))
            });
            Ok(response(StatusCode::OK, StreamBody::new(Box::pin(drops)).boxed()))
        }
        Answer::Flood => {
            let water = Bytes::from(vec![b'~'; 16 * 1024]);
            let frames = futures::stream::repeat_with(move || Ok(Frame::data(water.clone())));
            Ok(response(StatusCode::OK, StreamBody::new(frames).boxed()))
        }
    }
}

impl State {
    fn note(&self, invocation: &str, answer: Answer) {
        let mut accepted = self.accepted.lock().expect("nobody panics");
        if let Some(again) = accepted.get_mut(invocation) {
            *again = true;
        } else if answer.may_succeed() {
            accepted.insert(invocation.to_owned(), false);
        }
    }

    fn manner(&self, path: &str, invocation: &str, n: i64) -> Answer {
        match path {
            gate::STRICT if n % 6 == 1 => Answer::Reject,
            // Dies over some events, and stumbles over others.
            gate::MORTAL if n % 6 == 3 => Answer::Reset,
            gate::MORTAL if n % 6 == 4 => {
                let first = self.failed_once.lock().expect("nobody panics").insert(invocation.to_owned());
                if first { Answer::Error } else { Answer::Ok }
            }
            gate::FRAIL if n % 6 == 0 => Answer::Reset,
            "/turn" => *self.turn.lock().expect("nobody panics"),
            "/poison" => Answer::Error,
            // Every fifth invocation fails at first.
            "/flaky" | "/ordered" => {
                let chosen = invocation.bytes().map(usize::from).sum::<usize>() % 5 == 0;
                let first = self.failed_once.lock().expect("nobody panics").insert(invocation.to_owned());
                if chosen && first { Answer::Error } else { Answer::Ok }
            }
            _ => Answer::Ok,
        }
    }
}

fn verifies(headers: &HeaderMap, body: &[u8]) -> bool {
    Webhook::new(SECRET).is_ok_and(|webhook| webhook.verify(body, headers).is_ok())
}

fn response(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}
