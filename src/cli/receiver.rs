//! A webhook receiver for this machine: verifies signatures and shows what arrives.
//!
//! `carillon receiver` prints deliveries, and `carillon demo` counts them. Verification follows the Standard Webhooks
//! specification 1.0.0 by itself, not with the code that signs: a fault there must not vouch for itself here.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::error::CliError;
use super::output::{Output, excerpt, note};
use super::plain::plain;
use super::values::read_verification_key;
use crate::clock;
use crate::domain::webhook::VerificationKey;

const EXAMPLES: &str = "Examples:
  carillon receiver --secret whsec_...
  carillon receiver --listen 127.0.0.1:9001 --secret @.carillon/webhook-secret --json | jq .body
  carillon receiver --status 503";

/// How far a delivery's time may be from now, either way.
const TOLERANCE: Duration = Duration::from_mins(5);

/// The largest body that is taken.
const BODY_BYTES_MAX: usize = 16 << 20;

/// How long a connection may take to send a request's head.
const HEAD_LIMIT: Duration = Duration::from_mins(1);

/// Deliveries that wait to be looked at; beyond that, senders wait.
const QUEUE: usize = 1024;

/// Run a local webhook receiver that verifies signatures and prints what arrives
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct ReceiverArgs {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:9000", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Signing secret `whsec_...`, public key `whpk_...`, or @file; may be given several times [default: signatures are not checked]
    #[arg(long, env = "CARILLON_SIGNING_SECRET", hide_env_values = true, value_name = "SECRET")]
    secret: Vec<String>,
    /// HTTP status to answer verified deliveries with, to see what the server does then
    #[arg(long, default_value_t = 204, value_parser = clap::value_parser!(u16).range(200..=599), value_name = "STATUS")]
    status: u16,
    /// End after this many deliveries
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

/// Receives until the count is reached or the process is told to end.
pub async fn run(args: ReceiverArgs, output: Output) -> Result<(), CliError> {
    let others = args.secret.iter().map(|text| read_verification_key(text)).collect::<Result<_, _>>()?;
    let keys = Keys { by_path: HashMap::new(), others };
    let unchecked = keys.others.is_empty();
    let status = StatusCode::from_u16(args.status).map_err(|_| CliError::Usage("no such HTTP status".to_owned()))?;
    let (receiver, mut deliveries) = Receiver::start(args.listen, keys, status).await?;
    note(&format!("receiving on http://{}/; Ctrl-C ends it", receiver.address));
    if unchecked {
        note("signatures are not checked: give the subscription's secret with --secret");
    }
    let mut left = args.count.unwrap_or(u64::MAX);
    let shown = loop {
        if left == 0 {
            break Ok(());
        }
        let delivery = tokio::select! {
            delivery = deliveries.recv() => delivery,
            _ = tokio::signal::ctrl_c() => break Ok(()),
        };
        let Some(delivery) = delivery else { break Ok(()) };
        if let Err(error) = show(output, &delivery) {
            break Err(error);
        }
        left -= 1;
    };
    drop(deliveries);
    receiver.stop().await;
    shown
}

/// What deliveries are verified with.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    /// By the path that is called.
    pub by_path: HashMap<String, VerificationKey>,
    /// For every other path, any of these; none means that signatures are not checked there.
    pub others: Vec<VerificationKey>,
}

/// One request that arrived.
#[derive(Debug)]
pub struct Delivery {
    /// The path and query that was called.
    pub path: String,
    /// The request's headers.
    pub headers: HeaderMap,
    /// The request's body.
    pub body: Bytes,
    /// Whether the signature is good; none where it was not checked.
    pub signature: Option<Result<(), SignatureError>>,
    /// When the body had arrived.
    pub received: Instant,
}

/// Why a signature is not good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// A header is missing or not text.
    #[error("the header {0} is missing")]
    Header(&'static str),
    /// The time is not a number of seconds.
    #[error("the time is not a number")]
    Timestamp,
    /// The time is too far from now.
    #[error("the time is more than five minutes away")]
    TooOld,
    /// No signature fits any secret.
    #[error("no signature fits")]
    Mismatch,
}

/// A listening receiver.
#[derive(Debug)]
pub struct Receiver {
    /// Where it listens.
    pub address: SocketAddr,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Receiver {
    /// Listens; verified deliveries are answered with `status`, others with 401.
    ///
    /// *Shape*: deliveries come through the channel in the order of their arrival, also refused ones.
    /// *Errors*: [`CliError::Listen`].
    pub async fn start(
        listen: SocketAddr,
        keys: Keys,
        status: StatusCode,
    ) -> Result<(Self, mpsc::Receiver<Delivery>), CliError> {
        let failed = |source| CliError::Listen { address: listen.to_string(), source };
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (sender, deliveries) = mpsc::channel(QUEUE);
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let door = Arc::new(Door { keys, status, sender });
        tasks.spawn(accept(listener, door, stop.clone(), tasks.clone()));
        Ok((Self { address, stop, tasks }, deliveries))
    }

    /// The URL of a path of this receiver.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Ends every connection and waits until all is closed.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// What every connection needs.
struct Door {
    keys: Keys,
    status: StatusCode,
    sender: mpsc::Sender<Delivery>,
}

async fn accept(listener: TcpListener, door: Arc<Door>, stop: CancellationToken, tasks: TaskTracker) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        // An error here belongs to one connection that is gone already, or passes when others close.
        let Ok((stream, _peer)) = accepted else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let (door, stop) = (Arc::clone(&door), stop.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = serve(stream, door) => {}
                () = stop.cancelled() => {}
            }
        });
    }
}

async fn serve(stream: TcpStream, door: Arc<Door>) {
    // Only latency depends on it.
    let _without = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let door = Arc::clone(&door);
        async move { Ok::<_, Infallible>(receive(&door, request).await) }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT);
    // A connection that breaks shows at the sender, who tries again.
    let _broken = builder.serve_connection(TokioIo::new(stream), service).await;
}

async fn receive(door: &Door, request: Request<Incoming>) -> Response<Empty<Bytes>> {
    let answer = |status| {
        let mut response = Response::new(Empty::new());
        *response.status_mut() = status;
        response
    };
    let (head, body) = request.into_parts();
    let Ok(body) = Limited::new(body, BODY_BYTES_MAX).collect().await else {
        return answer(StatusCode::PAYLOAD_TOO_LARGE);
    };
    let (body, received) = (body.to_bytes(), Instant::now());
    let path = head.uri.path_and_query().map_or_else(String::new, ToString::to_string);
    let keys = match door.keys.by_path.get(&path) {
        Some(key) => std::slice::from_ref(key),
        None => door.keys.others.as_slice(),
    };
    let signature = (!keys.is_empty()).then(|| verify(keys, &head.headers, &body, clock::now().timestamp()));
    let good = signature.is_none_or(|signature| signature.is_ok());
    let delivery = Delivery { path, headers: head.headers, body, signature, received };
    if door.sender.send(delivery).await.is_err() {
        return answer(StatusCode::SERVICE_UNAVAILABLE);
    }
    answer(if good { door.status } else { StatusCode::UNAUTHORIZED })
}

/// Checks a delivery's signature.
///
/// *Units*: `now` in seconds since 1970.
/// *Source*: Standard Webhooks 1.0.0, "Verifying webhook authenticity".
pub fn verify(keys: &[VerificationKey], headers: &HeaderMap, body: &[u8], now: i64) -> Result<(), SignatureError> {
    let header = |name: &'static str| {
        headers.get(name).and_then(|value| value.to_str().ok()).ok_or(SignatureError::Header(name))
    };
    let (id, timestamp) = (header("webhook-id")?, header("webhook-timestamp")?);
    let signatures = header("webhook-signature")?;
    let seconds: i64 = timestamp.parse().map_err(|_| SignatureError::Timestamp)?;
    if now.abs_diff(seconds) > TOLERANCE.as_secs() {
        return Err(SignatureError::TooOld);
    }
    let signed = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body].concat();
    if keys.iter().any(|key| key.fits(signatures, &signed)) { Ok(()) } else { Err(SignatureError::Mismatch) }
}

impl Delivery {
    /// The CloudEvent's id, type and data; none where the body is the data and nothing else.
    ///
    /// *Shape*: data that is not JSON is a text.
    pub fn event(&self) -> Option<(String, String, Value)> {
        let header = |name: &str| self.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        if let (Some(id), Some(event_type)) = (header("ce-id"), header("ce-type")) {
            return Some((id, event_type, self.json()));
        }
        if !header("content-type")?.starts_with("application/cloudevents+json") {
            return None;
        }
        let mut document = self.json();
        let id = document.get("id")?.as_str()?.to_owned();
        let event_type = document.get("type")?.as_str()?.to_owned();
        Some((id, event_type, document.get_mut("data").map(Value::take).unwrap_or_default()))
    }

    /// The body as JSON, or as a text where it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&self.body).into_owned()))
    }
}

fn show(output: Output, delivery: &Delivery) -> Result<(), CliError> {
    let verdict = match delivery.signature {
        None => "unchecked".to_owned(),
        Some(Ok(())) => "verified".to_owned(),
        Some(Err(error)) => format!("REFUSED ({error})"),
    };
    if output.is_json() {
        let headers: HashMap<&str, String> = delivery
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect();
        let verified = delivery.signature.map(|signature| signature.is_ok());
        let path = &delivery.path;
        return output.document(&json!({
            "path": path, "verified": verified, "verdict": verdict, "headers": headers, "body": delivery.json(),
        }));
    }
    let text = match delivery.event() {
        Some((id, event_type, data)) => format!("{event_type} {id} {}", excerpt(&data.to_string(), 100)),
        None => excerpt(&String::from_utf8_lossy(&delivery.body), 140),
    };
    let time = clock::now().format("%H:%M:%S%.3fZ");
    output.line(&plain(&format!("{time} {} {verdict} {text}", delivery.path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification's reference libraries.
    fn example() -> (Vec<VerificationKey>, HeaderMap, &'static [u8], i64) {
        let secret = VerificationKey::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("a secret");
        let mut headers = HeaderMap::new();
        let id = "msg_p5jXN8AQM9LWM0D4loKWxJek";
        headers.insert("webhook-id", id.parse().expect("a value"));
        headers.insert("webhook-timestamp", "1614265330".parse().expect("a value"));
        let signature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        headers.insert("webhook-signature", signature.parse().expect("a value"));
        (vec![secret], headers, br#"{"test": 2432232314}"#, 1_614_265_330)
    }

    #[test]
    fn the_reference_example_verifies() {
        let (secrets, headers, body, now) = example();
        assert_eq!(verify(&secrets, &headers, body, now), Ok(()));
        assert_eq!(verify(&secrets, &headers, body, now + 300), Ok(()));
    }

    #[test]
    fn one_fitting_signature_of_several_is_enough() {
        let (secrets, mut headers, body, now) = example();
        let several = "v1a,xxxx v1,AAAA v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        headers.insert("webhook-signature", several.parse().expect("a value"));
        assert_eq!(verify(&secrets, &headers, body, now), Ok(()));
    }

    #[test]
    fn what_is_changed_or_old_or_missing_does_not_verify() {
        let (secrets, headers, body, now) = example();
        assert_eq!(verify(&secrets, &headers, b"{}", now), Err(SignatureError::Mismatch));
        assert_eq!(verify(&[], &headers, body, now), Err(SignatureError::Mismatch));
        assert_eq!(verify(&secrets, &headers, body, now + 301), Err(SignatureError::TooOld));
        assert_eq!(verify(&secrets, &headers, body, now - 301), Err(SignatureError::TooOld));
        for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
            let mut fewer = headers.clone();
            fewer.remove(name);
            assert_eq!(verify(&secrets, &fewer, body, now), Err(SignatureError::Header(name)));
        }
        let mut other = headers.clone();
        other.insert("webhook-timestamp", "soon".parse().expect("a value"));
        assert_eq!(verify(&secrets, &other, body, now), Err(SignatureError::Timestamp));
    }
}
