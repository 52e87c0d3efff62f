//! `carillon completions`: completion scripts for shells.

use super::Cli;
use super::error::CliError;
use super::output::Output;
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

/// Print a completion script for a shell.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  carillon completions bash > ~/.local/share/bash-completion/completions/carillon
  carillon completions zsh > ~/.zfunc/_carillon")]
pub struct Completions {
    /// Which shell.
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self, output: Output) -> Result<(), CliError> {
        // Gathered first: the generator panics where its reader has left.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "carillon", &mut script);
        output.line(String::from_utf8_lossy(&script).trim_end())
    }
}
