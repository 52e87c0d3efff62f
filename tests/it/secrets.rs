//! Secrets: what is planted in configuration, credentials and targets must not come out again in a log, an error, a trace, a metric
//! or a copy of the database; and the key that seals them can be replaced while nobody notices.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use carillon::proto::public::{
    CreateEventTypeRequest, EventPhase, InvocationState, ListEventsRequest, RotateSubscriptionSecretRequest,
    SubscribeRequest, Subscription, TestSubscriptionRequest, UpdateSubscriptionRequest, WebhookMode, target,
};
use pbjson_types::FieldMask;
use serde_json::json;
use tonic::Status;

use crate::bad_inputs::raw;
use crate::harness::database::{Cluster, superuser_url};
use crate::harness::process::Process;
use crate::harness::tenant::{publish_request, webhook};
use crate::harness::{Answer, Receiver, Tenant, World, eventually, within};
use crate::operations::get;
use crate::traces::Collector;

const OLD: &str = "{ id = \"test\", key = \"MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=\" }";
const NEW: &str = "{ id = \"new\", key = \"YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXphYmNkZWY=\" }";

/// `carillon reseal` with the configuration of a world's newest replica.
async fn reseal(world: &World, replica: usize) -> String {
    let mut command = Process::carillon();
    command.arg("reseal").arg("--config").arg(world.path(&format!("replica-{replica}.toml")));
    let output = tokio::process::Command::from(command).kill_on_drop(true).output();
    let output = within("carillon reseal ends", output).await.expect("carillon runs");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    said
}

#[tokio::test]
async fn the_key_that_seals_can_be_replaced_and_the_old_one_taken_away() {
    let mut world = World::start_with(1, &format!("[secrets]\nkeys = [{OLD}]")).await;
    let mut tenant = world.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_SEALED").await;
    let old = tenant.subscribe("CUSTOM_SEALED", &receiver, "/old").await.subscription.expect("it is set");
    set_header(&tenant, &old.id, "receivers own").await;
    let list = |cursor| ListEventsRequest { cursor, ..Default::default() };
    let page = tenant.events().list_events(list(String::new())).await.expect("a page").into_inner();
    // A second key in front seals from now on; what the first one sealed still opens.
    world.settings = format!("[secrets]\nkeys = [{NEW}, {OLD}]");
    world.replace(0).await;
    tenant.reconnect(&world);
    tenant.subscribe("CUSTOM_SEALED", &receiver, "/new").await;
    tenant.publish("CUSTOM_SEALED", &json!({})).await;
    for path in ["/old", "/new"] {
        assert_eq!(receiver.receives(path, 1).await[0].verified, Some(true), "{path}");
    }
    // The subscription's, its headers and the key of cursors.
    let said = reseal(&world, 2).await;
    assert!(said.contains("Sealed 3 secrets"), "{said}");
    let said = reseal(&world, 2).await;
    assert!(said.contains("Sealed 0 secret"), "{said}");
    world.settings = format!("[secrets]\nkeys = [{NEW}]");
    world.replace(0).await;
    tenant.reconnect(&world);
    tenant.publish("CUSTOM_SEALED", &json!({})).await;
    for path in ["/old", "/new"] {
        assert_eq!(receiver.receives(path, 2).await[1].verified, Some(true), "{path}");
    }
    let sent = receiver.receives("/old", 2).await;
    assert_eq!(sent.iter().map(|one| one.header("authorization")).collect::<Vec<_>>(), ["receivers own"; 2]);
    // A key that is taken away too early costs nobody else a delivery; what it had sealed is there again when it is back.
    world.settings = format!("[secrets]\nkeys = [{OLD}, {NEW}]");
    world.replace(0).await;
    tenant.reconnect(&world);
    set_header(&tenant, &old.id, "sealed by the other key").await;
    world.settings = format!("[secrets]\nkeys = [{NEW}]");
    world.replace(0).await;
    tenant.reconnect(&world);
    tenant.publish("CUSTOM_SEALED", &json!({})).await;
    assert_eq!(receiver.receives("/new", 3).await[2].verified, Some(true));
    world.settings = format!("[secrets]\nkeys = [{NEW}, {OLD}]");
    world.replace(0).await;
    tenant.reconnect(&world);
    let sent = receiver.receives("/old", 3).await;
    assert_eq!(sent[2].header("authorization"), "sealed by the other key");
    // Cursors are sealed by a key of their own, which the first key kept and the new one keeps.
    tenant.events().list_events(list(page.next_cursor)).await.expect("a cursor from before still reads");
}

/// Gives a webhook one header of its own.
async fn set_header(tenant: &Tenant, id: &str, value: &str) {
    let mut target = webhook("", WebhookMode::Unspecified);
    let Some(target::Kind::Webhook(webhook)) = &mut target.kind else { panic!("it is a webhook") };
    webhook.headers.insert("authorization".to_owned(), value.to_owned());
    let subscription = Subscription { id: id.to_owned(), target: Some(target), ..Default::default() };
    let update_mask = Some(FieldMask { paths: vec!["target.webhook.headers".to_owned()] });
    let request = UpdateSubscriptionRequest { subscription: Some(subscription), update_mask, ..Default::default() };
    let updated = tenant.events().update_subscription(request).await.expect("valid").into_inner();
    let version = updated.subscription.expect("it is set").etag;
    assert!(!version.is_empty());
}

/// Bytes as a dump of the database shows them.
fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes any text");
        text
    })
}

#[tokio::test]
async fn nothing_that_was_planted_comes_out_again() {
    const HEADER: &str = "planted-header-value";
    const QUERY: &str = "planted-query-value";
    const PAYLOAD: &str = "planted-payload-value";
    const PASSWORD: &str = "planted-database-password";
    let (collector, endpoint) = Collector::start().await;
    let mut world =
        World::start_with(0, &format!("[log]\nlevel = \"debug\"\n[traces]\nendpoint = \"{endpoint}\"")).await;
    let plain_url = world.database_url.clone();
    world.database_url = plain_url.replacen('@', &format!(":{PASSWORD}@"), 1);
    assert!(world.database_url.contains(PASSWORD), "the URL names no role");
    world.add_replica().await;
    let tenant = world.tenant().await;
    let receiver = Receiver::start().await;
    tenant.declare("CUSTOM_PLANTED").await;
    let brought = [b"planted-".as_slice(), &[0xa5; 24]].concat();
    let brought_text = format!("whsec_{}", STANDARD.encode(&brought));
    let mut errors: Vec<String> = Vec::new();
    let told = |status: &Status| format!("{status:?} {}", String::from_utf8_lossy(status.details()));

    let subscribe = |uri: String, headers: &[(&str, &str)]| {
        let mut target = webhook(&uri, WebhookMode::Structured);
        let Some(target::Kind::Webhook(webhook)) = &mut target.kind else { panic!("it is a webhook") };
        webhook.headers.extend(headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        SubscribeRequest { target: Some(target), ..tenant.subscribe_request("CUSTOM_PLANTED", &uri) }
    };
    let authorization = [("authorization", HEADER)];
    // One receiver sends everything back that it was shown, one cannot be reached, and one hangs up on TLS.
    let echo = format!("you sent authorization: {HEADER}");
    receiver.answers("/echo", [Answer::Full(500, Vec::new(), echo.into_bytes())]);
    let good = subscribe(receiver.url(&format!("/echo?token={QUERY}")), &authorization);
    let mut closed = subscribe(format!("http://127.0.0.1:9/?token={QUERY}"), &authorization);
    closed.signing_secret.clone_from(&brought_text);
    let no_tls = subscribe(receiver.url(&format!("/tls?token={QUERY}")).replace("http://", "https://"), &authorization);
    let mut signing = vec![brought_text.clone()];
    for request in [good.clone(), closed, no_tls] {
        let made = tenant.events().subscribe(request).await.expect("valid").into_inner();
        tenant.told("SUBSCRIPTION_CREATED", &made.subscription.as_ref().expect("it is set").id).await;
        signing.push(made.signing_secret);
        let subscription_id = made.subscription.expect("it is set").id;
        let request = RotateSubscriptionSecretRequest { subscription_id, ..Default::default() };
        signing.push(
            tenant.events().rotate_subscription_secret(request).await.expect("valid").into_inner().signing_secret,
        );
    }
    let refused = [
        good,
        subscribe(format!("ftp://example.com/?token={QUERY}"), &authorization),
        subscribe(format!("http://10.0.0.1/?token={QUERY}"), &authorization),
        subscribe(format!("https://user:{HEADER}@example.com/?token={QUERY}"), &[]),
        subscribe(format!("https://example.com/?token={QUERY}"), &[("webhook-id", HEADER)]),
        subscribe(format!("https://example.com/?token={QUERY}"), &[("x", &format!("{HEADER}\r\n"))]),
        SubscribeRequest {
            signing_secret: format!("{brought_text}!"),
            ..subscribe(format!("https://example.com/?token={QUERY}"), &[])
        },
    ];
    for request in refused {
        errors.push(told(&tenant.events().subscribe(request).await.expect_err("it is refused")));
    }
    let path = "/carillon.v1.EventService/ListSubscriptions";
    for header in [format!("Bearer {}x", tenant.key), format!("Basic {}", tenant.key)] {
        let answer = raw::call(world.public(0), path, &[header], Bytes::new()).await;
        errors.push(told(&answer.expect_err("it is refused")));
    }
    let published = tenant.publish("CUSTOM_PLANTED", &json!({ "text": PAYLOAD })).await;
    for one in tenant.all_invocations_become(&published.event_id, InvocationState::DeadLettered).await {
        errors.push(format!("{one:?}"));
    }
    // A listener of PRE events whose reason is for the publisher, and for whoever reads or tests the invocation.
    let name = "CUSTOM_PRE_PLANTED";
    let declare = CreateEventTypeRequest { name: name.to_owned(), phase: EventPhase::Pre.into(), ..Default::default() };
    tenant.types().create_event_type(declare).await.expect("a PRE type can be declared");
    let reason = format!("bad credential: Bearer {HEADER}");
    let refuses = json!({"decision": "reject", "reason": reason}).to_string().into_bytes();
    receiver.answers("/pre", [Answer::Full(200, vec![("x-sent", reason.clone())], refuses)]);
    let authorization = format!("Bearer {HEADER}");
    let listen = subscribe(receiver.url("/pre"), &[("authorization", &authorization)]);
    let listen = SubscribeRequest { event_type: name.to_owned(), ..listen };
    let subscription_id =
        tenant.events().subscribe(listen).await.expect("valid").into_inner().subscription.expect("it is set").id;
    tenant.told("SUBSCRIPTION_CREATED", &subscription_id).await;
    let refused = tenant.try_publish(publish_request(name, &json!({}))).await.expect_err("it is refused");
    errors.push(told(&refused));
    let aborted = receiver.receives("/pre", 1).await[0].json()["id"].as_str().expect("an id").to_owned();
    errors.push(format!("{:?}", tenant.invocations_of(&aborted).await));
    let test = TestSubscriptionRequest { subscription_id, data: Bytes::from_static(b"{}"), ..Default::default() };
    errors.push(format!("{:?}", tenant.events().test_subscription(test).await.expect("an answer").into_inner()));
    for said in &errors[errors.len() - 3..] {
        assert!(said.contains("bad credential: [redacted]"), "the reason itself is told: {said}");
    }

    // A start that fails must not tell either.
    let mut command = Process::carillon();
    command.args(["migrate", "--set"]).arg(format!("database.url=postgres://x:{PASSWORD}@127.0.0.1:1/x"));
    let output = tokio::process::Command::from(command).kill_on_drop(true).output();
    let output = within("carillon ends", output).await.expect("carillon runs");
    assert!(!output.status.success());
    errors.push(String::from_utf8_lossy(&output.stderr).into_owned());

    let cluster = Cluster::shared().await;
    let pg_dump = cluster.postgres.installation().expect("it is our own server").program("pg_dump");
    let output = tokio::process::Command::new(pg_dump).arg(format!("--dbname={}", superuser_url(&plain_url))).output();
    let output = within("pg_dump ends", output).await.expect("pg_dump runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let dump = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(dump.contains("CUSTOM_PLANTED"), "the dump is not of this database");

    let (_, metrics) = get(&format!("http://{}/metrics", world.replicas[0].addresses.ops)).await;
    let log = world.replicas[0].process.log();
    assert!(log.contains("DEBUG"), "the log is not at debug level");
    let traces = eventually("a span of every receiver is exported", || async {
        let spans = collector.spans();
        let text = format!("{spans:?}");
        if spans.iter().filter(|span| span.name == "deliver").count() >= 3 { Ok(text) } else { Err(text) }
    })
    .await;
    let places = [
        ("the log", log),
        ("an error", errors.join("\n")),
        ("a trace", traces),
        ("the metrics", metrics),
        ("the dump", dump),
    ];
    let sealing = b"01234567890123456789012345678901";
    let key = tenant.key.splitn(3, '_').nth(2).expect("a key has parts").to_owned();
    // URIs and payloads are what a tenant has configured and published: the database holds them as such.
    let mut planted = vec![
        (HEADER.to_owned(), false),
        (hex(HEADER.as_bytes()), false),
        (QUERY.to_owned(), true),
        (PAYLOAD.to_owned(), true),
        (PASSWORD.to_owned(), false),
        (hex(key.as_bytes()), false),
        (key, false),
        (STANDARD.encode(sealing), false),
        (hex(sealing), false),
        (String::from_utf8_lossy(sealing).into_owned(), false),
        (hex(&brought), false),
    ];
    for secret in signing.iter().filter_map(|secret| secret.strip_prefix("whsec_")) {
        planted.push((secret.to_owned(), false));
        planted.push((hex(&STANDARD.decode(secret).expect("it is base64")), false));
    }
    let mut found = Vec::new();
    for (secret, in_dump) in &planted {
        for (place, text) in &places {
            let allowed = *in_dump && *place == "the dump";
            if let Some(at) = text.find(secret.as_str()).filter(|_| !allowed) {
                let start = text[..at].rfind('\n').map_or(0, |line| line + 1);
                found.push(format!("{secret} in {place}: {}", text[start..].lines().next().unwrap_or_default()));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}
