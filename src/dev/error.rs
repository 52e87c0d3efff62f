//! The one error type of the `dev` module: every way in which the private Postgres or the certificates can fail to be
//! there.
//!
//! The texts are read by a newcomer at a terminal, so each says the cause and, where there is one, the way out.

use std::fmt::{self, Display, Formatter};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::installation::OLDEST_MAJOR;

/// Why the private Postgres or the development certificates could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No usable Postgres programs were found at any of the places searched.
    #[error("no usable Postgres ({OLDEST_MAJOR} or newer) found; looked in:\n{looked}\n{HOW_TO_GET_POSTGRES}")]
    NoPostgres {
        /// Each place that was searched, with what was found there.
        looked: Looked,
    },
    /// The place the caller named holds no usable Postgres programs.
    #[error("the Postgres given as {} cannot be used: {reason}\n{HOW_TO_GET_POSTGRES}", path.display())]
    GivenPostgres {
        /// The path as given.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The data directory was made by a major version for which no programs were found.
    #[error(
        "the data directory {} was made by Postgres {data_major}, but the Postgres found is {found_major} ({}); \
         install Postgres {data_major}, or delete the directory to start empty", data.display(), bin_dir.display()
    )]
    MajorMismatch {
        /// The cluster's data directory.
        data: PathBuf,
        /// The major version that made it.
        data_major: u32,
        /// The major version of the best installation found.
        found_major: u32,
        /// Where that installation lives.
        bin_dir: PathBuf,
    },
    /// Another live process holds this cluster.
    #[error("another carillon (process {pid}) already runs the private Postgres in {}; \
         stop it, or use another directory", dir.display())]
    AlreadyRunning {
        /// The directory both want.
        dir: PathBuf,
        /// The process that holds it; 0 when it has not yet written its id.
        pid: u32,
    },
    /// Postgres refuses to run as root and there is no other account to run it as.
    #[error(
        "Postgres refuses to run as root, and neither the account `postgres` nor `nobody` exists; \
         start carillon as an ordinary user"
    )]
    NoAccount,
    /// A folder at a predictable place belongs to somebody else.
    #[error("{} belongs to another user or is not a folder; start carillon as that user, or remove it", path.display())]
    ForeignFolder {
        /// The folder.
        path: PathBuf,
    },
    /// A program of the Postgres installation failed.
    #[error("{program} failed: {output}")]
    Program {
        /// The program's name, such as `initdb`.
        program: &'static str,
        /// The end of what it wrote.
        output: String,
    },
    /// A program of the Postgres installation did not finish in time.
    #[error("{program} did not finish within {} s", limit.as_secs())]
    ProgramTimeout {
        /// The program's name.
        program: &'static str,
        /// How long it was given.
        limit: Duration,
    },
    /// The server ended before it was ready.
    #[error("Postgres ended before it was ready; the end of {}:\n{tail}", log.display())]
    DiedAtStart {
        /// The server's log file.
        log: PathBuf,
        /// The last lines of this start.
        tail: String,
    },
    /// The server was not ready in time.
    #[error("Postgres was not ready within {} s; the end of {}:\n{tail}", limit.as_secs(), log.display())]
    StartTimeout {
        /// How long it was given.
        limit: Duration,
        /// The server's log file.
        log: PathBuf,
        /// The last lines of this start.
        tail: String,
    },
    /// The server could not be ended.
    #[error("Postgres (process {pid}) could not be stopped")]
    StopFailed {
        /// The server's process id.
        pid: i32,
    },
    /// A file operation failed.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// The operation, as a verb: `write`, `create folder`.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// A certificate or key could not be made.
    #[error("cannot make the certificate for {name}")]
    Certificate {
        /// The certificate's common name.
        name: String,
        /// The generator's answer.
        #[source]
        source: rcgen::Error,
    },
    /// A stored certificate or key is not readable as one.
    #[error("the stored {what} is not readable: {reason}")]
    Unreadable {
        /// What was being read: `CA certificate`, `CA key`.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// The two ways to get a Postgres, said in every error where none is there.
const HOW_TO_GET_POSTGRES: &str =
    "get one with `apt-get install postgresql` (Debian, Ubuntu), or run `make run`, which fetches a private copy";

impl Error {
    /// Wraps a failed file operation with its verb and path, for use in `map_err`.
    pub(super) fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::File { doing, path, source }
    }
}

/// The places a search visited, each with what was found there, printed one per line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Looked(pub Vec<String>);

impl Display for Looked {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (index, place) in self.0.iter().enumerate() {
            let end = if index == 0 { "" } else { "\n" };
            write!(f, "{end}  - {place}")?;
        }
        Ok(())
    }
}
