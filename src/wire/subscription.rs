//! Subscriptions between proto and domain.

mod expressions;
mod policy;

use super::event_type::{mask_error, parse_name};
use super::pre::{self, PrePart};
use super::time::timestamp_to_proto;
use super::{FieldError, slug};
use crate::domain::access::Role;
use crate::domain::event_type::EventTypeName;
use crate::domain::filter::{Filter, FilterError};
use crate::domain::ids::SubscriptionId;
use crate::domain::pre::PrePolicy;
use crate::domain::retry::DeliveryPolicy;
use crate::domain::signing::Scheme;
use crate::domain::subscription::{State, Subscription, Target};
use crate::domain::webhook::{SigningSecret, WebhookMode, WebhookTarget, WebhookUri, parse_headers};
use crate::proto::public as proto;
use expressions::parse_key;
pub use expressions::{expression_bytes, parse_filter};
use pbjson_types::FieldMask;
use policy::{PolicyPart, circuit_to_proto, parse_policy, policy_to_proto, update_policy};
use std::collections::BTreeMap;

/// Why a request that holds a filter is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubscriptionError {
    /// A field breaks its shape or bound.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The filter does not compile or is too costly.
    #[error("{field}: {error}")]
    Filter {
        /// Its path in the request.
        field: String,
        /// What is wrong, and where.
        error: FilterError,
    },
}

/// A Subscribe request whose fields are well formed.
#[derive(Debug, Clone)]
pub struct ParsedSubscribe {
    /// Slug of the app.
    pub app: String,
    /// What it listens to.
    pub event_type: EventTypeName,
    /// What it runs.
    pub target: Target,
    /// Name for people.
    pub display_name: String,
    /// When it fires.
    pub filter: Option<Filter>,
    /// The schema version it is pinned to; 0 for none.
    pub schema_version: i32,
    /// How it is attempted.
    pub policy: DeliveryPolicy,
    /// What its answer counts for, where the request says so.
    pub pre_policy: Option<PrePolicy>,
    /// The signing secret the caller brings.
    pub secret: Option<SigningSecret>,
    /// What a new one is to be made for; none where the caller does not say.
    pub scheme: Option<Scheme>,
}

/// Which subscription an Unsubscribe request names.
#[derive(Debug, Clone, PartialEq)]
pub enum Unsubscribed {
    /// By its id.
    Id(SubscriptionId),
    /// By what makes it unique.
    Target {
        /// Slug of the app.
        app: String,
        /// What it listens to.
        event_type: EventTypeName,
        /// What it runs; of a webhook only the URI counts.
        target: Target,
    },
}

/// What an UpdateSubscription request changes.
#[derive(Debug, Clone, Default)]
pub struct SubscriptionPatch {
    changes: Vec<Change>,
    /// The policy as the request has it.
    policy: proto::DeliveryPolicy,
}

/// One changed part of a subscription; what the request leaves out of a chosen part is its default here.
#[derive(Debug, Clone)]
enum Change {
    DisplayName(String),
    Filter(Option<Filter>),
    SchemaVersion(i32),
    Uri(WebhookUri),
    Mode(WebhookMode),
    Headers(Vec<(String, String)>),
    Policy(PolicyPart),
    Pre(PrePart, PrePolicy),
    /// All of it; none for the default one, where the subscription has any.
    Veto(Option<PrePolicy>),
}

/// A part of a subscription that can be updated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    DisplayName,
    Filter,
    SchemaVersion,
    Uri,
    Mode,
    Headers,
    Policy(PolicyPart),
    Pre(PrePart),
}

impl Part {
    /// Everything but the veto, which only subscriptions to PRE types have.
    fn all() -> Vec<Self> {
        let own = [Self::DisplayName, Self::Filter, Self::SchemaVersion, Self::Uri, Self::Mode, Self::Headers];
        own.into_iter().chain(PolicyPart::ALL.map(Self::Policy)).collect()
    }
}

/// Checks the fields of a Subscribe request.
pub fn parse_subscribe(request: proto::SubscribeRequest) -> Result<ParsedSubscribe, SubscriptionError> {
    let proto::SubscribeRequest {
        app,
        event_type,
        target,
        display_name,
        filter,
        delivery_policy,
        signing_secret,
        schema_version,
        pre_policy,
        signature_scheme,
        ..
    } = request;
    let secret = parse_secret("signing_secret", &signing_secret)?;
    Ok(ParsedSubscribe {
        app: slug("app", app)?,
        event_type: parse_name("event_type", &event_type)?,
        target: parse_target("target", target)?,
        display_name: super::display_name("display_name", display_name)?,
        filter: parse_filter("filter", &filter)?,
        schema_version: parse_version("schema_version", schema_version)?,
        policy: parse_policy("delivery_policy", delivery_policy.as_ref(), parse_key)?,
        pre_policy: pre_policy.map(|policy| pre::parse("pre_policy", &policy)).transpose()?,
        scheme: parse_scheme("signature_scheme", signature_scheme, secret.as_ref())?,
        secret,
    })
}

/// Checks which subscription an Unsubscribe request names: by its id, or by app, event type and target, not both.
pub fn parse_unsubscribe(request: proto::UnsubscribeRequest) -> Result<Unsubscribed, FieldError> {
    let proto::UnsubscribeRequest { subscription_id, app, event_type, target, .. } = request;
    if subscription_id.is_empty() {
        return Ok(Unsubscribed::Target {
            app: slug("app", app)?,
            event_type: parse_name("event_type", &event_type)?,
            target: parse_target("target", target.map(only_uri))?,
        });
    }
    let given = [("app", !app.is_empty()), ("event_type", !event_type.is_empty()), ("target", target.is_some())];
    match given.into_iter().find(|(_, set)| *set) {
        Some((field, _)) => Err(FieldError::new(field, "must be empty where subscription_id is given")),
        None => parse_id("subscription_id", &subscription_id).map(Unsubscribed::Id),
    }
}

/// Drops everything of a target that does not make it unique.
fn only_uri(target: proto::Target) -> proto::Target {
    let kind = target.kind.map(|proto::target::Kind::Webhook(webhook)| {
        proto::target::Kind::Webhook(proto::WebhookTarget { uri: webhook.uri, ..Default::default() })
    });
    proto::Target { kind }
}

/// Checks a subscription's id.
pub fn parse_id(field: &str, id: &str) -> Result<SubscriptionId, FieldError> {
    if id.is_empty() {
        return Err(FieldError::new(field, "is required"));
    }
    SubscriptionId::parse(id).map_err(|error| FieldError::new(field, error.to_string()))
}

/// Checks a webhook's signing secret; none where it is empty.
pub fn parse_secret(field: &str, secret: &str) -> Result<Option<SigningSecret>, FieldError> {
    if secret.is_empty() {
        return Ok(None);
    }
    let parsed = SigningSecret::parse(secret);
    let rule = "must be whsec_ and standard base64 of 24 to 64 bytes, or whsk_ and that of an Ed25519 private key";
    parsed.map(Some).ok_or_else(|| FieldError::new(field, rule))
}

/// Checks what a signing secret is to be made for; none where it is not set. A secret that is given must be of that scheme.
pub fn parse_scheme(field: &str, scheme: i32, given: Option<&SigningSecret>) -> Result<Option<Scheme>, FieldError> {
    let scheme = match proto::SignatureScheme::try_from(scheme) {
        Ok(proto::SignatureScheme::Unspecified) => return Ok(None),
        Ok(proto::SignatureScheme::V1) => Scheme::V1,
        Ok(proto::SignatureScheme::V1a) => Scheme::V1a,
        Err(_) => return Err(FieldError::new(field, "is not a known value")),
    };
    if given.is_some_and(|secret| secret.scheme() != scheme) {
        return Err(FieldError::new(field, "is not that of signing_secret: leave it unset, or the secret empty"));
    }
    Ok(Some(scheme))
}

/// Checks the states of a list; none means ACTIVE and DISABLED.
pub fn parse_states(field: &str, states: &[i32]) -> Result<Vec<State>, FieldError> {
    let mut parsed = Vec::new();
    for (index, state) in states.iter().enumerate() {
        let add: &[State] = match proto::SubscriptionState::try_from(*state) {
            Ok(proto::SubscriptionState::Unspecified) => &[State::Active, State::Disabled],
            Ok(proto::SubscriptionState::Active) => &[State::Active],
            Ok(proto::SubscriptionState::Disabled) => &[State::Disabled],
            Ok(proto::SubscriptionState::Deleted) => &[State::Deleted],
            Err(_) => return Err(FieldError::new(format!("{field}[{index}]"), "is not a known state")),
        };
        for state in add {
            if !parsed.contains(state) {
                parsed.push(*state);
            }
        }
    }
    Ok(if parsed.is_empty() { vec![State::Active, State::Disabled] } else { parsed })
}

/// Checks a schema version to pin to; 0 for none.
pub fn parse_version(field: &str, version: i32) -> Result<i32, FieldError> {
    if version < 0 { Err(FieldError::new(field, "must not be negative")) } else { Ok(version) }
}

/// Checks a target of exactly one kind.
pub fn parse_target(field: &str, target: Option<proto::Target>) -> Result<Target, FieldError> {
    let Some(proto::target::Kind::Webhook(webhook)) = target.and_then(|target| target.kind) else {
        return Err(FieldError::new(field, "must be set to exactly one kind: webhook"));
    };
    Ok(Target::Webhook(WebhookTarget {
        uri: parse_uri(field, &webhook.uri)?,
        mode: parse_mode(field, webhook.mode)?,
        headers: Some(parse_webhook_headers(field, webhook.headers)?),
    }))
}

fn parse_uri(target: &str, uri: &str) -> Result<WebhookUri, FieldError> {
    let field = || format!("{target}.webhook.uri");
    if uri.is_empty() {
        return Err(FieldError::new(field(), "is required"));
    }
    WebhookUri::parse(uri).map_err(|error| FieldError::new(field(), error.to_string()))
}

fn parse_mode(target: &str, mode: i32) -> Result<WebhookMode, FieldError> {
    match proto::WebhookMode::try_from(mode) {
        Ok(proto::WebhookMode::Unspecified | proto::WebhookMode::Structured) => Ok(WebhookMode::Structured),
        Ok(proto::WebhookMode::Binary) => Ok(WebhookMode::Binary),
        Ok(proto::WebhookMode::Raw) => Ok(WebhookMode::Raw),
        Err(_) => Err(FieldError::new(format!("{target}.webhook.mode"), "is not a known mode")),
    }
}

fn parse_webhook_headers(target: &str, headers: BTreeMap<String, String>) -> Result<Vec<(String, String)>, FieldError> {
    let field = format!("{target}.webhook.headers");
    let count = headers.len();
    match parse_headers(headers) {
        Ok(parsed) if parsed.len() < count => Err(FieldError::new(field, "names the same header twice")),
        Ok(parsed) => Ok(parsed),
        Err(error) => Err(FieldError::new(field, error.to_string())),
    }
}

/// The path of a mask that replaces all that can be updated.
const EVERYTHING: &str = "*";
const UPDATABLE: &str = "display_name, filter, schema_version, target, delivery_policy, pre_policy, their fields, or *";

/// The parts that a mask names, each once.
fn parts_of_mask(paths: &[String]) -> Result<Vec<Part>, FieldError> {
    let mut parts = Vec::new();
    for path in paths {
        let named = match path.as_str() {
            // The whole of it, as AIP-134 has it: what is left out is its default.
            EVERYTHING => Part::all(),
            "display_name" => vec![Part::DisplayName],
            "filter" => vec![Part::Filter],
            "schema_version" => vec![Part::SchemaVersion],
            "target" | "target.webhook" => vec![Part::Uri, Part::Mode, Part::Headers],
            "target.webhook.uri" => vec![Part::Uri],
            "target.webhook.mode" => vec![Part::Mode],
            "target.webhook.headers" => vec![Part::Headers],
            "delivery_policy" => PolicyPart::ALL.map(Part::Policy).to_vec(),
            "pre_policy" => PrePart::ALL.map(Part::Pre).to_vec(),
            "pre_policy.failure_policy" => vec![Part::Pre(PrePart::FailurePolicy)],
            "pre_policy.priority" => vec![Part::Pre(PrePart::Priority)],
            "pre_policy.enrich_paths" => vec![Part::Pre(PrePart::EnrichPaths)],
            other => match other.strip_prefix("delivery_policy.").and_then(PolicyPart::named) {
                Some(part) => vec![Part::Policy(part)],
                None => return Err(mask_error(other, UPDATABLE)),
            },
        };
        for part in named {
            if !parts.contains(&part) {
                parts.push(part);
            }
        }
    }
    Ok(parts)
}

/// Checks what an UpdateSubscription request changes; an empty mask means the fields that are set.
pub fn parse_patch(
    subscription: proto::Subscription,
    mask: Option<&FieldMask>,
) -> Result<SubscriptionPatch, SubscriptionError> {
    let proto::Subscription { display_name, filter, target, delivery_policy, schema_version, pre_policy, .. } =
        subscription;
    let webhook = target.and_then(|target| target.kind).map(|proto::target::Kind::Webhook(webhook)| webhook);
    let webhook = webhook.unwrap_or_default();
    let policy = delivery_policy.unwrap_or_default();
    let veto_given = pre_policy.is_some();
    let veto = pre_policy.unwrap_or_default();
    let paths = mask.map(|mask| mask.paths.as_slice()).unwrap_or_default();
    let mut parts: Vec<Part> = if paths.is_empty() {
        let parts = [
            (Part::DisplayName, !display_name.is_empty()),
            (Part::Filter, !filter.is_empty()),
            (Part::SchemaVersion, schema_version != 0),
            (Part::Uri, !webhook.uri.is_empty()),
            (Part::Mode, webhook.mode != 0),
            (Part::Headers, !webhook.headers.is_empty()),
        ];
        let policy = PolicyPart::ALL.map(|part| (Part::Policy(part), part.is_set(&policy)));
        let veto = PrePart::ALL.map(|part| (Part::Pre(part), part.is_set(&veto)));
        parts.into_iter().chain(policy).chain(veto).filter_map(|(part, is_set)| is_set.then_some(part)).collect()
    } else {
        parts_of_mask(paths)?
    };
    // What is made or taken away as a whole is so with its parts.
    let wholes = parts.clone();
    let is_covered = |part: &Part| {
        let whole = if let Part::Policy(part) = part { part.whole() } else { None };
        whole.is_some_and(|whole| wholes.contains(&Part::Policy(whole)))
    };
    parts.retain(|part| !is_covered(part));
    let mut changes = Vec::with_capacity(parts.len());
    for part in parts {
        changes.push(match part {
            Part::DisplayName => {
                Change::DisplayName(super::display_name("subscription.display_name", display_name.clone())?)
            }
            Part::Filter => Change::Filter(parse_filter("subscription.filter", &filter)?),
            Part::SchemaVersion => Change::SchemaVersion(parse_version("subscription.schema_version", schema_version)?),
            Part::Uri => Change::Uri(parse_uri("subscription.target", &webhook.uri)?),
            Part::Mode => Change::Mode(parse_mode("subscription.target", webhook.mode)?),
            Part::Headers => Change::Headers(parse_webhook_headers("subscription.target", webhook.headers.clone())?),
            Part::Policy(part) => {
                let ordering = policy.ordering.as_ref().filter(|_| part.has_key());
                parse_key("subscription.delivery_policy.ordering.key", ordering.map_or("", |ordering| &ordering.key))?;
                Change::Policy(part)
            }
            Part::Pre(part) => Change::Pre(part, pre::parse("subscription.pre_policy", &veto)?),
        });
    }
    if paths.iter().any(|path| path == EVERYTHING) {
        let veto = veto_given.then(|| pre::parse("subscription.pre_policy", &veto)).transpose()?;
        changes.push(Change::Veto(veto));
    }
    Ok(SubscriptionPatch { changes, policy })
}

impl SubscriptionPatch {
    /// The new webhook URI, where it changes.
    pub fn uri(&self) -> Option<&WebhookUri> {
        self.changes.iter().find_map(|change| if let Change::Uri(uri) = change { Some(uri) } else { None })
    }

    /// The schema version to pin to, where that changes; 0 for none.
    pub fn schema_version(&self) -> Option<i32> {
        self.changes.iter().find_map(|change| if let Change::SchemaVersion(pin) = change { Some(*pin) } else { None })
    }

    /// True where nothing was chosen.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The subscription with the chosen parts replaced; the policy's bounds are checked on the result.
    pub fn apply(&self, mut subscription: Subscription) -> Result<Subscription, SubscriptionError> {
        let Target::Webhook(webhook) = &mut subscription.target;
        let mut policy = policy_to_proto(&subscription.policy);
        for change in self.changes.iter().cloned() {
            match change {
                Change::DisplayName(name) => subscription.display_name = name,
                Change::Filter(filter) => subscription.filter = filter,
                Change::SchemaVersion(version) => subscription.schema_version = version,
                Change::Uri(uri) => webhook.uri = uri,
                Change::Mode(mode) => webhook.mode = mode,
                Change::Headers(headers) => webhook.headers = Some(headers),
                Change::Policy(part) => {
                    if let Some(missing) = part.misses(&policy) {
                        let field = format!("subscription.delivery_policy.{missing}");
                        return Err(
                            FieldError::new(field, "is required: there is nothing yet that it is a part of").into()
                        );
                    }
                    part.copy(&self.policy, &mut policy);
                }
                Change::Veto(whole) => match (&mut subscription.pre_policy, whole) {
                    (Some(veto), whole) => *veto = whole.unwrap_or_default(),
                    (None, None) => {}
                    (None, Some(_)) => return Err(FieldError::new("subscription.pre_policy", pre::ONLY_PRE).into()),
                },
                Change::Pre(part, changed) => match &mut subscription.pre_policy {
                    Some(veto) => part.copy(&changed, veto),
                    None => return Err(FieldError::new("subscription.pre_policy", pre::ONLY_PRE).into()),
                },
            }
        }
        update_policy("subscription.delivery_policy", &mut subscription, &policy)?;
        Ok(subscription)
    }
}

/// A subscription as the API shows it.
pub fn to_proto(subscription: &Subscription) -> proto::Subscription {
    let state = match subscription.state {
        State::Active => proto::SubscriptionState::Active,
        State::Disabled => proto::SubscriptionState::Disabled,
        State::Deleted => proto::SubscriptionState::Deleted,
    };
    proto::Subscription {
        id: subscription.id.to_string(),
        app: subscription.app_slug.clone(),
        event_type: subscription.event_type.as_str().to_owned(),
        display_name: subscription.display_name.clone(),
        filter: subscription.filter.as_ref().map(|filter| filter.source().to_owned()).unwrap_or_default(),
        target: Some(target_to_proto(&subscription.target)),
        delivery_policy: Some(policy_to_proto(&subscription.policy)),
        pre_policy: subscription.pre_policy.as_ref().map(pre::to_proto),
        state: state.into(),
        state_reason: subscription.state_reason.clone(),
        effective_position: subscription.effective_position,
        create_time: Some(timestamp_to_proto(subscription.created_at)),
        update_time: Some(timestamp_to_proto(subscription.updated_at)),
        delete_time: subscription.deleted_at.map(timestamp_to_proto),
        etag: subscription.registry_version.to_string(),
        schema_version: subscription.schema_version,
        circuit: Some(circuit_to_proto(&subscription.circuit)),
        paused_until: subscription.paused_until.map(timestamp_to_proto),
    }
}

/// A subscription as a caller of a role sees it: to one who may not change it, what may hold credentials is withheld, which is the query
/// of the target's URI and the values of its headers.
pub fn to_proto_for(role: Role, subscription: &Subscription) -> proto::Subscription {
    let mut shown = to_proto(subscription);
    if role < Role::Subscriber
        && let Some(proto::target::Kind::Webhook(webhook)) =
            shown.target.as_mut().and_then(|target| target.kind.as_mut())
    {
        webhook.headers.values_mut().for_each(String::clear);
        webhook.uri.truncate(webhook.uri.find('?').unwrap_or(webhook.uri.len()));
    }
    shown
}

/// A state's name as the API spells it.
pub fn state_name(state: State) -> &'static str {
    match state {
        State::Active => "ACTIVE",
        State::Disabled => "DISABLED",
        State::Deleted => "DELETED",
    }
}

fn target_to_proto(target: &Target) -> proto::Target {
    let Target::Webhook(webhook) = target;
    let mode = match webhook.mode {
        WebhookMode::Structured => proto::WebhookMode::Structured,
        WebhookMode::Binary => proto::WebhookMode::Binary,
        WebhookMode::Raw => proto::WebhookMode::Raw,
    };
    let webhook = proto::WebhookTarget {
        uri: webhook.uri.to_string(),
        mode: mode.into(),
        headers: webhook.headers().iter().cloned().collect(),
    };
    proto::Target { kind: Some(proto::target::Kind::Webhook(webhook)) }
}

#[cfg(test)]
mod tests;
