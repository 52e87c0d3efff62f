//! Foreign parties: clients in other languages that know Carillon only by its proto files, and libraries of the public
//! standards it speaks. They run as child processes; `make tools` installs what they need.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::harness::world::ORIGIN;
use crate::harness::{Tenant, World, within};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/foreign").join(name)
}

/// A program that `make tools` installs.
fn tool(path: &Path) -> Command {
    assert!(path.exists(), "{} is missing; run: make tools", path.display());
    let mut command = Command::new(path);
    command.kill_on_drop(true).stdin(Stdio::null());
    command
}

/// Tells a client where to connect and as whom.
fn connected(mut command: Command, world: &World, tenant: &Tenant, name: &str) -> Command {
    let (cert, key) = (world.path(&format!("{name}.pem")), world.path(&format!("{name}.key")));
    std::fs::write(&cert, &tenant.identity.cert_pem).expect("a file in the temporary folder");
    std::fs::write(&key, &tenant.identity.key_pem).expect("a file in the temporary folder");
    command
        .env("CARILLON_PUBLIC", &world.replicas[0].addresses.public)
        .env("CARILLON_INTERNAL", &world.replicas[1].addresses.internal)
        .env("CARILLON_KEY", &tenant.key)
        .env("CARILLON_APP", &tenant.app)
        .env("CARILLON_CA", world.path("ca.pem"))
        .env("CARILLON_CERT", cert)
        .env("CARILLON_CERT_KEY", key);
    command
}

async fn last_json(command: &mut Command) -> Value {
    let output = within("the foreign client", command.output()).await.expect("the client runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
    serde_json::from_str(out.lines().last().unwrap_or_default()).unwrap_or_else(|error| panic!("{error}: {out}"))
}

/// What both full clients must have seen.
fn assert_saw_everything(seen: &Value, event_type: &str) {
    let id = &seen["eventId"];
    assert!(id.as_str().is_some_and(|id| id.starts_with("evt_")), "{seen:#}");
    assert!(seen["position"].as_i64().is_some_and(|position| position >= 1), "{seen:#}");
    for mode in ["structured", "binary"] {
        let webhook = &seen[mode];
        assert_eq!((&webhook["id"], &webhook["type"]), (id, &json!(event_type)), "{mode}: {seen:#}");
        assert_eq!(webhook["data"], json!({"n": 1, "text": "größer ✓"}), "{mode}");
        assert!(webhook["webhookId"].as_str().is_some_and(|id| id.starts_with("inv_")), "{mode}");
    }
    assert_eq!(seen["watched"], json!({"id": id, "filters": ["mine"]}));
    assert_eq!(seen["listed"], json!([id]));
    assert_eq!(seen["refused"], "SCHEMA_VIOLATION");
}

#[tokio::test]
async fn a_node_client_publishes_watches_and_verifies() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    assert!(folder("node/node_modules").exists(), "the Node packages are missing; run: make tools");
    let mut command = connected(Command::new("node"), world, &tenant, "node");
    command.kill_on_drop(true).arg(folder("node/client.mjs"));
    let seen = last_json(&mut command).await;
    assert_saw_everything(&seen, "CUSTOM_FOREIGN_NODE");
    assert_eq!((&seen["invocations"], &seen["public"]), (&json!(3), &json!(true)), "{seen:#}");
}

#[tokio::test]
async fn a_python_client_publishes_watches_and_verifies() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    let python = tool(&folder("python/.venv/bin/python"));
    let mut command = connected(python, world, &tenant, "python");
    command.arg("-B").arg(folder("python/client.py"));
    let seen = last_json(&mut command).await;
    assert_saw_everything(&seen, "CUSTOM_FOREIGN_PYTHON");
    assert_eq!(seen["invocations"], json!(2), "{seen:#}");
}

#[tokio::test]
async fn a_grpc_web_client_streams_a_watch() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    tenant.declare("CUSTOM_WEB").await;
    assert!(folder("node/node_modules").exists(), "the Node packages are missing; run: make tools");
    let mut command = connected(Command::new("node"), world, &tenant, "web");
    command.env("CARILLON_ORIGIN", ORIGIN).env("CARILLON_EVENTS", "3").arg(folder("node/web.mjs"));
    let mut child = command.kill_on_drop(true).stdout(Stdio::piped()).spawn().expect("node runs");
    let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let first = within("the watch of the browser", lines.next_line()).await.expect("readable");
    assert_eq!(first.as_deref(), Some("ready"));
    for n in 0..3 {
        tenant.publish("CUSTOM_WEB", &json!({"n": n})).await;
    }
    let line = within("the events of the browser", lines.next_line()).await.expect("readable").expect("a line");
    let seen: Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(seen["positions"], json!([2, 3, 4]));
    assert_eq!(seen["allowOrigin"], ORIGIN);
    assert_eq!(seen["preflightOrigin"], ORIGIN);
    assert_eq!(seen["refusedStatus"], "3", "{seen:#}");
    assert_eq!(seen["exposesDetails"], true, "{seen:#}");
}

#[tokio::test]
async fn buf_curl_reads_the_catalogue_by_files_and_by_reflection() {
    let world = World::shared().await;
    let tenant = world.tenant().await;
    tenant.declare("CUSTOM_CURLED").await;
    let url = format!("http://{}/carillon.v1.EventTypeService/ListEventTypes", world.replicas[0].addresses.public);
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let schema = schema.to_string_lossy();
    for (protocol, source) in
        [("grpc", vec!["--schema", &schema]), ("grpcweb", vec!["--schema", &schema]), ("grpc", vec!["--reflect"])]
    {
        let mut command = tool(&folder("node/node_modules/.bin/buf"));
        command.args(["curl", "--protocol", protocol, "--http2-prior-knowledge"]).args(&source);
        command.args(["--header", &format!("authorization: Bearer {}", tenant.key)]);
        command.args(["--data", r#"{"origin": "EVENT_TYPE_ORIGIN_CUSTOM"}"#, &url]);
        let output = within("buf curl", command.output()).await.expect("buf runs");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{protocol} {source:?}: {out}\n{err}");
        let answer: Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!(answer["eventTypes"][0]["name"], "CUSTOM_CURLED", "{answer:#}");
    }
}
