//! Sends one signed request and reads its answer within bounds: the hot path of every delivery.
//!
//! Connections are kept, and the next call of any subscription to a receiver takes one that is idle: HTTP/1.1, where no call waits for
//! another's answer. Each attempt has one deadline for everything: resolving,
//! connecting, TLS, the answer's headers and its body. Must never follow a redirect, use a proxy, or try again by itself after
//! a receiver may have seen the request: whether to try again is dispatch's decision, and it is recorded.

use super::answer::{self, Secrets};
use super::connector::{Connector, OpenConnections, sent_for};
use super::egress::EgressGuard;
use super::{cloudevent, decide, sign};
use crate::clock;
use crate::domain::invocation::{Outcome, OutcomeClass};
use crate::domain::pre;
use crate::domain::trial::{CameBack, SentRequest, Trial};
use crate::domain::webhook::WebhookCall;
use crate::executor::{Config, Delivery, ExecutorError};
use crate::telemetry::traces;
use bytes::Bytes;
use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

const CARILLON_TEST: HeaderName = HeaderName::from_static("carillon-test");
const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_REPLAY: HeaderName = HeaderName::from_static("webhook-replay");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// Header fields of an answer that a test shows, and bytes of each value.
const SHOWN_HEADERS_MAX: usize = 64;
const SHOWN_VALUE_BYTES_MAX: usize = 256;
/// What a test shows instead of a secret.
const REDACTED: &str = "(redacted)";

/// Most bytes of an answer's header section.
const HEADER_BYTES_MAX: usize = 32 * 1024;

/// Calls webhooks over pooled connections.
pub struct WebhookClient {
    http: Client<Connector, Full<Bytes>>,
    guard: Arc<EgressGuard>,
    user_agent: HeaderValue,
    response_bytes_max: usize,
    open: OpenConnections,
    connections_kept_max: usize,
}

impl fmt::Debug for WebhookClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookClient").finish_non_exhaustive()
    }
}

impl WebhookClient {
    /// Builds the pool. `config` was checked.
    pub fn new(config: &Config) -> Result<Self, ExecutorError> {
        let guard = Arc::new(EgressGuard::new(config));
        let connector = Connector::new(config, Arc::clone(&guard))?;
        let open = connector.open();
        let user_agent = HeaderValue::from_str(&config.user_agent);
        let user_agent =
            user_agent.map_err(|_| ExecutorError::Setting { key: "user_agent", bound: "visible ASCII characters" })?;
        let http = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_millis(config.idle_timeout_ms))
            .pool_max_idle_per_host(config.idle_connections_per_host.min(config.connections_kept_max))
            .http1_max_buf_size(HEADER_BYTES_MAX)
            // Repeats only what was never written, on a kept connection that the receiver had closed meanwhile.
            .retry_canceled_requests(true)
            .build(connector);
        Ok(Self {
            http,
            guard,
            user_agent,
            response_bytes_max: config.response_bytes_max,
            open,
            connections_kept_max: config.connections_kept_max,
        })
    }

    /// The guard of this client's connections.
    pub fn guard(&self) -> &Arc<EgressGuard> {
        &self.guard
    }

    /// Most bytes that are read of an answer.
    pub fn answer_bytes_max(&self) -> usize {
        self.response_bytes_max
    }

    /// One attempt. Returns at the deadline at the latest.
    pub async fn call(&self, call: &WebhookCall, delivery: &Delivery, deadline: Instant) -> Outcome {
        let mut reply = Reply::keeping(answer::EXCERPT_SOURCE_BYTES);
        self.bounded(call, delivery, deadline, &mut reply).await
    }

    /// One attempt whose answer decides. Returns at the deadline at the latest.
    pub async fn ask(&self, call: &WebhookCall, delivery: &Delivery, deadline: Instant) -> (Outcome, pre::Answer) {
        let mut reply = Reply::deciding(self.response_bytes_max);
        let outcome = self.bounded(call, delivery, deadline, &mut reply).await;
        reply.decide(outcome, call)
    }

    /// One attempt that is marked as a test, with what it sent and got. Returns at the deadline at the latest.
    pub async fn trial(&self, call: &WebhookCall, delivery: &Delivery, deadline: Instant) -> Trial {
        self.tried(call, delivery, deadline, Reply::keeping(answer::EXCERPT_SOURCE_BYTES)).await.0
    }

    /// As [`Self::trial`], for a call whose answer decides, as [`Self::ask`] reads it.
    pub async fn ask_trial(&self, call: &WebhookCall, delivery: &Delivery, deadline: Instant) -> (Trial, pre::Answer) {
        let (mut trial, reply) = self.tried(call, delivery, deadline, Reply::deciding(self.response_bytes_max)).await;
        let (outcome, answer) = reply.decide(trial.outcome, call);
        trial.outcome = outcome;
        (trial, answer)
    }

    async fn tried(&self, call: &WebhookCall, delivery: &Delivery, deadline: Instant, reply: Reply) -> (Trial, Reply) {
        let seen = Some(Seen { begin: Instant::now(), request: None, answer: None });
        let mut reply = Reply { seen, ..reply };
        let outcome = self.bounded(call, delivery, deadline, &mut reply).await;
        let (request, answer) = reply.seen.take().map(|seen| (seen.request, seen.answer)).unwrap_or_default();
        (Trial { outcome, request, answer }, reply)
    }

    async fn bounded(&self, call: &WebhookCall, delivery: &Delivery, deadline: Instant, reply: &mut Reply) -> Outcome {
        // The reply is kept outside of the exchange, since a deadline that passes drops the exchange.
        match timeout_at(deadline, self.exchange(call, delivery, reply)).await {
            Ok(outcome) => outcome,
            Err(_) => answer::late(reply.status, reply.decides),
        }
    }

    async fn exchange(&self, call: &WebhookCall, delivery: &Delivery, reply: &mut Reply) -> Outcome {
        let (mut request, signature) = match self.request(call, delivery) {
            Ok(signed) => signed,
            Err(outcome) => return outcome,
        };
        reply.signature = signature;
        let secrets = Secrets { headers: call.target.headers(), signature: &reply.signature };
        if let Some(seen) = &mut reply.seen {
            request.headers_mut().insert(CARILLON_TEST, HeaderValue::from_static("true"));
            seen.request = Some(sent(&request).await);
        }
        let mut response = match sent_for(call.tenant, self.http.request(request)).await {
            Ok(response) => response,
            Err(error) => {
                reply.unreached = answer::is_unreached(&error);
                return answer::unanswered(&error);
            }
        };
        let answered = response.status();
        reply.status = answered.as_u16();
        if let Some(seen) = &mut reply.seen {
            let (headers, after) = (shown(response.headers(), secrets), seen.begin.elapsed());
            seen.answer = Some(CameBack { status: reply.status, headers, after });
        }
        reply.json = answer::is_json(response.headers());
        let retry_after = if answered.is_success() { None } else { answer::retry_after(response.headers()) };
        let mut start = Vec::new();
        let mut read = 0;
        while let Some(frame) = response.body_mut().frame().await {
            let frame = match frame {
                Ok(frame) => frame,
                // What a receiver has accepted it has, whatever becomes of the rest of its answer.
                Err(_) if answered.is_success() && !reply.decides => break,
                Err(_) => return answer::cut_off(answered),
            };
            let Some(data) = frame.data_ref() else { continue };
            let room = reply.keep.max(answer::EXCERPT_SOURCE_BYTES) - start.len();
            start.extend_from_slice(&data[..data.len().min(room)]);
            read += data.len();
            if read > self.response_bytes_max {
                // Leaving the body unread ends the connection.
                break;
            }
        }
        start.truncate(self.response_bytes_max);
        let seen = &start[..start.len().min(answer::EXCERPT_SOURCE_BYTES)];
        let outcome = answer::judge(answered, retry_after, answer::excerpt(seen, secrets));
        if read <= reply.keep {
            reply.body = Some(start);
        }
        outcome
    }

    /// The request and the signature it carries.
    ///
    /// Errors: a header of the target that is none. Targets are checked when they are saved, so this is a fault of stored data,
    /// which no further attempt mends.
    fn request(&self, call: &WebhookCall, delivery: &Delivery) -> Result<(Request<Full<Bytes>>, String), Outcome> {
        let target = &call.target;
        let mut headers = HeaderMap::with_capacity(8 + target.headers().len());
        for (name, value) in target.headers() {
            let parsed = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value));
            let (Ok(name), Ok(mut value)) = parsed else {
                return Err(Outcome {
                    class: OutcomeClass::Rejected,
                    status_code: 0,
                    retry_after: None,
                    excerpt: None,
                    error: Some("A header of the subscription's target is not valid.".to_owned()),
                });
            };
            value.set_sensitive(true);
            headers.append(name, value);
        }
        // After the target's own headers, so that none of ours can be replaced by them.
        let body = cloudevent::message(&delivery.event, target.mode, &mut headers);
        let id = delivery.invocation.to_string();
        let timestamp = clock::now().timestamp().to_string();
        let signature = sign::signature(&call.secrets, &id, &timestamp, &body);
        headers.insert(USER_AGENT, self.user_agent.clone());
        if !signature.is_empty() {
            headers.insert(WEBHOOK_SIGNATURE, own_value(signature.clone()));
        }
        headers.insert(WEBHOOK_ID, own_value(id));
        headers.insert(WEBHOOK_TIMESTAMP, own_value(timestamp));
        if delivery.replay {
            headers.insert(WEBHOOK_REPLAY, HeaderValue::from_static("true"));
        }
        if self.open.count() > self.connections_kept_max {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        traces::inject(&mut headers);
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = target.uri.as_uri().clone();
        *request.headers_mut() = headers;
        Ok((request, signature))
    }
}

/// What is kept of an answer beside its outcome.
struct Reply {
    /// 0 before it has arrived.
    status: u16,
    /// How much of the body is kept.
    keep: usize,
    /// Whether the body says what the answer means: it counts only where it arrives whole.
    decides: bool,
    /// Whether the body is JSON by its content type.
    json: bool,
    /// The whole body, where it is not longer than `keep`.
    body: Option<Vec<u8>>,
    /// What the request was signed with; empty where none was made.
    signature: String,
    /// Whether there is no way to the receiver.
    unreached: bool,
    /// What a test run saw; none for any other attempt.
    seen: Option<Seen>,
}

impl Reply {
    /// None yet, of whose body so many bytes are to be kept.
    fn keeping(keep: usize) -> Self {
        let signature = String::new();
        Self { status: 0, keep, decides: false, json: false, body: None, signature, unreached: false, seen: None }
    }

    /// None yet, whose body decides and may have so many bytes.
    fn deciding(keep: usize) -> Self {
        Self { decides: true, ..Self::keeping(keep) }
    }

    /// What an attempt of this call that ended so says of a PRE event.
    fn decide(&self, outcome: Outcome, call: &WebhookCall) -> (Outcome, pre::Answer) {
        if self.unreached {
            return (outcome, pre::Answer::Unreached);
        }
        let secrets = Secrets { headers: call.target.headers(), signature: &self.signature };
        decide::decide(outcome, self.json, self.body.as_deref(), secrets)
    }
}

/// What a test run saw.
struct Seen {
    begin: Instant,
    request: Option<SentRequest>,
    answer: Option<CameBack>,
}

/// The request as a test shows it: without the signature, and without what the target's own headers hold.
async fn sent(request: &Request<Full<Bytes>>) -> SentRequest {
    let value = |name: &HeaderName, value: &HeaderValue| {
        let secret = value.is_sensitive() || *name == WEBHOOK_SIGNATURE;
        if secret { REDACTED.to_owned() } else { String::from_utf8_lossy(value.as_bytes()).into_owned() }
    };
    let headers = request.headers().iter().map(|(name, field)| (name.to_string(), value(name, field))).collect();
    // The body is in memory, so collecting it neither waits nor fails.
    let body = request.body().clone().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    SentRequest { uri: request.uri().to_string(), headers, body }
}

/// An answer's header fields as a test shows them.
fn shown(headers: &HeaderMap, secrets: Secrets<'_>) -> Vec<(String, String)> {
    let value = |value: &HeaderValue| {
        let mut text = secrets.redact(String::from_utf8_lossy(value.as_bytes()).into_owned());
        text.truncate(text.floor_char_boundary(SHOWN_VALUE_BYTES_MAX));
        text
    };
    headers.iter().take(SHOWN_HEADERS_MAX).map(|(name, field)| (name.to_string(), value(field))).collect()
}

fn own_value(text: String) -> HeaderValue {
    HeaderValue::from_maybe_shared(Bytes::from(text)).expect("ids, numbers and base64 are visible ASCII")
}
