//! A private cluster's files: where they are, which carillon holds them, and whether a server still runs on them.
//!
//! Part of [`super::postgres`]. Two files decide who may do what. `postgres.lock` is locked by the carillon process
//! that owns the cluster; the kernel drops that lock however the process ends. `postmaster.pid` is the server's own: it
//! outlives a server that was killed, so it is believed only when the process it names is seen to work on this data
//! directory.
//!
//! This module must never signal a process or remove a file of a cluster whose lock it does not hold.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use rustix::process::{Pid, test_kill_process};
use tokio::net::UnixStream;

use super::account::{Account, can_use, own_folder};
use super::error::Error;

/// The port in the socket's file name; nothing listens on the network.
pub const PORT: u16 = 5432;

/// The longest path of a socket that every Unix accepts: `sun_path` holds 108 bytes on Linux and 104 on others, one of
/// them the closing zero.
const SOCKET_PATH_BYTES_MAX: usize = 103;

/// The folder for sockets whose own path would be too long. The variable `TMPDIR` is not asked: it often is a long path
/// itself.
pub const SHORT_FOLDER: &str = "/tmp";

/// The folder for data when the account that runs Postgres cannot enter the wanted one; it survives a restart of the
/// machine.
const SHARED_FOLDER: &str = "/var/tmp";

/// A server log larger than this is set aside at the next start.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// Where the files of one cluster are, and as whom its programs run.
#[derive(Debug, Clone)]
pub struct Places {
    /// The folder the caller asked for, absolute.
    pub dir: PathBuf,
    /// The folder that holds the data and the log.
    pub base: PathBuf,
    /// The data directory.
    pub data: PathBuf,
    /// The server's log file.
    pub log: PathBuf,
    /// The folder that holds the server's socket.
    pub socket_dir: PathBuf,
    /// The account the programs run as; none when this process is not root.
    pub account: Option<Account>,
    /// What a person should know about these places, one sentence each.
    pub notes: Vec<String>,
}

impl Places {
    /// Decides on the places for a folder and makes those that belong to this user.
    ///
    /// The answer is the same at every start: it depends on the folder's path and on where a cluster already is.
    pub async fn decide(dir: &Path) -> Result<Self, Error> {
        DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(Error::file("create folder", dir))?;
        let dir = fs::canonicalize(dir).map_err(Error::file("find", dir))?;
        let mark = mark_of(&dir);
        let beside = dir.join("pg");
        let elsewhere = Path::new(SHARED_FOLDER).join(format!("carillon-{mark}"));
        let mut notes = Vec::new();

        let account = Account::to_drop_to()?;
        let base = match &account {
            // A cluster that was made elsewhere stays there, even if the folder can be entered by now.
            Some(account) if elsewhere.join("data").is_dir() || !can_use(&dir, Some(account)).await => {
                notes.push(format!(
                    "Postgres runs as `{}`, which cannot enter {}: its data is in {}.",
                    account.name,
                    dir.display(),
                    elsewhere.display()
                ));
                elsewhere
            }
            Some(account) => {
                notes.push(format!("Postgres refuses to run as root: it runs as `{}`.", account.name));
                beside
            }
            None => beside,
        };
        // Only the data and the socket belong to the account. It may pass through the rest, and change nothing there.
        own_folder(&base, if account.is_some() { 0o711 } else { 0o700 }, None)?;
        own_folder(&base.join("log"), 0o700, None)?;

        let mut socket_dir = base.join("run");
        if !fits_a_socket(&socket_dir) {
            socket_dir = Path::new(SHORT_FOLDER).join(format!("carillon-{mark}"));
            notes.push(format!("The socket is in {}: the path of the data is too long for one.", socket_dir.display()));
        }
        own_folder(&socket_dir, 0o700, account.as_ref())?;
        let data = base.join("data");
        let log = base.join("log").join("postgres.log");
        Ok(Self { dir, base, data, log, socket_dir, account, notes })
    }

    /// The path of the server's socket.
    pub fn socket(&self) -> PathBuf {
        self.socket_dir.join(format!(".s.PGSQL.{PORT}"))
    }

    /// The major version that made the data directory, or none when there is no cluster yet.
    pub fn data_major(&self) -> Result<Option<u32>, Error> {
        let file = self.data.join("PG_VERSION");
        if !self.data.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&file).map_err(Error::file("read", &file))?;
        let major = text.trim().split('.').next().and_then(|major| major.parse().ok());
        major.map(Some).ok_or(Error::Unreadable { what: "PG_VERSION", reason: format!("{:?}", text.trim()) })
    }

    /// Opens the server's log for appending, and says where this start's lines begin.
    pub fn open_log(&self) -> Result<(File, u64), Error> {
        let size = fs::metadata(&self.log).map_or(0, |found| found.len());
        if size > LOG_BYTES_MAX {
            fs::rename(&self.log, self.log.with_extension("log.1")).map_err(Error::file("set aside", &self.log))?;
        }
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.log);
        let file = file.map_err(Error::file("open", &self.log))?;
        let start = file.metadata().map_err(Error::file("inspect", &self.log))?.len();
        Ok((file, start))
    }

    /// The last lines of the log since a place in it, for an error's text.
    pub fn log_tail(&self, start: u64) -> String {
        let mut text = Vec::new();
        let read = File::open(&self.log).and_then(|mut file| {
            file.seek(SeekFrom::Start(start))?;
            file.take(1 << 20).read_to_end(&mut text)
        });
        match read {
            Ok(_) => last_lines(&text),
            Err(error) => format!("(the log cannot be read: {error})"),
        }
    }
}

/// The end of a program's output: enough to see the cause, short enough for a terminal.
pub fn last_lines(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// The right to run the cluster of one folder, held until this value is dropped or the process ends.
#[derive(Debug)]
pub struct Lock {
    _held: File,
}

impl Lock {
    /// Takes the lock, or says which process has it.
    ///
    /// *Errors*: [`Error::AlreadyRunning`] with the holder's process id.
    pub fn take(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("postgres.lock");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = file.map_err(Error::file("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let pid = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
                return Err(Error::AlreadyRunning { dir: dir.to_owned(), pid });
            }
            Err(TryLockError::Error(error)) => return Err(Error::file("lock", &path)(error)),
        }
        file.set_len(0).map_err(Error::file("write", &path))?;
        writeln!(file, "{}", std::process::id()).map_err(Error::file("write", &path))?;
        Ok(Self { _held: file })
    }
}

/// What the server says about itself in `postmaster.pid`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PidFile {
    /// The server's process id.
    pub pid: Pid,
    /// Whether it has said that it accepts connections.
    pub ready: bool,
}

impl PidFile {
    /// Reads the file of a data directory; none when it is absent or not yet written.
    ///
    /// *Source*: the lines are the server's `LOCK_FILE_LINE_*`: 1 process id, 8 state.
    pub fn read(data: &Path) -> Option<Self> {
        let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
        let mut lines = text.lines();
        // In single-user mode the number is negative; that is no server.
        let pid = lines.next()?.trim().parse().ok().filter(|pid| *pid > 0).and_then(Pid::from_raw)?;
        Some(Self { pid, ready: lines.nth(6).is_some_and(|state| state.trim() == "ready") })
    }
}

/// Whether a server runs on a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occupant {
    /// No server: there is no pid file, or the process it names is gone.
    Nobody,
    /// The process id in the file belongs to some other program by now.
    AnotherProgram,
    /// A server with this process id.
    Server(Pid),
}

/// Looks who runs on the cluster.
///
/// A process id alone proves nothing, because ids are used again. The process that accepts on the cluster's own socket
/// is its server; before the socket is there, the server's working folder is the data directory.
pub async fn occupant(places: &Places) -> Occupant {
    let Some(PidFile { pid, .. }) = PidFile::read(&places.data) else { return Occupant::Nobody };
    if !is_alive(pid) {
        return Occupant::Nobody;
    }
    if let Ok(stream) = UnixStream::connect(places.socket()).await
        && stream.peer_cred().ok().and_then(|peer| peer.pid()) == Some(pid.as_raw_nonzero().get())
    {
        return Occupant::Server(pid);
    }
    match fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero())) {
        Ok(folder) if folder == places.data => Occupant::Server(pid),
        Ok(_) => Occupant::AnotherProgram,
        // Without /proc, or for another user's process, the server's own check at its start decides.
        Err(_) => Occupant::Nobody,
    }
}

/// Whether a process exists and has not ended; one that has ended may wait long for its parent to take note.
pub fn is_alive(pid: Pid) -> bool {
    if test_kill_process(pid) == Err(rustix::io::Errno::SRCH) {
        return false;
    }
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    // The state follows the program's name, which is in brackets and may itself hold any character.
    let state = stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
    !matches!(state, Some('Z' | 'X'))
}

/// Twelve hexadecimal digits that stand for a folder, for names at shared places.
fn mark_of(dir: &Path) -> String {
    let hash = digest::digest(&digest::SHA256, dir.as_os_str().as_bytes());
    hash.as_ref().iter().take(6).fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// Whether the server can make a socket in the folder and clients can name it in a URL without quoting.
fn fits_a_socket(folder: &Path) -> bool {
    let bytes = folder.as_os_str().as_bytes();
    let plain = bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(byte));
    plain && bytes.len() + format!("/.s.PGSQL.{PORT}").len() <= SOCKET_PATH_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_folder_is_short_and_plain() {
        assert!(fits_a_socket(Path::new("/home/someone/project/.carillon/pg/run")));
        assert!(!fits_a_socket(Path::new("/home/some one/run")));
        assert!(!fits_a_socket(Path::new("/home/a,b/run")));
        let fitting = format!("/{}", "a".repeat(SOCKET_PATH_BYTES_MAX - 1 - "/.s.PGSQL.5432".len()));
        assert!(fits_a_socket(Path::new(&fitting)));
        assert!(!fits_a_socket(Path::new(&format!("{fitting}a"))));
    }

    #[test]
    fn a_lock_names_its_holder_and_ends_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let held = Lock::take(dir.path()).unwrap();
        match Lock::take(dir.path()) {
            Err(Error::AlreadyRunning { pid, .. }) => assert_eq!(pid, std::process::id()),
            other => panic!("{other:?}"),
        }
        drop(held);
        Lock::take(dir.path()).unwrap();
    }

    #[test]
    fn a_pid_file_is_ready_only_when_it_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("postmaster.pid");
        assert_eq!(PidFile::read(dir.path()), None);
        fs::write(&file, "4711\n/data\n1700000000\n5432\n/run\n\n  1 2\nstarting\n").unwrap();
        assert!(!PidFile::read(dir.path()).unwrap().ready);
        fs::write(&file, "4711\n/data\n1700000000\n5432\n/run\n\n  1 2\nready   \n").unwrap();
        assert!(PidFile::read(dir.path()).unwrap().ready);
        fs::write(&file, "-17\n").unwrap();
        assert_eq!(PidFile::read(dir.path()), None, "single-user mode is no server");
    }

    #[test]
    fn the_mark_of_a_folder_is_stable_and_its_own() {
        assert_eq!(mark_of(Path::new("/a")).len(), 12);
        assert_eq!(mark_of(Path::new("/a")), mark_of(Path::new("/a")));
        assert_ne!(mark_of(Path::new("/a")), mark_of(Path::new("/b")));
    }
}
