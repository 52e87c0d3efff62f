//! L: starts that must be refused with the name of what is wrong, and ends that must not lose anything.

use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use carillon::proto::internal::PublishRequest;
use carillon::proto::internal::publish_service_client::PublishServiceClient;
use carillon::proto::public::event_service_client::EventServiceClient;
use carillon::proto::public::{
    CreateEventTypeRequest, EventPhase, EventView, GetEventRequest, InvocationState, ListEventTypesRequest,
    ListEventsRequest,
};
use rustix::process::Signal;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::Code;
use tonic::transport::Channel;
use tonic_types::StatusExt as _;

use crate::harness::connect::mutual;
use crate::harness::database::{Cluster, owner_url};
use crate::harness::process::{Confinement, Process};
use crate::harness::tenant::{Public, publish_request};
use crate::harness::{Answer, Receiver, World, eventually, within};

/// What `carillon` says to arguments that it ends with.
async fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Process::carillon();
    command.args(arguments).envs(environment.iter().copied());
    let output = tokio::process::Command::from(command).kill_on_drop(true).output();
    within("carillon ends", output).await.expect("carillon runs")
}

/// Whether `carillon serve` with a configuration refuses to start, and what it says; one that starts is ended.
///
/// A refusal takes no longer than a second. A machine that is busy with something else gets another try.
async fn refuses(file: &std::path::Path, environment: &[(&str, &str)]) -> (bool, String) {
    let mut taken = Vec::new();
    for _ in 0..3 {
        let began = Instant::now();
        let (refused, said) = starts(file, environment).await;
        taken.push(began.elapsed());
        if !refused || began.elapsed() < Duration::from_secs(1) {
            return (refused, said);
        }
    }
    panic!("{}: its refusal took {taken:?}", file.display());
}

async fn starts(file: &std::path::Path, environment: &[(&str, &str)]) -> (bool, String) {
    let log = file.with_extension("log");
    // What an earlier try has left says nothing of this one.
    for left in [&log, &file.with_extension("ready")] {
        let _absent = std::fs::remove_file(left);
    }
    let mut command = Process::carillon();
    command.arg("serve").arg("--config").arg(file).arg("--ready-file").arg(file.with_extension("ready"));
    command.envs(environment.iter().copied());
    let mut process = Process::spawn(command, &log).expect("carillon starts");
    eventually("the start ends, or is done", || {
        let over = !process.is_running() || file.with_extension("ready").exists();
        async move { if over { Ok(()) } else { Err("neither") } }
    })
    .await;
    (!process.is_running(), process.log())
}

fn section<'a>(table: &'a mut toml::Table, name: &str) -> &'a mut toml::Table {
    let section = table.entry(name).or_insert_with(|| toml::Table::new().into());
    section.as_table_mut().expect("it is a section")
}

#[tokio::test]
async fn l1_a_bad_setting_stops_the_start_and_is_named_without_its_value() {
    let world = World::shared().await;
    let good = std::fs::read_to_string(world.path("replica-1.toml")).expect("the file of the first replica");
    let table: toml::Table = good.parse().expect("it was written as TOML");
    let with = |change: &dyn Fn(&mut toml::Table)| {
        let mut changed = table.clone();
        change(&mut changed);
        changed.to_string()
    };
    let put = |name: &'static str, key: &'static str, value: toml::Value| {
        move |table: &mut toml::Table| {
            section(table, name).insert(key.to_owned(), value.clone());
        }
    };
    // A good issuer but for one key.
    let issuer = |key: &str, value: toml::Value| {
        let good = [("issuer", "https://id.example.com"), ("audience", "carillon")];
        let mut entry: toml::Table = good.map(|(key, value)| (key.to_owned(), value.into())).into_iter().collect();
        entry.insert(key.to_owned(), value);
        entry
    };
    let cases = [
        (with(&|table| drop(table.insert("surprise".to_owned(), 1.into()))), "surprise"),
        (with(&put("operators", "subjekts", "hunter2".into())), "subjekts"),
        (with(&put("operators", "subjects", vec!["hunter2"].into())), "operators.subjects"),
        (with(&put("server", "public_listen", "hunter2".into())), "server.public_listen"),
        (with(&put("server", "public_listen", 7.into())), "server.public_listen"),
        (with(&put("server", "drain_timeout_ms", (-1).into())), "server.drain_timeout_ms"),
        (with(&put("server", "message_bytes_max", 1.into())), "server.message_bytes_max"),
        (with(&put("server", "internal_tls", toml::Table::new().into())), "server.internal_tls"),
        (with(&|table| drop(section(table, "database").remove("url"))), "database.url"),
        (with(&put("database", "url", "mysql://hunter2@localhost/x".into())), "database.url"),
        (with(&put("database", "connections_max", 0.into())), "database.connections_max"),
        (with(&|table| drop(table.remove("secrets"))), "secrets.keys"),
        (
            with(&put(
                "secrets",
                "keys",
                vec![toml::Table::from_iter([("id".to_owned(), "a".into()), ("key".to_owned(), "hunter2".into())])]
                    .into(),
            )),
            "secrets.keys",
        ),
        (
            with(&put(
                "secrets",
                "keys",
                vec![toml::Table::from_iter([
                    ("id".to_owned(), "a".into()),
                    ("key_file".to_owned(), "/nonexistent/hunter2".into()),
                ])]
                .into(),
            )),
            "secrets.keys",
        ),
        (with(&put("executor", "allow_private_ranges", vec!["hunter2"].into())), "executor.allow_private_ranges"),
        (with(&put("auth", "issuers", vec!["hunter2"].into())), "auth.issuers"),
        (with(&put("auth", "issuers", vec![issuer("isuer", "hunter2".into())].into())), "auth.issuers.isuer"),
        (with(&put("auth", "issuers", vec![issuer("issuer", "http://hunter2".into())].into())), "auth.issuers.issuer"),
        (with(&put("auth", "issuers", vec![issuer("audience", "".into())].into())), "auth.issuers.audience"),
        (
            with(&put("auth", "issuers", vec![issuer("algorithms", vec!["HS256"].into())].into())),
            "auth.issuers.algorithms",
        ),
        (with(&put("auth", "issuers", vec![issuer("leeway_ms", 300_001.into())].into())), "auth.issuers.leeway_ms"),
        (with(&put("auth", "issuers", vec![issuer("jwks_file", "/hunter2".into())].into())), "auth.issuers.jwks_file"),
        (with(&put("auth", "token_bytes_max", 1.into())), "auth.token_bytes_max"),
        (with(&put("log", "level", "hunter2=loud=".into())), "log.level"),
        (with(&put("dispatch", "lease_ms", 0.into())), "dispatch.lease_ms"),
        (with(&put("watch", "ring_entries_max", 1.into())), "watch.ring_entries_max"),
        (with(&put("publish", "event_bytes_max", 1.into())), "publish.event_bytes_max"),
        (with(&put("publish", "idempotency_hours", 8_760.into())), "publish.idempotency_hours"),
        (with(&put("dispatch", "retention_days", 1.into())), "dispatch.retention_days"),
        // What is twice in a file is no TOML: its line is named.
        ("[log]\nlevel = \"info\"\nlevel = \"hunter2\"\n".to_owned(), "line 3: duplicate key: level"),
        ("[log\n".to_owned(), "line 1"),
        ("\u{0}\u{1}".to_owned(), "line 1"),
    ];
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut wrong = Vec::new();
    for (index, (text, key)) in cases.into_iter().enumerate() {
        let file = dir.path().join(format!("{index}.toml"));
        std::fs::write(&file, text).expect("a file in the temporary folder");
        let (refused, said) = refuses(&file, &[]).await;
        let named = refused && said.contains(key);
        if !named || said.contains("hunter2") || said.contains("panicked") {
            wrong.push(format!("{key} ({index}): {said}"));
        }
    }
    let missing = dir.path().join("absent.toml");
    let folder = dir.path().join("folder.toml");
    std::fs::create_dir(&folder).expect("a folder in the temporary folder");
    for file in [missing, folder] {
        let (refused, said) = refuses(&file, &[]).await;
        if !refused || !said.contains(".toml") {
            wrong.push(format!("{}: {said}", file.display()));
        }
    }
    let variables = [("CARILLON_SERVER__SURPRISE", "hunter2"), ("CARILLON_DATABASE__CONNECTIONS_MAX", "hunter2")];
    let file = dir.path().join("good.toml");
    std::fs::write(&file, &good).expect("a file in the temporary folder");
    for (name, value) in variables {
        let (refused, said) = refuses(&file, &[(name, value)]).await;
        let key = name.trim_start_matches("CARILLON_").to_lowercase().replace("__", ".");
        if !refused || !said.to_lowercase().contains(&key) || said.contains("hunter2") {
            wrong.push(format!("{name}: {said}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn l1_a_database_with_another_schema_is_refused() {
    let world = World::start(1).await;
    let file = world.path("replica-1.toml");
    let file = file.to_str().expect("a path");
    for (sql, words) in [
        (
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
          VALUES (9999, 'later', true, '\\x00', 0)",
            "newer than this release",
        ),
        (
            "DELETE FROM _sqlx_migrations WHERE version = 9999;
          DELETE FROM _sqlx_migrations WHERE version = (SELECT max(version) FROM _sqlx_migrations)",
            "carillon migrate",
        ),
        ("UPDATE _sqlx_migrations SET checksum = '\\x00' WHERE version = 1", "differs from this release"),
        ("DROP TABLE _sqlx_migrations", "carillon migrate"),
    ] {
        Cluster::run(&world.database_url, sql.to_owned()).await;
        let output = run(&["serve", "--config", file], &[]).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(words), "{words}: {said}");
        assert!(!said.contains("INSERT") && !said.contains("panicked"), "{said}");
    }
}

#[tokio::test]
async fn l1_a_role_that_nothing_holds_back_is_refused_with_the_way_out() {
    let world = World::start(1).await;
    let good = std::fs::read_to_string(world.path("replica-1.toml")).expect("the file of the first replica");
    let roles = format!("nobody_{}", uuid::Uuid::new_v4().simple());
    Cluster::run(
        &world.database_url,
        format!("CREATE ROLE {roles} LOGIN; CREATE ROLE passing_{roles} LOGIN BYPASSRLS"),
    )
    .await;
    let cases = [
        ("carillon_owner".to_owned(), "is a superuser or has BYPASSRLS"),
        (format!("passing_{roles}"), "is a superuser or has BYPASSRLS"),
        ("carillon".to_owned(), "owns table"),
        (roles.clone(), "may not use table"),
    ];
    for (role, words) in cases {
        let file = world.path("other-role.toml");
        std::fs::write(&file, good.replace("carillon_server", &role)).expect("a file in the temporary folder");
        let output = run(&["serve", "--config", file.to_str().expect("a path")], &[]).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(words) && said.contains(&role), "{role}: {said}");
        assert!(said.contains("carillon migrate --grant-to"), "{role}: {said}");
    }
    // The way out.
    let owner = owner_url(&world.database_url);
    let granted = run(&["migrate", "--grant-to", &roles], &[("CARILLON_DATABASE__URL", owner.as_str())]).await;
    assert!(granted.status.success() && String::from_utf8_lossy(&granted.stdout).contains(&roles), "{granted:?}");
    let file = world.path("granted.toml");
    std::fs::write(&file, good.replace("carillon_server", &roles)).expect("a file in the temporary folder");
    let file_ready = file.with_extension("ready");
    let mut command = Process::carillon();
    command.arg("serve").arg("--config").arg(&file).arg("--ready-file").arg(&file_ready);
    let mut process = Process::spawn(command, &file.with_extension("log")).expect("carillon starts");
    eventually("it serves", || {
        assert!(process.is_running(), "it ended: {}", process.log_tail());
        let ready = file_ready.exists();
        async move { if ready { Ok(()) } else { Err("not yet") } }
    })
    .await;
    let absent = run(&["migrate", "--grant-to", "absent"], &[("CARILLON_DATABASE__URL", owner.as_str())]).await;
    let said = String::from_utf8_lossy(&absent.stderr);
    assert!(!absent.status.success() && said.contains("CREATE ROLE absent LOGIN"), "{said}");
}

#[tokio::test]
async fn l1_two_migrations_at_once_both_succeed() {
    let world = World::shared().await;
    let owner = owner_url(&world.database_url);
    let variables = [("CARILLON_DATABASE__URL", owner.as_str())];
    let (one, other) = tokio::join!(run(&["migrate"], &variables), run(&["migrate"], &variables));
    assert!(one.status.success() && other.status.success(), "{one:?} {other:?}");
}

#[tokio::test]
async fn l2_a_second_signal_ends_at_once_and_nothing_is_lost() {
    let settings = "[server]\ndrain_timeout_ms = 600000\n[dispatch]\ndrain_ms = 600000\nlease_ms = 1000";
    let mut world = World::start_with(1, settings).await;
    let mut tenant = world.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_ENDED").await;
    let mut request = tenant.subscribe_request("CUSTOM_ENDED", &receiver.url("/hook"));
    request.delivery_policy.as_mut().expect("it is set").timeout =
        Some(pbjson_types::Duration { seconds: 300, nanos: 0 });
    tenant.events().subscribe(request).await.expect("valid");
    receiver.answers("/hook", [Answer::Hang]);
    let event_id = tenant.publish("CUSTOM_ENDED", &json!({})).await.event_id;
    receiver.receives("/hook", 1).await;
    let process = &mut world.replicas[0].process;
    process.signal(Signal::TERM);
    // It drains, and would for ten minutes: the receiver hangs.
    eventually("the replica drains", || {
        let said = process.log();
        async move { if said.contains("drain") { Ok(()) } else { Err(said) } }
    })
    .await;
    assert!(process.is_running(), "it did not wait for what it delivers");
    process.signal(Signal::TERM);
    let status = process.ended("the replica ends at the second signal").await;
    assert!(!status.success(), "an end that was not orderly says so");
    receiver.answers("/hook", [Answer::Status(200)]);
    world.replace(0).await;
    tenant.reconnect(&world);
    tenant.all_invocations_become(&event_id, InvocationState::Succeeded).await;
}

#[tokio::test]
async fn l2_a_stop_in_the_middle_of_a_pre_event_waits_for_its_listeners() {
    let mut world = World::start_with(1, "[server]\ndrain_timeout_ms = 60000").await;
    let mut tenant = world.tenant().await;
    let receiver = Receiver::start().await;
    let request =
        CreateEventTypeRequest { name: "CUSTOM_ASKED".to_owned(), phase: EventPhase::Pre.into(), ..Default::default() };
    tenant.types().create_event_type(request).await.expect("a PRE type can be declared");
    let request = tenant.subscribe_request("CUSTOM_ASKED", &receiver.url("/pre"));
    tenant.events().subscribe(request).await.expect("a listener can be subscribed");
    let gate = Arc::new(Semaphore::new(0));
    receiver.answers("/pre", [Answer::Gated(gate.clone())]);
    let mut publisher = tenant.publisher();
    let publishing =
        tokio::spawn(async move { publisher.publish(publish_request("CUSTOM_ASKED", &json!({"n": 1}))).await });
    receiver.receives("/pre", 1).await;
    let process = &mut world.replicas[0].process;
    process.signal(Signal::TERM);
    eventually("the replica drains", || {
        let said = process.log();
        async move { if said.contains("drain") { Ok(()) } else { Err(said) } }
    })
    .await;
    gate.add_permits(1);
    let answer = within("the publisher is answered", publishing).await.expect("no panic").expect("it is committed");
    let answer = answer.into_inner();
    let status = process.ended("the replica ends").await;
    assert!(status.success(), "{status}: {}", process.log_tail());
    world.replace(0).await;
    tenant.reconnect(&world);
    let request = GetEventRequest { event_id: answer.event_id };
    let event = tenant.events().get_event(request).await.expect("it is there").into_inner().event.expect("it is set");
    assert_eq!(event.position, answer.position);
    assert_eq!(receiver.received("/pre").len(), 1, "its listener is asked once");
}

/// Publishes the same request a number of times, again wherever the replica says that it has no room. How often it said so.
async fn publish_all(publisher: PublishServiceClient<Channel>, request: PublishRequest, times: usize) -> usize {
    let refused = AtomicUsize::new(0);
    for _ in 0..times {
        eventually("there is room for the event", || async {
            let Err(status) = publisher.clone().publish(request.clone()).await else { return Ok(()) };
            assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
            assert!(status.get_details_retry_info().is_some(), "it says when: {status:?}");
            refused.fetch_add(1, Ordering::Relaxed);
            Err(status)
        })
        .await;
    }
    refused.into_inner()
}

/// How many events of a type there are.
async fn count_of(mut events: EventServiceClient<Public>, event_type: &str) -> usize {
    let (mut count, mut cursor) = (0, String::new());
    loop {
        let request = ListEventsRequest {
            cursor,
            event_types: vec![event_type.to_owned()],
            view: EventView::Metadata.into(),
            ..Default::default()
        };
        let page = events.list_events(request).await.expect("a page").into_inner();
        count += page.events.len();
        cursor = page.next_cursor;
        if page.end_of_log {
            return count;
        }
    }
}

#[tokio::test]
async fn l2_a_replica_with_little_memory_serves_under_load_and_refuses_what_it_has_no_room_for() {
    const LOADS: [(&str, usize, usize, usize); 2] =
        [("CUSTOM_LARGE", 8, 200_000, 40), ("CUSTOM_BURST", 32, 900_000, 3)];
    const MEMORY_KIB: u64 = 128 * 1024;
    let mut world = World::start_with(1, &format!("[server]\nmemory_bytes = {}\n", MEMORY_KIB * 1024)).await;
    let tenant = world.tenant().await;
    let internal = world.replicas[0].addresses.internal.clone();
    let mut events = tenant.events();
    let mut refused = 0;
    for (event_type, publishers, bytes, each) in LOADS {
        tenant.declare(event_type).await;
        let data = json!({"text": "x".repeat(bytes)});
        let mut publishing = JoinSet::new();
        for _ in 0..publishers {
            let publisher = PublishServiceClient::new(mutual(&internal, &tenant.identity));
            publishing.spawn(publish_all(publisher, publish_request(event_type, &data), each));
        }
        while !publishing.is_empty() {
            tokio::select! {
                Some(ended) = publishing.join_next() => refused += ended.expect("no panic"),
                page = events.list_events(ListEventsRequest::default()) => drop(page.expect("it reads")),
            }
        }
        assert_eq!(count_of(events.clone(), event_type).await, publishers * each, "every event is kept, once");
    }
    let process = &mut world.replicas[0].process;
    let most = process.memory_peak_kib();
    println!("{most} KiB of memory at most, {refused} calls refused");
    assert!(most <= MEMORY_KIB, "{most} KiB");
    assert!(refused > 0, "the burst is larger than the room there is");
    assert!(process.is_running() && !process.log().contains("panicked"), "{}", process.log_tail());
}

#[tokio::test]
async fn l2_a_replica_with_few_descriptors_serves() {
    let mut world = World::start(0).await;
    world.confinement = Some(Confinement::Limit("-n 256"));
    let replica = world.add_replica().await;
    let addresses = world.replicas[replica].addresses.clone();
    // More connections than it has descriptors, and then a call.
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.extend(tokio::net::TcpStream::connect(&addresses.public).await);
    }
    drop(silent);
    let tenant = world.tenant().await;
    eventually("a call is answered", || async {
        tenant.types().list_event_types(ListEventTypesRequest::default()).await.map(drop)
    })
    .await;
    let process = &mut world.replicas[replica].process;
    assert!(process.is_running() && !process.log().contains("panicked"), "{}", process.log_tail());
}
