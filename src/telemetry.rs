//! Logs to stderr, as text for people or JSON for programs; the metrics that the ops port serves.
//!
//! Nothing here may log a payload, a secret, a signature or a full URL; metrics carry no tenant and no URL in their labels.

pub mod metrics;

pub use metrics::{FilterPlace, Metrics, measured};

use serde::{Deserialize, Serialize};
use std::io::IsTerminal as _;
use tracing_subscriber::EnvFilter;

/// How logs look.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Text or JSON.
    pub format: Format,
    /// A level, or directives like `info,carillon=debug`.
    pub level: String,
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self { format: Format::Text, level: "info".to_owned() }
    }
}

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The level does not parse.
    #[error("setting log.level: is not a level or a list of directives")]
    Level,
}

/// Starts logging for the process; a second call changes nothing.
pub fn start(config: &Config) -> Result<(), TelemetryError> {
    let filter = EnvFilter::try_new(&config.level).map_err(|_| TelemetryError::Level)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let started = match config.format {
        Format::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
    if started.is_ok() {
        // A panic is a fault of the server and belongs into the log, without a backtrace that names paths.
        std::panic::set_hook(Box::new(|panic| {
            let place = panic.location().map(|at| format!("{}:{}", at.file(), at.line())).unwrap_or_default();
            let what = panic.payload();
            let text =
                what.downcast_ref::<&str>().copied().or_else(|| what.downcast_ref::<String>().map(String::as_str));
            tracing::error!(place, text, "panicked");
        }));
    }
    Ok(())
}
