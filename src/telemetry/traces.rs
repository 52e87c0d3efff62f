//! Traces: spans of calls, commits and attempts, exported over OTLP where an endpoint is set.
//!
//! ```text
//! publisher --traceparent--> call --> commit
//!                              '--> the event's `traceparent` extension --> attempt --traceparent--> receiver
//! ```
//!
//! Spans have a target of their own, which the log never shows and only the exporter takes: where no endpoint is set a span costs
//! one comparison. An attempt may run much later, on another replica or again: it belongs to the trace that the event names, by
//! CloudEvents' distributed tracing extension. A span never carries a payload, a secret or a URL.

use super::TelemetryError;
use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, SpanData,
};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tracing::field::Empty;
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The target of every span that is exported, and of nothing else.
pub const TARGET: &str = "carillon_trace";
/// The name of the extension attribute by which an event belongs to a trace, and of the header.
pub const TRACEPARENT: &str = "traceparent";
/// How long spans gather before they are sent.
const EXPORT_EVERY: Duration = Duration::from_secs(1);
/// How long the last spans may take to be sent at the end.
const FLUSH_MAX: Duration = Duration::from_secs(5);

/// Whether spans are exported; never again false once true.
static ON: AtomicBool = AtomicBool::new(false);

/// Where traces go.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `http://host:port` of a collector that speaks OTLP over gRPC; none where nothing is traced.
    pub endpoint: Option<String>,
    /// Which part of the traces that begin here is kept, 0 to 1. Where a caller's traceparent says, it decides.
    pub sample_ratio: f64,
    /// Longest export, milliseconds; spans that do not get out in time are dropped. 100 to 60,000.
    pub timeout_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { endpoint: None, sample_ratio: 1.0, timeout_ms: 10_000 }
    }
}

impl Config {
    /// Checks every bound.
    ///
    /// Errors: the key that does not fit, and its bounds.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let is_endpoint = |text: &String| {
            text.parse::<http::Uri>().is_ok_and(|uri| uri.scheme_str() == Some("http") && uri.host().is_some())
        };
        let bounds = [
            ("endpoint", self.endpoint.as_ref().is_none_or(is_endpoint), "must be http://host:port"),
            ("sample_ratio", (0.0..=1.0).contains(&self.sample_ratio), "must be 0 to 1"),
            ("timeout_ms", (100..=60_000).contains(&self.timeout_ms), "must be 100 to 60,000"),
        ];
        bounds.into_iter().find(|(_, fits, _)| !fits).map_or(Ok(()), |(key, _, reason)| Err((key, reason)))
    }
}

/// What sends the spans; ends with [`Traces::stop`].
#[derive(Debug, Default)]
#[must_use = "spans that are not sent yet are lost where it is dropped"]
pub struct Traces {
    provider: Option<SdkTracerProvider>,
}

impl Traces {
    /// Prepares the export, where an endpoint is set. Must be called inside the runtime, whose tasks send.
    pub(super) fn new(config: &Config) -> Result<Self, TelemetryError> {
        let Some(endpoint) = &config.endpoint else { return Ok(Self::default()) };
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .with_timeout(Duration::from_millis(config.timeout_ms))
            .build()
            .map_err(TelemetryError::Exporter)?;
        let batches = BatchConfigBuilder::default().with_scheduled_delay(EXPORT_EVERY).build();
        let exporter = Noticing { exporter, failing: AtomicBool::new(false) };
        let resource = Resource::builder_empty()
            .with_attributes([
                KeyValue::new("service.name", "carillon"),
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            ])
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batches).build())
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sample_ratio))))
            .with_resource(resource)
            .build();
        Ok(Self { provider: Some(provider) })
    }

    /// What spans go to; none where nothing is traced.
    pub(super) fn tracer(&self) -> Option<SdkTracer> {
        self.provider.as_ref().map(|provider| provider.tracer("carillon"))
    }

    /// From now on spans are made.
    pub(super) fn turn_on(&self) {
        if self.provider.is_some() {
            ON.store(true, Ordering::Relaxed);
        }
    }

    /// Sends what has not been sent, within a few seconds.
    pub async fn stop(self) {
        let Some(provider) = self.provider else { return };
        // The provider's own thread sends and is waited for, which must not hold up the runtime that it sends by.
        let stopped = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_MAX)).await;
        if !matches!(stopped, Ok(Ok(()))) {
            tracing::warn!("the last spans could not be sent");
        }
    }
}

/// An exporter that tells the log when it begins to fail, and when it works again.
#[derive(Debug)]
struct Noticing {
    exporter: SpanExporter,
    failing: AtomicBool,
}

impl opentelemetry_sdk::trace::SpanExporter for Noticing {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let done = self.exporter.export(batch).await;
        match (&done, self.failing.swap(done.is_err(), Ordering::Relaxed)) {
            (Err(error), false) => tracing::warn!(%error, "spans cannot be exported; they are dropped"),
            (Ok(()), true) => tracing::info!("spans are exported again"),
            _ => {}
        }
        done
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// The span of a call. `method` is one of ours, or a word for all others.
pub fn call(method: &str, headers: &HeaderMap) -> Span {
    if !is_on() {
        return Span::none();
    }
    let span = info_span!(
        target: TARGET, "call", otel.name = method, otel.kind = "server", rpc.system = "grpc", rpc.method = method,
        rpc.grpc.status_code = Empty, otel.status_code = Empty
    );
    adopt(&span, &Headers(headers));
    span
}

/// Notes how a call ended. `is_fault` where the server is to blame.
pub fn answered(span: &Span, grpc_status: i32, is_fault: bool) {
    span.record("rpc.grpc.status_code", grpc_status);
    if is_fault {
        span.record("otel.status_code", "ERROR");
    }
}

/// The span that work done for it later belongs to; none where nothing is traced.
pub fn current() -> Span {
    if is_on() { Span::current() } else { Span::none() }
}

/// The span of a group commit: part of the first call's trace, linked to the others'.
pub fn commit<'a>(calls: impl Iterator<Item = &'a Span>, events: usize) -> Span {
    if !is_on() {
        return Span::none();
    }
    let mut calls = calls.filter(|span| !span.is_disabled());
    let first = calls.next().and_then(Span::id);
    let span = info_span!(target: TARGET, parent: first, "commit", otel.name = "publish commit", events);
    for other in calls {
        span.follows_from(other);
    }
    span
}

/// The span of an attempt, in the trace that the event names; `traceparent` is the event's extension attribute.
pub fn attempt(traceparent: Option<&str>, event_type: &str, invocation: impl std::fmt::Display, attempt: i32) -> Span {
    if !is_on() {
        return Span::none();
    }
    let span = info_span!(
        target: TARGET, parent: None, "attempt", otel.name = "deliver", otel.kind = "client",
        carillon.event_type = event_type, carillon.invocation = %invocation, carillon.attempt = attempt,
        carillon.outcome = Empty, http.response.status_code = Empty, otel.status_code = Empty
    );
    if let Some(traceparent) = traceparent {
        adopt(&span, &Single(traceparent));
    }
    span
}

/// Notes how an attempt ended.
pub fn attempted(span: &Span, outcome: &'static str, status: u16, is_failure: bool) {
    span.record("carillon.outcome", outcome);
    if status > 0 {
        span.record("http.response.status_code", status);
    }
    if is_failure {
        span.record("otel.status_code", "ERROR");
    }
}

/// The current span as a `traceparent`; none where nothing is traced.
pub fn traceparent() -> Option<String> {
    let mut headers = HeaderMap::new();
    inject(&mut headers);
    headers.get(TRACEPARENT).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// Puts the current span into a request's headers.
pub fn inject(headers: &mut HeaderMap) {
    if is_on() {
        TraceContextPropagator::new().inject_context(&Span::current().context(), &mut HeadersMut(headers));
    }
}

fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Gives a new span the parent that a carrier names, where it names a valid one.
fn adopt(span: &Span, carrier: &dyn Extractor) {
    let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), carrier);
    if parent.span().span_context().is_valid() {
        // A span that is sampled away has no parent to set.
        let _ = span.set_parent(parent);
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct Single<'a>(&'a str);

impl Extractor for Single<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        (key == TRACEPARENT).then_some(self.0)
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT]
    }
}

struct HeadersMut<'a>(&'a mut HeaderMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        // An empty tracestate is not worth a header.
        if let (false, Ok(name), Ok(value)) =
            (value.is_empty(), HeaderName::from_bytes(key.as_bytes()), HeaderValue::from_str(&value))
        {
            self.0.insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_made_while_nothing_is_exported() {
        assert!(call("carillon.v1.EventService/Subscribe", &HeaderMap::new()).is_disabled());
        assert!(commit([Span::none()].iter(), 1).is_disabled());
        assert!(attempt(Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), "A", 1, 1).is_disabled());
        assert_eq!(traceparent(), None);
    }

    #[test]
    fn bounds_are_checked() {
        let with = |endpoint: &str| Config { endpoint: Some(endpoint.to_owned()), ..Config::default() };
        assert!(Config::default().check().is_ok());
        assert!(with("http://127.0.0.1:4317").check().is_ok());
        for wrong in ["127.0.0.1:4317", "https://collector:4317", "http://", ""] {
            assert_eq!(with(wrong).check().map_err(|(key, _)| key), Err("endpoint"), "{wrong}");
        }
        assert_eq!(
            Config { sample_ratio: 1.5, ..Config::default() }.check().map_err(|(key, _)| key),
            Err("sample_ratio")
        );
        assert_eq!(
            Config { sample_ratio: f64::NAN, ..Config::default() }.check().map_err(|(key, _)| key),
            Err("sample_ratio")
        );
        assert_eq!(Config { timeout_ms: 0, ..Config::default() }.check().map_err(|(key, _)| key), Err("timeout_ms"));
    }
}
