//! Announcements: what Carillon itself tells in a tenant's log, as the data of its system events.
//!
//! Pure values: the store writes one in the transaction of the change it tells of, the dispatcher publishes it. What a subscription
//! holds back from its listener (header values, secrets, the query of an address) is never part of one.

use super::catalogue::Catalogue;
use super::event::{CHAIN_BUDGET_EXHAUSTED, Event, Lineage, LogEntry};
use super::event_type::{EventType, Phase};
use super::ids::{Position, SubscriptionNo};
use super::pre::{Aborted, EnrichPath, FailurePolicy, PrePolicy};
use super::retry::OnDeadLetter;
use super::subscription::{Circuit, CircuitState, ReplayGap, State, Subscription, Target};
use super::webhook::WebhookMode;
use chrono::{DateTime, NaiveDate, Utc};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::borrow::Cow;

/// A system event to be born.
#[derive(Debug, Clone, PartialEq)]
pub struct Announcement {
    /// Name in the system catalogue.
    pub event_type: String,
    /// What it is about.
    pub subject: String,
    /// The event's data.
    pub data: Value,
    /// What it follows from; none where no event led to it.
    pub lineage: Option<Lineage>,
}

/// Invocations of one subscription that retention ended, or kept a replay from making.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expired {
    /// Those that waited.
    pub waiting: i64,
    /// Those that were dead letters.
    pub dead_letters: i64,
    /// What its replay had not come to.
    pub replay: Option<ReplayGap>,
    /// The first event's position.
    pub first: Position,
    /// The last event's position.
    pub last: Position,
}

/// True for an event by which Carillon tells of a subscription of another app than this.
pub fn tells_of_another_app(event: &Event, app: &str) -> bool {
    #[derive(Deserialize)]
    struct Told<'a> {
        #[serde(borrow, default)]
        app: Option<Cow<'a, str>>,
    }
    let told = || serde_json::from_slice::<Told<'_>>(event.data.as_bytes()).ok()?.app;
    Catalogue::is_carillons_own(event.event_type.as_str()) && told().is_some_and(|told| told != app)
}

impl Announcement {
    fn new(event_type: &str, subject: String, data: Value) -> Self {
        Self { event_type: event_type.to_owned(), subject, data, lineage: None }
    }

    /// The same as what an event has led to: no subscription on the way there hears of it again.
    #[must_use]
    pub fn following(self, lineage: Lineage) -> Self {
        Self { lineage: Some(lineage), ..self }
    }

    /// A subscription was made.
    pub fn subscribed(made: &Subscription, actor: &str) -> Self {
        let mut data = about(made, actor);
        data.insert("created_at".to_owned(), time(made.created_at));
        Self::new("SUBSCRIPTION_CREATED", made.id.to_string(), data.into())
    }

    /// The circuit of a subscription's receiver has opened or closed.
    pub fn circuit_changed(subscription: &Subscription, circuit: &Circuit) -> Self {
        let name = match circuit.state {
            CircuitState::Closed => "SUBSCRIPTION_CIRCUIT_CLOSED",
            CircuitState::Open | CircuitState::HalfOpen => "SUBSCRIPTION_CIRCUIT_OPENED",
        };
        let data = json!({
            "subscription": subscription.id.to_string(),
            "app": subscription.app_slug,
            "event_type": subscription.event_type.as_str(),
            "name": subscription.display_name,
            "failures": circuit.failures,
            "at": circuit.since.unwrap_or_default().to_rfc3339(),
        });
        Self::new(name, subscription.id.to_string(), data)
    }

    /// The budget of a chain does not reach for a listener of one of its events, `no`: the first one that is refused. It follows from that.
    pub fn chain_budget_exhausted(
        entry: &LogEntry,
        no: SubscriptionNo,
        subscription: Option<&Subscription>,
        budget: u32,
    ) -> Self {
        let (lineage, invocation) = (&entry.event.lineage, entry.invocation(no));
        let root = lineage.root.to_string();
        let mut data = json!({
            "root_id": root,
            "event": entry.event.id.to_string(),
            "event_type": entry.event.event_type.as_str(),
            "invocation": invocation.to_string(),
            "budget": budget,
            "depth": lineage.depth,
            "reason": entry.refusal(no).as_str(),
            "exhausted_at": time(entry.committed_at),
        });
        if let Some(subscription) = subscription {
            data["subscription"] = subscription.id.to_string().into();
            data["app"] = subscription.app_slug.clone().into();
        }
        Self::new(CHAIN_BUDGET_EXHAUSTED, root, data).following(lineage.caused_by(invocation))
    }

    /// A delayed event that was accepted at `accepted_at` was not published when it was due, at `deliver_at`. Nothing of its data is told.
    pub fn delayed_event_aborted(
        event: &Event,
        accepted_at: DateTime<Utc>,
        deliver_at: DateTime<Utc>,
        aborted: &Aborted,
        at: DateTime<Utc>,
    ) -> Self {
        let data = json!({
            "event": event.id.to_string(),
            "event_type": event.event_type.as_str(),
            "reason": aborted.reason.code(),
            "message": aborted.message,
            "accepted_at": time(accepted_at),
            "deliver_at": time(deliver_at),
            "aborted_at": time(at),
        });
        let told = Self::new("DELAYED_EVENT_ABORTED", event.id.to_string(), data);
        // It stands in the event's own place of the chain; a root that never was is none.
        if event.lineage.depth == 0 { told } else { told.following(event.lineage.clone()) }
    }

    /// A subscription was changed, by a caller or by the server.
    pub fn subscription_changed(before: &Subscription, after: &Subscription, actor: &str) -> Self {
        let mut data = about(after, actor);
        let at = time(after.updated_at);
        let name = match after.state {
            State::Disabled if before.state != State::Disabled => {
                data.insert("reason".to_owned(), after.state_reason.clone().into());
                data.insert("disabled_at".to_owned(), at);
                "SUBSCRIPTION_DISABLED"
            }
            State::Deleted => {
                data.insert("deleted_at".to_owned(), at);
                "SUBSCRIPTION_DELETED"
            }
            State::Active | State::Disabled => {
                data.insert("changes".to_owned(), subscription_changes(before, after).into());
                data.insert("updated_at".to_owned(), at);
                "SUBSCRIPTION_UPDATED"
            }
        };
        Self::new(name, after.id.to_string(), data.into())
    }

    /// A subscription got a new signing secret.
    pub fn secret_rotated(after: &Subscription, actor: &str) -> Self {
        let mut data = about(after, actor);
        data.insert("changes".to_owned(), json!({ "signing_secret": {} }));
        data.insert("updated_at".to_owned(), time(after.updated_at));
        Self::new("SUBSCRIPTION_UPDATED", after.id.to_string(), data.into())
    }

    /// The same with the error that led to it.
    #[must_use]
    pub fn because_of(mut self, class: &str, message: &str) -> Self {
        self.data["error"] = json!({ "class": class, "message": message });
        self
    }

    /// An event type was declared.
    pub fn event_type_created(made: &EventType, actor: &str) -> Self {
        let mut data = about_type(made, actor);
        data.insert("created_at".to_owned(), time(made.created_at));
        Self::new("EVENT_TYPE_CREATED", made.name.to_string(), data.into())
    }

    /// An event type was described anew, got a schema version, was retired or restored.
    pub fn event_type_changed(before: &EventType, after: &EventType, actor: &str) -> Self {
        let mut data = about_type(after, actor);
        let name = if let (None, Some(at)) = (before.deleted_at, after.deleted_at) {
            data.insert("deleted_at".to_owned(), time(at));
            "EVENT_TYPE_DELETED"
        } else {
            let mut changes = Map::new();
            let state = |event_type: &EventType| if event_type.deleted_at.is_some() { "DELETED" } else { "ACTIVE" };
            change(&mut changes, "display_name", &json!(before.display_name), &json!(after.display_name));
            change(&mut changes, "description", &json!(before.description), &json!(after.description));
            change(&mut changes, "schema_version", &json!(before.latest_schema), &json!(after.latest_schema));
            let mode = |event_type: &EventType| event_type.compatibility.as_str();
            change(&mut changes, "compatibility", &json!(mode(before)), &json!(mode(after)));
            change(&mut changes, "state", &json!(state(before)), &json!(state(after)));
            data.insert("changes".to_owned(), changes.into());
            data.insert("updated_at".to_owned(), time(after.updated_at));
            "EVENT_TYPE_UPDATED"
        };
        Self::new(name, after.name.to_string(), data.into())
    }

    /// Retention has ended invocations of a subscription, given as (id, app's slug).
    pub fn invocations_expired(
        subscription: (&str, &str),
        expired: &Expired,
        until: NaiveDate,
        at: DateTime<Utc>,
    ) -> Self {
        let (id, app) = subscription;
        let mut data = json!({
            "subscription": id,
            "app": app,
            "waiting": expired.waiting,
            "dead_letters": expired.dead_letters,
            "first_position": expired.first,
            "last_position": expired.last,
            "committed_before": until.to_string(),
            "expired_at": time(at),
        });
        if let Some(ReplayGap { from, to }) = expired.replay {
            data["replay"] = json!({ "from_position": from, "to_position": to });
        }
        Self::new("INVOCATIONS_EXPIRED", id.to_owned(), data)
    }
}

fn about(subscription: &Subscription, actor: &str) -> Map<String, Value> {
    let data = json!({
        "subscription": subscription.id.to_string(),
        "app": subscription.app_slug,
        "event_type": subscription.event_type.as_str(),
        "name": subscription.display_name,
        "target_kind": subscription.target.kind(),
        "effective_position": subscription.effective_position,
        "actor": actor,
    });
    object(data)
}

fn about_type(event_type: &EventType, actor: &str) -> Map<String, Value> {
    let mut data = object(json!({
        "event_type": event_type.name.as_str(),
        "phase": match event_type.phase { Phase::Pre => "PRE", Phase::Post => "POST" },
        "display_name": event_type.display_name,
        "actor": actor,
    }));
    if event_type.latest_schema > 0 {
        data.insert("schema_version".to_owned(), event_type.latest_schema.into());
    }
    data
}

fn subscription_changes(before: &Subscription, after: &Subscription) -> Map<String, Value> {
    let mut changes = Map::new();
    let filter = |subscription: &Subscription| subscription.filter.as_ref().map(|filter| filter.source().to_owned());
    change(&mut changes, "display_name", &json!(before.display_name), &json!(after.display_name));
    change(&mut changes, "filter", &json!(filter(before)), &json!(filter(after)));
    change(&mut changes, "schema_version", &json!(before.schema_version), &json!(after.schema_version));
    change(&mut changes, "state", &json!(state(before.state)), &json!(state(after.state)));
    if before.target != after.target {
        // What differs may be a part that is not told: the change is told all the same.
        changes
            .insert("target".to_owned(), json!({ "before": target(&before.target), "after": target(&after.target) }));
    }
    if before.policy != after.policy {
        changes.insert("delivery_policy".to_owned(), json!({ "before": policy(before), "after": policy(after) }));
    }
    let veto = |subscription: &Subscription| json!(subscription.pre_policy.as_ref().map(pre_policy));
    change(&mut changes, "pre_policy", &veto(before), &veto(after));
    changes
}

fn change(changes: &mut Map<String, Value>, name: &str, before: &Value, after: &Value) {
    if before == after {
        return;
    }
    let sides = [("before", before), ("after", after)].into_iter().filter(|(_, value)| !value.is_null());
    let sides: Map<String, Value> = sides.map(|(side, value)| (side.to_owned(), value.clone())).collect();
    changes.insert(name.to_owned(), sides.into());
}

fn target(target: &Target) -> Value {
    let Target::Webhook(webhook) = target;
    let uri = webhook.uri.to_string();
    let mode = match webhook.mode {
        WebhookMode::Structured => "STRUCTURED",
        WebhookMode::Binary => "BINARY",
        WebhookMode::Raw => "RAW",
    };
    let headers: Vec<&str> = webhook.headers().iter().map(|(name, _)| name.as_str()).collect();
    json!({ "uri": uri.split('?').next(), "mode": mode, "headers": headers })
}

fn policy(subscription: &Subscription) -> Value {
    let policy = &subscription.policy;
    let seconds = |duration: std::time::Duration| duration.as_secs_f64();
    json!({
        "max_attempts": policy.max_attempts(),
        "initial_backoff_seconds": seconds(policy.initial_backoff()),
        "max_backoff_seconds": seconds(policy.max_backoff()),
        "timeout_seconds": seconds(policy.timeout()),
        "max_in_flight": policy.max_in_flight(),
        "rate_limit": policy.rate_limit().map(|limit| json!({
            "count": limit.count(),
            "interval_seconds": seconds(limit.interval()),
        })),
        "circuit_breaker": policy.circuit_breaker().map(|breaker| json!({
            "failure_threshold": breaker.failure_threshold(),
            "open_seconds": seconds(breaker.open_duration()),
        })),
        "auto_disable_after_seconds": seconds(policy.auto_disable_after()),
        "ordering": policy.ordering().map(|ordering| json!({
            "key": ordering.key.source(),
            "on_dead_letter": match ordering.on_dead_letter {
                OnDeadLetter::Skip => "SKIP",
                OnDeadLetter::Block => "BLOCK",
            },
        })),
    })
}

fn pre_policy(policy: &PrePolicy) -> Value {
    let failure_policy = match policy.failure_policy {
        FailurePolicy::Fail => "FAIL",
        FailurePolicy::Ignore => "IGNORE",
    };
    let enrich_paths: Vec<String> = policy.enrich_paths.iter().map(EnrichPath::to_string).collect();
    json!({ "failure_policy": failure_policy, "priority": policy.priority, "enrich_paths": enrich_paths })
}

fn state(state: State) -> &'static str {
    match state {
        State::Active => "ACTIVE",
        State::Disabled => "DISABLED",
        State::Deleted => "DELETED",
    }
}

fn time(at: DateTime<Utc>) -> Value {
    at.to_rfc3339().into()
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event_type::{EventTypeName, Origin};
    use crate::domain::ids::EventId;
    use crate::domain::pre::AbortReason;

    fn event_type() -> EventType {
        EventType {
            name: EventTypeName::parse("CUSTOM_TOLD").expect("a name"),
            origin: Origin::Custom,
            phase: Phase::Post,
            display_name: "Told".to_owned(),
            description: String::new(),
            latest_schema: 0,
            compatibility: crate::domain::schema::compatibility::Compatibility::None,
            created_at: DateTime::UNIX_EPOCH,
            updated_at: DateTime::UNIX_EPOCH,
            deleted_at: None,
        }
    }

    fn delayed() -> Event {
        let id = EventId(uuid::Uuid::from_u128(7));
        Event {
            id,
            event_type: EventTypeName::parse("CUSTOM_LATER").expect("a name"),
            schema_version: 0,
            source: "/tests".to_owned(),
            subject: None,
            time: DateTime::UNIX_EPOCH,
            content_type: None,
            extensions: Vec::new(),
            data: crate::domain::event::Data::Text("\"secret\"".into()),
            lineage: Lineage::root(id),
        }
    }

    #[test]
    fn what_is_told_fits_the_schema_of_its_type() {
        let before = event_type();
        let gone = EventType { deleted_at: Some(DateTime::UNIX_EPOCH), ..before.clone() };
        let grown = EventType { latest_schema: 1, ..before.clone() };
        let replay = Some(ReplayGap { from: 1, to: 3 });
        let expired = Expired { waiting: 1, dead_letters: 0, replay, first: 1, last: 2 };
        let day = NaiveDate::default();
        let (event, reason) = (delayed(), AbortReason::Unpublishable);
        let aborted = Aborted { event: event.id, reason, message: "gone".to_owned(), verdicts: Vec::new() };
        let epoch = DateTime::UNIX_EPOCH;
        let late = Announcement::delayed_event_aborted(&event, epoch, epoch, &aborted, epoch);
        assert_eq!(late.lineage, None, "a root that never was");
        let followed = Event { lineage: Lineage { depth: 2, ..event.lineage.clone() }, ..event };
        let (matched, refused) = ([].into(), [1].into());
        let entry = LogEntry { position: 1, committed_at: epoch, event: followed.into(), matched, refused };
        let exhausted = Announcement::chain_budget_exhausted(&entry, 1, None, 10);
        let cause = exhausted.lineage.as_ref().and_then(|lineage| lineage.cause);
        assert_eq!(cause, Some(entry.invocation(1)), "it follows from what is refused");
        let told = [
            (CHAIN_BUDGET_EXHAUSTED, exhausted),
            ("EVENT_TYPE_CREATED", Announcement::event_type_created(&before, "key_1")),
            ("EVENT_TYPE_UPDATED", Announcement::event_type_changed(&before, &grown, "key_1")),
            ("EVENT_TYPE_DELETED", Announcement::event_type_changed(&before, &gone, "key_1")),
            ("EVENT_TYPE_UPDATED", Announcement::event_type_changed(&gone, &before, "key_1")),
            (
                "INVOCATIONS_EXPIRED",
                Announcement::invocations_expired(("sub_1", "shop"), &expired, day, DateTime::UNIX_EPOCH),
            ),
            (
                "INVOCATIONS_EXPIRED",
                Announcement::invocations_expired(("sub_1", ""), &expired, day, DateTime::UNIX_EPOCH),
            ),
            ("DELAYED_EVENT_ABORTED", late),
        ];
        let catalogue = Catalogue::builtin();
        for (name, told) in told {
            assert_eq!(told.event_type, name);
            let schema =
                &catalogue.get(name).expect("in the catalogue").schema.as_ref().expect("has a schema").1.schema;
            assert_eq!(schema.validate(told.data.to_string().as_bytes()), Ok(()), "{name}: {}", told.data);
        }
    }
}
