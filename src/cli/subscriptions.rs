//! `carillon subscriptions`: lists subscriptions and changes them.

use std::time::Duration;

use clap::{Arg, Subcommand, ValueEnum};
use comfy_table::Cell;

use super::client::{PublicArgs, PublicClient, call};
use super::error::CliError;
use super::output::{Output, counted, duration, excerpt, note, short, state_cell, time};
use super::subscribe::{Mode, PolicyArgs, PreArgs, SHOWN_ONCE, Scheme, secret_fields, secret_text};
use super::values::{parse_duration, parse_pair};
use crate::proto::public::target::Kind;
use crate::proto::public::{
    DisableSubscriptionRequest, EnableSubscriptionRequest, GetSubscriptionRequest, ListSubscriptionsRequest,
    OnDeadLetter, OrderingPolicy, RateLimit, ReplayGap, RotateSubscriptionSecretRequest, Subscription,
    SubscriptionState, Target, UndeleteSubscriptionRequest, UpdateSubscriptionRequest, WebhookTarget,
};

const EXAMPLES: &str = "Examples:
  carillon subscriptions list --type USER_CREATE
  carillon subscriptions list --state deleted --json | jq -r .id
  carillon subscriptions disable sub_...
  carillon subscriptions update sub_... --filter 'data.amount > 100' --max-in-flight 4
  carillon subscriptions rotate-secret sub_... --overlap 2h";

/// The answer does not tell whether a replay is under way.
const ACTIVE_ALREADY: &str = "It was active already, so no replay starts. One that was asked for when it was made active, and is not over \
                              yet, goes on; otherwise what it missed before stays missed.";

/// The largest page the server gives.
const PAGE: i32 = 1000;

/// List, inspect and change subscriptions
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct SubscriptionsArgs {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    public: PublicArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List subscriptions, oldest first
    #[command(after_help = "Examples:
  carillon subscriptions list --type USER_CREATE
  carillon subscriptions list --state deleted --json | jq -r .id")]
    List {
        /// Only this app
        #[arg(long, value_name = "SLUG", default_value = "", hide_default_value = true)]
        app: String,
        /// Only this event type
        #[arg(long = "type", value_name = "TYPE", default_value = "", hide_default_value = true)]
        event_type: String,
        /// Only this state; may be given several times [default: active and disabled]
        #[arg(long, ignore_case = true)]
        state: Vec<State>,
        /// At most this many; 0 for all
        #[arg(long, default_value_t = 0, value_name = "N")]
        limit: usize,
    },
    /// Show one subscription
    #[command(after_help = "Examples:
  carillon subscriptions get sub_...")]
    Get {
        /// Id of the subscription
        #[arg(value_name = "SUBSCRIPTION_ID")]
        id: String,
    },
    /// Make a disabled subscription fire again
    #[command(after_help = "Examples:
  carillon subscriptions enable sub_...
  carillon subscriptions enable sub_... --replay-missed")]
    Enable {
        #[command(flatten)]
        changed: Changed,
        /// Also deliver what it missed since it was last active
        #[arg(long)]
        replay_missed: bool,
    },
    /// Stop a subscription from executing
    #[command(after_help = "Examples:
  carillon subscriptions disable sub_...")]
    Disable(Changed),
    /// Restore a subscription that was ended
    #[command(after_help = "Examples:
  carillon subscriptions undelete sub_... --replay-missed")]
    Undelete {
        /// Id of the subscription
        #[arg(value_name = "SUBSCRIPTION_ID")]
        id: String,
        /// Also deliver what it missed since it was last active; enabling it later does not, as it is active then
        #[arg(long)]
        replay_missed: bool,
    },
    /// Change name, filter, webhook or delivery; what is not given stays as it is
    #[command(after_help = "Examples:
  carillon subscriptions update sub_... --filter 'data.amount > 100' --max-in-flight 4
  carillon subscriptions update sub_... --webhook https://hooks.example.com/orders")]
    Update(Box<UpdateArgs>),
    /// Make a new signing secret; the present ones keep signing beside it for a while
    #[command(after_help = "Examples:
  carillon subscriptions rotate-secret sub_... --overlap 2h")]
    RotateSecret {
        /// Id of the subscription
        #[arg(value_name = "SUBSCRIPTION_ID")]
        id: String,
        /// How long the present secrets keep signing [default: 24h]
        #[arg(long, value_parser = parse_duration, value_name = "DURATION")]
        overlap: Option<Duration>,
        /// The new secret, `whsec_...`, `whsk_...` or @file [default: the server makes one]
        #[arg(long, env = "CARILLON_SIGNING_SECRET", hide_env_values = true, value_name = "SECRET")]
        secret: Option<String>,
        /// How deliveries are signed where the server makes the secret [default: as the newest secret signs]
        #[arg(long, value_enum, value_name = "SCHEME", conflicts_with = "secret")]
        signature: Option<Scheme>,
    },
}

#[derive(Debug, clap::Args)]
struct Changed {
    /// Id of the subscription
    #[arg(value_name = "SUBSCRIPTION_ID")]
    id: String,
    /// Fail where the subscription's etag is another one
    #[arg(long, value_name = "ETAG", default_value = "", hide_default_value = true)]
    etag: String,
}

// The options that a new subscription has too: what is not given does not go back to its default.
#[derive(Debug, clap::Args)]
#[command(mut_args(without_default))]
struct UpdateArgs {
    #[command(flatten)]
    changed: Changed,
    /// Name for people
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// CEL expression; empty fires always
    #[arg(long, value_name = "CEL")]
    filter: Option<String>,
    /// Fire only for events recorded with this version of the type's schema; 0 whatever the version
    #[arg(long, value_name = "N")]
    schema_version: Option<i32>,
    /// The endpoint to call
    #[arg(long, value_name = "URL")]
    webhook: Option<String>,
    /// How the event is put into the request
    #[arg(long)]
    mode: Option<Mode>,
    /// An additional request header; replaces all present ones; may be given several times
    #[arg(long, value_parser = parse_pair, value_name = "NAME=VALUE")]
    header: Vec<(String, String)>,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    pre: PreArgs,
}

/// An option without the default that its help states.
fn without_default(arg: Arg) -> Arg {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    match help.split_once(" [default: ") {
        Some((help, _)) => arg.help(help.to_owned()),
        None => arg,
    }
}

/// Also by the names of the API, and by the words of the commands that lead there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum State {
    #[value(aliases = ["enabled", "subscription_state_active", "subscription_state_enabled"])]
    Active,
    #[value(alias = "subscription_state_disabled")]
    Disabled,
    #[value(aliases = ["unsubscribed", "subscription_state_deleted"])]
    Deleted,
}

/// Says what of the missed events has expired.
fn note_gap(gap: Option<ReplayGap>) {
    if let Some(ReplayGap { from_position, to_position }) = gap {
        let last = to_position - 1;
        note(&format!(
            "The events {from_position} to {last} have expired: those that it missed of them are not replayed."
        ));
    }
}

/// Runs the subcommand.
pub async fn run(args: SubscriptionsArgs, output: Output) -> Result<(), CliError> {
    let client = args.public.connect().await?;
    let mut events = client.events();
    let subscription = match args.command {
        Command::List { app, event_type, state, limit } => {
            let states = state.into_iter().map(|state| match state {
                State::Active => SubscriptionState::Active.into(),
                State::Disabled => SubscriptionState::Disabled.into(),
                State::Deleted => SubscriptionState::Deleted.into(),
            });
            let request = ListSubscriptionsRequest {
                app,
                event_type,
                states: states.collect(),
                ..ListSubscriptionsRequest::default()
            };
            return list(&client, output, request, limit).await;
        }
        Command::Get { id } => {
            let request = client.request(GetSubscriptionRequest { subscription_id: id });
            call("GetSubscription", events.get_subscription(request)).await?.subscription
        }
        Command::Enable { changed: Changed { id, etag }, replay_missed } => {
            let before = if replay_missed {
                let request = client.request(GetSubscriptionRequest { subscription_id: id.clone() });
                call("GetSubscription", events.get_subscription(request)).await?.subscription
            } else {
                None
            };
            let request = client.request(EnableSubscriptionRequest {
                subscription_id: id,
                etag,
                replay_missed,
                ..Default::default()
            });
            let answer = call("EnableSubscription", events.enable_subscription(request)).await?;
            note_gap(answer.replay_gap);
            // Nothing has changed it in between.
            if let (Some(before), Some(after)) = (&before, &answer.subscription)
                && before.state() == SubscriptionState::Active
                && before.etag == after.etag
            {
                note(ACTIVE_ALREADY);
            }
            answer.subscription
        }
        Command::Disable(Changed { id, etag }) => {
            let request =
                client.request(DisableSubscriptionRequest { subscription_id: id, etag, ..Default::default() });
            call("DisableSubscription", events.disable_subscription(request)).await?.subscription
        }
        Command::Undelete { id, replay_missed } => {
            let request = UndeleteSubscriptionRequest { subscription_id: id, replay_missed, ..Default::default() };
            let answer = call("UndeleteSubscription", events.undelete_subscription(client.request(request))).await?;
            note_gap(answer.replay_gap);
            answer.subscription
        }
        Command::Update(update) => {
            let request = client.request(update_request(*update)?);
            call("UpdateSubscription", events.update_subscription(request)).await?.subscription
        }
        Command::RotateSecret { id, overlap, secret, signature } => {
            let overlap = overlap.map(Into::into);
            let request = RotateSubscriptionSecretRequest {
                subscription_id: id,
                signing_secret: secret_text(secret.as_deref())?,
                overlap,
                signature_scheme: Scheme::to_proto(signature),
                ..Default::default()
            };
            let answer =
                call("RotateSubscriptionSecret", events.rotate_subscription_secret(client.request(request))).await?;
            if output.is_json() {
                return output.document(&answer);
            }
            let until = time(answer.previous_expire_time.as_ref());
            let fields: Vec<_> = secret_fields(answer.signing_secret, answer.public_key).collect();
            output.fields(&[fields, vec![("previous until", until)]].concat())?;
            note(SHOWN_ONCE);
            return Ok(());
        }
    };
    let subscription = subscription.ok_or(CliError::Answer { rpc: "EventService", what: "subscription" })?;
    if output.is_json() { output.document(&subscription) } else { show_subscription(output, &subscription) }
}

/// A rate limit in words.
fn rate(limit: &RateLimit) -> String {
    format!("{} per {}", limit.count, duration(limit.interval.as_ref()))
}

/// A circuit in words.
fn circuit(subscription: &Subscription) -> String {
    let circuit = subscription.circuit.unwrap_or_default();
    let state = short(circuit.state().as_str_name(), "CIRCUIT_STATE_");
    match circuit.since {
        Some(_) => format!("{state} since {}, after {} failures", time(circuit.since.as_ref()), circuit.failures),
        None => state.to_owned(),
    }
}

/// An order of delivery in words.
fn order(ordering: &OrderingPolicy) -> String {
    let block = ordering.on_dead_letter() == OnDeadLetter::Block;
    format!("by {}, a dead letter {} those behind it", ordering.key, if block { "holds up" } else { "lets go" })
}

/// Writes one subscription for people.
pub fn show_subscription(output: Output, subscription: &Subscription) -> Result<(), CliError> {
    output.fields(&fields(subscription))
}

/// What there is to tell of a subscription.
pub fn fields(subscription: &Subscription) -> Vec<(&'static str, String)> {
    let webhook = webhook_of(subscription);
    let policy = subscription.delivery_policy.clone().unwrap_or_default();
    let veto = subscription.pre_policy.as_ref().map(|veto| {
        let enriches = if veto.enrich_paths.is_empty() { "nothing".to_owned() } else { veto.enrich_paths.join(", ") };
        let failure = short(veto.failure_policy().as_str_name(), "PRE_FAILURE_POLICY_").to_owned();
        format!("failure {failure}, priority {}, enriches {enriches}", veto.priority)
    });
    let headers: Vec<_> = webhook.map(|webhook| webhook.headers.keys().cloned().collect()).unwrap_or_default();
    let reason =
        if subscription.state_reason.is_empty() { String::new() } else { format!(" ({})", subscription.state_reason) };
    let (attempts, in_flight) = (counted(policy.max_attempts, "attempt"), policy.max_in_flight);
    let (first, last) = (duration(policy.initial_backoff.as_ref()), duration(policy.max_backoff.as_ref()));
    let timeout = duration(policy.timeout.as_ref());
    vec![
        ("subscription", subscription.id.clone()),
        ("name", subscription.display_name.clone()),
        ("app", subscription.app.clone()),
        ("event type", subscription.event_type.clone()),
        ("filter", subscription.filter.clone()),
        (
            "schema version",
            if subscription.schema_version == 0 { String::new() } else { subscription.schema_version.to_string() },
        ),
        ("webhook", webhook.map(|webhook| webhook.uri.clone()).unwrap_or_default()),
        (
            "mode",
            webhook.map(|webhook| short(webhook.mode().as_str_name(), "WEBHOOK_MODE_").to_owned()).unwrap_or_default(),
        ),
        ("headers", headers.join(", ")),
        ("delivery", format!("{attempts} of {timeout}, back-off {first} to {last}, {in_flight} at the same time")),
        ("rate limit", policy.rate_limit.as_ref().map(rate).unwrap_or_default()),
        ("circuit", policy.circuit_breaker.as_ref().map(|_| circuit(subscription)).unwrap_or_default()),
        ("order", policy.ordering.as_ref().map(order).unwrap_or_default()),
        ("PRE", veto.unwrap_or_default()),
        ("state", format!("{}{reason}", short(subscription.state().as_str_name(), "SUBSCRIPTION_STATE_"))),
        ("paused until", time(subscription.paused_until.as_ref())),
        ("effective after", format!("position {}", subscription.effective_position)),
        ("created", time(subscription.create_time.as_ref())),
        ("updated", time(subscription.update_time.as_ref())),
        ("deleted", time(subscription.delete_time.as_ref())),
        ("etag", subscription.etag.clone()),
    ]
}

async fn list(
    client: &PublicClient,
    output: Output,
    mut request: ListSubscriptionsRequest,
    limit: usize,
) -> Result<(), CliError> {
    let limit = if limit == 0 { usize::MAX } else { limit };
    let mut subscriptions = Vec::new();
    loop {
        request.page_size = i32::try_from(limit - subscriptions.len()).unwrap_or(PAGE).min(PAGE);
        let page = client.request(request.clone());
        let answer = call("ListSubscriptions", client.events().list_subscriptions(page)).await?;
        subscriptions.extend(answer.subscriptions);
        request.page_token = answer.next_page_token;
        if request.page_token.is_empty() || subscriptions.len() >= limit {
            break;
        }
    }
    subscriptions.truncate(limit);
    if output.is_json() {
        return subscriptions.iter().try_for_each(|subscription| output.document(subscription));
    }
    let rows = subscriptions.iter().map(|subscription| {
        vec![
            Cell::new(&subscription.id),
            Cell::new(&subscription.app),
            Cell::new(&subscription.event_type),
            state_cell(short(subscription.state().as_str_name(), "SUBSCRIPTION_STATE_")),
            Cell::new(webhook_of(subscription).map(|webhook| excerpt(&webhook.uri, 60)).unwrap_or_default()),
            Cell::new(excerpt(&subscription.filter, 40)),
        ]
    });
    output.table(&["SUBSCRIPTION", "APP", "EVENT TYPE", "STATE", "WEBHOOK", "FILTER"], rows.collect())
}

fn update_request(update: UpdateArgs) -> Result<UpdateSubscriptionRequest, CliError> {
    let (policy, mut paths) = update.policy.to_proto()?;
    let mut webhook = WebhookTarget::default();
    let mut subscription = Subscription {
        id: update.changed.id,
        etag: update.changed.etag,
        delivery_policy: Some(policy),
        pre_policy: update.pre.to_proto(),
        ..Subscription::default()
    };
    paths.extend(update.pre.paths());
    if let Some(name) = update.name {
        subscription.display_name = name;
        paths.push("display_name".to_owned());
    }
    if let Some(filter) = update.filter {
        subscription.filter = filter;
        paths.push("filter".to_owned());
    }
    if let Some(version) = update.schema_version {
        subscription.schema_version = version;
        paths.push("schema_version".to_owned());
    }
    if let Some(uri) = update.webhook {
        webhook.uri = uri;
        paths.push("target.webhook.uri".to_owned());
    }
    if let Some(mode) = update.mode {
        webhook.set_mode(mode.to_proto());
        paths.push("target.webhook.mode".to_owned());
    }
    if !update.header.is_empty() {
        webhook.headers = update.header.into_iter().collect();
        paths.push("target.webhook.headers".to_owned());
    }
    if paths.is_empty() {
        return Err(CliError::Usage("nothing to change: give at least one option, such as --filter".to_owned()));
    }
    if paths.iter().any(|path| path.starts_with("target.")) {
        subscription.target = Some(Target { kind: Some(Kind::Webhook(webhook)) });
    }
    Ok(UpdateSubscriptionRequest {
        subscription: Some(subscription),
        update_mask: Some(pbjson_types::FieldMask { paths }),
        ..Default::default()
    })
}

/// The webhook that a subscription calls.
pub fn webhook_of(subscription: &Subscription) -> Option<&WebhookTarget> {
    match subscription.target.as_ref()?.kind.as_ref()? {
        Kind::Webhook(webhook) => Some(webhook),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Args as _;

    #[test]
    fn an_update_states_no_defaults_where_what_is_not_given_stays() {
        let update = UpdateArgs::augment_args(clap::Command::new("update")).render_help().to_string();
        let open = "How long that is\n";
        assert!(update.contains(open) && !update.contains("[default"), "{update}");
    }
}
