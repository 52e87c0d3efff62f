//! When to stop: the first SIGTERM or SIGINT asks for a drain, the second ends the process at once.

use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a second signal exits with.
const EXIT_NOW: i32 = 130;

/// The process's stop signals.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes the signals over from their default, which is to end the process.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        // Cancel-safe: a signal that one branch has not reported yet stays pending in its stream.
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Ends the process as soon as another one comes.
    pub fn exit_on_next(mut self) -> tokio::task::JoinHandle<()> {
        tokio::spawn(async move {
            self.next().await;
            tracing::warn!("second stop signal: exiting now");
            std::process::exit(EXIT_NOW);
        })
    }
}
