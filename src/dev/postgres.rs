//! A private Postgres: made on the first start, durable like a real one, reachable over a Unix socket only, and ended
//! with its owner.
//!
//! This is what `carillon dev` and the tests call. The order of a start: decide the places and take the lock
//! ([`super::cluster`]), end a server that a killed carillon left behind, find the programs ([`super::installation`]),
//! make the cluster if there is none, run the server and wait until it says that it is ready.
//!
//! This module must never start a server whose lock it does not hold, or remove a cluster that is not a throwaway.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;
use std::{fs, io};

use rustix::process::Signal;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::account::own_folder;
use super::cluster::{Lock, Occupant, PORT, PidFile, Places, SHORT_FOLDER, occupant};
use super::error::Error;
use super::initdb::{Durability, OWNER, ROLE, SERVER_ROLE, make_cluster, reachable};
use super::installation::{Installation, Search};
use super::server::{LOOK_EVERY, Server, end_stranger};

/// How often a throw-away folder is tried to be removed.
const REMOVALS_MAX: u32 = 20;

/// What to do when another live carillon runs the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenRunning {
    /// Fail with [`Error::AlreadyRunning`].
    Refuse,
    /// Use its server, and leave the server alone at the end.
    Share,
}

/// How to run a private Postgres.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder that holds the cluster, such as `./.carillon`; made when absent.
    pub dir: PathBuf,
    /// What to do when another live carillon runs the cluster.
    pub when_running: WhenRunning,
    /// How long the server may take until it is ready, crash recovery included.
    pub start_limit: Duration,
    /// More server settings, which win over the built-in ones.
    pub settings: Vec<(String, String)>,
}

impl Options {
    /// The options of `carillon dev` for a folder.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            when_running: WhenRunning::Refuse,
            start_limit: Duration::from_mins(1),
            settings: Vec::new(),
        }
    }
}

/// A running private Postgres.
///
/// *Shape*: call [`PrivatePostgres::stop`] at the end; dropping it asks the server to end but does not wait for a
/// durable one.
#[derive(Debug)]
pub struct PrivatePostgres {
    server: Option<Server>,
    installation: Option<Installation>,
    places: Places,
    options: Options,
    /// The whole folder, when it lives no longer than this value.
    throwaway: Option<PathBuf>,
    /// Released last: the fields above still touch the cluster's files when they are dropped.
    _lock: Option<Lock>,
}

impl PrivatePostgres {
    /// Starts the cluster of a folder, and makes it first when there is none.
    ///
    /// *Errors*: [`Error::AlreadyRunning`] when another live carillon runs it; [`Error::MajorMismatch`] when no
    /// Postgres of the data's major version was found; [`Error::DiedAtStart`] and [`Error::StartTimeout`] carry the end
    /// of the server's log.
    pub async fn start(search: &Search, options: Options) -> Result<Self, Error> {
        let places = Places::decide(&options.dir).await?;
        let lock = match Lock::take(&places.dir) {
            Ok(lock) => lock,
            Err(Error::AlreadyRunning { dir, pid }) if options.when_running == WhenRunning::Share => {
                return Self::share(places, options, dir, pid).await;
            }
            Err(error) => return Err(error),
        };
        Self::start_locked(search, options, places, lock, None).await
    }

    /// Starts an empty cluster below the folder for temporary files, which is removed when this value is dropped or
    /// stopped.
    ///
    /// It syncs like any other, so tests may kill it and look what survived.
    pub async fn throwaway(search: &Search) -> Result<Self, Error> {
        let name = Uuid::new_v4().simple().to_string();
        let dir = Path::new(SHORT_FOLDER).join(format!("carillon-test-{}", &name[..12]));
        own_folder(&dir, 0o711, None)?;
        let remove = RemoveOnDrop(Some(dir.clone()));
        let options = Options::new(&dir);
        let places = Places::decide(&dir).await?;
        let lock = Lock::take(&places.dir)?;
        let started = Self::start_locked(search, options, places, lock, Some(dir)).await;
        if started.is_ok() {
            remove.keep();
        }
        started
    }

    /// The URL of carillon's database as the role that owns it, for `carillon migrate`.
    pub fn url(&self) -> String {
        self.url_of(ROLE, ROLE)
    }

    /// The same as the role that a server uses it as.
    pub fn server_url(&self) -> String {
        self.url_of(SERVER_ROLE, ROLE)
    }

    /// The URL of any database, as the superuser.
    pub fn owner_url(&self, database: &str) -> String {
        self.url_of(OWNER, database)
    }

    /// Where the cluster's files are, and what a person should know about that.
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// The programs the server runs from; none when the server is another carillon's.
    pub fn installation(&self) -> Option<&Installation> {
        self.installation.as_ref()
    }

    /// The server's process id; none when it is another carillon's or has been ended.
    pub fn server_pid(&self) -> Option<u32> {
        self.server.as_ref().map(|server| server.pid.as_raw_nonzero().get().unsigned_abs())
    }

    /// Waits until the server ends by itself, which it should not; never returns for another carillon's server.
    ///
    /// Cancel-safe: it only waits.
    pub async fn ended(&mut self) -> Option<ExitStatus> {
        match &mut self.server {
            Some(server) => server.child.wait().await.ok(),
            None => std::future::pending().await,
        }
    }

    /// Ends the server with its closing checkpoint, and releases the cluster.
    ///
    /// *Errors*: [`Error::StopFailed`] when the server survives even a kill.
    pub async fn stop(mut self) -> Result<(), Error> {
        if let Some(server) = self.server.take() {
            server.stop(Signal::INT).await?;
        }
        Ok(())
    }

    /// Kills the server, as a crash would end it: no checkpoint, no farewell. Follow with
    /// [`PrivatePostgres::restart`].
    pub async fn kill(&mut self) -> Result<(), Error> {
        match self.server.take() {
            Some(server) => server.stop(Signal::KILL).await,
            None => Ok(()),
        }
    }

    /// Starts the server again on the same data and socket, ending it first if it still runs.
    pub async fn restart(&mut self) -> Result<(), Error> {
        let Some(installation) = &self.installation else { return Ok(()) };
        if let Some(server) = self.server.take() {
            server.stop(Signal::INT).await?;
        }
        let server = Server::start(installation, &self.places, &self.options, self.throwaway.as_deref()).await?;
        self.server = Some(server);
        Ok(())
    }

    async fn start_locked(
        search: &Search,
        options: Options,
        mut places: Places,
        lock: Lock,
        throwaway: Option<PathBuf>,
    ) -> Result<Self, Error> {
        match occupant(&places).await {
            Occupant::Nobody => {}
            Occupant::Server(pid) => {
                end_stranger(pid).await?;
                places.notes.push(format!(
                    "Ended a server (process {}) that a killed carillon left behind.",
                    pid.as_raw_nonzero()
                ));
            }
            Occupant::AnotherProgram => {
                // The server would take the program for itself and refuse to start. This happens in containers, where
                // the same few process ids come again after every restart.
                let file = places.data.join("postmaster.pid");
                fs::remove_file(&file).map_err(Error::file("remove", &file))?;
            }
        }
        let data_major = places.data_major()?;
        let found = search.find(data_major).await?;
        if let Some(data_major) = data_major.filter(|major| *major != found.major) {
            let (data, found_major, bin_dir) = (places.data, found.major, found.bin_dir);
            return Err(Error::MajorMismatch { data, data_major, found_major, bin_dir });
        }
        let installation = reachable(found, &mut places).await?;
        if data_major.is_none() {
            let durability = if throwaway.is_some() { Durability::Skip } else { Durability::Keep };
            make_cluster(&installation, &places, durability).await?;
        }
        let server = Server::start(&installation, &places, &options, throwaway.as_deref()).await?;
        let started = Self {
            server: Some(server),
            installation: Some(installation),
            places,
            options,
            throwaway,
            _lock: Some(lock),
        };
        started.make_server_role().await?;
        Ok(started)
    }

    /// Makes the server's role where there is none: clusters of earlier releases have none.
    async fn make_server_role(&self) -> Result<(), Error> {
        let statement = format!(
            "DO $$ BEGIN
                 IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = '{SERVER_ROLE}') THEN
                     CREATE ROLE {SERVER_ROLE} LOGIN;
                 END IF;
             END $$"
        );
        let made = async {
            let mut connection = PgConnection::connect(&self.owner_url(ROLE)).await?;
            connection.execute(AssertSqlSafe(statement)).await?;
            connection.close().await
        };
        made.await.map_err(|error: sqlx::Error| Error::Program { program: "CREATE ROLE", output: error.to_string() })
    }

    /// Uses the server of another live carillon, once it is ready.
    async fn share(mut places: Places, options: Options, dir: PathBuf, pid: u32) -> Result<Self, Error> {
        let ready = async {
            while !PidFile::read(&places.data).is_some_and(|file| file.ready)
                || !matches!(occupant(&places).await, Occupant::Server(_))
            {
                sleep(LOOK_EVERY).await;
            }
        };
        if timeout(options.start_limit, ready).await.is_err() {
            return Err(Error::AlreadyRunning { dir, pid });
        }
        places.notes.push(format!("Uses the server of another carillon (process {pid})."));
        Ok(Self { server: None, installation: None, places, options, throwaway: None, _lock: None })
    }

    fn url_of(&self, role: &str, database: &str) -> String {
        // The port is part of the socket's name. It and the TLS mode are said outright, because clients take what is
        // not said from their environment.
        let socket_dir = self.places.socket_dir.display();
        format!("postgres://{role}@localhost:{PORT}/{database}?host={socket_dir}&sslmode=disable")
    }
}

impl Drop for PrivatePostgres {
    /// The last resort for a value that was not stopped. A durable cluster's server closes by itself after this; only a
    /// throwaway's end is waited for, shortly, because its files go with it.
    fn drop(&mut self) {
        let server = self.server.take();
        let Some(dir) = self.throwaway.take() else { return };
        if let Some(mut server) = server {
            server.end_now();
        }
        drop(RemoveOnDrop(Some(dir)));
    }
}

/// Removes a folder at the end of its scope, unless told to keep it.
struct RemoveOnDrop(Option<PathBuf>);

impl RemoveOnDrop {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        let Some(folder) = self.0.take() else { return };
        // A program that has just been killed may have children that write for a moment longer. Nobody is left to tell, and what
        // stays in the end is a folder for temporary files.
        for _ in 0..REMOVALS_MAX {
            match fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => std::thread::sleep(LOOK_EVERY),
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests;
