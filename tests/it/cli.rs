//! The command line, as a person and as a program use it: every command against a real server, what it prints, what it says
//! when something is wrong, and what it exits with.

mod demo;
mod failures;
mod names;
mod piped;
mod programs;
mod refusals;
mod starts;
mod subscriptions;
mod terminal;
mod tries;

use std::process::Stdio;

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::process::Process;
use crate::harness::{Answer, Receiver, Tenant, World, within};

/// A folder with a `client.toml`, as `carillon dev` leaves it, for a tenant of the shared world.
struct Cli {
    dir: TempDir,
    tenant: Tenant,
}

/// How a command ended.
#[derive(Debug)]
struct Done {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Done {
    /// The result of a command that must succeed.
    #[track_caller]
    fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }

    /// Each line of the result as JSON.
    #[track_caller]
    fn documents(self) -> Vec<Value> {
        let out = self.ok();
        out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
    }

    /// The one JSON document of the result.
    #[track_caller]
    fn document(self) -> Value {
        let mut documents = self.documents();
        assert_eq!(documents.len(), 1, "{documents:?}");
        documents.remove(0)
    }

    /// What a command that must fail says; it must say all of `words` and print no result.
    #[track_caller]
    fn fails(self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        for word in words {
            assert!(self.err.contains(word), "`{word}` is not said: {self:?}");
        }
        assert!(!self.err.contains("panicked"), "{self:?}");
    }
}

async fn run(mut command: std::process::Command) -> Done {
    command.stdin(Stdio::null());
    run_with_stdin(command).await
}

/// Runs a command with the standard input that was set.
async fn run_with_stdin(command: std::process::Command) -> Done {
    let output = tokio::process::Command::from(command).kill_on_drop(true).output();
    let output = within("carillon ends", output).await.expect("carillon runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    Done { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// A command that needs no server.
async fn alone(args: &[&str]) -> Done {
    let mut command = Process::carillon();
    command.args(args);
    run(command).await
}

impl Cli {
    async fn new() -> Self {
        let world = World::shared().await;
        let tenant = world.tenant().await;
        let dir = tempfile::tempdir().expect("a temporary folder");
        for (name, text) in [
            ("publisher.pem", &tenant.identity.cert_pem),
            ("publisher.key", &tenant.identity.key_pem),
            ("admin.pem", &world.operator.cert_pem),
            ("admin.key", &world.operator.key_pem),
        ] {
            std::fs::write(dir.path().join(name), text).expect("a file in the temporary folder");
        }
        let addresses = &world.replicas[0].addresses;
        let internal_port = addresses.internal.rsplit_once(':').expect("it has a port").1;
        let file = format!(
            r#"url = "http://{}"
internal_url = "https://localhost:{internal_port}"
api_key = "{}"
tenant = "{}"
app = "{}"
ca = "{}"
publisher = {{ cert = "publisher.pem", key = "publisher.key" }}
admin = {{ cert = "admin.pem", key = "admin.key" }}
"#,
            addresses.public,
            tenant.key,
            tenant.slug,
            tenant.app,
            world.path("ca.pem").display(),
        );
        std::fs::write(dir.path().join("client.toml"), file).expect("a file in the temporary folder");
        Self { dir, tenant }
    }

    fn command(&self, args: &[&str]) -> std::process::Command {
        let mut command = Process::carillon();
        command.args(args).env("CARILLON_DIR", self.dir.path());
        command
    }

    async fn run(&self, args: &[&str]) -> Done {
        run(self.command(args)).await
    }

    /// The id that a subscribe answered with.
    async fn subscribe(&self, args: &[&str]) -> String {
        let all: Vec<&str> = ["subscribe", "--json"].iter().chain(args).copied().collect();
        let answer = self.run(&all).await.document();
        answer["subscription"]["id"].as_str().expect("it has an id").to_owned()
    }
}

const COMMANDS: [&str; 17] = [
    "serve",
    "dev",
    "migrate",
    "reseal",
    "publish",
    "subscribe",
    "unsubscribe",
    "subscriptions",
    "event-types",
    "events",
    "watch",
    "invocations",
    "admin",
    "demo",
    "receiver",
    "bench",
    "completions",
];

#[tokio::test]
async fn every_command_explains_itself_with_examples_and_refuses_what_it_does_not_know() {
    let overview = alone(&["--help"]).await.ok();
    for command in COMMANDS {
        assert!(overview.lines().any(|line| line.trim_start().starts_with(command)), "{command}: {overview}");
        let help = alone(&[command, "--help"]).await.ok();
        assert!(help.contains("Usage: carillon"), "{command}: {help}");
        assert!(help.contains(&format!("Examples:\n  carillon {command}")), "{command}: {help}");
        alone(&[command, "--no-such-option"]).await.fails(2, &["--no-such-option"]);
    }
    for family in ["subscriptions", "event-types", "events", "invocations", "admin"] {
        alone(&[family]).await.fails(2, &[&format!("Usage: carillon {family}")]);
        alone(&[family, "nothing"]).await.fails(2, &["nothing"]);
    }
    alone(&["nothing"]).await.fails(2, &["unrecognized subcommand"]);
    let without = alone(&[]).await;
    assert_eq!(without.code, Some(2), "{without:?}");
    assert!(without.err.contains("Usage: carillon"), "{without:?}");
    for args in [&["publish"][..], &["subscribe", "A"], &["unsubscribe"], &["events", "get"], &["completions"]] {
        alone(args).await.fails(2, &["required"]);
    }
    alone(&["demo", "--packages", "/missing"]).await.fails(2, &["/missing", "npm install", "leave --packages out"]);
    assert!(alone(&["--version"]).await.ok().starts_with("carillon "));
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        assert!(alone(&["completions", shell]).await.ok().contains("carillon"), "{shell}");
    }
}

#[tokio::test]
async fn bad_values_name_their_option_and_the_forms_it_takes() {
    let cases: &[(&[&str], &[&str])] = &[
        (&["watch", "--from", "bogus"], &["'bogus'", "--from", "earliest, now, a time", "15m", "cursor"]),
        (&["events", "list", "--from", "bogus"], &["--from", "earliest"]),
        (&["events", "list", "--from", "now"], &["carillon watch"]),
        (&["events", "list", "--until", "soon"], &["--until", "2026-01-31T12:00:00Z", "15m"]),
        (&["publish", "A", "--wait=long"], &["--wait", "500ms, 30s, 5m or 2h"]),
        (&["watch", "--count", "many"], &["--count", "many"]),
        (&["subscriptions", "list", "--state", "odd"], &["--state", "active, disabled, deleted"]),
        (&["invocations", "list", "--state", "odd"], &["--state", "dead-lettered"]),
        (&["serve", "--set", "x"], &["--set", "KEY=VALUE"]),
        (&["receiver", "--listen", "here"], &["--listen", "here"]),
        // To the API a 0 means the default: whoever writes it here means something else.
        (&["subscribe", "A", "--webhook", "B", "--max-attempts", "0"], &["--max-attempts", "1..=50"]),
        (&["subscribe", "A", "--webhook", "B", "--max-in-flight", "0"], &["--max-in-flight", "1..=1000"]),
        (&["subscribe", "A", "--webhook", "B", "--rate-limit", "0/1s"], &["--rate-limit", "at least 1", "`none`"]),
        (&["subscriptions", "update", "A", "--max-in-flight", "0"], &["--max-in-flight", "1..=1000"]),
        (&["explain", "--type", "A", "--filter", "true", "--last", "0"], &["--last", "1..=10000"]),
        // Only commands of the server itself have a configuration.
        (&["events", "list", "--config", "a.toml"], &["unexpected argument '--config'"]),
        (&["dev", "--config", "a.toml"], &["unexpected argument '--config'"]),
    ];
    for (args, words) in cases {
        let cli = alone(args).await;
        // Some are found out only by a command that has connected.
        if cli.err.contains("cannot connect") {
            Cli::new().await.run(args).await.fails(2, words);
        } else {
            cli.fails(2, words);
        }
    }
    let mut serve = Process::carillon();
    serve.arg("serve").env("CARILLON_BOGUS", "hunter2");
    let refused = run(serve).await;
    assert!(!refused.err.contains("hunter2"), "{refused:?}");
    refused.fails(1, &["CARILLON_BOGUS", "CARILLON_SECTION__KEY"]);
    alone(&["serve", "--config", "/no/such/file"]).await.fails(1, &["/no/such/file"]);
    alone(&["serve", "--set", "a.b=1"]).await.fails(1, &["a.b"]);
    alone(&["migrate"]).await.fails(1, &["database.url"]);
}

#[tokio::test]
async fn a_server_that_is_away_or_refuses_the_credential_is_told_with_the_way_out() {
    let cli = Cli::new().await;
    let away: [&[&str]; 7] = [
        &["subscriptions", "list"],
        &["event-types", "list"],
        &["events", "list"],
        &["invocations", "list"],
        &["watch"],
        &["subscribe", "A", "--webhook", "http://127.0.0.1:1/"],
        &["unsubscribe", "sub_1"],
    ];
    for args in away {
        let args: Vec<&str> = args.iter().chain(&["--url", "http://127.0.0.1:1"]).copied().collect();
        cli.run(&args).await.fails(1, &["cannot connect to http://127.0.0.1:1", "carillon dev", "--url"]);
    }
    for args in [&["publish", "A", "--data", "{}"][..], &["admin", "tenants", "list"]] {
        let args: Vec<&str> = args.iter().chain(&["--internal-url", "https://127.0.0.1:1"]).copied().collect();
        cli.run(&args).await.fails(1, &["cannot connect to https://127.0.0.1:1"]);
    }
    for args in [&["subscriptions", "list"][..], &["watch"], &["events", "list"]] {
        let args: Vec<&str> = args.iter().chain(&["--api-key", "car_wrong"]).copied().collect();
        let refused = cli.run(&args).await;
        assert!(!refused.err.contains("car_wrong"), "{refused:?}");
        refused.fails(1, &["CREDENTIAL_INVALID", "--api-key"]);
    }
    for args in [&["publish", "A", "--data", "{}"][..], &["events", "list"]] {
        let args = [args, &["--dir", "/nowhere"]].concat();
        alone(&args).await.fails(1, &["cannot read /nowhere/client.toml"]);
    }
    // A folder without a name is none.
    for folder in ["", "/nowhere"] {
        let mut command = Process::carillon();
        command.args(["publish", "A", "--data", "{}"]).current_dir(cli.dir.path()).env("CARILLON_DIR", folder);
        let expected: (i32, &[&str]) =
            if folder.is_empty() { (2, &["--cert", "--key-file"]) } else { (1, &["/nowhere/client.toml"]) };
        run(command).await.fails(expected.0, expected.1);
    }
    alone(&["event-types", "list", "--url", "nope"]).await.fails(2, &["http://"]);
    // A publisher's certificate does not administer.
    let pem = |name: &str| cli.dir.path().join(name).display().to_string();
    let (cert, key) = (pem("publisher.pem"), pem("publisher.key"));
    let refused = cli.run(&["admin", "tenants", "list", "--cert", &cert, "--key-file", &key]).await;
    refused.fails(1, &["reason: "]);
}

#[tokio::test]
async fn event_types_live_their_life() {
    let cli = Cli::new().await;
    let schema = r#"{"type":"object","required":["n"]}"#;
    let made =
        cli.run(&["event-types", "create", "CUSTOM_CLI", "--description", "Made", "--schema", schema]).await.ok();
    assert_eq!(made.matches("CUSTOM_CLI").count(), 1, "the name stands there once: {made}");
    let document = cli.run(&["event-types", "get", "CUSTOM_CLI", "--json"]).await.document();
    let created = document["eventType"]["createTime"].as_str().expect("a time");
    assert!(created.ends_with('Z'), "{created}");
    cli.run(&["event-types", "create", "CUSTOM_CLI"]).await.fails(1, &["EVENT_TYPE_EXISTS"]);
    let shown = cli.run(&["event-types", "update", "CUSTOM_CLI", "--display-name", "For people"]).await.ok();
    assert!(shown.contains("For people"), "{shown}");
    cli.run(&["event-types", "update", "CUSTOM_CLI"]).await.fails(2, &["--display-name"]);
    assert!(cli.run(&["event-types", "add-schema", "CUSTOM_CLI", r#"{"type":"object"}"#]).await.ok().contains('2'));
    assert_eq!(cli.run(&["event-types", "schemas", "CUSTOM_CLI", "--json"]).await.documents().len(), 2);
    assert_eq!(cli.run(&["event-types", "schemas", "CUSTOM_CLI", "--version", "1"]).await.ok().trim(), schema);
    cli.run(&["event-types", "schemas", "CUSTOM_CLI", "--version", "9"]).await.fails(1, &["no schema version 9"]);
    cli.run(&["event-types", "validate", "CUSTOM_CLI", "--data", r#"{"n":1}"#]).await.ok();
    let broken = cli.run(&["event-types", "validate", "CUSTOM_CLI", "--data", "[]"]).await;
    assert!(broken.out.contains("/type"), "{broken:?}");
    broken.fails(1, &["version 2"]);
    assert!(cli.run(&["event-types", "list", "--origin", "custom"]).await.ok().contains("CUSTOM_CLI"));
    let shown = cli.run(&["event-types", "get", "USER_CREATE"]).await.ok();
    let columns: Vec<usize> = shown
        .lines()
        .filter_map(|line| line.find("  ").map(|at| at + line[at..].len() - line[at..].trim_start().len()))
        .collect();
    assert!(columns.len() > 4 && columns.iter().max() <= columns.first(), "the values are not aligned: {shown}");
    cli.run(&["event-types", "delete", "CUSTOM_CLI"]).await.ok();
    cli.run(&["event-types", "undelete", "CUSTOM_CLI"]).await.ok();
    let absent = cli.run(&["event-types", "get", "CUSTOM_CLJ"]).await;
    absent.fails(1, &["EVENT_TYPE_NOT_FOUND", "near: CUSTOM_CLI", "event-types list"]);
    let absent = cli.run(&["event-types", "get", "CUSTOM_ZZZZZZZZZZZZZ"]).await;
    assert!(!absent.err.contains("near"), "{absent:?}");
    cli.run(&["event-types", "delete", "CUSTOM_ABSENT", "--allow-missing"]).await.ok();
}

#[tokio::test]
async fn publish_waits_for_its_listeners_and_tells_how_they_ended_by_its_exit_code() {
    let cli = Cli::new().await;
    let receiver = Receiver::start().await;
    cli.tenant.declare("CUSTOM_CLI").await;
    cli.subscribe(&["CUSTOM_CLI", "--webhook", &receiver.url("/good")]).await;
    let publish = ["publish", "CUSTOM_CLI", "--data", r#"{"n":1}"#];
    let with = |more: &[&'static str]| publish.iter().chain(more).copied().collect::<Vec<_>>();

    let plain = cli.run(&with(&["--key", "k", "--json"])).await.document();
    assert!(plain["commitTime"].as_str().is_some_and(|time| time.ends_with('Z')), "{plain}");
    let again = cli.run(&with(&["--key", "k"])).await;
    assert!(again.err.contains("an earlier call with the same key"), "{again:?}");
    cli.run(&["publish", "CUSTOM_CLI", "--data", "{}", "--key", "k"]).await.fails(1, &["REQUEST_ID_REUSED"]);

    let waited = cli.run(&with(&["--wait", "--json"])).await.document();
    assert_eq!((&waited["done"], &waited["duplicate"]), (&Value::Bool(true), &Value::Bool(false)), "{waited}");
    assert_eq!(waited["invocations"][0]["state"], "INVOCATION_STATE_SUCCEEDED", "{waited}");
    assert!(waited["eventId"].as_str().is_some_and(|id| id.starts_with("evt_")), "{waited}");
    assert!(waited["invocations"][0]["endTime"].as_str().is_some_and(|time| time.ends_with('Z')), "{waited}");
    let shown = cli.run(&with(&["--wait"])).await.ok();
    assert_eq!(shown.matches("INVOCATION  ").count(), 1, "one table: {shown}");

    receiver.answers("/bad", [Answer::Status(400)]);
    let bad = cli.subscribe(&["CUSTOM_CLI", "--webhook", &receiver.url("/bad"), "--max-attempts", "1"]).await;
    let dead = cli.run(&with(&["--wait", "--json"])).await;
    assert_eq!((dead.code, dead.out.lines().count()), (Some(3), 1), "{dead:?}");
    assert!(dead.err.contains("1 invocation has ended as dead letter"), "{dead:?}");
    let list = cli.run(&["invocations", "list", "--state", "dead-lettered", "--json"]).await.document();
    let invocation = list["id"].as_str().expect("it has an id");
    let shown = cli.run(&["invocations", "get", invocation]).await.ok();
    assert!(shown.contains("DEAD_LETTERED") && shown.contains("400"), "{shown}");
    receiver.answers("/bad", [Answer::Status(200)]);
    assert_eq!(cli.run(&["invocations", "redrive"]).await.ok().trim(), "1 dead letter runs again");
    assert_eq!(cli.run(&["invocations", "redrive"]).await.ok().trim(), "no dead letter matches");
    cli.run(&["subscriptions", "disable", &bad]).await.ok();

    receiver.answers("/hang", [Answer::Hang]);
    cli.subscribe(&["CUSTOM_CLI", "--webhook", &receiver.url("/hang")]).await;
    let hanging = cli.run(&with(&["--wait=100ms", "--json"])).await;
    assert_eq!((hanging.code, hanging.out.lines().count()), (Some(4), 1), "{hanging:?}");
    assert!(hanging.err.contains("within 100ms") && hanging.err.contains("--event evt_"), "{hanging:?}");

    cli.run(&["publish", "CUSTOM_CLI", "--data", "x"]).await.fails(1, &["FIELD_INVALID", "not JSON", "event.data"]);
    cli.run(&["publish", "CUSTOM_CLI", "--data", "@/no/such/file"]).await.fails(1, &["/no/such/file"]);
    cli.run(&["invocations", "get", "inv_bogus"]).await.fails(1, &["invocation_id"]);
    cli.run(&["invocations", "cancel", invocation]).await;
    cli.run(&["invocations", "retry", "inv_bogus"]).await.fails(1, &["invocation_id"]);
}

#[tokio::test]
async fn events_are_listed_read_and_watched() {
    let cli = Cli::new().await;
    cli.tenant.declare("CUSTOM_CLI").await;
    let id = {
        let done = cli.run(&["publish", "CUSTOM_CLI", "--data", r#"{"n": 1}"#, "--subject", "one", "--json"]).await;
        done.document()["eventId"].as_str().expect("an id").to_owned()
    };
    cli.run(&["publish", "CUSTOM_CLI", "--data", r#"{"n": 2}"#]).await.ok();
    assert_eq!(cli.run(&["events", "get", &id, "--data"]).await.ok().trim_end(), r#"{"n": 1}"#, "byte by byte");
    assert!(cli.run(&["events", "get", &id]).await.ok().contains("one"));
    let listed = cli.run(&["events", "list", "--filter", "data.n > 1", "--json"]).await.documents();
    assert_eq!(listed.len(), 1);
    assert!(listed[0]["commitTime"].as_str().is_some_and(|time| time.ends_with('Z')), "{listed:?}");
    let first = cli.run(&["events", "list", "--type", "CUSTOM_CLI", "--limit", "1"]).await;
    let cursor = first.err.split("--from ").nth(1).expect("the note names the cursor").trim().to_owned();
    assert!(first.out.contains("one"), "{first:?}");
    let rest = cli.run(&["events", "list", "--type", "CUSTOM_*", "--from", &cursor, "--json"]).await.documents();
    assert_eq!(rest.len(), 1, "{rest:?}");
    let watched =
        cli.run(&["watch", "--type", "CUSTOM_CLI", "--from", "earliest", "--count", "2", "--json"]).await.documents();
    assert_eq!(watched[0]["event"]["id"].as_str(), Some(id.as_str()), "in the order of the log: {watched:?}");
    let watched = cli.run(&["watch", "--type", "CUSTOM_CLI", "--from", &cursor, "--count", "1"]).await;
    assert!(watched.err.contains("watching"), "{watched:?}");
    assert!(watched.ok().contains(r#"{"n": 2}"#));
    cli.run(&["watch", "--filter", "data."]).await.fails(1, &["FILTER_INVALID", "column: 6"]);
    cli.run(&["watch", "--messages"]).await.fails(2, &["--json"]);
    let other = if cursor[5..].starts_with('A') { 'B' } else { 'A' };
    let tampered = format!("{}{other}{}", &cursor[..5], &cursor[6..]);
    cli.run(&["watch", "--from", &tampered]).await.fails(1, &["CURSOR_", "--from earliest"]);
    cli.run(&["events", "get", "evt_bogus"]).await.fails(1, &["event_id"]);
}

#[tokio::test]
async fn an_operator_administers() {
    let cli = Cli::new().await;
    let slug = format!("cli-{}", &carillon::clock::new_uuid().simple().to_string()[20..]);
    let made =
        cli.run(&["admin", "tenants", "create", &slug, "--display-name", "From the CLI", "--json"]).await.document();
    assert!(made.to_string().contains(&slug) && made.to_string().contains("Z\""), "{made}");
    cli.run(&["admin", "tenants", "create", &slug]).await.fails(1, &["TENANT_EXISTS"]);
    assert!(cli.run(&["admin", "tenants", "list"]).await.ok().contains(&slug));
    cli.run(&["admin", "apps", "create", "shop", "--tenant", &slug]).await.ok();
    cli.run(&["admin", "apps", "create", "bad slug", "--tenant", &slug]).await.fails(1, &["slug"]);
    assert!(cli.run(&["admin", "apps", "list", "--tenant", &slug]).await.ok().contains("shop"));
    cli.run(&["admin", "apps", "list", "--tenant", "nobody"]).await.fails(1, &["TENANT_NOT_FOUND"]);
    let key = cli.run(&["admin", "keys", "create", "--role", "viewer", "--tenant", &slug, "--json"]).await.document();
    let secret = key["secret"].as_str().unwrap_or_else(|| panic!("no secret: {key}")).to_owned();
    assert_eq!(cli.run(&["subscriptions", "list", "--api-key", &secret]).await.ok(), "");
    cli.run(&["subscribe", "USER_CREATE", "--webhook", "http://127.0.0.1:1/", "--app", "shop", "--api-key", &secret])
        .await
        .fails(1, &["ROLE_INSUFFICIENT", "carillon admin keys create"]);
    let listed = cli.run(&["admin", "keys", "list", "--tenant", &slug]).await.ok();
    assert!(!listed.contains(&secret), "{listed}");
    let id = listed.split_whitespace().find(|word| word.starts_with("key_")).expect("the key is listed");
    cli.run(&["admin", "keys", "revoke", id, "--tenant", &slug]).await.ok();
    cli.run(&["admin", "publishers", "create", &format!("uri:spiffe://{slug}/p"), "--tenant", &slug]).await.ok();
    let listed = cli.run(&["admin", "publishers", "list", "--tenant", &slug]).await.ok();
    assert!(listed.contains(&format!("uri:spiffe://{slug}/p")), "{listed}");
    assert!(cli.run(&["admin", "audit", "--tenant", &slug]).await.ok().contains("CreateApp"));
}

#[tokio::test]
async fn colour_is_for_terminals_and_a_reader_that_leaves_is_no_failure() {
    let cli = Cli::new().await;
    let escape = "\u{1b}[";
    let plain = cli.run(&["event-types", "get", "USER_CREATE"]).await.ok();
    assert!(!plain.contains(escape), "a pipe gets no colour: {plain}");
    let forced = |more: &[&str]| {
        let mut command = cli.command(&["event-types", "get", "USER_CREATE"]);
        command.args(more).env("CLICOLOR_FORCE", "1");
        command
    };
    assert!(run(forced(&[])).await.ok().contains(escape), "colour that is asked for");
    assert!(!run(forced(&["--no-color"])).await.ok().contains(escape), "colour that is forbidden");
    let lists: [&[&str]; 4] =
        [&["event-types", "list"], &["event-types", "list", "--json"], &["completions", "bash"], &["--help"]];
    for args in lists {
        let mut child =
            cli.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("carillon starts");
        drop(child.stdout.take());
        let output = tokio::task::spawn_blocking(move || child.wait_with_output());
        let output = within("carillon ends", output).await.expect("no panic").expect("carillon runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains("panicked") && !said.contains("error"), "{args:?}: {said}");
    }
}
