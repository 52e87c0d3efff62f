//! `carillon migrate`: brings the database's schema to this release's, and lets the server's role use it.

use super::output::Output;
use super::{Settings, block_on};
use crate::store::connect::{self, Migrated};
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
    /// The database was restored in place: cursors from before answer CURSOR_FOREIGN from now on. A copy in another database is
    /// noticed without
    #[arg(long)]
    restored: bool,
}

impl Migrate {
    pub(super) fn run(self, output: Output) -> anyhow::Result<()> {
        let config = self.settings.load_for_database()?;
        // Nothing here is traced.
        let _no_traces = telemetry::start(&config.log, &telemetry::traces::Config::default())?;
        let (migrated, renewed) = block_on(async {
            let migrated = connect::migrate(&config.database, &self.grant_to).await?;
            let renewed = if self.restored { Some(connect::renew_logs(&config.database).await?) } else { None };
            Ok((migrated, renewed))
        })?;
        if output.is_json() {
            let Migrated { applied, granted } = migrated;
            output
                .document(&serde_json::json!({ "applied": applied, "granted": granted, "renewed_tenants": renewed }))?;
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
            if let Some(tenants) = renewed {
                output.line(&format!("Cursors from before the restore are ended; tenants: {tenants}."))?;
            }
        }
        Ok(())
    }
}
