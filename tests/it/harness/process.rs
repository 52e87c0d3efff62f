//! A `carillon` child process that cannot outlive the tests.
//!
//! A watchdog shell waits on a pipe whose other end is held here: however the test process ends, the pipe closes and
//! the child is killed. Processes are signalled by id only.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, geteuid, kill_process};

use super::wait::eventually;

/// Kills `$1` when standard input ends.
const WATCHDOG: &str = "read -r _; kill -s KILL \"$1\" 2>/dev/null";

/// What a program under test is given less of, or something else of, than the machine has.
#[derive(Debug, Clone)]
pub enum Confinement {
    /// A file of ours is its `/etc/hosts`, in a mount namespace of its own.
    Hosts(PathBuf),
    /// It may have no more than `ulimit` is told here, such as `-n 256`.
    Limit(&'static str),
}

/// A child with its log file.
#[derive(Debug)]
pub struct Process {
    child: Child,
    watchdog: Child,
    log: PathBuf,
}

impl Process {
    /// The program under test.
    pub fn carillon() -> Command {
        Self::program(Command::new(env!("CARGO_BIN_EXE_carillon")))
    }

    /// The program under test, confined. Its process id is that of the command.
    pub fn carillon_in(confinement: &Confinement) -> Command {
        let (mut command, script) = match confinement {
            Confinement::Limit(limit) => (Command::new("sh"), format!("ulimit {limit}")),
            Confinement::Hosts(hosts) => {
                let mut command = Command::new("unshare");
                command.arg("--mount");
                // Whoever may not make a mount namespace may make one in a user namespace.
                if !geteuid().is_root() {
                    command.arg("--map-root-user");
                }
                command.arg("sh");
                (command, format!("mount --bind '{}' /etc/hosts", hosts.display()))
            }
        };
        command.args(["-c", &format!("{script} && exec \"$@\""), "sh", env!("CARGO_BIN_EXE_carillon")]);
        Self::program(command)
    }

    fn program(mut command: Command) -> Command {
        // Settings of the machine that runs the tests must not reach the program.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CARILLON_")) {
            command.env_remove(name);
        }
        command
    }

    /// Starts a program whose output goes to a file.
    pub fn spawn(mut command: Command, log: &Path) -> io::Result<Self> {
        let out = File::options().create(true).append(true).open(log)?;
        let child = command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).spawn()?;
        let watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "watchdog", &child.id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { child, watchdog, log: log.to_owned() })
    }

    /// Sends a signal; a child that is gone already is fine.
    pub fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).expect("process ids are positive");
        // The child is not waited for yet, so the id cannot be another's.
        let _gone_already = kill_process(Pid::from_raw(id).expect("a child's id is not zero"), signal);
    }

    /// The child's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the child still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends the child at once, as a crash would, and waits until it is gone.
    pub fn kill(&mut self) {
        let _gone_already = self.child.kill();
        let _status = self.child.wait();
        let _gone_already = self.watchdog.kill();
        let _status = self.watchdog.wait();
    }

    /// Waits until the child ends by itself.
    pub async fn ended(&mut self, what: &str) -> ExitStatus {
        let log = self.log.clone();
        let child = &mut self.child;
        eventually(what, || {
            let status = child.try_wait().expect("a child can be waited for").ok_or_else(|| tail(&log));
            async move { status }
        })
        .await
    }

    /// How much memory the child holds, in KiB.
    pub fn memory_kib(&self) -> u64 {
        self.status_kib("VmRSS:")
    }

    /// How much memory the child held at most, in KiB, as the kernel has seen it, without the pages of its program file: these the
    /// kernel takes back from a container that needs the room.
    pub fn memory_peak_kib(&self) -> u64 {
        self.status_kib("VmHWM:") - self.status_kib("RssFile:")
    }

    fn status_kib(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the child runs");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a process has memory");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// Everything the child wrote.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The end of what the child wrote.
    pub fn log_tail(&self) -> String {
        tail(&self.log)
    }
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
