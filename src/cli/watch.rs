//! `carillon watch`: events as they happen, for as long as it runs.
//!
//! The stream ends now and then: a replica drains, a stream reaches its age, a network breaks. Every message carries the
//! cursor to resume after it, so this goes on from the last one, on whichever replica answers, and no event is lost or
//! shown twice.

use std::time::Duration;

use anstyle::{AnsiColor, Style};
use tokio::time::sleep;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::client::{PublicArgs, PublicClient};
use super::error::CliError;
use super::events::{attribute, data};
use super::output::{Output, excerpt, note, time, warn};
use super::plain::plain;
use super::values::{From, parse_from};
use crate::clock;
use crate::proto::public::watch_request::Start;
use crate::proto::public::watch_response::Kind;
use crate::proto::public::{
    EventView, GetEventTypeRequest, OnExpired, WatchFilter, WatchRequest, WatchResponse, WatchedEvent,
};

const EXAMPLES: &str = "Examples:
  carillon watch
  carillon watch --type 'USER_*' --from earliest
  carillon watch --type CUSTOM_ORDER_PLACED --filter 'data.amount > 100' --count 1
  carillon watch --from 15m --json | jq .event.id";

/// The first and the longest wait before a broken stream is opened again.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// What a watch whose stream has ended waits for.
const CONNECTION: &str = "connection";
const ROOM: &str = "room at the server";

/// Watch events live
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct WatchArgs {
    /// Where to start: now, earliest, a time (RFC 3339), how long ago (15m), or a cursor
    #[arg(long, value_parser = parse_from, value_name = "PLACE", default_value = "now")]
    from: From,
    /// Only this event type, or a prefix that ends in *; may be given several times
    #[arg(long = "type", value_name = "TYPE")]
    types: Vec<String>,
    /// CEL expression over `event` and `data`
    #[arg(long, value_name = "CEL", default_value = "", hide_default_value = true)]
    filter: String,
    /// End after this many events
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Leave the data out
    #[arg(long)]
    metadata: bool,
    /// Where the start is no longer retained, go on from the earliest event instead of failing
    #[arg(long)]
    or_earliest: bool,
    /// With --json, print every message of the stream as it came, cursors and bookmarks included
    #[arg(long)]
    messages: bool,
    #[command(flatten)]
    public: PublicArgs,
}

/// Watches until the count is reached or the process is told to end.
pub async fn run(args: WatchArgs, output: Output) -> Result<(), CliError> {
    if args.messages && !output.is_json() {
        return Err(CliError::Usage("--messages needs --json".to_owned()));
    }
    let client = args.public.connect().await?;
    let mut unchecked = args.types.clone();
    let filters = if args.types.is_empty() && args.filter.is_empty() {
        Vec::new()
    } else {
        vec![WatchFilter { name: String::new(), event_types: args.types, filter: args.filter }]
    };
    let view = if args.metadata { EventView::Metadata } else { EventView::Full };
    let on_expired = if args.or_earliest { OnExpired::FromEarliest } else { OnExpired::Fail };
    let request = WatchRequest {
        filters,
        start: Some(start(args.from)),
        on_expired: on_expired.into(),
        bookmark_interval: None,
        view: view.into(),
        resume_cursor: String::new(),
    };
    let mut watch = ResumingWatch::new(client.clone(), request);
    let mut left = args.count.unwrap_or(u64::MAX);
    if left == 0 {
        return Ok(());
    }
    loop {
        let message = tokio::select! {
            message = watch.next() => message?,
            // A watch ends by Ctrl-C; that is not a failure.
            _ = tokio::signal::ctrl_c() => break,
        };
        if args.messages {
            output.document(&message)?;
        }
        if matches!(message.kind, Some(Kind::Created(_))) {
            // Once the stream stands, so that nothing is missed meanwhile.
            warn_of_unknown(&client, std::mem::take(&mut unchecked)).await;
        }
        match message.kind {
            Some(Kind::Created(created)) if !args.messages && !output.is_json() => {
                note(&format!("watching ({}); Ctrl-C ends it", created.watch_id));
            }
            Some(Kind::Gap(gap)) => {
                let (from, to) = (gap.from_position, gap.to_position - 1);
                warn(&format!("the events of positions {from} to {to} are gone: retention removed them"));
            }
            Some(Kind::Events(events)) => {
                for event in &events.events {
                    if !args.messages {
                        show(output, event)?;
                    }
                    left -= 1;
                    if left == 0 {
                        return Ok(());
                    }
                }
            }
            _ => {}
        }
    }
    if let Some(Start::Cursor(cursor)) = watch.request.start {
        note(&format!("go on after this with --from {cursor}"));
    }
    Ok(())
}

/// Says which types there are none of: a watch waits for events of a mistyped one in silence.
async fn warn_of_unknown(client: &PublicClient, types: Vec<String>) {
    for name in types.into_iter().filter(|name| !name.ends_with('*')) {
        let request = GetEventTypeRequest { name: name.clone(), ..GetEventTypeRequest::default() };
        let Err(status) = client.event_types().get_event_type(client.request(request)).await else { continue };
        // What else goes wrong here says nothing of the type, and a watch goes on without the answer.
        if let Some(info) = status.get_details_error_info().filter(|info| info.reason == "EVENT_TYPE_NOT_FOUND") {
            let near = info.metadata.get("near").filter(|near| !near.is_empty());
            let near = near.map(|near| format!("; there is {near}")).unwrap_or_default();
            warn(&format!("there is no event type {name}{near}; events come once it is made"));
        }
    }
}

/// A watch that opens its stream again after the last message whenever it ends.
pub struct ResumingWatch {
    client: PublicClient,
    request: WatchRequest,
    stream: Option<tonic::Streaming<WatchResponse>>,
    /// True once a stream stood.
    stood: bool,
    backoff: Duration,
    /// What it was told to wait for.
    waits_for: Option<&'static str>,
}

impl ResumingWatch {
    /// A watch that is opened by the first [`ResumingWatch::next`].
    pub fn new(client: PublicClient, request: WatchRequest) -> Self {
        Self { client, request, stream: None, stood: false, backoff: BACKOFF_FIRST, waits_for: None }
    }

    /// The next message; waits as long as it takes, and says on standard error where that is for a connection or for room.
    ///
    /// *Errors*: whatever a resume cannot mend, such as a cursor that has expired.
    pub async fn next(&mut self) -> Result<WatchResponse, CliError> {
        loop {
            let opened = match &mut self.stream {
                Some(stream) => Ok(stream),
                None => match self.client.events().watch(self.request.clone()).await {
                    Ok(answer) => Ok(self.stream.insert(answer.into_inner())),
                    Err(status) => Err(status),
                },
            };
            let ended = match opened {
                Ok(stream) => stream.message().await,
                Err(status) => Err(status),
            };
            match ended {
                Ok(Some(message)) => {
                    self.stood = true;
                    self.backoff = BACKOFF_FIRST;
                    if self.waits_for.take().is_some() {
                        note("connected again; nothing was missed");
                    }
                    if !message.cursor.is_empty() {
                        self.request.start = Some(Start::Cursor(message.cursor.clone()));
                    }
                    if let Some(Kind::Closing(closing)) = &message.kind {
                        self.stream = None;
                        let delay = closing.retry_delay.and_then(|delay| Duration::try_from(delay).ok());
                        sleep(delay.unwrap_or_default().min(BACKOFF_MAX)).await;
                    }
                    return Ok(message);
                }
                Ok(None) => self.tell_wait(CONNECTION, "the stream has ended"),
                Err(status) if can_resume(&status, self.stood) => {
                    self.tell_wait(missing(&status), status.message());
                    sleep(retry_delay(&status).unwrap_or_default().min(BACKOFF_MAX)).await;
                }
                Err(status) => return Err(CliError::call("Watch")(status)),
            }
            self.stream = None;
            // Full jitter, so that the clients of a replica that went away do not come back all at once.
            sleep(self.backoff.mul_f64(clock::jitter())).await;
            self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// Says once what it waits for: that may last, and who waits for events would take it for silence.
    fn tell_wait(&mut self, missing: &'static str, why: &str) {
        if self.waits_for.replace(missing) != Some(missing) {
            warn(&format!("no {missing} ({why}); trying again until there is"));
        }
    }
}

/// What a watch waits for after such an end.
fn missing(status: &Status) -> &'static str {
    // Without a time to come back at it was this reader that had no room.
    if status.code() == Code::ResourceExhausted && retry_delay(status).is_some() { ROOM } else { CONNECTION }
}

/// True where the connection or the replica is at fault, not the request. A watch that has stood is resumed also where the server has
/// no room for it just now, or has failed; one that never did has an error at once.
fn can_resume(status: &Status, stood: bool) -> bool {
    match status.get_details_error_info() {
        Some(info) => match info.reason.as_str() {
            "SERVER_DRAINING" | "STREAM_AGE" | "STORE_UNAVAILABLE" | "SLOW_CONSUMER" => true,
            "INTERNAL" => stood,
            _ => stood && retry_delay(status).is_some(),
        },
        // Without a reason it was not the server that answered.
        None => matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled),
    }
}

/// When the server says that it makes sense to try again.
fn retry_delay(status: &Status) -> Option<Duration> {
    status.get_details_retry_info().and_then(|info| info.retry_delay)
}

/// A place in the log as the start of a watch.
pub fn start(from: From) -> Start {
    match from {
        From::Earliest => Start::Earliest(true),
        From::Now => Start::Now(true),
        From::Time(time) => Start::StartTime(time.into()),
        From::Cursor(cursor) => Start::Cursor(cursor),
    }
}

fn show(output: Output, watched: &WatchedEvent) -> Result<(), CliError> {
    if output.is_json() {
        return output.document(watched);
    }
    let event = watched.event.clone().unwrap_or_default();
    let cloud_event = event.event.unwrap_or_default();
    let (dim, bold) = (Style::new().dimmed(), Style::new().fg_color(Some(AnsiColor::Cyan.into())));
    let subject = attribute(&cloud_event, "subject").map(|subject| format!(" {subject}")).unwrap_or_default();
    output.line(&format!(
        "{:>8} {dim}{}{dim:#} {bold}{}{bold:#}{} {dim}{}{dim:#} {}",
        event.position,
        time(event.commit_time.as_ref()),
        cloud_event.r#type,
        plain(&subject),
        event.id,
        excerpt(&String::from_utf8_lossy(data(&cloud_event)), 100),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::status::ApiError;
    use crate::store::StoreError;

    #[test]
    fn a_watch_that_has_stood_goes_on_after_every_end_that_a_resume_mends() {
        let cursor = || "cursor".to_owned();
        let full = || ApiError::QuotaExceeded {
            quota: "watch.streams_max".to_owned(),
            limit: 1,
            retry_delay: Some(Duration::from_secs(5)),
        };
        let fault = || ApiError::Store(StoreError::Corrupt { what: "log" });
        let can_resume = |error: ApiError, stood| can_resume(&Status::from(error), stood);
        for error in [
            ApiError::ServerDraining,
            ApiError::StreamAge { resume_cursor: cursor() },
            ApiError::SlowConsumer { resume_cursor: cursor() },
            ApiError::Store(StoreError::unavailable_example()),
            ApiError::Store(StoreError::full_example()),
            ApiError::Store(StoreError::Crowded),
            full(),
            fault(),
        ] {
            let reason = error.reason_name();
            assert!(can_resume(error, true), "{reason}");
        }
        for error in [
            ApiError::CredentialInvalid,
            ApiError::CursorExpired { earliest: cursor() },
            ApiError::CursorForeign(cursor()),
            ApiError::field("start_time", "is in the future"),
        ] {
            let reason = error.reason_name();
            assert!(!can_resume(error, true), "{reason}");
        }
        assert_eq!(missing(&full().into()), ROOM);
        for error in [ApiError::ServerDraining, ApiError::SlowConsumer { resume_cursor: cursor() }] {
            assert_eq!(missing(&error.into()), CONNECTION);
        }
        // One that never stood waits for a connection and for nothing else.
        assert!(can_resume(ApiError::Store(StoreError::unavailable_example()), false));
        assert!(!can_resume(full(), false) && !can_resume(fault(), false));
    }
}
