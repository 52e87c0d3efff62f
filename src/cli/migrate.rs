//! `carillon migrate`: brings the database's schema to this release's.

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
        telemetry::start(&config.log)?;
        let applied = block_on(async { Ok(connect::migrate(&config.database).await?) })?;
        if global.json {
            anstream::println!("{}", serde_json::json!({ "applied": applied }));
        } else if applied == 0 {
            anstream::println!("The schema is up to date.");
        } else {
            anstream::println!("Applied {applied} schema step(s).");
        }
        Ok(())
    }
}
