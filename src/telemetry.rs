//! Logs to stderr, as text for people or JSON for programs; the metrics that the ops port serves; traces over OTLP.
//!
//! Nothing here may log a payload, a secret, a signature or a full URL; metrics carry no tenant and no URL in their labels.

pub mod metrics;
pub mod traces;

pub use metrics::{FilterPlace, Metrics, measured};
pub use traces::Traces;

use serde::{Deserialize, Serialize};
use std::io::IsTerminal as _;
use tracing_subscriber::filter::{Directive, LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, fmt};

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
    #[error(
        "setting log.level: each part must be off, error, warn, info, debug or trace, or a module with one of them, as in info,carillon=debug"
    )]
    Level,
    /// The exporter of traces.
    #[error("setting traces.endpoint")]
    Exporter(#[source] opentelemetry_otlp::ExporterBuildError),
}

/// Reads a level or a list of directives; none where any of them says no level. `EnvFilter` would take a misspelt level for a module's
/// name, and be silent about everything else.
fn parse_level(text: &str) -> Option<EnvFilter> {
    let says_level = |directive: &str| {
        let level = directive.rsplit_once('=').map_or(directive, |(_, level)| level);
        let level = level.trim();
        !level.is_empty() && level.parse::<LevelFilter>().is_ok()
    };
    let directives: Vec<&str> = text.split(',').map(str::trim).collect();
    directives.iter().all(|directive| says_level(directive)).then(|| EnvFilter::try_new(directives.join(",")).ok())?
}

/// Starts logging, and traces where they are wanted, for the process; a second call changes nothing.
///
/// Must be called inside the runtime where traces are wanted: their exporter lives in it.
pub fn start(config: &Config, traces: &traces::Config) -> Result<Traces, TelemetryError> {
    // Spans are for the exporter alone: without one nobody wants them, and they are not even made.
    let no_spans = Directive::from(LevelFilter::OFF);
    let no_spans = format!("{}={no_spans}", traces::TARGET).parse().map_err(|_| TelemetryError::Level)?;
    let filter = parse_level(&config.level).ok_or(TelemetryError::Level)?.add_directive(no_spans);
    let lines = fmt::layer().with_writer(std::io::stderr).with_target(false);
    let lines = match config.format {
        Format::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        Format::Json => lines.json().flatten_event(true).boxed(),
    };
    let exported = Traces::new(traces)?;
    let spans = exported.tracer().map(|tracer| {
        let layer = tracing_opentelemetry::layer().with_tracer(tracer);
        let layer = layer.with_location(false).with_threads(false).with_tracked_inactivity(false);
        layer.with_level(false).with_target(false).with_filter(filter_fn(|about| about.target() == traces::TARGET))
    });
    let started = Registry::default().with(lines.with_filter(filter)).with(spans).try_init();
    if started.is_ok() {
        exported.turn_on();
        // A panic is a fault of the server and belongs into the log, without a backtrace that names paths.
        std::panic::set_hook(Box::new(|panic| {
            let place = panic.location().map(|at| format!("{}:{}", at.file(), at.line())).unwrap_or_default();
            let what = panic.payload();
            let text =
                what.downcast_ref::<&str>().copied().or_else(|| what.downcast_ref::<String>().map(String::as_str));
            tracing::error!(place, text, "panicked");
        }));
    }
    Ok(exported)
}

#[cfg(test)]
mod tests {
    use super::parse_level;

    #[test]
    fn every_part_of_a_level_says_how_much_is_logged() {
        for good in
            ["info", "WARN", "off", "info,carillon=debug", "warn, carillon::dispatch=trace", "carillon[commit]=debug"]
        {
            assert!(parse_level(good).is_some(), "{good}");
        }
        for bad in
            ["", "inof", "warning", "blah", "info,", "info,carillon", "carillon=loud", "info,=", "carillon[commit"]
        {
            assert!(parse_level(bad).is_none(), "{bad:?}");
        }
    }
}
