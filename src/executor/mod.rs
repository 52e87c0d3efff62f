//! Runs listeners: the one place where the service causes effects outside itself.
//!
//! It sits behind dispatch, which decides what runs and when, and records how it ended. An executor takes a call, an event and
//! a deadline, and returns an [`Outcome`]: a failed listener is data. It must never see the store, outlive its deadline, or
//! panic on what a listener answers.

mod config;
pub mod documents;
pub mod webhook;

pub use config::{Cidr, CidrError, Config, Issuers, NameServer, NameServerError};

use crate::domain::event::LogEntry;
use crate::domain::ids::InvocationId;
use crate::domain::invocation::{Outcome, OutcomeClass};
use crate::domain::memory::{Kept, Memory};
use crate::domain::pre::Answer;
use crate::domain::trial::Trial;
use crate::domain::webhook::WebhookCall;
use crate::telemetry::traces;
use bytes::Bytes;
use std::sync::{Arc, OnceLock};
use tokio::time::Instant;
use tracing::{Instrument as _, Span};
use webhook::egress::EgressGuard;

/// Runs every kind of listener. Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub struct Executor {
    webhooks: Arc<webhook::client::WebhookClient>,
}

/// Why an executor cannot start. No text holds a setting's value.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// A setting is out of its bound.
    #[error("executor.{key} must be {bound}")]
    Setting {
        /// Its key within the executor's section.
        key: &'static str,
        /// What it must be.
        bound: &'static str,
    },
    /// The file of additional roots, by its key within the executor's section, cannot be read.
    #[error("executor.{0} cannot be read")]
    ReadExtraCa(&'static str, #[source] std::io::Error),
    /// The file of additional roots holds no usable certificate, or a broken one.
    #[error("executor.{0} must hold PEM certificates")]
    ParseExtraCa(&'static str),
    /// The TLS library refuses its own defaults.
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
}

impl Executor {
    /// Builds the executor: checks the settings, loads the trusted roots.
    pub fn new(config: &Config) -> Result<Self, ExecutorError> {
        config.check()?;
        Ok(Self { webhooks: Arc::new(webhook::client::WebhookClient::new(config)?) })
    }

    /// The guard of every outbound address, for checks when a target is saved.
    pub fn guard(&self) -> &Arc<EgressGuard> {
        self.webhooks.guard()
    }

    /// Most bytes that are read of an answer.
    pub fn answer_bytes_max(&self) -> usize {
        self.webhooks.answer_bytes_max()
    }

    /// Calls a webhook once. Returns at `deadline` at the latest, whatever the receiver does.
    pub async fn execute(&self, call: &WebhookCall, delivery: &Delivery, deadline: Instant) -> Outcome {
        let span = delivery.span();
        let outcome = self.webhooks.call(call, delivery, deadline).instrument(span.clone()).await;
        note(&span, &outcome);
        outcome
    }

    /// Asks a webhook once whether it agrees with a PRE event. Returns at `deadline` at the latest, whatever the receiver does.
    pub async fn ask(&self, call: &WebhookCall, delivery: &Delivery, deadline: Instant) -> (Outcome, Answer) {
        let span = delivery.span();
        let (outcome, answer) = self.webhooks.ask(call, delivery, deadline).instrument(span.clone()).await;
        note(&span, &outcome);
        (outcome, answer)
    }

    /// Calls a webhook once for a test, and shows what was sent and what came back. Returns at `deadline` at the latest.
    pub async fn trial(&self, call: &WebhookCall, delivery: &Delivery, deadline: Instant) -> Trial {
        self.webhooks.trial(call, delivery, deadline).await
    }

    /// Asks a webhook once for a test whether it agrees with a PRE event. Returns at `deadline` at the latest.
    pub async fn ask_trial(&self, call: &WebhookCall, delivery: &Delivery, deadline: Instant) -> (Trial, Answer) {
        self.webhooks.ask_trial(call, delivery, deadline).await
    }
}

/// Notes in the trace how an attempt ended.
fn note(span: &Span, outcome: &Outcome) {
    let is_failure = outcome.class != OutcomeClass::Succeeded;
    traces::attempted(span, outcome.class.name(), outcome.status_code, is_failure);
}

/// One attempt of an invocation.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The invocation; stable over its attempts.
    pub invocation: InvocationId,
    /// 1 for the first attempt.
    pub attempt: i32,
    /// True where its subscription missed the event when it happened.
    pub replay: bool,
    /// The event, shared by all its deliveries.
    pub event: Arc<EncodedEvent>,
}

impl Delivery {
    /// The span of this attempt, in the trace that the event names.
    fn span(&self) -> Span {
        let event = &self.event.entry().event;
        let traceparent = event.text_extension(traces::TRACEPARENT);
        traces::attempt(traceparent, event.event_type.as_str(), self.invocation, self.attempt)
    }
}

/// An event and its encoding, made on first use and shared by all listeners of the event.
#[derive(Debug)]
pub struct EncodedEvent {
    entry: Arc<LogEntry>,
    structured: OnceLock<(Bytes, Option<Kept>)>,
    kept: Option<(Kept, Memory)>,
}

impl EncodedEvent {
    /// Wraps an event; encodes nothing yet.
    pub fn new(entry: Arc<LogEntry>) -> Self {
        Self { entry, structured: OnceLock::new(), kept: None }
    }

    /// As [`Self::new`]; the event counts among what is kept in `memory`, and its encoding from when it is made, until the last listener
    /// lets go of it.
    pub fn kept(entry: Arc<LogEntry>, memory: &Memory) -> Self {
        let kept = memory.keep(entry.memory_bytes());
        Self { kept: Some((kept, memory.clone())), ..Self::new(entry) }
    }

    /// The event with its place in the log.
    pub fn entry(&self) -> &Arc<LogEntry> {
        &self.entry
    }

    /// The event as one CloudEvents JSON document.
    pub fn structured(&self) -> &Bytes {
        let encode = || {
            let encoded = Bytes::from(webhook::cloudevent::structured(&self.entry.event));
            let kept = self.kept.as_ref().map(|(_, memory)| memory.keep(encoded.len()));
            (encoded, kept)
        };
        &self.structured.get_or_init(encode).0
    }
}
