//! Failures as programs read them: with `--json` one JSON object on standard error, of every group of commands.

use std::sync::Mutex;

use carillon::proto::public::WatchRequest;
use serde_json::Value;

use super::{Cli, Done, alone, run};
use crate::harness::process::Process;
use crate::harness::{Answer, Receiver, Tenant, World, eventually};

/// The failure that a command tells a program, which is all that it says on standard error.
#[track_caller]
fn told(done: &Done, code: i32) -> Value {
    assert_eq!(done.code, Some(code), "{done:?}");
    let lines: Vec<_> = done.err.lines().collect();
    assert_eq!(lines.len(), 1, "{done:?}");
    let said: Value = serde_json::from_str(lines[0]).unwrap_or_else(|error| panic!("{error}: {done:?}"));
    let error = said["error"].clone();
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{done:?}");
    assert_eq!(error["exitCode"], code, "{done:?}");
    error
}

#[tokio::test]
async fn every_group_of_commands_tells_programs_why_it_failed() {
    let cli = Cli::new().await;
    let absent = "sub_00000000000000000000000000";
    let cases: &[(&[&str], &str, &str)] = &[
        (&["publish", "CUSTOM_ABSENT", "--data", "{}"], "EVENT_TYPE_NOT_FOUND", "Publish"),
        (&["subscribe", "CUSTOM_ABSENT", "--webhook", "http://127.0.0.1:9/x"], "EVENT_TYPE_NOT_FOUND", "Subscribe"),
        (&["unsubscribe", absent], "SUBSCRIPTION_NOT_FOUND", "Unsubscribe"),
        (&["subscriptions", "get", absent], "SUBSCRIPTION_NOT_FOUND", "GetSubscription"),
        (&["subscriptions", "disable", absent], "SUBSCRIPTION_NOT_FOUND", "DisableSubscription"),
        (&["event-types", "get", "CUSTOM_ABSENT"], "EVENT_TYPE_NOT_FOUND", "GetEventType"),
        (&["event-types", "create", "WRONG"], "FIELD_INVALID", "CreateEventType"),
        (&["events", "get", "evt_00000000000000000000000000"], "EVENT_NOT_FOUND", "GetEvent"),
        (&["events", "cancel", "evt_00000000000000000000000000"], "EVENT_NOT_FOUND", "CancelEvent"),
        (&["watch", "--filter", "event.type =="], "FILTER_INVALID", "Watch"),
        (&["invocations", "get", "inv_wrong"], "FIELD_INVALID", "GetInvocation"),
        (&["explain", "evt_00000000000000000000000000"], "EVENT_NOT_FOUND", "ExplainMatch"),
        (&["test", absent, "--data", "{}"], "SUBSCRIPTION_NOT_FOUND", "TestSubscription"),
        (&["admin", "tenants", "get", "absent"], "TENANT_NOT_FOUND", "GetTenant"),
        (&["admin", "tenants", "update", "absent", "--quota", "backlog_max=5"], "TENANT_NOT_FOUND", "UpdateTenant"),
        (&["admin", "apps", "delete", "absent"], "APP_NOT_FOUND", "DeleteApp"),
        (&["admin", "keys", "revoke", "wrong"], "FIELD_INVALID", "RevokeApiKey"),
        (&["admin", "publishers", "delete", "wrong"], "FIELD_INVALID", "DeletePublisherIdentity"),
    ];
    for (command, reason, rpc) in cases {
        let done = cli.run(&[command, &["--json"][..]].concat()).await;
        let error = told(&done, 1);
        assert_eq!((error["reason"].as_str(), error["rpc"].as_str()), (Some(*reason), Some(*rpc)), "{error}");
        assert!(done.out.is_empty(), "no result: {done:?}");
    }
    let error = told(&cli.run(&["event-types", "create", "WRONG", "--json"]).await, 1);
    assert_eq!(error["fieldViolations"][0]["field"], "name", "{error}");
    assert_eq!(error["code"], 3, "{error}");
}

#[tokio::test]
async fn failures_before_any_call_have_reasons_too() {
    let cli = Cli::new().await;
    let error = told(&cli.run(&["events", "list", "--url", "http://127.0.0.1:1", "--json"]).await, 1);
    assert_eq!(error["reason"], "CONNECTION");
    assert!(error["help"].as_str().is_some_and(|help| help.contains("carillon dev")), "{error}");
    let error = told(&cli.run(&["publish", "A", "--data", "@absent.json", "--json"]).await, 1);
    assert_eq!(error["reason"], "FILE");
    let error = told(&cli.run(&["admin", "tenants", "update", "acme", "--json"]).await, 2);
    assert_eq!(error["reason"], "USAGE");
    let error = told(&alone(&["--json", "events", "absent"]).await, 2);
    assert_eq!(error["reason"], "USAGE");
    let error = told(&alone(&["admin", "tenants", "update", "acme", "--quota", "other=1", "--json"]).await, 2);
    assert!(error["message"].as_str().is_some_and(|message| message.contains("backlog_max")), "{error}");
    let usage: [(&[&str], &str); 5] = [
        (&["publish", "--json"], "<TYPE>"),
        (&["subscribe", "A", "--json"], "--webhook <URL>"),
        (&["subscriptions", "list", "--state", "odd", "--json"], "active, disabled, deleted"),
        (&["--json", "admin", "tenants", "nothing"], "'nothing'"),
        (&["--json", "events"], "a subcommand or an argument is missing"),
    ];
    for (args, words) in usage {
        let error = told(&alone(args).await, 2);
        let message = error["message"].as_str().unwrap_or_default();
        assert!(message.contains(words) && !message.contains("Usage:"), "{args:?}: {error}");
    }
    for command in ["serve", "migrate", "reseal"] {
        let mut process = Process::carillon();
        process.args([command, "--json"]).env("CARILLON_DATABASE__URL", "mysql://u:hunter2@127.0.0.1/x");
        let done = run(process).await;
        let error = told(&done, 1);
        assert_eq!(error["reason"], "CONFIGURATION", "{command}: {error}");
        assert!(!done.err.contains("hunter2"), "{done:?}");
    }
    // Help is no failure.
    assert!(alone(&["--json", "--help"]).await.ok().contains("Usage"));
}

#[tokio::test]
async fn a_waiting_publish_prints_one_document_and_its_exit_code_tells_how_it_ended() {
    let cli = Cli::new().await;
    let receiver = Receiver::start().await;
    cli.tenant.declare("CUSTOM_WAITED").await;
    receiver.answers("/bad", [Answer::Status(500)]);
    cli.tenant.subscribe("CUSTOM_WAITED", &receiver, "/bad").await;
    let done = cli.run(&["publish", "CUSTOM_WAITED", "--data", "{}", "--wait", "--json"]).await;
    let error = told(&done, 3);
    assert_eq!(error["reason"], "DEAD_LETTERED");
    let documents: Vec<Value> = done.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(documents.len(), 1, "{documents:?}");
    assert_eq!(
        (&documents[0]["done"], &documents[0]["invocations"][0]["state"]),
        (&Value::Bool(true), &"INVOCATION_STATE_DEAD_LETTERED".into())
    );
    receiver.answers("/bad", [Answer::Hang]);
    let done = cli.run(&["publish", "CUSTOM_WAITED", "--data", "{}", "--wait=300ms", "--json"]).await;
    assert_eq!(told(&done, 4)["reason"], "STILL_RUNNING");
    assert_eq!(done.out.lines().count(), 1, "{done:?}");
}

#[tokio::test]
async fn a_waiting_publish_tells_a_delayed_event_from_one_that_runs() {
    let cli = Cli::new().await;
    let receiver = Receiver::start().await;
    cli.tenant.declare("CUSTOM_WAITED_LATER").await;
    cli.tenant.subscribe("CUSTOM_WAITED_LATER", &receiver, "/fine").await;
    let publish = ["publish", "CUSTOM_WAITED_LATER", "--data", "{}"];
    let done = cli.run(&[&publish[..], &["--delay", "1h", "--wait=100ms", "--json"]].concat()).await;
    let error = told(&done, 4);
    assert_eq!(error["reason"], "STILL_DELAYED");
    let answer: Value = serde_json::from_str(&done.out).expect("one document");
    assert!(answer["deliverTime"].is_string() && answer["position"].is_null(), "{answer}");
    assert_eq!(answer["done"], false);
    let done = cli.run(&[&publish[..], &["--delay", "1h", "--wait=100ms"]].concat()).await;
    assert!(done.err.contains("not published yet") && !done.err.contains("is published"), "{done:?}");
    assert_eq!(done.code, Some(4), "{done:?}");
    // One that becomes due meanwhile has a place then.
    let done = cli.run(&[&publish[..], &["--delay", "100ms", "--wait", "--json"]].concat()).await;
    let answer = done.document();
    assert!(answer["position"].is_string() && answer["commitTime"].is_string(), "{answer}");
    assert_eq!(
        (&answer["done"], &answer["invocations"][0]["state"]),
        (&Value::Bool(true), &"INVOCATION_STATE_SUCCEEDED".into())
    );
}

#[tokio::test]
async fn a_refused_pre_event_names_its_listeners_to_people_and_to_programs() {
    let cli = Cli::new().await;
    let receiver = Receiver::start().await;
    cli.run(&["event-types", "create", "CUSTOM_PRE_CLI", "--phase", "pre"]).await.ok();
    let mut listeners = Vec::new();
    for n in 0..20 {
        receiver.answers(&format!("/{n}"), [Answer::Status(if n == 7 { 409 } else { 200 })]);
        let subscribed = cli.tenant.subscribe("CUSTOM_PRE_CLI", &receiver, &format!("/{n}")).await;
        listeners.push(subscribed.subscription.expect("it is set").id);
    }
    let publish = ["publish", "CUSTOM_PRE_CLI", "--data", "{}"];
    let error = told(&cli.run(&[&publish[..], &["--json"]].concat()).await, 1);
    assert_eq!((error["reason"].as_str(), error["metadata"]["listeners"].as_str()), (Some("PRE_REJECTED"), Some("20")));
    let violations = error["preconditionViolations"].as_array().expect("one for each listener").clone();
    assert_eq!((violations.len(), &violations[0]["type"]), (20, &"REJECTED".into()));
    assert_eq!(violations[0]["subject"], listeners[7]);
    let event = error["metadata"]["event"].as_str().expect("the event is named").to_owned();
    let listed = cli.run(&["invocations", "list", "--event", &event, "--json"]).await.documents();
    assert_eq!(listed.len(), 20);
    cli.run(&publish).await.fails(1, &[&format!("{}: REJECTED: no reason given", listeners[7]), "event: evt_"]);
}

#[tokio::test]
async fn a_delayed_publish_is_made_once_however_often_its_command_line_is_repeated() {
    let cli = Cli::new().await;
    cli.tenant.declare("CUSTOM_CLI_LATER").await;
    let publish = ["publish", "CUSTOM_CLI_LATER", "--data", "{}", "--delay", "1h", "--key", "once", "--json"];
    let first = cli.run(&publish).await.document();
    let again = cli.run(&publish).await.document();
    assert_eq!((&again["eventId"], &again["deliverTime"]), (&first["eventId"], &first["deliverTime"]));
    assert_eq!(again["duplicate"], true);
}

/// A `carillon watch` that stands.
async fn watching(world: &World, tenant: &Tenant) -> Process {
    let mut command = Process::carillon();
    command.args(["watch", "--url", &format!("http://{}", world.replicas[0].addresses.public)]);
    command.env("CARILLON_API_KEY", &tenant.key);
    let watch = Process::spawn(command, &world.path("watch.log")).expect("carillon starts");
    says(&watch, "watching (").await;
    watch
}

async fn says(watch: &Process, words: &str) {
    eventually(words, || async { if watch.log().contains(words) { Ok(()) } else { Err(watch.log()) } }).await;
}

#[tokio::test]
async fn a_watch_says_that_its_server_is_gone_and_that_it_goes_on_trying() {
    let mut world = World::start(1).await;
    let tenant = world.tenant().await;
    let mut watch = watching(&world, &tenant).await;
    world.replicas[0].process.kill();
    says(&watch, "no connection").await;
    assert!(watch.is_running());
    watch.kill();
    assert_eq!(watch.log().matches("no connection").count(), 1, "{}", watch.log());
}

#[tokio::test]
async fn a_watch_waits_for_its_place_where_another_one_has_taken_it() {
    let age = "[watch]\nstreams_max = 1\nstream_age_min_ms = 3000\nstream_age_max_ms = 3000\n";
    let world = World::start_with(1, age).await;
    let tenant = world.tenant().await;
    let mut watch = watching(&world, &tenant).await;
    // It ends by its age, and comes back up to two seconds later.
    let taken = Mutex::new(Vec::new());
    eventually("it finds no place", || async {
        if let Ok(stream) = tenant.events().watch(WatchRequest::default()).await {
            taken.lock().expect("no panic").push(stream);
        }
        if watch.log().contains("watch.streams_max") { Ok(()) } else { Err(watch.log()) }
    })
    .await;
    drop(taken);
    says(&watch, "no room at the server").await;
    says(&watch, "connected again").await;
    assert!(watch.is_running());
}

#[tokio::test]
async fn a_test_run_is_waited_for_as_long_as_its_listener_may_take() {
    let (cli, receiver) = (Cli::new().await, Receiver::start().await);
    let name = "CUSTOM_TESTED";
    cli.run(&["event-types", "create", name]).await.ok();
    receiver.answers("/hook", [Answer::Hang]);
    let made = cli.run(&["subscribe", name, "--webhook", &receiver.url("/hook"), "--timeout", "3s", "--json"]).await;
    let id = made.document()["subscription"]["id"].as_str().expect("an id").to_owned();
    let done = cli.run(&["test", &id, "--data", "{}", "--deadline", "2s", "--json"]).await;
    let error = told(&done, 1);
    assert!(error["message"].as_str().expect("a text").contains("did not answer in time"), "{error}");
    let trace: Value = serde_json::from_str(&done.out).expect("the trace");
    assert_eq!(trace["attempt"]["outcome"], "OUTCOME_CLASS_TIMEOUT", "{trace}");
    assert!(trace["request"]["headers"].is_array(), "{trace}");
}
