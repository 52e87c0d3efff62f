//! `carillon completions`: completion scripts for shells.

use super::Cli;
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
    pub(super) fn run(self) {
        clap_complete::generate(self.shell, &mut Cli::command(), "carillon", &mut std::io::stdout());
    }
}
