//! A real browser: headless Chromium watches from a page of another origin, by gRPC-Web with a client generated from the proto files,
//! and as a WebSocket. Its filters change while it runs, and it comes back by itself after the replica was killed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::harness::world::ORIGIN;
use crate::harness::{Tenant, World, within};

fn node_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/foreign/node")
}

/// A page, and what it reports.
struct Page {
    _child: Child,
    commands: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Page {
    async fn open(world: &World, tenant: &Tenant) -> Self {
        assert!(node_folder().join("node_modules").exists(), "the Node packages are missing; run: make tools");
        let urls: Vec<String> =
            world.replicas.iter().map(|replica| format!("http://{}", replica.addresses.public)).collect();
        let mut command = Command::new("node");
        command
            .arg(node_folder().join("browser.mjs"))
            .env("CARILLON_URLS", urls.join(","))
            .env("CARILLON_KEY", &tenant.key)
            .env("CARILLON_ORIGIN", ORIGIN)
            .env("CARILLON_OUT", world.path("browser"));
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = piped.spawn().expect("node runs");
        let commands = child.stdin.take().expect("it is piped");
        let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let mut page = Self { _child: child, commands, lines };
        page.until("ready").await;
        page
    }

    async fn tell(&mut self, command: &Value) {
        self.commands.write_all(format!("{command}\n").as_bytes()).await.expect("the page listens");
    }

    async fn next(&mut self) -> Value {
        let line = within("a report of the page", self.lines.next_line()).await.expect("readable");
        let line = line.expect("the browser runs; is Chromium there? make test installs it");
        let value: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(value.get("pageError").is_none(), "{value}");
        value
    }

    /// The next report of a name; others are passed over.
    async fn until(&mut self, name: &str) -> Value {
        loop {
            let mut value = self.next().await;
            if let Some(found) = value.get_mut(name) {
                return found.take();
            }
        }
    }

    /// Takes watched events until so many have come.
    async fn events(&mut self, count: usize) -> Vec<(i64, String)> {
        let mut seen = Vec::new();
        while seen.len() < count {
            seen.extend(taken(&self.until("events").await));
        }
        seen
    }
}

fn taken(events: &Value) -> Vec<(i64, String)> {
    let one = |event: &Value| {
        let filters: Vec<&str> =
            event["filters"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
        (event["position"].as_i64().expect("a number"), filters.join("+"))
    };
    events.as_array().expect("a list").iter().map(one).collect()
}

async fn publish(tenant: &Tenant, replica: usize, kind: &str) {
    let request = crate::harness::tenant::publish_request("CUSTOM_BROWSER", &json!({"kind": kind}));
    tenant.publishers[replica].clone().publish(request).await.expect("a valid event is accepted");
}

#[tokio::test]
async fn a_page_watches_changes_its_filters_and_survives_a_killed_replica_without_a_gap() {
    let mut world = World::start(2).await;
    let tenant = world.tenant().await;
    tenant.declare("CUSTOM_BROWSER").await;
    let mut page = Page::open(&world, &tenant).await;
    page.tell(&json!({"do": "follow"})).await;
    assert_eq!(page.until("created").await["version"], 1);
    for kind in ["a", "b", "a"] {
        publish(&tenant, 0, kind).await;
    }
    // The declaration of the type is the log's first event.
    assert_eq!(page.events(2).await, [(2, "a".to_owned()), (4, "a".to_owned())]);

    // The filters change on the running stream; the call goes to the other replica.
    page.tell(&json!({"do": "update", "at": 1, "add": ["b"], "version": 1})).await;
    let (mut changed, mut updated) = (Value::Null, Value::Null);
    while changed.is_null() || updated.is_null() {
        let report = page.next().await;
        changed = report.get("changed").cloned().unwrap_or(changed);
        updated = report.get("updated").cloned().unwrap_or(updated);
    }
    assert_eq!((changed, updated), (json!(2), json!(2)));
    for kind in ["b", "c", "a"] {
        publish(&tenant, 1, kind).await;
    }
    assert_eq!(page.events(2).await, [(5, "b".to_owned()), (7, "a".to_owned())]);

    // The replica dies in the middle; the page comes back at the other one with its filters and its place.
    for kind in ["a", "b"] {
        publish(&tenant, 1, kind).await;
    }
    world.replicas[0].process.kill();
    for kind in ["c", "b", "a"] {
        publish(&tenant, 1, kind).await;
    }
    let mut seen = Vec::new();
    let mut resumed = Value::Null;
    while seen.len() < 4 || resumed.is_null() {
        let report = page.next().await;
        if let Some(events) = report.get("events") {
            seen.extend(taken(events));
        }
        resumed = report.get("created").cloned().unwrap_or(resumed);
    }
    let expected = [(8, "a"), (9, "b"), (11, "b"), (12, "a")].map(|(position, name)| (position, name.to_owned()));
    assert_eq!(seen, expected);
    assert_eq!(resumed["version"], 2);
    assert!(resumed["url"].as_str().is_some_and(|url| url.ends_with(&world.replicas[1].addresses.public)), "{resumed}");
}

#[tokio::test]
async fn a_page_watches_by_websocket_with_its_key_as_a_subprotocol() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    tenant.declare("CUSTOM_BROWSER").await;
    for kind in ["a", "b"] {
        publish(&tenant, 0, kind).await;
    }
    let mut page = Page::open(world, &tenant).await;
    page.tell(&json!({"do": "socket", "at": 1})).await;
    let mut positions = BTreeSet::new();
    let mut changed = false;
    while positions.len() < 2 {
        let message = page.until("socket").await;
        if message.get("created").is_some() {
            continue;
        }
        if message["filterChanged"]["filterVersion"] == "2" {
            changed = true;
            publish(&tenant, 0, "b").await;
        }
        for watched in message["events"]["events"].as_array().into_iter().flatten() {
            positions.insert(watched["event"]["position"].as_str().expect("64 bits are text").to_owned());
            if !changed {
                page.tell(&json!({"do": "change", "add": ["b"]})).await;
            }
        }
    }
    assert_eq!(positions, BTreeSet::from(["2".to_owned(), "4".to_owned()]));
    page.tell(&json!({"do": "close", "code": 4321})).await;
    assert_eq!(page.until("closed").await, json!({"code": 4321, "reason": "", "wasClean": true}));
    // A wrong key: browsers are told no more than that the connection failed.
    page.tell(&json!({"do": "socket", "at": 0, "key": format!("{}x", tenant.key)})).await;
    assert_eq!(page.until("closed").await["code"], 1006);
}
