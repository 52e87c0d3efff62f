//! `tests/tools/need.sh` on a machine whose Node is too old, with stand-ins for `node` and `npm`.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

/// Puts a shell script where programs are looked for.
fn program(path: &Path, script: &str) {
    std::fs::create_dir_all(path.parent().expect("it has a folder")).expect("a folder in the temporary folder");
    std::fs::write(path, format!("#!/bin/sh\n{script}\n")).expect("a file in the temporary folder");
    std::fs::set_permissions(path, Permissions::from_mode(0o755)).expect("its permissions");
}

fn need_node(machine: &Path) -> Output {
    let path = std::env::var("PATH").expect("a PATH");
    let mut command = Command::new("tests/tools/need.sh");
    command.arg("node").env("PATH", format!("{}:{path}", machine.join("bin").display()));
    command.env("CARILLON_CACHE", machine.join("cache")).output().expect("need.sh runs")
}

#[test]
fn a_node_that_is_too_old_is_left_alone_and_a_private_one_is_fetched_once() {
    let machine = tempfile::tempdir().expect("a temporary folder");
    let (machine, asked) = (machine.path(), machine.path().join("asked"));
    program(&machine.join("bin/node"), "case $1 in --version) echo v18.20.4;; *) echo 18;; esac");
    // The stand-in puts a newer `node` below the folder that it is told.
    let fetches = format!(
        r#"echo "$*" >>{}
while [ "$1" != --prefix ]; do shift; done
mkdir -p "$2/bin"
printf '#!/bin/sh\necho 22\n' >"$2/bin/node"
chmod +x "$2/bin/node""#,
        asked.display()
    );
    program(&machine.join("bin/npm"), &fetches);
    for _ in 0..2 {
        let done = need_node(machine);
        assert!(done.status.success(), "{done:?}");
    }
    let asked = std::fs::read_to_string(&asked).expect("npm was asked");
    assert_eq!((asked.lines().count(), asked.matches(" node-linux-").count()), (1, 1), "{asked}");
    assert!(machine.join("cache/node/bin/node").is_file());
}

#[test]
fn where_no_private_node_can_be_fetched_the_way_out_is_named() {
    let machine = tempfile::tempdir().expect("a temporary folder");
    program(&machine.path().join("bin/node"), "case $1 in --version) echo v18.20.4;; *) echo 18;; esac");
    program(&machine.path().join("bin/npm"), "exit 1");
    let done = need_node(machine.path());
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{said}");
    assert!(said.contains("could not be fetched; get Node 20 or newer with npm from https://nodejs.org"), "{said}");
}
