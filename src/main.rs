//! The `carillon` binary: reads the command line and runs one command.

use carillon::cli::Cli;
use std::process::ExitCode;

/// Publishing and delivering make many small, short-lived allocations on several threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // One provider for every TLS connection of the process, outgoing ones included; a second installation would be refused.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        return ExitCode::FAILURE;
    }
    #[cfg(feature = "planted-defects")]
    if let Ok(name) = std::env::var("PLANTED_DEFECT")
        && !carillon::planted::choose(&name)
    {
        return ExitCode::FAILURE;
    }
    Cli::start(std::env::args_os())
}
