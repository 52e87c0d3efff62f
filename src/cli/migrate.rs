//! `carillon migrate`: brings the database's schema to this release's.

use super::output::Output;
use super::{Global, Settings, block_on};
use crate::store::connect;
use crate::telemetry;
use clap::Args;

/// Bring the database's schema to this release's. Safe to run twice, and by two at once: one waits for the other.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  carillon migrate --config carillon.toml
  carillon migrate --set database.url=postgres://carillon@localhost/carillon")]
pub struct Migrate {
    #[command(flatten)]
    settings: Settings,
}

impl Migrate {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let config = self.settings.load_for_database(global)?;
        // Nothing here is traced.
        let _no_traces = telemetry::start(&config.log, &telemetry::traces::Config::default())?;
        let applied = block_on(async { Ok(connect::migrate(&config.database).await?) })?;
        let output = Output::new(global);
        if output.is_json() {
            output.document(&serde_json::json!({ "applied": applied }))?;
        } else {
            output.line(&match applied {
                0 => "The schema is up to date.".to_owned(),
                1 => "Applied 1 schema step.".to_owned(),
                steps => format!("Applied {steps} schema steps."),
            })?;
        }
        Ok(())
    }
}
