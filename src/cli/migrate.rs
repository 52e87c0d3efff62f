//! `carillon migrate`: brings the database's schema to this release's, and lets the server's role use it.

use super::output::Output;
use super::{Global, Settings, block_on};
use crate::store::connect;
use crate::telemetry;
use clap::Args;

/// Bring the database's schema to this release's, as the role that owns the tables. Safe to run twice, and by two at once: one waits
/// for the other.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  carillon migrate --config carillon.toml
  carillon migrate --set database.url=postgres://carillon@localhost/carillon --grant-to carillon_server")]
pub struct Migrate {
    #[command(flatten)]
    settings: Settings,
    /// Let this role use the tables as a server does, now and after later steps. Given by itself is the role of database.url where
    /// database.migrate_url names the owner
    #[arg(long, value_name = "ROLE")]
    grant_to: Vec<String>,
}

impl Migrate {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let config = self.settings.load_for_database(global)?;
        // Nothing here is traced.
        let _no_traces = telemetry::start(&config.log, &telemetry::traces::Config::default())?;
        let migrated = block_on(async { Ok(connect::migrate(&config.database, &self.grant_to).await?) })?;
        let output = Output::new(global);
        if output.is_json() {
            output.document(&serde_json::json!({ "applied": migrated.applied, "granted": migrated.granted }))?;
        } else {
            output.line(&match migrated.applied {
                0 => "The schema is up to date.".to_owned(),
                1 => "Applied 1 schema step.".to_owned(),
                steps => format!("Applied {steps} schema steps."),
            })?;
            output.line(&match migrated.granted.as_slice() {
                [] => "No role may use it as a server: name one with --grant-to.".to_owned(),
                roles => format!("May use it as a server: {}.", roles.join(", ")),
            })?;
        }
        Ok(())
    }
}
