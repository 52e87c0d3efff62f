//! Starts that fail: the cause once, in its own words, with the setting or the file that it comes from and the way out.

use std::net::TcpListener;

use super::{Done, run};
use crate::harness::World;
use crate::harness::process::Process;

/// What `carillon serve` says to the shared world's configuration with one more setting, which it must end with.
async fn serve_with(set: &str, more: &[&str]) -> Done {
    let mut command = Process::carillon();
    command.arg("serve").arg("--config").arg(World::shared().await.path("replica-1.toml"));
    command.args(["--set", set]).args(more);
    run(command).await
}

/// Checks that a start has failed with its cause, said once, and with the words given.
#[track_caller]
fn assert_told(done: Done, cause: &str, words: &[&str]) {
    let said = done.err.matches(cause).count();
    assert_eq!(said, 1, "`{cause}` is said {said} times: {done:?}");
    assert!(!done.err.contains("entity not found"), "{done:?}");
    done.fails(1, words);
}

#[tokio::test]
async fn a_start_that_fails_tells_the_cause_once_with_its_setting_and_the_way_out() {
    let world = World::shared().await;
    let foreign = carillon::dev::ca::issue(&world.ca, &carillon::dev::CertRequest::server(carillon::clock::now()));
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("foreign.key"), foreign.expect("a certificate").key_pem).expect("a file");
    std::fs::write(path("bad.toml"), "nothing").expect("a file");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = taken.local_addr().expect("it has an address");

    let missing = "No such file or directory";
    let list = "a list is written a,b or in TOML, such as [\"a\", \"b\"]";
    let cases: &[(String, &str, &[&str])] = &[
        (
            "server.internal_tls.certificate_file=absent.pem".to_owned(),
            missing,
            &["setting server.internal_tls.certificate_file: absent.pem"],
        ),
        ("server.internal_tls.client_ca_file=absent.pem".to_owned(), missing, &["internal_tls.client_ca_file"]),
        (
            format!("server.internal_tls.key_file={}", path("foreign.key")),
            "is not the key of the certificate in server.internal_tls.certificate_file",
            &["setting server.internal_tls.key_file", "foreign.key"],
        ),
        ("catalogue.file=absent.toml".to_owned(), missing, &["catalogue.file"]),
        (format!("catalogue.file={}", path("bad.toml")), "line 1", &["catalogue.file"]),
        ("executor.extra_ca_file=absent.pem".to_owned(), missing, &["executor.extra_ca_file"]),
        ("secrets.keys=[{id=\"a\",key_file=\"absent\"}]".to_owned(), missing, &["secrets.keys", "key \"a\": key_file"]),
        ("secrets.keys=x".to_owned(), list, &["secrets.keys (--set)", "{id, key_file or key}"]),
        ("executor.allow_private_ranges=10.0.0.0/8,x".to_owned(), list, &["such as 10.1.0.0/16"]),
        ("executor.allow_private_ranges=[\"10.0.0.0/8\"".to_owned(), list, &["executor.allow_private_ranges"]),
        ("server.connections_max=many".to_owned(), "a whole number", &["server.connections_max"]),
        ("server.reflection=2".to_owned(), "true or false", &["server.reflection"]),
        ("server.public_listen=localhost:1".to_owned(), "such as 127.0.0.1:7070", &["server.public_listen"]),
        ("server=x".to_owned(), "a section of settings", &["server"]),
        (
            format!("server.ops_listen={taken}"),
            "Address already in use",
            &["setting server.ops_listen", "help: another program has the port", "0 takes a free one"],
        ),
    ];
    for (set, cause, words) in cases {
        assert_told(serve_with(set, &[]).await, cause, words);
    }
    for (file, cause) in [(path("absent.toml"), missing), (path(""), "Is a directory")] {
        let mut command = Process::carillon();
        command.arg("serve").arg("--config").arg(&file);
        assert_told(run(command).await, cause, &[&file, "--config or CARILLON_CONFIG"]);
    }
    let done = serve_with(&format!("server.ops_listen={taken}"), &["--json"]).await;
    let failure: serde_json::Value = serde_json::from_str(&done.err).expect("one JSON object");
    assert_eq!(
        (&failure["error"]["reason"], failure["error"]["help"].is_string()),
        (&"START".into(), true),
        "{done:?}"
    );
}

#[tokio::test]
async fn a_database_that_takes_no_connection_is_told_with_the_cause() {
    let url = &World::shared().await.database_url;
    let (address, options) = url.split_once('?').expect("it has options");
    let absent = format!("{}/absent_database?{options}", address.rsplit_once('/').expect("it names a database").0);
    let nobody = url.replace("carillon_server", "nobody_there");
    assert_ne!(&nobody, url, "the address names the server's role");
    let cases: [(&str, &str, &str); 4] = [
        ("postgres://u:hunter2@127.0.0.1:1/x", "refused", "check the address, and that the server runs"),
        ("mysql://u:hunter2@127.0.0.1:1/x", "must begin with postgres://", "postgres://user@host:5432/database"),
        (&absent, "database \"absent_database\" does not exist", "CREATE DATABASE"),
        (&nobody, "role \"nobody_there\" does not exist", "check role and password"),
    ];
    for (url, cause, way_out) in cases {
        for (command, key) in
            [("serve", "database.url"), ("migrate", "database.url"), ("migrate", "database.migrate_url")]
        {
            let variable = format!("CARILLON_{}", key.to_uppercase().replace('.', "__"));
            let mut process = Process::carillon();
            process.arg(command).arg("--config").arg(World::shared().await.path("replica-1.toml")).env(variable, url);
            let done = run(process).await;
            assert!(!done.err.contains("hunter2") && !done.err.contains("127.0.0.1"), "{done:?}");
            assert!(!done.err.contains("at line"), "a place in the source of Postgres helps nobody: {done:?}");
            assert_told(done, cause, &[key, way_out]);
        }
    }
}

#[tokio::test]
async fn dev_refuses_what_a_server_would_before_it_makes_anything() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let place = dir.path().join("dev");
    for set in ["servr.port=1", "server.reflection=2", "pending.lease_ms=10", "server.public_listen=0.0.0.0:1"] {
        let mut command = Process::carillon();
        command.arg("dev").arg("--dir").arg(&place).args(["--set", set]);
        run(command).await.fails(1, &[set.split('=').next().expect("a key")]);
        assert!(!place.exists(), "nothing was made");
    }
}
