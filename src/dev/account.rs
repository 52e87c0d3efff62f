//! The unprivileged account that Postgres runs as when carillon itself is root, and the folders that account can use.
//!
//! Postgres refuses to run as root. A first start on a fresh machine or in a container is often made by root, from a
//! folder such as root's home that no other account may enter, so this module answers two questions: which account, and
//! can it get there. Part of [`super::postgres`]. It must never change the owner of anything outside the folders it was
//! given.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Stdio;

use rustix::process::geteuid;
use tokio::process::Command;

use super::error::Error;

/// An account to run Postgres as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The account's name, for messages.
    pub name: String,
    uid: u32,
    gid: u32,
}

impl Account {
    /// The account to drop to, or none when this process is not root and Postgres can run as it is.
    ///
    /// *Errors*: [`Error::NoAccount`] when this process is root and the machine has no account to drop to.
    pub fn to_drop_to() -> Result<Option<Self>, Error> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        let accounts = fs::read_to_string("/etc/passwd").map_err(Error::file("read", Path::new("/etc/passwd")))?;
        let account = named(&accounts, "postgres").or_else(|| named(&accounts, "nobody"));
        account.map(Some).ok_or(Error::NoAccount)
    }
}

/// A command that runs as the account, with a fixed environment.
///
/// The environment is emptied: variables such as `PGPORT` would change the server, and carillon's own may hold secrets
/// that a server process has no business to show in its environment. The working folder is one that every account may
/// enter.
pub fn command(program: &Path, account: Option<&Account>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").env("TZ", "UTC");
    command.current_dir("/").stdin(Stdio::null()).kill_on_drop(true);
    if let Some(account) = account {
        // The standard library also drops root's supplementary groups when it changes the user.
        command.uid(account.uid).gid(account.gid);
    }
    command
}

/// Whether the account may run this program or enter this folder.
///
/// The question is put to the operating system by a process of that account, because mode bits alone do not know of
/// access lists, and every folder above counts too.
pub async fn can_use(path: &Path, account: Option<&Account>) -> bool {
    let mut probe = command(Path::new("/bin/sh"), account);
    probe.args(["-c", r#"test -x "$0""#]).arg(path).stdout(Stdio::null()).stderr(Stdio::null());
    probe.status().await.is_ok_and(|status| status.success())
}

/// Makes a folder with the given mode that belongs to the account (to this user without one), or checks that it is one.
///
/// *Errors*: [`Error::ForeignFolder`] when the path is a link, no folder, or belongs to another account. Folders at
/// predictable places, such as below `/tmp`, may have been put there by anybody.
pub fn own_folder(path: &Path, mode: u32, account: Option<&Account>) -> Result<(), Error> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let found = fs::symlink_metadata(path).map_err(Error::file("inspect", path))?;
            let is_ours =
                found.uid() == geteuid().as_raw() || account.is_some_and(|account| account.uid == found.uid());
            if !found.is_dir() || !is_ours {
                return Err(Error::ForeignFolder { path: path.to_owned() });
            }
        }
        Err(error) => return Err(Error::file("create folder", path)(error)),
    }
    if let Some(account) = account {
        chown(path, Some(account.uid), Some(account.gid)).map_err(Error::file("change the owner of", path))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(Error::file("protect", path))
}

/// Reads one line of the account file: `name:password:uid:gid:...`.
fn named(accounts: &str, name: &str) -> Option<Account> {
    accounts.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != name {
            return None;
        }
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        // An entry that maps the name to root would not drop anything.
        (uid != 0).then(|| Account { name: name.to_owned(), uid, gid })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNTS: &str =
        "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65533::/:/usr/sbin/nologin\ntoor:x:0:0::/:/bin/sh\n";

    #[test]
    fn an_account_is_read_from_its_line_and_root_by_another_name_is_refused() {
        assert_eq!(named(ACCOUNTS, "nobody"), Some(Account { name: "nobody".to_owned(), uid: 65534, gid: 65533 }));
        assert_eq!(named(ACCOUNTS, "postgres"), None);
        assert_eq!(named(ACCOUNTS, "toor"), None);
    }

    #[tokio::test]
    async fn a_folder_behind_a_closed_one_cannot_be_used_by_the_account() {
        let Some(account) = Account::to_drop_to().unwrap() else { return };
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("inner");
        fs::create_dir(&inner).unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert!(!can_use(&inner, Some(&account)).await);
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o711)).unwrap();
        assert!(can_use(&inner, Some(&account)).await);
    }

    #[test]
    fn a_private_folder_is_never_a_link_or_a_file() {
        let root = tempfile::tempdir().unwrap();
        let link = root.path().join("link");
        std::os::unix::fs::symlink("/tmp", &link).unwrap();
        assert!(matches!(own_folder(&link, 0o700, None), Err(Error::ForeignFolder { .. })));
        let folder = root.path().join("folder");
        own_folder(&folder, 0o700, None).unwrap();
        own_folder(&folder, 0o700, None).unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
