//! `carillon reseal`: seals every stored secret with the first configured key, so that an older key can be taken away.

use super::output::Output;
use super::{Settings, block_on};
use crate::store::connect;
use crate::store::secrets::Keyring;
use crate::store::settings::CURSOR_KEY;
use crate::telemetry;
use clap::Args;

/// Seal every stored secret with the first key of secrets.keys. Safe to run twice, and while replicas run.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  carillon reseal --config carillon.toml")]
pub struct Reseal {
    #[command(flatten)]
    settings: Settings,
}

impl Reseal {
    pub(super) fn run(self, output: Output) -> anyhow::Result<()> {
        let config = self.settings.load()?;
        // Nothing here is traced.
        let _no_traces = telemetry::start(&config.log, &telemetry::traces::Config::default())?;
        let keyring = Keyring::new(config.secrets.read()?)?;
        let resealed = block_on(async {
            let store = connect::open(&config.database).await?.with_keyring(keyring.clone());
            let setting = store.reseal_setting(CURSOR_KEY, &keyring).await?;
            let resealed =
                store.reseal_secrets(&keyring).await? + store.reseal_headers(&keyring).await? + u64::from(setting);
            store.close().await;
            Ok(resealed)
        })?;
        if output.is_json() {
            output.document(&serde_json::json!({ "resealed": resealed }))?;
        } else {
            output.line(&match resealed {
                1 => "Sealed 1 secret with the first key.".to_owned(),
                secrets => format!("Sealed {secrets} secrets with the first key."),
            })?;
        }
        Ok(())
    }
}
