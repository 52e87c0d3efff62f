//! The `carillon` binary: reads the command line and runs one command.

use carillon::cli::Cli;
use clap::Parser as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    // One provider for every TLS connection of the process, outgoing ones included; a second installation would be refused.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        return ExitCode::FAILURE;
    }
    Cli::parse().run()
}
