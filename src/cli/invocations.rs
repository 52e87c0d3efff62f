//! `carillon invocations`: what ran, how it ended, and doing it again.

use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::{Subcommand, ValueEnum};
use comfy_table::Cell;

use super::client::{PublicArgs, PublicClient, call};
use super::error::CliError;
use super::output::{Output, duration, excerpt, human, note, progress, short, state_cell, time};
use super::values::parse_time;
use crate::proto::public::{
    CancelInvocationRequest, GetInvocationRequest, GetInvocationResponse, Invocation, InvocationState,
    ListInvocationsRequest, OutcomeClass, RedriveInvocationsRequest, RetryInvocationRequest,
};

const EXAMPLES: &str = "Examples:
  carillon invocations list --state dead-lettered --from 24h
  carillon invocations list --event evt_... --json | jq .state
  carillon invocations get inv_...
  carillon invocations retry inv_...
  carillon invocations redrive --subscription sub_... --from 2026-01-31T12:00:00Z";

/// The largest page the server gives.
const PAGE: i32 = 1000;

/// The header that goes with [`invocation_row`].
pub const INVOCATION_HEADER: [&str; 7] =
    ["INVOCATION", "EVENT TYPE", "POSITION", "SUBSCRIPTION", "STATE", "ATTEMPTS", "LAST ATTEMPT"];

/// List, inspect, retry and cancel invocations
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct InvocationsArgs {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    public: PublicArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List invocations, newest event first
    #[command(after_help = "Examples:
  carillon invocations list --state dead-lettered --from 24h
  carillon invocations list --event evt_... --json | jq .state")]
    List {
        /// Only this event
        #[arg(long, value_name = "EVENT_ID")]
        event: Option<String>,
        /// Only this subscription
        #[arg(long, value_name = "SUBSCRIPTION_ID")]
        subscription: Option<String>,
        /// Only this state; may be given several times
        #[arg(long, ignore_case = true)]
        state: Vec<State>,
        /// Only events committed at or after this time: RFC 3339, or how long ago
        #[arg(long, value_parser = parse_time, value_name = "TIME")]
        from: Option<DateTime<Utc>>,
        /// Only events committed before this time: RFC 3339, or how long ago
        #[arg(long, value_parser = parse_time, value_name = "TIME")]
        until: Option<DateTime<Utc>>,
        /// At most this many; 0 for all
        #[arg(long, default_value_t = 50, value_name = "N")]
        limit: usize,
    },
    /// Show one invocation with every attempt
    #[command(after_help = "Examples:
  carillon invocations get inv_...")]
    Get {
        /// Id of the invocation
        #[arg(value_name = "INVOCATION_ID")]
        id: String,
    },
    /// Run a waiting invocation now, or give a dead letter a fresh set of attempts
    #[command(after_help = "Examples:
  carillon invocations retry inv_...")]
    Retry {
        /// Ids of the invocations
        #[arg(value_name = "INVOCATION_ID", required = true)]
        ids: Vec<String>,
    },
    /// End an invocation that has not succeeded yet
    #[command(after_help = "Examples:
  carillon invocations cancel inv_...")]
    Cancel {
        /// Ids of the invocations
        #[arg(value_name = "INVOCATION_ID", required = true)]
        ids: Vec<String>,
    },
    /// Give dead letters a fresh set of attempts, oldest first
    #[command(after_help = "Examples:
  carillon invocations redrive
  carillon invocations redrive --subscription sub_... --from 2026-01-31T12:00:00Z")]
    Redrive {
        /// Only this subscription
        #[arg(long, value_name = "SUBSCRIPTION_ID")]
        subscription: Option<String>,
        /// Only events committed at or after this time: RFC 3339, or how long ago
        #[arg(long, value_parser = parse_time, value_name = "TIME")]
        from: Option<DateTime<Utc>>,
        /// Only events committed before this time: RFC 3339, or how long ago
        #[arg(long, value_parser = parse_time, value_name = "TIME")]
        until: Option<DateTime<Utc>>,
        /// At most this many; 0 for all
        #[arg(long, default_value_t = 1000, value_name = "N")]
        limit: u64,
    },
}

/// Where an invocation is in its life. Also by the names of the API, and by what people call it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum State {
    #[value(alias = "invocation_state_pending")]
    Pending,
    #[value(aliases = ["retrying", "invocation_state_waiting"])]
    Waiting,
    #[value(aliases = ["success", "invocation_state_succeeded"])]
    Succeeded,
    #[value(aliases = ["dead", "dead-letter", "dead-letters", "dead_letter", "dead_lettered", "deadlettered", "invocation_state_dead_lettered"])]
    DeadLettered,
    #[value(aliases = ["canceled", "invocation_state_cancelled"])]
    Cancelled,
}

impl State {
    fn to_proto(self) -> InvocationState {
        match self {
            Self::Pending => InvocationState::Pending,
            Self::Waiting => InvocationState::Waiting,
            Self::Succeeded => InvocationState::Succeeded,
            Self::DeadLettered => InvocationState::DeadLettered,
            Self::Cancelled => InvocationState::Cancelled,
        }
    }
}

/// Runs the subcommand.
pub async fn run(args: InvocationsArgs, output: Output) -> Result<(), CliError> {
    let client = args.public.connect().await?;
    match args.command {
        Command::List { event, subscription, state, from, until, limit } => {
            let request = ListInvocationsRequest {
                event_id: event.unwrap_or_default(),
                subscription_id: subscription.unwrap_or_default(),
                states: state.into_iter().map(|state| state.to_proto().into()).collect(),
                start_time: from.map(Into::into),
                end_time: until.map(Into::into),
                ..ListInvocationsRequest::default()
            };
            list(&client, output, request, limit).await
        }
        Command::Get { id } => {
            let request = client.request(GetInvocationRequest { invocation_id: id });
            let answer = call("GetInvocation", client.invocations().get_invocation(request)).await?;
            if output.is_json() { output.document(&answer) } else { show(output, &answer) }
        }
        Command::Retry { ids } => {
            let mut changed = Vec::new();
            for id in ids {
                let request = client.request(RetryInvocationRequest { invocation_id: id, ..Default::default() });
                let answer = call("RetryInvocation", client.invocations().retry_invocation(request)).await?;
                changed.extend(answer.invocation);
            }
            show_rows(output, &changed)
        }
        Command::Cancel { ids } => {
            let mut changed = Vec::new();
            for id in ids {
                let request = client.request(CancelInvocationRequest { invocation_id: id, ..Default::default() });
                let answer = call("CancelInvocation", client.invocations().cancel_invocation(request)).await?;
                changed.extend(answer.invocation);
            }
            show_rows(output, &changed)
        }
        Command::Redrive { subscription, from, until, limit } => {
            let request = RedriveInvocationsRequest {
                subscription_id: subscription.unwrap_or_default(),
                start_time: from.map(Into::into),
                end_time: until.map(Into::into),
                limit: 0,
                ..Default::default()
            };
            redrive(&client, output, request, limit).await
        }
    }
}

/// One invocation as a row of a table.
pub fn invocation_row(invocation: &Invocation) -> Vec<Cell> {
    let last = invocation.last_attempt.as_ref().map(|attempt| {
        let outcome = short(attempt.outcome().as_str_name(), "OUTCOME_CLASS_");
        let status = if attempt.status_code == 0 { String::new() } else { format!(" {}", attempt.status_code) };
        format!("{outcome}{status} {}", duration(attempt.duration.as_ref()))
    });
    vec![
        Cell::new(&invocation.id),
        Cell::new(&invocation.event_type),
        Cell::new(invocation.event_position),
        Cell::new(&invocation.subscription_id),
        state_cell(short(invocation.state().as_str_name(), "INVOCATION_STATE_")),
        Cell::new(invocation.attempt_count),
        Cell::new(last.unwrap_or_default()),
    ]
}

async fn list(
    client: &PublicClient,
    output: Output,
    mut request: ListInvocationsRequest,
    limit: usize,
) -> Result<(), CliError> {
    let limit = if limit == 0 { usize::MAX } else { limit };
    let mut invocations = Vec::new();
    loop {
        request.page_size = i32::try_from(limit - invocations.len()).unwrap_or(PAGE).min(PAGE);
        let page = client.request(request.clone());
        let answer = call("ListInvocations", client.invocations().list_invocations(page)).await?;
        invocations.extend(answer.invocations);
        request.page_token = answer.next_page_token;
        if request.page_token.is_empty() || invocations.len() >= limit {
            break;
        }
    }
    invocations.truncate(limit);
    show_rows(output, &invocations)?;
    if !request.page_token.is_empty() {
        note("more exist: --limit 0 shows all");
    }
    Ok(())
}

async fn redrive(
    client: &PublicClient,
    output: Output,
    mut request: RedriveInvocationsRequest,
    limit: u64,
) -> Result<(), CliError> {
    const CALL_LIMIT: u64 = 1000;
    let limit = if limit == 0 { u64::MAX } else { limit };
    let bar = progress(limit, "redriving");
    if limit == u64::MAX {
        bar.unset_length();
    }
    let mut redriven = 0;
    let more = loop {
        request.limit = i32::try_from((limit - redriven).min(CALL_LIMIT)).unwrap_or_default();
        let answer =
            call("RedriveInvocations", client.invocations().redrive_invocations(client.request(request.clone())))
                .await?;
        redriven += u64::from(answer.redriven_count.unsigned_abs());
        bar.set_position(redriven);
        if output.is_json() {
            output.document(&answer)?;
        }
        if !answer.more || redriven >= limit || answer.redriven_count == 0 {
            break answer.more;
        }
    };
    bar.finish_and_clear();
    if output.is_json() {
        return Ok(());
    }
    output.line(&match redriven {
        0 => "no dead letter matches".to_owned(),
        1 => "1 dead letter runs again".to_owned(),
        many => format!("{many} dead letters run again"),
    })?;
    if more {
        note("more dead letters match: --limit 0 redrives all");
    }
    Ok(())
}

fn show_rows(output: Output, invocations: &[Invocation]) -> Result<(), CliError> {
    if output.is_json() {
        return invocations.iter().try_for_each(|invocation| output.document(invocation));
    }
    output.table(&INVOCATION_HEADER, invocations.iter().map(invocation_row).collect())
}

fn show(output: Output, answer: &GetInvocationResponse) -> Result<(), CliError> {
    let Some(invocation) = &answer.invocation else {
        return Err(CliError::Answer { rpc: "GetInvocation", what: "invocation" });
    };
    output.fields(&[
        ("invocation", invocation.id.clone()),
        ("state", short(invocation.state().as_str_name(), "INVOCATION_STATE_").to_owned()),
        ("cancelled because", invocation.cancel_reason.clone()),
        (
            "event",
            format!("{} ({}, position {})", invocation.event_id, invocation.event_type, invocation.event_position),
        ),
        ("subscription", format!("{} (app {})", invocation.subscription_id, invocation.app)),
        ("created", time(invocation.create_time.as_ref())),
        ("ended", time(invocation.end_time.as_ref())),
        ("took", took(invocation).map(human).unwrap_or_default()),
        ("next attempt", time(invocation.next_attempt_time.as_ref())),
        ("attempts", invocation.attempt_count.to_string()),
    ])?;
    if answer.attempts.is_empty() {
        return Ok(());
    }
    output.line("")?;
    let rows = answer.attempts.iter().map(|attempt| {
        vec![
            Cell::new(attempt.number),
            Cell::new(time(attempt.start_time.as_ref())),
            Cell::new(duration(attempt.duration.as_ref())),
            Cell::new(short(OutcomeClass::as_str_name(&attempt.outcome()), "OUTCOME_CLASS_")),
            Cell::new(if attempt.status_code == 0 { String::new() } else { attempt.status_code.to_string() }),
            Cell::new(excerpt(&format!("{} {}", attempt.error, attempt.response_excerpt), 80)),
        ]
    });
    output.table(&["ATTEMPT", "START", "TOOK", "OUTCOME", "STATUS", "ERROR, ANSWER"], rows.collect())
}

/// From the event's commit to the invocation's end.
fn took(invocation: &Invocation) -> Option<Duration> {
    let end = DateTime::<Utc>::try_from(invocation.end_time?).ok()?;
    let start = DateTime::<Utc>::try_from(invocation.create_time?).ok()?;
    (end - start).to_std().ok()
}
