//! `carillon explain`: why an event fires subscriptions or not, and what a filter would make of stored events.

use clap::ArgGroup;
use comfy_table::Cell;

use super::attributes::AttributeArgs;
use super::client::{PublicArgs, PublicClient, call};
use super::error::CliError;
use super::output::{Output, note, short};
use super::values::read_text;
use crate::proto::cloudevents::CloudEvent;
use crate::proto::cloudevents::cloud_event::Data;
use crate::proto::public::{DraftFilter, DraftMatch, ExplainMatchRequest, ExplainMatchResponse, MatchExplanation};

const EXAMPLES: &str = r#"Examples:
  carillon explain evt_...
  carillon explain --type CUSTOM_ORDER_PLACED --data '{"amount": 120}'
  carillon explain --type CUSTOM_ORDER_PLACED --data '{}' --subject order-17 --extension region=eu
  carillon explain --type CUSTOM_ORDER_PLACED --data @order.json --json | jq '.explanations[] | select(.fires | not)'
  carillon explain --type CUSTOM_ORDER_PLACED --filter 'data.amount > 100' --last 5000"#;

/// The largest page that the server gives.
const PAGE: i32 = 1000;

/// Say which subscriptions an event fires and why the others do not, or what a filter would match
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, group = ArgGroup::new("what").args(["event", "data", "filter"]).required(true))]
pub struct ExplainArgs {
    /// Id of a stored event
    #[arg(value_name = "EVENT_ID")]
    event: Option<String>,
    /// Type of a hand-written event, or of the events that a filter is tried on
    #[arg(long = "type", value_name = "TYPE", conflicts_with = "event")]
    event_type: Option<String>,
    /// Data of a hand-written event: JSON text, @file, or - for standard input
    #[arg(long, short, value_name = "DATA", requires = "event_type")]
    data: Option<String>,
    #[command(flatten)]
    attributes: AttributeArgs,
    /// Schema version that a hand-written event is recorded with; 0 is the latest
    #[arg(long, value_name = "N", default_value_t = 0, requires = "data")]
    schema_version: i32,
    /// CEL expression to try on stored events, without saving it
    #[arg(long, value_name = "CEL", requires = "event_type")]
    filter: Option<String>,
    /// How many of the last stored events of the type a filter is tried on, 1 to 10,000
    #[arg(
        long, value_parser = clap::value_parser!(i32).range(1..=10_000), value_name = "N", default_value_t = 1_000,
        requires = "filter"
    )]
    last: i32,
    #[command(flatten)]
    public: PublicArgs,
}

/// Explains.
pub async fn run(args: ExplainArgs, output: Output) -> Result<(), CliError> {
    if args.data.is_none() && args.attributes != AttributeArgs::default() {
        return Err(CliError::Usage("--source, --subject and --extension go with --data".to_owned()));
    }
    let mut request = ExplainMatchRequest { page_size: PAGE, ..ExplainMatchRequest::default() };
    let event_type = args.event_type.unwrap_or_default();
    if let Some(filter) = args.filter {
        request.draft = Some(DraftFilter { event_type, filter, last_events: args.last });
    } else if let Some(data) = args.data {
        let data = Some(Data::TextData(read_text(&data)?));
        request.event = Some(CloudEvent { r#type: event_type, data, ..args.attributes.event() });
        request.schema_version = args.schema_version;
    } else {
        request.event_id = args.event.unwrap_or_default();
    }
    let client = args.public.connect().await?;
    let whole = all_pages(&client, request).await?;
    if output.is_json() {
        return output.document(&whole);
    }
    match &whole.draft {
        Some(draft) => show_draft(output, draft),
        None => show_all(output, &whole.explanations),
    }
}

async fn all_pages(client: &PublicClient, mut request: ExplainMatchRequest) -> Result<ExplainMatchResponse, CliError> {
    let mut whole = ExplainMatchResponse::default();
    loop {
        let page = client.request(request.clone());
        let answer = call("ExplainMatch", client.events().explain_match(page)).await?;
        whole.subscription_ids.extend(answer.subscription_ids);
        whole.explanations.extend(answer.explanations);
        whole.draft = answer.draft.or(whole.draft);
        request.page_token = answer.next_page_token;
        if request.page_token.is_empty() {
            return Ok(whole);
        }
    }
}

fn show_all(output: Output, explanations: &[MatchExplanation]) -> Result<(), CliError> {
    let rows = explanations.iter().map(|one| {
        vec![
            Cell::new(&one.subscription_id),
            Cell::new(&one.app),
            Cell::new(if one.fires { "fires" } else { "no" }),
            Cell::new(short(one.record().as_str_name(), "MATCH_RECORD_").replace("UNSPECIFIED", "")),
            Cell::new(short(one.reason().as_str_name(), "MATCH_REASON_")),
            Cell::new(&one.message),
        ]
    });
    output.table(&["SUBSCRIPTION", "APP", "NOW", "RECORDED", "REASON", "WHY"], rows.collect())?;
    for one in explanations.iter().filter(|one| !one.deciding.is_empty()) {
        output.line("")?;
        output.line(&format!("{} is not fired by:", one.subscription_id))?;
        show_deciding(output, one)?;
    }
    if explanations.iter().any(|one| one.changed_since) {
        note("subscriptions that changed after the event are explained as they are now");
    }
    Ok(())
}

/// Writes the parts of a filter that decide, with their values.
pub fn show_deciding(output: Output, explanation: &MatchExplanation) -> Result<(), CliError> {
    let rows = explanation.deciding.iter().map(|part| {
        let operands = part.operands.iter().map(|operand| format!("{} = {}", operand.expression, operand.value));
        vec![
            Cell::new(format!("{}-{}", part.column, part.end_column)),
            Cell::new(&part.expression),
            Cell::new(operands.collect::<Vec<_>>().join(", ")),
            Cell::new(&part.error),
        ]
    });
    output.table(&["COLUMNS", "EXPRESSION", "VALUES", "ERROR"], rows.collect())
}

fn show_draft(output: Output, draft: &DraftMatch) -> Result<(), CliError> {
    output.fields(&[
        ("looked at", format!("the last {} events of the log", draft.looked_at)),
        ("of the type", draft.of_type.to_string()),
        ("matched", draft.matched.to_string()),
        ("failed", draft.failed.to_string()),
        ("newest", draft.sample_event_ids.join(" ")),
    ])?;
    if draft.failures.is_empty() {
        return Ok(());
    }
    output.line("")?;
    let rows = draft.failures.iter();
    let rows = rows.map(|one| vec![Cell::new(one.count), Cell::new(&one.message), Cell::new(&one.sample_event_id)]);
    output.table(&["EVENTS", "FAILED BECAUSE", "ONE OF THEM"], rows.collect())
}
