//! TestSubscription: runs a listener once with hand-written parameters, and shows everything of it.
//!
//! The call is real and marked as a test. Nothing is recorded: the event gets no place in the log, the run is no invocation. The
//! dispatcher does not know of it, so what runs at the same time is bounded here.

use super::hand_written::{check, hand_written};
use super::refused;
use crate::api::deadline;
use crate::api::registry::{RegistryDeps, authorised, invalid};
use crate::api::status::ApiError;
use crate::clock;
use crate::domain::access::Role;
use crate::domain::event::LogEntry;
use crate::domain::explain::explain;
use crate::domain::filter::FilterContext;
use crate::domain::ids::{SubscriptionId, TenantId};
use crate::domain::invocation::{Attempt, OutcomeClass};
use crate::domain::places::{Place, Places};
use crate::domain::subscription::State;
use crate::domain::trial::Trial;
use crate::domain::webhook::WebhookCall;
use crate::long_work;
use crate::proto::cloudevents::CloudEvent;
use crate::proto::cloudevents::cloud_event::Data as ProtoData;
use crate::proto::public::{TestSubscriptionRequest, TestSubscriptionResponse};
use crate::publish::registry::{Entry, TenantRegistry};
use crate::store::StoreError;
use crate::store::subscriptions::SubscriptionRefusal;
use crate::wire::FieldError;
use crate::wire::explain::{explanation_to_proto, trial_to_proto};
use crate::wire::invocation::attempt_to_proto;
use crate::wire::subscription::parse_id;
use futures::future::BoxFuture;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tonic::Request;

/// Runs a listener of a tenant once until a deadline.
pub type RunTrial = Arc<
    dyn Fn(Arc<TenantRegistry>, Arc<Entry>, Arc<WebhookCall>, Arc<LogEntry>, Instant) -> BoxFuture<'static, Trial>
        + Send
        + Sync,
>;

/// Test runs at the same time on one replica, of which one tenant alone gets half; of one subscription it is one.
const RUNNING_MAX: usize = 16;
/// How long before the call's deadline a run ends at the latest, so that its trace still arrives: this, or a tenth of what is left where that
/// is less.
const ANSWER_TIME: Duration = Duration::from_secs(1);

/// The test runs of this replica. Cheap to clone.
#[derive(Clone)]
pub struct Trials {
    run: RunTrial,
    places: Places,
    running: Arc<Mutex<HashSet<SubscriptionId>>>,
}

impl Trials {
    /// Takes what runs them.
    pub fn new(run: RunTrial) -> Self {
        Self { run, places: Places::new(RUNNING_MAX), running: Arc::default() }
    }

    /// A place for one run. Errors: QUOTA_EXCEEDED.
    fn begin(&self, tenant: TenantId, subscription: SubscriptionId) -> Result<Running, ApiError> {
        let full = |limit: usize| ApiError::QuotaExceeded {
            quota: "test_runs".to_owned(),
            limit: limit as u64,
            retry_delay: Some(Duration::from_secs(1)),
        };
        let place = self.places.take(tenant).ok_or_else(|| full(RUNNING_MAX))?;
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if !running.insert(subscription) {
            return Err(full(1));
        }
        Ok(Running { under_way: Arc::clone(&self.running), subscription, _place: place })
    }
}

/// Gives its place back when it ends, however it ends.
struct Running {
    under_way: Arc<Mutex<HashSet<SubscriptionId>>>,
    subscription: SubscriptionId,
    _place: Place,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.subscription);
    }
}

pub(crate) async fn handle(
    deps: &RegistryDeps,
    request: Request<TestSubscriptionRequest>,
) -> Result<TestSubscriptionResponse, ApiError> {
    let call_ends = deadline::of(&request);
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
    let (path, event) = match request.event {
        Some(event) => ("event", event),
        None => {
            let data = String::from_utf8(request.data.to_vec());
            let data = data.map_err(|_| invalid(FieldError::new("data", "is not UTF-8")))?;
            ("", CloudEvent { data: Some(ProtoData::TextData(data)), ..CloudEvent::default() })
        }
    };
    let mut event = hand_written(event, Some(&found.event_type), deps.store.now())?;
    if event.event_type != found.event_type {
        return Err(invalid(FieldError::new("event.type", "is not the subscription's event type")));
    }
    let known = deps.event_type(caller.tenant, &found.event_type).await?;
    event.schema_version =
        if found.schema_version == 0 { known.event_type().latest_schema } else { found.schema_version };
    let event = check(deps, caller.tenant, &known, event, path).await?;
    let (found, reason) = {
        let event = Arc::clone(&event);
        let explained = long_work::run(caller.tenant, move || {
            let reason = explain(&found, &event, &FilterContext::new(&event));
            (found, reason)
        });
        explained.await.ok_or_else(|| ApiError::internal("explain a match", "it panicked"))?
    };

    // The registry holds the opened secrets; it may be behind what was just read.
    let registry = deps.registry.refresh(caller.tenant, found.registry_version).await?;
    let Some(listener) = registry.subscription(found.no) else {
        return Err(refused(deps, &caller, &named, SubscriptionRefusal::State(State::Deleted)).await);
    };
    let call = listener.webhook_call(deps.store.now()).ok_or(StoreError::Corrupt { what: "signing secret" })?;
    let _running = deps.trials.begin(caller.tenant, found.id)?;
    let (started_at, begin) = (clock::now(), Instant::now());
    let timeout = listener.subscription.policy.timeout();
    let call_ends = call_ends.map(|end| end - (end.saturating_duration_since(begin) / 10).min(ANSWER_TIME));
    let deadline = call_ends.map_or(begin + timeout, |end| end.min(begin + timeout));
    let entry = LogEntry { position: 0, committed_at: started_at, event, matched: Arc::new([]), refused: Arc::new([]) };
    let mut trial = (deps.trials.run)(registry, listener, call, Arc::new(entry), deadline).await;
    let cut_short = deadline < begin + timeout && Instant::now() >= deadline;
    if cut_short && trial.outcome.class == OutcomeClass::Timeout {
        let error = trial.outcome.error.unwrap_or_default();
        let allowed = timeout.as_millis();
        let cut =
            format!("{error} The call's deadline ended the test; the subscription's own timeout is {allowed} ms.");
        trial.outcome.error = Some(cut);
    }
    let attempt = Attempt { number: 1, started_at, duration: begin.elapsed(), outcome: trial.outcome.clone() };
    let mut answer = TestSubscriptionResponse {
        attempt: Some(attempt_to_proto(&attempt)),
        r#match: Some(explanation_to_proto(&found, reason, None)),
        ..Default::default()
    };
    trial_to_proto(trial, &mut answer);
    Ok(answer)
}
