//! `carillon dev`: everything one needs to try Carillon, with nothing prepared but a Postgres installation.
//!
//! Starts a [`DevServer`], prints lines to paste into other terminals, and serves until it is told to end.

mod server;

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use anstyle::{AnsiColor, Style};
use serde_json::json;

pub use self::server::{DevOptions, DevServer, Place, Ports};
use super::Flags;
use super::client::{ClientFile, DevFolder};
use super::error::CliError;
use super::output::{Output, note, spinner};
use super::serve::write_ready;
use crate::dev::Search;
use crate::shutdown::Signals;

const EXAMPLES: &str = "Examples:
  carillon dev
  carillon dev --dir /tmp/try --port 0 --internal-port 0 --ops-port 0
  carillon dev --postgres /usr/lib/postgresql/17/bin --set log.level=debug";

/// Run a whole service on this machine: private Postgres, certificates, tenant, app, API key
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct DevArgs {
    /// Folder that holds everything; made when absent, used again by the next start [default: .carillon]
    #[arg(long, env = "CARILLON_DIR", default_value = "", hide_default_value = true, value_name = "FOLDER")]
    dir: DevFolder,
    /// Port for gRPC and gRPC-Web on loopback; 0 takes a free one
    #[arg(long, default_value_t = 7070, value_name = "PORT")]
    port: u16,
    /// Port for Publish and Admin over mutual TLS on loopback; 0 takes a free one
    #[arg(long, default_value_t = 7071, value_name = "PORT")]
    internal_port: u16,
    /// Port for probes and metrics on loopback; 0 takes a free one
    #[arg(long, default_value_t = 7072, value_name = "PORT")]
    ops_port: u16,
    /// Write the addresses as one JSON line to this file once everything is ready
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
    #[command(flatten)]
    postgres: PostgresArgs,
}

/// Where to look for the Postgres programs.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Postgres")]
pub struct PostgresArgs {
    /// Postgres programs to use: their folder, the installation's prefix, or the server program [default: those found]
    #[arg(long, env = "CARILLON_POSTGRES", value_name = "PATH")]
    postgres: Option<PathBuf>,
    /// Folder of unpacked copies of Postgres, looked at first [default: ~/.cache/carillon]
    #[arg(long, env = "CARILLON_CACHE", value_name = "FOLDER")]
    cache: Option<PathBuf>,
    /// The command search path.
    #[arg(long, env = "PATH", hide = true)]
    search_path: Option<OsString>,
    /// The home folder.
    #[arg(long, env = "HOME", hide = true)]
    home: Option<PathBuf>,
}

impl PostgresArgs {
    /// The search that the arguments ask for.
    pub fn search(&self) -> Search {
        let path = self.search_path.as_ref().map(|path| path.as_bytes().split(|byte| *byte == b':'));
        let path = path.into_iter().flatten().filter(|folder| !folder.is_empty());
        let path: Vec<_> = path.map(|folder| PathBuf::from(OsString::from_vec(folder.to_vec()))).collect();
        let cache = self.cache.clone().or_else(|| Some(self.home.as_ref()?.join(".cache").join("carillon")));
        Search { explicit: self.postgres.clone(), ..Search::system(path, cache) }
    }

    /// How to call this program again: by its name where the shell finds it, else by its path.
    fn program(&self) -> String {
        let name = "carillon".to_owned();
        let Ok(program) = fs::read_link("/proc/self/exe") else { return name };
        let path = self.search_path.as_ref().map(|path| path.as_bytes().split(|byte| *byte == b':'));
        let is_found = path
            .into_iter()
            .flatten()
            .map(|folder| Path::new(std::ffi::OsStr::from_bytes(folder)).join(&name))
            .find_map(|candidate| fs::canonicalize(candidate).ok())
            .is_some_and(|found| found == program);
        if is_found { name } else { relative(&program).display().to_string() }
    }
}

/// Serves until SIGINT or SIGTERM.
pub async fn run(args: DevArgs, output: Output) -> Result<(), CliError> {
    let mut signals = Signals::listen().map_err(CliError::Signals)?;
    let options = DevOptions {
        place: Place::Folder(args.dir.path().to_owned()),
        ports: Ports { public: args.port, internal: args.internal_port, ops: args.ops_port },
        search: args.postgres.search(),
        settings: args.flags.set,
    };
    let starting = spinner("starting");
    let started = tokio::select! {
        started = DevServer::start(options) => started,
        () = signals.next() => return Ok(()),
    };
    starting.finish_and_clear();
    let mut server = started?;
    let served =
        serve(&mut server, &mut signals, args.dir.path(), args.ready_file.as_deref(), &args.postgres, output).await;
    let second = signals.exit_on_next();
    let stopped = server.stop().await;
    second.abort();
    served.and(stopped)
}

async fn serve(
    server: &mut DevServer,
    signals: &mut Signals,
    dir: &Path,
    ready_file: Option<&Path>,
    postgres: &PostgresArgs,
    output: Output,
) -> Result<(), CliError> {
    for sentence in server.notes() {
        note(sentence);
    }
    if output.is_json() {
        let addresses = server.addresses();
        output.document(&json!({
            "public": addresses.public.to_string(),
            "internal": addresses.internal.to_string(),
            "ops": addresses.ops.to_string(),
            "client": ClientFile::path(server.dir()),
            "pid": std::process::id(),
        }))?;
    } else {
        print_tour(output, server, dir, &postgres.program())?;
    }
    if let Some(path) = ready_file {
        write_ready(path, server.app()).map_err(|error| CliError::Result(format!("{error:#}")))?;
    }
    tokio::select! {
        () = signals.next() => Ok(()),
        () = server.postgres_ended() => {
            let log = server.dir().join("pg").join("log");
            Err(CliError::Result(format!("the private Postgres has ended; its log is in {}", log.display())))
        }
    }
}

/// Says where everything is, and what to paste.
fn print_tour(output: Output, server: &DevServer, dir: &Path, program: &str) -> Result<(), CliError> {
    let addresses = server.addresses();
    let (bold, dim) = (Style::new().bold(), Style::new().dimmed());
    let cyan = Style::new().fg_color(Some(AnsiColor::Cyan.into()));
    let folder = dir.display();
    let option = if dir == Path::new(".carillon") { String::new() } else { format!(" --dir {folder}") };
    output.line(&format!(
        "{bold}Carillon is ready.{bold:#}

  public    http://{}   {dim}gRPC and gRPC-Web; API key in {folder}/api-key{dim:#}
  internal  https://localhost:{}  {dim}gRPC over mutual TLS; certificates in {folder}/certs{dim:#}
  ops       http://{}   {dim}/livez /readyz /metrics{dim:#}

Paste these lines into other terminals, in this folder:
",
        addresses.public,
        addresses.internal.port(),
        addresses.ops,
    ))?;
    let public = addresses.public;
    let steps = [
        ("watch the stream live", format!("{program} watch{option} --from earliest")),
        (
            "receive webhooks and verify their signatures",
            format!("{program} receiver --listen 127.0.0.1:9000 --secret @{folder}/webhook-secret"),
        ),
        (
            "subscribe that receiver",
            format!(
                "{program} subscribe{option} USER_CREATE --webhook http://127.0.0.1:9000/ --secret @{folder}/webhook-secret"
            ),
        ),
        (
            "publish an event",
            format!(
                r#"{program} publish{option} USER_CREATE --data '{{"user_id": "u-1", "email": "ada@example.com"}}' --wait"#
            ),
        ),
        (
            "any gRPC client works, such as buf",
            format!(
                r#"buf curl --protocol grpc --http2-prior-knowledge --header "authorization: Bearer $(cat {folder}/api-key)" http://{public}/carillon.v1.EventTypeService/ListEventTypes"#
            ),
        ),
        ("see the whole thing at work with real payloads", format!("{program} demo{option}")),
    ];
    for (what, line) in steps {
        output.line(&format!("  {dim}# {what}{dim:#}\n  {cyan}{line}{cyan:#}"))?;
    }
    output.line("\nCtrl-C ends it; the folder keeps everything for the next start.")
}

/// The path from the present folder, where it lies below it.
fn relative(path: &Path) -> PathBuf {
    let here = fs::canonicalize(".").unwrap_or_default();
    path.strip_prefix(here).map_or_else(|_| path.to_owned(), |below| Path::new(".").join(below))
}
