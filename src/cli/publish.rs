//! `carillon publish`: one event in, over the internal port.
//!
//! Builds a CloudEvent from the command line, publishes it, and says its place in the log and which invocations it
//! causes; with `--wait`, also how they end.

use std::io::IsTerminal as _;
use std::time::Duration;

use chrono::{DateTime, Utc};
use comfy_table::Cell;
use serde::Serialize;

use super::attributes::{AttributeArgs, string};
use super::client::{InternalArgs, Purpose, call};
use super::error::CliError;
use super::invocations::{INVOCATION_HEADER, invocation_row};
use super::output::{Output, excerpt, note, short, spinner, state_cell, time, warn};
use super::values::{parse_duration, read_input};
use crate::clock;
use crate::proto::Timestamp;
use crate::proto::cloudevents::CloudEvent;
use crate::proto::cloudevents::cloud_event::Data;
use crate::proto::internal::{PreVerdict, PublishRequest, PublishResponse, WaitEventRequest, WaitEventResponse};
use crate::proto::public::{Invocation, InvocationState};

const EXAMPLES: &str = r#"Examples:
  carillon publish USER_CREATE --data '{"user_id": "u-1", "email": "ada@example.com"}'
  carillon publish CUSTOM_ORDER_PLACED --data @order.json --key order-17 --wait
  carillon publish PRE_USER_CREATE --data @user.json --pre-timeout 3s
  carillon publish CUSTOM_REMINDER --data '{}' --delay 2h
  carillon publish CUSTOM_ORDER_PLACED --source /shop --subject order-17 < order.json

Exit codes with --wait:
  0  every invocation has ended, none as a dead letter
  3  the event is published, and at least one invocation has ended as a dead letter
  4  not every invocation has ended in time, or the event is still to be published then"#;

/// Where an event comes from that does not say so.
const SOURCE: &str = "/carillon/cli";

/// Publish an event
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct PublishArgs {
    /// Name of the event type
    #[arg(value_name = "TYPE")]
    event_type: String,
    /// The data: JSON text, @file, or - for standard input [default: standard input where it is not a terminal]
    #[arg(long, short, value_name = "DATA")]
    data: Option<String>,
    /// Publish an event without data; standard input is not read
    #[arg(long, conflicts_with = "data")]
    no_data: bool,
    #[command(flatten)]
    attributes: AttributeArgs,
    /// Idempotency key: a retry with the same key never makes a second event
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Media type of the data
    #[arg(long, default_value = "application/json", value_name = "TYPE")]
    content_type: String,
    /// Schema version to check the data against; 0 is the latest
    #[arg(long, default_value_t = 0, value_name = "N")]
    schema_version: i32,
    /// Wait until every invocation has ended, at most this long
    #[arg(
        long, value_parser = parse_duration, value_name = "DURATION", num_args = 0..=1, require_equals = true,
        default_missing_value = "30s"
    )]
    wait: Option<Duration>,
    /// Time that the listeners of a PRE event have [default: 10s]
    #[arg(long, value_parser = parse_duration, value_name = "DURATION")]
    pre_timeout: Option<Duration>,
    /// Publish at this time: RFC 3339
    #[arg(long, value_parser = parse_future, value_name = "TIME", conflicts_with = "delay")]
    deliver_at: Option<DateTime<Utc>>,
    /// Publish so much later
    #[arg(long, value_parser = parse_duration, value_name = "DURATION")]
    delay: Option<Duration>,
    #[command(flatten)]
    internal: InternalArgs,
}

fn parse_future(text: &str) -> Result<DateTime<Utc>, String> {
    let time = DateTime::parse_from_rfc3339(text);
    time.map(|time| time.to_utc()).map_err(|_| "write a time such as 2026-01-31T12:00:00Z".to_owned())
}

/// Publishes the event.
pub async fn run(args: PublishArgs, output: Output) -> Result<(), CliError> {
    let data = match args.data.as_deref() {
        None if args.no_data || std::io::stdin().is_terminal() => None,
        None | Some("-") => Some(piped_data()?),
        Some(data) => Some(read_input(data)?),
    };
    let mut event = args.attributes.event();
    if event.source.is_empty() {
        SOURCE.clone_into(&mut event.source);
    }
    if data.is_some() {
        event.attributes.insert("datacontenttype".to_owned(), string(args.content_type));
    }
    let event = CloudEvent { r#type: args.event_type, data: data.map(payload), ..event };
    let request = PublishRequest {
        event: Some(event),
        idempotency_key: args.key.unwrap_or_default(),
        schema_version: args.schema_version,
        deliver_at: args.deliver_at.or(args.delay.map(|delay| clock::now() + delay)).map(Into::into),
        pre_timeout: args.pre_timeout.map(Into::into),
    };
    // The server gives the listeners at most 30 s unless it is set otherwise.
    let patience = args.pre_timeout.unwrap_or(Duration::from_secs(10));
    let client = args.internal.connect(Purpose::Publish).await?;
    let published = call("Publish", client.publish().publish(client.patient_request(request, patience))).await?;
    let Some(timeout) = args.wait else { return show_published(output, &published) };
    // A person sees at once where the event is; a program gets one document at the end, and at least this one.
    if !output.is_json() {
        show_place(output, &published)?;
    }
    let waiting = spinner("waiting for the listeners");
    let request = WaitEventRequest { event_id: published.event_id.clone(), timeout: Some(timeout.into()) };
    let request = client.patient_request(request, timeout);
    let waited = call("WaitEvent", client.publish().wait_event(request)).await;
    waiting.finish_and_clear();
    match waited {
        Ok(waited) => show_waited(output, &published, &waited, timeout),
        Err(error) => {
            if output.is_json() {
                output.document(&published)?;
            }
            Err(error)
        }
    }
}

/// What standard input holds. Nothing at all is mostly a program before the pipe that has failed, so it is no event.
fn piped_data() -> Result<Vec<u8>, CliError> {
    let data = read_input("-")?;
    if data.is_empty() {
        let why = "standard input is empty: give the data with --data, such as --data '{}', or publish without any with --no-data";
        return Err(CliError::Usage(why.to_owned()));
    }
    Ok(data)
}

/// Text where it is text, so that proto JSON stays readable; else bytes.
pub fn payload(data: Vec<u8>) -> Data {
    match String::from_utf8(data) {
        Ok(text) => Data::TextData(text),
        Err(error) => Data::BinaryData(error.into_bytes().into()),
    }
}

fn show_published(output: Output, published: &PublishResponse) -> Result<(), CliError> {
    if output.is_json() {
        return output.document(published);
    }
    show_place(output, published)?;
    if published.invocations.is_empty() {
        return Ok(());
    }
    let row = |invocation: &crate::proto::internal::InvocationRef| {
        vec![Cell::new(&invocation.invocation_id), Cell::new(&invocation.subscription_id)]
    };
    output.line("")?;
    output.table(&["INVOCATION", "SUBSCRIPTION"], published.invocations.iter().map(row).collect())?;
    if usize::try_from(published.total_invocations).is_ok_and(|total| total > published.invocations.len()) {
        let id = &published.event_id;
        note(&format!("these are the first ones; `carillon invocations list --event {id}` lists all of them"));
    }
    if published.pre_verdicts.is_empty() {
        return Ok(());
    }
    let row = |verdict: &PreVerdict| {
        vec![
            Cell::new(&verdict.subscription_id),
            state_cell(short(verdict.verdict().as_str_name(), "PRE_VERDICT_KIND_")),
            Cell::new(excerpt(&verdict.message, 80)),
        ]
    };
    output.line("")?;
    output.table(&["LISTENER", "VERDICT", "MESSAGE"], published.pre_verdicts.iter().map(row).collect())
}

fn show_place(output: Output, published: &PublishResponse) -> Result<(), CliError> {
    if published.duplicate {
        warn("an earlier call with the same key has published this event; this is its answer");
    }
    if published.deliver_time.is_some() {
        return output.fields(&[
            ("event", published.event_id.clone()),
            ("due", time(published.deliver_time.as_ref())),
            ("to take it back", format!("carillon events cancel {}", published.event_id)),
        ]);
    }
    output.fields(&[
        ("event", published.event_id.clone()),
        ("position", published.position.to_string()),
        ("committed", time(published.commit_time.as_ref())),
        ("invocations", published.total_invocations.to_string()),
    ])
}

/// The answer of `publish --wait --json`: that of Publish, with the invocations as they have ended.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Waited<'a> {
    event_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    commit_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deliver_time: Option<Timestamp>,
    duplicate: bool,
    invocations: &'a [Invocation],
    #[serde(skip_serializing_if = "<[PreVerdict]>::is_empty")]
    pre_verdicts: &'a [PreVerdict],
    done: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    more: bool,
}

fn show_waited(
    output: Output,
    published: &PublishResponse,
    waited: &WaitEventResponse,
    timeout: Duration,
) -> Result<(), CliError> {
    // A delayed event has its place only once it is due; until then the answer has no event.
    let place = match published.deliver_time {
        None => Some((published.position, published.commit_time)),
        Some(_) => waited.event.as_ref().map(|event| (event.position, event.commit_time)),
    };
    if output.is_json() {
        output.document(&Waited {
            event_id: &published.event_id,
            // 64-bit numbers are texts in proto JSON.
            position: place.map(|(position, _)| position.to_string()),
            commit_time: place.and_then(|(_, commit_time)| commit_time),
            deliver_time: published.deliver_time,
            duplicate: published.duplicate,
            invocations: &waited.invocations,
            pre_verdicts: &published.pre_verdicts,
            done: waited.done,
            more: waited.more,
        })?;
    } else if !waited.invocations.is_empty() {
        output.line("")?;
        output.table(&INVOCATION_HEADER, waited.invocations.iter().map(invocation_row).collect())?;
    }
    if waited.more {
        let id = &published.event_id;
        warn(&format!(
            "there are more invocations than an answer holds; `carillon invocations list --event {id} --state dead-lettered` \
             shows whether others have failed"
        ));
    }
    if place.is_none() {
        let due = time(published.deliver_time.as_ref());
        return Err(CliError::StillDelayed { event: published.event_id.clone(), due });
    }
    let dead = waited.invocations.iter().filter(|one| one.state() == InvocationState::DeadLettered).count();
    match (dead, waited.done) {
        (0, true) => Ok(()),
        (0, false) => Err(CliError::StillRunning { event: published.event_id.clone(), waited: timeout }),
        (1, _) => Err(CliError::DeadLettered("1 invocation has ended".to_owned())),
        (dead, _) => Err(CliError::DeadLettered(format!("{dead} invocations have ended"))),
    }
}
