//! TestSubscription: runs a listener once with hand-written parameters, and shows everything of it.
//!
//! The call is real and marked as a test. Nothing is recorded: the event gets no place in the log, the run is no invocation. The
//! dispatcher does not know of it, so what runs at the same time is bounded here.

use super::refused;
use crate::api::registry::{RegistryDeps, authorised, invalid};
use crate::api::status::ApiError;
use crate::clock;
use crate::domain::access::Role;
use crate::domain::event::{Attribute, Event, Lineage, LogEntry};
use crate::domain::event_type::EventTypeName;
use crate::domain::explain::explain;
use crate::domain::filter::FilterContext;
use crate::domain::ids::{EventId, SubscriptionId};
use crate::domain::invocation::Attempt;
use crate::domain::json::check_json;
use crate::domain::subscription::State;
use crate::domain::trial::{TEST_ATTRIBUTE, Trial};
use crate::domain::webhook::WebhookCall;
use crate::proto::cloudevents::CloudEvent;
use crate::proto::cloudevents::cloud_event::Data as ProtoData;
use crate::proto::public::{TestSubscriptionRequest, TestSubscriptionResponse};
use crate::publish::registry::{Entry, TenantRegistry};
use crate::store::StoreError;
use crate::store::subscriptions::SubscriptionRefusal;
use crate::wire::FieldError;
use crate::wire::event::cloud_event_to_domain;
use crate::wire::explain::{explanation_to_proto, trial_to_proto};
use crate::wire::invocation::attempt_to_proto;
use crate::wire::subscription::parse_id;
use futures::future::BoxFuture;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tonic::Request;

/// Runs a listener of a tenant once within its time.
pub type RunTrial = Arc<
    dyn Fn(Arc<TenantRegistry>, Arc<Entry>, Arc<WebhookCall>, Arc<LogEntry>) -> BoxFuture<'static, Trial> + Send + Sync,
>;

/// Test runs at the same time on one replica; of one subscription it is one.
const RUNNING_MAX: usize = 16;
/// Where a hand-written event comes from where it does not say so.
const SOURCE: &str = "/carillon/test";

/// The test runs of this replica. Cheap to clone.
#[derive(Clone)]
pub struct Trials {
    run: RunTrial,
    running: Arc<Mutex<HashSet<SubscriptionId>>>,
}

impl Trials {
    /// Takes what runs them.
    pub fn new(run: RunTrial) -> Self {
        Self { run, running: Arc::default() }
    }

    /// A place for one run. Errors: QUOTA_EXCEEDED.
    fn begin(&self, subscription: SubscriptionId) -> Result<Running, ApiError> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = if running.contains(&subscription) { 1 } else { RUNNING_MAX };
        if running.len() >= RUNNING_MAX || limit == 1 {
            return Err(ApiError::QuotaExceeded {
                quota: "test_runs".to_owned(),
                limit: limit as u64,
                retry_delay: Some(Duration::from_secs(1)),
            });
        }
        running.insert(subscription);
        Ok(Running { running: Arc::clone(&self.running), subscription })
    }
}

/// Gives its place back when it ends, however it ends.
struct Running {
    running: Arc<Mutex<HashSet<SubscriptionId>>>,
    subscription: SubscriptionId,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.subscription);
    }
}

pub(crate) async fn handle(
    deps: &RegistryDeps,
    request: Request<TestSubscriptionRequest>,
) -> Result<TestSubscriptionResponse, ApiError> {
    let (caller, request) = authorised(request, Role::Subscriber)?;
    let id = parse_id("subscription_id", &request.subscription_id).map_err(invalid)?;
    let named = request.subscription_id;
    if request.event.is_some() != request.data.is_empty() {
        return Err(invalid(FieldError::new("data", "exactly one of data and event must be given")));
    }
    let found = deps.store.subscription(caller.tenant, caller.app, id).await?;
    let found = found.ok_or_else(|| ApiError::SubscriptionNotFound { subscription: named.clone() })?;
    if found.state == State::Deleted {
        return Err(refused(deps, &caller, &named, SubscriptionRefusal::State(State::Deleted)).await);
    }
    let (field, event) = match request.event {
        Some(event) => ("event.data", event),
        None => {
            let data = String::from_utf8(request.data.to_vec());
            let data = data.map_err(|_| invalid(FieldError::new("data", "is not UTF-8")))?;
            ("data", CloudEvent { data: Some(ProtoData::TextData(data)), ..CloudEvent::default() })
        }
    };
    let mut event = hand_written(event, Some(&found.event_type))?;
    if event.event_type != found.event_type {
        return Err(invalid(FieldError::new("event.type", "is not the subscription's event type")));
    }
    if event.has_json_data()
        && let Err(error) = check_json(event.data.as_bytes())
    {
        return Err(invalid(FieldError::new(field, format!("is not JSON: {error}"))));
    }
    event.schema_version = match found.schema_version {
        0 => deps.event_type(caller.tenant, &found.event_type).await?.event_type().latest_schema,
        pinned => pinned,
    };
    let reason = explain(&found, &event, &FilterContext::new(&event));

    // The registry holds the opened secrets; it may be behind what was just read.
    let registry = deps.registry.refresh(caller.tenant, found.registry_version).await?;
    let listener = registry.subscription(found.no).ok_or(StoreError::Corrupt { what: "subscription" })?;
    let call = listener.webhook_call(deps.store.now()).ok_or(StoreError::Corrupt { what: "signing secret" })?;
    let _running = deps.trials.begin(found.id)?;
    let (started_at, begin) = (clock::now(), std::time::Instant::now());
    let entry = LogEntry {
        position: 0,
        committed_at: started_at,
        event: Arc::new(event),
        matched: Arc::new([]),
        refused: Arc::new([]),
    };
    let trial = (deps.trials.run)(registry, listener, call, Arc::new(entry)).await;
    let attempt = Attempt { number: 1, started_at, duration: begin.elapsed(), outcome: trial.outcome.clone() };
    let mut answer = TestSubscriptionResponse {
        attempt: Some(attempt_to_proto(&attempt)),
        r#match: Some(explanation_to_proto(&found, reason, None)),
        ..Default::default()
    };
    trial_to_proto(trial, &mut answer);
    Ok(answer)
}

/// An event that nobody publishes, marked as a test. What it leaves out has a default.
pub(super) fn hand_written(mut event: CloudEvent, event_type: Option<&EventTypeName>) -> Result<Event, ApiError> {
    if let (true, Some(name)) = (event.r#type.is_empty(), event_type) {
        name.as_str().clone_into(&mut event.r#type);
    }
    if event.source.is_empty() {
        SOURCE.clone_into(&mut event.source);
    }
    let parsed = cloud_event_to_domain(event, "event").map_err(invalid)?;
    let id = EventId(clock::new_uuid());
    let mut extensions = parsed.extensions;
    if event_type.is_some() {
        extensions.retain(|(name, _)| name != TEST_ATTRIBUTE);
        extensions.push((TEST_ATTRIBUTE.to_owned(), Attribute::Boolean(true)));
        extensions.sort_by(|a, b| a.0.cmp(&b.0));
    }
    Ok(Event {
        id,
        event_type: parsed.event_type,
        schema_version: 0,
        source: parsed.source,
        subject: parsed.subject,
        time: parsed.time.unwrap_or_else(clock::now),
        content_type: parsed.content_type,
        extensions,
        data: parsed.data,
        lineage: Lineage::root(id),
    })
}
