//! `carillon test`: runs a subscription's listener once with hand-written parameters, and shows everything of it.

use comfy_table::Cell;

use super::attributes::AttributeArgs;
use super::client::{PublicArgs, call};
use super::error::CliError;
use super::explain::show_deciding;
use super::output::{Output, duration, excerpt, short};
use super::plain::plain;
use super::publish::payload;
use super::values::read_input;
use crate::proto::cloudevents::CloudEvent;
use crate::proto::public::{
    GetSubscriptionRequest, OutcomeClass, TestHeader, TestSubscriptionRequest, TestSubscriptionResponse,
};

const EXAMPLES: &str = r#"Examples:
  carillon test sub_... --data '{"amount": 120}'
  carillon test sub_... --data '{}' --source /shop --subject order-17 --extension region=eu
  carillon test sub_... --data @order.json --json | jq .attempt.statusCode"#;

/// Run a subscription's webhook once with data of your own; nothing is recorded
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct TestArgs {
    /// Id of the subscription
    #[arg(value_name = "SUBSCRIPTION_ID")]
    id: String,
    /// The data: JSON text, @file, or - for standard input
    #[arg(long, short, value_name = "DATA", default_value = "-")]
    data: String,
    #[command(flatten)]
    attributes: AttributeArgs,
    #[command(flatten)]
    public: PublicArgs,
}

/// Runs it; a listener that does not succeed ends in an error, so that scripts notice.
pub async fn run(args: TestArgs, output: Output) -> Result<(), CliError> {
    let mut data = read_input(&args.data)?;
    let mut event = None;
    if args.attributes != AttributeArgs::default() {
        event = Some(CloudEvent { data: Some(payload(std::mem::take(&mut data))), ..args.attributes.event() });
    }
    let client = args.public.connect().await?;
    // The run may take the subscription's whole timeout. What cannot be read says why when it is tested.
    let read = client.request(GetSubscriptionRequest { subscription_id: args.id.clone() });
    let subscription =
        client.events().get_subscription(read).await.ok().and_then(|read| read.into_inner().subscription);
    let timeout = subscription.and_then(|read| read.delivery_policy?.timeout?.try_into().ok()).unwrap_or_default();
    let request = TestSubscriptionRequest { subscription_id: args.id, data: data.into(), event };
    let request = client.patient_request(request, timeout);
    let answer = call("TestSubscription", client.events().test_subscription(request)).await?;
    if output.is_json() {
        output.document(&answer)?;
    } else {
        show(output, &answer)?;
    }
    let attempt = answer.attempt.unwrap_or_default();
    match attempt.outcome() {
        OutcomeClass::Succeeded => Ok(()),
        _ => Err(CliError::Result(attempt.error)),
    }
}

fn show(output: Output, answer: &TestSubscriptionResponse) -> Result<(), CliError> {
    let attempt = answer.attempt.clone().unwrap_or_default();
    let explanation = answer.r#match.clone().unwrap_or_default();
    let request = answer.request.clone().unwrap_or_default();
    output.fields(&[
        ("outcome", short(attempt.outcome().as_str_name(), "OUTCOME_CLASS_").to_owned()),
        ("status", if attempt.status_code == 0 { String::new() } else { attempt.status_code.to_string() }),
        ("error", attempt.error.clone()),
        ("took", duration(attempt.duration.as_ref())),
        ("header after", duration(answer.header_time.as_ref())),
        ("in production", explanation.message.clone()),
        ("called", format!("{} {}", request.method, request.uri)),
    ])?;
    if !explanation.deciding.is_empty() {
        output.line("")?;
        show_deciding(output, &explanation)?;
    }
    headers(output, "SENT", &request.headers)?;
    output.line(&excerpt(&String::from_utf8_lossy(&request.body), 400))?;
    if let Some(came) = &answer.answer {
        headers(output, "CAME BACK", &came.headers)?;
        output.line(&plain(&attempt.response_excerpt))?;
    }
    Ok(())
}

fn headers(output: Output, title: &str, headers: &[TestHeader]) -> Result<(), CliError> {
    output.line("")?;
    let rows = headers.iter().map(|header| vec![Cell::new(&header.name), Cell::new(&header.value)]);
    output.table(&[title, ""], rows.collect())
}
