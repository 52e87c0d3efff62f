//! `carillon demo`: real payloads through the whole service, every delivery verified, counted by the demo itself.
//!
//! It uses the public and the internal port like any other client: declares the GitHub event types, subscribes receivers of
//! its own, watches, publishes, waits until everything has arrived, and says what it saw. Against the `carillon dev` of
//! this folder where one runs, else against a throw-away one of its own.

mod ledger;
mod payloads;
mod stage;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream;
use tokio::task::JoinSet;

use self::ledger::{Ledger, Published, Verdict};
use self::payloads::{Kind, Payload, TYPE_PREFIX};
use self::stage::{Stage, Versions};
use super::attributes::string;
use super::client::{ClientFile, DevFolder, InternalClient, PublicClient, call};
use super::dev::{DevOptions, DevServer, Place, Ports, PostgresArgs};
use super::error::CliError;
use super::output::{Output, note, progress, spinner};
use super::publish::payload;
use super::receiver::Delivery;
use super::watch::ResumingWatch;
use crate::proto::cloudevents::CloudEvent;
use crate::proto::internal::PublishRequest;
use crate::proto::public::watch_request::Start;
use crate::proto::public::watch_response::Kind as Message;
use crate::proto::public::{ValidateEventRequest, WatchFilter, WatchRequest};
use crate::shutdown::Signals;

const EXAMPLES: &str = "Examples:
  carillon demo
  carillon demo --throwaway --json
  carillon demo --packages /tmp/octokit/node_modules";

/// How long one call of the demo may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// Publish real GitHub webhook payloads, and verify that every one is delivered and watched
///
/// Each payload is checked against the real schema of its kind. Of the whole set, 53 of 329 payloads are older than that schema
/// and break it: their kinds get a version 1 besides, which asks only for the top-level keys that all payloads of the kind have,
/// and these are published with it. So none is refused, and the summary says how many were checked against which.
///
/// With --json the summary is one object: published, refused, outside_schema (published with the version made for those that
/// break the real schema), deliveries_expected, deliveries_verified, watched, lost, and publish_to_receipt_ms with p50 and p99.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct DemoArgs {
    /// The node_modules folder of `npm install --prefix /tmp/octokit @octokit/webhooks-examples@7.6.1
    /// @octokit/webhooks-schemas@7.6.1` [default: the built-in sample of 12 payloads]
    #[arg(long, value_name = "FOLDER")]
    packages: Option<PathBuf>,
    /// Folder of the `carillon dev` to use; where none runs there, the demo starts a throw-away one [default: .carillon]
    #[arg(long, env = "CARILLON_DIR", default_value = "", hide_default_value = true, value_name = "FOLDER")]
    dir: DevFolder,
    /// Start a throw-away service of its own in any case
    #[arg(long)]
    throwaway: bool,
    /// Publishes that are under way at the same time
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256), value_name = "N")]
    concurrency: u16,
    /// Longest wait for the last deliveries
    #[arg(long, default_value = "60s", value_parser = super::values::parse_duration, value_name = "DURATION")]
    patience: Duration,
    #[command(flatten)]
    postgres: PostgresArgs,
}

/// Both ports of the service that the demo uses.
struct Clients {
    public: PublicClient,
    internal: InternalClient,
    app: String,
}

/// Runs the demo.
///
/// *Errors*: [`CliError::Result`] where anything was lost, changed or refused.
pub async fn run(args: DemoArgs, output: Output) -> Result<(), CliError> {
    let mut signals = Signals::listen().map_err(CliError::Signals)?;
    let kinds = payloads::load(args.packages.as_deref())?;
    if args.packages.is_none() {
        note(
            "--packages is not given: using the built-in sample of 12 payloads of 6 event types; the whole set is 329 payloads \
             of 58 (see --help)",
        );
    }
    let (clients, own) = if let Some(clients) = running(&args).await? {
        (clients, None)
    } else {
        // Dropping the start takes everything away that it has made so far.
        let server = tokio::select! {
            server = Box::pin(start_own(&args)) => server?,
            () = signals.next() => return Err(ended_early()),
        };
        (connect(server.client_file()).await?, Some(server))
    };
    let shown = perform(&args, &kinds, &clients, signals, output).await;
    if let Some(server) = own {
        server.stop().await?;
    }
    shown
}

fn ended_early() -> CliError {
    CliError::Result("ended before everything was published".to_owned())
}

async fn start_own(args: &DemoArgs) -> Result<DevServer, CliError> {
    let options = DevOptions {
        place: Place::Throwaway,
        ports: Ports::free(),
        search: args.postgres.search(),
        settings: vec![("log.level".to_owned(), "warn".to_owned())],
    };
    let starting = spinner("starting a throw-away service");
    let server = Box::pin(DevServer::start(options)).await;
    starting.finish_and_clear();
    server
}

/// The service of the folder, where one runs and is not to be passed over.
async fn running(args: &DemoArgs) -> Result<Option<Clients>, CliError> {
    if args.throwaway {
        return Ok(None);
    }
    if !ClientFile::path(args.dir.path()).is_file() {
        note(&format!(
            "no service was ever started in {0}: starting a throw-away one (`carillon dev --dir {0}` starts one there)",
            args.dir.path().display()
        ));
        return Ok(None);
    }
    match connect(&ClientFile::load(args.dir.path())?).await {
        Ok(clients) => Ok(Some(clients)),
        Err(CliError::Connect { .. }) => {
            note(&format!("no service runs in {}: starting a throw-away one", args.dir.path().display()));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

async fn connect(file: &ClientFile) -> Result<Clients, CliError> {
    let incomplete = || CliError::Usage("client.toml is not complete: start `carillon dev` again".to_owned());
    let ca = file.ca.as_deref();
    let url = file.url.as_deref().ok_or_else(incomplete)?;
    let public = PublicClient::connect(url, file.api_key.as_ref(), ca, DEADLINE).await?;
    let internal_url = file.internal_url.as_deref().ok_or_else(incomplete)?;
    let publisher = file.publisher.as_ref().ok_or_else(incomplete)?;
    let internal = InternalClient::connect(internal_url, publisher, ca, DEADLINE).await?;
    Ok(Clients { public, internal, app: file.app.clone().ok_or_else(incomplete)? })
}

/// Plays the demo and clears the stage, however it ended: what is subscribed must not stay for a receiver that is gone.
async fn perform(
    args: &DemoArgs,
    kinds: &[Kind],
    clients: &Clients,
    mut signals: Signals,
    output: Output,
) -> Result<(), CliError> {
    let mut stage = Stage::open(&clients.app, kinds).await?;
    let verdict = tokio::select! {
        verdict = play(args, kinds, clients, &mut stage) => verdict,
        () = signals.next() => Err(ended_early()),
    };
    // Whoever asks again does not want to wait for that.
    let impatience = signals.exit_on_next();
    let struck = stage.strike(&clients.public).await;
    impatience.abort();
    let verdict = verdict?;
    struck?;
    show(output, kinds, &verdict)
}

async fn play(args: &DemoArgs, kinds: &[Kind], clients: &Clients, stage: &mut Stage) -> Result<Verdict, CliError> {
    stage.set(&clients.public, kinds).await?;
    let checked = validate(&clients.public, kinds, stage.versions()).await?;
    let ledger = Arc::new(Ledger::default());
    let mut collectors = JoinSet::new();
    collectors.spawn(book_deliveries(stage.take_deliveries(), Arc::clone(&ledger)));
    let watch = open_watch(&clients.public, stage.filter()).await?;
    collectors.spawn(book_watched(watch, Arc::clone(&ledger)));

    let published = publish_all(args, clients, kinds, stage, &checked, &ledger).await;
    if published.is_ok() {
        let waiting = spinner("waiting for the last deliveries");
        ledger
            .complete(args.patience, |arrived| waiting.set_message(format!("{arrived} deliveries have arrived")))
            .await;
        waiting.finish_and_clear();
    }
    // What is still on its way now would be seen as unexpected or repeated only by luck: nothing is waited for.
    collectors.shutdown().await;
    published.map(|()| ledger.verdict())
}

/// Which schema version each payload goes with: the real one where it fits, else the shape that the older ones share.
///
/// *Shape*: by kind, then by payload.
async fn validate(client: &PublicClient, kinds: &[Kind], versions: &[Versions]) -> Result<Vec<Vec<i32>>, CliError> {
    let bar = progress(kinds.iter().map(|kind| kind.payloads.len() as u64).sum(), "checking payloads");
    let mut checked = Vec::new();
    for (kind, versions) in kinds.iter().zip(versions) {
        let mut of_kind = Vec::new();
        for payload in &kind.payloads {
            let request = ValidateEventRequest {
                event_type: kind.event_type.clone(),
                schema_version: versions.real,
                data: payload.text.clone().into(),
            };
            let answer = call("ValidateEvent", client.event_types().validate_event(client.request(request))).await?;
            // Without a shape to fall back to, the publish shall be refused visibly.
            of_kind.push(if answer.valid { versions.real } else { versions.shared_shape.unwrap_or(versions.real) });
            bar.inc(1);
        }
        checked.push(of_kind);
    }
    bar.finish_and_clear();
    Ok(checked)
}

/// Opens the watch and waits until the server says that it stands, so that it misses nothing.
async fn open_watch(client: &PublicClient, filter: String) -> Result<ResumingWatch, CliError> {
    let filter = WatchFilter { name: String::new(), event_types: vec![format!("{TYPE_PREFIX}*")], filter };
    let request = WatchRequest { filters: vec![filter], start: Some(Start::Now(true)), ..WatchRequest::default() };
    let mut watch = ResumingWatch::new(client.clone(), request);
    loop {
        if let Some(Message::Created(_)) = watch.next().await?.kind {
            return Ok(watch);
        }
    }
}

async fn book_watched(mut watch: ResumingWatch, ledger: Arc<Ledger>) {
    // A watch that ends for good shows as events that were not watched.
    while let Ok(message) = watch.next().await {
        let Some(Message::Events(events)) = message.kind else { continue };
        for event in events.events.into_iter().filter_map(|watched| watched.event) {
            ledger.watched(event.id, event.position);
        }
    }
}

async fn book_deliveries(mut deliveries: tokio::sync::mpsc::Receiver<Delivery>, ledger: Arc<Ledger>) {
    while let Some(delivery) = deliveries.recv().await {
        ledger.delivered(&delivery);
    }
}

async fn publish_all(
    args: &DemoArgs,
    clients: &Clients,
    kinds: &[Kind],
    stage: &Stage,
    checked: &[Vec<i32>],
    ledger: &Ledger,
) -> Result<(), CliError> {
    let bar = &progress(checked.iter().map(|versions| versions.len() as u64).sum(), "publishing");
    let payloads = kinds.iter().zip(stage.versions()).zip(checked).flat_map(|((kind, versions), checked)| {
        kind.payloads
            .iter()
            .zip(checked)
            .enumerate()
            .map(move |(number, (payload, version))| (kind, number, payload, *version, *version != versions.real))
    });
    let publishes = payloads.map(|(kind, number, payload, version, outside_schema)| async move {
        let request = publish_request(kind, number, payload, version, stage);
        let paths = stage.expected_paths(kind, payload);
        let started = Instant::now();
        let published = call("Publish", clients.internal.publish().publish(clients.internal.request(request))).await;
        bar.inc(1);
        match published {
            Ok(published) => {
                let value = payload.value.clone();
                ledger.published(published.event_id, Published { paths, value, outside_schema, started });
                Ok(())
            }
            Err(error) => match error.reason() {
                Some(reason) => {
                    ledger.refused(reason, &kind.event_type);
                    Ok(())
                }
                None => Err(error),
            },
        }
    });
    let mut publishes = stream::iter(publishes).buffer_unordered(args.concurrency.into());
    let mut ended = Ok(());
    while let Some(published) = publishes.next().await {
        ended = published;
        if ended.is_err() {
            break;
        }
    }
    bar.finish_and_clear();
    ended
}

fn publish_request(kind: &Kind, number: usize, of: &Payload, version: i32, stage: &Stage) -> PublishRequest {
    let attributes = [("subject", kind.name.as_str()), ("datacontenttype", "application/json")];
    let event = CloudEvent {
        id: String::new(),
        source: stage.source(),
        spec_version: "1.0".to_owned(),
        r#type: kind.event_type.clone(),
        attributes: attributes.map(|(name, value)| (name.to_owned(), string(value))).into(),
        data: Some(payload(of.text.clone().into_bytes())),
    };
    let idempotency_key = format!("demo-{}-{}-{number}", stage.run(), kind.name);
    PublishRequest { event: Some(event), idempotency_key, schema_version: version, ..PublishRequest::default() }
}

/// Says what was seen; ends in an error where it is not what should have been.
fn show(output: Output, kinds: &[Kind], verdict: &Verdict) -> Result<(), CliError> {
    let figures = &verdict.figures;
    if output.is_json() {
        output.document(figures)?;
    } else {
        let total: usize = kinds.iter().map(|kind| kind.payloads.len()).sum();
        let outside = figures.outside_schema;
        let outside_text = format!(
            "; {outside} do not fit it, because they are older, and were published with a version 1 made for them, which \
             asks only for the top-level keys that all payloads of their kind have"
        );
        let schemas = format!(
            "{} fit the real schema{}",
            figures.published - outside,
            if outside == 0 { "" } else { &outside_text }
        );
        let repeated =
            if verdict.repeated == 0 { String::new() } else { format!(" ({} came twice)", verdict.repeated) };
        let latency = &figures.publish_to_receipt_ms;
        output.fields(&[
            ("published", format!("{} of {total} payloads of {} event types", figures.published, kinds.len())),
            ("schemas", schemas),
            ("refused", format!("{} {}", figures.refused, verdict.refused.join(", ")).trim_end().to_owned()),
            (
                "delivered",
                format!(
                    "{} of {} expected, each with a verified signature and the published data{repeated}",
                    figures.deliveries_verified, figures.deliveries_expected
                ),
            ),
            ("watched", format!("{} of {}", figures.watched, figures.published)),
            ("lost", figures.lost.to_string()),
            ("publish to receipt", format!("p50 {} ms, p99 {} ms", latency.p50, latency.p99)),
        ])?;
    }
    if verdict.faults.is_empty() && figures.refused == 0 {
        return Ok(());
    }
    let mut faults = verdict.faults.clone();
    faults.extend(verdict.refused.iter().map(|refused| format!("refused: {refused}")));
    Err(CliError::Result(faults.join("; ")))
}
