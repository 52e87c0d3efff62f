//! `carillon serve`: runs a replica until it is told to stop.

use super::error::CliError;
use super::{Settings, block_on};
use crate::app::App;
use crate::config::Config;
use crate::shutdown::Signals;
use crate::store::connect;
use crate::telemetry;
use anyhow::Context as _;
use clap::Args;
use std::fs;
use std::path::{Path, PathBuf};

/// Serve the public, internal and ops ports until SIGTERM or SIGINT; a second signal exits at once.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  carillon serve --config carillon.toml
  carillon serve --config carillon.toml --migrate --set log.format=json
  carillon serve --config carillon.toml --set database.url=postgres://carillon@localhost/carillon")]
pub struct Serve {
    #[command(flatten)]
    settings: Settings,
    /// Bring the database's schema to this release's first, as the role of database.migrate_url.
    #[arg(long)]
    migrate: bool,
    /// Write the addresses as one JSON line to this file once every port accepts.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
}

impl Serve {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let config = self.settings.load()?;
        block_on(async {
            let traces = telemetry::start(&config.log, &config.traces)?;
            let served = serve(config, self.migrate, self.ready_file).await;
            traces.stop().await;
            served
        })
    }
}

async fn serve(config: Config, migrate: bool, ready_file: Option<PathBuf>) -> anyhow::Result<()> {
    let mut signals = Signals::listen().context("signals cannot be listened for")?;
    let start = async {
        if migrate {
            connect::migrate(&config.database, &[]).await?;
        }
        Box::pin(App::start(config)).await
    };
    let app = tokio::select! {
        // As the command line's own error, which knows the way out.
        started = start => started.map_err(CliError::App)?,
        () = signals.next() => return Ok(()),
    };
    if let Some(path) = &ready_file {
        write_ready(path, &app)?;
    }
    signals.next().await;
    let second = signals.exit_on_next();
    app.stop().await;
    second.abort();
    Ok(())
}

/// Written aside and renamed, so that a reader sees all of it or nothing.
pub(super) fn write_ready(path: &Path, app: &App) -> anyhow::Result<()> {
    let addresses = app.addresses();
    let ready = serde_json::json!({
        "public": addresses.public.to_string(),
        "internal": addresses.internal.to_string(),
        "ops": addresses.ops.to_string(),
        "pid": std::process::id(),
    });
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    fs::write(&partial, format!("{ready}\n"))
        .and_then(|()| fs::rename(&partial, path))
        .with_context(|| format!("--ready-file {} cannot be written", path.display()))
}
