//! The running Postgres server: a child process, how it becomes ready, and how it ends.
//!
//! Part of [`super::postgres`], which has made sure that the cluster exists and that its lock is held. The server is in
//! a process group of its own, so that Ctrl-C at a terminal reaches carillon first and the server only after the drain.
//! A second child, the watchdog, ends the server when carillon is killed without a chance to do so.
//!
//! This module must never turn off a durability setting: tests of durability run on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Child;
use tokio::time::{sleep, timeout};

use super::account::command;
use super::cluster::{PORT, PidFile, Places, is_alive};
use super::error::Error;
use super::installation::Installation;
use super::postgres::Options;

/// How often a file or process that cannot announce a change is looked at.
pub const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The server's settings. Durability is that of a production server; sizes are those of a small machine.
const SETTINGS: [(&str, &str); 16] = [
    ("listen_addresses", ""),
    ("unix_socket_permissions", "0700"),
    ("fsync", "on"),
    ("full_page_writes", "on"),
    ("synchronous_commit", "on"),
    ("shared_buffers", "128MB"),
    ("max_connections", "100"),
    ("max_wal_size", "2GB"),
    ("wal_compression", "on"),
    ("jit", "off"),
    ("logging_collector", "off"),
    ("log_destination", "stderr"),
    ("log_line_prefix", "%m [%p] %q%u@%d "),
    ("log_timezone", "UTC"),
    ("timezone", "UTC"),
    ("lc_messages", "C"),
];

/// How long a fast shutdown may take before the server is ended without its closing checkpoint.
const FAST_STOP_LIMIT: Duration = Duration::from_secs(15);

/// How long an immediate shutdown may take; the server itself kills its children after five seconds.
const QUICK_STOP_LIMIT: Duration = Duration::from_secs(8);

/// How often, and how far apart, a start is tried while the last children of a killed server still end.
const ATTEMPTS_MAX: u32 = 100;
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(50);

/// Waits until its standard input ends, which is when carillon ends, and then ends the server.
///
/// *Shape*: `$1` process id, `$2` signal, `$3` the server's pid file, `$4` a folder to remove at the end or nothing.
/// The pid file says that the server has ended; its process may stay in the table for long where nothing collects
/// orphans.
///
/// Killing a process gives it no chance to end its children, and no portable call ties a child's life to its parent's.
/// The end of a pipe does.
const WATCHDOG: &str = r#"
read -r _
kill -s "$2" "$1" 2>/dev/null
n=0
while [ -e "$3" ] && kill -s 0 "$1" 2>/dev/null && [ "$n" -lt 150 ]; do sleep 0.1; n=$((n + 1)); done
if [ -e "$3" ]; then kill -s KILL "$1" 2>/dev/null; fi
if [ -n "$4" ]; then rm -rf -- "$4"; fi
"#;

/// A server that is this process's child, and its watchdog.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) pid: Pid,
    pub(super) child: Child,
    pub(super) watchdog: Child,
}

impl Server {
    /// Runs the server and waits until it says that it is ready.
    pub(super) async fn start(
        installation: &Installation,
        places: &Places,
        options: &Options,
        throwaway: Option<&Path>,
    ) -> Result<Self, Error> {
        let mut attempts_left = ATTEMPTS_MAX;
        loop {
            let (log, log_start) = places.open_log()?;
            let mut server = Self::spawn(installation, places, options, throwaway, log)?;
            attempts_left -= 1;
            match timeout(options.start_limit, server.until_ready(&places.data)).await {
                Ok(true) => return Ok(server),
                Ok(false) => {
                    let tail = places.log_tail(log_start);
                    // The children of a server that was killed take a moment to notice; until then they hold its
                    // memory.
                    if !tail.contains("pre-existing shared memory block") || attempts_left == 0 {
                        return Err(Error::DiedAtStart { log: places.log.clone(), tail });
                    }
                    sleep(BETWEEN_ATTEMPTS).await;
                }
                Err(_) => {
                    let tail = places.log_tail(log_start);
                    server.stop(Signal::QUIT).await?;
                    return Err(Error::StartTimeout { limit: options.start_limit, log: places.log.clone(), tail });
                }
            }
        }
    }

    fn spawn(
        installation: &Installation,
        places: &Places,
        options: &Options,
        throwaway: Option<&Path>,
        log: fs::File,
    ) -> Result<Self, Error> {
        // No server runs on this cluster and its lock is held: a socket that is still there belongs to a dead one, and
        // the process id in its lock file may be another program's by now.
        let socket = places.socket();
        for leftover in [socket.clone(), PathBuf::from(format!("{}.lock", socket.display()))] {
            if leftover.symlink_metadata().is_ok() {
                fs::remove_file(&leftover).map_err(Error::file("remove", &leftover))?;
            }
        }
        let program = installation.program("postgres");
        let mut server = command(&program, places.account.as_ref());
        server.arg("-D").arg(&places.data).args(["-p", &PORT.to_string()]);
        server.arg("-c").arg(format!("unix_socket_directories={}", places.socket_dir.display()));
        let extra = options.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in SETTINGS.into_iter().chain(extra) {
            server.arg("-c").arg(format!("{name}={value}"));
        }
        let same_log = log.try_clone().map_err(Error::file("open", &places.log))?;
        server.stdout(same_log).stderr(log).process_group(0).kill_on_drop(false);
        let child = server.spawn().map_err(Error::file("start", &program))?;
        let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let pid = id.expect("a child that was not yet waited for has a process id");

        let shell = Path::new("/bin/sh");
        let mut watchdog = command(shell, None);
        let signal = if throwaway.is_some() { "QUIT" } else { "INT" };
        watchdog.args(["-c", WATCHDOG, "watchdog", &pid.as_raw_nonzero().to_string(), signal]);
        watchdog.arg(places.data.join("postmaster.pid")).arg(throwaway.unwrap_or(Path::new("")));
        watchdog.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).kill_on_drop(false);
        match watchdog.spawn() {
            Ok(watchdog) => Ok(Self { pid, child, watchdog }),
            Err(error) => {
                let _gone_already = kill_process(pid, Signal::INT);
                Err(Error::file("start", shell)(error))
            }
        }
    }

    /// Waits until the server is ready; false when it ended instead.
    async fn until_ready(&mut self, data: &Path) -> bool {
        loop {
            if PidFile::read(data).is_some_and(|file| file.pid == self.pid && file.ready) {
                return true;
            }
            // The server announces nothing but its end, so its pid file is looked at in between.
            if timeout(LOOK_EVERY, self.child.wait()).await.is_ok() {
                return false;
            }
        }
    }

    /// Ends the server with a signal, and with stronger ones when it does not follow.
    pub(super) async fn stop(mut self, first: Signal) -> Result<(), Error> {
        let pid = self.pid.as_raw_nonzero().get();
        let steps = [(first, FAST_STOP_LIMIT), (Signal::QUIT, QUICK_STOP_LIMIT), (Signal::KILL, QUICK_STOP_LIMIT)];
        for (signal, limit) in steps {
            // Until the child is waited for, its id cannot be given to another process.
            if self.child.id().is_some() {
                let _gone_already = kill_process(self.pid, signal);
            }
            if timeout(limit, self.child.wait()).await.is_ok() {
                let _gone_already = self.watchdog.kill().await;
                return Ok(());
            }
        }
        Err(Error::StopFailed { pid })
    }

    /// Ends the server without its closing checkpoint and waits for that without a runtime's help, for use in `drop`.
    pub(super) fn end_now(&mut self) {
        for (signal, looks) in [(Signal::QUIT, 600), (Signal::KILL, 100)] {
            if self.child.id().is_some() {
                let _gone_already = kill_process(self.pid, signal);
            }
            for _ in 0..looks {
                if !matches!(self.child.try_wait(), Ok(None)) {
                    let _gone_already = self.watchdog.start_kill();
                    return;
                }
                std::thread::sleep(LOOK_EVERY);
            }
        }
    }
}

impl Drop for Server {
    /// Asks a server that still runs to close. The watchdog does the rest: its pipe ends here.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _gone_already = kill_process(self.pid, Signal::INT);
        } else {
            let _gone_already = self.watchdog.start_kill();
        }
    }
}

/// Ends a server that is not this process's child.
pub(super) async fn end_stranger(pid: Pid) -> Result<(), Error> {
    let steps = [(Signal::INT, FAST_STOP_LIMIT), (Signal::QUIT, QUICK_STOP_LIMIT), (Signal::KILL, QUICK_STOP_LIMIT)];
    for (signal, limit) in steps {
        let _gone_already = kill_process(pid, signal);
        let gone = async {
            while is_alive(pid) {
                sleep(LOOK_EVERY).await;
            }
        };
        if timeout(limit, gone).await.is_ok() {
            return Ok(());
        }
    }
    Err(Error::StopFailed { pid: pid.as_raw_nonzero().get() })
}
