//! `carillon events`: reads the log, a page at a time, and single events.

use chrono::{DateTime, Utc};
use clap::Subcommand;
use comfy_table::Cell;

use super::client::{InternalArgs, PublicArgs, PublicClient, Purpose, call};
use super::error::CliError;
use super::output::{Output, excerpt, note, time};
use super::plain::plain;
use super::values::{From, parse_from, parse_time};
use crate::proto::cloudevents::CloudEvent;
use crate::proto::cloudevents::cloud_event::Data;
use crate::proto::cloudevents::cloud_event::cloud_event_attribute_value::Attr;
use crate::proto::internal::CancelEventRequest;
use crate::proto::public::{Event, EventView, GetEventRequest, ListEventsRequest};

const EXAMPLES: &str = "Examples:
  carillon events list --type 'USER_*' --from 1h
  carillon events list --filter 'data.amount > 100' --limit 0 --json | jq -r .event.textData
  carillon events get evt_... --data | jq .";

/// The largest page the server gives.
const PAGE: i32 = 1000;

/// Read the log of events
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct EventsArgs {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    public: PublicArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List events in log order
    #[command(after_help = "Examples:
  carillon events list --type 'USER_*' --from 1h
  carillon events list --filter 'data.amount > 100' --limit 0 --json | jq -r .event.textData")]
    List {
        /// Where to start: earliest, a time (RFC 3339), how long ago (15m), or a cursor
        #[arg(long, value_parser = parse_from, value_name = "PLACE", default_value = "earliest")]
        from: From,
        /// Stop before this time: RFC 3339, or how long ago
        #[arg(long, value_parser = parse_time, value_name = "TIME")]
        until: Option<DateTime<Utc>>,
        /// Only this event type, or a prefix that ends in *; may be given several times
        #[arg(long = "type", value_name = "TYPE")]
        types: Vec<String>,
        /// CEL expression over `event` and `data`
        #[arg(long, value_name = "CEL", default_value = "", hide_default_value = true)]
        filter: String,
        /// Leave the data out
        #[arg(long)]
        metadata: bool,
        /// At most this many; 0 for all
        #[arg(long, default_value_t = 50, value_name = "N")]
        limit: usize,
    },
    /// Show one event
    #[command(after_help = "Examples:
  carillon events get evt_...
  carillon events get evt_... --data | jq .")]
    Get {
        /// Id of the event
        #[arg(value_name = "EVENT_ID")]
        id: String,
        /// Print the data exactly as published and nothing else
        #[arg(long)]
        data: bool,
    },
    /// Take back an event that is delayed, or whose PRE listeners are still asked (internal port)
    #[command(after_help = "Examples:
  carillon events cancel evt_...")]
    Cancel {
        /// Id of the event
        #[arg(value_name = "EVENT_ID")]
        id: String,
        #[command(flatten)]
        internal: InternalArgs,
    },
}

/// Runs the subcommand.
pub async fn run(args: EventsArgs, output: Output) -> Result<(), CliError> {
    if let Command::Cancel { id, internal } = args.command {
        let client = internal.connect(Purpose::Publish).await?;
        let request = client.request(CancelEventRequest { event_id: id.clone(), ..Default::default() });
        let answer = call("CancelEvent", client.publish().cancel_event(request)).await?;
        return if output.is_json() { output.document(&answer) } else { output.fields(&[("cancelled", id)]) };
    }
    let client = args.public.connect().await?;
    match args.command {
        Command::Cancel { .. } => Ok(()),
        Command::List { from, until, types, filter, metadata, limit } => {
            let (cursor, start_time) = match from {
                From::Earliest => (String::new(), None),
                From::Time(time) => (String::new(), Some(time.into())),
                From::Cursor(cursor) => (cursor, None),
                From::Now => {
                    return Err(CliError::Usage("what comes from now on is shown by `carillon watch`".to_owned()));
                }
            };
            let view = if metadata { EventView::Metadata } else { EventView::Full };
            let request = ListEventsRequest {
                page_size: 0,
                cursor,
                start_time,
                end_time: until.map(Into::into),
                event_types: types,
                filter,
                view: view.into(),
            };
            list(&client, output, request, limit).await
        }
        Command::Get { id, data } => {
            let request = client.request(GetEventRequest { event_id: id });
            let answer = call("GetEvent", client.events().get_event(request)).await?;
            let event = answer.event.ok_or(CliError::Answer { rpc: "GetEvent", what: "event" })?;
            match (data, output.is_json()) {
                (true, _) => write_data(&event),
                (false, true) => output.document(&event),
                (false, false) => show(output, &event),
            }
        }
    }
}

async fn list(
    client: &PublicClient,
    output: Output,
    mut request: ListEventsRequest,
    limit: usize,
) -> Result<(), CliError> {
    let limit = if limit == 0 { usize::MAX } else { limit };
    let mut shown = 0;
    let mut rows = Vec::new();
    let end = loop {
        request.page_size = i32::try_from(limit - shown).unwrap_or(PAGE).min(PAGE);
        let page = client.request(request.clone());
        let answer = call("ListEvents", client.events().list_events(page)).await?;
        shown += answer.events.len();
        for event in &answer.events {
            if output.is_json() {
                output.document(event)?;
            } else {
                rows.push(row(event));
            }
        }
        request.cursor = answer.next_cursor;
        // The cursor says where the start was from here on.
        request.start_time = None;
        if answer.end_of_log || shown >= limit {
            break answer.end_of_log;
        }
    };
    if !output.is_json() {
        output.table(&["POSITION", "TIME", "EVENT TYPE", "EVENT", "SUBJECT", "DATA"], rows)?;
    }
    let more = if end { "" } else { "more exist; " };
    note(&format!("{more}go on after this with --from {}", request.cursor));
    Ok(())
}

/// An attribute's text; none where it is not set.
pub fn attribute(event: &CloudEvent, name: &str) -> Option<String> {
    Some(match event.attributes.get(name)?.attr.as_ref()? {
        Attr::CeString(text) | Attr::CeUri(text) | Attr::CeUriRef(text) => text.clone(),
        Attr::CeBoolean(value) => value.to_string(),
        Attr::CeInteger(value) => value.to_string(),
        Attr::CeBytes(bytes) => format!("{} bytes", bytes.len()),
        Attr::CeTimestamp(timestamp) => time(Some(timestamp)),
    })
}

/// The data's bytes, as published.
pub fn data(event: &CloudEvent) -> &[u8] {
    match &event.data {
        None => &[],
        Some(Data::TextData(text)) => text.as_bytes(),
        Some(Data::BinaryData(bytes)) => bytes,
        Some(Data::ProtoData(any)) => &any.value,
    }
}

fn row(event: &Event) -> Vec<Cell> {
    let cloud_event = event.event.clone().unwrap_or_default();
    vec![
        Cell::new(event.position),
        Cell::new(time(event.commit_time.as_ref())),
        Cell::new(&cloud_event.r#type),
        Cell::new(&event.id),
        Cell::new(attribute(&cloud_event, "subject").unwrap_or_default()),
        Cell::new(excerpt(&String::from_utf8_lossy(data(&cloud_event)), 60)),
    ]
}

fn show(output: Output, event: &Event) -> Result<(), CliError> {
    let cloud_event = event.event.clone().unwrap_or_default();
    let mut fields = vec![
        ("event", event.id.clone()),
        ("type", cloud_event.r#type.clone()),
        ("source", cloud_event.source.clone()),
        ("position", event.position.to_string()),
        ("committed", time(event.commit_time.as_ref())),
        ("schema version", event.schema_version.to_string()),
    ];
    let mut names: Vec<_> = cloud_event.attributes.keys().map(String::as_str).collect();
    names.sort_unstable();
    fields.extend(names.into_iter().map(|name| (name, attribute(&cloud_event, name).unwrap_or_default())));
    if event.depth > 0 {
        fields.push(("root event", event.root_event_id.clone()));
        fields.push(("caused by", event.cause_invocation_id.clone()));
        fields.push(("depth", event.depth.to_string()));
    }
    output.fields(&fields)?;
    let bytes = data(&cloud_event);
    if bytes.is_empty() {
        return Ok(());
    }
    output.line("")?;
    // Numbers keep their spelling, because the JSON reader keeps any precision.
    let pretty = serde_json::from_slice::<serde_json::Value>(bytes).ok();
    let pretty = pretty.and_then(|value| serde_json::to_string_pretty(&value).ok());
    output.line(&plain(&pretty.unwrap_or_else(|| String::from_utf8_lossy(bytes).into_owned())))
}

/// Writes the bytes as they are, without the change that styles or a line end would be.
fn write_data(event: &Event) -> Result<(), CliError> {
    use std::io::Write as _;
    let cloud_event = event.event.clone().unwrap_or_default();
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(data(&cloud_event)).and_then(|()| stdout.flush()).map_err(CliError::Output)
}
