//! The command line: one file per command. Results go to stdout, everything else to stderr.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage; of `publish --wait` also 3 where an invocation ended as a dead letter and 4 where
//! the wait was over first.

mod admin;
mod attributes;
mod bench;
mod client;
mod completions;
mod demo;
mod dev;
mod error;
mod event_types;
mod events;
mod explain;
mod failure;
mod invocations;
mod migrate;
mod output;
mod plain;
mod publish;
mod receiver;
mod reseal;
mod serve;
mod subscribe;
mod subscriptions;
mod test;
mod unsubscribe;
mod values;
mod watch;

use self::error::{CliError, with_causes};
use self::output::Output;

use crate::config::{Config, ConfigError, Sources};
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// A self-hosted event service: publish typed events, deliver them to listeners, watch the stream live.
#[derive(Debug, Parser)]
#[command(name = "carillon", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "Examples:
  carillon dev
  carillon watch --type 'USER_*'
  carillon publish USER_CREATE --data '{\"user_id\": \"u-1\"}'")]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Print results as JSON, for programs; why a command failed is one JSON object on standard error.
    #[arg(long, global = true)]
    pub json: bool,
    /// Never colour the output.
    #[arg(long, global = true)]
    pub no_color: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Serve),
    Dev(dev::DevArgs),
    Migrate(migrate::Migrate),
    Reseal(reseal::Reseal),
    Publish(publish::PublishArgs),
    Subscribe(Box<subscribe::SubscribeArgs>),
    Unsubscribe(unsubscribe::UnsubscribeArgs),
    Subscriptions(subscriptions::SubscriptionsArgs),
    EventTypes(event_types::EventTypesArgs),
    Events(events::EventsArgs),
    Watch(watch::WatchArgs),
    Invocations(invocations::InvocationsArgs),
    Explain(explain::ExplainArgs),
    Test(test::TestArgs),
    Admin(admin::AdminArgs),
    Receiver(receiver::ReceiverArgs),
    Demo(demo::DemoArgs),
    Bench(bench::BenchArgs),
    #[command(hide = true)]
    BenchEcho(bench::echo::EchoArgs),
    Completions(completions::Completions),
}

/// Where the commands of the server itself take their settings from.
#[derive(Debug, Clone, Default, Args)]
pub struct Settings {
    /// TOML file with the settings.
    #[arg(long, env = "CARILLON_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
}

/// Settings given on the command line; they win over the file and the environment.
#[derive(Debug, Clone, Default, Args)]
pub struct Flags {
    /// Set any setting by its dotted key, e.g. server.public_listen=127.0.0.1:7070; a list as a,b or in TOML.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = parse_setting)]
    set: Vec<(String, String)>,
}

impl Settings {
    /// The configuration of all sources, for a command that needs the database and no port.
    pub fn load_for_database(self) -> Result<Config, ConfigError> {
        Config::load_for_database(&Sources::of_process(self.config, self.flags.set))
    }

    /// The configuration of all sources.
    pub fn load(self) -> Result<Config, ConfigError> {
        Config::load(&Sources::of_process(self.config, self.flags.set))
    }
}

fn parse_setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl Cli {
    /// Parses the command line and runs its command.
    pub fn start(arguments: impl Iterator<Item = OsString>) -> ExitCode {
        let arguments: Vec<OsString> = arguments.collect();
        match Self::try_parse_from(&arguments) {
            Ok(cli) => cli.run(),
            Err(error) => failure::usage(&error, &arguments),
        }
    }

    /// Runs the command to its end.
    pub fn run(self) -> ExitCode {
        let global = self.global;
        if global.no_color {
            anstream::ColorChoice::Never.write_global();
        }
        let output = Output::new(&global);
        let done = match self.command {
            Command::Serve(command) => command.run(),
            Command::Dev(args) => run_client(dev::run(args, output)),
            Command::Publish(args) => run_client(publish::run(args, output)),
            Command::Subscribe(args) => run_client(subscribe::run(*args, output)),
            Command::Unsubscribe(args) => run_client(unsubscribe::run(args, output)),
            Command::Subscriptions(args) => run_client(subscriptions::run(args, output)),
            Command::EventTypes(args) => run_client(event_types::run(args, output)),
            Command::Events(args) => run_client(events::run(args, output)),
            Command::Watch(args) => run_client(watch::run(args, output)),
            Command::Invocations(args) => run_client(invocations::run(args, output)),
            Command::Explain(args) => run_client(explain::run(args, output)),
            Command::Test(args) => run_client(test::run(args, output)),
            Command::Admin(args) => run_client(admin::run(args, output)),
            Command::Receiver(args) => run_client(receiver::run(args, output)),
            Command::Demo(args) => run_client(demo::run(args, output)),
            Command::Bench(args) => run_client(bench::run(args, output)),
            Command::BenchEcho(args) => run_client(bench::echo::run(args)),
            Command::Migrate(command) => command.run(output),
            Command::Reseal(command) => command.run(output),
            Command::Completions(command) => command.run(output).map_err(Into::into),
        };
        match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                if let Some(error) = error.downcast_ref::<CliError>() {
                    if output.is_json() {
                        failure::report(error);
                    } else {
                        error.report();
                    }
                    return error.exit_code();
                }
                if output.is_json() {
                    failure::report_other(&error);
                    return ExitCode::FAILURE;
                }
                anstream::eprintln!("error: {}", plain::plain(&with_causes(error.as_ref())));
                ExitCode::FAILURE
            }
        }
    }
}

/// Runs a command's asynchronous part. What its threads still work on then is nobody's any more, and does not keep the process.
fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    done
}

/// Runs a command that speaks to a server, and keeps the type of its error, which knows the way out.
fn run_client(work: impl Future<Output = Result<(), CliError>>) -> anyhow::Result<()> {
    block_on(async { Ok(work.await?) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, mpsc};
    use std::time::Duration;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_ends_although_a_thread_still_works() {
        let (go, wait) = mpsc::channel::<()>();
        let ended = Arc::new(AtomicBool::new(false));
        let mark = Arc::clone(&ended);
        let work = move || {
            // Not for ever, so that a command that waits for it fails the test.
            let _ = wait.recv_timeout(Duration::from_secs(10));
            mark.store(true, Ordering::SeqCst);
        };
        let done = block_on(async {
            drop(tokio::task::spawn_blocking(work));
            Ok(7)
        });
        assert_eq!(done.expect("the command is done"), 7);
        assert!(!ended.load(Ordering::SeqCst), "the command waited");
        drop(go);
    }
}
