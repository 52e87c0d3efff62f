//! Reloading: changed files are taken, broken ones are not, and peers are judged by what is in use.

use super::*;
use crate::clock;
use crate::dev::ca::{Ca, CertRequest, Issued, issue};
use chrono::TimeDelta;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use tempfile::TempDir;

struct Folder {
    dir: TempDir,
    ca: Ca,
}

impl Folder {
    fn new() -> Self {
        let now = clock::now();
        let ca = Ca::generate("a CA", now - TimeDelta::hours(1), now + TimeDelta::days(1)).unwrap();
        let folder = Self { dir: tempfile::tempdir().unwrap(), ca };
        folder.put(&folder.server());
        folder.write("ca.pem", folder.ca.cert_pem());
        folder
    }

    fn server(&self) -> Issued {
        issue(&self.ca, &CertRequest::server(clock::now())).unwrap()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn put(&self, issued: &Issued) {
        self.write("c.pem", &issued.cert_pem);
        self.write("k.pem", &issued.key_pem);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn files(&self) -> InternalTls {
        InternalTls {
            certificate_file: Some(self.path("c.pem")),
            key_file: Some(self.path("k.pem")),
            client_ca_file: Some(self.path("ca.pem")),
            client_crl_file: None,
        }
    }
}

#[test]
fn files_reload_when_they_change_and_stay_when_they_break() {
    let folder = Folder::new();
    let tls = Tls::internal(folder.files()).unwrap();
    let before = tls.current();
    let now = clock::now();
    assert!(!tls.reload(now).unwrap());
    let second = folder.server();
    folder.write("c.pem", &second.cert_pem);
    assert!(tls.reload(now).is_err(), "the key is still the former one");
    assert!(tls.reload(now).is_err(), "it is still wrong, although nothing has changed since");
    folder.write("k.pem", &second.key_pem[..second.key_pem.len() / 2]);
    assert!(tls.reload(now).unwrap_err().to_string().contains("internal_tls.key_file"));
    fs::remove_file(folder.path("k.pem")).unwrap();
    assert!(tls.reload(now).is_err());
    assert!(Arc::ptr_eq(&before, &tls.current()));
    folder.write("k.pem", &second.key_pem);
    assert!(tls.reload(now).unwrap());
    assert!(!tls.reload(now).unwrap());
    assert!(!Arc::ptr_eq(&before, &tls.current()));
    let missing = InternalTls { key_file: Some(folder.path("missing.pem")), ..folder.files() };
    assert!(Tls::internal(missing).unwrap_err().to_string().contains("internal_tls.key_file"));
}

#[test]
fn a_new_certificate_that_has_expired_is_not_taken() {
    let folder = Folder::new();
    let tls = Tls::internal(folder.files()).unwrap();
    let now = clock::now();
    let (from, to) = (now - TimeDelta::hours(3), now - TimeDelta::hours(2));
    folder
        .put(&issue(&folder.ca, &CertRequest { not_before: from, not_after: to, ..CertRequest::server(now) }).unwrap());
    assert!(matches!(tls.reload(now), Err(TlsError::Expired { port: "internal" })));
    folder.put(&folder.server());
    assert!(tls.reload(now).unwrap());
}

#[test]
fn a_swapped_link_is_a_change() {
    let folder = Folder::new();
    let release = |name: &str, issued: &Issued| {
        fs::create_dir(folder.path(name)).unwrap();
        folder.write(&format!("{name}/c.pem"), &issued.cert_pem);
        folder.write(&format!("{name}/k.pem"), &issued.key_pem);
    };
    // As Kubernetes mounts a secret: the files are links through one link to a folder, which is replaced at once.
    release("..2026_1", &folder.server());
    symlink("..2026_1", folder.path("..data")).unwrap();
    for name in ["c.pem", "k.pem"] {
        fs::remove_file(folder.path(name)).unwrap();
        symlink(Path::new("..data").join(name), folder.path(name)).unwrap();
    }
    let tls = Tls::internal(folder.files()).unwrap();
    assert!(!tls.reload(clock::now()).unwrap());
    release("..2026_2", &folder.server());
    symlink("..2026_2", folder.path("..data_tmp")).unwrap();
    fs::rename(folder.path("..data_tmp"), folder.path("..data")).unwrap();
    assert!(tls.reload(clock::now()).unwrap());
}

#[test]
fn a_folder_of_authorities_is_their_sum_and_peers_are_judged_by_it() {
    let folder = Folder::new();
    let now = clock::now();
    let other = Ca::generate("another CA", now - TimeDelta::hours(1), now + TimeDelta::days(1)).unwrap();
    fs::create_dir(folder.path("cas")).unwrap();
    folder.write("cas/one.pem", folder.ca.cert_pem());
    folder.write("cas/.hidden.pem", "not PEM");
    let tls = Tls::internal(InternalTls { client_ca_file: Some(folder.path("cas")), ..folder.files() }).unwrap();
    let chain = [issue(&other, &CertRequest::client("x", "spiffe://a/b", now)).unwrap().cert_der];
    assert!(!tls.still_accepts(&chain, now));
    let mut changes = tls.changes();
    folder.write("cas/two.pem", other.cert_pem());
    assert!(tls.reload(now).unwrap() && changes.has_changed().unwrap());
    changes.mark_unchanged();
    assert!(tls.still_accepts(&chain, now));
    assert!(!tls.still_accepts(&chain, now + TimeDelta::days(400)), "it has expired by then");
    fs::remove_file(folder.path("cas/two.pem")).unwrap();
    assert!(tls.reload(now).unwrap());
    assert!(!tls.still_accepts(&chain, now));
    fs::remove_file(folder.path("cas/one.pem")).unwrap();
    assert!(tls.reload(now).is_err(), "no authority at all lets nobody in");
}

#[test]
fn an_authority_vouches_for_as_long_as_it_is_valid_and_an_open_connection_is_looked_at_when_it_ends() {
    let folder = Folder::new();
    let now = clock::now();
    let from_to = |from, to| Ca::generate("other", now + TimeDelta::hours(from), now + TimeDelta::hours(to)).unwrap();
    let (old, new) = (from_to(-3, 2), from_to(1, 9));
    folder.write("ca.pem", &[old.cert_pem(), new.cert_pem()].concat());
    let tls = Tls::internal(folder.files()).unwrap();
    let chain = |ca: &Ca| [issue(ca, &CertRequest::client("x", "spiffe://a/b", now)).unwrap().cert_der];
    let (by_old, by_new) = (chain(&old), chain(&new));
    // Clocks are set, so what was is asked for again.
    for (hours, accepted) in
        [(0, (true, false)), (1, (true, true)), (3, (false, true)), (10, (false, false)), (0, (true, false))]
    {
        let at = now + TimeDelta::hours(hours) + TimeDelta::seconds(1);
        assert_eq!((tls.still_accepts(&by_old, at), tls.still_accepts(&by_new, at)), accepted, "after {hours} hours");
        assert_eq!(tls.lapsed(at).len(), 2 - usize::from(accepted.0) - usize::from(accepted.1));
    }
    let end = tls.next_end(&by_old, now).unwrap();
    assert!(end > now + TimeDelta::hours(2) && end <= now + TimeDelta::hours(2) + TimeDelta::seconds(1));
    assert!(!tls.still_accepts(&by_old, end) && tls.still_accepts(&by_old, end - TimeDelta::seconds(1)));
}

#[test]
fn authorities_that_are_all_over_stop_no_start_and_take_the_place_of_no_valid_one() {
    let folder = Folder::new();
    let now = clock::now();
    let over = Ca::generate("over", now - TimeDelta::hours(3), now - TimeDelta::hours(2)).unwrap();
    let tls = Tls::internal(folder.files()).unwrap();
    folder.write("ca.pem", over.cert_pem());
    assert!(matches!(tls.reload(now), Err(TlsError::AuthoritiesLapsed)));
    assert!(tls.lapsed(now).is_empty(), "the former one is in use");
    let started = Tls::internal(folder.files()).unwrap();
    assert_eq!(started.lapsed(now).len(), 1);
    folder.put(&folder.server());
    assert!(started.reload(now).unwrap(), "the port's own certificate is replaced all the same");
    folder.write("ca.pem", folder.ca.cert_pem());
    assert!(started.reload(now).unwrap() && started.lapsed(now).is_empty());
}
