//! `carillon unsubscribe`: ends a subscription, by id or by what it links.

use super::client::{PublicArgs, call};
use super::error::CliError;
use super::output::{Output, note};
use super::subscribe::webhook;
use super::subscriptions::show_subscription;
use crate::proto::public::{UnsubscribeRequest, WebhookMode};

const EXAMPLES: &str = "Examples:
  carillon unsubscribe sub_...
  carillon unsubscribe USER_CREATE --webhook https://hooks.example.com/users";

/// End a subscription; it is kept and can be restored
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct UnsubscribeArgs {
    /// Id of the subscription, `sub_...`, or with --webhook the name of the event type
    #[arg(value_name = "SUBSCRIPTION_ID|TYPE")]
    subject: String,
    /// The endpoint that is subscribed
    #[arg(long, value_name = "URL")]
    webhook: Option<String>,
    /// App that owns the subscription; only with --webhook [default: that of client.toml]
    #[arg(long, env = "CARILLON_APP", value_name = "SLUG")]
    app: Option<String>,
    /// Succeed also where it is not subscribed
    #[arg(long)]
    allow_missing: bool,
    /// Fail where the subscription's etag is another one
    #[arg(long, value_name = "ETAG", default_value = "", hide_default_value = true)]
    etag: String,
    #[command(flatten)]
    public: PublicArgs,
}

/// Unsubscribes.
pub async fn run(args: UnsubscribeArgs, output: Output) -> Result<(), CliError> {
    let mut request =
        UnsubscribeRequest { allow_missing: args.allow_missing, etag: args.etag, ..UnsubscribeRequest::default() };
    match args.webhook {
        Some(url) => {
            request.app = args.public.app(args.app)?;
            request.event_type = args.subject;
            request.target = Some(webhook(url, WebhookMode::Unspecified, []));
        }
        None if args.subject.starts_with("sub_") => request.subscription_id = args.subject,
        None => {
            let why =
                format!("`{}` is no subscription id: for an event type, name the target with --webhook", args.subject);
            return Err(CliError::Usage(why));
        }
    }
    let client = args.public.connect().await?;
    let answer = call("Unsubscribe", client.events().unsubscribe(client.request(request))).await?;
    if output.is_json() {
        return output.document(&answer);
    }
    if let Some(subscription) = &answer.subscription {
        return show_subscription(output, subscription);
    }
    note("it was not subscribed");
    Ok(())
}
