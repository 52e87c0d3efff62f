//! How a command that failed says so to a program: with `--json`, one JSON object on standard error, and nothing else there.
//!
//! *Shape*: `{"error": {"reason", "message", "exitCode", ...}}`. Of a call that the server has refused it holds what the status says
//! (`code`, `reason`, `message`, `metadata`, `fieldViolations`, `preconditionViolations`, `quotaViolations`, `retryDelay`) and the `rpc`; of
//! other failures a reason of the command line's own. `docs/errors.md` lists them. Nothing here may print a credential.

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use clap::error::ErrorKind;
use serde_json::{Value, json};

use super::error::{CliError, with_causes};
use super::plain;
use crate::api::status::to_json;
use crate::app::AppError;

/// What a wrong command line ends with.
const USAGE_CODE: u8 = 2;

/// Says on standard error why a command failed.
pub fn report(error: &CliError) {
    if matches!(error, CliError::Output(source) if source.kind() == io::ErrorKind::BrokenPipe) {
        return;
    }
    let mut failure = match error {
        CliError::Call { rpc, status } => {
            let mut failure = to_json(status);
            failure["rpc"] = json!(rpc);
            if failure.get("reason").is_none() {
                failure["reason"] = json!("CALL_FAILED");
            }
            failure
        }
        other => json!({ "reason": reason(other), "message": with_causes(other) }),
    };
    failure["exitCode"] = json!(error.exit_number());
    if let Some(way_out) = error.way_out() {
        failure["help"] = json!(way_out);
    }
    print(&failure);
}

/// As [`report`], for what commands of the server itself fail with.
pub fn report_other(error: &anyhow::Error) {
    let reason = if error.is::<crate::config::ConfigError>() { "CONFIGURATION" } else { "FAILED" };
    print(&json!({ "reason": reason, "message": with_causes(error.as_ref()), "exitCode": 1 }));
}

/// Tells of a command line that does not parse, or shows the help that it asks for.
pub fn usage(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    let asked_for = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if asked_for || !arguments.iter().any(|argument| argument == "--json") {
        // A standard error that takes nothing leaves the exit code.
        let _ = error.print();
        return if asked_for { ExitCode::SUCCESS } else { ExitCode::from(USAGE_CODE) };
    }
    let text = error.render().to_string();
    let message = match error.kind() {
        // Its text is the whole help.
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => "a subcommand or an argument is missing".to_owned(),
        // The first paragraph: on the lines behind the first one stand the arguments, or the values that there are.
        _ => {
            let lines: Vec<_> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
            lines.join(" ").trim_start_matches("error: ").to_owned()
        }
    };
    print(&json!({ "reason": "USAGE", "message": message, "exitCode": USAGE_CODE, "help": text.trim_end() }));
    ExitCode::from(USAGE_CODE)
}

fn print(failure: &Value) {
    anstream::eprintln!("{}", plain::json(&json!({ "error": failure }).to_string()));
}

/// The reason of a failure that is not the server's.
fn reason(error: &CliError) -> &'static str {
    match error {
        CliError::Usage(_) => "USAGE",
        CliError::File { .. } | CliError::FileContent { .. } => "FILE",
        CliError::Connect { .. } => "CONNECTION",
        CliError::Call { .. } => "CALL_FAILED",
        CliError::Answer { .. } => "ANSWER",
        CliError::Output(_) => "OUTPUT",
        CliError::Config(_) | CliError::App(AppError::Config(_)) => "CONFIGURATION",
        CliError::Listen { .. } | CliError::Signals(_) | CliError::App(_) | CliError::Telemetry(_) => "START",
        CliError::Dev(_) => "DEV",
        CliError::Result(_) => "RESULT",
        CliError::DeadLettered(_) => "DEAD_LETTERED",
        CliError::StillRunning { .. } => "STILL_RUNNING",
        CliError::StillDelayed { .. } => "STILL_DELAYED",
    }
}
