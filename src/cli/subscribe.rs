//! `carillon subscribe`: links a webhook to an event type.

use std::time::Duration;

use clap::{ArgGroup, ValueEnum};

use super::client::{PublicArgs, call};
use super::error::CliError;
use super::output::{Output, note};
use super::subscriptions::fields;
use super::values::{parse_duration, parse_pair, read_secret};
use crate::proto::public::target::Kind;
use crate::proto::public::{
    CircuitBreaker, DeliveryPolicy, OnDeadLetter, OrderingPolicy, PreFailurePolicy, PrePolicy, RateLimit,
    SignatureScheme, SubscribeRequest, Target, WebhookMode, WebhookTarget,
};

const EXAMPLES: &str = r"Examples:
  carillon subscribe USER_CREATE --webhook https://hooks.example.com/users
  carillon subscribe CUSTOM_ORDER_PLACED --webhook http://127.0.0.1:9000/ --filter 'data.amount > 100'
  carillon subscribe ROW_CREATED --webhook https://hooks.example.com/rows --mode binary --max-attempts 20 --timeout 5s
  carillon subscribe USER_UPDATE --webhook https://hooks.example.com/users --ordering-key data.user_id";

/// Subscribe a webhook to an event type
#[derive(Debug, clap::Args)]
#[command(
    after_help = EXAMPLES,
    // Where there is nothing yet, a part that means nothing alone has nothing to go with.
    group = ArgGroup::new("of_order").arg("ordering_dead_letter").requires("ordering_key"),
    group = ArgGroup::new("of_circuit").arg("circuit_open").requires("circuit_failures"),
)]
pub struct SubscribeArgs {
    /// Name of the event type
    #[arg(value_name = "TYPE")]
    event_type: String,
    /// The endpoint to call
    #[arg(long, value_name = "URL")]
    webhook: String,
    /// How the event is put into the request
    #[arg(long, default_value = "structured")]
    mode: Mode,
    /// An additional request header; may be given several times
    #[arg(long, value_parser = parse_pair, value_name = "NAME=VALUE")]
    header: Vec<(String, String)>,
    /// App that owns the subscription [default: that of client.toml]
    #[arg(long, env = "CARILLON_APP", value_name = "SLUG")]
    app: Option<String>,
    /// Name for people
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    name: String,
    /// CEL expression over `event` and `data`; the webhook is called only where it is true
    #[arg(long, value_name = "CEL", default_value = "", hide_default_value = true)]
    filter: String,
    /// Fire only for events recorded with this version of the type's schema; 0 whatever the version
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    schema_version: i32,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    pre: PreArgs,
    /// Signing secret, `whsec_...`, `whsk_...` or @file [default: the server makes one]
    #[arg(long, env = "CARILLON_SIGNING_SECRET", hide_env_values = true, value_name = "SECRET")]
    secret: Option<String>,
    /// How deliveries are signed where the server makes the secret [default: v1]
    #[arg(long, value_enum, value_name = "SCHEME", conflicts_with = "secret")]
    signature: Option<Scheme>,
    /// Makes a retry of this command safe
    #[arg(long, value_name = "KEY", default_value = "", hide_default_value = true)]
    request_id: String,
    #[command(flatten)]
    public: PublicArgs,
}

/// How deliveries are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scheme {
    /// HMAC-SHA256: the receiver shares the secret
    V1,
    /// Ed25519: the receiver knows the public key alone
    V1a,
}

impl Scheme {
    /// As the API takes it; unset where none is given.
    pub fn to_proto(scheme: Option<Self>) -> i32 {
        match scheme {
            None => SignatureScheme::Unspecified,
            Some(Self::V1) => SignatureScheme::V1,
            Some(Self::V1a) => SignatureScheme::V1a,
        }
        .into()
    }
}

/// How an event becomes a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// One CloudEvents JSON document
    Structured,
    /// The data as body, the attributes as `ce-` headers
    Binary,
    /// The data as body and nothing else
    Raw,
}

impl Mode {
    /// The mode in the API.
    pub fn to_proto(self) -> WebhookMode {
        match self {
            Self::Structured => WebhookMode::Structured,
            Self::Binary => WebhookMode::Binary,
            Self::Raw => WebhookMode::Raw,
        }
    }
}

/// How invocations are attempted; the defaults are those of a new subscription.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Delivery")]
pub struct PolicyArgs {
    /// Attempts before an invocation is a dead letter, 1 to 50 [default: 8]
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..=50), value_name = "N")]
    max_attempts: Option<i32>,
    /// Wait after the first failure; each further one doubles [default: 1s]
    #[arg(long, value_parser = parse_duration, value_name = "DURATION")]
    initial_backoff: Option<Duration>,
    /// Longest wait between attempts [default: 1h]
    #[arg(long, value_parser = parse_duration, value_name = "DURATION")]
    max_backoff: Option<Duration>,
    /// Time for one attempt [default: 30s]
    #[arg(long, value_parser = parse_duration, value_name = "DURATION")]
    timeout: Option<Duration>,
    /// Attempts that may run at the same time, 1 to 1,000 [default: 32]
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..=1_000), value_name = "N")]
    max_in_flight: Option<i32>,
    /// Attempts per interval, such as 100/1s; `none` takes the limit away
    #[arg(long, value_parser = parse_rate, value_name = "COUNT/DURATION")]
    rate_limit: Option<Rate>,
    /// Failed attempts in a row after which no further one starts for a while; 0 takes the breaker away
    #[arg(long, value_parser = clap::value_parser!(i32).range(0..=10_000), value_name = "N")]
    circuit_failures: Option<i32>,
    /// How long that is [default: 30s]
    #[arg(long, value_parser = parse_duration, value_name = "DURATION")]
    circuit_open: Option<Duration>,
    /// Disable the subscription after this long of nothing but failures [default: 5d]
    #[arg(long, value_parser = parse_duration, value_name = "DURATION")]
    auto_disable_after: Option<Duration>,
    /// CEL expression over `event` and `data`: events with the same value are delivered one after the other; not for PRE types
    #[arg(long, value_name = "CEL")]
    ordering_key: Option<String>,
    /// What becomes of the events behind a dead letter of their key [default: skip]
    #[arg(long, value_name = "POLICY")]
    ordering_dead_letter: Option<DeadLetterArg>,
}

/// What becomes of the events behind a dead letter of their ordering key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DeadLetterArg {
    /// They go on without it
    Skip,
    /// They wait until it is redriven or cancelled
    Block,
}

impl PolicyArgs {
    /// The policy in the API, and the update paths of the fields that are given.
    ///
    /// *Errors*: [`CliError::Usage`] where a part is given beside what takes the whole away.
    pub fn to_proto(&self) -> Result<(DeliveryPolicy, Vec<String>), CliError> {
        // Given as none, each takes the whole away; else what is given of it is a part, and the rest stays.
        let (unbroken, unordered) = (self.circuit_failures == Some(0), self.ordering_key.as_deref() == Some(""));
        for (contradict, why) in [
            (unbroken && self.circuit_open.is_some(), "--circuit-failures 0 leaves no breaker for --circuit-open"),
            (
                unordered && self.ordering_dead_letter.is_some(),
                "an empty --ordering-key leaves no order for --ordering-dead-letter",
            ),
        ] {
            if contradict {
                return Err(CliError::Usage(why.to_owned()));
            }
        }
        let of_circuit = !unbroken && (self.circuit_failures.is_some() || self.circuit_open.is_some());
        let of_order = !unordered && (self.ordering_key.is_some() || self.ordering_dead_letter.is_some());
        let policy = DeliveryPolicy {
            max_attempts: self.max_attempts.unwrap_or_default(),
            initial_backoff: self.initial_backoff.map(Into::into),
            max_backoff: self.max_backoff.map(Into::into),
            timeout: self.timeout.map(Into::into),
            max_in_flight: self.max_in_flight.unwrap_or_default(),
            rate_limit: self
                .rate_limit
                .and_then(|rate| rate.0)
                .map(|(count, interval)| RateLimit { count, interval: Some(interval.into()) }),
            circuit_breaker: of_circuit.then(|| CircuitBreaker {
                failure_threshold: self.circuit_failures.unwrap_or_default(),
                open_duration: self.circuit_open.map(Into::into),
            }),
            auto_disable_after: self.auto_disable_after.map(Into::into),
            ordering: of_order.then(|| OrderingPolicy {
                key: self.ordering_key.clone().unwrap_or_default(),
                on_dead_letter: match self.ordering_dead_letter {
                    None => OnDeadLetter::Unspecified,
                    Some(DeadLetterArg::Skip) => OnDeadLetter::Skip,
                    Some(DeadLetterArg::Block) => OnDeadLetter::Block,
                }
                .into(),
            }),
        };
        let given = [
            ("max_attempts", self.max_attempts.is_some()),
            ("initial_backoff", self.initial_backoff.is_some()),
            ("max_backoff", self.max_backoff.is_some()),
            ("timeout", self.timeout.is_some()),
            ("max_in_flight", self.max_in_flight.is_some()),
            ("rate_limit", self.rate_limit.is_some()),
            ("circuit_breaker", unbroken),
            ("circuit_breaker.failure_threshold", !unbroken && self.circuit_failures.is_some()),
            ("circuit_breaker.open_duration", self.circuit_open.is_some()),
            ("auto_disable_after", self.auto_disable_after.is_some()),
            ("ordering", unordered),
            ("ordering.key", !unordered && self.ordering_key.is_some()),
            ("ordering.on_dead_letter", self.ordering_dead_letter.is_some()),
        ];
        let paths = given.iter().filter(|(_, given)| *given).map(|(name, _)| format!("delivery_policy.{name}"));
        Ok((policy, paths.collect()))
    }
}

/// A rate limit, or that there is to be none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rate(Option<(i32, Duration)>);

fn parse_rate(text: &str) -> Result<Rate, String> {
    if text == "none" {
        return Ok(Rate(None));
    }
    let (count, interval) = text.split_once('/').ok_or("is not COUNT/DURATION, such as 100/1s")?;
    let count = count.parse().map_err(|_| "the count is not a number".to_owned())?;
    if count < 1 {
        return Err("the count must be at least 1; `none` takes the limit away".to_owned());
    }
    Ok(Rate(Some((count, parse_duration(interval)?))))
}

/// What the listener of a PRE event type may do; only for PRE event types.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "PRE events")]
pub struct PreArgs {
    /// What its failure means for the event [default: fail]
    #[arg(long, value_name = "POLICY")]
    pre_failure: Option<FailurePolicy>,
    /// Enrichments are applied lowest first, -1000 to 1000 [default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pre_priority: Option<i32>,
    /// A JSON pointer into the data that its answer may change; may be given several times
    #[arg(long, value_name = "POINTER")]
    enrich: Vec<String>,
}

/// What a PRE listener's failure means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FailurePolicy {
    /// The event is aborted
    Fail,
    /// The listener is left out; one that rejects aborts the event all the same
    Ignore,
}

impl PreArgs {
    /// The veto in the API; none where nothing is given.
    pub fn to_proto(&self) -> Option<PrePolicy> {
        let given = self.pre_failure.is_some() || self.pre_priority.is_some() || !self.enrich.is_empty();
        let failure_policy = match self.pre_failure {
            None => PreFailurePolicy::Unspecified,
            Some(FailurePolicy::Fail) => PreFailurePolicy::Fail,
            Some(FailurePolicy::Ignore) => PreFailurePolicy::Ignore,
        };
        given.then(|| PrePolicy {
            failure_policy: failure_policy.into(),
            priority: self.pre_priority.unwrap_or_default(),
            enrich_paths: self.enrich.clone(),
        })
    }

    /// The update paths of the fields that are given.
    pub fn paths(&self) -> impl Iterator<Item = String> {
        let given = [
            ("failure_policy", self.pre_failure.is_some()),
            ("priority", self.pre_priority.is_some()),
            ("enrich_paths", !self.enrich.is_empty()),
        ];
        given.into_iter().filter(|(_, given)| *given).map(|(name, _)| format!("pre_policy.{name}"))
    }
}

/// A webhook target.
pub fn webhook(uri: String, mode: WebhookMode, headers: impl IntoIterator<Item = (String, String)>) -> Target {
    let headers = headers.into_iter().collect();
    Target { kind: Some(Kind::Webhook(WebhookTarget { uri, mode: mode.into(), headers })) }
}

/// The secret that an argument gives, as the API takes it; empty where none is given.
pub fn secret_text(argument: Option<&str>) -> Result<String, CliError> {
    Ok(argument.map(read_secret).transpose()?.map(|secret| secret.reveal()).unwrap_or_default())
}

/// Subscribes.
pub async fn run(args: SubscribeArgs, output: Output) -> Result<(), CliError> {
    let (policy, given) = args.policy.to_proto()?;
    let request = SubscribeRequest {
        app: args.public.app(args.app)?,
        event_type: args.event_type,
        target: Some(webhook(args.webhook, args.mode.to_proto(), args.header)),
        display_name: args.name,
        filter: args.filter,
        delivery_policy: (!given.is_empty()).then_some(policy),
        signing_secret: secret_text(args.secret.as_deref())?,
        request_id: args.request_id,
        schema_version: args.schema_version,
        pre_policy: args.pre.to_proto(),
        signature_scheme: Scheme::to_proto(args.signature),
    };
    let client = args.public.connect().await?;
    let answer = call("Subscribe", client.events().subscribe(client.request(request))).await?;
    if output.is_json() {
        return output.document(&answer);
    }
    let subscription = answer.subscription.ok_or(CliError::Answer { rpc: "Subscribe", what: "subscription" })?;
    let mut fields = fields(&subscription);
    fields.extend(secret_fields(answer.signing_secret, answer.public_key));
    output.fields(&fields)?;
    note(SHOWN_ONCE);
    Ok(())
}

/// What is said where a secret is shown.
pub const SHOWN_ONCE: &str =
    "the signing secret is shown only now; the receiver verifies with it, or with the public key where there is one";

/// A new secret for people.
pub fn secret_fields(secret: String, public_key: String) -> impl Iterator<Item = (&'static str, String)> {
    [("signing secret", secret), ("public key", public_key)].into_iter().filter(|(_, text)| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_count_per_time_or_none() {
        assert_eq!(parse_rate("100/1s"), Ok(Rate(Some((100, Duration::from_secs(1))))));
        assert_eq!(parse_rate("none"), Ok(Rate(None)));
        for bad in ["", "100", "x/1s", "1/", "1/x", "0/1s", "-1/1s"] {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
    }
}
