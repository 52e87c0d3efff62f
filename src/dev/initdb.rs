//! Makes a cluster: programs that the account can run, the data directory, carillon's role and database.
//!
//! Part of [`super::postgres`], run on the first start of a folder. Whatever takes long or can be interrupted happens
//! under a temporary name and is renamed at the end, so that what has its final name is whole.
//!
//! This module must never write into a data directory that has its final name.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use super::account::{can_use, command, own_folder};
use super::cluster::{Places, last_lines};
use super::error::Error;
use super::installation::Installation;

/// The name of the database, and of the role that owns it and the tables in it.
pub const ROLE: &str = "carillon";

/// The role that a server uses the database as; it owns nothing.
pub const SERVER_ROLE: &str = "carillon_server";

/// The superuser that owns the cluster.
pub const OWNER: &str = "carillon_owner";

/// How long making a cluster may take: a second or two, much more on a slow disk that must sync every file.
const INITDB_LIMIT: Duration = Duration::from_mins(2);

/// Whether what `initdb` writes must survive a power failure. The server syncs in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durability {
    /// Yes.
    Keep,
    /// No: the folder itself would not.
    Skip,
}

/// The installation itself when the account can run it, else a copy beside the data that it can.
pub(super) async fn reachable(found: Installation, places: &mut Places) -> Result<Installation, Error> {
    if can_use(&found.program("postgres"), places.account.as_ref()).await {
        return Ok(found);
    }
    let copy = places.base.join(format!("postgres-{}", found.version));
    let name = found.bin_dir.file_name().unwrap_or_default();
    let installation = Installation { bin_dir: copy.join(name), ..found.clone() };
    if !copy.exists() {
        let (from, to) = (found.prefix().to_owned(), copy.clone());
        let copied = tokio::task::spawn_blocking(move || copy_folder(&from, &to)).await;
        copied.expect("copying files does not panic")?;
    }
    places.notes.push(format!(
        "Postgres {} was copied to {}, where its account can run it.",
        found.version,
        copy.display()
    ));
    Ok(installation)
}

/// Copies a folder under a temporary name and renames it, so that an interrupted copy is never taken for a whole one.
fn copy_folder(from: &Path, to: &Path) -> Result<(), Error> {
    let partial = to.with_extension("partial");
    remove_if_there(&partial)?;
    let mut folders = vec![(from.to_owned(), partial.clone())];
    while let Some((from, to)) = folders.pop() {
        own_folder(&to, 0o755, None)?;
        for entry in fs::read_dir(&from).map_err(Error::file("read", &from))? {
            let entry = entry.map_err(Error::file("read", &from))?;
            let (from, to) = (entry.path(), to.join(entry.file_name()));
            let kind = entry.file_type().map_err(Error::file("inspect", &from))?;
            if kind.is_dir() {
                folders.push((from, to));
            } else if kind.is_symlink() {
                let target = fs::read_link(&from).map_err(Error::file("read", &from))?;
                std::os::unix::fs::symlink(target, &to).map_err(Error::file("copy", &from))?;
            } else {
                fs::copy(&from, &to).map_err(Error::file("copy", &from))?;
            }
        }
    }
    fs::rename(&partial, to).map_err(Error::file("rename", &partial))
}

/// Makes the cluster with its role and database under a temporary name and renames it, so that what has the final name
/// is whole.
pub(super) async fn make_cluster(
    installation: &Installation,
    places: &Places,
    durability: Durability,
) -> Result<(), Error> {
    let fresh = places.base.join("data.new");
    let mut outcome = Ok(());
    // Old C libraries have no C.UTF-8; plain C with UTF-8 encoding sorts the same and only knows fewer letters.
    for locale in ["C.UTF-8", "C"] {
        remove_if_there(&fresh)?;
        own_folder(&fresh, 0o700, places.account.as_ref())?;
        let mut initdb = command(&installation.program("initdb"), places.account.as_ref());
        initdb.arg("-D").arg(&fresh).args(["-U", OWNER, "--encoding=UTF8", &format!("--locale={locale}")]);
        // Only who can enter the socket's folder can connect at all; over the network nobody can.
        initdb.args(["--auth-local=trust", "--auth-host=reject"]);
        if durability == Durability::Skip {
            // What initdb writes need not survive a power failure when the folder would not.
            initdb.arg("--no-sync");
        }
        outcome = run("initdb", initdb, "").await;
        match &outcome {
            Err(Error::Program { output, .. }) if output.contains("locale") => {}
            _ => break,
        }
    }
    outcome?;

    // Single-user mode runs statements without a server, a socket or a client program; small packages hold no `psql`.
    let mut single = command(&installation.program("postgres"), places.account.as_ref());
    single.arg("--single").arg("-D").arg(&fresh).args([
        "-c",
        "exit_on_error=true",
        "-c",
        "log_checkpoints=off",
        "postgres",
    ]);
    let statements =
        format!("CREATE ROLE {ROLE} LOGIN CREATEDB\nGRANT pg_monitor TO {ROLE}\nCREATE DATABASE {ROLE} OWNER {ROLE}\n");
    run("postgres --single", single, &statements).await?;
    fs::rename(&fresh, &places.data).map_err(Error::file("rename", &fresh))
}

/// Runs a program to its end with the given input.
async fn run(program: &'static str, mut command: Command, input: &str) -> Result<(), Error> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let work = async {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that fails early closes its input; what it says about that is the better error.
            let _closed_early = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    match timeout(INITDB_LIMIT, work).await {
        Err(_) => Err(Error::ProgramTimeout { program, limit: INITDB_LIMIT }),
        Ok(Err(error)) => Err(Error::Program { program, output: error.to_string() }),
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let mut said = output.stderr;
            if said.is_empty() {
                said = output.stdout;
            }
            Err(Error::Program { program, output: format!("{}: {}", output.status, last_lines(&said)) })
        }
    }
}

fn remove_if_there(folder: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::file("remove", folder)(error)),
        _ => Ok(()),
    }
}
